#include "harness/taps.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "harness/routing.h"
#include "model/kv_cache.h"

namespace dsv2::harness {

void RecordingSink::tap(std::string_view name, const TensorView& view, void*) {
  if (wants_ && !wants_(name)) return;
  Tensor copy(view.dtype, view.shape);
  std::memcpy(copy.data(), view.data, static_cast<std::size_t>(view.bytes()));
  if (tensors_.insert_or_assign(std::string(name), std::move(copy)).second) order_.emplace_back(name);
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

bool is_layer(std::string_view tap) {
  return tap.starts_with("layers.") && std::count(tap.begin(), tap.end(), '.') == 1;
}

/// Norms, RoPE, the gate, embeddings and the residual stream are float32 at every precision.
bool is_f32_op(std::string_view tap) {
  for (const std::string_view op : {"norm", "_rope", ".residual", "embed_tokens", ".gate.logits", ".gate.topk_weight"})
    if (tap.ends_with(op)) return true;
  return is_layer(tap);
}

/// Where the kernels' results show.
constexpr struct Place {
  std::string_view op, tap;  ///< how the tap's name ends
  bool fused = false;        ///< only in a backend that does not report what lies between
} kPlaces[] = {
    {"embedding", "embed_tokens"},
    {"rms_norm", "norm"},
    {"linear", "_proj"},
    {"linear", "_proj_with_mqa"},
    {"linear", ".attn_output"},  // MLA: W_uk and W_uv
    {"linear", ".gate.logits"},
    {"linear", "lm_head"},
    {"linear", "score"},
    {"rope", "_rope"},
    {"kv_write", ".cache.key"},
    {"kv_write", ".cache.value"},
    {"kv_write", ".cache.k_pe"},
    {"kv_write", ".cache.compressed_kv"},
    {"kv_write", ".attn_output", true},
    {"attention", ".attn_output"},
    {"mla_absorb", ".attn_output"},
    {"gate_select", ".gate.topk_idx"},
    {"gate_weight", ".gate.topk_weight"},
    {"experts_act", ".mlp.act"},
    {"experts_act", "experts"},
    {"experts_act", ".mlp", true},
    {"experts_down", "experts"},
    {"experts_down", ".mlp"},
    {"add", ".residual"},
    {"add", ""},  // layers.I
};

bool shows_at(const Place& place, std::string_view tap) {
  return place.tap.empty() ? is_layer(tap) : tap.ends_with(place.tap);
}

}  // namespace

Tensor replace_rows(const TensorView& got, const TensorView& right, const std::vector<bool>& rows) {
  Tensor mixed(got.dtype, got.shape);
  std::memcpy(mixed.data(), got.data, static_cast<std::size_t>(got.bytes()));
  if (rows.empty() || got.shape != right.shape) return mixed;
  const Tensor same = got.dtype == right.dtype ? Tensor() : convert(right, got.dtype);
  const auto* from = static_cast<const char*>(same ? same.data() : right.data);
  const auto size = static_cast<std::size_t>(got.bytes()) / rows.size();
  for (std::size_t n = 0; n < rows.size(); ++n)
    if (rows[n]) std::memcpy(static_cast<char*>(mixed.data()) + n * size, from + n * size, size);
  return mixed;
}

RoutingComparison compare_routing(std::string_view tap, const TensorView& got, const RecordingSink& right, double unit,
                                  const Config& config, const Weights* weights) {
  const Tensor* want = right.find(tap);
  const std::string gate(tap.substr(0, tap.rfind('.')));
  const Tensor* logits = right.find(gate + ".logits");
  DSV2_CHECK(want && logits, gate, ": not recorded");
  RoutingComparison result;
  if (!weights || got.shape != want->shape()) {
    result.comparison = compare_exact(std::string(tap), got, want->view());
    return result;
  }
  const std::int64_t N = logits->dim(0), E = logits->dim(1);
  std::vector<double> slack;
  for (std::int64_t n = 0; n < N; ++n) {
    double sum = 0;
    for (std::int64_t e = 0; e < E; ++e) sum += logits->at(n * E + e) * logits->at(n * E + e);
    const double rms = std::sqrt(sum / static_cast<double>(E));
    for (std::int64_t e = 0; e < E; ++e)
      slack.push_back(kElementFactor * unit * (rms + std::fabs(logits->at(n * E + e))));
  }
  const TensorView& bias = weights->layers[static_cast<std::size_t>(layer_of(tap))].e_score_correction_bias;
  for (const Choice choice : judge_choices(got, want->view(), logits->view(), slack, config, bias))
    result.tied.push_back(choice == Choice::tie);
  const Tensor settled = replace_rows(got, want->view(), result.tied);
  result.comparison = compare_exact(std::string(tap), settled.view(), want->view());
  return result;
}

Precision precision_of(const Options& options) {
  Precision p(options.dtype == DType::f32 ? DType::f32 : DType::bf16, options.kv_dtype);
  p.roundings = is_quantised(options.dtype) ? 2 : 1;
  return p;
}

DerivedBound bound_at(std::string_view tap, const Config& config, Precision stored, std::int64_t total) {
  const std::int64_t reduction = reduction_length(tap, config, total);
  if (stored.activations == DType::f64) return {DType::f64, reduction, DType::f64};
  DType dtype = is_f32_op(tap) ? DType::f32 : stored.activations;
  if (tap.find(".cache.") != std::string_view::npos) dtype = stored.kv_cache;
  if (tap.ends_with(".attn_output") && storage_unit(stored.kv_cache) > storage_unit(dtype)) dtype = stored.kv_cache;
  return {dtype, reduction, DType::f32, dtype == DType::bf16 ? stored.roundings : 1};
}

std::string cache_tap(std::int64_t layer, std::string_view part) {
  return concat("layers.", layer, ".self_attn.cache.", part);
}

std::vector<std::string> with_cached_rows(const RecordingSink& recording, const Config& config) {
  std::vector<std::string> order;
  for (const std::string& tap : recording.order()) {
    if (tap.ends_with(".attn_output"))
      for (const CachePart& part : cache_parts(config)) order.push_back(cache_tap(layer_of(tap), part.name));
    order.push_back(tap);
  }
  return order;
}

AccumulatedBound::AccumulatedBound(const std::vector<std::string>& order, const RecordingSink& recording,
                                   const Config& config, Precision stored, std::int64_t total) {
  double squares = 0, condition = 1;
  std::int64_t count = 0;
  for (const std::string& tap : order) {
    const double op = bound_at(tap, config, stored, total).unit();
    squares += op * op;
    if (tap.ends_with(".gate.logits")) {
      const Tensor* logits = recording.find(tap);
      for (std::int64_t i = 0; i < logits->size(); ++i) condition = std::max(condition, std::fabs(logits->at(i)));
    }
    const bool behind_gate = tap.ends_with(".gate.topk_weight") || tap.ends_with("experts") || tap.ends_with(".mlp");
    steps_[tap] = {std::sqrt(squares), behind_gate ? condition : 1, ++count};
    if (is_layer(tap)) condition = 1;
  }
}

const AccumulatedBound::Step& AccumulatedBound::at(std::string_view tap) const {
  const auto it = steps_.find(tap);
  DSV2_CHECK(it != steps_.end(), tap, ": not recorded");
  return it->second;
}

double AccumulatedBound::unit(std::string_view tap) const { return at(tap).unit * at(tap).condition; }

std::string AccumulatedBound::words(std::string_view tap) const {
  const Step& step = at(tap);
  std::string text = concat("sqrt(sum of (u(dtype) + sqrt(n) u(f32))^2 over the ", step.count, " ops up to here)");
  if (step.condition > 1) text += concat(" x ", step.condition, ", the gate's largest logit,");
  return text;
}

std::int64_t layer_of(std::string_view tap) {
  constexpr std::string_view kPrefix = "layers.";
  std::int64_t layer = -1;
  if (tap.starts_with(kPrefix)) std::from_chars(tap.data() + kPrefix.size(), tap.data() + tap.size(), layer);
  return layer;
}

bool located_at(std::string_view op, std::string_view tap) {
  return std::any_of(std::begin(kPlaces), std::end(kPlaces),
                     [&](const Place& p) { return p.op == op && shows_at(p, tap); });
}

std::vector<std::string_view> ops_at(std::string_view tap, const Config& config) {
  std::vector<std::string_view> ops;
  for (const Place& p : kPlaces) {
    const bool mla_only = tap.ends_with(".attn_output") && p.op != "attention";
    if (shows_at(p, tap) && !p.fused && (config.use_mla || !mla_only)) ops.push_back(p.op);
  }
  return ops;
}

void ForcingSink::tap(std::string_view name, const TensorView& view, void* data) {
  seen_.emplace(name);
  const Tensor* right = right_.find(name);
  if (!right) return;  // the reference has no such intermediate: a fused op's own
  Comparison c;
  if (view.dtype == DType::i64) {
    RoutingComparison routing =
        compare_routing(name, view, right_,
                        bound_at(concat(name.substr(0, name.rfind('.')), ".logits"), config_, stored_, total_).unit(),
                        config_, weights_);
    c = std::move(routing.comparison);
    tied_ = std::move(routing.tied);
    ties_ += std::count(tied_.begin(), tied_.end(), true);
  } else {
    Tensor own;
    TensorView got = view;
    if (name.ends_with(".gate.topk_weight") && ties_ > 0) {
      own = replace_rows(view, right->view(), tied_);
      got = own.view();
    }
    c = compare_derived(std::string(name), got, right->view(), bound_at(name, config_, stored_, total_));
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
