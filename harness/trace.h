// Where the time of one forward pass goes, op by op, and that as a trace that browsers open.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "harness/json.h"
#include "harness/report.h"
#include "model/cost.h"
#include "model/decoder.h"

namespace dsv2::harness {

/// One op of one layer, as a stretch of time. Outputs that one kernel computes together are one op: what an optimized
/// decoder fuses cannot be told apart, so the reference's are added up in the same way.
struct OpSpan {
  std::string name;  ///< "self_attn.qkv_proj", "mlp.experts", "lm_head": of Cost, fused ones by one name
  std::string op;    ///< the project's name of the kernel: "linear"
  std::optional<std::int64_t> layer;      ///< of the layers; none for what surrounds them
  std::int64_t start_ns = 0, end_ns = 0;  ///< since the forward pass began
  double flops = 0;
  Bytes bytes = {};
  std::vector<std::string> taps = {};  ///< the outputs that came in it
};

/// A forward pass in which the clock is read at every tap: the time since the tap before belongs to the op whose output
/// is tapped. The first op's time holds the call's set-up. Taps cost time themselves (a name, and where an output is
/// kept packed its unpacking), so this is a run of its own, never a sample.
struct StepProfile {
  std::string name, backend, dtype;  ///< of the record
  std::string what;                  ///< "prefill, batch 1, 512 tokens"
  std::int64_t total_ns = 0;
  std::vector<OpSpan> spans;  ///< in order of time, one after the other

  /// Added up over the layers, by name, in the order of their first.
  std::vector<OpTime> by_op() const;
};

/// Runs `input` once (its own taps are replaced). `work` is what it does, for FLOPs and bytes.
StepProfile profile_step(Decoder& decoder, const ForwardInput& input, const Workload& work);

/// JSON in the trace event format, for ui.perfetto.dev and chrome://tracing: a process per backend and dtype, a thread
/// per step, each beginning at 0; forward > layer > self_attn, mlp > op, with FLOPs and bytes where Cost has them.
Json trace_of(std::span<const StepProfile> steps);

}  // namespace dsv2::harness
