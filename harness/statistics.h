// Statistics of timings: order statistics, a rank test, a shift with its confidence interval. Nothing here assumes that
// timings are normal, for they are not: they have a floor and a long tail.
#pragma once

#include <optional>
#include <span>
#include <vector>

namespace dsv2::harness {

/// min, lower quartile, median, upper quartile, max; between two samples interpolated (Hyndman & Fan 1996, type 7).
struct Quartiles {
  double min, lower, median, upper, max;
};
/// Throw Error for an empty list.
Quartiles quartiles(std::vector<double> samples);
double median(std::vector<double> samples);

struct Interval {
  double low, high;
};
/// Confidence interval of the median between two order statistics: the k-th smallest and k-th largest sample, k as
/// large as the binomial distribution allows, so that it holds for any distribution (David & Nagaraja 2003, "Order
/// Statistics", 7.1). nullopt when the samples are too few: 0.95 needs 6.
std::optional<Interval> median_interval(std::vector<double> samples, double confidence);

struct RankTest {
  double u = 0;  ///< pairs in which the element of `a` is the larger one; ties count one half
  double p = 1;  ///< two-sided
  bool exact = false;
};

/// Mann-Whitney U: do `a` and `b` come from one distribution? Exact for up to 25 samples a side without ties, else the
/// normal approximation with ties and continuity corrected (Mann & Whitney 1947; Lehmann 1975, "Nonparametrics", 1.5).
/// p is 1 where nothing can be said: an empty side, or all values equal.
RankTest mann_whitney(std::span<const double> a, std::span<const double> b);

/// How many times larger `b` is than `a`.
struct ShiftRatio {
  double ratio = 1;
  double low = 0,
         high = 0;  ///< interval with the wanted confidence; 0 and infinity when the samples are too few for it
};

/// Hodges-Lehmann estimate on the logarithms: the median of all ratios b/a, with the interval that inverts the rank
/// test (normal approximation for its order statistics; exact ones for up to 25 samples a side). Samples are above 0;
/// of more than 2000 a side, 2000 evenly spaced order statistics stand for all. Throws Error for an empty side.
ShiftRatio shift_ratio(std::span<const double> a, std::span<const double> b, double confidence);

/// Holm's step-down correction (Holm 1979): p-values such that rejecting those below alpha keeps the chance of any
/// false rejection below alpha. In the order given.
std::vector<double> holm(std::span<const double> p);

/// Largest relative difference between any two of `medians`: max/min - 1; 0 for fewer than two.
double relative_spread(std::span<const double> medians);

/// relative_spread() of the medians of `blocks` consecutive stretches of the samples: how far one run drifted while it
/// was measured. Fewer samples than blocks: each is a block of its own.
double drift(std::span<const double> samples, int blocks = 4);

}  // namespace dsv2::harness
