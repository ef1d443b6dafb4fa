// Two reports held against each other, row by row: is the new one right where the base was, and is it slower?
//
// How a verdict is reached. The samples of one run are not independent: neighbours share the state of the caches, of
// the clock and of whatever else the machine does, and a second run of the same binary starts from another state. A
// plain test between two runs therefore "finds" differences where there are none. So a row is FASTER or SLOWER only
// when all of these agree:
// * The rank test (Mann & Whitney 1947) rejects, not "no difference", but "no difference beyond the noise floor", at
//   `alpha` after correction for the number of rows (Holm 1979). It sees at most kBlocks values a side, medians of
//   consecutive stretches: more samples of one process are more of the same, not more evidence.
// * The ratio of the medians and that of the lower quartiles are beyond the floor. Interference only ever adds time,
//   so the quick part of the samples tells slower code from a busier machine (Chen & Revels 2016).
// * The machine was in one state: threads did not wait for a core, an empty parallel region took about the same time
//   before and after the work in both runs, and the limits measured in both runs are about the same. Where a report
//   does not say, nothing follows from it.
// The floor is the largest of
// * kFloorFactor times the noise floor that the records store (how far repeats of one measurement lay apart), and
//   kFloorFactor times the drift within either run. Both are ranges of a few values, and the difference of two further
//   runs exceeds the range of three about every third time;
// * how far the machine's limits, measured in both runs, differ;
// * a least value, for what one process cannot show: memory layout (Mytkowicz et al. 2009), start-up (Kalibera & Jones
//   2013).
// A row is SAME when the interval of the shift (Hodges & Lehmann 1963: the inverted rank test) lies within the larger
// of the floor and the regression that is allowed, and the floor is narrow enough for that to mean something. It is
// UNDECIDED otherwise, with the reason.
#pragma once

#include <cstdint>
#include <optional>
#include <ostream>
#include <regex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "harness/command.h"
#include "harness/json.h"
#include "harness/report.h"
#include "harness/statistics.h"

namespace dsv2::harness {

/// Version of reports/compare.schema.json.
inline constexpr int kCompareSchemaVersion = 1;

inline constexpr std::size_t kBlocks = 16;
/// Least floor: of two runs whose records store one, of two that do not, of alternating rounds.
inline constexpr double kLeastFloorStored = 0.03, kLeastFloor = 0.05, kLeastFloorRounds = 0.02;
inline constexpr double kFloorFactor = 2;
/// A wider floor shows no two rows the same (unless a larger regression is allowed).
inline constexpr double kWidestFloor = 0.10;
/// Relative difference of a measured limit, or of an empty parallel region's time, above which the machine was in
/// another state, and nothing is decided.
inline constexpr double kOtherState = 0.25;
/// Share of the time in which threads wanted a core and did not get it, above which a record decides nothing.
inline constexpr double kBusyShare = 0.02;

enum class Verdict : std::uint8_t { faster, slower, same, undecided };
std::string_view name(Verdict);

/// Time of one row in one of the runs.
struct TimedRow {
  std::vector<double> samples_ns;     ///< in the order taken; above 0
  std::optional<double> noise_floor;  ///< as the record stores it
  Conditions conditions;
};

struct TimingPair {
  TimedRow base, next;
};

struct DecisionRules {
  double alpha = 0.01;           ///< chance of any wrong FASTER or SLOWER among all rows
  double max_regression = 0.05;  ///< relative; also the smallest difference that matters, which SAME excludes
  double limits_difference = 0;  ///< largest of the machine's measured limits between the two runs
  bool rounds = false;  ///< samples are one value a process, taken in turns: independent, no drift to allow for
};

struct Decision {
  Verdict verdict = Verdict::undecided;
  double base_ns = 0, next_ns = 0;               ///< medians
  double ratio = 1;                              ///< next_ns / base_ns
  double quick_ratio = 1;                        ///< of the lower quartiles
  ShiftRatio shift;                              ///< with the interval at confidence 1 - alpha / rows
  std::size_t base_values = 0, next_values = 0;  ///< that the test saw
  double waited_share = 0;                       ///< the larger one
  double state_difference = 0;  ///< largest among the machine's limits and the times of an empty parallel region
  double floor = 0;
  std::string_view floor_source;  ///< stored, drift, machine or least
  double p = 1, p_corrected = 1;  ///< of the hypothesis that the shift is within the floor
  bool beyond = false;            ///< SLOWER, and by more than max_regression
  std::string why;                ///< why UNDECIDED; else empty
};

/// One decision for each pair, corrected for their number. Throws Error for a side without samples.
std::vector<Decision> decide(std::span<const TimingPair> pairs, const DecisionRules& rules);

/// What became of a row's correctness.
enum class Correctness : std::uint8_t {
  kept,       ///< the same as it was, passed or not
  regressed,  ///< passed in the base, and now failed, error, skipped or absent
  mended,     ///< not passed in the base, passed now
  added,      ///< only in the new report
  gone,       ///< only in the base, where it was not passed either
};
std::string_view name(Correctness);

struct ComparedRow {
  std::string name;  ///< the record's; where that does not say phase, backend and dtype, with them
  Correctness correctness = Correctness::kept;
  std::optional<Status> base_status, next_status;  ///< nullopt: absent
  std::string reason;                              ///< of the new record that is not passed
  std::optional<double> base_budget, next_budget;
  bool budget_rose = false;                ///< by more than a twentieth of the bound and a quarter of what it was
  std::optional<double> base_ns, next_ns;  ///< medians, where the record has them
  std::optional<Decision> decision;        ///< where both are passed and timed and did the same work
  std::string why;                         ///< why there is no decision, or none was reached

  Verdict verdict() const { return decision ? decision->verdict : Verdict::undecided; }
};

/// Where one of the two reports came from.
struct ComparedSource {
  std::string label;  ///< file or binary
  std::string version, time;
  std::vector<std::string> argv;
};

struct CompareOptions {
  DecisionRules rules;
  std::optional<std::regex> filter;  ///< only rows whose name it finds
};

/// Rows sorted: correctness regressions first, then by verdict (SLOWER, UNDECIDED, SAME, FASTER) and ratio.
struct RunComparison {
  ComparedSource base, next;
  DecisionRules rules;
  std::vector<std::string> warnings;  ///< machines, builds or models that differ: one line each, which names both
  std::vector<ComparedRow> rows;
  Json interleave;  ///< rounds, seed and order; null for two reports

  Json to_json(const std::vector<std::string>& argv) const;
  void print(std::ostream& out) const;           ///< a table for people
  void print_markdown(std::ostream& out) const;  ///< the same for a pull request
  std::string summary() const;                   ///< one line of counts
  bool any_common() const;                       ///< whether any row is in both
  /// wrong: a correctness regression; nothing_checked: no row is in both, or none is passed in both; slower: a row
  /// beyond max_regression.
  ExitCode exit_code() const;
};

/// `base` and `next` as read_report() gives them; the labels go into messages. Throws Error naming label and record for
/// a value of a wrong type or sign.
RunComparison compare_runs(const Json& base, std::string base_label, const Json& next, std::string next_label,
                           const CompareOptions& options);

/// The reports of several rounds of one binary as one: the median of each round is a sample, the worst status and the
/// largest budget count. Throws Error for an empty list.
Json pool_rounds(const std::vector<Json>& reports);

}  // namespace dsv2::harness
