// What must hold of a decoder without anybody's answer: two ways to ask the same question give the same.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "harness/report.h"
#include "model/decoder.h"

namespace dsv2::harness {

/// The decoder that properties are checked of.
struct Subject {
  std::string name;  ///< of the preset or checkpoint
  Config config;
  std::shared_ptr<const Weights> weights;
  std::uint64_t seed = 1;  ///< inputs are drawn from it
  std::string backend;
  Options options;
  std::function<std::unique_ptr<Decoder>(const Config&, std::shared_ptr<const Weights>, const Options&)> make;
  decltype(Backend::findings) findings = nullptr;  ///< as the backend has it
  /// The backend promises that a result depends neither on threads nor on other sequences of the batch: what differs in
  /// those alone is compared bit by bit.
  bool independent = false;
  std::optional<std::string> no_expanded;  ///< why it lacks that form of MLA
  std::optional<std::string> unable;       ///< why the backend cannot run this model so: every property is skipped
};
/// Of a backend's own create, with what its header promises.
Subject subject_of(const Backend& backend, std::string name, const Config& config,
                   std::shared_ptr<const Weights> weights, std::uint64_t seed, const Options& options);

/// The names, in the order in which they are checked: "prefill = chunked prefill", ...
std::vector<std::string_view> metamorphic_properties();

/// One record for each property whose record name, "NAME/PROPERTY", is `wanted`. Skipped, with the reason, where a
/// property does not hold by definition or the model has no such thing. Each draws its inputs anew from the seed, so
/// that it gives the same alone and among the others.
///
/// Two ways that execute the same operations must agree in every bit. Two ways that sum in another order must agree
/// within AccumulatedBound (harness/taps.h) times the root of 2, since both may err. A token whose experts differ where
/// rounding may decide (harness/routing.h) continues with those of the first way and is counted as a tie.
std::vector<Record> check_metamorphic(const Subject& subject, const std::function<bool(std::string_view)>& wanted);

/// A line for each model, backend and dtype; with `verbose` one for each property. Those that did not pass are told.
void print_metamorphic(std::span<const Record> records, bool verbose, std::ostream& out);

/// The weights with the experts of every MoE layer in another order: expert i of the new one is `order[i]` of the old.
/// Gate rows and correction biases move along; all else is the memory of `weights`, which is kept alive.
std::shared_ptr<const Weights> with_experts_in_order(std::shared_ptr<const Weights> weights,
                                                     const std::vector<std::int64_t>& order);

}  // namespace dsv2::harness
