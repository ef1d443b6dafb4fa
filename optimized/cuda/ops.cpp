// Each op of model/op.h on the kernels: inputs are copied to the device at every run, outputs there and back, so that
// what the op leaves unwritten shows.
#include "optimized/cuda/ops.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "optimized/attention_mask.h"
#include "optimized/cuda/backend.h"
#include "optimized/cuda/device_array.h"
#include "optimized/cuda/kernels.h"
#include "optimized/rope_table.h"

namespace dsv2::cuda {
namespace {

using Run = std::function<void()>;

/// What a prepared op works with and keeps as long as it lives.
struct Setup {
  const OpProblem& p;
  const Options& options;
  OpMemory& memory;
  Stream stream = {};
  Blas blas = {};
  std::vector<DeviceBuffer<std::byte>> buffers = {};
  std::vector<Run> before = {}, after = {};  ///< copies of a run

  template <class T>
  T* allocate(std::int64_t count) {
    return reinterpret_cast<T*>(
        buffers.emplace_back(std::max<std::int64_t>(count, 1) * std::int64_t{sizeof(T)}).data());
  }
  /// A copy of host memory that is made anew at each run.
  template <class T>
  T* input(const T* from, std::int64_t count) {
    T* const to = allocate<T>(count);
    before.push_back([this, to, from, count] { stream.upload(to, from, count); });
    return to;
  }
  const float* f32(std::string_view name) { return input(p[name].as<float>().data(), p[name].size()); }
  const float* optional_f32(std::string_view name) { return p.has(name) ? f32(name) : nullptr; }
  std::int32_t* ids(std::string_view name) {
    const auto from = p[name].as<std::int64_t>();
    auto* const to = allocate<std::int32_t>(p[name].size());
    before.push_back([this, to, from] {
      const std::vector<std::int32_t> narrow(from.begin(), from.end());
      stream.upload(to, narrow.data(), static_cast<std::int64_t>(narrow.size()));
      stream.synchronise();
    });
    return to;
  }
  /// An output: what its host memory holds goes to the device first.
  template <class T>
  T* output(std::string_view name) {
    return output(static_cast<T*>(memory.output(name, dtype_of<T>())), spec(name));
  }
  template <class T>
  T* output(T* host, std::int64_t count) {
    T* const device = input(const_cast<const T*>(host), count);
    after.push_back([this, host, device, count] { stream.download(host, static_cast<const T*>(device), count); });
    return device;
  }
  std::int32_t* id_output(std::string_view name) {
    auto* const host = static_cast<std::int64_t*>(memory.output(name, DType::i64));
    const std::int64_t count = spec(name);
    auto* const device = allocate<std::int32_t>(count);
    after.push_back([this, host, device, count] {
      std::vector<std::int32_t> values(static_cast<std::size_t>(count));
      stream.download(values.data(), static_cast<const std::int32_t*>(device), count);
      std::copy(values.begin(), values.end(), host);
    });
    return device;
  }
  /// A matrix, or the rows of a stack of them, copied once, as a decoder does when it is made.
  Matrix matrix(std::string_view name) {
    const Tensor& t = p[name];
    Storage storage = storage_of(t.dtype());
    if (p.op == "mla_absorb" && in_panels(storage)) storage = Storage::f32;  // as DeviceWeights has it
    const std::int64_t bytes = device_bytes(t.shape(), storage);
    auto* const to = allocate<std::byte>(bytes);
    DSV2_CUDA(cudaMemsetAsync(to, 0, static_cast<std::size_t>(bytes), stream));
    copy_array(t.view(), storage, to, stream);
    stream.synchronise();
    return {.data = to,
            .storage = storage,
            .out = static_cast<int>(t.dim(-2)),
            .in = static_cast<int>(t.dim(-1)),
            .stride = static_cast<int>(row_stride(t.dim(-1), storage)),
            .bias = nullptr};
  }
  MatrixStack stack(std::string_view name) {
    const Tensor& t = p[name];
    const Matrix m = matrix(name);
    return {.first = m, .stride_bytes = device_bytes(t.shape(), m.storage) / (t.shape().size() == 3 ? t.dim(0) : 1)};
  }
  /// P, where kernels look for it.
  const int* past() {
    auto* const to = allocate<int>(1);
    const int value = static_cast<int>(p.call.past);
    stream.upload(to, &value, 1);
    stream.synchronise();
    return to;
  }
  CachedRows cached(std::string_view name, void* data) const {
    const Tensor& t = p[name];  // [B,heads,C,dim]
    const std::int64_t head = t.dim(2) * t.dim(3);
    return {.data = data,
            .storage = storage_of(t.dtype()),
            .batch_stride = t.dim(1) * head,
            .head_stride = t.dim(1) == 1 ? 0 : head,
            .row_stride = static_cast<int>(t.dim(3))};
  }
  CachedRows cached_input(std::string_view name) {
    if (!p.has(name)) return {};
    const Tensor& t = p[name];
    return cached(name, input(static_cast<const std::byte*>(t.data()), t.view().bytes()));
  }
  bool rounds() const { return options.dtype != DType::f32; }
  int rows() const { return static_cast<int>(p.rows()); }

