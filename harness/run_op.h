// Runs op cases on backends: checked, and timed.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "harness/op_cases.h"
#include "harness/op_judge.h"
#include "harness/op_memory.h"
#include "harness/report.h"
#include "harness/timing.h"

namespace dsv2::harness {

/// The backend's row for an op; null where it has none. Host backends share argmax.
const OpKernel* find_op(const Backend& backend, std::string_view op);

/// The options of a case on a backend: its dtypes, the rest as given. The reference, which judges in double, is itself
/// tested as its twin in float.
Options op_options(const OpCase& op_case, const Backend& backend, Options given);

/// Times `work`, whose inputs change from run to run, and books samples in `record`.
using TimeOp = std::function<void(const Measured& work, Record& record)>;

/// A case with its inputs and what is right, drawn once for all backends.
class OpRun {
 public:
  OpRun(const OpCase& op_case, std::uint64_t seed);
  OpRun(const OpRun&) = delete;  // the judge looks into the problem
  OpRun& operator=(const OpRun&) = delete;

  /// Runs it twice, from memory poisoned in two ways: the outputs must be right (OpJudge), the same bits both times,
  /// nothing written behind them, and the inputs untouched. `time`, when given, is called between the two; the record
  /// fails when timed outputs do not follow their inputs. A simulated backend is counted instead, once (modelled.h).
  /// Status skipped, with the reason, where the backend lacks the op.
  Record on(const Backend& backend, const Options& options, const TimeOp& time = {});
  const OpProblem& problem() const { return problem_; }

 private:
  OpCase case_;
  std::uint64_t seed_;
  OpProblem problem_;
  std::uint64_t inputs_;  // what inputs() gave when they were new
  std::unique_ptr<const OpJudge> judge_;

  std::uint64_t inputs() const;
  void time_op(const std::function<void()>& run, PoisonedMemory& memory, const TimeOp& time, Record& record);
};

/// Which op cases a command takes.
struct OpChoice {
  std::vector<std::string> ops;                  ///< names, or "all"; throws Error naming --op for another
  std::vector<std::string> dtypes;               ///< of the arithmetic; empty: all
  std::function<bool(std::string_view)> wanted;  ///< by full name
};
std::vector<OpCase> chosen_cases(const OpChoice& choice);

/// One line for each op, place, backend and dtype (each case with `verbose`), then what failed with the command that
/// repeats it.
void print_op_table(const std::vector<Record>& records, bool verbose, std::ostream& out);

}  // namespace dsv2::harness
