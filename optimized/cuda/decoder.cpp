// The decoder: the order of the kernels, one layer after the other, in one stream. Everything within a call stays on
// the device, routing included; only what was asked for comes back.
#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "optimized/attention_mask.h"
#include "optimized/cuda/backend.h"
#include "optimized/cuda/device.h"
#include "optimized/cuda/device_array.h"
#include "optimized/cuda/device_kv_cache.h"
#include "optimized/cuda/device_weights.h"
#include "optimized/cuda/graph.h"
#include "optimized/cuda/kernels.h"
#include "optimized/rope_table.h"

namespace dsv2::cuda {
namespace {

constexpr float kLatentNormEps = 1e-6f;
constexpr std::size_t kMostGraphs = 16;

/// The numbers of a call that change from step to step, in one piece of memory.
struct Inputs {
  int* past;          // P
  std::int32_t* ids;  // [N]
  float *cos, *sin;   // [N, rope_dim / 2]
  Inputs(std::int32_t* words, std::int64_t rows, std::int64_t rope_dim)
      : past(words), ids(words + 1), cos(reinterpret_cast<float*>(ids + rows)), sin(cos + rows * rope_dim / 2) {}
  static std::int64_t count(std::int64_t rows, std::int64_t rope_dim) { return 1 + rows + rows * rope_dim; }
};

/// Rows [N, width] that a layer works in.
using Rows = DeviceBuffer<float>;

bool is_dense(const DeviceLayer& w) { return w.mlp.gate_proj.first.data != nullptr; }

/// One forward call on its way through the layers.
struct Step {
  const Call& call;
  DeviceKvCache& cache;
  int rows;  ///< N = B * S
  int most;  ///< T at most: what launches are laid out for
  TapSink* sink;
  const std::uint8_t* mask = nullptr;  ///< as in AttentionParams
  std::int64_t mask_batch = 0, mask_token = 0;
  const std::uint8_t* all_masked = nullptr;
  std::int64_t layer = 0;
  float* probabilities = nullptr;  ///< [B,H,S,T] on the device, when asked for
};

class CudaDecoder final : public Decoder {
 public:
  CudaDecoder(const Config& config, const Weights& weights, const Options& options)
      : config_(config), options_(options), weights_(weights, stream_), scale_(optimized::softmax_scale(config)) {
    int device = 0;
    DSV2_CUDA(cudaGetDevice(&device));
    DSV2_CUDA(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, device));
  }

  const Config& config() const override { return config_; }
  const Options& options() const override { return options_; }
  std::unique_ptr<KvCache> make_cache(std::int64_t batch, std::int64_t capacity) const override {
    return std::make_unique<DeviceKvCache>(config_, batch, capacity, options_.kv_dtype, stream_);
  }
  std::unique_ptr<KvCache> make_cache(const LegacyCache& legacy) const override {
    return DeviceKvCache::from_legacy(legacy, config_, options_.kv_dtype, stream_);
  }
  ForwardOutput forward(const ForwardInput& input) override;
  std::int64_t workspace_bytes() const override;

 private:
  DeviceKvCache& own_kind(KvCache& cache) const;
  void make_room(int rows, int most, std::int64_t batch, std::int64_t tokens);
  void upload(const ForwardInput& input, Step& step);
  void copy_inputs(const Step& step);
  Inputs inputs(std::int64_t rows) const { return {inputs_.data(), rows, config_.rope_dim()}; }
  void embed(const Step& step);
  void layer(const Step& step, const DeviceLayer& w);
  void mha(const Step& step, const DeviceLayer& w);
  void mha_attend(const Step& step);
  void mla(const Step& step, const DeviceLayer& w);
  void mla_fused(const Step& step, const DeviceLayer& w);
  void mla_attend(const Step& step, const DeviceLayer& w);
  MlaAbsorbParams absorb_params(const Step& step, const DeviceLayer& w) const;
  void attend(const Step& step, AttentionParams params);
  AttentionParams attention_params(const Step& step) const;
  void mlp_block(const Step& step, const DeviceLayer& w);
  void route_apart(const Step& step, const DeviceLayer& w);
  ExpertsParams experts_params(const Step& step, const DeviceMlp& mlp, const ExpertGroups* g) const;
  bool fits_fused(std::int64_t rows) const {
    return rows <= kFewRows && (!config_.n_routed_experts ||
                                o_proj_route_fits(size(rows), size(*config_.n_routed_experts), size(config_.n_group)));
  }
  bool is_fused(const Step& step) const { return !step.sink && fits_fused(step.rows); }
  void fused_layer(const Step& step, const DeviceLayer& w);
  void norm(const float* x, std::int64_t x_stride, const float* weight, float eps, int rows, int width, float* y,
            std::uint16_t* rounded = nullptr);
  std::uint16_t* rounded_for(const Step& step, const Matrix& m) const;
  void head(const ForwardInput& input, const Step& step, ForwardOutput& out);
  bool is_plain_step(const ForwardInput& input, const Call& call) const;
  void enqueue_plain_step(Step step, bool logits);
  ForwardOutput plain_step(const ForwardInput& input, const Call& call, DeviceKvCache& cache);
  ForwardOutput full_forward(const ForwardInput& input, const Call& call, DeviceKvCache& cache);
  struct LinearOptions {
    bool keeps = false;  ///< rows stay f32
    const std::int32_t* pick = nullptr;
    bool adds = false;  ///< to what is there
    const std::uint16_t* rounded = nullptr;
  };
  void linear(const float* x, int rows, std::initializer_list<LinearSegment> segments, const LinearOptions& how);
  void linear(const float* x, int rows, std::initializer_list<LinearSegment> segments) {
    linear(x, rows, segments, LinearOptions());
  }
  GateParams gate_params(int rows) const;
  ExpertGroups groups() const;

