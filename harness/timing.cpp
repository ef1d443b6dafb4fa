#include "harness/timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "harness/machine.h"
#include "harness/statistics.h"
#include "model/error.h"

namespace dsv2::harness {
namespace {

constexpr std::int64_t kTicksPerSample = 1000;  // the clock adds at most a thousandth
constexpr int kSettledRuns = 3, kMostWarmUpRuns = 100;
constexpr double kWarmUpShare = 0.1;
constexpr std::int64_t kMostRunsPerSample = 1 << 24;

class Sampler {
 public:
  Sampler(const Measured& work, const TimingOptions& options, const Timer& timer)
      : work_(work), options_(options), timer_(timer), start_(timer.now_ns()) {
    timing_.sampling.cold = options.cold;
    timing_.sampling.confidence = options.confidence;
  }

  Timing measure() {
    if (warm_up()) sample();
    timing_.sampling.relative_error = median_error(timing_.samples_ns, options_.confidence);
    return std::move(timing_);
  }

 private:
  double spent_s() const { return static_cast<double>(timer_.now_ns() - start_) * 1e-9; }

  /// Nanoseconds of `runs_per_sample` runs together. Sets refused_.
  std::int64_t time_once(std::int64_t iteration) {
    if (work_.prepare) work_.prepare(iteration);
    if (options_.cold) timer_.flush_caches();
    const std::int64_t start = timer_.now_ns();
    for (std::int64_t i = 0; i < timing_.sampling.runs_per_sample; ++i) work_.run();
    const std::int64_t took = timer_.now_ns() - start;
    if (work_.inspect && !work_.inspect(iteration)) refused_ = true;
    return took;
  }

  /// False when the measurement ends here.
  bool warm_up() {
    Sampling& s = timing_.sampling;
    const bool repeat = options_.repeat_short && !options_.cold;
    const std::int64_t enough = repeat ? kTicksPerSample * clock_resolution_ns(timer_.now_ns) : 0;
    double best = std::numeric_limits<double>::infinity();
    int settled = 0;
    for (std::int64_t i = 0; !refused_; ++i) {
      const std::int64_t took = time_once(i);
      s.warm_up_runs += s.runs_per_sample;
      if (took < enough && s.runs_per_sample < kMostRunsPerSample) {
        // A little more than it seems to need, and no more than tenfold at once: the first run is the slowest.
        const auto wanted = s.runs_per_sample * (enough + enough / 4) / std::max<std::int64_t>(took, 1) + 1;
        s.runs_per_sample = std::min({wanted, 10 * s.runs_per_sample, kMostRunsPerSample});
        continue;
      }
      const double run = static_cast<double>(took) / static_cast<double>(s.runs_per_sample);
      settled = run < best ? 0 : settled + 1;
      best = std::min(best, run);
      if (settled == kSettledRuns || i + 1 >= kMostWarmUpRuns || spent_s() >= kWarmUpShare * options_.budget_s) break;
    }
    if (refused_) s.stopped = Stop::refused;
    return !refused_;
  }

  void sample() {
    const std::int64_t runs = timing_.sampling.runs_per_sample;
    auto& samples = timing_.samples_ns;
    double timed_s = 0;
    std::size_t look = 0;  // the error is computed each time the samples have grown by a twentieth
    for (std::int64_t iteration = 0;;) {
      for (std::int64_t i = 0; i < options_.round; ++i) {
        const std::int64_t took = time_once(iteration++);
        timed_s += static_cast<double>(took) * 1e-9;
        samples.push_back(std::max<std::int64_t>(1, (took + runs / 2) / runs));
        if (refused_) return stop(Stop::refused);
      }
      const auto count = static_cast<std::int64_t>(samples.size());
      if (options_.fixed_samples > 0) {
        if (count >= options_.fixed_samples) return stop(Stop::fixed);
        continue;
      }
      if (samples.size() >= look && count >= options_.min_samples && timed_s >= options_.min_time_s) {
        if (median_error(samples, options_.confidence) <= options_.relative_error) return stop(Stop::converged);
        look = samples.size() + samples.size() / 20;
      }
      if (count >= options_.max_samples) return stop(Stop::max_samples);
      if (spent_s() >= options_.budget_s) return stop(Stop::budget);
    }
  }

  void stop(Stop why) { timing_.sampling.stopped = why; }

  const Measured& work_;
  const TimingOptions& options_;
  const Timer& timer_;
  std::int64_t start_;
  bool refused_ = false;
  Timing timing_;
};

}  // namespace

std::string_view name(Stop s) {
  constexpr std::string_view kNames[] = {"converged", "budget", "max_samples", "fixed", "refused"};
  return kNames[static_cast<std::size_t>(s)];
}

Timer system_timer(int threads) {
  return {.now_ns =
              [] {
                const auto now = std::chrono::steady_clock::now().time_since_epoch();
                return static_cast<std::int64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
              },
          .flush_caches = [threads] { flush_caches(threads); }};
}

Timing measure(const Measured& work, const TimingOptions& options, const Timer& timer) {
  DSV2_CHECK(work.run && timer.now_ns, "measure: expected a run and a clock");
  DSV2_CHECK(!options.cold || timer.flush_caches, "measure: cold runs need a timer that flushes the caches");
  DSV2_CHECK(options.relative_error > 0, "measure: relative_error: expected above 0, found ", options.relative_error);
  DSV2_CHECK(options.confidence > 0 && options.confidence < 1, "measure: confidence: expected between 0 and 1, found ",
             options.confidence);
  DSV2_CHECK(options.budget_s > 0, "measure: budget_s: expected above 0, found ", options.budget_s);
  DSV2_CHECK(options.min_samples >= 1 && options.min_samples <= options.max_samples,
             "measure: min_samples: expected 1 to max_samples (", options.max_samples, "), found ",
             options.min_samples);
  DSV2_CHECK(options.round >= 1, "measure: round: expected at least 1, found ", options.round);
  return Sampler(work, options, timer).measure();
}

double median_error(const std::vector<std::int64_t>& samples_ns, double confidence) {
  const std::vector<double> samples(samples_ns.begin(), samples_ns.end());
  const auto interval = median_interval(samples, confidence);
  if (!interval) return std::numeric_limits<double>::infinity();
  return (interval->high - interval->low) / 2 / median(samples);
}

std::int64_t clock_resolution_ns(const std::function<std::int64_t()>& now_ns) {
  constexpr int kSteps = 20, kReadings = 100000;  // a clock of a millisecond steps within so many readings
  std::int64_t least = std::numeric_limits<std::int64_t>::max(), last = now_ns();
  for (int reading = 0, steps = 0; reading < kReadings && steps < kSteps; ++reading) {
    const std::int64_t now = now_ns();
    if (now == last) continue;
    least = std::min(least, now - last);
    last = now;
    ++steps;
  }
  return least == std::numeric_limits<std::int64_t>::max() ? 1 : std::max<std::int64_t>(least, 1);
}

}  // namespace dsv2::harness
