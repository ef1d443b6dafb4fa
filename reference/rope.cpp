#include "reference/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dsv2::reference {

double yarn_mscale(double factor, double mscale) { return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

RopeFrequencies rope_frequencies(const Config& config, std::int64_t length) {
  const RopeScaling& scaling = config.rope_scaling;
  const double d = static_cast<double>(config.rope_dim()), factor = scaling.factor;
  double theta = config.rope_theta;
  const auto trained_length = static_cast<double>(config.max_position_embeddings);
  const auto n = static_cast<double>(length);
  if (scaling.type == RopeType::dynamic && n > trained_length)
    theta *= std::pow(factor * n / trained_length - (factor - 1), d / (d - 2));

  RopeFrequencies result;
  auto& w = result.radians_per_position;
  w.resize(static_cast<std::size_t>(config.rope_dim() / 2));
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = std::pow(theta, -2.0 * static_cast<double>(i) / d);

  if (scaling.type == RopeType::linear)
    for (double& frequency : w) frequency /= factor;

  if (scaling.type == RopeType::yarn) {
    const double context =
        config.use_mla ? static_cast<double>(scaling.original_max_position_embeddings) : trained_length;
    const auto pair_turning = [&](double turns) {
      return d * std::log(context / (turns * 2 * std::numbers::pi)) / (2 * std::log(theta));
    };
    const double low = std::max(std::floor(pair_turning(scaling.beta_fast)), 0.0);
    double high = std::min(std::ceil(pair_turning(scaling.beta_slow)), d - 1);
    if (low == high) high += 0.001;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double interpolated = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      w[i] = w[i] / factor * interpolated + w[i] * (1 - interpolated);
    }
    if (config.use_mla)
      result.amplitude = yarn_mscale(factor, scaling.mscale) / yarn_mscale(factor, scaling.mscale_all_dim);
    else
      result.amplitude = scaling.attention_factor.value_or(0.1 * std::log(factor) + 1.0);
  }
  return result;
}

template <class Scalar>
RopeTable<Scalar> rope_table(const Config& config, const Call& call) {
  const auto [w, amplitude] = rope_frequencies(config, config.use_mla ? call.total : call.max_position + 1);
  const auto tokens = static_cast<Eigen::Index>(call.positions.size()), pairs = static_cast<Eigen::Index>(w.size());
  RopeTable<Scalar> table{Matrix<Scalar>(tokens, pairs), Matrix<Scalar>(tokens, pairs)};
  for (Eigen::Index n = 0; n < tokens; ++n) {
    for (Eigen::Index i = 0; i < pairs; ++i) {
      const double angle =
          static_cast<double>(call.positions[static_cast<std::size_t>(n)]) * w[static_cast<std::size_t>(i)];
      table.cos(n, i) = static_cast<Scalar>(amplitude * std::cos(angle));
      table.sin(n, i) = static_cast<Scalar>(amplitude * std::sin(angle));
    }
  }
  return table;
}

template <class Scalar>
Matrix<Scalar> rope(const Matrix<Scalar>& x, std::int64_t heads, RopePairs pairs, const RopeTable<Scalar>& table) {
  const Eigen::Index half = table.cos.cols(), d = 2 * half, width = x.cols() / heads;
  const bool interleaved = pairs == RopePairs::interleaved;
  Matrix<Scalar> y(x.rows(), heads * d);
  for (Eigen::Index n = 0; n < x.rows(); ++n) {
    for (Eigen::Index h = 0; h < heads; ++h) {
      const auto in = x.row(n).segment((h + 1) * width - d, d);
      auto out = y.row(n).segment(h * d, d);
      for (Eigen::Index i = 0; i < half; ++i) {
        const Scalar a = in(interleaved ? 2 * i : i), b = in(interleaved ? 2 * i + 1 : i + half);
        out(i) = a * table.cos(n, i) - b * table.sin(n, i);
        out(i + half) = b * table.cos(n, i) + a * table.sin(n, i);
      }
    }
  }
  return y;
}

template RopeTable<float> rope_table(const Config&, const Call&);
template RopeTable<double> rope_table(const Config&, const Call&);
template Matrix<float> rope(const Matrix<float>&, std::int64_t, RopePairs, const RopeTable<float>&);
template Matrix<double> rope(const Matrix<double>&, std::int64_t, RopePairs, const RopeTable<double>&);

}  // namespace dsv2::reference
