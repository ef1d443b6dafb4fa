// The decoder: one layer after the other, each op shared among the threads.
#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "model/cost.h"
#include "optimized/attention_mask.h"
#include "optimized/cpu/backend.h"
#include "optimized/cpu/buffer.h"
#include "optimized/cpu/expert_groups.h"
#include "optimized/cpu/kernels.h"
#include "optimized/cpu/packed_matrix.h"
#include "optimized/cpu/panel.h"
#include "optimized/cpu/prepared_weights.h"
#include "optimized/cpu/runner.h"
#include "optimized/cpu/test_hook.h"
#include "optimized/rope_table.h"

namespace dsv2::cpu {
namespace {

constexpr float kLatentNormEps = 1e-6f;
Storage storage_of(DType dtype) {
  if (dtype == DType::i8) return Storage::i8;
  return dtype == DType::bf16 ? Storage::bf16 : Storage::f32;
}
/// Bytes of an element.
std::int64_t size_of(Storage storage) {
  if (storage == Storage::i8) return 1;
  return storage == Storage::bf16 ? sizeof(bf16_t) : sizeof(float);
}

/// One forward call on its way through the layers.
struct Step {
  const Call& call;
  HostKvCache& cache;
  Storage kv;
  std::int64_t rows;  ///< N = B * S
  MlaForm mla_form;
  TapSink* sink;
  const float *cos, *sin;  // [N, rope_dim / 2]
  optimized::AttentionMask mask;
  float* x;  // [N,D], the residual stream
  std::int64_t layer = 0;
  Tensor* probabilities = nullptr;  // [B,H,S,T], when asked for

  /// Reports rows [N, width] of layer `layer` as [B,S,width] (as [B,S,heads,width/heads]). The sink may overwrite them.
  void tap(std::string_view name, float* data, std::int64_t width, std::int64_t heads = 0) const {
    if (!sink) return;
    Shape shape{call.batch, call.tokens, width};
    if (heads) shape = {call.batch, call.tokens, heads, width / heads};
    tap_as(name, data, std::move(shape));
  }
  template <class T>
  void tap_as(std::string_view name, T* data, Shape shape) const {
    const std::string dot = name.empty() ? "" : ".";
    sink->tap(concat("layers.", layer, dot, name), {dtype_of<T>(), std::move(shape), data}, data);
  }
  template <class T>
  KeyRows cached(int part) const {
    const CachePart& p = cache.parts()[static_cast<std::size_t>(part)];
    return {.data = cache.rows<T>(layer, part, 0, 0),
            .storage = kv,
            .batch_stride = p.heads * cache.capacity() * p.dim,
            .head_stride = p.heads == 1 ? 0 : cache.capacity() * p.dim,
            .row_stride = p.dim,
            .scales = reinterpret_cast<const std::uint16_t*>(cache.scales(layer, part))};
  }
  /// All rows of one part of this layer's cache.
  KeyRows cached(int part) const {
    if (kv == Storage::i8) return cached<std::int8_t>(part);
    return kv == Storage::f32 ? cached<float>(part) : cached<bf16_t>(part);
  }
};

/// The rows that a sequence b sees of what all see.
KeyRows of_sequence(KeyRows rows, std::int64_t b) {
  rows.data = static_cast<const char*>(rows.data) + b * rows.batch_stride * size_of(rows.storage);
  if (rows.scales) rows.scales += b * rows.batch_stride / rows.row_stride;
  return rows;
}

class CpuDecoder final : public Decoder {
 public:
  CpuDecoder(const Config& config, std::shared_ptr<const Weights> weights, const Options& options,
             const Kernels& kernels)
      : config_(config),
        options_(options),
        run_(kernels, options.threads),
        weights_(std::move(weights), config, row_rounding(options, kernels)),
        scale_(optimized::softmax_scale(config)) {}

  const Config& config() const override { return config_; }
  const Options& options() const override { return options_; }
  std::unique_ptr<KvCache> make_cache(std::int64_t batch, std::int64_t capacity) const override {
    return std::make_unique<HostKvCache>(config_, batch, capacity, options_.kv_dtype);
  }
  std::unique_ptr<KvCache> make_cache(const LegacyCache& legacy) const override {
    return HostKvCache::from_legacy(legacy, config_, options_.kv_dtype);
  }
  ForwardOutput forward(const ForwardInput& input) override;
  std::int64_t workspace_bytes() const override;

