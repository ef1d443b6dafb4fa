#include "harness/compare_runs.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <sstream>

#include "harness/table.h"
#include "harness/version.h"

namespace dsv2::harness {
namespace {

constexpr double kBudgetRise = 0.05, kBudgetFactor = 1.25;  // of the bound; of what the base used

/// At most kBlocks values in place of `samples`: medians of consecutive stretches of about the same length.
std::vector<double> blocks(const std::vector<double>& samples) {
  if (samples.size() <= kBlocks) return samples;
  std::vector<double> medians;
  for (std::size_t i = 0; i < kBlocks; ++i)
    medians.push_back(median({samples.begin() + static_cast<std::ptrdiff_t>(samples.size() * i / kBlocks),
                              samples.begin() + static_cast<std::ptrdiff_t>(samples.size() * (i + 1) / kBlocks)}));
  return medians;
}

std::vector<double> scaled(std::vector<double> values, double factor) {
  for (double& v : values) v *= factor;
  return values;
}

/// The smallest p that `m` against `n` values can give: those of one side all above those of the other.
double least_p(std::size_t m, std::size_t n) {
  double arrangements = 1;
  for (std::size_t i = 1; i <= m; ++i) arrangements *= static_cast<double>(n + i) / static_cast<double>(i);
  return std::min(1.0, 2 / arrangements);
}

/// How far the machine's state differed over both runs, as far as the records and `rules` say.
double state_difference(const TimingPair& pair, const DecisionRules& rules) {
  double difference = rules.limits_difference;
  if (const auto& a = pair.base.conditions.fork_join_ns, &b = pair.next.conditions.fork_join_ns; a && b) {
    const auto [least, most] = std::minmax({(*a)[0], (*a)[1], (*b)[0], (*b)[1]});
    if (least > 0) difference = std::max(difference, most / least - 1);
  }
  return difference;
}

void set_floor(Decision& d, const TimingPair& pair, const DecisionRules& rules) {
  const bool stored = pair.base.noise_floor && pair.next.noise_floor;
  d.floor = rules.rounds ? kLeastFloorRounds : stored ? kLeastFloorStored : kLeastFloor;
  d.floor_source = "least";
  if (rules.rounds) return;
  const auto at_least = [&](double value, std::string_view source) {
    if (!(value > d.floor)) return;
    d.floor = value;
    d.floor_source = source;
  };
  for (const TimedRow* t : {&pair.base, &pair.next}) {
    at_least(kFloorFactor * t->noise_floor.value_or(0), "stored");
    at_least(kFloorFactor * drift(t->samples_ns), "drift");
  }
  at_least(rules.limits_difference, "machine");
}

/// Whether `ratio` lies beyond the band from 1/(1 + width) to 1 + width, on the side where `slower` says.
bool beyond(double ratio, double width, bool slower) { return (slower ? ratio : 1 / ratio) > 1 + width; }

/// Everything but the verdict, which waits for the correction over all rows.
Decision measure(const TimingPair& pair, const DecisionRules& rules, double confidence) {
  Decision d;
  const Quartiles base = quartiles(pair.base.samples_ns), next = quartiles(pair.next.samples_ns);
  d.base_ns = base.median;
  d.next_ns = next.median;
  d.ratio = next.median / base.median;
  d.quick_ratio = next.lower / base.lower;
  const std::vector<double> a = blocks(pair.base.samples_ns), b = blocks(pair.next.samples_ns);
  d.base_values = a.size();
  d.next_values = b.size();
  d.shift = shift_ratio(a, b, confidence);
  set_floor(d, pair, rules);
  if (!rules.rounds) {  // which meet every state in turn
    d.waited_share =
        std::max(pair.base.conditions.waited_share.value_or(0), pair.next.conditions.waited_share.value_or(0));
    d.state_difference = state_difference(pair, rules);
  }
  const bool slower = d.shift.ratio > 1;
  if (beyond(d.shift.ratio, d.floor, slower))
    d.p = mann_whitney(scaled(a, slower ? 1 + d.floor : 1 / (1 + d.floor)), b).p;
  return d;
}

std::string too_few(const Decision& d, std::size_t rows, double alpha) {
  std::size_t needed = 2;
  while (least_p(needed, needed) * static_cast<double>(rows) >= alpha) ++needed;
  return concat("too few samples: ", d.base_values, " against ", d.next_values, ", expected at least ", needed,
                " a side for ", rows, rows == 1 ? " row" : " rows");
}

void conclude(Decision& d, const DecisionRules& rules, std::size_t rows) {
  const double margin = std::max(d.floor, rules.max_regression), widest = std::max(kWidestFloor, rules.max_regression);
  const bool slower = d.shift.ratio > 1, rejected = d.p_corrected < rules.alpha;
  if (d.waited_share > kBusyShare) {
    d.why = "the machine was busy: threads waited for a core";
  } else if (d.state_difference > kOtherState) {
    d.why = "the machine was not in one state";
  } else if (rejected && beyond(d.ratio, d.floor, slower) && beyond(d.quick_ratio, d.floor, slower)) {
    d.verdict = slower ? Verdict::slower : Verdict::faster;
    d.beyond = slower && d.ratio > 1 + rules.max_regression;
  } else if (margin <= widest && d.shift.low >= 1 / (1 + margin) && d.shift.high <= 1 + margin) {
    d.verdict = Verdict::same;
  } else if (least_p(d.base_values, d.next_values) * static_cast<double>(rows) >= rules.alpha) {
    d.why = too_few(d, rows, rules.alpha);
  } else if (rejected) {
    d.why =
        concat("only the slow part of the samples differs: lower quartiles by a factor of ", fixed(d.quick_ratio, 3));
  } else if (margin > widest) {
    d.why = concat("the noise floor is wide: ", d.floor_source);
  } else {
    d.why = "the interval reaches over the edge of the noise floor";
  }
}

// ---- records ----

/// A record as this file reads it. Throws Error where a value is of a wrong type or sign.
struct Line {
  std::string name, phase, backend, dtype;
  Status status = Status::skipped;
  std::string reason;
  std::optional<double> budget, flops;
  std::optional<std::uint64_t> seed;
  TimedRow timing;

