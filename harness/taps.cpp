#include "harness/taps.h"

#include <algorithm>

namespace dsv2::harness {

void RecordingSink::tap(std::string_view name, const TensorView& view, void*) {
  if (wants_ && !wants_(name)) return;
  Tensor copy(view.dtype, view.shape);
  std::memcpy(copy.data(), view.data, static_cast<std::size_t>(view.bytes()));
  tensors_.insert_or_assign(std::string(name), std::move(copy));
}

const Tensor* RecordingSink::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

bool is_router_tap(std::string_view tap) {
  return tap.ends_with(".gate.logits") || tap.ends_with(".gate.topk_idx") || tap.ends_with(".gate.topk_weight");
}

std::optional<RouteChange> route_change(const RecordingSink& got, std::int64_t got_row, const RecordingSink& want,
                                        std::int64_t want_row, const Config& config) {
  const auto row_of = [](const RecordingSink& sink, const std::string& tap, std::int64_t row) {
    const Tensor* t = sink.find(tap);
    DSV2_CHECK(t, tap, ": not recorded");
    std::vector<double> values;
    for (std::int64_t i = row * t->dim(1); i < (row + 1) * t->dim(1); ++i) values.push_back(t->at(i));
    return values;
  };
  for (const std::int64_t layer : config.moe_layers()) {
    const std::string gate = concat("layers.", layer, ".mlp.gate.");
    if (row_of(got, gate + "topk_idx", got_row) == row_of(want, gate + "topk_idx", want_row)) continue;
    const auto g = row_of(got, gate + "logits", got_row), w = row_of(want, gate + "logits", want_row);
    const Shape shape{static_cast<std::int64_t>(g.size())};
    return RouteChange{layer, relative_l2({DType::f64, shape, g.data()}, {DType::f64, shape, w.data()})};
  }
  return std::nullopt;
}

std::int64_t reduction_length(std::string_view tap, const Config& c, std::int64_t total) {
  const std::int64_t D = c.hidden_size, F = c.moe_intermediate_size;
  const auto is = [&](std::string_view op) { return tap.ends_with(op); };
  if (is(".input_layernorm") || is(".post_attention_layernorm") || tap == "norm") return D;
  if (is(".q_a_layernorm") || is(".q_b_proj")) return c.q_lora_rank.value_or(1);
  if (is(".kv_a_layernorm")) return c.kv_lora_rank;
  if (is("_proj") && !is(".o_proj")) return D;
  if (is("_rope")) return 2;
  if (is(".attn_output")) return total + c.qk_head_dim() + (c.use_mla ? 2 * c.kv_lora_rank : 0);
  if (is(".o_proj") || is(".residual")) return c.num_attention_heads * c.value_head_dim();
  if (is(".gate.logits")) return D;
  if (is(".gate.topk_weight")) return c.n_routed_experts.value_or(1);
  if (is(".mlp.act")) return 2 * D;
  if (is(".shared_experts")) return 2 * D + c.shared_intermediate_size();
  if (is(".experts")) return 2 * D + F * c.num_experts_per_tok;
  if (is(".mlp") || tap.starts_with("layers."))
    return 2 * D + std::max(c.intermediate_size, F + c.shared_intermediate_size());
  if (tap == "lm_head" || tap == "score") return D;
  return 1;
}

namespace {

/// Norms, RoPE, the gate, embeddings and the residual stream are float32 at every precision.
bool is_f32_op(std::string_view tap) {
  for (const std::string_view op : {"norm", "_rope", ".residual", "embed_tokens", ".gate.logits", ".gate.topk_weight"})
    if (tap.ends_with(op)) return true;
  return tap.starts_with("layers.") && std::count(tap.begin(), tap.end(), '.') == 1;
}

}  // namespace

void ForcingSink::tap(std::string_view name, const TensorView& view, void* data) {
  seen_.emplace(name);
  const Tensor* right = right_.find(name);
  if (!right) return;  // the reference has no such intermediate: a fused op's own
  Comparison c;
  if (view.dtype == DType::i64) {
    c = compare_exact(std::string(name), view, right->view());
  } else {
    const bool rounded_kv = dtype_ == DType::f32 && name.ends_with(".attn_output");
    const DType stored = is_f32_op(name) ? DType::f32 : rounded_kv ? kv_dtype_ : dtype_;
    c = compare_derived(std::string(name), view, right->view(), {stored, reduction_length(name, config_, total_)});
  }
  const bool same_shape = right->shape() == view.shape;
  comparisons_.push_back(std::move(c));
  if (!same_shape) return;
  if (view.dtype == DType::i64) {
    std::memcpy(data, right->data(), static_cast<std::size_t>(view.bytes()));
  } else {
    const Tensor rounded = convert(right->view(), view.dtype);
    std::memcpy(data, rounded.data(), static_cast<std::size_t>(view.bytes()));
  }
}

std::vector<std::string> ForcingSink::missing() const {
  std::vector<std::string> names = {"embed_tokens", "norm"};
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    const std::string layer = concat("layers.", i);
    names.push_back(layer);
    if (config_.is_moe_layer(i))
      for (const char* part : {".mlp.gate.logits", ".mlp.gate.topk_idx", ".mlp.gate.topk_weight"})
        names.push_back(layer + part);
  }
  std::erase_if(names, [&](const std::string& n) { return seen_.contains(n); });
  return names;
}

}  // namespace dsv2::harness
