#include "harness/routing.h"

#include <algorithm>
#include <cmath>

#include "reference/gate.h"

namespace dsv2::harness {
namespace {

/// Roundings on the way from a logit to a score that competes, at most: exponential (2 ulp), sum, quotient, bias.
constexpr double kScoreRoundings = 8;

/// +1 for the experts in got's row, -1 for the others; empty when an id is none.
std::vector<double> directions(const TensorView& got, std::int64_t row, std::int64_t experts) {
  const std::int64_t k = got.dim(-1);
  std::vector<double> sign(static_cast<std::size_t>(experts), -1.0);
  for (std::int64_t j = 0; j < k; ++j) {
    const std::int64_t id = got.as<std::int64_t>()[static_cast<std::size_t>(row * k + j)];
    if (id < 0 || id >= experts) return {};
    sign[static_cast<std::size_t>(id)] = 1.0;
  }
  return sign;
}

}  // namespace

std::vector<Choice> judge_choices(const TensorView& got, const TensorView& want, const TensorView& logits,
                                  std::span<const double> slack, const Config& config, const TensorView& bias) {
  const std::int64_t N = logits.dim(0), E = logits.dim(1), k = want.dim(-1);
  std::vector<Choice> choices(static_cast<std::size_t>(N), Choice::same);
  const auto g = got.as<std::int64_t>(), w = want.as<std::int64_t>();
  for (std::int64_t n = 0; n < N; ++n) {
    const auto mine = g.subspan(static_cast<std::size_t>(n * k), static_cast<std::size_t>(k));
    if (std::equal(mine.begin(), mine.end(), w.begin() + n * k)) continue;
    Choice& choice = choices[static_cast<std::size_t>(n)] = Choice::other;
    const std::vector<double> sign = directions(got, n, E);
    if (sign.empty()) continue;
    reference::Matrix<double> leaning(1, E);
    for (std::int64_t e = 0; e < E; ++e) {
      const auto i = static_cast<std::size_t>(n * E + e);
      leaning(0, e) = logits.at(n * E + e) + sign[static_cast<std::size_t>(e)] * slack[i];
    }
    reference::Matrix<double> scores = reference::gate_scores(leaning, config.scoring_func);
    for (std::int64_t e = 0; e < E; ++e) {
      const double size = scores(0, e) + (bias ? std::fabs(bias.at(e)) : 0.0);
      scores(0, e) += sign[static_cast<std::size_t>(e)] * kScoreRoundings * unit_roundoff(DType::f32) * size;
    }
    const auto chosen = reference::select_experts(scores, bias, config).topk_idx;
    if (std::equal(mine.begin(), mine.end(), chosen.data())) choice = Choice::tie;
  }
  return choices;
}

}  // namespace dsv2::harness