  std::string kind() const { return concat(phase, '/', backend, '/', dtype); }
  std::optional<double> median_ns() const {
    if (timing.samples_ns.empty()) return std::nullopt;
    return median(timing.samples_ns);
  }
};

std::optional<double> number_or_null(const Json& record, const char* key, const std::string& where) {
  if (!record.contains(key) || record[key].is_null()) return std::nullopt;
  const auto value = require<double>(record, key, where);
  DSV2_CHECK(value >= 0, where, ": ", key, ": expected at least 0, found ", value);
  return value;
}

std::string text_or_empty(const Json& record, const char* key, const std::string& where) {
  if (!record.contains(key) || record[key].is_null()) return {};
  return require<std::string>(record, key, where);
}

Status parse_status(const std::string& text, const std::string& where) {
  for (const Status s : {Status::passed, Status::failed, Status::skipped, Status::error})
    if (text == name(s)) return s;
  fail(where, ": status: expected passed, failed, skipped or error, found ", text);
}

Line read_line(const Json& record, const std::string& label) {
  Line line;
  line.name = require<std::string>(record, "name", label);
  const std::string where = concat(label, ": ", line.name);
  line.phase = text_or_empty(record, "phase", where);
  line.backend = text_or_empty(record, "backend", where);
  line.dtype = text_or_empty(record, "dtype", where);
  line.status = parse_status(require<std::string>(record, "status", where), where);
  line.reason = text_or_empty(record, "reason", where);
  line.budget = number_or_null(record, "budget_used", where);
  line.flops = number_or_null(record, "flops", where);
  if (record.contains("seed") && record["seed"].is_number_unsigned()) line.seed = record["seed"].get<std::uint64_t>();
  if (line.status != Status::passed) return line;  // no speed without correctness
  line.timing.noise_floor = number_or_null(record, "noise_floor", where);
  line.timing.conditions.waited_share = number_or_null(record, "waited_share", where);
  if (record.contains("fork_join_ns") && !record["fork_join_ns"].is_null())
    line.timing.conditions.fork_join_ns = require<std::array<double, 2>>(record, "fork_join_ns", where);
  if (record.contains("samples_ns")) line.timing.samples_ns = require<std::vector<double>>(record, "samples_ns", where);
  for (const double sample : line.timing.samples_ns)
    DSV2_CHECK(sample > 0, where, ": samples_ns: expected values above 0, found ", sample);
  return line;
}

using Lines = std::map<std::string, Line>;

/// Under the name alone where that is enough in both reports; else with phase, backend and dtype where the name does
/// not say them, and a number where even that comes twice.
class Naming {
 public:
  void see(const std::vector<Line>& lines) {
    std::map<std::string, int> count;
    for (const Line& line : lines) {
      kinds_[line.name].insert(line.kind());
      if (++count[line.name] > 1) repeated_.insert(line.name);
    }
  }
  Lines index(const std::vector<Line>& lines) const {
    Lines by_name;
    for (const Line& line : lines) {
      const std::string full = full_name(line);
      std::string unique = full;
      for (int i = 2; by_name.contains(unique); ++i) unique = concat(full, '#', i);
      by_name.emplace(std::move(unique), line);
    }
    return by_name;
  }

