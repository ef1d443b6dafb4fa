#include "reference/linear.h"

#include <algorithm>

#include "model/quantised.h"

namespace dsv2::reference {
namespace {

constexpr std::int64_t kBlockRows = 128;  // 1.3 MB at a width of 1280 in double: stays in a second-level cache

}  // namespace

template <class Scalar>
Matrix<Scalar> widen_rows(const TensorView& stored, std::int64_t first, std::int64_t count) {
  Matrix<Scalar> wide(count, stored.dim(1));
  widen_rows_into(stored, first, count, wide.data());
  return wide;
}

template <class Scalar>
Matrix<Scalar> widen_vector(const TensorView& stored) {
  return widen_rows<Scalar>({stored.dtype, {1, stored.size()}, stored.data}, 0, 1);
}

template <class Scalar>
Matrix<Scalar> linear(const Matrix<Scalar>& x, const LinearWeights& weights) {
  const std::int64_t out = weights.weight.dim(0);
  Matrix<Scalar> y(x.rows(), out);
  for (std::int64_t first = 0; first < out; first += kBlockRows) {
    const std::int64_t count = std::min(kBlockRows, out - first);
    y.middleCols(first, count).noalias() = x * widen_rows<Scalar>(weights.weight, first, count).transpose();
  }
  if (weights.bias) y.rowwise() += widen_vector<Scalar>(weights.bias).row(0);
  return y;
}

template Matrix<float> widen_rows<float>(const TensorView&, std::int64_t, std::int64_t);
template Matrix<double> widen_rows<double>(const TensorView&, std::int64_t, std::int64_t);
template Matrix<float> widen_vector<float>(const TensorView&);
template Matrix<double> widen_vector<double>(const TensorView&);
template Matrix<float> linear(const Matrix<float>&, const LinearWeights&);
template Matrix<double> linear(const Matrix<double>&, const LinearWeights&);

}  // namespace dsv2::reference
