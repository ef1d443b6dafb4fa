// Executes a golden case on a backend and compares everything that it can.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "harness/golden_case.h"
#include "harness/report.h"
#include "model/decoder.h"

namespace dsv2::harness {

/// Which rule judges (DESIGN section 5): golden's float32 rule, or low precision against the double reference.
struct CaseOptions {
  Options decoder;   ///< dtype, KV dtype, threads, ISA, ...
  bool taps = true;  ///< also judge each op alone against the double reference (backends other than it)
};

/// Runs `golden` on `backend`: one record per phase that occurs (calls of several tokens, calls and generation steps of
/// one). Each call runs twice: once as in production, whose logits, hidden state, loss and cache are compared, and once
/// with everything reported, whose hidden states, attentions and router decisions are compared; with `taps` a third
/// time, where each intermediate is compared with the double reference's and then replaced by it, so that every op is
/// judged on its own. A refused input gives one record of status error.
std::vector<Record> run_case(const GoldenCase& golden, const Backend& backend, const CaseOptions& options);

}  // namespace dsv2::harness
