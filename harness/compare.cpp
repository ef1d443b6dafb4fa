#include "harness/compare.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace dsv2::harness {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", x);
  return text;
}

Shape unravel(std::int64_t flat, const Shape& shape) {
  Shape index(shape.size());
  for (std::size_t i = shape.size(); i-- > 0;) {
    index[i] = flat % shape[i];
    flat /= shape[i];
  }
  return index;
}

bool refuse_shape(Comparison& c, const TensorView& got, const TensorView& want) {
  if (got.shape == want.shape) return false;
  c.passed = false;
  c.budget_used = kInfinity;
  c.reason = concat("expected shape ", to_string(want.shape), ", got ", to_string(got.shape));
  return true;
}

template <class F>
void for_selected(const TensorView& t, const Selection& selection, F&& visit) {
  const std::int64_t n = t.size();
  if (selection.empty()) {
    for (std::int64_t i = 0; i < n; ++i) visit(i);
    return;
  }
  const auto rows = static_cast<std::int64_t>(selection.size());
  DSV2_CHECK(n % rows == 0, "selection of ", rows, " rows does not fit shape ", to_string(t.shape));
  const std::int64_t width = n / rows;
  for (std::int64_t i = 0; i < n; ++i)
    if (selection[static_cast<std::size_t>(i / width)]) visit(i);
}

/// Judges every selected element by bound_at(i) and keeps the worst.
template <class BoundAt>
void judge_elements(Comparison& c, const TensorView& got, const TensorView& want, const Selection& selection,
                    BoundAt&& bound_at) {
  double error2 = 0, want2 = 0;
  std::int64_t worst = -1;
  bool any = false;
  for_selected(want, selection, [&](std::int64_t i) {
    const double g = got.at(i), w = want.at(i), bound = bound_at(i), error = std::fabs(g - w);
    ++c.count;
    any = any || w != 0;
    error2 += error * error;
    want2 += w * w;
    const bool inside = error <= bound;
    if (!inside) ++c.outside;
    const double share =
        inside ? (bound > 0 ? error / bound : 0.0) : (bound > 0 && std::isfinite(error) ? error / bound : kInfinity);
    if (worst < 0 || share > c.budget_used) {
      worst = i;
      c.budget_used = share;
      c.got = g, c.want = w, c.bound = bound;
    }
  });
  c.zeros = !any;
  c.relative_l2 = want2 > 0 ? std::sqrt(error2 / want2) : (error2 > 0 ? kInfinity : 0.0);
  if (worst >= 0) c.worst = unravel(worst, want.shape);
  c.passed = c.passed && c.outside == 0;
}

}  // namespace

std::string describe(const Comparison& c) {
  if (!c.reason.empty()) return c.name + ": " + c.reason;
  return concat(c.name, to_string(c.worst), ": got ", number(c.got), ", expected ", number(c.want), ", off by ",
                number(std::fabs(c.got - c.want)), ", ", number(100 * c.budget_used), " % of the budget (", c.rule,
                "); ", c.outside, " of ", c.count, " outside");
}

Comparison compare_absolute(std::string name, const TensorView& got, const TensorView& want, double bound,
                            const Selection& selection) {
  Comparison c;
  c.name = std::move(name);
  c.rule = "|got - want| <= " + number(bound);
  if (refuse_shape(c, got, want)) return c;
  judge_elements(c, got, want, selection, [&](std::int64_t) { return bound; });
  return c;
}

Comparison compare_float32(std::string name, const TensorView& got, const TensorView& stored, double tolerance,
                           const Selection& selection) {
  constexpr double kSummationOrder = 8;  // FORMAT.md: "a small c for another summation order (say 8)"
  double largest = 1;
  for_selected(stored, selection, [&](std::int64_t i) { largest = std::max(largest, std::fabs(stored.at(i))); });
  const double bound = kSummationOrder * std::max(tolerance, 1e-6 * largest);
  Comparison c = compare_absolute(std::move(name), got, stored, bound, selection);
  c.rule = concat("8 x max(", number(tolerance), ", 1e-6 x ", number(largest), ")");
  return c;
}

double relative_l2(const TensorView& got, const TensorView& want, const Selection& selection) {
  double error2 = 0, want2 = 0;
  for_selected(want, selection, [&](std::int64_t i) {
    const double w = want.at(i), error = got.at(i) - w;
    error2 += error * error;
    want2 += w * w;
  });
  if (!std::isfinite(error2)) return kInfinity;
  return want2 > 0 ? std::sqrt(error2 / want2) : (error2 > 0 ? kInfinity : 0.0);
}

Comparison compare_relative_l2(std::string name, const TensorView& got, const TensorView& want, double bound,
                               std::string rule, const Selection& selection) {
  Comparison c;
  c.name = std::move(name);
  c.rule = std::move(rule);
  if (refuse_shape(c, got, want)) return c;
  double largest = -1;
  std::int64_t worst = -1;
  bool any = false;
  for_selected(want, selection, [&](std::int64_t i) {
    const double error = std::fabs(got.at(i) - want.at(i));
    any = any || want.at(i) != 0;
    ++c.count;
    if (!(error <= largest)) worst = i, largest = std::isnan(error) ? kInfinity : error;
  });
  c.zeros = !any;
  c.relative_l2 = relative_l2(got, want, selection);
  c.bound = bound;
  c.budget_used = bound > 0 ? c.relative_l2 / bound : (c.relative_l2 == 0 ? 0.0 : kInfinity);
  c.passed = c.relative_l2 <= bound;
  c.outside = c.passed ? 0 : c.count;
  if (worst >= 0) {
    c.worst = unravel(worst, want.shape);
    c.got = got.at(worst), c.want = want.at(worst);
  }
  return c;
}

