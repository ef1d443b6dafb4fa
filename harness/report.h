// One record per piece of work, one report per run: what was checked, how near the bound it came, what it cost.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "harness/command.h"
#include "harness/compare.h"
#include "harness/json.h"
#include "harness/machine.h"
#include "harness/memory_needs.h"
#include "harness/statistics.h"
#include "harness/timing.h"
#include "model/cost.h"

namespace dsv2::harness {

/// Version of the report's schema (reports/schema.json); grows when a key changes its meaning or goes away.
inline constexpr int kReportSchemaVersion = 1;

enum class Status : std::uint8_t {
  passed,
  failed,   ///< a comparison was out of bound
  skipped,  ///< nothing was checked; reason says why
  error,    ///< the input was refused; reason says why
};
std::string_view name(Status);

/// How much of its budget one op used: a row of `dsv2 check --bisect`.
struct OpShare {
  std::string call;
  std::int64_t layer = -1;  ///< -1: before or behind the layers
  std::string op;           ///< as in model/taps.h
  std::vector<std::string> kernels;
  bool passed = true;
  std::optional<double> local, accumulated;  ///< absent: not compared
};

/// One op of a profiled step (harness/trace.h), added up over the layers.
struct OpTime {
  std::string name;        ///< "self_attn.o_proj"
  std::string op;          ///< the project's name of the kernel: "linear"; empty where Cost has none
  std::int64_t count = 0;  ///< layers that have it; 1 for what surrounds them
  std::int64_t time_ns = 0;
  double flops = 0;
  Bytes bytes = {};
};
Json bytes_json(const Bytes& bytes);

/// Correctness, FLOPs, bytes and time of the same work at the same shape. Speeds derive from the samples when the
/// record is written, and are null unless status is passed.
struct Record {
  std::string name;   ///< full name: reproduces the line with --filter
  std::string op;     ///< "decoder" for whole forward passes
  std::string phase;  ///< prefill, decode, op; empty where neither applies
  std::string backend, dtype, kv_dtype;
  std::optional<std::int64_t> batch, prompt, depth;
  std::optional<std::uint64_t> seed;
  std::optional<int> threads;  ///< that the work ran on

  Status status = Status::skipped;
  std::string reason;                 ///< empty when passed
  std::string coverage;               ///< what was compared with what
  Json modelled = nullptr;            ///< of a simulated backend, instead of samples (harness/modelled.h)
  Json ocr = nullptr;                 ///< of --task ocr: what was read (harness/ocr_task.h)
  std::int64_t compared = 0;          ///< tensors compared
  double budget_used = 0;             ///< worst share of any bound
  std::string worst;                  ///< the tensor with that share
  std::vector<Comparison> failures;   ///< in the order met: the first is the first divergence
  std::vector<OpShare> bisect;        ///< in the order computed; empty but for --bisect
  std::int64_t ties = 0;              ///< routing or token decisions that differed within the bound
  std::int64_t rows_left_out = 0;     ///< low precision: rows from a changed expert on
  std::optional<double> loss_to_f32;  ///< int8, int4: relative L2 of the logits from the golden ones in f32; not judged

  std::optional<double> flops;  ///< of one sample
  std::optional<Bytes> bytes;   ///< of one sample
  std::optional<std::int64_t> kv_bytes, resident_memory_bytes, peak_memory_bytes;
  std::optional<MemoryNeeds> predicted_memory;       ///< of weights and cache, to hold against the resident memory
  std::optional<std::int64_t> allocator_peak_bytes;  ///< highest allocator_bytes() seen after a timed run
  std::optional<double> tokens;                      ///< processed by one sample, over the batch
  std::vector<std::int64_t> samples_ns;
  std::optional<Sampling> sampling;   ///< how the samples came about
  std::optional<double> noise_floor;  ///< largest relative difference of medians between repeats of the measurement
  Conditions conditions;              ///< under which it was timed
  std::optional<double> share_of_roof;
  std::string roof;         ///< what that share refers to
  std::vector<OpTime> ops;  ///< of one more sample, by op, slowed a little by being watched; empty when not profiled

  /// Worst share of a bound by op, and by layer, in the order met.
  std::vector<std::pair<std::string, double>> budget_by_op;
  std::map<std::int64_t, double> budget_by_layer;

  /// Books one comparison: status becomes passed or failed, and failures keeps what failed.
  void add(const Comparison& comparison);
  double median_ns() const;
  Quartiles quartiles_ns() const;  ///< throws Error without samples
  Json to_json() const;
};

/// One wrong kernel of selftest, in one dtype.
struct FaultResult {
  std::string name, op, dtype;
  std::optional<Comparison> caught_by;      ///< the first comparison that rejected it
  bool located = false;                     ///< an error in `op` could show first there
  std::optional<std::string> op_case = {};  ///< an op case that rejects it; absent: a mistake of who calls the kernel
};

/// What selftest found: is the gate itself to be trusted?
struct GateTest {
  std::vector<FaultResult> faults;
  std::int64_t seeds = 0, false_alarms = 0;  ///< right kernels on this many random models, and rejections of them
  bool passed() const;
};

struct Report {
  std::vector<std::string> argv;
  std::optional<std::uint64_t> seed;
  MachineLimits limits;  ///< zeros: not measured, where nothing is timed
  int threads = 0;
  bool pinned = false;  ///< each thread to a core of its own
  Json model;           ///< config and checkpoint identity; null for check, whose records name their cases
  std::vector<Record> records;
  std::optional<GateTest> gate_test;

  Json to_json() const;
  /// passed, wrong, bad_input or nothing_checked, from the records' states and the gate's test: a failure outweighs a
  /// refused input.
  ExitCode exit_code() const;
};

/// A report from a file. Throws Error naming the file: not JSON, not a report of dsv2, of another schema version, or
/// without what reports/schema.json requires of machine and records.
Json read_report(const std::filesystem::path& file);

/// "now" as ISO 8601 in UTC.
std::string timestamp();

}  // namespace dsv2::harness
