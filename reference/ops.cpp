// Each op of model/op.h from the functions that the decoder is made of.
#include "model/op.h"

#include <algorithm>
#include <span>
#include <utility>

#include "reference/attention.h"
#include "reference/backend.h"
#include "reference/gate.h"
#include "reference/heads.h"
#include "reference/linear.h"
#include "reference/moe.h"
#include "reference/norm.h"
#include "reference/rope.h"

namespace dsv2::reference {
namespace {

/// An input with its last dimension as columns, widened.
template <class Scalar>
Matrix<Scalar> rows_of(const TensorView& view) {
  const std::int64_t cols = view.dim(-1), rows = cols ? view.size() / cols : 0;
  return widen_rows<Scalar>({view.dtype, {rows, cols}, view.data}, 0, rows);
}

template <class Scalar>
void give(const Matrix<Scalar>& values, OpMemory& memory, std::string_view output) {
  std::copy_n(values.data(), values.size(), static_cast<Scalar*>(memory.output(output, dtype_of<Scalar>())));
}

TensorView optional(const OpProblem& p, std::string_view name) { return p.has(name) ? p[name].view() : TensorView{}; }

LinearWeights linear_weights(const OpProblem& p, std::string_view weight) {
  return {p[weight].view(), optional(p, "bias")};
}

/// Matrix e of a stack [E,O,K].
TensorView slice(const Tensor& stack, std::int64_t e) {
  TensorView one{stack.dtype(), {stack.dim(1), stack.dim(2)}, nullptr};
  one.data = static_cast<const char*>(stack.data()) + e * one.bytes();
  return one;
}

template <class Scalar>
void embedding(const OpProblem& p, OpMemory& memory) {
  const auto ids = p["ids"].as<std::int64_t>();
  Matrix<Scalar> y(p.rows(), p["weight"].dim(1));
  for (std::int64_t n = 0; n < p.rows(); ++n)
    y.row(n) = widen_rows<Scalar>(p["weight"].view(), ids[static_cast<std::size_t>(n)], 1);
  give(y, memory, "y");
}

template <class Scalar>
void rms_norm(const OpProblem& p, OpMemory& memory) {
  give(reference::rms_norm(rows_of<Scalar>(p["x"].view()), p["weight"].view(), p.config.rms_norm_eps), memory, "y");
}

template <class Scalar>
void add(const OpProblem& p, OpMemory& memory) {
  give<Scalar>(rows_of<Scalar>(p["x"].view()) + rows_of<Scalar>(p["y"].view()), memory, "x");
}

template <class Scalar>
void linear(const OpProblem& p, OpMemory& memory) {
  give(reference::linear(rows_of<Scalar>(p["x"].view()), linear_weights(p, "weight")), memory, "y");
}

template <class Scalar>
void rope(const OpProblem& p, OpMemory& memory) {
  const RopePairs pairs = p.config.use_mla ? RopePairs::interleaved : RopePairs::half_split;
  const auto table = rope_table<Scalar>(p.config, p.call);
  const std::int64_t key_heads = p.config.use_mla ? 1 : p.config.num_key_value_heads;
  give(reference::rope(rows_of<Scalar>(p["q"].view()), p.config.num_attention_heads, pairs, table), memory, "q_rope");
  give(reference::rope(rows_of<Scalar>(p["k"].view()), key_heads, pairs, table), memory, "k_rope");
}

template <class Scalar>
void kv_write(const OpProblem& p, OpMemory& memory) {
  for (const auto& [rows, cached] : {std::pair("first", "cached_first"), std::pair("second", "cached_second")}) {
    const auto x = rows_of<Scalar>(p[rows].view());
    const Shape& shape = p[cached].shape();  // [B,heads,C,dim]
    const std::int64_t heads = shape[1], capacity = shape[2], dim = shape[3];
    auto* to = static_cast<Scalar*>(memory.output(cached, dtype_of<Scalar>()));
    for (std::int64_t b = 0; b < p.call.batch; ++b)
      for (std::int64_t s = 0; s < p.call.tokens; ++s)
        for (std::int64_t h = 0; h < heads; ++h)
          std::copy_n(x.row(b * p.call.tokens + s).data() + h * dim, dim,
                      to + ((b * heads + h) * capacity + p.call.past + s) * dim);
  }
}

/// Rows 0..T-1 of one head of a cached array [B,heads,C,dim].
template <class Scalar>
Matrix<Scalar> cached_rows(const OpProblem& p, std::string_view name, std::int64_t b, std::int64_t head) {
  if (!p.has(name)) return {};
  const Tensor& t = p[name];
  const std::int64_t heads = t.dim(1), capacity = t.dim(2), dim = t.dim(3);
  const std::int64_t first = (b * heads + head) * capacity, T = p.call.total;
  const TensorView all{t.dtype(), {p.call.batch * heads * capacity, dim}, t.data()};
  if (t.dtype() != DType::s8) return widen_rows<Scalar>(all, first, T);
  const Tensor wide = widen_quantised({DType::s8, {T, dim}, all.as<std::int8_t>().data() + first * dim},
                                      {DType::bf16, {T}, p[scales_of(name)].template as<bf16_t>().data() + first});
  return widen_rows<Scalar>(wide.view(), 0, T);
}

template <class Scalar>
void attention(const OpProblem& p, OpMemory& memory) {
  const std::int64_t S = p.call.tokens, H = p["q1"].dim(1), K = p["k1"].dim(1), d1 = p["q1"].dim(2);
  const std::string_view values = p.has("v") ? "v" : "k1";
  const std::int64_t dv = p[values].dim(3), d2 = p.has("q2") ? p["q2"].dim(2) : 0;
  const auto queries = [&](std::string_view name, std::int64_t d) {
    const TensorView v = p[name].view();
    return rows_of<Scalar>({v.dtype, {p.rows(), H * d}, v.data});
  };
  const Matrix<Scalar> q1 = queries("q1", d1), q2 = d2 ? queries("q2", d2) : Matrix<Scalar>();
  Matrix<Scalar> y(p.rows(), H * dv);
  for (std::int64_t b = 0; b < p.call.batch; ++b) {
    for (std::int64_t h = 0; h < H; ++h) {
      const std::int64_t group = h / (H / K);
      const auto k1 = cached_rows<Scalar>(p, "k1", b, group), k2 = cached_rows<Scalar>(p, "k2", b, 0);
      const auto v = cached_rows<Scalar>(p, values, b, group);
      const Matrix<Scalar> rotated = d2 ? Matrix<Scalar>(q2.block(b * S, h * d2, S, d2)) : Matrix<Scalar>();
      y.block(b * S, h * dv, S, dv) =
          reference::attention<Scalar>(
              {.q1 = q1.block(b * S, h * d1, S, d1), .k1 = k1, .q2 = rotated, .k2 = k2, .v = v},
              static_cast<Scalar>(softmax_scale(p.config)), p.call, b)
              .output;
    }
  }
  give(y, memory, "y");
}

template <class Scalar>
void mla_absorb(const OpProblem& p, OpMemory& memory) {
  const Config& c = p.config;
  const std::int64_t H = c.num_attention_heads, R = c.kv_lora_rank, nope = c.qk_nope_head_dim, v = c.v_head_dim;
  const auto q = rows_of<Scalar>(p["q"].view());
  const TensorView latent = p["attended"].view();
  const auto attended = rows_of<Scalar>({latent.dtype, {p.rows(), H * R}, latent.data});
  Matrix<Scalar> q_latent(p.rows(), H * R), y(p.rows(), H * v);
  for (std::int64_t h = 0; h < H; ++h) {
    q_latent.middleCols(h * R, R) =
        q.middleCols(h * c.qk_head_dim(), nope) * widen_rows<Scalar>(p["weight"].view(), h * (nope + v), nope);
    y.middleCols(h * v, v) =
        attended.middleCols(h * R, R) * widen_rows<Scalar>(p["weight"].view(), h * (nope + v) + nope, v).transpose();
  }
  give(q_latent, memory, "q_latent");
  give(y, memory, "y");
}

template <class Scalar>
Selection<Scalar> selection_of(const OpProblem& p) {
  return select_experts(gate_scores(rows_of<Scalar>(p["logits"].view()), p.config.scoring_func), optional(p, "bias"),
                        p.config);
}

Matrix<std::int64_t> ids_of(const Tensor& topk_idx) {
  const auto ids = topk_idx.as<std::int64_t>();
  return Eigen::Map<const Matrix<std::int64_t>>(ids.data(), topk_idx.dim(0), topk_idx.dim(1));
}

template <class Scalar>
void gate_select(const OpProblem& p, OpMemory& memory) {
  give(selection_of<Scalar>(p).topk_idx, memory, "topk_idx");
}

template <class Scalar>
void gate_weight(const OpProblem& p, OpMemory& memory) {
  Selection<Scalar> selection = selection_of<Scalar>(p);
  selection.topk_idx = ids_of(p["topk_idx"]);
  give(gate_weights(selection, p.config), memory, "topk_weight");
}

/// The lowest id of the largest logits of each row.
template <class Scalar>
void argmax(const OpProblem& p, OpMemory& memory) {
  const auto logits = rows_of<Scalar>(p["logits"].view());
  auto* ids = static_cast<std::int64_t*>(memory.output("ids", DType::i64));
  for (Eigen::Index n = 0; n < logits.rows(); ++n) {
    ids[n] = 0;
    for (Eigen::Index v = 1; v < logits.cols(); ++v)
      if (logits(n, v) > logits(n, ids[n])) ids[n] = v;
  }
}

template <class Scalar>
void experts(const OpProblem& p, OpMemory& memory) {
  std::vector<MlpWeights> mlps;
  for (std::int64_t e = 0; e < p["gate_proj"].dim(0); ++e)
    mlps.push_back({.gate_proj = {slice(p["gate_proj"], e), {}},
                    .up_proj = {slice(p["up_proj"], e), {}},
                    .down_proj = {slice(p["down_proj"], e), {}}});
  give(reference::experts<Scalar>(rows_of<Scalar>(p["x"].view()),
                                  {ids_of(p["topk_idx"]), rows_of<Scalar>(p["topk_weight"].view())}, mlps,
                                  p.config.hidden_act),
       memory, "y");
}

template <class Scalar>
void mlp(const OpProblem& p, OpMemory& memory) {
  const MlpWeights weights{.gate_proj = {p["gate_proj"].view(), {}},
                           .up_proj = {p["up_proj"].view(), {}},
                           .down_proj = {p["down_proj"].view(), {}}};
  give(reference::mlp(rows_of<Scalar>(p["x"].view()), weights, p.config.hidden_act, Probe()), memory, "y");
}

std::optional<std::string> unsupported(const OpProblem& p, const Options& options) {
  if (p.op == "kv_write" && p["cached_first"].dtype() == DType::s8)
    return "cached_first: expected f32 or bf16, found int8";  // the rows stay as wide as the arithmetic
  return backend().unsupported(p.config, options);
}

template <void (*InDouble)(const OpProblem&, OpMemory&), void (*InFloat)(const OpProblem&, OpMemory&)>
constexpr OpKernel kernel(std::string_view op) {
  return {op, unsupported, [](const OpProblem& p, const Options& options, OpMemory& memory) -> std::function<void()> {
            const auto compute = options.accumulate == DType::f64 ? InDouble : InFloat;
            return [&p, &memory, compute] { compute(p, memory); };
          }};
}

}  // namespace

std::span<const OpKernel> ops() {
  static constexpr OpKernel kOps[] = {
      kernel<embedding<double>, embedding<float>>("embedding"),
      kernel<rms_norm<double>, rms_norm<float>>("rms_norm"),
      kernel<add<double>, add<float>>("add"),
      kernel<linear<double>, linear<float>>("linear"),
      kernel<linear<double>, linear<float>>("gate"),
      kernel<linear<double>, linear<float>>("lm_head"),
      kernel<rope<double>, rope<float>>("rope"),
      kernel<kv_write<double>, kv_write<float>>("kv_write"),
      kernel<attention<double>, attention<float>>("attention"),
      kernel<mla_absorb<double>, mla_absorb<float>>("mla_absorb"),
      kernel<gate_select<double>, gate_select<float>>("gate_select"),
      kernel<gate_weight<double>, gate_weight<float>>("gate_weight"),
      kernel<experts<double>, experts<float>>("experts"),
      kernel<mlp<double>, mlp<float>>("shared_experts"),
      kernel<mlp<double>, mlp<float>>("mlp"),
      kernel<argmax<double>, argmax<float>>("argmax"),
  };
  return kOps;
}

}  // namespace dsv2::reference
