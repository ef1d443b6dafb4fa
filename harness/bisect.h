// Where a decoder first goes wrong: every op against the double reference, alone and with all that came before it.
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

#include "harness/compare.h"
#include "harness/generate.h"
#include "harness/golden_case.h"
#include "harness/report.h"
#include "model/decoder.h"

namespace dsv2::harness {

/// What a decoder is run through: calls, executed in order, that share caches.
struct BisectWork {
  struct Call {
    std::string id;  ///< "full", "prefill"
    OwnedInput input;
    std::string cache;  ///< extended by every call that names it; empty: one of the call's own
    LegacyCache given;  ///< what that cache starts from at its first use; empty: nothing
  };
  std::string name;  ///< of the case, preset or checkpoint
  Config config;
  std::shared_ptr<const Weights> weights;
  std::optional<std::uint64_t> seed;  ///< of what was drawn
  std::vector<Call> calls;
};

/// The calls of a golden case, generations as a prefill and steps that are fed the case's own ids.
BisectWork bisect_work(const GoldenCase& golden);
/// Random ids from `seed`: a prefill of two sequences, the second padded on the left, and a decode step on its cache.
BisectWork bisect_work(std::string name, const Config& config, std::shared_ptr<const Weights> weights,
                       std::uint64_t seed);

/// Makes the decoder under test: a backend's create, or what a test puts in its place.
using MakeDecoder =
    std::function<std::unique_ptr<Decoder>(const Config&, std::shared_ptr<const Weights>, const Options&)>;

/// One intermediate of one call.
struct BisectOp {
  std::string call;                   ///< BisectWork::Call::id
  std::string tap;                    ///< as in model/taps.h, or "layers.I.self_attn.cache.key": what the layer cached
  std::vector<std::string_view> ops;  ///< kernels that lie between the tap before it and this one
  std::optional<Comparison> local;    ///< teacher-forced: the op had the reference's input
  std::optional<Comparison> accumulated;  ///< free-running: the op had what this decoder made
};

struct Bisection {
  std::vector<BisectOp> ops;     ///< in the reference's order, call after call
  std::int64_t ties = 0;         ///< tokens whose experts differ within the bound: continued with the reference's
  std::optional<Error> stopped;  ///< what the decoder threw: its first error ends it
  bool broke = false;            ///< and it was a BackendFault

  /// The first op out of its own budget, else the first whose accumulated error is; null when none is.
  const BisectOp* first_out() const;
  /// Whose own budget is used most, and whose accumulated one; null when nothing was compared.
  const BisectOp* worst_local() const;
  const BisectOp* worst_accumulated() const;
};

/// Runs each call twice on the decoder that `make` returns:
///
///   teacher-forced   starting from the reference's cache, every tap is compared and then replaced by the reference's,
///                    so what is judged is the op behind that tap alone: DerivedBound of its dtype and reduction.
///   free-running     nothing is replaced but experts that rounding may choose as well as the reference's, so that one
///                    flip does not poison what follows: AccumulatedBound.
///
/// The reference runs in double on the weights rounded to options.dtype, as the decoder under test does.
Bisection bisect(const BisectWork& work, const MakeDecoder& make, const Options& options);

/// A bisection and its record, "bisect/NAME", whose failures are what was out of budget: locally first.
struct Bisected {
  Record record;
  Bisection bisection;
};
Record bisect_record(const BisectWork& work, std::string_view backend, const Options& options,
                     const Bisection& bisection);
/// bisect() of a backend. Skipped, with the reason, where it is the reference itself or lacks what is asked for; an
/// input that is refused gives status error.
Bisected bisect_on(const Backend& backend, const BisectWork& work, const Options& options);

/// One line over all of them: "first out of budget: layers.3.self_attn.q_rope[0, 5, 2, 17] (rope) in tiny-mla prefill
/// on cpu f32: got 1.25, expected 1.5, 310 x the bound (teacher-forced)", or "no op out of budget: worst layers.2.mlp
/// 37 % (teacher-forced), lm_head 12 % (free-running)".
std::string verdict(std::span<const Bisected> all);

/// Worst shares of each layer; with `verbose` those of each op.
void print_bisection(const Bisected& bisected, bool verbose, std::ostream& out);

}  // namespace dsv2::harness
