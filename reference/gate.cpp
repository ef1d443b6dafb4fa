#include "reference/gate.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "reference/linear.h"
#include "reference/norm.h"

namespace dsv2::reference {
namespace {

/// Indices of the `count` largest values, ascending; of equal values the first wins.
template <class Scalar>
std::vector<std::int64_t> largest(const std::vector<Scalar>& values, std::int64_t count) {
  std::vector<bool> taken(values.size());
  for (std::int64_t i = 0; i < count; ++i) {
    std::size_t best = values.size();
    for (std::size_t j = 0; j < values.size(); ++j)
      if (!taken[j] && (best == values.size() || values[j] > values[best])) best = j;
    taken[best] = true;
  }
  std::vector<std::int64_t> indices;
  for (std::size_t j = 0; j < values.size(); ++j)
    if (taken[j]) indices.push_back(static_cast<std::int64_t>(j));
  return indices;
}

/// Sum of the `count` largest values of a group.
template <class Scalar>
Scalar sum_of_largest(const Scalar* group, std::int64_t size, std::int64_t count) {
  std::vector<Scalar> values(group, group + size);
  Scalar sum = 0;
  for (const std::int64_t i : largest(values, std::min(size, count))) sum += values[static_cast<std::size_t>(i)];
  return sum;
}

/// Replaces the values of all but the `topk_group` best groups of one token by 0.
template <class Scalar>
void reject_groups(std::vector<Scalar>& values, const Config& config) {
  const std::int64_t size = static_cast<std::int64_t>(values.size()) / config.n_group;
  const std::int64_t scored = config.topk_method == TopkMethod::noaux_tc ? 2 : 1;
  std::vector<Scalar> group_scores;
  for (std::int64_t g = 0; g < config.n_group; ++g)
    group_scores.push_back(sum_of_largest(values.data() + g * size, size, scored));
  const auto kept = largest(group_scores, config.topk_group);
  for (std::int64_t g = 0; g < config.n_group; ++g)
    if (!std::binary_search(kept.begin(), kept.end(), g)) std::fill_n(values.begin() + g * size, size, Scalar{0});
}

}  // namespace

template <class Scalar>
Matrix<Scalar> gate_scores(const Matrix<Scalar>& logits, ScoringFunc scoring_func) {
  if (scoring_func == ScoringFunc::sigmoid)
    return logits.unaryExpr([](Scalar x) { return Scalar{1} / (Scalar{1} + std::exp(-x)); });
  Matrix<Scalar> scores = logits;
  softmax(scores);
  return scores;
}

template <class Scalar>
Selection<Scalar> select_experts(const Matrix<Scalar>& scores, const TensorView& bias, const Config& config) {
  const bool biased = config.topk_method == TopkMethod::noaux_tc;
  Matrix<Scalar> values = scores;
  if (biased) values.rowwise() += widen_vector<Scalar>(bias).row(0);
  Selection<Scalar> selection;
  selection.topk_idx.resize(scores.rows(), config.num_experts_per_tok);
  for (Eigen::Index n = 0; n < scores.rows(); ++n) {
    std::vector<Scalar> row(values.row(n).begin(), values.row(n).end());
    if (config.topk_method != TopkMethod::greedy) reject_groups(row, config);
    const auto chosen = largest(row, config.num_experts_per_tok);
    std::copy(chosen.begin(), chosen.end(), selection.topk_idx.row(n).begin());
    std::copy(row.begin(), row.end(), values.row(n).begin());
  }
  selection.scores = biased ? scores : values;
  return selection;
}

template <class Scalar>
Matrix<Scalar> gate_weights(const Selection<Scalar>& selection, const Config& config) {
  const auto& [topk_idx, scores] = selection;
  Matrix<Scalar> weights(topk_idx.rows(), topk_idx.cols());
  for (Eigen::Index n = 0; n < weights.rows(); ++n)
    for (Eigen::Index j = 0; j < weights.cols(); ++j) weights(n, j) = scores(n, topk_idx(n, j));
  if (config.norm_topk_prob && weights.cols() > 1)
    for (Eigen::Index n = 0; n < weights.rows(); ++n) weights.row(n) /= weights.row(n).sum() + Scalar(1e-20);
  return weights * static_cast<Scalar>(config.routed_scaling_factor);
}

template <class Scalar>
Routing<Scalar> gate(const Matrix<Scalar>& x, const LayerWeights& weights, const Config& config, const Probe& probe) {
  const std::int64_t E = *config.n_routed_experts, k = config.num_experts_per_tok;
  Matrix<Scalar> logits = linear(x, {weights.gate, {}});
  probe.tap("logits", logits, {x.rows(), E});
  auto selection = select_experts(gate_scores(logits, config.scoring_func), weights.e_score_correction_bias, config);
  probe.tap("topk_idx", selection.topk_idx, {x.rows(), k});
  for (const std::int64_t id : selection.topk_idx.reshaped())
    DSV2_CHECK(id >= 0 && id < E, "topk_idx: expected experts 0..", E - 1, ", found ", id);
  Matrix<Scalar> topk_weight = gate_weights(selection, config);
  probe.tap("topk_weight", topk_weight, {x.rows(), k});
  return {std::move(selection.topk_idx), std::move(topk_weight)};
}

template Matrix<float> gate_scores(const Matrix<float>&, ScoringFunc);
template Matrix<double> gate_scores(const Matrix<double>&, ScoringFunc);
template Selection<float> select_experts(const Matrix<float>&, const TensorView&, const Config&);
template Selection<double> select_experts(const Matrix<double>&, const TensorView&, const Config&);
template Matrix<float> gate_weights(const Selection<float>&, const Config&);
template Matrix<double> gate_weights(const Selection<double>&, const Config&);
template Routing<float> gate(const Matrix<float>&, const LayerWeights&, const Config&, const Probe&);
template Routing<double> gate(const Matrix<double>&, const LayerWeights&, const Config&, const Probe&);

}  // namespace dsv2::reference