 private:
  std::string full_name(const Line& line) const {
    if (kinds_.at(line.name).size() == 1 && !repeated_.contains(line.name)) return line.name;
    std::string full = line.name;
    for (const std::string& part : {line.phase, line.backend, line.dtype})
      if (!part.empty() && concat('/', line.name, '/').find(concat('/', part, '/')) == std::string::npos)
        full += "/" + part;
    return full;
  }

  std::map<std::string, std::set<std::string>> kinds_;
  std::set<std::string> repeated_;
};

std::vector<Line> read_lines(const Json& report, const std::string& label) {
  std::vector<Line> lines;
  for (const Json& record : report.at("records")) lines.push_back(read_line(record, label));
  return lines;
}

Correctness correctness(const Line* base, const Line* next) {
  const bool was = base && base->status == Status::passed, is = next && next->status == Status::passed;
  if (was && !is) return Correctness::regressed;
  if (!base) return Correctness::added;
  if (!next) return Correctness::gone;
  return is && !was ? Correctness::mended : Correctness::kept;
}

ComparedRow compared_row(std::string name, const Line* base, const Line* next) {
  ComparedRow row;
  row.name = std::move(name);
  row.correctness = correctness(base, next);
  if (base) {
    row.base_status = base->status;
    row.base_budget = base->budget;
    row.base_ns = base->median_ns();
  }
  if (next) {
    row.next_status = next->status;
    row.next_budget = next->budget;
    row.next_ns = next->median_ns();
    row.reason = next->reason;
  }
  row.budget_rose = row.base_budget && row.next_budget && *row.next_budget - *row.base_budget > kBudgetRise &&
                    *row.next_budget > kBudgetFactor * *row.base_budget;
  if (!base) {
    row.why = "only in the new report";
  } else if (!next) {
    row.why = "only in the base";
  } else if (base->status != Status::passed || next->status != Status::passed) {
    row.why = concat("not passed in ", base->status == Status::passed   ? "the new report"
                                       : next->status == Status::passed ? "the base"
                                                                        : "both");
  } else if (!row.base_ns || !row.next_ns) {
    row.why = "not timed";
  } else if (base->flops && next->flops && std::fabs(*next->flops - *base->flops) > 1e-9 * *base->flops) {
    row.why = concat("not the same work: ", si(*base->flops, "FLOP"), " in the base, ", si(*next->flops, "FLOP"),
                     " in the new report");
  }
  return row;
}

// ---- what else differs ----

Json at_path(const Json& report, std::string_view path) {
  Json value = report;
  while (!path.empty()) {
    const std::string key(path.substr(0, path.find('.')));
    path.remove_prefix(std::min(path.size(), key.size() + 1));
    if (!value.is_object() || !value.contains(key)) return nullptr;
    value = Json(value[key]);
  }
  return value;
}

std::string shown(const Json& value) {
  if (value.is_null()) return "none";
  const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  return text.size() > 80 ? text.substr(0, 77) + "..." : text;
}

/// Relative difference of a limit that both runs measured; else 0.
double difference_at(const Json& base, const Json& next, const char* path) {
  const Json a = at_path(base, path), b = at_path(next, path);
  if (!a.is_number() || !b.is_number()) return 0;
  const double x = a.get<double>(), y = b.get<double>();
  return x > 0 && y > 0 ? std::max(x / y, y / x) - 1 : 0;
}

/// Sets the warnings and, in the rules of `c`, how far the machine's limits differ.
void compare_surroundings(const Json& base, const Json& next, RunComparison& c) {
  const auto warn_if_other = [&](const char* path) {
    const Json a = at_path(base, path), b = at_path(next, path);
    if (a == b) return false;
    c.warnings.push_back(a.is_object() || b.is_object()
                             ? concat(path, " differs between ", c.base.label, " and ", c.next.label)
                             : concat(path, ": base ", shown(a), ", new ", shown(b)));
    return true;
  };
  bool other = false;
  for (const char* path : {"machine.cpu", "machine.isa", "machine.cores", "machine.threads", "tool.compiler",
                           "tool.compile_flags", "tool.build_type"})
    other |= warn_if_other(path);
  for (const char* path : {"model.name", "model.config", "model.weights", "seed"}) warn_if_other(path);
  if (c.rules.rounds) return;  // each round meets the machine as it is
  double worst = 0;
  const char* where = nullptr;
  for (const char* path : {"machine.read_bandwidth_gb_s", "machine.peak_gflop_s.f32", "machine.peak_gflop_s.bf16",
                           "machine.peak_gflop_s.int8"}) {
    if (at_path(base, path).is_number() != at_path(next, path).is_number()) warn_if_other(path);
    const double difference = difference_at(base, next, path);
    if (difference > worst) {
      worst = difference;
      where = path;
    }
    if (other) continue;  // another machine or compiler measures other limits: that says nothing about noise
    c.rules.limits_difference = std::max(c.rules.limits_difference, difference);
  }
  if (worst > kOtherState)
    c.warnings.push_back(concat(where, ": base ", fixed(at_path(base, where).get<double>(), 1), ", new ",
                                fixed(at_path(next, where).get<double>(), 1)));
}

ComparedSource source(const Json& report, std::string label) {
  ComparedSource s;
  s.label = std::move(label);
  const Json version = at_path(report, "tool.version"), time = at_path(report, "time"), argv = at_path(report, "argv");
  if (version.is_string()) s.version = version.get<std::string>();
  if (time.is_string()) s.time = time.get<std::string>();
  if (argv.is_array())
    for (const Json& word : argv)
      if (word.is_string()) s.argv.push_back(word.get<std::string>());
  return s;
}

/// Regressions first, then from bad to good.
int severity(const ComparedRow& row) {
  if (row.correctness == Correctness::regressed) return 0;
  if (row.decision) {
    switch (row.verdict()) {
      case Verdict::slower:
        return 1;
      case Verdict::undecided:
        return 2;
      case Verdict::same:
        return 3;
      case Verdict::faster:
        return 4;
    }
  }
  return 5;
}

// ---- for people ----

std::string time_text(std::optional<double> ns) {
  if (!ns) return "";
  if (*ns < 1e3) return fixed(*ns, 0) + " ns";
  if (*ns < 1e6) return fixed(*ns / 1e3, *ns < 1e5 ? 2 : 1) + " us";
  if (*ns < 1e9) return fixed(*ns / 1e6, *ns < 1e8 ? 2 : 1) + " ms";
  return fixed(*ns / 1e9, 2) + " s";
}

std::string upper(std::string_view text) {
  std::string up(text);
  for (char& c : up) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return up;
}

std::string verdict_text(const ComparedRow& row) {
  if (row.correctness == Correctness::regressed) return row.next_status ? upper(name(*row.next_status)) : "ABSENT";
  if (row.correctness == Correctness::mended) return "mended";
  if (row.correctness == Correctness::added) return "new";
  if (row.correctness == Correctness::gone) return "gone";
  return row.decision && row.verdict() != Verdict::same ? upper(name(row.verdict())) : std::string(name(row.verdict()));
}

std::string interval_text(const Decision& d) {
  const bool open = !std::isfinite(d.shift.high);
  return concat(fixed(d.ratio, 3),
                open ? " [any]" : concat(" [", fixed(d.shift.low, 3), ", ", fixed(d.shift.high, 3), "]"));
}

std::string p_text(double p) {
  if (p >= 0.001) return fixed(p, 3);
  char text[32];
  std::snprintf(text, sizeof text, "%.0e", p);
  return text;
}

const std::vector<std::string> kColumns = {"verdict", "row", "base", "new", "ratio [interval]", "floor", "p"};

std::vector<std::string> cells(const ComparedRow& row) {
  std::vector<std::string> text = {verdict_text(row), row.name, time_text(row.base_ns), time_text(row.next_ns)};
  if (row.decision) {
    const Decision& d = *row.decision;
    for (std::string cell : {interval_text(d), percent(d.floor), p_text(d.p_corrected)})
      text.push_back(std::move(cell));
  } else {
    text.resize(kColumns.size());
  }
  return text;
}

/// Rows without a decision whose correctness did not change say nothing in a table.
bool listed(const ComparedRow& row) { return row.decision || row.correctness != Correctness::kept; }

/// What the table leaves out: one line each.
std::vector<std::string> remarks(const RunComparison& c) {
  std::vector<std::string> lines;
  std::map<std::string, std::vector<std::string>> undecided;
  for (const ComparedRow& row : c.rows) {
    if (row.correctness == Correctness::regressed)
      lines.push_back(concat("wrong: ", row.name, ": passed in the base, ",
                             row.next_status ? concat(name(*row.next_status), ": ", row.reason) : "absent now"));
    else if (row.next_status && *row.next_status != Status::passed && row.correctness == Correctness::added)
      lines.push_back(concat("new and ", name(*row.next_status), ": ", row.name, ": ", row.reason));
    if (!row.why.empty() && (row.decision || (row.base_ns && row.next_ns))) undecided[row.why].push_back(row.name);
  }
  for (const ComparedRow& row : c.rows)
    if (row.budget_rose)
      lines.push_back(concat("drift: ", row.name, ": error budget used ", percent(*row.base_budget), " in the base, ",
                             percent(*row.next_budget), " now"));
  for (const auto& [why, names] : undecided)
    lines.push_back(
        concat("undecided: ", names.size() == 1 ? names.front() : concat(names.size(), " rows"), ": ", why));
  const auto wide = std::count_if(c.rows.begin(), c.rows.end(), [&](const ComparedRow& row) {
    return row.decision && row.decision->floor > c.rules.max_regression && row.verdict() == Verdict::same;
  });
  if (wide)
    lines.push_back(concat("wide: ", wide, wide == 1 ? " row is" : " rows are", " the same within a noise floor above ",
                           percent(c.rules.max_regression), ": a regression below that floor is not seen"));
  return lines;
}

Json optional_json(const std::optional<double>& value) { return value ? finite_or_null(*value) : Json(nullptr); }
Json status_json(const std::optional<Status>& status) { return status ? Json(name(*status)) : Json(nullptr); }

Json row_json(const ComparedRow& row) {
  Json j;
  j["name"] = row.name;
  j["base"] = optional_json(row.base_ns);
  j["new"] = optional_json(row.next_ns);
  j["ratio"] = row.decision ? finite_or_null(row.decision->ratio) : Json(nullptr);
  j["verdict"] = name(row.verdict());
  j["why"] = row.why.empty() ? Json(nullptr) : Json(row.why);
  j["correctness"] = name(row.correctness);
  j["base_status"] = status_json(row.base_status);
  j["new_status"] = status_json(row.next_status);
  j["reason"] = row.reason.empty() ? Json(nullptr) : Json(row.reason);
  j["base_budget_used"] = optional_json(row.base_budget);
  j["new_budget_used"] = optional_json(row.next_budget);
  j["budget_rose"] = row.budget_rose;
  const Decision none, &d = row.decision ? *row.decision : none;
  const auto value = [&](Json v) { return row.decision ? std::move(v) : Json(nullptr); };
  j["beyond_max_regression"] = d.beyond;
  j["shift"] = value(finite_or_null(d.shift.ratio));
  j["interval"] = value({d.shift.low > 0 ? finite_or_null(d.shift.low) : Json(nullptr), finite_or_null(d.shift.high)});
  j["lower_quartile_ratio"] = value(finite_or_null(d.quick_ratio));
  j["p"] = value(d.p);
  j["p_corrected"] = value(d.p_corrected);
  j["floor"] = value(finite_or_null(d.floor));
  j["floor_source"] = value(d.floor_source);
  j["waited_share"] = value(d.waited_share);
  j["state_difference"] = value(finite_or_null(d.state_difference));
  j["base_values"] = value(d.base_values);
  j["new_values"] = value(d.next_values);
  return j;
}

Json source_json(const ComparedSource& s) {
  return {{"label", s.label}, {"version", s.version}, {"time", s.time}, {"argv", s.argv}};
}

std::string markdown_cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|' || c == '\\') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

}  // namespace

std::string_view name(Verdict v) {
  constexpr std::string_view kNames[] = {"faster", "slower", "same", "undecided"};
  return kNames[static_cast<std::size_t>(v)];
}

std::string_view name(Correctness c) {
  constexpr std::string_view kNames[] = {"kept", "regressed", "mended", "added", "gone"};
  return kNames[static_cast<std::size_t>(c)];
}

std::vector<Decision> decide(std::span<const TimingPair> pairs, const DecisionRules& rules) {
  std::vector<Decision> decisions;
  std::vector<double> p;
  const double confidence = 1 - rules.alpha / static_cast<double>(std::max<std::size_t>(pairs.size(), 1));
  for (const TimingPair& pair : pairs) {
    decisions.push_back(measure(pair, rules, confidence));
    p.push_back(decisions.back().p);
  }
  const std::vector<double> corrected = holm(p);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    decisions[i].p_corrected = corrected[i];
    conclude(decisions[i], rules, pairs.size());
  }
  return decisions;
}

