// Tap sinks: record what a decoder computes, or judge each op alone against a recording.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "harness/compare.h"
#include "model/config.h"
#include "model/taps.h"

namespace dsv2::harness {

/// Copies of the taps whose names it wants, by name.
class RecordingSink final : public TapSink {
 public:
  using Filter = std::function<bool(std::string_view name)>;
  explicit RecordingSink(Filter wants = {}) : wants_(std::move(wants)) {}
  void tap(std::string_view name, const TensorView& view, void* data) override;

  const Tensor* find(std::string_view name) const;
  const std::map<std::string, Tensor, std::less<>>& all() const { return tensors_; }

 private:
  Filter wants_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

/// Compares each tap with the recording of a decoder that is right, then overwrites it with the recorded value, so that
/// the next op starts from the right input: what is compared is the error of one op, not of all before it.
class ForcingSink final : public TapSink {
 public:
  /// `dtype` is what the decoder under test stores, `kv_dtype` what its cache does, which attention reads; `total` is
  /// T, which attention sums over.
  ForcingSink(const RecordingSink& right, const Config& config, DType dtype, std::int64_t total,
              DType kv_dtype = DType::f32)
      : right_(right), config_(config), dtype_(dtype), kv_dtype_(kv_dtype), total_(total) {}
  void tap(std::string_view name, const TensorView& view, void* data) override;

  /// In the order in which the decoder computed them.
  const std::vector<Comparison>& comparisons() const { return comparisons_; }
  /// Taps that every backend must report (model/taps.h) and this one did not.
  std::vector<std::string> missing() const;

 private:
  const RecordingSink& right_;
  const Config& config_;
  DType dtype_, kv_dtype_;
  std::int64_t total_;
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

}  // namespace dsv2::harness
