// Tap sinks: record what a decoder computes, or judge each op alone against a recording.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "harness/compare.h"
#include "model/config.h"
#include "model/decoder.h"
#include "model/taps.h"
#include "model/weights.h"

namespace dsv2::harness {

/// Copies of the taps whose names it wants, by name.
class RecordingSink final : public TapSink {
 public:
  using Filter = std::function<bool(std::string_view name)>;
  explicit RecordingSink(Filter wants = {}) : wants_(std::move(wants)) {}
  void tap(std::string_view name, const TensorView& view, void* data) override;

  const Tensor* find(std::string_view name) const;
  const std::map<std::string, Tensor, std::less<>>& all() const { return tensors_; }
  /// Names in the order in which the decoder first reported them.
  const std::vector<std::string>& order() const { return order_; }

 private:
  Filter wants_;
  std::vector<std::string> order_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

/// What a decoder stores; sums are f32, but for a decoder that is f64 throughout.
struct Precision {
  DType activations = DType::f32, kv_cache = DType::f32;
  int roundings = 1;  ///< of what meets in a product: 2 where the matrix is rounded to the dtype of activations, too
  Precision(DType both) : activations(both), kv_cache(both) {}  // NOLINT(google-explicit-constructor): the usual case
  Precision(DType of_activations, DType of_kv_cache) : activations(of_activations), kv_cache(of_kv_cache) {}
};

/// Of a decoder with these options. int8 and int4 matrices meet many rows in bf16, both rounded to it.
Precision precision_of(const Options& options);

/// Compares each tap with the recording of a decoder that is right, then overwrites it with the recorded value, so that
/// the next op starts from the right input: what is compared is the error of one op, not of all before it.
class ForcingSink final : public TapSink {
 public:
  /// `stored` is what the decoder under test stores; `total` is T, which attention sums over. With `weights`, a token
  /// whose experts differ where rounding may decide (harness/routing.h) is counted as a tie instead of failing.
  ForcingSink(const RecordingSink& right, const Config& config, Precision stored, std::int64_t total,
              const Weights* weights = nullptr)
      : right_(right), config_(config), stored_(stored), total_(total), weights_(weights) {}
  void tap(std::string_view name, const TensorView& view, void* data) override;

  /// In the order in which the decoder computed them.
  const std::vector<Comparison>& comparisons() const { return comparisons_; }
  /// Taps that every backend must report (model/taps.h) and this one did not.
  std::vector<std::string> missing() const;
  std::int64_t ties() const { return ties_; }

 private:
  const RecordingSink& right_;
  const Config& config_;
  Precision stored_;
  std::int64_t total_;
  const Weights* weights_;
  std::int64_t ties_ = 0;
  std::vector<bool> tied_;  // tokens of the layer at hand
  std::vector<Comparison> comparisons_;
  std::set<std::string, std::less<>> seen_;
};

/// gate.logits, topk_idx or topk_weight of some layer: what a RecordingSink keeps to compare routing.
bool is_router_tap(std::string_view tap);

/// A token that two decoders route differently.
struct RouteChange {
  std::int64_t layer;      ///< the first in which they do
  double logits_distance;  ///< relative L2 of the token's gate logits there: small, or the gate itself is wrong
};
/// Compares token `got_row` of one recording with token `want_row` of another; nullopt when every layer agrees. Throws
/// Error when a recording lacks a MoE layer's gate.
std::optional<RouteChange> route_change(const RecordingSink& got, std::int64_t got_row, const RecordingSink& want,
                                        std::int64_t want_row, const Config& config);

/// How many products the op behind a tap sums, from its tapped input on.
std::int64_t reduction_length(std::string_view tap, const Config& config, std::int64_t total);

/// A gate's choice of experts against the recorded one.
struct RoutingComparison {
  Comparison comparison;   ///< exact, but for the ties
  std::vector<bool> tied;  ///< [N]: other experts, which rounding may choose as well (harness/routing.h); or empty
};
/// `tap` is that of topk_idx; the logits of `right` may be off by what DerivedBound makes of `unit`. Without `weights`
/// nothing is a tie.
RoutingComparison compare_routing(std::string_view tap, const TensorView& got, const RecordingSink& right, double unit,
                                  const Config& config, const Weights* weights);

/// A copy of `got` with those of its `rows` (a flag each; of the leading dimension) taken from `right`.
Tensor replace_rows(const TensorView& got, const TensorView& right, const std::vector<bool>& rows);

/// What a decoder may be off by at this tap, from its tapped input on.
DerivedBound bound_at(std::string_view tap, const Config& config, Precision stored, std::int64_t total);

/// "layers.I.self_attn.cache.PART": what a layer cached, named like a tap.
std::string cache_tap(std::int64_t layer, std::string_view part);

/// The taps of a recording in its order, and before each attention what it reads from the cache.
std::vector<std::string> with_cached_rows(const RecordingSink& recording, const Config& config);

/// What a decoder that runs on its own numbers may be off by. Errors of independent roundings add up like a random
/// walk: the unit at a tap is the root of the sum of squares of the units of all ops up to it. The weights of a gate,
/// and with them the block's output, follow e^logit, which multiplies relative errors by the logit: there it is times
/// the largest one recorded.
class AccumulatedBound {
 public:
  /// `order`: of the ops, as with_cached_rows() gives them.
  AccumulatedBound(const std::vector<std::string>& order, const RecordingSink& recording, const Config& config,
                   Precision stored, std::int64_t total);
  double unit(std::string_view tap) const;        ///< for compare_derived()
  std::string words(std::string_view tap) const;  ///< what it is made of

 private:
  struct Step {
    double unit, condition;
    std::int64_t count;
  };
  const Step& at(std::string_view tap) const;
  std::map<std::string, Step, std::less<>> steps_;
};

/// The layer of a tap; -1 for embed_tokens, norm and the head.
std::int64_t layer_of(std::string_view tap);

/// Could an error in kernel `op` (a name in cpu::Kernels) show first at this tap, whatever the backend materialises?
bool located_at(std::string_view op, std::string_view tap);

/// The kernels between a tap and the one that the reference reports before it. What a layer caches counts as tapped
/// ("layers.I.self_attn.cache.key"). A backend that fuses ops has at each tap those of the taps it left out, too.
std::vector<std::string_view> ops_at(std::string_view tap, const Config& config);

}  // namespace dsv2::harness
