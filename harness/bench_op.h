// Op cases, timed: checked before and after.
#pragma once

#include "harness/op_cases.h"
#include "harness/report.h"
#include "harness/roof.h"
#include "harness/run_op.h"
#include "harness/timing.h"

namespace dsv2::harness {

/// Checks and times one case on one backend. Warm: what the caches hold stays there, and where matrices, cached rows
/// and activations fit in them, memory is no roof. Cold: they are flushed before each run, and the name ends in /cold.
/// The record fails, and has no speed, where an output is wrong before or after, where timed outputs do not follow
/// their inputs, and where the median is faster than the roof.
Record bench_op(OpRun& run, const Backend& backend, const Options& options, const TimingOptions& timing,
                MeasuredLimits& limits);

/// What `dsv2 bench --op` takes without a filter: real widths, normal activations, causal.
bool is_timed_by_default(const OpCase& op_case);

}  // namespace dsv2::harness
