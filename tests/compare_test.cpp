// The comparators are what everything rests on: each planted error must be seen, and nothing else.
#include "harness/compare.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace dsv2::harness {
namespace {

constexpr std::int64_t kRows = 5, kWidth = 33;

Tensor noise(unsigned seed, double scale = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  Tensor t(DType::f32, {kRows, kWidth});
  for (float& x : t.as<float>()) x = static_cast<float>(scale) * normal(engine);
  return t;
}

using Judge = Comparison (*)(const TensorView& got, const TensorView& want);
Comparison absolute(const TensorView& g, const TensorView& w) { return compare_absolute("t", g, w, 1e-5); }
Comparison float32(const TensorView& g, const TensorView& w) { return compare_float32("t", g, w, 1e-6); }
Comparison whole(const TensorView& g, const TensorView& w) { return compare_relative_l2("t", g, w, 1e-2, "1e-2"); }
Comparison derived(const TensorView& g, const TensorView& w) { return compare_derived("t", g, w, {DType::f32, 128}); }

class EveryComparator : public testing::TestWithParam<Judge> {};
INSTANTIATE_TEST_SUITE_P(Compare, EveryComparator, testing::Values(absolute, float32, whole, derived));

TEST_P(EveryComparator, AcceptsTheSame) {
  const Tensor t = noise(1);
  const Comparison c = GetParam()(t.view(), t.view());
  EXPECT_TRUE(c.passed) << describe(c);
  EXPECT_EQ(c.budget_used, 0);
  EXPECT_EQ(c.count, kRows * kWidth);
  EXPECT_FALSE(c.zeros);
}

TEST_P(EveryComparator, RejectsANaN) {
  const Tensor want = noise(2);
  Tensor got = want.clone();
  got.as<float>()[70] = std::numeric_limits<float>::quiet_NaN();
  const Comparison c = GetParam()(got.view(), want.view());
  EXPECT_FALSE(c.passed);
  EXPECT_TRUE(std::isinf(c.budget_used));
  EXPECT_EQ(c.worst, (Shape{2, 4}));
}

TEST_P(EveryComparator, RejectsAnInfinity) {
  const Tensor want = noise(3);
  Tensor got = want.clone();
  got.as<float>()[0] = std::numeric_limits<float>::infinity();
  EXPECT_FALSE(GetParam()(got.view(), want.view()).passed);
}

TEST_P(EveryComparator, RejectsASignFlip) {
  const Tensor want = noise(4);
  Tensor got = want.clone();
  for (float& x : got.as<float>()) x = -x;
  EXPECT_FALSE(GetParam()(got.view(), want.view()).passed);
}

TEST_P(EveryComparator, RejectsAnErrorAmongNegatives) {
  Tensor want = noise(5);
  for (float& x : want.as<float>()) x = -std::fabs(x) - 1;
  Tensor got = want.clone();
  for (float& x : got.as<float>()) x *= 1.5f;
  EXPECT_FALSE(GetParam()(got.view(), want.view()).passed);
}

TEST_P(EveryComparator, RejectsAShiftedRow) {
  const Tensor want = noise(6);
  Tensor got = want.clone();
  for (std::int64_t i = 0; i < kWidth; ++i)
    got.as<float>()[static_cast<std::size_t>(i)] = want.as<float>()[static_cast<std::size_t>(i + kWidth)];
  EXPECT_FALSE(GetParam()(got.view(), want.view()).passed);
}

TEST_P(EveryComparator, RejectsZeros) {
  const Tensor want = noise(7), got(DType::f32, {kRows, kWidth});
  EXPECT_FALSE(GetParam()(got.view(), want.view()).passed);
}

TEST_P(EveryComparator, RejectsAnotherShape) {
  const Tensor want = noise(8);
  TensorView got = want.view();
  got.shape = {kWidth, kRows};
  const Comparison c = GetParam()(got, want.view());
  EXPECT_FALSE(c.passed);
  EXPECT_NE(describe(c).find("expected shape [5, 33], got [33, 5]"), std::string::npos) << describe(c);
}

TEST_P(EveryComparator, SaysWhenOnlyZerosAreExpected) {
  const Tensor zeros(DType::f32, {kRows, kWidth});
  EXPECT_TRUE(GetParam()(zeros.view(), zeros.view()).zeros);
}

TEST(Compare, Float32RuleIsFormats) {
  // |got - stored| <= 8 max(tolerance, 1e-6 max(1, max|stored|))
  Tensor want(DType::f32, {2});
  want.as<float>()[0] = 4;
  Tensor got(DType::f64, {2});
  got.as<double>()[0] = 4 + 31e-6;
  EXPECT_TRUE(compare_float32("t", got.view(), want.view(), 0).passed);
  got.as<double>()[0] = 4 + 33e-6;
  EXPECT_FALSE(compare_float32("t", got.view(), want.view(), 0).passed);
  EXPECT_TRUE(compare_float32("t", got.view(), want.view(), 5e-6).passed);
}

TEST(Compare, SelectionLeavesRowsOut) {
  const Tensor want = noise(9);
  Tensor got = want.clone();
  got.as<float>()[kWidth * 3 + 1] += 1;
  Selection rows(kRows, true);
  EXPECT_FALSE(compare_absolute("t", got.view(), want.view(), 1e-5, rows).passed);
  rows[3] = false;
  const Comparison c = compare_absolute("t", got.view(), want.view(), 1e-5, rows);
  EXPECT_TRUE(c.passed);
  EXPECT_EQ(c.count, (kRows - 1) * kWidth);
}

TEST(Compare, DerivedBoundIsScaleFree) {
  for (const double scale : {1e-20, 1.0, 1e20}) {
    const Tensor want = noise(10, scale);
    Tensor got = want.clone();
    for (float& x : got.as<float>()) x *= 1 + 0x1p-22f;
    EXPECT_TRUE(derived(got.view(), want.view()).passed) << scale;
    for (float& x : got.as<float>()) x *= 1.001f;
    EXPECT_FALSE(derived(got.view(), want.view()).passed) << scale;
  }
}

TEST(Compare, DerivedBoundSeesAnErrorSpreadOverTheTensor) {
  // Each element is within the per-element bound; together they are not.
  const Tensor want = noise(11);
  const DerivedBound bound{DType::f32, 128};
  Tensor got(DType::f64, {kRows, kWidth});
  for (std::int64_t i = 0; i < got.size(); ++i)
    got.as<double>()[static_cast<std::size_t>(i)] = want.at(i) + 6 * bound.unit() * 0.9;
  const Comparison c = compare_derived("t", got.view(), want.view(), bound);
  EXPECT_FALSE(c.passed);
  EXPECT_EQ(c.outside, 0);
}

TEST(Compare, IntegersAreExact) {
  const std::vector<std::int64_t> a{1, 2, 3}, b{1, 2, 4};
  const Tensor x = Tensor::from<std::int64_t>(a, {3}), y = Tensor::from<std::int64_t>(b, {3});
  EXPECT_TRUE(compare_exact("ids", x.view(), x.view()).passed);
  const Comparison c = compare_exact("ids", x.view(), y.view());
  EXPECT_FALSE(c.passed);
  EXPECT_EQ(c.worst, (Shape{2}));
}

}  // namespace
}  // namespace dsv2::harness
