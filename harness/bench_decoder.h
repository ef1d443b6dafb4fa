// Prefill and decode of a whole decoder, timed: checked before and after, with new inputs in every run.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "harness/report.h"
#include "harness/roof.h"
#include "harness/timing.h"
#include "harness/trace.h"
#include "model/config.h"
#include "model/decoder.h"
#include "model/weights.h"

namespace dsv2::harness {

/// What all rows of a run share.
struct DecoderBenchOptions {
  std::uint64_t seed = 1;      ///< of the inputs
  std::int64_t generate = 64;  ///< decode steps in one repetition
  TimingOptions timing;        ///< fixed_samples counts repetitions here; round and repeat_short are the bench's own
};

/// One row: which decoder does what. `options.threads` is what it may use; the reference has one thread all the same.
struct DecoderRow {
  std::string name = {};  ///< full name, as decoder_row_name() makes it
  const Backend* backend = nullptr;
  Options options = {};
  std::int64_t batch = 1;
  std::optional<std::int64_t> prompt = {};  ///< S of a prefill; a decode row has none
  std::int64_t depth = 0;                   ///< tokens in the cache when decoding starts
};
/// Keys of one sequence, at most: what the row's cache is made for.
std::int64_t context_of(const DecoderRow& row, std::int64_t generate);
/// New tokens of one sequence in the row's longest forward pass. A cache is filled in pieces: what a long prompt takes
/// at once is no part of a step.
std::int64_t longest_pass(const DecoderRow& row);
/// Bytes that checking the row takes for a while: its cache of `context` tokens in f32 as it is handed over, and the
/// oracle's in f64.
std::int64_t checking_bytes(const Config& config, const DecoderRow& row, std::int64_t context);
/// "tiny-mla/decode/cpu/bf16/kv_bf16/b1/d512", then "/t2" with `name_threads` and "/cold" for cold caches.
std::string decoder_row_name(const std::string& model, const DecoderRow& row, bool name_threads, bool cold);

/// A record with the row's identity, skipped for `reason`.
Record skipped_row(const DecoderRow& row, std::string reason);

/// One decoder and the oracle that judges it: the reference in double; for the reference itself, its float twin.
class DecoderBench {
 public:
  /// Makes both decoders and starts the memory's high-water mark. What is passed by reference must outlive this object.
  DecoderBench(const Config& config, const Backend& backend, std::shared_ptr<const Weights> weights,
               const Options& options, const DecoderBenchOptions& bench, MeasuredLimits& limits);

  /// Measures a row of this decoder (its backend and options are not looked at again). Inputs depend on the seed, the
  /// row and `block` alone, so a row is the same whichever others run. The record fails, and has no speed, where an
  /// output is wrong before or after, where timed outputs are not finite or do not depend on their inputs, and where
  /// the median is faster than the roof.
  Record measure(const DecoderRow& row, int block = 0);

  /// One step of each row measured so far, by op.
  const std::vector<StepProfile>& profiles() const { return profiles_; }

 private:
  class Work;

  const Config& config_;
  const Backend& backend_;
  Options options_;
  const DecoderBenchOptions& bench_;
  MeasuredLimits& limits_;
  std::shared_ptr<const Weights> weights_;
  DType stored_;  ///< of matrices in memory: what a run reads
  std::unique_ptr<Decoder> decoder_, oracle_;
  std::vector<StepProfile> profiles_;
};

}  // namespace dsv2::harness
