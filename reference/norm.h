// Normalisations over a row: RMSNorm and softmax.
#pragma once

#include "model/tensor.h"
#include "reference/matrix.h"

namespace dsv2::reference {

/// RMSNorm (arXiv 1910.07467, eq. 4): w * x / sqrt(mean(x^2) + eps), for each row of x [N, n]; weight [n].
template <class Scalar>
Matrix<Scalar> rms_norm(const Matrix<Scalar>& x, const TensorView& weight, double eps);

/// exp(x - max x) / sum exp(x - max x) for each row, in place. A row of equal values becomes uniform.
template <class Scalar>
void softmax(Matrix<Scalar>& rows);

}  // namespace dsv2::reference
