// Stored weights as Eigen matrices, and the linear map. Weights are widened exactly at every use, a block of rows at a
// time, so that a checkpoint in bfloat16 never exists in memory a second time.
#pragma once

#include "model/weights.h"
#include "reference/matrix.h"

namespace dsv2::reference {

/// Rows first..first+count-1 of a stored matrix [rows, cols] of any dtype.
template <class Scalar>
Matrix<Scalar> widen_rows(const TensorView& stored, std::int64_t first, std::int64_t count);

/// All of a stored vector [n], as a matrix [1, n].
template <class Scalar>
Matrix<Scalar> widen_vector(const TensorView& stored);

/// y = x W^T + b: [N, in] -> [N, out]. An absent bias is zero.
template <class Scalar>
Matrix<Scalar> linear(const Matrix<Scalar>& x, const LinearWeights& weights);

}  // namespace dsv2::reference
