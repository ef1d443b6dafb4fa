// Each op of model/op.h on the kernels, shared among threads as the decoder does it.
#include "model/op.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "optimized/attention_mask.h"
#include "optimized/cpu/backend.h"
#include "optimized/cpu/expert_groups.h"
#include "optimized/cpu/packed_matrix.h"
#include "optimized/cpu/panel.h"
#include "optimized/cpu/prepared_weights.h"
#include "optimized/cpu/runner.h"
#include "optimized/cpu/test_hook.h"
#include "optimized/rope_table.h"

namespace dsv2::cpu {
namespace {

using Run = std::function<void()>;

/// What the preparation of an op works with.
struct Setup {
  const OpProblem& p;
  const Options& options;
  OpMemory& memory;
  Runner runner;
  std::vector<std::shared_ptr<Tensor>>& kept;  // what the prepared op needs as long as it lives

  const float* f32(std::string_view name) const { return p[name].as<float>().data(); }
  const float* optional_f32(std::string_view name) const { return p.has(name) ? f32(name) : nullptr; }
  template <class T>
  T* output(std::string_view name) const {
    return static_cast<T*>(memory.output(name, dtype_of<T>()));
  }
  template <class T>
  T* scratch(std::int64_t count) const {
    return static_cast<T*>(memory.scratch(count * static_cast<std::int64_t>(sizeof(T))));
  }
};

Storage storage_of(const Tensor& t) {
  if (t.dtype() == DType::s8) return Storage::i8;
  return t.dtype() == DType::bf16 ? Storage::bf16 : Storage::f32;
}

/// A matrix, or a stack of equal ones, as a decoder holds it.
struct Packed {
  const std::byte* data;
  Arithmetic arithmetic;   // with few rows
  std::int64_t bytes = 0;  // of one matrix
};
Packed packed_matrix(const Setup& s, const Tensor& matrix) {
  const bool gate = s.p.op == "gate";
  const Arithmetic arithmetic =
      arithmetic_of(matrix.dtype(), gate ? RowRounding::none : row_rounding(s.options, s.runner.kernels()));
  const std::int64_t each = packed_matrix_bytes(arithmetic, matrix.dim(-2), matrix.dim(-1));
  if (is_quantised(matrix.dtype()) && arithmetic != Arithmetic::f32)
    return {static_cast<const std::byte*>(matrix.data()), arithmetic, each};
  // Not the op's memory, which is poisoned before each run: a decoder does this once.
  const auto panels = std::make_shared<Tensor>(
      DType::s8, Shape{each * (matrix.size() / std::max<std::int64_t>(matrix.dim(-2) * matrix.dim(-1), 1))});
  pack_matrix(matrix.view(), arithmetic, static_cast<std::byte*>(panels->data()));
  s.kept.push_back(panels);
  return {static_cast<const std::byte*>(panels->data()), arithmetic, each};
}

/// Room for `rows` packed rows of `width`; f32 is the widest form.
float* packed_rows(const Setup& s, std::int64_t rows, std::int64_t width) {
  return s.scratch<float>(rows * packed_width(width));
}

/// A temporary that the returned closure keeps alive.
template <class T>
struct Kept {
  std::shared_ptr<std::vector<T>> values = std::make_shared<std::vector<T>>();
};

Run embedding(const Setup& s) {
  const Tensor& table = s.p["weight"];
  const EmbeddingParams params{
      .table = table.data(),
      .stored = arithmetic_of(table.dtype(), is_quantised(table.dtype()) ? RowRounding::integers : RowRounding::none),
      .ids = s.p["ids"].as<std::int64_t>().data(),
      .width = table.dim(1),
      .y = s.output<float>("y")};
  return [params, runner = s.runner, rows = s.p.rows()] { runner.embedding(params, rows); };
}

Run rms_norm(const Setup& s) {
  const std::int64_t width = s.p["x"].dim(1);
  const RmsNormParams params{.x = s.f32("x"),
                             .x_stride = width,
                             .weight = s.f32("weight"),
                             .eps = static_cast<float>(s.p.config.rms_norm_eps),
                             .width = width,
                             .y = s.output<float>("y")};
  return [params, runner = s.runner, rows = s.p.rows()] { runner.rms_norm(params, rows); };
}

Run add(const Setup& s) {
  const AddParams params{.x = s.output<float>("x"), .y = s.f32("y")};
  return [params, runner = s.runner, count = s.p["x"].size()] { runner.add(params, count); };
}

Run linear(const Setup& s) {
  const Packed matrix = packed_matrix(s, s.p["weight"]);
  const std::int64_t rows = s.p["x"].dim(0), width = s.p["weight"].dim(1), out = s.p["weight"].dim(0);
  float* packed = packed_rows(s, rows, width);
  const PackParams pack{.x = s.f32("x"),
                        .storage = Storage::f32,
                        .x_stride = width,
                        .rows = nullptr,
                        .width = width,
                        .arithmetic = for_rows(matrix.arithmetic, rows),
                        .y = packed};
  const LinearSegment segment{.x = packed,
                              .weight = matrix.data,
                              .bias = s.optional_f32("bias"),
                              .y = s.output<float>("y"),
                              .y_stride = out,
                              .out_width = out};
  return [=, runner = s.runner] {
    runner.pack(pack, rows);
    runner.linear({.arithmetic = pack.arithmetic,
                   .rows = rows,
                   .width = width,
                   .x_stride = packed_bytes(pack.arithmetic, width),
                   .segments = &segment,
                   .segment_count = 1});
  };
}

Run rope(const Setup& s) {
  const Config& c = s.p.config;
  const std::int64_t N = s.p.rows(), r = c.rope_dim();
  float *cos = s.scratch<float>(N * r / 2), *sin = s.scratch<float>(N * r / 2);
  // The last r columns of each head turn.
  const auto turn = [&](std::string_view input, std::string_view output, std::int64_t heads) {
    const std::int64_t row = s.p[input].dim(1), width = row / heads;
    return RopeParams{.x = s.f32(input) + width - r,
                      .token_stride = row,
                      .head_stride = width,
                      .heads = heads,
                      .width = r,
                      .interleaved = c.use_mla,
                      .cos = cos,
                      .sin = sin,
                      .y = s.output<float>(output)};
  };
  const RopeParams q = turn("q", "q_rope", c.num_attention_heads),
                   k = turn("k", "k_rope", c.use_mla ? 1 : c.num_key_value_heads);
  return [=, runner = s.runner, &p = s.p] {
    optimized::rope_table(p.config, p.call, cos, sin);
    runner.rope(q, N);
    runner.rope(k, N);
  };
}

Run kv_write(const Setup& s) {
  std::vector<KvWriteParams> parts;
  for (const auto& [rows, cached] : {std::pair("first", "cached_first"), std::pair("second", "cached_second")}) {
    const Tensor& cache = s.p[cached];  // [B,heads,C,dim]
    const std::int64_t heads = cache.dim(1), capacity = cache.dim(2), dim = cache.dim(3);
    const Storage storage = storage_of(cache);
    char* y = static_cast<char*>(s.memory.output(cached, cache.dtype()));
    auto* scales = storage == Storage::i8 ? s.output<bf16_t>(scales_of(cached)) : nullptr;
    parts.push_back({.x = s.f32(rows),
                     .x_stride = heads * dim,
                     .y = y + s.p.call.past * dim * bits(cache.dtype()) / 8,
                     .storage = storage,
                     .head_stride = capacity * dim,
                     .batch_stride = heads * capacity * dim,
                     .tokens = s.p.call.tokens,
                     .heads = heads,
                     .width = dim,
                     .scales = scales ? reinterpret_cast<std::uint16_t*>(scales) + s.p.call.past : nullptr});
  }
  return [parts, runner = s.runner, rows = s.p.rows()] {
    for (const KvWriteParams& part : parts) runner.kv_write(part, rows);
  };
}

KeyRows cached_rows(const Setup& s, std::string_view name) {
  if (!s.p.has(name)) return {};
  const Tensor& t = s.p[name];  // [B,heads,C,dim]
  const std::int64_t head = t.dim(2) * t.dim(3);
  const bool quantised = t.dtype() == DType::s8;
  return {.data = t.data(),
          .storage = storage_of(t),
          .batch_stride = t.dim(1) * head,
          .head_stride = t.dim(1) == 1 ? 0 : head,
          .row_stride = t.dim(3),
          .scales = quantised ? static_cast<const std::uint16_t*>(s.p[scales_of(name)].data()) : nullptr};
}

Run attention(const Setup& s) {
  const Call& call = s.p.call;
  const Tensor& q1 = s.p["q1"];
  const std::int64_t H = q1.dim(1), d1 = q1.dim(2);
  const std::string_view values = s.p.has("v") ? "v" : "k1";
  const optimized::AttentionMask mask = optimized::attention_mask(call, s.scratch<std::uint8_t>(s.p.rows()));
  AttentionParams params{.batch = call.batch,
                         .tokens = call.tokens,
                         .total = call.total,
                         .past = call.past,
                         .heads = H,
                         .key_heads = s.p["k1"].dim(1),
                         .q1 = s.f32("q1"),
                         .q1_token_stride = H * d1,
                         .q1_head_stride = d1,
                         .q2 = s.optional_f32("q2"),
                         .k1 = cached_rows(s, "k1"),
                         .k2 = cached_rows(s, "k2"),
                         .v = cached_rows(s, values),
                         .d1 = d1,
                         .d2 = s.p.has("q2") ? s.p["q2"].dim(2) : 0,
                         .dv = s.p[values].dim(3),
                         .scale = optimized::softmax_scale(s.p.config),
                         .mask = mask.visible,
                         .mask_batch = mask.batch_stride,
                         .mask_token = mask.token_stride,
                         .all_masked = mask.all_masked,
                         .rounds = s.options.dtype == DType::bf16,
                         .query_block = kQueryBlock,
                         .out = s.output<float>("y")};
  return [params, runner = s.runner, &call, flags = const_cast<std::uint8_t*>(mask.all_masked)] {
    if (flags) optimized::attention_mask(call, flags);  // scratch is poisoned between runs
    runner.attention(params);
  };
}

Run mla_absorb(const Setup& s) {
  const Config& c = s.p.config;
  const std::int64_t N = s.p.rows(), H = c.num_attention_heads, R = c.kv_lora_rank;
  const std::int64_t nope = c.qk_nope_head_dim, v = c.v_head_dim;
  const Tensor& matrix = s.p["weight"];
  const Arithmetic stored = arithmetic_of(matrix.dtype(), row_rounding(s.options, s.runner.kernels()));
  // Head by head, as a decoder holds it.
  const std::int64_t keys = packed_matrix_bytes(stored, nope, R), values = packed_matrix_bytes(stored, v, R);
  auto* panels = static_cast<std::byte*>(
      s.kept.emplace_back(std::make_shared<Tensor>(DType::s8, Shape{H * (keys + values)}))->data());
  const std::int64_t panel = panel_bytes(stored, R);
  const auto pack_rows = [&](std::int64_t first, std::int64_t count) {
    std::byte* const begin = panels;
    for (std::int64_t r = 0; r < count; r += kPanel, panels += panel)
      pack_panel(matrix.view(), first + r, std::min(kPanel, count - r), stored, panels);
    return begin;
  };
  Kept<const void*> w_uk;
  Kept<LinearSegment> segments;
  const Arithmetic arithmetic = for_rows(stored, N);
  const std::int64_t row_bytes = packed_bytes(arithmetic, R);
  float *packed = packed_rows(s, N * H, R), *y = s.output<float>("y");
  for (std::int64_t h = 0; h < H; ++h) {
    w_uk.values->push_back(pack_rows(h * (nope + v), nope));
    segments.values->push_back({.x = reinterpret_cast<const char*>(packed) + h * row_bytes,
                                .weight = pack_rows(h * (nope + v) + nope, v),
                                .bias = nullptr,
                                .y = y + h * v,
                                .y_stride = H * v,
                                .out_width = v});
  }
  const MlaAbsorbParams absorb{.x = s.f32("q"),
                               .token_stride = H * c.qk_head_dim(),
                               .head_stride = c.qk_head_dim(),
                               .weight = w_uk.values->data(),
                               .arithmetic = stored,
                               .tokens = N,
                               .heads = H,
                               .nope = nope,
                               .width = R,
                               .y = s.output<float>("q_latent")};
  const PackParams pack{.x = s.f32("attended"),
                        .storage = Storage::f32,
                        .x_stride = R,
                        .rows = nullptr,
                        .width = R,
                        .arithmetic = arithmetic,
                        .y = packed};
  return [=, runner = s.runner] {
    static_cast<void>(w_uk);  // kept alive: `absorb` looks into it
    runner.mla_absorb(absorb);
    runner.pack(pack, N * H);
    runner.linear({.arithmetic = arithmetic,
                   .rows = N,
                   .width = R,
                   .x_stride = H * row_bytes,
                   .segments = segments.values->data(),
                   .segment_count = H});
  };
}

GateParams gate_params(const Setup& s) {
  const Config& c = s.p.config;
  const std::int64_t count = s.p["logits"].size();
  return {.logits = s.f32("logits"),
          .scores = s.scratch<float>(count),
          .choice = s.scratch<float>(count),
          .bias = s.optional_f32("bias"),
          .topk_idx = nullptr,
          .topk_weight = nullptr,
          .experts = s.p["logits"].dim(1),
          .top_k = c.num_experts_per_tok,
          .groups = c.n_group,
          .top_groups = c.topk_group,
          .method = c.topk_method,
          .scoring = c.scoring_func,
          .normalise = c.norm_topk_prob,
          .scaling = static_cast<float>(c.routed_scaling_factor)};
}

Run gate_select(const Setup& s) {
  GateParams params = gate_params(s);
  params.topk_idx = s.output<std::int64_t>("topk_idx");
  return [params, runner = s.runner, rows = s.p["logits"].dim(0)] { runner.gate_select(params, rows); };
}

Run gate_weight(const Setup& s) {
  GateParams params = gate_params(s);
  const Tensor& given = s.p["topk_idx"];
  const std::int64_t rows = given.dim(0);
  params.topk_idx = s.scratch<std::int64_t>(given.size());
  params.topk_weight = s.output<float>("topk_weight");
  return [params, runner = s.runner, rows, &given] {
    runner.gate_select(params, rows);  // for its scores
    std::copy_n(given.as<std::int64_t>().data(), given.size(), params.topk_idx);
    runner.gate_weight(params, rows);
  };
}

/// MLPs over the rows of x; `list` fills their segments, but for the activations.
template <class List>
Run mlps(const Setup& s, List list) {
  const std::int64_t N = s.p.rows(), D = s.p["x"].dim(1);
  const Packed gate = packed_matrix(s, s.p["gate_proj"]), up = packed_matrix(s, s.p["up_proj"]),
               down = packed_matrix(s, s.p["down_proj"]);
  const PackParams pack{.x = s.f32("x"),
                        .storage = Storage::f32,
                        .x_stride = D,
                        .rows = nullptr,
                        .width = D,
                        .arithmetic = for_rows(up.arithmetic, N),
                        .y = packed_rows(s, N, D)};
  const Arithmetic down_arithmetic = for_rows(down.arithmetic, N);
  const std::int64_t width = s.p["up_proj"].dim(-2), per_token = s.p.has("topk_idx") ? s.p["topk_idx"].dim(1) : 1;
  auto* act = reinterpret_cast<char*>(packed_rows(s, N * per_token, width));
  const std::int64_t act_row_bytes = packed_bytes(down_arithmetic, width);
  float* y = s.output<float>("y");
  Kept<ExpertSegment> segments;
  const auto add = [=](std::int64_t expert, std::int64_t rows, const std::int64_t* tokens, const float* weight) {
    segments.values->push_back({.gate_proj = gate.data + expert * gate.bytes,
                                .up_proj = up.data + expert * up.bytes,
                                .down_proj = down.data + expert * down.bytes,
                                .width = width,
                                .rows = rows,
                                .tokens = tokens,
                                .weight = weight,
                                .act = nullptr});
  };
  return [=, runner = s.runner, activation = s.p.config.hidden_act] {
    segments.values->clear();
    list(add);
    char* at = act;
    for (ExpertSegment& segment : *segments.values) {
      segment.act = at;
      at += segment.rows * act_row_bytes;
    }
    runner.pack(pack, N);
    const ExpertsParams params{.segments = segments.values->data(),
                               .segment_count = static_cast<std::int64_t>(segments.values->size()),
                               .up_arithmetic = pack.arithmetic,
                               .down_arithmetic = down_arithmetic,
                               .activation = activation,
                               .hidden = D,
                               .tokens = N,
                               .x = pack.y,
                               .y = y};
    runner.experts_act(params);
    runner.experts_down(params);
  };
}

Run mlp(const Setup& s) {
  return mlps(s, [rows = s.p.rows()](const auto& add) { add(0, rows, nullptr, nullptr); });
}

Run experts(const Setup& s) {
  const Tensor &topk_idx = s.p["topk_idx"], &topk_weight = s.p["topk_weight"];
  auto* tokens = s.scratch<std::int64_t>(topk_idx.size());
  auto* weight = s.scratch<float>(topk_idx.size());
  Kept<std::int64_t> begin;
  return mlps(s, [=, &topk_idx, &topk_weight, experts = s.p["gate_proj"].dim(0)](const auto& add) {
    for_each_chosen_expert(
        topk_idx.as<std::int64_t>().data(), topk_weight.as<float>().data(), topk_idx.dim(0), topk_idx.dim(1), experts,
        *begin.values, tokens, weight,
        [&](std::size_t e, std::int64_t rows, const std::int64_t* its_tokens, const float* its_weight) {
          add(static_cast<std::int64_t>(e), rows, its_tokens, its_weight);
        });
  });
}

/// Why these kernels cannot take the problem: a dtype of the options, or of a matrix or cached row.
std::optional<std::string> unsupported(const OpProblem& p, const Options& options) {
  if (const auto why = backend().unsupported(p.config, options)) return why;
  for (const auto& [name, tensor] : p.in)
    if (const DType d = tensor.dtype(); d == DType::f64 || d == DType::f16)
      return concat(name, ": expected f32, bf16, int8 or int4, found ", dsv2::name(d));
  return std::nullopt;
}

struct Row {
  std::string_view op;
  Run (*prepare)(const Setup&);
};
constexpr Row kRows[] = {
    {"embedding", embedding},
    {"rms_norm", rms_norm},
    {"add", add},
    {"linear", linear},
    {"gate", linear},
    {"lm_head", linear},
    {"rope", rope},
    {"kv_write", kv_write},
    {"attention", attention},
    {"mla_absorb", mla_absorb},
    {"gate_select", gate_select},
    {"gate_weight", gate_weight},
    {"experts", experts},
    {"shared_experts", mlp},
    {"mlp", mlp},
};

}  // namespace

Run prepare_with_kernels(const OpProblem& problem, const Options& options, OpMemory& memory, const Kernels& kernels) {
  for (const Row& row : kRows) {
    if (row.op != problem.op) continue;
    std::vector<std::shared_ptr<Tensor>> kept;
    Run run = row.prepare(
        {.p = problem, .options = options, .memory = memory, .runner = Runner(kernels, options.threads), .kept = kept});
    if (kept.empty()) return run;
    return [run = std::move(run), kept = std::move(kept)] { run(); };
  }
  fail("cpu: op: expected one that it computes alone, found ", problem.op);
}

std::span<const OpKernel> ops() {
  static const auto kOps = [] {
    std::vector<OpKernel> list;
    for (const Row& row : kRows)
      list.push_back({row.op, unsupported, [](const OpProblem& p, const Options& options, OpMemory& memory) {
                        return prepare_with_kernels(p, options, memory, *find_isa(options.isa).kernels);
                      }});
    return list;
  }();
  return kOps;
}

}  // namespace dsv2::cpu