  bool rounds() const { return options_.dtype != DType::f32; }
  int size(std::int64_t of) const { return static_cast<int>(of); }
  /// Reports device rows; the sink may overwrite them.
  template <class T>
  void tap_as(const Step& step, std::string_view name, T* data, Shape shape);
  void tap(const Step& step, std::string_view name, float* data, std::int64_t width, std::int64_t heads = 0);
  Tensor download(const float* data, Shape shape) const;

  Config config_;
  Options options_;
  Stream stream_;
  DeviceWeights weights_;
  Blas blas_;
  float scale_;
  int processors_ = 1;

  Rows x_, hidden_, q_, k_, v_, q_low_, q_low_norm_, q_rope_, k_rope_, latent_, attn_, absorbed_, latent_out_;
  Rows block_out_, gate_logits_, gate_scores_, topk_weight_, act_, expert_out_, partial_, probabilities_, logits_;
  DeviceBuffer<std::int32_t> inputs_;  // of a call, one copy: Inputs
  PinnedBuffer<std::int32_t> host_inputs_;
  DeviceBuffer<int> arrived_;  // zeros between launches
  DeviceBuffer<std::int32_t> topk_idx_, group_memory_, picks_;
  DeviceBuffer<std::uint8_t> mask_, all_masked_;

  /// The cache's memory and capacity, B, whether there are logits: what a graph of a step is made for. The buffers
  /// above are the same as long as none has grown.
  using GraphKey = std::tuple<void*, std::int64_t, std::int64_t, bool>;
  std::map<GraphKey, Graph> graphs_;
};

DeviceKvCache& CudaDecoder::own_kind(KvCache& cache) const {
  auto* own = dynamic_cast<DeviceKvCache*>(&cache);
  DSV2_CHECK(own, "cache: expected one made by the cuda decoder, found another backend's");
  DSV2_CHECK(own->dtype() == options_.kv_dtype, "cache: expected dtype ", name(options_.kv_dtype), ", found ",
             name(own->dtype()));
  DSV2_CHECK(own->layer_count() == config_.num_hidden_layers, "cache: expected ", config_.num_hidden_layers,
             " layers, found ", own->layer_count());
  const auto expected = cache_parts(config_);
  for (std::size_t p = 0; p < 2; ++p) {
    const CachePart& found = own->parts()[p];
    DSV2_CHECK(found.name == expected[p].name && found.heads == expected[p].heads && found.dim == expected[p].dim,
               "cache: expected ", expected[p].name, " of ", expected[p].heads, " x ", expected[p].dim, ", found ",
               found.name, " of ", found.heads, " x ", found.dim);
  }
  return *own;
}

std::int64_t CudaDecoder::workspace_bytes() const {
  std::int64_t sum =
      weights_.bytes() + blas_.bytes() + inputs_.bytes() + arrived_.bytes() + mask_.bytes() + all_masked_.bytes();
  for (const Rows* b :
       {&x_,           &hidden_,      &q_,           &k_,    &v_,          &q_low_,      &q_low_norm_,
        &q_rope_,      &k_rope_,      &latent_,      &attn_, &absorbed_,   &latent_out_, &block_out_,
        &gate_logits_, &gate_scores_, &topk_weight_, &act_,  &expert_out_, &partial_,    &probabilities_,
        &logits_})
    sum += b->bytes();
  for (const auto* b : {&topk_idx_, &group_memory_, &picks_}) sum += b->bytes();
  return sum;
}

template <class T>
void CudaDecoder::tap_as(const Step& step, std::string_view name, T* data, Shape shape) {
  if (!step.sink) return;
  const std::string dot = name.empty() ? "" : ".";
  const std::string full = concat("layers.", step.layer, dot, name);
  const std::int64_t count = element_count(shape);
  std::vector<T> values(static_cast<std::size_t>(count));
  stream_.download(values.data(), data, count);
  if constexpr (std::is_same_v<T, std::int32_t>) {
    std::vector<std::int64_t> wide(values.begin(), values.end());
    step.sink->tap(full, {DType::i64, std::move(shape), wide.data()}, wide.data());
    for (const std::int64_t id : wide)
      DSV2_CHECK(id >= 0 && id < *config_.n_routed_experts, full, ": expected 0..", *config_.n_routed_experts - 1,
                 ", found ", id);
    std::copy(wide.begin(), wide.end(), values.begin());
  } else {
    step.sink->tap(full, {dtype_of<T>(), std::move(shape), values.data()}, values.data());
  }
  stream_.upload(data, values.data(), count);
  stream_.synchronise();
}

void CudaDecoder::tap(const Step& step, std::string_view name, float* data, std::int64_t width, std::int64_t heads) {
  Shape shape{step.call.batch, step.call.tokens, width};
  if (heads) shape = {step.call.batch, step.call.tokens, heads, width / heads};
  tap_as(step, name, data, std::move(shape));
}

Tensor CudaDecoder::download(const float* data, Shape shape) const {
  Tensor t(DType::f32, std::move(shape));
  stream_.download(t.as<float>().data(), data, t.size());
  return t;
}

void CudaDecoder::norm(const float* x, std::int64_t x_stride, const float* weight, float eps, int rows, int width,
                       float* y, std::uint16_t* rounded) {
  rms_norm({.x = x,
            .x_stride = x_stride,
            .weight = weight,
            .eps = eps,
            .rows = rows,
            .width = width,
            .y = y,
            .rounded = rounded,
            .rounded_stride = row_stride(width, Storage::bf16)},
           stream_);
}

/// Where norm() leaves rows that meet `m` next, when it is the library that takes them and no sink may change them.
std::uint16_t* CudaDecoder::rounded_for(const Step& step, const Matrix& m) const {
  const bool wanted = !step.sink && m.storage == Storage::bf16 && Blas::takes(step.rows, m.storage, rounds());
  return wanted ? blas_.rounded() : nullptr;
}

void CudaDecoder::linear(const float* x, int rows, std::initializer_list<LinearSegment> segments,
                         const LinearOptions& how) {
  LinearParams p{.x = x,
                 .x_stride = segments.begin()->weight.in,
                 .rows = rows,
                 .pick = how.pick,
                 .rounds = rounds() && !how.keeps,
                 .rounded = how.rounded,
                 .adds = how.adds,
                 .segment_count = static_cast<int>(segments.size()),
                 .segments = {}};
  std::copy(segments.begin(), segments.end(), p.segments);
  cuda::linear(p, blas_, stream_);
}

/// Every buffer that a call works in, before the first launch: nothing is allocated among them.
void CudaDecoder::make_room(int rows, int most, std::int64_t batch, std::int64_t tokens) {
  const Config& c = config_;
  const std::int64_t N = rows, D = c.hidden_size, H = c.num_attention_heads;
  x_.get(N * D), hidden_.get(N * D), block_out_.get(N * D);
  inputs_.get(Inputs::count(N, c.rope_dim())), host_inputs_.get(Inputs::count(N, c.rope_dim()));
  q_.get(N * H * c.qk_head_dim()), q_rope_.get(N * H * c.rope_dim()), attn_.get(N * H * c.value_head_dim());
  if (c.use_mla) {
    const std::int64_t R = c.kv_lora_rank, Q = c.q_lora_rank.value_or(0);
    q_low_.get(N * Q), q_low_norm_.get(N * Q), k_.get(N * (R + c.qk_rope_head_dim));
    k_rope_.get(N * c.qk_rope_head_dim), latent_.get(N * R), absorbed_.get(N * H * R), latent_out_.get(N * H * R);
  } else {
    const std::int64_t width = c.num_key_value_heads * c.head_dim();
    k_.get(N * width), v_.get(N * width), k_rope_.get(N * width);
  }
  std::int64_t act = N * c.intermediate_size;
  if (c.n_routed_experts) {
    const std::int64_t E = *c.n_routed_experts, k = c.num_experts_per_tok;
    gate_logits_.get(N * E), gate_scores_.get(N * E), topk_weight_.get(N * k), topk_idx_.get(N * k);
    group_memory_.get(E + 1 + 2 * N * k + E + 2 + 2 * max_expert_tiles(size(N * k), size(E)));
    act = std::max(act, N * (k * c.moe_intermediate_size + c.shared_intermediate_size()));
    if (N > kFewRows) expert_out_.get(N * k * D);
  }
  act_.get(act);
  const std::int64_t unit = std::max(c.intermediate_size, c.n_routed_experts ? c.shared_intermediate_size() : 0);
  blas_.make_room(rows, std::max({D, H * c.value_head_dim(), c.q_lora_rank.value_or(0), unit}), unit);
  AttentionParams p{};
  p.batch = size(batch), p.tokens = size(tokens), p.heads = size(H);
  p.dv = size(c.use_mla ? c.kv_lora_rank : c.head_dim());
  p.splits =
      attention_splits(p.batch, p.tokens, p.heads, c.use_mla ? 1 : size(c.num_key_value_heads), most, processors_);
  std::int64_t partial = attention_partial_size(p);
  std::int64_t arrivals = attention_arrivals(p.batch, p.tokens, p.heads, c.use_mla ? 1 : size(c.num_key_value_heads));
  if (fits_fused(N) && c.n_routed_experts)
    partial = std::max(partial, o_proj_route_partial_size(rows, size(D), size(*c.n_routed_experts)));
  if (fits_fused(N) && c.use_mla) {
    partial =
        std::max(partial, mla_qkv_rope_partial_size(rows, size(H), size(c.qk_nope_head_dim), size(c.kv_lora_rank)));
    arrivals = std::max(arrivals, 1 + H);
  }
  partial_.get(partial);
  if (arrivals * std::int64_t{sizeof(int)} > arrived_.bytes()) {
    arrived_.get(arrivals);
    DSV2_CUDA(cudaMemsetAsync(arrived_.data(), 0, static_cast<std::size_t>(arrived_.bytes()), stream_));
  }
}

void CudaDecoder::upload(const ForwardInput& input, Step& step) {
  const Call& call = step.call;
  const std::int64_t N = step.rows, D = config_.hidden_size;
  const Inputs host(host_inputs_.get(0), N, config_.rope_dim());
  *host.past = size(call.past);
  optimized::rope_table(config_, call, host.cos, host.sin);
  if (input.input_ids) {
    const auto ids = input.input_ids->as<std::int64_t>();
    std::copy(ids.begin(), ids.end(), host.ids);
  } else {
    std::vector<float> embeds(static_cast<std::size_t>(N * D));
    widen_into(*input.inputs_embeds, embeds.data());
    stream_.upload(x_.data(), embeds.data(), N * D);
    stream_.synchronise();
  }
  std::vector<std::uint8_t> flags(static_cast<std::size_t>(N));
  const optimized::AttentionMask mask = optimized::attention_mask(call, flags.data());
  if (mask.visible) {
    const auto count = static_cast<std::int64_t>(call.mask.size());
    stream_.upload(mask_.get(count), mask.visible, count);
    step.mask = mask_.data(), step.mask_batch = mask.batch_stride, step.mask_token = mask.token_stride;
  }
  if (mask.all_masked) {
    stream_.upload(all_masked_.get(N), mask.all_masked, N);
    step.all_masked = all_masked_.data();
  }
  if (mask.visible) stream_.synchronise();  // the flags go
}

/// What upload() left in pinned memory, on its way: the first thing that a step does.
void CudaDecoder::copy_inputs(const Step& step) {
  stream_.upload(inputs_.data(), host_inputs_.get(0), Inputs::count(step.rows, config_.rope_dim()));
}

void CudaDecoder::embed(const Step& step) {
  embedding({.table = weights_.embed_tokens, .ids = inputs(step.rows).ids, .rows = step.rows, .y = x_.data()}, stream_);
}

AttentionParams CudaDecoder::attention_params(const Step& step) const {
  const int K = config_.use_mla ? 1 : size(config_.num_key_value_heads), H = size(config_.num_attention_heads);
  const int B = size(step.call.batch), S = size(step.call.tokens);
  return {.batch = B,
          .tokens = S,
          .past = inputs(step.rows).past,
          .heads = H,
          .key_heads = K,
          .q1 = nullptr,
          .q2 = nullptr,
          .k1 = {},
          .k2 = {},
          .v = {},
          .d1 = 0,
          .d2 = 0,
          .dv = 0,
          .scale = scale_,
          .rounds = rounds(),
          .mask = step.mask,
          .mask_batch = step.mask_batch,
          .mask_token = step.mask_token,
          .all_masked = step.all_masked,
          .splits = attention_splits(B, S, H, K, step.most, processors_),
          .arrived = arrived_.data(),
          .partial = partial_.data(),
          .y = nullptr};
}

void CudaDecoder::attend(const Step& step, AttentionParams p) {
  attention(p, stream_);
  if (step.probabilities)
    attention_probabilities({.attention = p, .total = size(step.call.total), .y = step.probabilities}, stream_);
}

void CudaDecoder::mha(const Step& step, const DeviceLayer& w) {
  const int N = step.rows, H = size(config_.num_attention_heads), K = size(config_.num_key_value_heads);
  const int d = size(config_.head_dim());
  linear(hidden_.data(), N, {{w.q_proj, q_.data(), H * d}, {w.k_proj, k_.data(), K * d}, {w.v_proj, v_.data(), K * d}},
         {.rounded = rounded_for(step, w.q_proj)});
  tap(step, "self_attn.q_proj", q_.data(), H * d);
  tap(step, "self_attn.k_proj", k_.data(), K * d);
  tap(step, "self_attn.v_proj", v_.data(), K * d);
  RopeKvWriteParams r{.batch = size(step.call.batch),
                      .tokens = size(step.call.tokens),
                      .past = inputs(step.rows).past,
                      .heads = H,
                      .width = d,
                      .interleaved = false,
                      .cos = inputs(step.rows).cos,
                      .sin = inputs(step.rows).sin,
                      .q = q_.data(),
                      .q_token_stride = H * d,
                      .q_head_stride = d,
                      .q_rope = q_rope_.data(),
                      .k = k_.data(),
                      .k_token_stride = K * d,
                      .k_head_stride = d,
                      .key_heads = K,
                      .k_rope = nullptr,
                      .keys = step.cache.rows(step.layer, 0),
                      .values = v_.data(),
                      .value_heads = K,
                      .value_width = d,
                      .cached_values = step.cache.rows(step.layer, 1)};
  if (step.sink) r.k_rope = k_rope_.data();
  rope_kv_write(r, stream_);
  if (step.sink) {
    tap(step, "self_attn.q_rope", q_rope_.data(), H * d, H);
    tap(step, "self_attn.k_rope", k_rope_.data(), K * d, K);
    kv_write({.x = k_rope_.data(),
              .batch = r.batch,
              .tokens = r.tokens,
              .past = r.past,
              .heads = K,
              .width = d,
              .rows = r.keys},
             stream_);
  }
  mha_attend(step);
}

void CudaDecoder::mha_attend(const Step& step) {
  AttentionParams p = attention_params(step);
  p.q1 = q_rope_.data();
  p.k1 = step.cache.rows(step.layer, 0), p.v = step.cache.rows(step.layer, 1);
  p.d1 = p.dv = size(config_.head_dim());
  p.y = attn_.data();
  attend(step, p);
}

void CudaDecoder::mla(const Step& step, const DeviceLayer& w) {
  const int N = step.rows, H = size(config_.num_attention_heads), R = size(config_.kv_lora_rank);
  const int rope = size(config_.qk_rope_head_dim), nope = size(config_.qk_nope_head_dim);
  const int head = nope + rope, q_width = H * head;
  const Matrix& kv_a = w.kv_a_proj_with_mqa;
  if (config_.q_lora_rank) {
    const int Q = size(*config_.q_lora_rank);
    linear(hidden_.data(), N, {{w.q_a_proj, q_low_.data(), Q}, {kv_a, k_.data(), R + rope}},
           {.rounded = rounded_for(step, kv_a)});
    tap(step, "self_attn.q_a_proj", q_low_.data(), Q);
    norm(q_low_.data(), Q, w.q_a_layernorm, kLatentNormEps, N, Q, q_low_norm_.data(), rounded_for(step, w.q_b_proj));
    tap(step, "self_attn.q_a_layernorm", q_low_norm_.data(), Q);
    linear(q_low_norm_.data(), N, {{w.q_b_proj, q_.data(), q_width}}, {.rounded = rounded_for(step, w.q_b_proj)});
    tap(step, "self_attn.q_b_proj", q_.data(), q_width);
  } else {
    linear(hidden_.data(), N, {{w.q_proj, q_.data(), q_width}, {kv_a, k_.data(), R + rope}},
           {.rounded = rounded_for(step, kv_a)});
    tap(step, "self_attn.q_proj", q_.data(), q_width);
  }
  tap(step, "self_attn.kv_a_proj_with_mqa", k_.data(), R + rope);
  norm(k_.data(), R + rope, w.kv_a_layernorm, kLatentNormEps, N, R, latent_.data());
  tap(step, "self_attn.kv_a_layernorm", latent_.data(), R);
  RopeKvWriteParams r{.batch = size(step.call.batch),
                      .tokens = size(step.call.tokens),
                      .past = inputs(step.rows).past,
                      .heads = H,
                      .width = rope,
                      .interleaved = true,
                      .cos = inputs(step.rows).cos,
                      .sin = inputs(step.rows).sin,
                      .q = q_.data() + nope,
                      .q_token_stride = q_width,
                      .q_head_stride = head,
                      .q_rope = q_rope_.data(),
                      .k = k_.data() + R,
                      .k_token_stride = R + rope,
                      .k_head_stride = 0,
                      .key_heads = 1,
                      .k_rope = nullptr,
                      .keys = step.cache.rows(step.layer, 0),
                      .values = latent_.data(),
                      .value_heads = 1,
                      .value_width = R,
                      .cached_values = step.cache.rows(step.layer, 1)};
  if (step.sink) r.k_rope = k_rope_.data();
  rope_kv_write(r, stream_);
  if (step.sink) {
    tap(step, "self_attn.q_rope", q_rope_.data(), H * rope, H);
    tap(step, "self_attn.k_rope", k_rope_.data(), rope, 1);
    kv_write({.x = k_rope_.data(),
              .batch = r.batch,
              .tokens = r.tokens,
              .past = r.past,
              .heads = 1,
              .width = rope,
              .rows = r.keys},
             stream_);
  }
  mla_absorb_keys(absorb_params(step, w), stream_);
  mla_attend(step, w);
}

MlaAbsorbParams CudaDecoder::absorb_params(const Step& step, const DeviceLayer& w) const {
  const std::int64_t H = config_.num_attention_heads, head = config_.qk_head_dim();
  return {.x = q_.data(),
          .x_token_stride = H * head,
          .x_head_stride = size(head),
          .kv_b_proj = w.kv_b_proj,
          .rows = step.rows,
          .heads = size(H),
          .nope = size(config_.qk_nope_head_dim),
          .v = size(config_.v_head_dim),
          .y = absorbed_.data()};
}

/// Of absorbed_ and q_rope_, into attn_.
void CudaDecoder::mla_attend(const Step& step, const DeviceLayer& w) {
  const int H = size(config_.num_attention_heads), R = size(config_.kv_lora_rank);
  AttentionParams p = attention_params(step);
  p.q1 = absorbed_.data(), p.q2 = q_rope_.data();
  p.k1 = p.v = step.cache.rows(step.layer, 1), p.k2 = step.cache.rows(step.layer, 0);
  p.d1 = p.dv = R, p.d2 = size(config_.qk_rope_head_dim);
  p.y = latent_out_.data();
  attend(step, p);
  MlaAbsorbParams absorb = absorb_params(step, w);
  absorb.x = latent_out_.data(), absorb.x_token_stride = static_cast<std::int64_t>(H) * R, absorb.x_head_stride = R;
  absorb.y = attn_.data();
  mla_absorb_values(absorb, stream_);
}

/// mla() of few rows in three launches, four where queries have a low rank.
void CudaDecoder::mla_fused(const Step& step, const DeviceLayer& w) {
  const Inputs in = inputs(step.rows);
  MlaQkvRopeParams p{.x = x_.data(),
                     .norm = {w.input_layernorm, static_cast<float>(config_.rms_norm_eps)},
                     .q_a_proj = w.q_a_proj,
                     .kv_a_proj = w.kv_a_proj_with_mqa,
                     .q_proj = w.q_proj,
                     .batch = size(step.call.batch),
                     .tokens = size(step.call.tokens),
                     .past = in.past,
                     .cos = in.cos,
                     .sin = in.sin,
                     .heads = size(config_.num_attention_heads),
                     .nope = size(config_.qk_nope_head_dim),
                     .rope = size(config_.qk_rope_head_dim),
                     .v = size(config_.v_head_dim),
                     .kv_b_proj = w.kv_b_proj,
                     .q_low = q_low_.data(),
                     .q_latent = absorbed_.data(),
                     .q_rope = q_rope_.data(),
                     .latent_norm = {w.kv_a_layernorm, kLatentNormEps},
                     .kv = k_.data(),
                     .keys = step.cache.rows(step.layer, 0),
                     .latents = step.cache.rows(step.layer, 1),
                     .partial = partial_.data(),
                     .arrived = arrived_.data()};
  mla_qkv_rope(p, stream_);
  if (config_.q_lora_rank) {
    p.x = q_low_.data(), p.norm = {w.q_a_layernorm, kLatentNormEps};
    p.q_a_proj = p.kv_a_proj = {}, p.q_proj = w.q_b_proj;
    mla_qkv_rope(p, stream_);
  }
  mla_attend(step, w);
}

GateParams CudaDecoder::gate_params(int rows) const {
  return {.logits = gate_logits_.data(),
          .bias = nullptr,
          .scores = gate_scores_.data(),
          .topk_idx = topk_idx_.data(),
          .topk_weight = topk_weight_.data(),
          .rows = rows,
          .experts = size(*config_.n_routed_experts),
          .top_k = size(config_.num_experts_per_tok),
          .groups = size(config_.n_group),
          .top_groups = size(config_.topk_group),
          .method = config_.topk_method,
          .scoring = config_.scoring_func,
          .normalise = config_.norm_topk_prob,
          .scaling = static_cast<float>(config_.routed_scaling_factor)};
}

ExpertGroups CudaDecoder::groups() const {
  const std::int64_t E = *config_.n_routed_experts, places = topk_idx_.bytes() / 4;
  std::int32_t* at = group_memory_.data();
  const auto take = [&](std::int64_t count) { return std::exchange(at, at + count); };
  ExpertGroups g{};
  g.begin = take(E + 1), g.tokens = take(places), g.place = take(places), g.touched = take(E), g.counts = take(2);
  g.tiles = at;
  return g;
}

void CudaDecoder::route_apart(const Step& step, const DeviceLayer& w) {
  const int N = step.rows, E = size(*config_.n_routed_experts), k = size(config_.num_experts_per_tok);
  linear(hidden_.data(), N, {{w.gate, gate_logits_.data(), E}},
         {.keeps = true});  // a rounded row could choose another expert
  tap_as(step, "mlp.gate.logits", gate_logits_.data(), {N, E});
  GateParams p = gate_params(N);
  p.bias = w.e_score_correction_bias;
  gate_select(p, stream_);
  tap_as(step, "mlp.gate.topk_idx", topk_idx_.data(), {N, k});
  gate_weight(p, stream_);
  tap_as(step, "mlp.gate.topk_weight", topk_weight_.data(), {N, k});
  expert_groups({.topk_idx = topk_idx_.data(), .rows = N, .top_k = k, .experts = E, .groups = groups()}, stream_);
}

ExpertsParams CudaDecoder::experts_params(const Step& step, const DeviceMlp& mlp, const ExpertGroups* g) const {
  const bool routed = g != nullptr;
  return {.x = hidden_.data(),
          .rows = step.rows,
          .top_k = routed ? size(config_.num_experts_per_tok) : 1,
          .experts = routed ? size(*config_.n_routed_experts) : 1,
          .groups = g,
          .topk_weight = routed ? topk_weight_.data() : nullptr,
          .norm = {},
          .gate_proj = mlp.gate_proj,
          .up_proj = mlp.up_proj,
          .down_proj = mlp.down_proj,
          .shared_gate_proj = {},
          .shared_up_proj = {},
          .shared_down_proj = {},
          .activation = config_.hidden_act,
          .rounds = rounds(),
          .rounded = rounded_for(step, mlp.gate_proj.first),
          .adds = false,
          .act = act_.data(),
          .act_rounded = !step.sink,
          .partial = expert_out_.data(),
          .y = block_out_.data()};
}

void CudaDecoder::mlp_block(const Step& step, const DeviceLayer& w) {
  const std::int64_t D = config_.hidden_size;
  const Matrix& first = (is_dense(w) ? w.mlp : w.shared_experts).gate_proj.first;
  norm(x_.data(), D, w.post_attention_layernorm, static_cast<float>(config_.rms_norm_eps), step.rows, size(D),
       hidden_.data(), rounded_for(step, first));
  tap(step, "post_attention_layernorm", hidden_.data(), D);
  if (is_dense(w)) {
    const ExpertsParams p = experts_params(step, w.mlp, nullptr);
    experts_act(p, blas_, stream_);
    tap(step, "mlp.act", act_.data(), w.mlp.gate_proj.first.out);
    experts_down(p, blas_, stream_);
  } else {
    route_apart(step, w);
    const ExpertGroups g = groups();
    const ExpertsParams routed = experts_params(step, w.experts, &g);
    experts_act(routed, blas_, stream_);
    experts_down(routed, blas_, stream_);
    tap(step, "mlp.experts", block_out_.data(), D);
    if (w.shared_experts.gate_proj.first.data) {
      ExpertsParams shared = experts_params(step, w.shared_experts, nullptr);
      shared.adds = true;
      experts_act(shared, blas_, stream_);
      experts_down(shared, blas_, stream_);
    }
  }
  tap(step, "mlp", block_out_.data(), D);
  add({.x = x_.data(), .y = block_out_.data(), .count = step.rows * D}, stream_);
  tap(step, "", x_.data(), D);
}

/// The same as layer() in 5 launches (MLA: 6, and 7 where queries have a low rank), for few rows when nobody asks for
/// what lies between.
void CudaDecoder::fused_layer(const Step& step, const DeviceLayer& w) {
  const int N = step.rows, D = size(config_.hidden_size);
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  const int width = size(config_.rope_dim());
  if (config_.use_mla &&
      mla_qkv_rope_fits(N, config_.q_lora_rank ? w.q_b_proj : w.q_proj, size(config_.qk_nope_head_dim), width)) {
    mla_fused(step, w);
  } else if (config_.use_mla || !qkv_rope_fits(N, width)) {
    norm(x_.data(), D, w.input_layernorm, eps, N, D, hidden_.data());
    config_.use_mla ? mla(step, w) : mha(step, w);
  } else {
    const Inputs in = inputs(N);
    const QkvRopeParams p{.x = x_.data(),
                          .norm = {w.input_layernorm, eps},
                          .q_proj = w.q_proj,
                          .k_proj = w.k_proj,
                          .v_proj = w.v_proj,
                          .batch = size(step.call.batch),
                          .tokens = size(step.call.tokens),
                          .past = in.past,
                          .heads = size(config_.num_attention_heads),
                          .key_heads = size(config_.num_key_value_heads),
                          .width = width,
                          .cos = in.cos,
                          .sin = in.sin,
                          .q_rope = q_rope_.data(),
                          .keys = step.cache.rows(step.layer, 0),
                          .values = step.cache.rows(step.layer, 1)};
    qkv_rope(p, stream_);
    mha_attend(step);
  }

  const RowNorm norm{w.post_attention_layernorm, eps};
  ExpertGroups g{};
  ExpertsParams p = experts_params(step, is_dense(w) ? w.mlp : w.experts, nullptr);
  if (is_dense(w)) {
    linear(attn_.data(), N, {{w.o_proj, x_.data(), D}}, {.adds = true});
  } else {
    g = groups();
    p = experts_params(step, w.experts, &g);
    GateParams gate = gate_params(N);
    gate.bias = w.e_score_correction_bias;
    o_proj_route({.attn = attn_.data(),
                  .o_proj = w.o_proj,
                  .x = x_.data(),
                  .norm = norm,
                  .weight = w.gate,
                  .partial = partial_.data(),
                  .gate = gate,
                  .logits = gate_logits_.data(),
                  .groups = g,
                  .arrived = arrived_.data()},
                 stream_);
    p.shared_gate_proj = w.shared_experts.gate_proj;
    p.shared_up_proj = w.shared_experts.up_proj;
    p.shared_down_proj = w.shared_experts.down_proj;
  }
  p.x = x_.data(), p.norm = norm;
  experts_act(p, blas_, stream_);
  p.y = x_.data(), p.adds = true;
  experts_down(p, blas_, stream_);
}

void CudaDecoder::layer(const Step& step, const DeviceLayer& w) {
  const std::int64_t D = config_.hidden_size;
  norm(x_.data(), D, w.input_layernorm, static_cast<float>(config_.rms_norm_eps), step.rows, size(D), hidden_.data(),
       rounded_for(step, config_.use_mla ? w.kv_a_proj_with_mqa : w.q_proj));
  tap(step, "input_layernorm", hidden_.data(), D);
  if (config_.use_mla)
    mla(step, w);
  else
    mha(step, w);
  tap(step, "self_attn.attn_output", attn_.data(), w.o_proj.in);
  linear(attn_.data(), step.rows, {{w.o_proj, block_out_.data(), D}});
  tap(step, "self_attn.o_proj", block_out_.data(), D);
  add({.x = x_.data(), .y = block_out_.data(), .count = step.rows * D}, stream_);
  tap(step, "self_attn.residual", x_.data(), D);
  mlp_block(step, w);
}

void CudaDecoder::head(const ForwardInput& input, const Step& step, ForwardOutput& out) {
  const Call& call = step.call;
  if (call.logits == Logits::none) return;
  const std::int64_t B = call.batch, S = call.tokens;
  const bool classify = config_.head == Head::sequence_classification;
  std::vector<std::int32_t> rows;
  Shape shape{B, S, config_.vocab_size};
  if (classify || (call.logits == Logits::last && S > 1)) {
    const auto picked =
        classify ? pooled_positions(input, config_, call) : std::vector(static_cast<std::size_t>(B), S - 1);
    for (std::int64_t b = 0; b < B; ++b)
      rows.push_back(static_cast<std::int32_t>(picked[static_cast<std::size_t>(b)] + b * S));
    shape = classify ? Shape{B, config_.num_labels} : Shape{B, 1, config_.vocab_size};
  }
  const std::int64_t count = rows.empty() ? B * S : B;
  const std::int32_t* pick = nullptr;
  if (!rows.empty()) {
    stream_.upload(picks_.get(B), rows.data(), B);
    pick = picks_.data();
  }
  float* logits = logits_.get(count * weights_.head.out);
  linear(hidden_.data(), size(count), {{weights_.head, logits, weights_.head.out}}, {.pick = pick});
  out.logits = download(logits, std::move(shape));
  if (input.taps) input.taps->tap(classify ? "score" : "lm_head", out.logits.view(), out.logits.data());
}

/// A decode step from which nothing but its last results is wanted: one that can be a graph.
bool CudaDecoder::is_plain_step(const ForwardInput& input, const Call& call) const {
  return call.tokens == 1 && fits_fused(call.batch) && input.cache && input.input_ids && !input.taps &&
         !input.attentions && !input.hidden_states && call.mask_rank == 0 &&
         config_.head != Head::sequence_classification;
}

/// Everything of a plain step: from the ids in pinned memory to the logits on the device.
void CudaDecoder::enqueue_plain_step(Step step, bool logits) {
  copy_inputs(step);
  embed(step);
  for (; step.layer < config_.num_hidden_layers; ++step.layer)
    fused_layer(step, weights_.layers[static_cast<std::size_t>(step.layer)]);
  const int D = size(config_.hidden_size);
  norm(x_.data(), D, weights_.norm, static_cast<float>(config_.rms_norm_eps), step.rows, D, hidden_.data());
  if (logits) linear(hidden_.data(), step.rows, {{weights_.head, logits_.data(), weights_.head.out}});
}

ForwardOutput CudaDecoder::plain_step(const ForwardInput& input, const Call& call, DeviceKvCache& cache) {
  const std::int64_t B = call.batch, D = config_.hidden_size, V = weights_.head.out;
  const bool logits = call.logits != Logits::none;
  // Laid out for all that the cache has room for: one graph serves every step until it grows.
  const std::int64_t before = workspace_bytes();
  make_room(size(B), size(cache.capacity()), B, 1);
  if (logits) logits_.get(B * V);
  if (workspace_bytes() != before) graphs_.clear();
  Step step{.call = call, .cache = cache, .rows = size(B), .most = size(cache.capacity()), .sink = nullptr};
  upload(input, step);
  const GraphKey key{cache.rows(0, 0).data, cache.capacity(), B, logits};
  auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    if (graphs_.size() >= kMostGraphs) graphs_.clear();
    found = graphs_.emplace(key, Graph(stream_, [&] { enqueue_plain_step(step, logits); })).first;
  }
  found->second.launch(stream_);
  ForwardOutput out;
  out.last_hidden_state = download(hidden_.data(), {B, 1, D});
  if (logits) out.logits = download(logits_.data(), {B, 1, V});
  return out;
}

