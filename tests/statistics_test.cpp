// Against values worked out by hand, and published ones where a source is named.
#include "harness/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "model/error.h"

namespace dsv2::harness {
namespace {

using Samples = std::vector<double>;

TEST(Statistics, QuartilesInterpolate) {
  const Quartiles q = quartiles({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(q.min, 1);
  EXPECT_DOUBLE_EQ(q.lower, 1.75);
  EXPECT_DOUBLE_EQ(q.median, 2.5);
  EXPECT_DOUBLE_EQ(q.upper, 3.25);
  EXPECT_DOUBLE_EQ(q.max, 4);
  EXPECT_DOUBLE_EQ(median({7}), 7);
  EXPECT_THROW(quartiles({}), Error);
}

TEST(Statistics, RankTestIsExactForFewSamples) {
  // The example of scipy.stats.mannwhitneyu: U = 17, exact p = 0.111...
  const RankTest test = mann_whitney(Samples{19, 22, 16, 29, 24}, Samples{20, 11, 17, 12});
  EXPECT_TRUE(test.exact);
  EXPECT_DOUBLE_EQ(test.u, 17);
  EXPECT_NEAR(test.p, 1.0 / 9, 1e-12);
  // Three against three, apart: 2 of the 20 arrangements.
  EXPECT_NEAR(mann_whitney(Samples{1, 2, 3}, Samples{4, 5, 6}).p, 0.1, 1e-12);
  // The two-sided 5 % critical value of the tables for 5 against 5 is U = 2.
  EXPECT_LE(mann_whitney(Samples{1, 2, 3, 4, 7}, Samples{5, 6, 8, 9, 10}).p, 0.05);
  EXPECT_GT(mann_whitney(Samples{1, 2, 3, 6, 7}, Samples{4, 5, 8, 9, 10}).p, 0.05);
}

TEST(Statistics, RankTestCorrectsForTies) {
  // Ranks 1, 3, 3, 5.5: U = 2.5; ties of 3 and 2: variance 16/12 (9 - 30/56) = 79/7; z = 5 / sqrt(79/7).
  const RankTest test = mann_whitney(Samples{1, 2, 2, 3}, Samples{2, 3, 4, 5});
  EXPECT_FALSE(test.exact);
  EXPECT_DOUBLE_EQ(test.u, 2.5);
  EXPECT_NEAR(test.p, std::erfc(5 / std::sqrt(2 * 79.0 / 7)), 1e-12);
  EXPECT_EQ(mann_whitney(Samples{2, 2, 2}, Samples{2, 2, 2}).p, 1);
  EXPECT_EQ(mann_whitney(Samples{}, Samples{1}).p, 1);
}

TEST(Statistics, RankTestIsSymmetric) {
  const Samples a{1, 4, 9, 16, 25}, b{2, 3, 5, 7, 11, 13};
  const RankTest ab = mann_whitney(a, b), ba = mann_whitney(b, a);
  EXPECT_DOUBLE_EQ(ab.p, ba.p);
  EXPECT_DOUBLE_EQ(ab.u + ba.u, 30);
}

TEST(Statistics, RankTestKeepsItsLevel) {
  // Under the null hypothesis p <= 0.05 comes up in at most about 5 % of the draws, exact and approximate.
  for (const std::size_t n : {8, 60}) {
    std::mt19937 engine(17);
    std::exponential_distribution<double> draw;
    int rejected = 0;
    for (int i = 0; i < 2000; ++i) {
      Samples a(n), b(n);
      for (double& x : a) x = draw(engine);
      for (double& x : b) x = draw(engine);
      rejected += mann_whitney(a, b).p <= 0.05;
    }
    EXPECT_LE(rejected, 130) << n << " samples, seed 17";
    EXPECT_GE(rejected, 55) << n << " samples, seed 17";
  }
}

TEST(Statistics, ShiftIsTheMedianRatio) {
  EXPECT_NEAR(shift_ratio(Samples{1, 2, 4}, Samples{2, 4, 8}, 0.95).ratio, 2, 1e-12);
  const Samples a{1, 2, 3, 4, 5};
  Samples b;
  for (const double x : a) b.push_back(3 * x);
  // Five against five at 95 %: two of the 25 ratios fall out on either side, so the third from each end bounds it.
  const ShiftRatio shift = shift_ratio(a, b, 0.95);
  EXPECT_NEAR(shift.ratio, 3, 1e-12);
  EXPECT_NEAR(shift.low, 1, 1e-12);
  EXPECT_NEAR(shift.high, 9, 1e-12);
}

TEST(Statistics, ShiftOfTooFewSamplesIsUnbounded) {
  const ShiftRatio shift = shift_ratio(Samples{1, 2, 3}, Samples{1, 2, 3}, 0.99);
  EXPECT_EQ(shift.low, 0);
  EXPECT_TRUE(std::isinf(shift.high));
  EXPECT_THROW(shift_ratio(Samples{}, Samples{1}, 0.99), Error);
  EXPECT_THROW(shift_ratio(Samples{0}, Samples{1}, 0.99), Error);
}

TEST(Statistics, ShiftIntervalCoversTheTruth) {
  for (const std::size_t n : {10, 40}) {
    std::mt19937 engine(5);
    std::lognormal_distribution<double> draw(3, 0.2);
    int covered = 0;
    for (int i = 0; i < 400; ++i) {
      Samples a(n), b(n);
      for (double& x : a) x = draw(engine);
      for (double& x : b) x = 1.1 * draw(engine);
      const ShiftRatio shift = shift_ratio(a, b, 0.95);
      covered += shift.low <= 1.1 && 1.1 <= shift.high;
    }
    EXPECT_GE(covered, 368) << n << " samples, seed 5";
    EXPECT_LT(covered, 400) << n << " samples, seed 5";
  }
}

TEST(Statistics, ManySamplesAreThinned) {
  Samples a(5000), b(5000);
  for (std::size_t i = 0; i < a.size(); ++i) b[i] = 1.25 * (a[i] = 1000 + static_cast<double>(i % 100));
  EXPECT_NEAR(shift_ratio(a, b, 0.99).ratio, 1.25, 1e-3);
}

TEST(Statistics, HolmStepsDown) {
  const Samples corrected = holm(Samples{0.01, 0.04, 0.03, 0.005});
  const Samples expected{0.03, 0.06, 0.06, 0.02};
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(corrected[i], expected[i], 1e-12);
  EXPECT_EQ(holm(Samples{0.9, 0.8}), (Samples{1, 1}));
  EXPECT_TRUE(holm(Samples{}).empty());
}

TEST(Statistics, DriftSeesAStepButNotAnOutlier) {
  Samples steady(40, 100), step = steady;
  steady[7] = 1e6;
  EXPECT_DOUBLE_EQ(drift(steady), 0);
  for (std::size_t i = 20; i < 40; ++i) step[i] = 120;
  EXPECT_NEAR(drift(step), 0.2, 1e-12);
  EXPECT_NEAR(drift(Samples{100, 110}), 0.1, 1e-12);
  EXPECT_EQ(drift(Samples{5}), 0);
  EXPECT_NEAR(relative_spread(Samples{4, 5, 4.4}), 0.25, 1e-12);
}

}  // namespace
}  // namespace dsv2::harness
