#include "reference/norm.h"

#include <cmath>

#include "reference/linear.h"

namespace dsv2::reference {

template <class Scalar>
Matrix<Scalar> rms_norm(const Matrix<Scalar>& x, const TensorView& weight, double eps) {
  const Matrix<Scalar> w = widen_vector<Scalar>(weight);
  Matrix<Scalar> y(x.rows(), x.cols());
  for (Eigen::Index n = 0; n < x.rows(); ++n) {
    const Scalar mean_square = x.row(n).squaredNorm() / static_cast<Scalar>(x.cols());
    y.row(n) = w.cwiseProduct(x.row(n)) / std::sqrt(mean_square + static_cast<Scalar>(eps));
  }
  return y;
}

template <class Scalar>
void softmax(Matrix<Scalar>& rows) {
  for (Eigen::Index n = 0; n < rows.rows(); ++n) {
    const Scalar max = rows.row(n).maxCoeff();
    // Eigen's own vectorised exp stops short of zero for hidden keys.
    rows.row(n) = rows.row(n).unaryExpr([max](Scalar x) { return std::exp(x - max); }).eval();
    rows.row(n) /= rows.row(n).sum();
  }
}

template Matrix<float> rms_norm(const Matrix<float>&, const TensorView&, double);
template Matrix<double> rms_norm(const Matrix<double>&, const TensorView&, double);
template void softmax(Matrix<float>&);
template void softmax(Matrix<double>&);

}  // namespace dsv2::reference