ForwardOutput CudaDecoder::full_forward(const ForwardInput& input, const Call& call, DeviceKvCache& cache) {
  const std::int64_t B = call.batch, S = call.tokens, T = call.total, D = config_.hidden_size, N = B * S;
  const std::int64_t before = workspace_bytes();
  make_room(size(N), size(T), B, S);
  if (workspace_bytes() != before) graphs_.clear();

  Step step{.call = call, .cache = cache, .rows = size(N), .most = size(T), .sink = input.taps};
  upload(input, step);
  ForwardOutput out;
  copy_inputs(step);
  if (input.input_ids) embed(step);
  const auto tap_rows = [&](std::string_view name, float* rows) {
    if (!input.taps) return;
    Tensor values = download(rows, {B, S, D});
    input.taps->tap(name, values.view(), values.data());
    stream_.upload(rows, values.as<float>().data(), N * D);
    stream_.synchronise();
  };
  tap_rows("embed_tokens", x_.data());
  for (; step.layer < config_.num_hidden_layers; ++step.layer) {
    if (input.hidden_states) out.hidden_states.push_back(download(x_.data(), {B, S, D}));
    const Shape shape{B, config_.num_attention_heads, S, T};
    if (input.attentions) step.probabilities = probabilities_.get(element_count(shape));
    const DeviceLayer& w = weights_.layers[static_cast<std::size_t>(step.layer)];
    is_fused(step) ? fused_layer(step, w) : layer(step, w);
    if (input.attentions) out.attentions.push_back(download(step.probabilities, shape));
  }
  norm(x_.data(), D, weights_.norm, static_cast<float>(config_.rms_norm_eps), size(N), size(D), hidden_.data());
  tap_rows("norm", hidden_.data());
  out.last_hidden_state = download(hidden_.data(), {B, S, D});
  if (input.hidden_states) out.hidden_states.push_back(out.last_hidden_state.clone());
  head(input, step, out);
  return out;
}

