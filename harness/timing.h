// One sampler for every benchmark: how a run is timed, how often, and when the samples are enough. Time comes from a
// function, so that tests drive all of it with a clock of their own.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string_view>
#include <vector>

namespace dsv2::harness {

/// What is measured. `iteration` counts 0, 1, ... in the warm-up and again from 0 when sampling starts.
struct Measured {
  std::function<void(std::int64_t iteration)> prepare = {};  ///< before each sample, untimed: fresh inputs
  std::function<void()> run;                                 ///< timed
  /// After each sample, untimed: looks at what was computed. False ends the measurement.
  std::function<bool(std::int64_t iteration)> inspect = {};
};

/// What time is, and what a cold run needs.
struct Timer {
  std::function<std::int64_t()> now_ns;     ///< never falls
  std::function<void()> flush_caches = {};  ///< before each cold run, untimed
};
/// The steady clock; flushes the caches that a team of `threads` uses (flush_caches() in machine.h).
Timer system_timer(int threads = 1);

struct TimingOptions {
  double relative_error = 0.02;  ///< wanted: half the median's confidence interval, as a share of the median
  double confidence = 0.95;      ///< of that interval
  std::int64_t min_samples = 5;  ///< before the error may end it; the interval itself needs 6 at 0.95
  std::int64_t max_samples = 2000;
  double budget_s = 10;      ///< wall time of one measurement, with all that is untimed; the round begun is finished
  double min_time_s = 0.05;  ///< timed in all before the error may end it: a shorter burst sees one mood of the machine
  std::int64_t fixed_samples = 0;  ///< above 0: so many, whatever their spread and the budget
  std::int64_t round = 1;          ///< samples come in whole rounds of this many (decode steps, each at its own depth)
  bool repeat_short = false;  ///< run() may be called several times after one prepare(), where the clock is too coarse
  bool cold = false;          ///< caches are flushed before each run; never repeated within a sample
};

/// Why sampling ended.
enum class Stop : std::uint8_t {
  converged,    ///< the wanted relative error was reached
  budget,       ///< the time was spent
  max_samples,  ///< so many were taken
  fixed,        ///< as many as asked for
  refused,      ///< inspect() returned false
};
std::string_view name(Stop);

/// How samples came about.
struct Sampling {
  Stop stopped = Stop::converged;
  bool cold = false;
  double confidence = 0.95;
  double relative_error = std::numeric_limits<double>::infinity();  ///< reached; infinite: too few samples to say
  std::int64_t runs_per_sample = 1;  ///< above 1: a sample is the mean of so many runs in a row
  std::int64_t warm_up_runs = 0;
  int blocks = 1;  ///< repeats of the whole measurement, pooled
};

struct Timing {
  std::vector<std::int64_t> samples_ns;  ///< of one run each, at least 1
  Sampling sampling;
};

/// Warms up until three runs in a row are no faster than the best before them (for at most a tenth of the budget), then
/// samples until the options say enough. Throws Error for options that cannot be met, and whatever the callbacks throw.
Timing measure(const Measured& work, const TimingOptions& options, const Timer& timer = system_timer());

/// Half the width of the median's confidence interval (median_interval() in statistics.h), as a share of the median;
/// infinite where the samples are too few for one.
double median_error(const std::vector<std::int64_t>& samples_ns, double confidence);

/// The smallest step that `now_ns` was seen to make: its tick, or the cost of reading it, whichever is larger.
std::int64_t clock_resolution_ns(const std::function<std::int64_t()>& now_ns);

}  // namespace dsv2::harness