RunComparison compare_runs(const Json& base, std::string base_label, const Json& next, std::string next_label,
                           const CompareOptions& options) {
  RunComparison c;
  c.base = source(base, std::move(base_label));
  c.next = source(next, std::move(next_label));
  c.rules = options.rules;
  compare_surroundings(base, next, c);

  const std::vector<Line> base_lines = read_lines(base, c.base.label), next_lines = read_lines(next, c.next.label);
  Naming naming;
  naming.see(base_lines);
  naming.see(next_lines);
  const Lines before = naming.index(base_lines), after = naming.index(next_lines);
  std::set<std::string> names;
  for (const Lines* lines : {&before, &after})
    for (const auto& [name, line] : *lines)
      if (!options.filter || std::regex_search(name, *options.filter)) names.insert(name);

  std::vector<TimingPair> pairs;
  std::vector<std::size_t> timed;
  for (const std::string& name : names) {
    const auto a = before.find(name), b = after.find(name);
    c.rows.push_back(
        compared_row(name, a == before.end() ? nullptr : &a->second, b == after.end() ? nullptr : &b->second));
    if (!c.rows.back().why.empty()) continue;
    timed.push_back(c.rows.size() - 1);
    pairs.push_back({a->second.timing, b->second.timing});
  }
  std::vector<Decision> decisions = decide(pairs, c.rules);
  for (std::size_t i = 0; i < timed.size(); ++i) {
    c.rows[timed[i]].why = decisions[i].why;
    c.rows[timed[i]].decision = std::move(decisions[i]);
  }
  std::stable_sort(c.rows.begin(), c.rows.end(), [](const ComparedRow& x, const ComparedRow& y) {
    const int a = severity(x), b = severity(y);
    if (a != b) return a < b;
    return x.decision && y.decision && x.decision->ratio > y.decision->ratio;
  });
  return c;
}