ForwardOutput CudaDecoder::forward(const ForwardInput& input) {
  const Call call = validate_input(input, config_);
  const std::int64_t B = call.batch, S = call.tokens, T = call.total, N = B * S;
  DSV2_CHECK(N <= kMostRows, "tokens: expected at most ", kMostRows, " in a call, found ", B, " x ", S);

  // A call without a cache object works on one of its own.
  std::unique_ptr<KvCache> own;
  if (!input.cache) own = input.past_key_values ? make_cache(*input.past_key_values) : make_cache(B, T);
  DeviceKvCache& cache = own_kind(input.cache ? *input.cache : *own);
  cache.reserve(T);
  ForwardOutput out = is_plain_step(input, call) ? plain_step(input, call, cache) : full_forward(input, call, cache);
  if (input.labels) out.loss = cross_entropy_loss(input, config_, call, out.logits.view());

  // Only now: a sink or an allocation may have thrown before.
  cache.set_length(T);
  if (input.use_cache && !input.cache) out.past_key_values = cache.to_legacy();
  return out;
}

}  // namespace

std::optional<std::string> unsupported(const Config& config, const Options& options) {
  const std::int64_t key = config.use_mla ? config.kv_lora_rank + config.qk_rope_head_dim : config.head_dim();
  const std::int64_t value = config.use_mla ? config.kv_lora_rank : config.head_dim();
  if (key > kMaxKeyWidth) return concat("width of a key: expected at most ", kMaxKeyWidth, ", found ", key);
  if (value > kMaxValueWidth) return concat("width of a value: expected at most ", kMaxValueWidth, ", found ", value);
  if (config.use_mla && config.qk_nope_head_dim > kMaxNopeWidth)
    return concat("qk_nope_head_dim: expected at most ", kMaxNopeWidth, ", found ", config.qk_nope_head_dim);
  if (options.dtype != DType::f32 && options.dtype != DType::bf16 && !is_quantised(options.dtype))
    return concat("dtype: expected f32, bf16, int8 or int4, found ", name(options.dtype));
  if (options.kv_dtype != DType::f32 && options.kv_dtype != DType::bf16)
    return concat("kv_dtype: expected f32 or bf16, found ", name(options.kv_dtype));
  if (config.use_mla && options.mla_form == MlaForm::expanded)
    return "mla_form: expected absorbed or automatic, found expanded";
  return std::nullopt;
}

std::unique_ptr<Decoder> create(const Config& config, std::shared_ptr<const Weights> weights, const Options& options) {
  if (const auto why = unsupported(config, options)) fail("cuda: ", *why);
  return std::make_unique<CudaDecoder>(config, *weights, options);
}

}  // namespace dsv2::cuda