Comparison compare_within(std::string name, const TensorView& got, const TensorView& want,
                          const std::vector<double>& bounds, std::string rule) {
  Comparison c;
  c.name = std::move(name);
  c.rule = std::move(rule);
  if (refuse_shape(c, got, want)) return c;
  judge_elements(c, got, want, {}, [&](std::int64_t i) { return bounds.at(static_cast<std::size_t>(i)); });
  return c;
}

Comparison compare_exact(std::string name, const TensorView& got, const TensorView& want, const Selection& selection) {
  Comparison c;
  c.name = std::move(name);
  c.rule = "equal";
  if (refuse_shape(c, got, want)) return c;
  judge_elements(c, got, want, selection, [](std::int64_t) { return 0.0; });
  c.zeros = false;  // zero is a decision like any other
  return c;
}

double low_precision_bound(DType dtype) { return is_quantised(dtype) ? 0.02 : 0.025; }

double storage_unit(DType dtype) { return dtype == DType::i8 ? 0x1p-7 : unit_roundoff(dtype); }

double DerivedBound::unit() const {
  return std::sqrt(static_cast<double>(roundings)) * storage_unit(dtype) +
         std::sqrt(static_cast<double>(std::max<std::int64_t>(reduction, 1))) * unit_roundoff(accumulate);
}

Comparison compare_derived(std::string name, const TensorView& got, const TensorView& want, const DerivedBound& bound) {
  return compare_derived(
      std::move(name), got, want, bound.unit(),
      concat("(u(", dsv2::name(bound.dtype), ") + sqrt(", bound.reduction, ") u(", dsv2::name(bound.accumulate), "))"));
}

Comparison compare_derived(std::string name, const TensorView& got, const TensorView& want, double unit,
                           const std::string& words) {
  Comparison c;
  c.name = std::move(name);
  c.rule = concat(kElementFactor, " ", words, " (rms(row) + |want|)");
  if (refuse_shape(c, got, want)) return c;
  const std::int64_t width = want.shape.empty() ? 1 : want.dim(-1), n = want.size();
  std::vector<double> rms(static_cast<std::size_t>(width ? n / width : 0));
  for (std::size_t r = 0; r < rms.size(); ++r) {
    double sum = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      const double w = want.at(static_cast<std::int64_t>(r) * width + i);
      sum += w * w;
    }
    rms[r] = std::sqrt(sum / static_cast<double>(width));
  }
  judge_elements(c, got, want, {}, [&](std::int64_t i) {
    return kElementFactor * unit * (rms[static_cast<std::size_t>(i / width)] + std::fabs(want.at(i)));
  });
  const double tensor_bound = kTensorFactor * unit;
  if (!(c.relative_l2 <= tensor_bound)) {
    c.passed = false;
    if (c.outside == 0)
      c.reason = concat("relative L2 ", number(c.relative_l2), ", bound ", number(tensor_bound), " = ", kTensorFactor,
                        " ", words);
  }
  const double tensor_share = tensor_bound > 0 ? c.relative_l2 / tensor_bound : 0.0;
  c.budget_used = std::max(c.budget_used, tensor_share);
  return c;
}

Comparison compare_summed(std::string name, const TensorView& got, const TensorView& want,
                          const std::vector<double>& root, const DerivedBound& bound, double floor) {
  Comparison c;
  c.name = std::move(name);
  const double unit = bound.unit();
  c.rule = concat(kElementFactor, " (u(", dsv2::name(bound.dtype), ") + sqrt(", bound.reduction,
                  ") u(f32)) (root of the sum of squares + |want|)");
  if (refuse_shape(c, got, want)) return c;
  DSV2_CHECK(static_cast<std::int64_t>(root.size()) == want.size(), c.name, ": root: expected ", want.size(),
             " elements, found ", root.size());
  double error2 = 0, allowed2 = 0;
  judge_elements(c, got, want, {}, [&](std::int64_t i) {
    const double size = root[static_cast<std::size_t>(i)] + std::fabs(want.at(i));
    const double error = got.at(i) - want.at(i), allowed = kTensorFactor * unit * size + floor;
    error2 += error * error;
    allowed2 += allowed * allowed;
    return kElementFactor * unit * size + floor;
  });
  const double share = error2 == 0 ? 0 : std::sqrt(error2 / allowed2);
  if (!(share <= 1)) {
    if (c.passed)
      c.reason =
          concat(c.name, ": relative L2 ", number(c.relative_l2), ", ", number(share), " x the bound of the whole");
    c.passed = false;
  }
  c.budget_used = std::isnan(share) ? kInfinity : std::max(c.budget_used, share);
  return c;
}

Comparison compare_bits(std::string name, const TensorView& got, const TensorView& want) {
  Comparison c;
  c.name = std::move(name);
  c.rule = "equal";
  if (refuse_shape(c, got, want)) return c;
  DSV2_CHECK(got.dtype == want.dtype, c.name, ": expected ", dsv2::name(want.dtype), ", found ", dsv2::name(got.dtype));
  const auto element = static_cast<std::size_t>(bits(want.dtype) / 8);
  const auto* a = static_cast<const char*>(got.data);
  const auto* b = static_cast<const char*>(want.data);
  c.count = want.size();
  for (std::int64_t i = 0; i < c.count; ++i, a += element, b += element) {
    if (std::memcmp(a, b, element) == 0) continue;
    const double g = got.at(i), w = want.at(i);
    if (g == w || (std::isnan(g) && std::isnan(w))) continue;
    if (c.outside++ == 0) c.worst = unravel(i, want.shape), c.got = g, c.want = w;
  }
  c.passed = c.outside == 0;
  c.budget_used = c.passed ? 0 : kInfinity;
  return c;
}

}  // namespace dsv2::harness