Json RunComparison::to_json(const std::vector<std::string>& argv) const {
  Json j;
  j["schema_version"] = kCompareSchemaVersion;
  j["tool"] = {{"name", "dsv2"}, {"version", version_line()}};
  j["argv"] = argv;
  j["time"] = timestamp();
  j["base"] = source_json(base);
  j["new"] = source_json(next);
  j["interleave"] = interleave;
  j["alpha"] = rules.alpha;
  j["max_regression"] = rules.max_regression;
  j["limits_difference"] = finite_or_null(rules.limits_difference);
  j["warnings"] = warnings;
  Json totals = {{"faster", 0}, {"slower", 0}, {"same", 0}, {"undecided", 0}, {"regressed", 0}};
  const auto count = [&](std::string_view key) {
    Json& n = totals[std::string(key)];
    n = n.get<int>() + 1;
  };
  Json all = Json::array();
  for (const ComparedRow& row : rows) {
    count(name(row.verdict()));
    if (row.correctness == Correctness::regressed) count("regressed");
    all.push_back(row_json(row));
  }
  j["totals"] = totals;
  j["rows"] = all;
  j["exit_code"] = static_cast<int>(exit_code());
  return j;
}

std::string RunComparison::summary() const {
  const auto count = [&](const auto& wanted) { return std::count_if(rows.begin(), rows.end(), wanted); };
  const auto decided = [&](Verdict v) {
    return count([v](const ComparedRow& r) { return r.decision && r.verdict() == v; });
  };
  const auto became = [&](Correctness k) { return count([k](const ComparedRow& r) { return r.correctness == k; }); };
  const auto regressed = became(Correctness::regressed);
  std::string text =
      concat(regressed, " correctness regression", regressed == 1 ? "; " : "s; ", decided(Verdict::slower), " slower");
  const auto beyond_it = count([](const ComparedRow& r) { return r.decision && r.decision->beyond; });
  if (beyond_it) text += concat(" (", beyond_it, " by more than ", percent(rules.max_regression), ")");
  text += concat(", ", decided(Verdict::faster), " faster, ", decided(Verdict::same), " same, ",
                 decided(Verdict::undecided), " undecided");
  const auto untimed = count([](const ComparedRow& r) { return !r.decision && r.correctness == Correctness::kept; });
  if (untimed) text += concat("; ", untimed, " not compared in time");
  for (const Correctness k : {Correctness::mended, Correctness::added, Correctness::gone})
    if (became(k)) text += concat("; ", became(k), ' ', k == Correctness::added ? "new" : name(k));
  return text;
}

