// The sampler under a clock of its own, the roof, and what must not pass for a measurement.
#include "harness/timing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>

#include "harness/backends.h"
#include "harness/bench_decoder.h"
#include "harness/blocks.h"
#include "harness/output_watch.h"
#include "harness/roof.h"
#include "harness/statistics.h"

namespace dsv2::harness {
namespace {

/// Time that passes when a run, or a reading, says so.
struct FakeClock {
  std::int64_t ns = 0, tick = 1;
  std::int64_t flushes = 0, flush_ns = 0;
  Timer timer() {
    return {.now_ns = [this] { return ns += tick; },
            .flush_caches =
                [this] {
                  ++flushes;
                  ns += flush_ns;
                }};
  }
};

constexpr std::int64_t kMs = 1'000'000;

TEST(Measure, StopsWhenTheMedianIsKnownWellEnough) {
  FakeClock clock;
  std::mt19937_64 random(1);
  std::uniform_int_distribution<std::int64_t> noise(-300'000, 300'000);
  const TimingOptions options{.relative_error = 0.01, .max_samples = 100000, .budget_s = 1e6};
  const Timing t = measure({.run = [&] { clock.ns += 10 * kMs + noise(random); }}, options, clock.timer());
  EXPECT_EQ(t.sampling.stopped, Stop::converged);
  EXPECT_LE(t.sampling.relative_error, 0.01);
  EXPECT_NEAR(median({t.samples_ns.begin(), t.samples_ns.end()}), 10 * kMs, 0.02 * 10 * kMs);
  EXPECT_FALSE(t.sampling.cold);
  EXPECT_EQ(clock.flushes, 0);
}

TEST(Measure, MoreNoiseTakesMoreSamples) {
  const auto samples = [](std::int64_t noise_ns) {
    FakeClock clock;
    std::mt19937_64 random(1);
    std::uniform_int_distribution<std::int64_t> noise(-noise_ns, noise_ns);
    const TimingOptions options{.relative_error = 0.01, .max_samples = 100000, .budget_s = 1e6};
    return measure({.run = [&] { clock.ns += 10 * kMs + noise(random); }}, options, clock.timer()).samples_ns.size();
  };
  EXPECT_LT(samples(100'000), 20u);
  EXPECT_GT(samples(4 * kMs), 10 * samples(100'000));
}

TEST(Measure, AnErrorThatIsNotReachedEndsWithTheBudget) {
  FakeClock clock;
  std::int64_t runs = 0;
  const TimingOptions options{.relative_error = 0.001, .budget_s = 1};
  const Timing t = measure({.run = [&] { clock.ns += (runs++ % 2 ? 10 : 20) * kMs; }}, options, clock.timer());
  EXPECT_EQ(t.sampling.stopped, Stop::budget);
  EXPECT_GT(t.sampling.relative_error, 0.001);
  EXPECT_LT(static_cast<double>(clock.ns) * 1e-9, 1.1);
}

TEST(Measure, OneRunBeyondTheBudgetIsStillASample) {
  FakeClock clock;
  const Timing t = measure({.run = [&] { clock.ns += 60'000 * kMs; }}, {.budget_s = 10}, clock.timer());
  EXPECT_EQ(t.samples_ns.size(), 1u);
  EXPECT_EQ(t.sampling.warm_up_runs, 1);
  EXPECT_EQ(t.sampling.stopped, Stop::budget);
  EXPECT_TRUE(std::isinf(t.sampling.relative_error)) << "one sample says nothing of its error";
}

TEST(Measure, TimeSpentOutsideTheRunCountsInTheBudgetAlone) {
  FakeClock clock;
  std::int64_t runs = 0;
  const Timing t = measure({.prepare = [&](std::int64_t) { clock.ns += 100 * kMs; },
                            .run = [&] { clock.ns += (runs++ % 2 ? 10 : 20) * kMs; },
                            .inspect =
                                [&](std::int64_t) {
                                  clock.ns += 100 * kMs;
                                  return true;
                                }},
                           {.budget_s = 10}, clock.timer());
  EXPECT_EQ(t.sampling.stopped, Stop::budget);
  EXPECT_LT(t.samples_ns.size(), 50u);
  EXPECT_LE(std::ranges::max(t.samples_ns), 20 * kMs + clock.tick);
}

TEST(Measure, AFixedNumberIsExact) {
  FakeClock clock;
  const TimingOptions options{.budget_s = 0.001, .fixed_samples = 7};
  const Timing t = measure({.run = [&] { clock.ns += 10 * kMs; }}, options, clock.timer());
  EXPECT_EQ(t.samples_ns.size(), 7u);
  EXPECT_EQ(t.sampling.stopped, Stop::fixed);
}

TEST(Measure, RoundsAreNeverCut) {
  FakeClock clock;
  std::vector<std::int64_t> prepared;
  const Timing t = measure({.prepare = [&](std::int64_t i) { prepared.push_back(i); },
                            .run = [&] { clock.ns += (prepared.back() + 1) * kMs; }},
                           {.budget_s = 0.1, .round = 8}, clock.timer());
  EXPECT_EQ(t.samples_ns.size() % 8, 0u);
  // After the warm-up the count starts again, so the first sample is the first step of a round.
  const auto first = prepared.end() - static_cast<std::ptrdiff_t>(t.samples_ns.size());
  EXPECT_EQ(*first, 0);
  EXPECT_EQ(t.samples_ns.front(), kMs + clock.tick);
}

TEST(Measure, WarmUpLastsAsLongAsRunsGetFaster) {
  FakeClock clock;
  std::int64_t runs = 0;
  const auto run = [&] { clock.ns += std::max<std::int64_t>(10, 40 - runs++) * kMs; };
  const Timing t = measure({.run = run}, {.budget_s = 1e6}, clock.timer());
  EXPECT_EQ(t.sampling.warm_up_runs, 31 + 3);
  EXPECT_EQ(std::ranges::max(t.samples_ns), 10 * kMs + clock.tick) << "no sample from the warm-up";
}

TEST(Measure, WarmUpIsBounded) {
  FakeClock clock;
  std::int64_t next = 1'000'000 * kMs;
  const Timing t = measure({.run = [&] { clock.ns += next -= kMs; }}, {.budget_s = 1e12}, clock.timer());
  EXPECT_EQ(t.sampling.warm_up_runs, 100);
}

TEST(Measure, ShortRunsAreRepeatedForACoarseClock) {
  // The clock shows steps of 1 us, a run takes 50 ns.
  std::int64_t true_ns = 0, runs = 0;
  const Timer timer{.now_ns = [&] { return (true_ns += 20) / 1000 * 1000; }};
  const Measured work{.run = [&] {
    true_ns += 50;
    ++runs;
  }};
  const Timing t = measure(work, {.budget_s = 1e6, .repeat_short = true}, timer);
  EXPECT_GE(t.sampling.runs_per_sample * 50, 1000 * 1000) << "a sample is a thousand steps of the clock";
  EXPECT_LT(t.sampling.runs_per_sample * 50, 10 * 1000 * 1000);
  for (const std::int64_t ns : t.samples_ns) EXPECT_EQ(ns, 50) << "samples are of one run";
  EXPECT_EQ(runs,
            t.sampling.warm_up_runs + t.sampling.runs_per_sample * static_cast<std::int64_t>(t.samples_ns.size()));
}

TEST(Measure, RunsThatCannotBeRepeatedAreNot) {
  FakeClock clock;
  clock.tick = 100;
  const Timing t = measure({.run = [&] { clock.ns += 50; }}, {.max_samples = 100, .budget_s = 1e6}, clock.timer());
  EXPECT_EQ(t.sampling.runs_per_sample, 1);
}

TEST(Measure, ColdRunsFlushEachTimeAndAreNotRepeated) {
  FakeClock clock;
  clock.flush_ns = 500 * kMs;
  bool flushed = false;
  Timer timer = clock.timer();
  timer.flush_caches = [&, flush = timer.flush_caches] {
    flush();
    flushed = true;
  };
  std::int64_t runs = 0;
  const auto run = [&] {
    clock.ns += flushed ? 3000 : 1;  // a warm run would be fast
    flushed = false;
    ++runs;
  };
  const Timing t = measure({.run = run}, {.budget_s = 100, .repeat_short = true, .cold = true}, timer);
  EXPECT_TRUE(t.sampling.cold);
  EXPECT_EQ(clock.flushes, runs);
  EXPECT_EQ(t.sampling.runs_per_sample, 1);
  for (const std::int64_t ns : t.samples_ns) EXPECT_EQ(ns, 3000 + clock.tick) << "flushing is not timed";
}

TEST(Measure, InspectEndsIt) {
  FakeClock clock;
  const Timing t = measure({.run = [&] { clock.ns += kMs; }, .inspect = [](std::int64_t i) { return i < 2; }},
                           {.budget_s = 1e6}, clock.timer());
  EXPECT_EQ(t.sampling.stopped, Stop::refused);
  EXPECT_TRUE(t.samples_ns.empty()) << "refused in the warm-up";
}

TEST(Measure, RefusesOptionsThatCannotBeMet) {
  FakeClock clock;
  const Measured work{.run = [&] { clock.ns += kMs; }};
  EXPECT_THROW(measure(work, {.relative_error = 0}, clock.timer()), Error);
  EXPECT_THROW(measure(work, {.confidence = 1}, clock.timer()), Error);
  EXPECT_THROW(measure(work, {.min_samples = 10, .max_samples = 9}, clock.timer()), Error);
  EXPECT_THROW(measure(work, {.budget_s = std::numeric_limits<double>::quiet_NaN()}, clock.timer()), Error);
  EXPECT_THROW(measure(work, {.cold = true}, {.now_ns = clock.timer().now_ns}), Error) << "nothing to flush with";
  EXPECT_THROW(measure({.run = {}}, {}, clock.timer()), Error);
}

TEST(MedianInterval, IsTheBinomialOne) {
  EXPECT_FALSE(median_interval({1, 2, 3, 4, 5}, 0.95)) << "1 - 2/32 = 0.9375";
  const auto six = median_interval({6, 1, 5, 2, 4, 3}, 0.95);  // 1 - 2/64 = 0.969
  ASSERT_TRUE(six);
  EXPECT_EQ(six->low, 1);
  EXPECT_EQ(six->high, 6);
  std::vector<double> samples;  // n = 100: the 40th and 61st, coverage 0.965 (tables of the sign test)
  for (int i = 1; i <= 100; ++i) samples.push_back(i);
  EXPECT_EQ(median_interval(samples, 0.95)->low, 40);
  EXPECT_EQ(median_interval(samples, 0.95)->high, 61);
}

TEST(MedianInterval, CoversTheMedianAsOftenAsItSays) {
  std::mt19937_64 random(7);
  std::exponential_distribution<double> skewed(1);
  int covered = 0;
  constexpr int kTrials = 4000;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<double> samples(25);
    for (double& s : samples) s = skewed(random);
    const auto interval = median_interval(samples, 0.95);
    covered += interval->low <= std::log(2.0) && std::log(2.0) <= interval->high;
  }
  EXPECT_GT(covered, 0.945 * kTrials);  // exact: 0.957
  EXPECT_LT(covered, 0.97 * kTrials);
}

constexpr MachineLimits kLimits{.read_bandwidth_gb_s = 40, .peak_f32_gflop_s = 200, .peak_bf16_gflop_s = 400};
constexpr std::int64_t kCache = 32'000'000;

TEST(FasterThanRoof, FlopsAlwaysCount) {
  const auto judge = [](double gflop_s, DType dtype) {
    return faster_than_roof(1000, gflop_s * 1000, {.weights = 100, .kv = 0, .activations = 0}, dtype, kLimits, kCache);
  };
  EXPECT_FALSE(judge(199, DType::f32));
  EXPECT_FALSE(judge(215, DType::f32)) << "within what the peak is known to";
  ASSERT_TRUE(judge(230, DType::f32));
  EXPECT_NE(judge(230, DType::f32)->find("faster than the roof: 230.0 GFLOP/s"), std::string::npos);
  EXPECT_FALSE(judge(230, DType::bf16));
  EXPECT_TRUE(judge(450, DType::bf16));
  EXPECT_TRUE(judge(std::numeric_limits<double>::quiet_NaN(), DType::f32));
}

TEST(FasterThanRoof, BytesCountBeyondTheCaches) {
  const auto judge = [](double weights, double gb_s, std::optional<std::int64_t> cache) {
    return faster_than_roof(weights / gb_s, 1, {.weights = weights, .kv = 0, .activations = 1e12}, DType::f32, kLimits,
                            cache);
  };
  EXPECT_FALSE(judge(1e6, 2000, kCache)) << "a small model lives in the cache";
  EXPECT_FALSE(judge(33e6, 1000, kCache)) << "1 MB from memory, the rest from the cache";
  EXPECT_FALSE(judge(1e9, 39, kCache));
  ASSERT_TRUE(judge(1e9, 80, kCache));
  EXPECT_NE(judge(1e9, 80, kCache)->find("GB/s from memory"), std::string::npos);
  EXPECT_FALSE(judge(1e9, 80, std::nullopt)) << "caches of unknown size explain everything";
}

TEST(MeasuredLimits, ASecondMeasurementCanOnlyRaiseThem) {
  double next = 50;
  MeasuredLimits limits(
      [&](int threads) { return MachineLimits{.read_bandwidth_gb_s = next, .peak_f32_gflop_s = 10.0 * threads}; });
  EXPECT_EQ(limits.of(2).read_bandwidth_gb_s, 50);
  next = 20;
  EXPECT_EQ(limits.of(2).read_bandwidth_gb_s, 50) << "measured once";
  EXPECT_EQ(limits.again(2).read_bandwidth_gb_s, 50);
  next = 60;
  EXPECT_EQ(limits.again(2).read_bandwidth_gb_s, 60);
  EXPECT_EQ(limits.of(1).peak_f32_gflop_s, 10);
}

TEST(OutputWatch, EqualBitsForOtherInputAreNotBelieved) {
  const auto ids = [](std::int64_t id) { return Tensor::from<std::int64_t>(std::vector<std::int64_t>{id, 7}, {1, 2}); };
  const auto logits = [](float x) { return Tensor::from<float>(std::vector<float>{x, 2, 3}, {1, 1, 3}); };
  OutputWatch watch;
  EXPECT_FALSE(watch.see(ids(1).view(), logits(1).view()));
  EXPECT_FALSE(watch.see(ids(2).view(), logits(1.0000001f).view()));
  EXPECT_FALSE(watch.see(ids(1).view(), logits(1).view())) << "the same input may give the same output";
  const auto why = watch.see(ids(3).view(), logits(1).view());
  ASSERT_TRUE(why) << "not only the run just before is looked at";
  EXPECT_NE(why->find("does not depend on the input"), std::string::npos);
}

Record block_of(std::vector<std::int64_t> samples, Status status = Status::passed) {
  Record r;
  r.name = "row";
  r.status = status;
  if (status != Status::passed) r.reason = "why";
  r.samples_ns = std::move(samples);
  r.share_of_roof = 0.5;
  r.sampling = Sampling{};
  return r;
}

TEST(Blocks, NoiseIsTheLargestDifferenceBetweenMedians) {
  const Record all = pool_blocks({block_of({99, 100, 101}), block_of({109, 110, 111}), block_of({104, 105, 106})});
  EXPECT_NEAR(*all.noise_floor, 0.1, 1e-12);
  EXPECT_EQ(all.samples_ns.size(), 9u);
  EXPECT_EQ(all.sampling->blocks, 3);
  EXPECT_DOUBLE_EQ(*all.share_of_roof, 0.5 * 100 / 105);
  EXPECT_EQ(all.status, Status::passed);
  EXPECT_FALSE(pool_blocks({block_of({1, 2})}).noise_floor) << "one block has no noise to show";
}

TEST(Blocks, OneBadBlockFailsAll) {
  const Record all = pool_blocks({block_of({1}), block_of({1}, Status::failed), block_of({1})});
  EXPECT_EQ(all.status, Status::failed);
  EXPECT_EQ(all.reason, "why");
  EXPECT_TRUE(all.to_json()["median_ns"].is_null());
}

// A backend that is right whenever someone looks (with taps), and otherwise does as `cheat` says.
enum class Cheat : std::uint8_t { none, cached, wrong, nan };
Cheat cheat = Cheat::none;

class Cheater final : public Decoder {
 public:
  explicit Cheater(std::unique_ptr<Decoder> honest) : honest_(std::move(honest)) {}
  const Config& config() const override { return honest_->config(); }
  const Options& options() const override { return honest_->options(); }
  std::unique_ptr<KvCache> make_cache(std::int64_t batch, std::int64_t capacity) const override {
    return honest_->make_cache(batch, capacity);
  }
  std::unique_ptr<KvCache> make_cache(const LegacyCache& legacy) const override { return honest_->make_cache(legacy); }
  std::int64_t workspace_bytes() const override { return honest_->workspace_bytes(); }
  ForwardOutput forward(const ForwardInput& input) override {
    ForwardOutput out = honest_->forward(input);
    if (input.taps != nullptr || input.logits == Logits::none) return out;
    const auto logits = out.logits.as<float>();
    if (cheat == Cheat::cached) {
      if (kept_.empty()) kept_.assign(logits.begin(), logits.end());
      std::copy(kept_.begin(), kept_.end(), logits.begin());
    } else if (cheat == Cheat::wrong) {
      logits[0] += 100;
    } else if (cheat == Cheat::nan) {
      logits[0] = std::numeric_limits<float>::quiet_NaN();
    }
    return out;
  }

 private:
  std::unique_ptr<Decoder> honest_;
  std::vector<float> kept_;
};

Record bench_cheater(Cheat how, bool decode, MeasuredLimits limits = MeasuredLimits()) {
  cheat = how;
  const Config config = Config::preset("tiny-mla");
  Backend backend = find_backend("cpu");
  backend.create = [](const Config& c, std::shared_ptr<const Weights> w, const Options& o) -> std::unique_ptr<Decoder> {
    return std::make_unique<Cheater>(find_backend("cpu").create(c, std::move(w), o));
  };
  const DecoderBenchOptions options{.seed = 1, .generate = 4, .timing = {.fixed_samples = 2}};
  DecoderRow row{.backend = &backend, .depth = decode ? 3 : 0};
  row.options.threads = 1;
  if (!decode) row.prompt = 5;
  row.name = decoder_row_name("tiny-mla", row, false, false);
  DecoderBench bench(config, backend, Weights::random(config, 1, DType::f32), row.options, options, limits);
  return bench.measure(row);
}

MeasuredLimits fast_machine() {
  return MeasuredLimits([](int) { return MachineLimits{.read_bandwidth_gb_s = 1e6, .peak_f32_gflop_s = 1e6}; });
}

TEST(DecoderBench, AnHonestDecoderPasses) {
  for (const bool decode : {false, true}) {
    const Record r = bench_cheater(Cheat::none, decode, fast_machine());
    EXPECT_EQ(r.status, Status::passed) << r.reason;
    EXPECT_EQ(r.samples_ns.size(), decode ? 8u : 2u);
    EXPECT_EQ(r.sampling->stopped, Stop::fixed);
  }
}

TEST(DecoderBench, BytesAreThoseThatAreStored) {
  const Config config = Config::preset("tiny-mha");
  const Backend& cpu = find_backend("cpu");
  MeasuredLimits limits = fast_machine();
  const DecoderBenchOptions options{.seed = 1, .generate = 1, .timing = {.fixed_samples = 1}};
  const auto weight_bytes = [&](DType stored) {
    DecoderRow row{.backend = &cpu, .depth = 2};
    row.options.threads = 1;  // computes in f32
    DecoderBench bench(config, cpu, Weights::random(config, 1, stored), row.options, options, limits);
    return bench.measure(row).bytes->weights;
  };
  EXPECT_LT(weight_bytes(DType::bf16), 0.6 * weight_bytes(DType::f32));
}

TEST(DecoderBench, WhatOnlyTimedRunsDoWrongIsSeen) {
  for (const bool decode : {false, true}) {
    EXPECT_NE(bench_cheater(Cheat::cached, decode, fast_machine()).reason.find("does not depend on the input"),
              std::string::npos);
    EXPECT_NE(bench_cheater(Cheat::nan, decode, fast_machine()).reason.find("finite"), std::string::npos);
    const Record wrong = bench_cheater(Cheat::wrong, decode, fast_machine());
    EXPECT_EQ(wrong.status, Status::failed);
    EXPECT_NE(wrong.reason.find("logits"), std::string::npos) << wrong.reason;
    EXPECT_TRUE(wrong.to_json()["median_ns"].is_null());
  }
}

TEST(DecoderBench, FasterThanTheRoofFails) {
  int measured = 0;
  const Record r = bench_cheater(Cheat::none, true, MeasuredLimits([&](int) {
                                   ++measured;
                                   return MachineLimits{.read_bandwidth_gb_s = 1e6, .peak_f32_gflop_s = 1e-6};
                                 }));
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_NE(r.reason.find("faster than the roof"), std::string::npos) << r.reason;
  EXPECT_TRUE(r.to_json()["median_ns"].is_null() && r.to_json()["samples_ns"].empty());
  EXPECT_GT(measured, 2) << "a low roof is measured again before a record is failed for it";
}

TEST(FasterThanRoof, LimitsOfABusyMomentAreMeasuredAgain) {
  int measured = 0;
  MeasuredLimits limits(
      [&](int) { return MachineLimits{.read_bandwidth_gb_s = 1e6, .peak_f32_gflop_s = ++measured < 3 ? 1.0 : 100.0}; });
  const auto why = [&](double gflop_s) {
    return faster_than_roof(1000, gflop_s * 1000, {}, DType::f32, limits, 1, std::nullopt);
  };
  EXPECT_EQ(why(50), std::nullopt);
  EXPECT_EQ(measured, 3);
  EXPECT_NE(why(200), std::nullopt);
  EXPECT_EQ(measured, 8) << "and a run that is beyond them all the same is refused";
}

TEST(Machine, FlushingTouchesMoreThanTheCaches) {
  flush_caches(2);
  EXPECT_GE(resident_memory_bytes(), 2 * machine().cache_bytes.value_or(0));
  EXPECT_GE(machine().cache_bytes.value_or(0), machine().last_level_cache_bytes.value_or(0));
}

}  // namespace
}  // namespace dsv2::harness
