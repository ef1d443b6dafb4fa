#include "optimized/cpu/prepared_weights.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "model/memory.h"
#include "optimized/cpu/packed_matrix.h"
#include "optimized/cpu/panel.h"

namespace dsv2::cpu {
RowRounding row_rounding(const Options& options, const Kernels& kernels) {
  if (options.dtype == DType::f32) return RowRounding::none;
  return kernels.bf16_dot ? RowRounding::bf16_dot : RowRounding::integers;
}

Arithmetic arithmetic_of(DType stored, RowRounding rows) {
  const bool round = rows != RowRounding::none;
  switch (stored) {
    case DType::bf16:
      return rows == RowRounding::bf16_dot ? Arithmetic::bf16_dot : Arithmetic::bf16;
    case DType::i8:
      return round ? Arithmetic::i8 : Arithmetic::f32;
    case DType::i4:
      return round ? Arithmetic::i4 : Arithmetic::f32;
    default:
      return Arithmetic::f32;
  }
}

PreparedWeights::PreparedWeights(std::shared_ptr<const Weights> weights, const Config& config, RowRounding rounding)
    : weights_(std::move(weights)) {
  const Weights& w = *weights_;
  const DType table = w.embed_tokens.dtype;
  embed_tokens.data = w.embed_tokens.data;
  embed_tokens.stored =
      is_quantised(table) ? arithmetic_of(table, RowRounding::integers) : arithmetic_of(table, RowRounding::none);
  if (table == DType::f16) embed_tokens.data = tables_.emplace_back(convert(w.embed_tokens, DType::f32)).data();
  const LinearWeights last{w.lm_head ? w.lm_head : w.score, {}};
  matrices({{&last, &head}}, rounding);
  norm = vector(w.norm);
  layers.resize(w.layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerWeights& from = w.layers[i];
    const AttentionWeights& a = from.self_attn;
    PreparedLayer& to = layers[i];
    to.input_layernorm = vector(from.input_layernorm);
    to.post_attention_layernorm = vector(from.post_attention_layernorm);
    to.q_a_layernorm = vector(a.q_a_layernorm);
    to.kv_a_layernorm = vector(a.kv_a_layernorm);
    to.e_score_correction_bias = vector(from.e_score_correction_bias);
    matrices({{&a.q_proj, &to.q_proj},
              {&a.k_proj, &to.k_proj},
              {&a.v_proj, &to.v_proj},
              {&a.q_a_proj, &to.q_a_proj},
              {&a.kv_a_proj_with_mqa, &to.kv_a_proj_with_mqa}},
             rounding);
    matrices({{&a.q_b_proj, &to.q_b_proj}}, rounding);
    heads(a.kv_b_proj.weight, config, rounding, to.kv_b_proj);
    matrices({{&a.o_proj, &to.o_proj}}, rounding);
    const LinearWeights gate{from.gate, {}};
    matrices({{&gate, &to.gate}}, RowRounding::none);  // a rounded row could choose another expert

    to.experts.resize(from.experts.size());
    std::vector<Pair> up, down;
    const auto add = [&](const MlpWeights& mlp, PreparedMlp& prepared) {
      up.push_back({&mlp.gate_proj, &prepared.gate_proj});
      up.push_back({&mlp.up_proj, &prepared.up_proj});
      down.push_back({&mlp.down_proj, &prepared.down_proj});
    };
    for (std::size_t e = 0; e < from.experts.size(); ++e) add(from.experts[e], to.experts[e]);
    add(from.shared_experts, to.shared_experts);
    add(from.mlp, to.mlp);
    matrices(up, rounding);
    matrices(down, rounding);
  }
  make_copies();
}

const float* PreparedWeights::vector(const TensorView& view) {
  if (!view) return nullptr;
  if (view.dtype == DType::f32) return view.as<float>().data();
  return vectors_.emplace_back(convert(view, DType::f32)).as<float>().data();
}

void PreparedWeights::matrices(const std::vector<Pair>& sweep, RowRounding rounding) {
  std::optional<DType> stored;
  bool mixed = false;
  for (const Pair& p : sweep) {
    if (!p.from->weight) continue;
    mixed = mixed || (stored && *stored != p.from->weight.dtype);
    stored = p.from->weight.dtype;
  }
  if (!stored) return;
  const Arithmetic arithmetic = mixed ? Arithmetic::f32 : arithmetic_of(*stored, rounding);
  for (const auto& [from, to] : sweep) {
    if (!from->weight) continue;
    to->out = from->weight.dim(0);
    to->in = from->weight.dim(1);
    to->bias = vector(from->bias);
    to->arithmetic = arithmetic;
    rows(from->weight, 0, to->out, arithmetic, &to->data);
  }
}

void PreparedWeights::heads(const TensorView& kv_b_proj, const Config& config, RowRounding rounding,
                            PreparedHeads& to) {
  if (!kv_b_proj) return;
  to.arithmetic = arithmetic_of(kv_b_proj.dtype, rounding);
  const std::int64_t nope = config.qk_nope_head_dim, v = config.v_head_dim;
  to.w_uk.resize(static_cast<std::size_t>(config.num_attention_heads));
  to.w_uv.resize(to.w_uk.size());
  std::int64_t row = 0;
  for (std::size_t h = 0; h < to.w_uk.size(); ++h, row += nope + v) {
    rows(kv_b_proj, row, nope, to.arithmetic, &to.w_uk[h]);
    rows(kv_b_proj, row + nope, v, to.arithmetic, &to.w_uv[h]);
  }
}

void PreparedWeights::rows(const TensorView& from, std::int64_t first, std::int64_t count, Arithmetic arithmetic,
                           const void** to) {
  const bool in_panels = is_quantised(from.dtype) && arithmetic != Arithmetic::f32 && first % kPanel == 0;
  if (in_panels)
    *to = static_cast<const std::byte*>(from.data) + first / kPanel * panel_bytes(arithmetic, from.dim(1));
  else
    pending_.push_back({from, first, count, arithmetic, to});
}

constexpr std::int64_t kParallelFrom = 1 << 17;  // bytes: less is done sooner than threads are woken

void PreparedWeights::make_copies() {
  std::vector<std::int64_t> offsets;
  for (const Copy& c : pending_) {
    offsets.push_back(panel_bytes_);
    panel_bytes_ += packed_matrix_bytes(c.arithmetic, c.count, c.from.dim(1));
  }
  panels_ = allocate_pages(panel_bytes_, "packed weights");
  auto* const base = static_cast<std::byte*>(panels_.get());
#pragma omp parallel for schedule(dynamic) if (panel_bytes_ >= kParallelFrom)
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    const Copy& c = pending_[i];
    const std::int64_t bytes = panel_bytes(c.arithmetic, c.from.dim(1));
    std::byte* to = base + offsets[i];
    *c.to = to;
    for (std::int64_t r = 0; r < c.count; r += kPanel, to += bytes)
      pack_panel(c.from, c.first + r, std::min(kPanel, c.count - r), c.arithmetic, to);
  }
  pending_.clear();
}