void RunComparison::print(std::ostream& out) const {
  for (const auto& [what, s] : {std::pair{"base", &base}, std::pair{"new ", &next}})
    out << what << "  " << s->label << ": " << s->version << (s->time.empty() ? "" : ", ") << s->time << '\n';
  for (const std::string& warning : warnings) out << "warning: " << warning << '\n';
  Table table(kColumns);
  bool any = false;
  for (const ComparedRow& row : rows)
    if (listed(row)) {
      table.add(cells(row));
      any = true;
    }
  out << '\n';
  if (any) {
    table.print(out);
    out << '\n';
  }
  const std::vector<std::string> lines = remarks(*this);
  for (const std::string& line : lines) out << line << '\n';
  if (!lines.empty()) out << '\n';
  out << summary() << '\n';
}

void RunComparison::print_markdown(std::ostream& out) const {
  out << "**" << summary() << "**\n\n";
  out << "base: " << markdown_cell(base.label) << ", " << base.version << "  \nnew: " << markdown_cell(next.label)
      << ", " << next.version << "\n\n";
  bool header = false;
  for (const ComparedRow& row : rows) {
    if (!listed(row)) continue;
    if (!header) {
      out << '|';
      for (const std::string& column : kColumns) out << ' ' << column << " |";
      out << "\n|---|---|--:|--:|--:|--:|--:|\n";
      header = true;
    }
    out << '|';
    for (const std::string& cell : cells(row)) out << ' ' << markdown_cell(cell) << " |";
    out << '\n';
  }
  if (header) out << '\n';
  for (const std::string& warning : warnings) out << "- warning: " << markdown_cell(warning) << '\n';
  for (const std::string& line : remarks(*this)) out << "- " << markdown_cell(line) << '\n';
}

