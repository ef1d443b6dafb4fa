// The matrix type of the reference.
#pragma once

#include <Eigen/Core>

namespace dsv2::reference {

/// Row-major, as every tensor of the project. Activations have one token (or one query) per row: [N, width], N = B*S.
/// `Scalar` is double to judge and float to time; everything is instantiated for exactly these two.
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A matrix, or a block or map of one, that is only read.
template <class Scalar>
using MatrixRef = Eigen::Ref<const Matrix<Scalar>>;

}  // namespace dsv2::reference