 private:
  /// Elements of an output.
  std::int64_t spec(std::string_view name) const {
    for (const OpOutput& o : p.out)
      if (o.name == name) return element_count(o.shape);
    fail(p.op, ": output ", name, ": expected, found none");
  }
};

Run embedding(Setup& s) {
  const EmbeddingParams p{
      .table = s.matrix("weight"), .ids = s.ids("ids"), .rows = s.rows(), .y = s.output<float>("y")};
  return [p, &s] { embedding(p, s.stream); };
}

Run rms_norm(Setup& s) {
  const std::int64_t width = s.p["x"].dim(1);
  const RmsNormParams p{.x = s.f32("x"),
                        .x_stride = width,
                        .weight = s.f32("weight"),
                        .eps = static_cast<float>(s.p.config.rms_norm_eps),
                        .rows = s.rows(),
                        .width = static_cast<int>(width),
                        .y = s.output<float>("y"),
                        .rounded = nullptr,
                        .rounded_stride = 0};
  return [p, &s] { rms_norm(p, s.stream); };
}

Run add(Setup& s) {
  const AddParams p{.x = s.output<float>("x"), .y = s.f32("y"), .count = s.p["x"].size()};
  return [p, &s] { add(p, s.stream); };
}

Run linear(Setup& s) {
  Matrix m = s.matrix("weight");
  m.bias = s.optional_f32("bias");
  const LinearParams p{.x = s.f32("x"),
                       .x_stride = m.in,
                       .rows = static_cast<int>(s.p["x"].dim(0)),
                       .pick = nullptr,
                       .rounds = s.rounds() && s.p.op != "gate",
                       .rounded = nullptr,
                       .adds = false,
                       .segment_count = 1,
                       .segments = {{m, s.output<float>("y"), m.out}}};
  s.blas.make_room(p.rows, m.in, 0);
  return [p, &s] { linear(p, s.blas, s.stream); };
}

Run rope(Setup& s) {
  const Config& c = s.p.config;
  const int r = static_cast<int>(c.rope_dim()), H = static_cast<int>(c.num_attention_heads);
  const int K = static_cast<int>(c.use_mla ? 1 : c.num_key_value_heads);
  const std::int64_t angles = s.p.rows() * r / 2, q_row = s.p["q"].dim(1), k_row = s.p["k"].dim(1);
  auto *cos = s.allocate<float>(angles), *sin = s.allocate<float>(angles);
  const RopeKvWriteParams p{.batch = static_cast<int>(s.p.call.batch),
                            .tokens = static_cast<int>(s.p.call.tokens),
                            .past = nullptr,
                            .heads = H,
                            .width = r,
                            .interleaved = c.use_mla,
                            .cos = cos,
                            .sin = sin,
                            .q = s.f32("q") + q_row / H - r,
                            .q_token_stride = q_row,
                            .q_head_stride = static_cast<int>(q_row / H),
                            .q_rope = s.output<float>("q_rope"),
                            .k = s.f32("k") + k_row / K - r,
                            .k_token_stride = k_row,
                            .k_head_stride = static_cast<int>(k_row / K),
                            .key_heads = K,
                            .k_rope = s.output<float>("k_rope"),
                            .keys = {},
                            .values = nullptr,
                            .value_heads = 0,
                            .value_width = 0,
                            .cached_values = {}};
  return [=, &s] {
    std::vector<float> host_cos(static_cast<std::size_t>(angles)), host_sin(host_cos.size());
    optimized::rope_table(s.p.config, s.p.call, host_cos.data(), host_sin.data());
    s.stream.upload(cos, host_cos.data(), angles);
    s.stream.upload(sin, host_sin.data(), angles);
    rope_kv_write(p, s.stream);
    s.stream.synchronise();
  };
}

Run kv_write(Setup& s) {
  std::vector<KvWriteParams> parts;
  const int* past = s.past();
  for (const auto& [rows, cached] : {std::pair("first", "cached_first"), std::pair("second", "cached_second")}) {
    const Tensor& cache = s.p[cached];
    auto* host = static_cast<std::byte*>(s.memory.output(cached, cache.dtype()));
    parts.push_back({.x = s.f32(rows),
                     .batch = static_cast<int>(s.p.call.batch),
                     .tokens = static_cast<int>(s.p.call.tokens),
                     .past = past,
                     .heads = static_cast<int>(cache.dim(1)),
                     .width = static_cast<int>(cache.dim(3)),
                     .rows = s.cached(cached, s.output(host, cache.view().bytes()))});
  }
  return [parts, &s] {
    for (const KvWriteParams& p : parts) kv_write(p, s.stream);
  };
}

Run attention(Setup& s) {
  const Call& call = s.p.call;
  const Tensor& q1 = s.p["q1"];
  const std::string_view values = s.p.has("v") ? "v" : "k1";
  const CachedRows k1 = s.cached_input("k1");
  AttentionParams p{.batch = static_cast<int>(call.batch),
                    .tokens = static_cast<int>(call.tokens),
                    .past = s.past(),
                    .heads = static_cast<int>(q1.dim(1)),
                    .key_heads = static_cast<int>(s.p["k1"].dim(1)),
                    .q1 = s.f32("q1"),
                    .q2 = s.optional_f32("q2"),
                    .k1 = k1,
                    .k2 = s.cached_input("k2"),
                    .v = s.p.has("v") ? s.cached_input("v") : k1,
                    .d1 = static_cast<int>(q1.dim(2)),
                    .d2 = s.p.has("q2") ? static_cast<int>(s.p["q2"].dim(2)) : 0,
                    .dv = static_cast<int>(s.p[values].dim(3)),
                    .scale = optimized::softmax_scale(s.p.config),
                    .rounds = s.rounds(),
                    .mask = nullptr,
                    .mask_batch = 0,
                    .mask_token = 0,
                    .all_masked = nullptr,
                    .splits = 1,
                    .arrived = nullptr,
                    .partial = nullptr,
                    .y = s.output<float>("y")};
  int device = 0, processors = 1;
  DSV2_CUDA(cudaGetDevice(&device));
  DSV2_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  p.splits = attention_splits(p.batch, p.tokens, p.heads, p.key_heads, static_cast<int>(call.total), processors);
  p.partial = s.allocate<float>(attention_partial_size(p));
  const int arrivals = attention_arrivals(p.batch, p.tokens, p.heads, p.key_heads);
  p.arrived = s.allocate<int>(arrivals);
  DSV2_CUDA(cudaMemsetAsync(p.arrived, 0, static_cast<std::size_t>(arrivals) * sizeof(int), s.stream));
  const auto flags = std::make_shared<std::vector<std::uint8_t>>(static_cast<std::size_t>(s.p.rows()));
  const optimized::AttentionMask mask = optimized::attention_mask(call, flags->data());
  if (mask.visible) {
    p.mask = s.input(mask.visible, static_cast<std::int64_t>(call.mask.size()));
    p.mask_batch = mask.batch_stride, p.mask_token = mask.token_stride;
  }
  if (mask.all_masked) p.all_masked = s.input(mask.all_masked, s.p.rows());
  return [p, &s, flags] { attention(p, s.stream); };
}

Run mla_absorb(Setup& s) {
  const Config& c = s.p.config;
  const int H = static_cast<int>(c.num_attention_heads), R = static_cast<int>(c.kv_lora_rank);
  MlaAbsorbParams keys{.x = s.f32("q"),
                       .x_token_stride = H * c.qk_head_dim(),
                       .x_head_stride = static_cast<int>(c.qk_head_dim()),
                       .kv_b_proj = s.matrix("weight"),
                       .rows = s.rows(),
                       .heads = H,
                       .nope = static_cast<int>(c.qk_nope_head_dim),
                       .v = static_cast<int>(c.v_head_dim),
                       .y = s.output<float>("q_latent")};
  MlaAbsorbParams values = keys;
  values.x = s.f32("attended"), values.x_token_stride = static_cast<std::int64_t>(H) * R, values.x_head_stride = R;
  values.y = s.output<float>("y");
  return [=, &s] {
    mla_absorb_keys(keys, s.stream);
    mla_absorb_values(values, s.stream);
  };
}

GateParams gate_params(Setup& s) {
  const Config& c = s.p.config;
  const Tensor& logits = s.p["logits"];
  return {.logits = s.f32("logits"),
          .bias = s.optional_f32("bias"),
          .scores = s.allocate<float>(logits.size()),
          .topk_idx = nullptr,
          .topk_weight = nullptr,
          .rows = static_cast<int>(logits.dim(0)),
          .experts = static_cast<int>(logits.dim(1)),
          .top_k = static_cast<int>(c.num_experts_per_tok),
          .groups = static_cast<int>(c.n_group),
          .top_groups = static_cast<int>(c.topk_group),
          .method = c.topk_method,
          .scoring = c.scoring_func,
          .normalise = c.norm_topk_prob,
          .scaling = static_cast<float>(c.routed_scaling_factor)};
}

Run gate_select(Setup& s) {
  GateParams p = gate_params(s);
  p.topk_idx = s.id_output("topk_idx");
  return [p, &s] { gate_select(p, s.stream); };
}

Run gate_weight(Setup& s) {
  GateParams select = gate_params(s);  // for its scores
  select.topk_idx = s.allocate<std::int32_t>(s.p["topk_idx"].size());
  GateParams weigh = select;
  weigh.topk_idx = s.ids("topk_idx");
  weigh.topk_weight = s.output<float>("topk_weight");
  return [=, &s] {
    gate_select(select, s.stream);
    gate_weight(weigh, s.stream);
  };
}

Run mlps(Setup& s) {
  const int N = s.rows();
  const bool routed = s.p.has("topk_idx");
  const int k = routed ? static_cast<int>(s.p["topk_idx"].dim(1)) : 1;
  const int E = routed ? static_cast<int>(s.p["gate_proj"].dim(0)) : 1;
  const std::int64_t D = s.p["x"].dim(1), F = s.p["gate_proj"].dim(-2), places = std::int64_t{N} * k;
  ExpertGroupsParams grouping{.topk_idx = nullptr, .rows = N, .top_k = k, .experts = E, .groups = {}};
  if (routed) {
    grouping.topk_idx = s.ids("topk_idx");
    grouping.groups = {.begin = s.allocate<std::int32_t>(E + 1),
                       .tokens = s.allocate<std::int32_t>(places),
                       .place = s.allocate<std::int32_t>(places),
                       .touched = s.allocate<std::int32_t>(E),
                       .counts = s.allocate<std::int32_t>(2),
                       .tiles = s.allocate<std::int32_t>(2 * max_expert_tiles(static_cast<int>(places), E))};
  }
  ExpertsParams p{.x = s.f32("x"),
                  .rows = N,
                  .top_k = k,
                  .experts = E,
                  .groups = nullptr,
                  .topk_weight = s.optional_f32("topk_weight"),
                  .norm = {},
                  .gate_proj = s.stack("gate_proj"),
                  .up_proj = s.stack("up_proj"),
                  .down_proj = s.stack("down_proj"),
                  .shared_gate_proj = {},
                  .shared_up_proj = {},
                  .shared_down_proj = {},
                  .activation = s.p.config.hidden_act,
                  .rounds = s.rounds(),
                  .rounded = nullptr,
                  .adds = false,
                  .act = s.allocate<float>(places * F),
                  .act_rounded = true,
                  .partial = s.allocate<float>(places * D),
                  .y = s.output<float>("y")};
  if (!routed) s.blas.make_room(N, std::max(D, F), F);
  return [=, &s]() mutable {
    if (routed) {
      expert_groups(grouping, s.stream);
      p.groups = &grouping.groups;
    }
    experts_act(p, s.blas, s.stream);
    experts_down(p, s.blas, s.stream);
  };
}

Run argmax(Setup& s) {
  const Tensor& x = s.p["logits"];
  const ArgmaxParams p{.x = s.f32("logits"),
                       .rows = static_cast<int>(x.dim(0)),
                       .width = static_cast<int>(x.dim(1)),
                       .ids = s.id_output("ids")};
  return [p, &s] { argmax(p, s.stream); };
}

std::optional<std::string> op_unsupported(const OpProblem& p, const Options& options) {
  if (const auto why = unsupported(p.config, options)) return why;
  for (const auto& [name, tensor] : p.in)
    if (const DType d = tensor.dtype(); d == DType::f64 || d == DType::f16 || d == DType::s8)
      return concat(name, ": expected f32, bf16, int8 or int4, found ",
                    d == DType::s8 ? "an int8 cache" : dsv2::name(d));
  return std::nullopt;
}

template <Run (*make)(Setup&)>
Run prepare(const OpProblem& problem, const Options& options, OpMemory& memory) {
  const auto setup = std::make_shared<Setup>(problem, options, memory);
  const Run launch = make(*setup);
  return [setup, launch] {
    for (const Run& copy : setup->before) copy();
    launch();
    for (const Run& copy : setup->after) copy();
  };
}

constexpr OpKernel kOps[] = {
    {"embedding", op_unsupported, prepare<embedding>},
    {"rms_norm", op_unsupported, prepare<rms_norm>},
    {"add", op_unsupported, prepare<add>},
    {"linear", op_unsupported, prepare<linear>},
    {"gate", op_unsupported, prepare<linear>},
    {"lm_head", op_unsupported, prepare<linear>},
    {"rope", op_unsupported, prepare<rope>},
    {"kv_write", op_unsupported, prepare<kv_write>},
    {"attention", op_unsupported, prepare<attention>},
    {"mla_absorb", op_unsupported, prepare<mla_absorb>},
    {"gate_select", op_unsupported, prepare<gate_select>},
    {"gate_weight", op_unsupported, prepare<gate_weight>},
    {"experts", op_unsupported, prepare<mlps>},
    {"shared_experts", op_unsupported, prepare<mlps>},
    {"mlp", op_unsupported, prepare<mlps>},
    {"argmax", op_unsupported, prepare<argmax>},
};

}  // namespace

std::span<const OpKernel> ops() { return kOps; }

}  // namespace dsv2::cuda