bool RunComparison::any_common() const {
  return std::any_of(rows.begin(), rows.end(), [](const ComparedRow& r) { return r.base_status && r.next_status; });
}

ExitCode RunComparison::exit_code() const {
  const auto any = [&](const auto& wanted) { return std::any_of(rows.begin(), rows.end(), wanted); };
  if (!any_common()) return ExitCode::nothing_checked;
  if (any([](const ComparedRow& r) { return r.correctness == Correctness::regressed; })) return ExitCode::wrong;
  if (any([](const ComparedRow& r) { return r.decision && r.decision->beyond; })) return ExitCode::slower;
  return any([](const ComparedRow& r) { return r.next_status == Status::passed && r.base_status; })
             ? ExitCode::passed
             : ExitCode::nothing_checked;
}

Json pool_rounds(const std::vector<Json>& reports) {
  DSV2_CHECK(!reports.empty(), "pool of no reports");
  Json pooled = reports.front();
  Json& records = pooled["records"];
  records = Json::array();
  std::map<std::string, std::size_t> at;
  const auto rank = [](const Json& record) {
    constexpr std::string_view kBest[] = {"passed", "skipped", "error", "failed"};
    return std::find(std::begin(kBest), std::end(kBest), record.at("status").get<std::string>()) - std::begin(kBest);
  };
  for (const Json& report : reports)
    for (const Json& record : report.at("records")) {
      const std::string key =
          concat(record.at("name"), '/', record.at("phase"), '/', record.at("backend"), '/', record.at("dtype"));
      const Json sample = record.value("median_ns", Json(nullptr));
      const auto [found, fresh] = at.emplace(key, records.size());
      if (fresh) {
        records.push_back(record);
        records.back()["samples_ns"] = Json::array();
      }
      Json& into = records[found->second];
      Json samples = into["samples_ns"];
      if (sample.is_number()) samples.push_back(sample);
      const Json was = into.value("budget_used", Json(nullptr)), is = record.value("budget_used", Json(nullptr));
      if (rank(record) > rank(into)) into = record;
      if (was.is_number() && is.is_number()) into["budget_used"] = std::max(was.get<double>(), is.get<double>());
      into["samples_ns"] = samples;
      into["noise_floor"] = nullptr;
    }
  return pooled;
}

}  // namespace dsv2::harness
