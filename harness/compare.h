// The comparators of the gate. Every bound is tested as !(error <= bound), so a NaN fails.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/tensor.h"

namespace dsv2::harness {

/// Outcome of comparing one tensor.
struct Comparison {
  std::string name;  ///< of the expected tensor, or of the tap
  bool passed = true;
  bool zeros = false;                   ///< nothing but zeros was expected: proves little
  std::string rule;                     ///< the bound in words: "8 x max(1.2e-06, 1e-6 x max|stored|)"
  std::int64_t count = 0;               ///< elements compared
  std::int64_t outside = 0;             ///< of them, out of bound
  double budget_used = 0;               ///< worst share of the bound; above 1 (or infinite, with a NaN) is a failure
  double relative_l2 = 0;               ///< |got - want| / |want|
  Shape worst;                          ///< index of the element with the largest share
  double got = 0, want = 0, bound = 0;  ///< there
  std::string reason;                   ///< why it failed, where the numbers above do not say it (shapes, counts)
};

/// "full.logits[0, 5, 17]: got 1.5, expected 1.25, off by 0.25 = 310 x the bound"
std::string describe(const Comparison& comparison);

/// Which elements count: one flag per leading index (the product of the first dimensions), or empty for all of them.
/// The shape must be divisible by it.
using Selection = std::vector<bool>;

/// |got - want| <= bound for each element.
Comparison compare_absolute(std::string name, const TensorView& got, const TensorView& want, double bound,
                            const Selection& selection = {});

/// |got - want| <= bounds[i] for element i.
Comparison compare_within(std::string name, const TensorView& got, const TensorView& want,
                          const std::vector<double>& bounds, std::string rule);

/// FORMAT.md's float32 rule: |got - stored| <= 8 max(tolerance, 1e-6 max(1, max|stored|)).
Comparison compare_float32(std::string name, const TensorView& got, const TensorView& stored, double tolerance,
                           const Selection& selection = {});

/// Relative L2 distance of the whole tensor at most `bound`; non-finite values fail whatever the bound.
Comparison compare_relative_l2(std::string name, const TensorView& got, const TensorView& want, double bound,
                               std::string rule, const Selection& selection = {});

/// Integers, exactly.
Comparison compare_exact(std::string name, const TensorView& got, const TensorView& want,
                         const Selection& selection = {});

/// What rounding can do to an op that sums `reduction` products of numbers stored in `dtype`, accumulating in float32.
/// Rounding what is stored costs u(dtype) of the size of the result, whatever n; accumulating n terms costs sqrt(n)
/// u(f32) of it (Higham & Mary 2019, the probabilistic bound). The size is the RMS of the row, to which an element that
/// is large itself adds.
///     unit = u(dtype) + sqrt(n) u(f32)      (u(f64) where the sums are f64)
///     |got - want| <= kElementFactor unit (rms(row) + |want|),   |got - want|_2 <= kTensorFactor unit |want|_2
/// int8 stands for cached rows (quantise_row()), each off by up to kQuantisedRowError of its largest element. Uniform
/// rounding errors of such a row have an L2 of largest / (127 sqrt(12)); u(int8) = 2^-7 lets the largest be 7 times the
/// row's RMS in kTensorFactor u, and in kElementFactor u 16 times, as far as it can be in a row of 256.
struct DerivedBound {
  DType dtype = DType::f32;
  std::int64_t reduction = 1;
  DType accumulate = DType::f32;
  int roundings = 1;  ///< independent ones to dtype: u(dtype) counts sqrt(roundings) times
  double unit() const;
};
inline constexpr double kElementFactor = 8.0, kTensorFactor = 2.0;
/// u(dtype) of DerivedBound: what storing a number costs, relative to the size of its row.
double storage_unit(DType dtype);

/// Relative L2 that a low-precision decoder may be away from the double reference on the rounded weights: int8 and int4
/// 2 %, else 2.5 %.
double low_precision_bound(DType dtype);

/// Both bounds of DerivedBound; rows are the last dimension.
Comparison compare_derived(std::string name, const TensorView& got, const TensorView& want, const DerivedBound& bound);

/// The same for an op alone, where what each element sums is known: `root` holds, element by element, the root of the
/// sum of squares of its terms, and takes the place of the row's RMS. `floor` is added to every element's bound.
///     |got - want| <= kElementFactor unit (root + |want|) + floor, and in L2 over the tensor kTensorFactor times the
///     same
Comparison compare_summed(std::string name, const TensorView& got, const TensorView& want,
                          const std::vector<double>& root, const DerivedBound& bound, double floor);

/// The same bits, but for the payload of a NaN and the sign of a zero.
Comparison compare_bits(std::string name, const TensorView& got, const TensorView& want);
/// The same two bounds for a unit made of several ops'; `words` say of what.
Comparison compare_derived(std::string name, const TensorView& got, const TensorView& want, double unit,
                           const std::string& words);

/// Relative L2 distance of the selected elements; infinite when one of them is not finite in `got`.
double relative_l2(const TensorView& got, const TensorView& want, const Selection& selection = {});

}  // namespace dsv2::harness