 private:
  /// A matrix and where its products go: [N, out], rows y_stride apart.
  struct Product {
    const Matrix& matrix;
    float* y;
  };
  HostKvCache& own_kind(KvCache& cache) const;
  void embed(const ForwardInput& input, const Step& step);
  void rms_norm(const float* x, std::int64_t x_stride, const float* weight, float eps, std::int64_t rows,
                std::int64_t width, float* y);
  void add(const Step& step, const float* y);
  void rope(const Step& step, const float* x, std::int64_t token_stride, std::int64_t head_stride, std::int64_t heads,
            float* y);
  void append(const Step& step, int part, const float* x);
  const void* pack(const float* x, const std::int64_t* rows, std::int64_t count, const Matrix& matrix);
  const void* pack(const void* x, Storage storage, std::int64_t x_stride, const std::int64_t* rows, std::int64_t count,
                   std::int64_t width, Arithmetic arithmetic);
  void linear(const void* packed, std::int64_t rows, std::initializer_list<Product> products);
  void attend(const Step& step, AttentionParams params);
  void mha(const Step& step, const PreparedLayer& w);
  void mla(const Step& step, const PreparedLayer& w);
  void mla_absorbed(const Step& step, const PreparedLayer& w, const float* q, std::int64_t q_width, const float* q_rope,
                    float* out);
  void mla_expanded(const Step& step, const PreparedLayer& w, const float* q, std::int64_t q_width, const float* q_rope,
                    float* out);
  AttentionParams attention_params(const Step& step) const;
  void attention_block(const Step& step, const PreparedLayer& w);
  void mlp_block(const Step& step, const PreparedLayer& w);
  void route(const Step& step, const PreparedLayer& w);
  void segments_of(const Step& step, const PreparedLayer& w);
  void head(const ForwardInput& input, const Call& call, const float* hidden, ForwardOutput& out);

  Config config_;
  Options options_;
  Runner run_;
  PreparedWeights weights_;
  float scale_;

