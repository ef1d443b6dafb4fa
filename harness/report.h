// One record per piece of work, one report per run: what was checked, how near the bound it came, what it cost.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/command.h"
#include "harness/compare.h"
#include "harness/json.h"
#include "harness/machine.h"
#include "harness/statistics.h"
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

/// Correctness, FLOPs, bytes and time of the same work at the same shape. Speeds derive from the samples when the
/// record is written, and are null unless status is passed.
struct Record {
  std::string name;   ///< full name: reproduces the line with --filter
  std::string op;     ///< "decoder" for whole forward passes
  std::string phase;  ///< prefill, decode, op; empty where neither applies
  std::string backend, dtype, kv_dtype;
  std::optional<std::int64_t> batch, prompt, depth;
  std::optional<std::uint64_t> seed;

  Status status = Status::skipped;
  std::string reason;                ///< empty when passed
  std::string coverage;              ///< what was compared with what
  std::int64_t compared = 0;         ///< tensors compared
  double budget_used = 0;            ///< worst share of any bound
  std::string worst;                 ///< the tensor with that share
  std::vector<Comparison> failures;  ///< in the order met: the first is the first divergence
  std::int64_t ties = 0;             ///< routing or token decisions that differed within the bound
  std::int64_t rows_left_out = 0;    ///< low precision: rows from a changed expert on

  std::optional<double> flops;  ///< of one sample
  std::optional<Bytes> bytes;   ///< of one sample
  std::optional<std::int64_t> kv_bytes, resident_memory_bytes, peak_memory_bytes;
  std::optional<double> tokens;  ///< processed by one sample, over the batch
  std::vector<std::int64_t> samples_ns;
  std::optional<double> noise_floor;  ///< largest relative difference of medians between repeats of the measurement
  Conditions conditions;              ///< under which it was timed
  std::optional<double> share_of_roof;
  std::string roof;  ///< what that share refers to

  /// Books one comparison: status becomes passed or failed, and failures keeps what failed.
  void add(const Comparison& comparison);
  double median_ns() const;
  Quartiles quartiles_ns() const;  ///< throws Error without samples
  Json to_json() const;
};

struct Report {
  std::vector<std::string> argv;
  std::optional<std::uint64_t> seed;
  MachineLimits limits;
  int threads = 0;
  Json model;  ///< config and checkpoint identity; null for check, whose records name their cases
  std::vector<Record> records;

  Json to_json() const;
  /// passed, wrong, bad_input or nothing_checked, from the records' states: a failure outweighs a refused input.
  ExitCode exit_code() const;
};

/// A report from a file. Throws Error naming the file: not JSON, not a report of dsv2, of another schema version, or
/// without what reports/schema.json requires of machine and records.
Json read_report(const std::filesystem::path& file);

/// "now" as ISO 8601 in UTC.
std::string timestamp();

}  // namespace dsv2::harness
