#include "optimized/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace dsv2::optimized {
namespace {

/// Upstream's yarn_get_mscale.
double magnitude(double factor, double mscale) { return factor > 1 ? 0.1 * mscale * std::log(factor) + 1 : 1; }

/// Share of interpolation (frequency / factor) in each of yarn's pairs: 0 for fast ones, 1 for slow ones.
std::vector<double> yarn_ramp(const Config& c) {
  const RopeScaling& r = c.rope_scaling;
  const double d = static_cast<double>(c.rope_dim());
  const double trained =
      static_cast<double>(c.use_mla ? r.original_max_position_embeddings : c.max_position_embeddings);
  const auto pair_of = [&](double turns) {
    return d * std::log(trained / (2 * std::numbers::pi * turns)) / (2 * std::log(c.rope_theta));
  };
  const double first = std::max(std::floor(pair_of(r.beta_fast)), 0.0);
  const double last = std::min(std::ceil(pair_of(r.beta_slow)), d - 1);
  const double length = first == last ? 0.001 : last - first;
  std::vector<double> ramp(static_cast<std::size_t>(c.rope_dim() / 2));
  for (std::size_t i = 0; i < ramp.size(); ++i)
    ramp[i] = std::clamp((static_cast<double>(i) - first) / length, 0.0, 1.0);
  return ramp;
}

double amplitude(const Config& c) {
  const RopeScaling& r = c.rope_scaling;
  if (r.type != RopeType::yarn) return 1;
  if (c.use_mla) return magnitude(r.factor, r.mscale) / magnitude(r.factor, r.mscale_all_dim);
  return r.attention_factor.value_or(0.1 * std::log(r.factor) + 1);
}

/// Radians per position of each pair. `length`: tokens that dynamic scaling counts.
std::vector<double> frequencies(const Config& c, std::int64_t length) {
  const RopeScaling& r = c.rope_scaling;
  const double d = static_cast<double>(c.rope_dim());
  const double stretch = static_cast<double>(length) / static_cast<double>(c.max_position_embeddings);
  double theta = c.rope_theta;
  if (r.type == RopeType::dynamic && stretch > 1) theta *= std::pow(r.factor * stretch - r.factor + 1, d / (d - 2));
  const std::vector<double> ramp = r.type == RopeType::yarn ? yarn_ramp(c) : std::vector<double>();
  std::vector<double> w(static_cast<std::size_t>(c.rope_dim() / 2));
  for (std::size_t i = 0; i < w.size(); ++i) {
    w[i] = std::pow(theta, -2 * static_cast<double>(i) / d);
    if (r.type == RopeType::linear) w[i] /= r.factor;
    if (r.type == RopeType::yarn) w[i] *= 1 - ramp[i] + ramp[i] / r.factor;
  }
  return w;
}

}  // namespace

void rope_table(const Config& c, const Call& call, float* cos, float* sin) {
  const std::vector<double> w = frequencies(c, c.use_mla ? call.total : call.max_position + 1);
  const double scale = amplitude(c);
  for (const std::int64_t position : call.positions) {
    for (const double frequency : w) {
      const double angle = static_cast<double>(position) * frequency;
      *cos++ = static_cast<float>(scale * std::cos(angle));
      *sin++ = static_cast<float>(scale * std::sin(angle));
    }
  }
}

float softmax_scale(const Config& c) {
  const RopeScaling& r = c.rope_scaling;
  const double m = c.use_mla && r.mscale_all_dim != 0 ? magnitude(r.factor, r.mscale_all_dim) : 1;
  return static_cast<float>(m * m / std::sqrt(static_cast<double>(c.qk_head_dim())));
}

}  // namespace dsv2::optimized