  Buffer<float> cos_, sin_, x_, hidden_, q_, k_, v_, q_low_, q_low_norm_, q_rope_, k_rope_, latent_, attn_, block_out_;
  Buffer<float> absorbed_, latent_out_, expanded_, act_values_;
  Buffer<float> gate_logits_, gate_scores_, gate_choice_, topk_weight_, expert_weight_;
  Buffer<std::int64_t> topk_idx_, expert_tokens_;
  Buffer<std::uint8_t> all_masked_;
  Buffer<float> packed_, act_;  // packed rows; f32 is the widest form
  std::vector<LinearSegment> linear_segments_;
  std::vector<ExpertSegment> segments_;
  std::vector<std::int64_t> expert_begin_;
};

HostKvCache& CpuDecoder::own_kind(KvCache& cache) const {
  auto* host = dynamic_cast<HostKvCache*>(&cache);
  DSV2_CHECK(host, "cache: expected one made by the cpu decoder, found another backend's");
  DSV2_CHECK(host->dtype() == options_.kv_dtype, "cache: expected dtype ", name(options_.kv_dtype), ", found ",
             name(host->dtype()));
  DSV2_CHECK(host->layer_count() == config_.num_hidden_layers, "cache: expected ", config_.num_hidden_layers,
             " layers, found ", host->layer_count());
  const auto expected = cache_parts(config_);
  for (std::size_t p = 0; p < 2; ++p) {
    const CachePart& found = host->parts()[p];
    DSV2_CHECK(found.name == expected[p].name && found.heads == expected[p].heads && found.dim == expected[p].dim,
               "cache: expected ", expected[p].name, " of ", expected[p].heads, " x ", expected[p].dim, ", found ",
               found.name, " of ", found.heads, " x ", found.dim);
  }
  return *host;
}

std::int64_t CpuDecoder::workspace_bytes() const {
  std::int64_t sum = weights_.copied_bytes();
  for (const auto* b :
       {&cos_,         &sin_,           &x_,        &hidden_,     &q_,           &k_,           &v_,
        &q_low_,       &q_low_norm_,    &q_rope_,   &k_rope_,     &latent_,      &attn_,        &block_out_,
        &absorbed_,    &latent_out_,    &expanded_, &act_values_, &gate_logits_, &gate_scores_, &gate_choice_,
        &topk_weight_, &expert_weight_, &packed_,   &act_})
    sum += b->bytes();
  return sum + topk_idx_.bytes() + expert_tokens_.bytes() + all_masked_.bytes();
}

void CpuDecoder::rms_norm(const float* x, std::int64_t x_stride, const float* weight, float eps, std::int64_t rows,
                          std::int64_t width, float* y) {
  run_.rms_norm({.x = x, .x_stride = x_stride, .weight = weight, .eps = eps, .width = width, .y = y}, rows);
}

void CpuDecoder::add(const Step& step, const float* y) {
  run_.add({.x = step.x, .y = y}, step.rows * config_.hidden_size);
}

void CpuDecoder::rope(const Step& step, const float* x, std::int64_t token_stride, std::int64_t head_stride,
                      std::int64_t heads, float* y) {
  run_.rope({.x = x,
             .token_stride = token_stride,
             .head_stride = head_stride,
             .heads = heads,
             .width = config_.rope_dim(),
             .interleaved = config_.use_mla,
             .cos = step.cos,
             .sin = step.sin,
             .y = y},
            step.rows);
}

void CpuDecoder::append(const Step& step, int part, const float* x) {
  const CachePart& p = step.cache.parts()[static_cast<std::size_t>(part)];
  const KeyRows rows = step.cached(part);
  const std::int64_t past = step.call.past;
  run_.kv_write({.x = x,
                 .x_stride = p.heads * p.dim,
                 .y = static_cast<char*>(const_cast<void*>(rows.data)) + past * p.dim * size_of(step.kv),
                 .storage = step.kv,
                 .head_stride = rows.head_stride,
                 .batch_stride = rows.batch_stride,
                 .tokens = step.call.tokens,
                 .heads = p.heads,
                 .width = p.dim,
                 .scales = rows.scales ? const_cast<std::uint16_t*>(rows.scales) + past : nullptr},
                step.rows);
}

/// Rows of x [., matrix.in] for the product with a matrix: row i, or the one that `rows` names.
const void* CpuDecoder::pack(const float* x, const std::int64_t* rows, std::int64_t count, const Matrix& matrix) {
  return pack(x, Storage::f32, matrix.in, rows, count, matrix.in, for_rows(matrix.arithmetic, count));
}

const void* CpuDecoder::pack(const void* x, Storage storage, std::int64_t x_stride, const std::int64_t* rows,
                             std::int64_t count, std::int64_t width, Arithmetic arithmetic) {
  float* y = packed_.get(count * packed_width(width));
  run_.pack({.x = x,
             .storage = storage,
             .x_stride = x_stride,
             .rows = rows,
             .width = width,
             .arithmetic = arithmetic,
             .y = y},
            count);
  return y;
}

void CpuDecoder::linear(const void* packed, std::int64_t rows, std::initializer_list<Product> products) {
  const Matrix& first = products.begin()->matrix;
  const Arithmetic arithmetic = for_rows(first.arithmetic, rows);
  std::vector<LinearSegment>& segments = linear_segments_;
  segments.clear();
  for (const auto& [m, y] : products)
    segments.push_back({.x = packed, .weight = m.data, .bias = m.bias, .y = y, .y_stride = m.out, .out_width = m.out});
  run_.linear({.arithmetic = arithmetic,
               .rows = rows,
               .width = first.in,
               .x_stride = packed_bytes(arithmetic, first.in),
               .segments = segments.data(),
               .segment_count = static_cast<std::int64_t>(segments.size())});
}

void CpuDecoder::embed(const ForwardInput& input, const Step& step) {
  if (input.inputs_embeds) {
    widen_into(*input.inputs_embeds, step.x);
  } else {
    run_.embedding({.table = weights_.embed_tokens.data,
                    .stored = weights_.embed_tokens.stored,
                    .ids = input.input_ids->as<std::int64_t>().data(),
                    .width = config_.hidden_size,
                    .y = step.x},
                   step.rows);
  }
  if (step.sink) {
    const Shape shape{step.call.batch, step.call.tokens, config_.hidden_size};
    step.sink->tap("embed_tokens", {DType::f32, shape, step.x}, step.x);
  }
}

AttentionParams CpuDecoder::attention_params(const Step& step) const {
  const Call& c = step.call;
  const std::int64_t H = config_.num_attention_heads;
  return {.batch = c.batch,
          .tokens = c.tokens,
          .total = c.total,
          .past = c.past,
          .heads = H,
          .key_heads = config_.use_mla ? 1 : config_.num_key_value_heads,
          .q1 = nullptr,
          .q1_token_stride = 0,
          .q1_head_stride = 0,
          .q2 = nullptr,
          .k1 = {},
          .k2 = {},
          .v = {},
          .d1 = 0,
          .d2 = 0,
          .dv = 0,
          .scale = scale_,
          .mask = step.mask.visible,
          .mask_batch = step.mask.batch_stride,
          .mask_token = step.mask.token_stride,
          .all_masked = step.mask.all_masked,
          .rounds = options_.dtype == DType::bf16,
          .query_block = kQueryBlock,
          .out = nullptr};
}

void CpuDecoder::attend(const Step& step, AttentionParams p) {
  run_.attention(p);
  if (!step.probabilities) return;
  p.out = step.probabilities->as<float>().data();
  run_.attention_probabilities(p);
}

void CpuDecoder::mha(const Step& step, const PreparedLayer& w) {
  const std::int64_t N = step.rows, H = config_.num_attention_heads, K = config_.num_key_value_heads;
  const std::int64_t d = config_.head_dim();
  float *q = q_.get(N * H * d), *k = k_.get(N * K * d), *v = v_.get(N * K * d);
  const void* packed = pack(hidden_.get(0), nullptr, N, w.q_proj);
  linear(packed, N, {{w.q_proj, q}, {w.k_proj, k}, {w.v_proj, v}});
  step.tap("self_attn.q_proj", q, H * d);
  step.tap("self_attn.k_proj", k, K * d);
  step.tap("self_attn.v_proj", v, K * d);

  float *q_rope = q_rope_.get(N * H * d), *k_rope = k_rope_.get(N * K * d);
  rope(step, q, H * d, d, H, q_rope);
  rope(step, k, K * d, d, K, k_rope);
  step.tap("self_attn.q_rope", q_rope, H * d, H);
  step.tap("self_attn.k_rope", k_rope, K * d, K);
  append(step, 0, k_rope);
  append(step, 1, v);

  AttentionParams p = attention_params(step);
  p.q1 = q_rope, p.q1_token_stride = H * d, p.q1_head_stride = d;
  p.k1 = step.cached(0), p.v = step.cached(1);
  p.d1 = p.dv = d;
  p.out = attn_.get(N * H * d);
  attend(step, p);
}

void CpuDecoder::mla(const Step& step, const PreparedLayer& w) {
  const std::int64_t N = step.rows, H = config_.num_attention_heads;
  const std::int64_t R = config_.kv_lora_rank, rope_dim = config_.qk_rope_head_dim, nope = config_.qk_nope_head_dim;
  const std::int64_t q_width = H * (nope + rope_dim);
  float *q = q_.get(N * q_width), *kv = k_.get(N * (R + rope_dim));
  const Matrix& kv_a = w.kv_a_proj_with_mqa;
  const void* packed = pack(hidden_.get(0), nullptr, N, kv_a);
  if (config_.q_lora_rank) {
    const std::int64_t Q = *config_.q_lora_rank;
    float *low = q_low_.get(N * Q), *low_norm = q_low_norm_.get(N * Q);
    linear(packed, N, {{w.q_a_proj, low}, {kv_a, kv}});
    step.tap("self_attn.q_a_proj", low, Q);
    rms_norm(low, Q, w.q_a_layernorm, kLatentNormEps, N, Q, low_norm);
    step.tap("self_attn.q_a_layernorm", low_norm, Q);
    linear(pack(low_norm, nullptr, N, w.q_b_proj), N, {{w.q_b_proj, q}});
    step.tap("self_attn.q_b_proj", q, q_width);
  } else {
    linear(packed, N, {{w.q_proj, q}, {kv_a, kv}});
    step.tap("self_attn.q_proj", q, q_width);
  }
  step.tap("self_attn.kv_a_proj_with_mqa", kv, R + rope_dim);

  float *latent = latent_.get(N * R), *q_rope = q_rope_.get(N * H * rope_dim), *k_rope = k_rope_.get(N * rope_dim);
  rms_norm(kv, R + rope_dim, w.kv_a_layernorm, kLatentNormEps, N, R, latent);
  step.tap("self_attn.kv_a_layernorm", latent, R);
  rope(step, q + nope, q_width, nope + rope_dim, H, q_rope);
  rope(step, kv + R, R + rope_dim, 0, 1, k_rope);
  step.tap("self_attn.q_rope", q_rope, H * rope_dim, H);
  step.tap("self_attn.k_rope", k_rope, rope_dim, 1);
  append(step, 0, k_rope);
  append(step, 1, latent);

  float* out = attn_.get(N * H * config_.v_head_dim);
  if (step.mla_form == MlaForm::expanded)
    mla_expanded(step, w, q, q_width, q_rope, out);
  else
    mla_absorbed(step, w, q, q_width, q_rope, out);
}

void CpuDecoder::mla_absorbed(const Step& step, const PreparedLayer& w, const float* q, std::int64_t q_width,
                              const float* q_rope, float* out) {
  const std::int64_t N = step.rows, H = config_.num_attention_heads, R = config_.kv_lora_rank;
  const std::int64_t nope = config_.qk_nope_head_dim, v = config_.v_head_dim;
  float *absorbed = absorbed_.get(N * H * R), *latent_out = latent_out_.get(N * H * R);
  run_.mla_absorb({.x = q,
                   .token_stride = q_width,
                   .head_stride = q_width / H,
                   .weight = w.kv_b_proj.w_uk.data(),
                   .arithmetic = w.kv_b_proj.arithmetic,
                   .tokens = N,
                   .heads = H,
                   .nope = nope,
                   .width = R,
                   .y = absorbed});

  AttentionParams p = attention_params(step);
  p.q1 = absorbed, p.q1_token_stride = H * R, p.q1_head_stride = R;
  p.q2 = q_rope;
  p.k1 = p.v = step.cached(1), p.k2 = step.cached(0);
  p.d1 = p.dv = R, p.d2 = config_.qk_rope_head_dim;
  p.out = latent_out;
  attend(step, p);

  // Each head's rows through its own W_uv.
  const Arithmetic arithmetic = for_rows(w.kv_b_proj.arithmetic, N);
  const auto packed = static_cast<const char*>(pack(latent_out, Storage::f32, R, nullptr, N * H, R, arithmetic));
  std::vector<LinearSegment>& segments = linear_segments_;
  segments.clear();
  for (std::int64_t h = 0; h < H; ++h)
    segments.push_back({.x = packed + h * packed_bytes(arithmetic, R),
                        .weight = w.kv_b_proj.w_uv[static_cast<std::size_t>(h)],
                        .bias = nullptr,
                        .y = out + h * v,
                        .y_stride = H * v,
                        .out_width = v});
  run_.linear({.arithmetic = arithmetic,
               .rows = N,
               .width = R,
               .x_stride = H * packed_bytes(arithmetic, R),
               .segments = segments.data(),
               .segment_count = H});
}

void CpuDecoder::mla_expanded(const Step& step, const PreparedLayer& w, const float* q, std::int64_t q_width,
                              const float* q_rope, float* out) {
  const std::int64_t S = step.call.tokens, T = step.call.total, H = config_.num_attention_heads;
  const std::int64_t R = config_.kv_lora_rank, nope = config_.qk_nope_head_dim, v = config_.v_head_dim;
  const std::int64_t rope_dim = config_.qk_rope_head_dim, width = H * (nope + v);
  float* expanded = expanded_.get(T * width);
  for (std::int64_t b = 0; b < step.call.batch; ++b) {
    const KeyRows latent = of_sequence(step.cached(1), b);
    const void* rows = latent.data;
    if (step.kv == Storage::i8) {
      float* wide = latent_out_.get(T * R);
      run_.kv_widen({.rows = latent, .width = R, .y = wide}, T);
      rows = wide;
    }
    const Storage storage = step.kv == Storage::i8 ? Storage::f32 : step.kv;
    const Arithmetic arithmetic = for_rows(w.kv_b_proj.arithmetic, T);
    const void* packed = pack(rows, storage, R, nullptr, T, R, arithmetic);
    std::vector<LinearSegment>& segments = linear_segments_;
    segments.clear();
    const auto add_segment = [&](const void* matrix, std::int64_t column, std::int64_t columns) {
      segments.push_back({.x = packed,
                          .weight = matrix,
                          .bias = nullptr,
                          .y = expanded + column,
                          .y_stride = width,
                          .out_width = columns});
    };
    for (std::int64_t h = 0; h < H; ++h) {
      add_segment(w.kv_b_proj.w_uk[static_cast<std::size_t>(h)], h * (nope + v), nope);
      add_segment(w.kv_b_proj.w_uv[static_cast<std::size_t>(h)], h * (nope + v) + nope, v);
    }
    run_.linear({.arithmetic = arithmetic,
                 .rows = T,
                 .width = R,
                 .x_stride = packed_bytes(arithmetic, R),
                 .segments = segments.data(),
                 .segment_count = 2 * H});

    AttentionParams p = attention_params(step);
    p.batch = 1, p.key_heads = H;
    p.q1 = q + b * S * q_width, p.q1_token_stride = q_width, p.q1_head_stride = nope + rope_dim;
    p.q2 = q_rope + b * S * H * rope_dim;
    p.k1 = {.data = expanded, .storage = Storage::f32, .batch_stride = 0, .head_stride = nope + v, .row_stride = width};
    p.v = p.k1, p.v.data = expanded + nope;
    p.k2 = of_sequence(step.cached(0), b);
    p.d1 = nope, p.d2 = rope_dim, p.dv = v;
    if (p.mask) p.mask += b * p.mask_batch;
    if (p.all_masked) p.all_masked += b * S;
    p.out = out + b * S * H * v;
    run_.attention(p);
    if (!step.probabilities) continue;
    p.out = step.probabilities->as<float>().data() + b * H * S * T;
    run_.attention_probabilities(p);
  }
}

void CpuDecoder::attention_block(const Step& step, const PreparedLayer& w) {
  const std::int64_t N = step.rows, D = config_.hidden_size, width = w.o_proj.in;
  float* hidden = hidden_.get(N * D);
  rms_norm(step.x, D, w.input_layernorm, static_cast<float>(config_.rms_norm_eps), N, D, hidden);
  step.tap("input_layernorm", hidden, D);
  if (config_.use_mla)
    mla(step, w);
  else
    mha(step, w);
  float *attn = attn_.get(N * width), *out = block_out_.get(N * D);
  step.tap("self_attn.attn_output", attn, width);
  linear(pack(attn, nullptr, N, w.o_proj), N, {{w.o_proj, out}});
  step.tap("self_attn.o_proj", out, D);
  add(step, out);
  step.tap("self_attn.residual", step.x, D);
}

void CpuDecoder::route(const Step& step, const PreparedLayer& w) {
  const std::int64_t N = step.rows, D = config_.hidden_size, E = *config_.n_routed_experts;
  const std::int64_t k = config_.num_experts_per_tok;
  float* logits = gate_logits_.get(N * E);
  linear(pack(hidden_.get(N * D), nullptr, N, w.gate), N, {{w.gate, logits}});
  if (step.sink) step.tap_as("mlp.gate.logits", logits, {N, E});
  std::int64_t* topk_idx = topk_idx_.get(N * k);
  float* topk_weight = topk_weight_.get(N * k);
  const GateParams params{.logits = logits,
                          .scores = gate_scores_.get(N * E),
                          .choice = gate_choice_.get(N * E),
                          .bias = w.e_score_correction_bias,
                          .topk_idx = topk_idx,
                          .topk_weight = topk_weight,
                          .experts = E,
                          .top_k = k,
                          .groups = config_.n_group,
                          .top_groups = config_.topk_group,
                          .method = config_.topk_method,
                          .scoring = config_.scoring_func,
                          .normalise = config_.norm_topk_prob,
                          .scaling = static_cast<float>(config_.routed_scaling_factor)};
  run_.gate_select(params, N);
  if (step.sink) {
    step.tap_as("mlp.gate.topk_idx", topk_idx, {N, k});
    for (std::int64_t i = 0; i < N * k; ++i)
      DSV2_CHECK(topk_idx[i] >= 0 && topk_idx[i] < E, "layers.", step.layer, ".mlp.gate.topk_idx: expected 0..", E - 1,
                 ", found ", topk_idx[i]);
  }
  run_.gate_weight(params, N);
  if (step.sink) step.tap_as("mlp.gate.topk_weight", topk_weight, {N, k});
}

/// Lists the MLPs of this layer with their tokens: chosen experts in ascending order, then the shared ones; or the
/// dense one.
void CpuDecoder::segments_of(const Step& step, const PreparedLayer& w) {
  const std::int64_t N = step.rows;
  segments_.clear();
  std::int64_t act_size = 0;
  const auto add_segment = [&](const PreparedMlp& m, std::int64_t rows, const std::int64_t* tokens,
                               const float* weight) {
    segments_.push_back({.gate_proj = m.gate_proj.data,
                         .up_proj = m.up_proj.data,
                         .down_proj = m.down_proj.data,
                         .width = m.gate_proj.out,
                         .rows = rows,
                         .tokens = tokens,
                         .weight = weight,
                         .act = nullptr});
    act_size += rows * packed_width(m.gate_proj.out);
  };
  if (w.experts.empty()) {
    add_segment(w.mlp, N, nullptr, nullptr);
  } else {
    const std::int64_t E = *config_.n_routed_experts, k = config_.num_experts_per_tok;
    const std::int64_t* topk_idx = topk_idx_.get(N * k);
    const float* topk_weight = topk_weight_.get(N * k);
    std::int64_t* tokens = expert_tokens_.get(N * k);
    float* weight = expert_weight_.get(N * k);
    for_each_chosen_expert(topk_idx, topk_weight, N, k, E, expert_begin_, tokens, weight,
                           [&](std::size_t e, std::int64_t rows, const std::int64_t* its_tokens,
                               const float* its_weight) { add_segment(w.experts[e], rows, its_tokens, its_weight); });
    if (w.shared_experts.gate_proj.data) add_segment(w.shared_experts, N, nullptr, nullptr);
  }
  const PreparedMlp& any = w.experts.empty() ? w.mlp : w.experts.front();
  const Arithmetic arithmetic = for_rows(any.down_proj.arithmetic, N);
  auto* act = reinterpret_cast<char*>(act_.get(act_size));
  for (ExpertSegment& s : segments_) {
    s.act = act;
    act += s.rows * packed_bytes(arithmetic, s.width);
  }
}

void CpuDecoder::mlp_block(const Step& step, const PreparedLayer& w) {
  const std::int64_t N = step.rows, D = config_.hidden_size;
  float *hidden = hidden_.get(N * D), *out = block_out_.get(N * D);
  rms_norm(step.x, D, w.post_attention_layernorm, static_cast<float>(config_.rms_norm_eps), N, D, hidden);
  step.tap("post_attention_layernorm", hidden, D);
  const bool dense = w.experts.empty();
  if (!dense) route(step, w);
  segments_of(step, w);

  const PreparedMlp& any = dense ? w.mlp : w.experts.front();
  const ExpertsParams params{.segments = segments_.data(),
                             .segment_count = static_cast<std::int64_t>(segments_.size()),
                             .up_arithmetic = for_rows(any.gate_proj.arithmetic, N),
                             .down_arithmetic = for_rows(any.down_proj.arithmetic, N),
                             .activation = config_.hidden_act,
                             .hidden = D,
                             .tokens = N,
                             .x = pack(hidden, nullptr, N, any.gate_proj),
                             .y = out};
  run_.experts_act(params);
  if (dense && step.sink) {
    const ExpertSegment& s = segments_.front();
    float* values = act_values_.get(N * s.width);
    const Arithmetic arithmetic = params.down_arithmetic;
    run_.unpack({.x = s.act, .width = s.width, .arithmetic = arithmetic, .y = values}, N);
    step.tap("mlp.act", values, s.width);
    run_.pack({.x = values,
               .storage = Storage::f32,
               .x_stride = s.width,
               .rows = nullptr,
               .width = s.width,
               .arithmetic = arithmetic,
               .y = s.act},
              N);
  }
  run_.experts_down(params);
  step.tap("mlp", out, D);
  add(step, out);
  step.tap("", step.x, D);
}

void CpuDecoder::head(const ForwardInput& input, const Call& call, const float* hidden, ForwardOutput& out) {
  if (call.logits == Logits::none) return;
  const std::int64_t B = call.batch, S = call.tokens;
  const bool classify = config_.head == Head::sequence_classification;
  std::vector<std::int64_t> rows;
  Shape shape{B, S, config_.vocab_size};
  if (classify || call.logits == Logits::last) {
    rows = classify ? pooled_positions(input, config_, call) : std::vector(static_cast<std::size_t>(B), S - 1);
    for (std::int64_t b = 0; b < B; ++b) rows[static_cast<std::size_t>(b)] += b * S;
    shape = classify ? Shape{B, config_.num_labels} : Shape{B, 1, config_.vocab_size};
  }
  const std::int64_t count = rows.empty() ? B * S : B;
  out.logits = Tensor(DType::f32, shape);
  float* logits = out.logits.as<float>().data();
  linear(pack(hidden, rows.empty() ? nullptr : rows.data(), count, weights_.head), count, {{weights_.head, logits}});
  if (input.taps) input.taps->tap(classify ? "score" : "lm_head", out.logits.view(), logits);
}

ForwardOutput CpuDecoder::forward(const ForwardInput& input) {
  const Call call = validate_input(input, config_);
  const std::int64_t B = call.batch, S = call.tokens, T = call.total, D = config_.hidden_size, N = B * S;

  // A call without a cache object works on one of its own.
  std::unique_ptr<KvCache> own;
  if (!input.cache) own = input.past_key_values ? make_cache(*input.past_key_values) : make_cache(B, T);
  HostKvCache& cache = own_kind(input.cache ? *input.cache : *own);
  cache.reserve(T);

  const Workload work{.batch = B, .tokens = S, .context = T, .mla_form = options_.mla_form, .causal = true};
  const std::int64_t angles = N * config_.rope_dim() / 2;
  float *cos = cos_.get(angles), *sin = sin_.get(angles);
  optimized::rope_table(config_, call, cos, sin);
  Step step{.call = call,
            .cache = cache,
            .kv = storage_of(cache.dtype()),
            .rows = N,
            .mla_form = mla_form(config_, work),
            .sink = input.taps,
            .cos = cos,
            .sin = sin,
            .mask = optimized::attention_mask(call, all_masked_.get(N)),
            .x = x_.get(N * D)};
  hidden_.get(N * D);

  ForwardOutput out;
  const auto keep = [&](const float* rows) {
    return Tensor::from(std::span(rows, static_cast<std::size_t>(N * D)), {B, S, D});
  };
  embed(input, step);
  for (; step.layer < config_.num_hidden_layers; ++step.layer) {
    if (input.hidden_states) out.hidden_states.push_back(keep(step.x));
    if (input.attentions)
      step.probabilities = &out.attentions.emplace_back(DType::f32, Shape{B, config_.num_attention_heads, S, T});
    const PreparedLayer& w = weights_.layers[static_cast<std::size_t>(step.layer)];
    attention_block(step, w);
    mlp_block(step, w);
  }
  float* hidden = hidden_.get(N * D);
  rms_norm(step.x, D, weights_.norm, static_cast<float>(config_.rms_norm_eps), N, D, hidden);
  if (input.taps) input.taps->tap("norm", {DType::f32, {B, S, D}, hidden}, hidden);
  if (input.hidden_states) out.hidden_states.push_back(keep(hidden));
  out.last_hidden_state = keep(hidden);
  head(input, call, hidden, out);
  if (input.labels) out.loss = cross_entropy_loss(input, config_, call, out.logits.view());

  // Only now: a sink or an allocation may have thrown before.
  cache.set_length(T);
  if (input.use_cache && !input.cache) out.past_key_values = cache.to_legacy();
  return out;
}

std::optional<std::string> unsupported(const Config& config, const Options& options) {
  std::int64_t width = config.qk_head_dim();
  if (config.use_mla) width = std::max(width, config.kv_lora_rank + config.qk_rope_head_dim);
  if (width > kMaxAttentionWidth)
    return concat("width of a key: expected at most ", kMaxAttentionWidth, ", found ", width);
  if (options.dtype != DType::f32 && options.dtype != DType::bf16 && !is_quantised(options.dtype))
    return concat("dtype: expected f32, bf16, int8 or int4, found ", name(options.dtype));
  if (options.kv_dtype != DType::f32 && options.kv_dtype != DType::bf16 && options.kv_dtype != DType::i8)
    return concat("kv_dtype: expected f32, bf16 or int8, found ", name(options.kv_dtype));
  return std::nullopt;
}

std::int64_t copied_bytes(const Config& config, DType stored, const Options& options) {
  return PreparedWeights::copied_bytes(config, stored, row_rounding(options, *find_isa(options.isa).kernels));
}

/// The sum of what CpuDecoder asks of its buffers: packed rows count as f32, the widest form.
std::int64_t buffer_bytes(const Config& c, const Options& options, std::int64_t B, std::int64_t S, std::int64_t T) {
  const std::int64_t N = B * S, D = c.hidden_size, H = c.num_attention_heads, k = c.num_experts_per_tok;
  std::int64_t token = 3 * D + c.rope_dim();  // x, hidden, block_out; angles
  std::int64_t packed = N * packed_width(D), other = 0;
  if (c.use_mla) {
    const std::int64_t R = c.kv_lora_rank, rope = c.qk_rope_head_dim, v = c.v_head_dim, Q = c.q_lora_rank.value_or(0);
    token += H * (c.qk_nope_head_dim + 2 * rope + v) + 2 * R + 2 * rope + 2 * Q;
    packed = std::max({packed, N * packed_width(Q), N * packed_width(H * v)});
    const Workload work{.batch = B, .tokens = S, .context = T, .mla_form = options.mla_form, .causal = true};
    if (mla_form(c, work) == MlaForm::expanded) {
      other = T * H * (c.qk_nope_head_dim + v) + (options.kv_dtype == DType::i8 ? T * R : 0);
      packed = std::max(packed, T * packed_width(R));
    } else {
      token += 2 * H * R;
      packed = std::max(packed, N * H * packed_width(R));
    }
  } else {
    token += (3 * H + 3 * c.num_key_value_heads) * c.head_dim();
    packed = std::max(packed, N * packed_width(H * c.head_dim()));
  }
  std::int64_t act = packed_width(c.intermediate_size);
  if (c.n_routed_experts) {
    token += 3 * *c.n_routed_experts + 6 * k;
    const std::int64_t shared = c.n_shared_experts.value_or(0) * c.moe_intermediate_size;
    act = std::max(act, k * packed_width(c.moe_intermediate_size) + packed_width(shared));
  }
  return (N * (token + act) + packed + other) * static_cast<std::int64_t>(sizeof(float)) + N;
}

std::unique_ptr<Decoder> create(const Config& config, std::shared_ptr<const Weights> weights, const Options& options) {
  return create_with_kernels(config, std::move(weights), options, *find_isa(options.isa).kernels);
}

}  // namespace

std::unique_ptr<Decoder> create_with_kernels(const Config& config, std::shared_ptr<const Weights> weights,
                                             const Options& options, const Kernels& kernels) {
  if (const auto why = unsupported(config, options)) fail("cpu: ", *why);
  DSV2_CHECK(options.threads >= 0, "threads: expected 0 or more, found ", options.threads);
  return std::make_unique<CpuDecoder>(config, std::move(weights), options, kernels);
}

Backend backend() {
  return {.name = "cpu",
          .description =
              "f32, bf16, int8 and int4 weights; portable, AVX2, AVX-512 and AVX-512 BF16 kernels, chosen at run time",
          .unavailable = [] { return std::optional<std::string>(); },
          .unsupported = unsupported,
          .create = create,
          .ops = ops,
          .copied_bytes = copied_bytes,
          .buffer_bytes = buffer_bytes};
}

}  // namespace dsv2::cpu
