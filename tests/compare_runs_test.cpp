// Verdicts on simulated timings, whose truth is known, and on reports built by hand.
#include "harness/compare_runs.h"
#include "harness/flags.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <random>
#include <sstream>

#include "model/error.h"
#include "temporary_folder.h"

namespace dsv2::harness {
namespace {

using dsv2::testing::message_of;
using Samples = std::vector<double>;

/// Drawn and printed; DSV2_TEST_SEED=N repeats a run.
std::uint64_t drawn_seed() {
  const char* given = std::getenv("DSV2_TEST_SEED");
  const std::uint64_t seed = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << "DSV2_TEST_SEED=" << seed << '\n';
  return seed;
}

/// One process that measures one row: a slow wandering (AR(1), stationary from the start, so that runs differ by it),
/// white noise, and now and then a sample that is late by up to many times.
struct Machine {
  double wander, white, late_chance;
  double memory = 0.9;  ///< of the wandering, from sample to sample
};
constexpr Machine kNoisy{0.04, 0.03, 0.05}, kQuiet{0.004, 0.01, 0.02};

Samples run_once(std::mt19937_64& engine, const Machine& m, double ns, std::size_t count) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  double state = m.wander * normal(engine);
  Samples samples;
  for (std::size_t i = 0; i < count; ++i) {
    state = m.memory * state + std::sqrt(1 - m.memory * m.memory) * m.wander * normal(engine);
    const double late = uniform(engine) < m.late_chance ? 0.2 / std::pow(uniform(engine) + 1e-3, 1.5) : 0;  // Pareto
    samples.push_back(std::round(ns * std::exp(state + m.white * normal(engine)) * (1 + late)));
  }
  return samples;
}

/// As a measurement stores it: the spread of the medians of `repeats` runs.
double noise_floor(std::mt19937_64& engine, const Machine& m, int repeats, std::size_t count) {
  Samples medians;
  for (int i = 0; i < repeats; ++i) medians.push_back(median(run_once(engine, m, 1e5, count)));
  return relative_spread(medians);
}

struct Found {
  int faster = 0, slower = 0, same = 0, undecided = 0;
};

Found count(const std::vector<Decision>& decisions) {
  Found found;
  for (const Decision& d : decisions)
    ++(d.verdict == Verdict::faster   ? found.faster
       : d.verdict == Verdict::slower ? found.slower
       : d.verdict == Verdict::same   ? found.same
                                      : found.undecided);
  return found;
}

constexpr int kRows = 8;
constexpr std::size_t kCount = 192;

std::vector<TimingPair> two_runs(std::mt19937_64& engine, const Machine& m, double slowdown, int repeats) {
  std::vector<TimingPair> pairs;
  for (int row = 0; row < kRows; ++row) {
    const double ns = 5e4 * (row + 1);
    TimingPair pair;
    pair.base.samples_ns = run_once(engine, m, ns, kCount);
    pair.next.samples_ns = run_once(engine, m, row == 0 ? ns * slowdown : ns, kCount);
    if (repeats) {
      pair.base.noise_floor = noise_floor(engine, m, repeats, kCount);
      pair.next.noise_floor = noise_floor(engine, m, repeats, kCount);
    }
    pairs.push_back(std::move(pair));
  }
  return pairs;
}

TEST(Verdicts, TwoRunsOfOneBinaryAreNeverFasterOrSlower) {
  std::mt19937_64 engine(drawn_seed());
  int phantoms = 0;
  for (const int repeats : {0, 3})
    for (int run = 0; run < 20; ++run) {
      const std::vector<TimingPair> pairs = two_runs(engine, kNoisy, 1, repeats);
      const Found found = count(decide(pairs, {}));
      EXPECT_EQ(found.faster + found.slower, 0) << repeats << " repeats, run " << run;
      for (const TimingPair& pair : pairs)
        phantoms += mann_whitney(pair.base.samples_ns, pair.next.samples_ns).p < 0.01 / kRows;
    }
  // The streams are no straw men: the rank test on all samples, corrected for the rows, sees differences everywhere.
  EXPECT_GT(phantoms, 60);
}

TEST(Verdicts, ASlowdownOfAQuietRowIsFound) {
  std::mt19937_64 engine(drawn_seed());
  for (const double slowdown : {1.1, 1.2})
    for (const int repeats : {0, 3})
      for (int run = 0; run < 10; ++run) {
        const std::vector<TimingPair> pairs = two_runs(engine, kQuiet, slowdown, repeats);
        const std::vector<Decision> decisions = decide(pairs, {});
        EXPECT_EQ(decisions[0].verdict, Verdict::slower)
            << slowdown << ", " << repeats << " repeats: " << decisions[0].why;
        EXPECT_TRUE(decisions[0].beyond);
        EXPECT_NEAR(decisions[0].ratio, slowdown, 0.03);
        EXPECT_LT(decisions[0].shift.low, slowdown + 0.02);
        EXPECT_GT(decisions[0].shift.high, slowdown - 0.02);
        EXPECT_EQ(count(decisions).slower, 1);
        EXPECT_EQ(count(decisions).faster, 0);
        EXPECT_GE(count(decisions).same, kRows - 2) << "quiet rows are shown to be the same";
        std::vector<TimingPair> back;
        for (const TimingPair& pair : pairs) back.push_back({pair.next, pair.base});
        EXPECT_EQ(decide(back, {})[0].verdict, Verdict::faster);
      }
}

TEST(Verdicts, RoundsInTurnsSeeNoDifferenceWhereThereIsNone) {
  std::mt19937_64 engine(drawn_seed());
  int wrong = 0;
  for (int run = 0; run < 200; ++run) {
    std::vector<TimingPair> pairs(kRows);
    for (TimingPair& pair : pairs)
      for (TimedRow* side : {&pair.base, &pair.next}) side->samples_ns = run_once(engine, {0.05, 0.05, 0.1, 0}, 1e5, 8);
    const Found found = count(decide(pairs, {.rounds = true}));
    wrong += found.faster + found.slower > 0;
  }
  // alpha promises at most 1 in 100, of no difference at all; 2 are expected, more than 10 come in 1 of 10^5 tries.
  EXPECT_LE(wrong, 10);
}

TEST(Verdicts, RoundsInTurnsFindASlowdown) {
  std::mt19937_64 engine(drawn_seed());
  std::vector<TimingPair> pairs(kRows);
  for (TimingPair& pair : pairs) {
    pair.base.samples_ns = run_once(engine, {0.005, 0.005, 0, 0}, 1e5, 8);
    pair.next.samples_ns = run_once(engine, {0.005, 0.005, 0, 0}, &pair == &pairs[0] ? 1.1e5 : 1e5, 8);
  }
  const std::vector<Decision> decisions = decide(pairs, {.rounds = true});
  EXPECT_EQ(decisions[0].verdict, Verdict::slower);
  EXPECT_EQ(count(decisions).slower, 1);
  EXPECT_EQ(count(decisions).same, kRows - 1);
}

// ---- one row at a time ----

/// 64 samples without drift, within 1 % of `ns`.
Samples steady(double ns) {
  Samples samples;
  for (int i = 0; i < 64; ++i) samples.push_back(ns * (1 + 0.0002 * ((i * 37) % 50)));
  return samples;
}

Decision one(const TimedRow& base, const TimedRow& next, DecisionRules rules = {}) {
  const std::vector<TimingPair> pairs = {{base, next}};
  return decide(pairs, rules).at(0);
}

TEST(Verdicts, TheStoredFloorDominates) {
  for (const double floor : {0.01, 0.02, 0.048, 0.2}) {
    TimedRow base{steady(1000), floor, {}}, next{steady(1080), 0.01, {}};
    for (const auto& [a, b] : {std::pair{base, next}, std::pair{next, base}}) {
      const Decision d = one(a, b);
      const bool slower = a.samples_ns[0] < b.samples_ns[0];
      EXPECT_DOUBLE_EQ(d.floor, std::max(2 * floor, kLeastFloorStored));
      EXPECT_EQ(d.floor_source, 2 * floor > kLeastFloorStored ? "stored" : "least");
      EXPECT_EQ(d.verdict, floor > 0.05   ? Verdict::undecided
                           : floor > 0.04 ? Verdict::same
                           : slower       ? Verdict::slower
                                          : Verdict::faster)
          << floor << d.why;
      EXPECT_EQ(d.verdict == Verdict::undecided, d.why.find("floor") != std::string::npos) << d.why;
    }
  }
}

TEST(Verdicts, DriftWithinARunIsAFloorWhereNoneIsStored) {
  Samples wandering = steady(1000);
  for (std::size_t i = 32; i < wandering.size(); ++i) wandering[i] *= 1.3;
  const Decision d = one({wandering, {}, {}}, {steady(1200), {}, {}});
  EXPECT_NEAR(d.floor, 0.6, 0.02);
  EXPECT_EQ(d.floor_source, "drift");
  EXPECT_EQ(d.verdict, Verdict::undecided);
}

TEST(Verdicts, ABusyMachineDecidesNothing) {
  TimedRow base{steady(1000), 0.01, {}}, next{steady(2000), 0.01, {}};
  ASSERT_EQ(one(base, next).verdict, Verdict::slower);
  next.conditions.waited_share = 0.3;
  EXPECT_EQ(one(base, next).verdict, Verdict::undecided);
  EXPECT_NE(one(base, next).why.find("busy"), std::string::npos);
  EXPECT_EQ(one(base, base).verdict, Verdict::same);
  base.conditions.waited_share = 0.3;
  EXPECT_EQ(one(base, base).verdict, Verdict::undecided) << "waiting alike is no sign of equal code";
  EXPECT_EQ(one(base, next, {.rounds = true}).verdict, Verdict::slower) << "turns meet every state";
}

TEST(Verdicts, AnotherStateOfTheMachineDecidesNothing) {
  TimedRow base{steady(1000), 0.01, {}}, next{steady(2000), 0.01, {}};
  base.conditions.fork_join_ns = {420, 430};
  next.conditions.fork_join_ns = {425, 440};
  EXPECT_EQ(one(base, next).verdict, Verdict::slower);
  next.conditions.fork_join_ns = {425, 900};
  EXPECT_EQ(one(base, next).verdict, Verdict::undecided);
  next.conditions.fork_join_ns = std::nullopt;
  EXPECT_EQ(one(base, next, {.limits_difference = 0.5}).verdict, Verdict::undecided);
  EXPECT_EQ(one(base, next, {.limits_difference = 0.1}).floor_source, "machine");
  EXPECT_EQ(one(base, next, {.limits_difference = 0.1}).verdict, Verdict::slower);
}

TEST(Verdicts, OnlyTheSlowPartIsInterference) {
  Samples disturbed = steady(1000);
  for (std::size_t i = 0; i < disturbed.size(); ++i)
    if (i % 3 != 0) disturbed[i] *= 1.5;
  const Decision d = one({steady(1000), 0.01, {}}, {disturbed, 0.01, {}});
  EXPECT_GT(d.ratio, 1.4);
  EXPECT_LT(d.quick_ratio, 1.02);
  EXPECT_LT(d.p_corrected, 0.01);
  EXPECT_EQ(d.verdict, Verdict::undecided);
  EXPECT_NE(d.why.find("slow part"), std::string::npos) << d.why;
}

TEST(Verdicts, TooFewSamplesAreSaidSo) {
  const Decision d = one({{100, 101, 102}, {}, {}}, {{200, 201, 202}, {}, {}});
  EXPECT_EQ(d.verdict, Verdict::undecided);
  EXPECT_EQ(d.why, "too few samples: 3 against 3, expected at least 5 a side for 1 row");
  EXPECT_NEAR(d.p, 0.1, 1e-12);
  EXPECT_TRUE(std::isinf(d.shift.high));
  EXPECT_EQ(one({{100, 101, 102, 103, 104}, {}, {}}, {{200, 201, 202, 203, 204}, {}, {}}, {.rounds = true}).verdict,
            Verdict::slower);
  EXPECT_THROW(one({{}, {}, {}}, {{1}, {}, {}}), Error);
}

TEST(Verdicts, AllowedRegressionsAreSlowerButNotBeyond) {
  const TimedRow base{steady(1000), 0.01, {}}, next{steady(1080), 0.01, {}};
  EXPECT_TRUE(one(base, next, {.max_regression = 0.05}).beyond);
  const Decision d = one(base, next, {.max_regression = 0.2});
  EXPECT_EQ(d.verdict, Verdict::slower);
  EXPECT_FALSE(d.beyond);
}

// ---- reports ----

Record record(const std::string& name, double ns) {
  Record r;
  r.name = name;
  r.op = "decoder";
  r.phase = "decode";
  r.backend = "cpu";
  r.dtype = "f32";
  r.status = Status::passed;
  r.compared = 3;
  r.budget_used = 0.2;
  r.flops = 1e6;
  for (const double sample : steady(ns)) r.samples_ns.push_back(static_cast<std::int64_t>(sample));
  r.noise_floor = 0.01;
  return r;
}

Json report(std::vector<Record> records) {
  Report report;
  report.argv = {"dsv2", "bench"};
  report.limits = {40, 100, std::nullopt, std::nullopt};
  report.threads = 2;
  report.records = std::move(records);
  return report.to_json();
}

RunComparison compared(const Json& base, const Json& next, const CompareOptions& options = {}) {
  return compare_runs(base, "old.json", next, "new.json", options);
}

TEST(CompareRuns, CorrectnessComesFirstWhateverTheSpeed) {
  for (const Status status : {Status::failed, Status::error, Status::skipped}) {
    std::vector<Record> base = {record("a", 1e6), record("b", 1e6), record("c", 1e6)},
                        next = {record("a", 2e6), record("b", 1e6)};
    next[1].status = status;
    next[1].reason = "worse than it was";
    const RunComparison c = compared(report(base), report(next));
    ASSERT_EQ(c.rows.size(), 3u);
    EXPECT_EQ(c.rows[0].name, "b");
    EXPECT_EQ(c.rows[0].correctness, Correctness::regressed);
    EXPECT_EQ(c.rows[0].reason, "worse than it was");
    EXPECT_FALSE(c.rows[0].next_ns);
    EXPECT_EQ(c.rows[1].name, "c");
    EXPECT_EQ(c.rows[1].correctness, Correctness::regressed) << "absent";
    EXPECT_EQ(c.rows[2].verdict(), Verdict::slower);
    EXPECT_EQ(c.exit_code(), ExitCode::wrong);
    std::ostringstream text;
    c.print(text);
    EXPECT_LT(text.str().find("ABSENT"), text.str().find("SLOWER")) << text.str();
    EXPECT_NE(text.str().find("worse than it was"), std::string::npos) << text.str();
    EXPECT_NE(text.str().find("2 correctness regressions; 1 slower (1 by more than 5.0 %), 0 faster"),
              std::string::npos)
        << text.str();
  }
}

TEST(CompareRuns, ExitCodes) {
  const Json base = report({record("a", 1e6), record("b", 1e6)});
  EXPECT_EQ(compared(base, base).exit_code(), ExitCode::passed);
  EXPECT_EQ(compared(base, report({record("a", 1.08e6), record("b", 1e6)})).exit_code(), ExitCode::slower);
  EXPECT_EQ(compared(base, report({record("a", 1e6), record("b", 5e5)})).exit_code(), ExitCode::passed);
  CompareOptions lenient;
  lenient.rules.max_regression = 0.1;
  EXPECT_EQ(compared(base, report({record("a", 1.08e6), record("b", 1e6)}), lenient).exit_code(), ExitCode::passed);
  EXPECT_EQ(compared(base, report({record("c", 1e6)})).exit_code(), ExitCode::nothing_checked);
  EXPECT_EQ(compared(report({}), base).exit_code(), ExitCode::nothing_checked);
  CompareOptions only_b;
  only_b.filter = std::regex("^b$");
  const RunComparison filtered = compared(base, report({record("b", 1e6)}), only_b);
  EXPECT_EQ(filtered.rows.size(), 1u);
  EXPECT_EQ(filtered.exit_code(), ExitCode::passed);
  Record skipped = record("a", 1e6);
  skipped.status = Status::skipped;
  skipped.reason = "no such instruction";
  EXPECT_EQ(compared(report({skipped}), report({skipped})).exit_code(), ExitCode::nothing_checked);
}

TEST(CompareRuns, WhatComesAndGoesIsSaid) {
  Record broken = record("a", 1e6), gone = record("gone", 1e6);
  broken.status = gone.status = Status::failed;
  broken.reason = gone.reason = "wrong";
  const RunComparison c = compared(report({broken, gone, record("b", 1e6)}),
                                   report({record("a", 1e6), record("b", 1e6), record("c", 1e6)}));
  EXPECT_EQ(c.exit_code(), ExitCode::passed);
  EXPECT_NE(c.summary().find("1 mended; 1 new; 1 gone"), std::string::npos) << c.summary();
}

TEST(CompareRuns, ARisingBudgetIsPointedOut) {
  Record next = record("a", 1e6);
  next.budget_used = 0.4;
  const RunComparison c = compared(report({record("a", 1e6)}), report({next}));
  EXPECT_TRUE(c.rows[0].budget_rose);
  EXPECT_EQ(c.exit_code(), ExitCode::passed);
  std::ostringstream text;
  c.print(text);
  EXPECT_NE(text.str().find("drift: a: error budget used 20.0 % in the base, 40.0 % now"), std::string::npos)
      << text.str();
  next.budget_used = 0.22;
  EXPECT_FALSE(compared(report({record("a", 1e6)}), report({next})).rows[0].budget_rose);
}

TEST(CompareRuns, RecordsOfOneNameAreToldApart) {
  // check names a record after its case: backend and dtype make the difference.
  std::vector<Record> base, next;
  for (const char* backend : {"reference", "cpu"}) {
    base.push_back(record("mla_tiny", 1e6));
    base.back().backend = backend;
    next.push_back(record("mla_tiny", backend == std::string("cpu") ? 2e6 : 1e6));
    next.back().backend = backend;
  }
  std::swap(next[0], next[1]);
  const RunComparison c = compared(report(base), report(next));
  ASSERT_EQ(c.rows.size(), 2u);
  EXPECT_EQ(c.rows[0].name, "mla_tiny/decode/cpu/f32");
  EXPECT_EQ(c.rows[0].verdict(), Verdict::slower);
  EXPECT_EQ(c.rows[1].name, "mla_tiny/decode/reference/f32");
  EXPECT_EQ(c.rows[1].verdict(), Verdict::same);
  // The same name for other work is another row.
  EXPECT_EQ(compared(report({base[0]}), report({base[1]})).exit_code(), ExitCode::nothing_checked);
}

TEST(CompareRuns, OtherWorkIsNotCompared) {
  Record next = record("a", 3e6);
  next.flops = 3e6;  // another --generate
  const RunComparison c = compared(report({record("a", 1e6)}), report({next}));
  EXPECT_EQ(c.rows[0].verdict(), Verdict::undecided);
  EXPECT_NE(c.rows[0].why.find("not the same work"), std::string::npos) << c.rows[0].why;
}

TEST(CompareRuns, OtherSurroundingsAreNamed) {
  const Json base = report({record("a", 1e6)});
  Json next = base;
  next["machine"]["cpu"] = "another CPU";
  next["machine"]["threads"] = 8;
  next["machine"]["peak_gflop_s"]["bf16"] = 400.0;
  next["machine"]["read_bandwidth_gb_s"] = 400.0;
  const RunComparison c = compared(base, next);
  std::string all;
  for (const std::string& warning : c.warnings) all += warning + '\n';
  for (const char* wanted :
       {"machine.cpu: base ", ", new another CPU", "machine.threads: base 2, new 8",
        "machine.peak_gflop_s.bf16: base none, new 400", "machine.read_bandwidth_gb_s: base 40.0, new 400.0"})
    EXPECT_NE(all.find(wanted), std::string::npos) << wanted << " in\n" << all;
  EXPECT_EQ(c.rows[0].verdict(), Verdict::same) << "compared nonetheless";
  Json busy = base;
  busy["machine"]["read_bandwidth_gb_s"] = 10.0;
  EXPECT_EQ(compared(base, busy).rows[0].verdict(), Verdict::undecided) << "the same machine in another state";
}

TEST(CompareRuns, BrokenRecordsAreRefused) {
  const Json good = report({record("a", 1e6)});
  const auto said = [&](const char* key, const Json& value) {
    Json bad = good;
    bad["records"][0][key] = value;
    return message_of<Error>([&] { compared(good, bad); });
  };
  EXPECT_NE(said("samples_ns", {1, -5}).find("new.json: a: samples_ns: expected values above 0, found -5"),
            std::string::npos);
  EXPECT_NE(said("samples_ns", "fast").find("new.json: a: samples_ns"), std::string::npos);
  EXPECT_NE(said("noise_floor", -0.5).find("noise_floor"), std::string::npos);
  EXPECT_NE(said("status", "ok").find("expected passed, failed, skipped or error, found ok"), std::string::npos);
  EXPECT_NE(said("budget_used", "much").find("budget_used"), std::string::npos);
  EXPECT_NE(said("fork_join_ns", {1}).find("fork_join_ns"), std::string::npos);
}

TEST(CompareRuns, MarkdownIsATable) {
  const RunComparison c = compared(report({record("a|b", 1e6)}), report({record("a|b", 2e6)}));
  std::ostringstream text;
  c.print_markdown(text);
  EXPECT_NE(text.str().find("| SLOWER | a\\|b | 1.00 ms | 2.01 ms | "), std::string::npos) << text.str();
  EXPECT_NE(text.str().find("|---|---|--:|"), std::string::npos) << text.str();
}

TEST(CompareRuns, RoundsArePooled) {
  std::vector<Json> rounds;
  for (const double ns : {1e6, 3e6, 2e6}) rounds.push_back(report({record("a", ns), record("b", ns)}));
  rounds[1]["records"][1]["status"] = "failed";
  rounds[1]["records"][1]["reason"] = "once";
  rounds[1]["records"][1]["median_ns"] = nullptr;
  rounds[2]["records"][0]["budget_used"] = 0.5;
  const Json pooled = pool_rounds(rounds);
  ASSERT_EQ(pooled["records"].size(), 2u);
  const Json &a = pooled["records"][0], &b = pooled["records"][1];
  ASSERT_EQ(a["samples_ns"].size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(a["samples_ns"][i], rounds[i]["records"][0]["median_ns"]);
  EXPECT_EQ(a["budget_used"], 0.5);
  EXPECT_EQ(b["status"], "failed");
  EXPECT_EQ(b["reason"], "once");
  EXPECT_THROW(pool_rounds({}), Error);
}

TEST(CompareRuns, SharesAreReadInBothForms) {
  EXPECT_DOUBLE_EQ(parse_share("5%", "--x"), 0.05);
  EXPECT_DOUBLE_EQ(parse_share("2.5 %", "--x"), 0.025);
  EXPECT_DOUBLE_EQ(parse_share("0.05", "--x"), 0.05);
  EXPECT_DOUBLE_EQ(parse_share("0", "--x"), 0);
  for (const char* bad : {"", "%", "five", "-5%", "5%%", "0x5", "nan", "inf", "1e3", ".", "1.2.3"})
    EXPECT_NE(message_of<Error>([&] { parse_share(bad, "--x"); }).find("--x: expected a share"), std::string::npos)
        << bad;
}

}  // namespace
}  // namespace dsv2::harness