std::int64_t PreparedWeights::copied_bytes() const {
  std::int64_t sum = panel_bytes_;
  for (const auto* tensors : {&vectors_, &tables_})
    for (const Tensor& t : *tensors) sum += t.view().bytes();
  return sum;
}

std::int64_t PreparedWeights::copied_bytes(const Config& config, DType stored, RowRounding rounding) {
  const bool tied = config.head == Head::causal_lm && config.tie_word_embeddings;
  const Arithmetic arithmetic = arithmetic_of(stored, rounding);
  const bool heads_begin_panels = config.qk_nope_head_dim % kPanel == 0 && config.v_head_dim % kPanel == 0;
  std::int64_t sum = 0;
  Weights shapes;
  for_each_tensor(config, shapes, [&](const std::string& name, const Shape& shape, const TensorView&) {
    if (shape.size() != 2 || (name == "model.embed_tokens.weight" && !tied)) return;
    if (is_kept(name, shape)) {
      sum += packed_matrix_bytes(Arithmetic::f32, shape[0], shape[1]);
      return;
    }
    const bool as_stored = is_quantised(stored) && arithmetic != Arithmetic::f32 &&
                           (heads_begin_panels || !name.ends_with(".kv_b_proj.weight"));
    if (!as_stored) sum += packed_matrix_bytes(arithmetic, shape[0], shape[1]);
  });
  return sum;
}

}  // namespace dsv2::cpu
