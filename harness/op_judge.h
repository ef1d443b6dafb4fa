// What is right for an op alone, and how far from it rounding can lead.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness/compare.h"
#include "harness/op_cases.h"

namespace dsv2::harness {

/// Outputs of an op by name.
using OpOutputs = std::map<std::string, TensorView, std::less<>>;

/// The outputs of the reference in double and, element by element, the bound that they carry. Each element is judged by
///
///     |got - want| <= kElementFactor unit (root + |want|) + floor        unit = u(dtype) + sqrt(n) u(f32)
///
/// where `root` is the root of the sum of squares of what the op sums for this element (what rounding errors of random
/// sign add up to), n how much it sums, u(dtype) counts where rows are rounded before they meet a matrix, and `floor`
/// is what underflow can lose. The tensor as a whole is judged by kTensorFactor times the same, in L2. In bf16 it must
/// also be no further from the truth than twice what the framework loses that rounds inputs and outputs to bf16. Copies
/// and ids are judged exactly; chosen experts as decisions: others are a tie only where the scores that compete are
/// within their own bound.
class OpJudge {
 public:
  OpJudge(const OpCase& op_case, const OpProblem& problem);

  struct Verdict {
    std::vector<Comparison> comparisons;  ///< one for each output
    std::int64_t ties = 0;                ///< rows in which other experts were as good
  };
  /// `got` holds every output of the problem, of any dtype.
  Verdict judge(const OpOutputs& got) const;

  /// The framework's own relative L2 error in bf16, of the first output; 0 where the op is f32 at every precision.
  double framework_error() const { return framework_error_; }

 private:
  struct Bound {
    std::vector<double> root;  // empty: exact
    DType dtype = DType::f32;
    std::int64_t reduction = 1;
    double floor = 0;
  };
  Comparison compare(const OpOutput& output, const TensorView& got) const;
  /// Cached rows that the op quantised: those of its own tokens within half a step, all others untouched.
  Comparison compare_quantised(const OpOutput& output, const TensorView& got, const TensorView& scales) const;
  Comparison compare_choice(const TensorView& got, std::int64_t& ties) const;
  /// Did this row take an expert instead of an equal one of lower id? There is nothing to round.
  bool higher_of_equals(const TensorView& got, const TensorView& want, std::int64_t row) const;

  const OpCase& case_;
  const OpProblem& given_;
  const std::unique_ptr<const OpProblem> widened_;  // where a cached array is int8: the same in f32
  const OpProblem& problem_;
  std::map<std::string, Tensor, std::less<>> want_;
  std::map<std::string, Bound, std::less<>> bounds_;
  double framework_error_ = 0;
};

}  // namespace dsv2::harness
