#include "harness/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

#include "model/error.h"

namespace dsv2::harness {
namespace {

constexpr std::size_t kExactSamples = 25, kPairedSamples = 2000;

/// Of sorted values.
double quantile(std::span<const double> sorted, double share) {
  const double position = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

/// P(U <= u) for u = 0..mn, when both sides come from one distribution. The counts are the coefficients of the Gaussian
/// binomial: the product over i of (1 - q^(m+i)) / (1 - q^i).
std::vector<double> u_distribution(std::size_t m, std::size_t n) {
  std::vector<std::int64_t> count(m * n + 1, 0);
  count[0] = 1;
  for (std::size_t i = 1; i <= n; ++i) {
    for (std::size_t u = count.size(); u-- > m + i;) count[u] -= count[u - m - i];
    for (std::size_t u = i; u < count.size(); ++u) count[u] += count[u - i];
  }
  const double all = static_cast<double>(std::accumulate(count.begin(), count.end(), std::int64_t{0}));
  std::vector<double> below(count.size());
  double sum = 0;
  for (std::size_t u = 0; u < count.size(); ++u) below[u] = (sum += static_cast<double>(count[u])) / all;
  return below;
}

/// z with P(|Z| <= z) = confidence, by bisection: erf grows.
double normal_quantile(double confidence) {
  double low = 0, high = 40;
  for (int i = 0; i < 100; ++i) {
    const double z = (low + high) / 2;
    (std::erf(z / std::sqrt(2.0)) < confidence ? low : high) = z;
  }
  return high;
}

/// Logarithms of the samples, in order; thinned to kPairedSamples.
std::vector<double> logarithms(std::span<const double> samples) {
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());
  std::vector<double> logs;
  const std::size_t kept = std::min(sorted.size(), kPairedSamples);
  for (std::size_t i = 0; i < kept; ++i) {
    const double share = kept == 1 ? 0 : static_cast<double>(i) / static_cast<double>(kept - 1);
    const double value = kept == sorted.size() ? sorted[i] : quantile(sorted, share);
    DSV2_CHECK(value > 0, "shift of samples: expected values above 0, found ", value);
    logs.push_back(std::log(value));
  }
  return logs;
}

}  // namespace

Quartiles quartiles(std::vector<double> samples) {
  DSV2_CHECK(!samples.empty(), "quartiles of no samples");
  std::sort(samples.begin(), samples.end());
  return {samples.front(), quantile(samples, 0.25), quantile(samples, 0.5), quantile(samples, 0.75), samples.back()};
}

double median(std::vector<double> samples) { return quartiles(std::move(samples)).median; }

std::optional<Interval> median_interval(std::vector<double> samples, double confidence) {
  const double n = static_cast<double>(samples.size());
  // The median lies below the k-th smallest when fewer than k of n fair coins show heads; `below` sums that chance.
  std::size_t k = 0;
  for (double below = 0; k < samples.size(); ++k) {
    const double i = static_cast<double>(k);
    below += std::exp(std::lgamma(n + 1) - std::lgamma(i + 1) - std::lgamma(n - i + 1) - n * std::log(2.0));
    if (!(2 * below <= 1 - confidence)) break;
  }
  if (k == 0) return std::nullopt;
  std::sort(samples.begin(), samples.end());
  return Interval{samples[k - 1], samples[samples.size() - k]};
}

RankTest mann_whitney(std::span<const double> a, std::span<const double> b) {
  RankTest test;
  if (a.empty() || b.empty()) return test;
  struct Item {
    double value;
    bool from_a;
  };
  std::vector<Item> all;
  for (const double v : a) all.push_back({v, true});
  for (const double v : b) all.push_back({v, false});
  std::sort(all.begin(), all.end(), [](const Item& x, const Item& y) { return x.value < y.value; });
  double rank_sum = 0, ties = 0;
  for (std::size_t from = 0; from < all.size();) {
    std::size_t to = from;
    while (to < all.size() && !(all[from].value < all[to].value)) ++to;
    const double rank = static_cast<double>(from + to + 1) / 2, t = static_cast<double>(to - from);
    for (; from < to; ++from) rank_sum += all[from].from_a ? rank : 0;
    ties += t * t * t - t;
  }
  const double m = static_cast<double>(a.size()), n = static_cast<double>(b.size()), N = m + n;
  test.u = rank_sum - m * (m + 1) / 2;
  test.exact = ties == 0 && std::max(a.size(), b.size()) <= kExactSamples;
  if (test.exact) {
    const auto below = u_distribution(a.size(), b.size());
    test.p = std::min(1.0, 2 * below[static_cast<std::size_t>(std::min(test.u, m * n - test.u))]);
    return test;
  }
  const double variance = m * n / 12 * (N + 1 - ties / (N * (N - 1)));
  if (!(variance > 0)) return test;
  const double distance = std::max(0.0, std::fabs(test.u - m * n / 2) - 0.5);
  test.p = std::erfc(distance / std::sqrt(2 * variance));
  return test;
}

ShiftRatio shift_ratio(std::span<const double> a, std::span<const double> b, double confidence) {
  DSV2_CHECK(!a.empty() && !b.empty(), "shift of no samples");
  const std::vector<double> x = logarithms(a), y = logarithms(b);
  std::vector<double> shifts;
  shifts.reserve(x.size() * y.size());
  for (const double from : x)
    for (const double to : y) shifts.push_back(to - from);
  std::sort(shifts.begin(), shifts.end());
  // The interval leaves out `out` shifts on either side, as many as the rank test would still reject.
  const double m = static_cast<double>(x.size()), n = static_cast<double>(y.size());
  double out = 0;
  if (std::max(x.size(), y.size()) <= kExactSamples) {
    const auto below = u_distribution(x.size(), y.size());
    while (2 * below[static_cast<std::size_t>(out)] <= 1 - confidence) ++out;
  } else {
    out = std::floor(m * n / 2 - normal_quantile(confidence) * std::sqrt(m * n * (m + n + 1) / 12));
  }
  ShiftRatio shift{std::exp(quantile(shifts, 0.5)), 0, std::numeric_limits<double>::infinity()};
  if (out >= 1) {
    const auto k = static_cast<std::size_t>(out);
    shift.low = std::exp(shifts[k - 1]);
    shift.high = std::exp(shifts[shifts.size() - k]);
  }
  return shift;
}

std::vector<double> holm(std::span<const double> p) {
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return p[i] < p[j]; });
  std::vector<double> corrected(p.size());
  double least = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    least = std::max(least, std::min(1.0, static_cast<double>(p.size() - i) * p[order[i]]));
    corrected[order[i]] = least;
  }
  return corrected;
}

double relative_spread(std::span<const double> medians) {
  if (medians.size() < 2) return 0;
  const auto [least, most] = std::minmax_element(medians.begin(), medians.end());
  return *most / *least - 1;
}

double drift(std::span<const double> samples, int blocks) {
  const std::size_t count = std::min(samples.size(), static_cast<std::size_t>(blocks));
  std::vector<double> medians;
  for (std::size_t i = 0; i < count; ++i) {
    const auto block =
        samples.subspan(samples.size() * i / count, samples.size() * (i + 1) / count - samples.size() * i / count);
    medians.push_back(median({block.begin(), block.end()}));
  }
  return relative_spread(medians);
}

}  // namespace dsv2::harness
