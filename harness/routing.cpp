#include "harness/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/gate.h"

namespace dsv2::harness {
namespace {

/// Roundings on the way from a logit to a score that competes, at most: exponential (2 ulp), sum, quotient, bias.
constexpr double kScoreRoundings = 8;
/// A score below it is 0 in float32, no more than what stands for a rejected group.
constexpr double kUnderflow = std::numeric_limits<float>::denorm_min();
/// Sets of groups that are tried, at most.
constexpr int kMostSets = 10'000;

using Row = reference::Matrix<double>;
using Ids = std::vector<std::int64_t>;

/// One token whose experts differ.
class Token {
 public:
  Token(const TensorView& logits, std::int64_t row, std::span<const double> slack, const Config& config,
        const TensorView& bias)
      : config_(config), bias_(bias), experts_(logits.dim(1)) {
    for (std::int64_t e = 0; e < experts_; ++e) {
      logits_.push_back(logits.at(row * experts_ + e));
      slack_.push_back(slack[static_cast<std::size_t>(row * experts_ + e)]);
    }
  }

  /// Does the gate's rule choose `ids` for some logits within their slack? Tried are logits that lean to them, and,
  /// where groups compete first, logits that lean to each set of groups and then, within that set, to `ids`: an expert
  /// of a rejected group may be among them (QUIRKS 7).
  bool may_choose(const Ids& ids) const {
    const Row scores = leaning_to(ids);
    if (chosen(scores, config_) == ids) return true;
    if (config_.topk_method == TopkMethod::greedy) return false;
    std::vector<bool> kept(static_cast<std::size_t>(config_.n_group));
    std::fill_n(kept.begin(), config_.topk_group, true);
    for (int tried = 0; tried < kMostSets; ++tried) {
      if (may_keep(kept) && among(kept, scores) == ids) return true;
      if (!std::prev_permutation(kept.begin(), kept.end())) return false;
    }
    return false;
  }

 private:
  /// Scores when the logits of `ids` are as large, and all others as small, as they may be.
  Row leaning_to(const Ids& ids) const {
    Row row(1, experts_);
    const auto sign = [&](std::int64_t e) { return std::binary_search(ids.begin(), ids.end(), e) ? 1.0 : -1.0; };
    for (std::int64_t e = 0; e < experts_; ++e)
      row(0, e) = logits_[static_cast<std::size_t>(e)] + sign(e) * slack_[static_cast<std::size_t>(e)];
    row = reference::gate_scores(row, config_.scoring_func);
    for (std::int64_t e = 0; e < experts_; ++e) {
      const double size = row(0, e) + (bias_ ? std::fabs(bias_.at(e)) : 0.0);
      row(0, e) += sign(e) * (kScoreRoundings * unit_roundoff(DType::f32) * size + kUnderflow);
    }
    return row;
  }
  Ids chosen(const Row& scores, const Config& config) const {
    const auto selection = reference::select_experts(scores, bias_, config);
    return {selection.topk_idx.data(), selection.topk_idx.data() + selection.topk_idx.size()};
  }
  std::int64_t group_of(std::int64_t expert) const { return expert / (experts_ / config_.n_group); }
  Ids members(const std::vector<bool>& groups) const {
    Ids ids;
    for (std::int64_t e = 0; e < experts_; ++e)
      if (groups[static_cast<std::size_t>(group_of(e))]) ids.push_back(e);
    return ids;
  }
  /// Does the rule keep these groups when their logits are as large as they may be? With so many to choose, and scores
  /// so far above 0 that no rejected one competes, it chooses their members.
  bool may_keep(const std::vector<bool>& groups) const {
    constexpr double kFarAbove = 1e4;
    const Ids ids = members(groups);
    Config all = config_;
    all.num_experts_per_tok = static_cast<std::int64_t>(ids.size());
    const Row scores = leaning_to(ids).array() + kFarAbove;
    return chosen(scores, all) == ids;
  }
  /// What is chosen once these groups are kept.
  Ids among(const std::vector<bool>& groups, const Row& scores) const {
    Row values = scores;
    for (std::int64_t e = 0; e < experts_; ++e) {
      if (bias_) values(0, e) += bias_.at(e);
      if (!groups[static_cast<std::size_t>(group_of(e))]) values(0, e) = 0;
    }
    Config greedy = config_;
    greedy.topk_method = TopkMethod::greedy;
    return chosen(values, greedy);
  }

  const Config& config_;
  const TensorView& bias_;
  std::int64_t experts_;
  std::vector<double> logits_, slack_;
};

}  // namespace

std::vector<Choice> judge_choices(const TensorView& got, const TensorView& want, const TensorView& logits,
                                  std::span<const double> slack, const Config& config, const TensorView& bias) {
  const std::int64_t N = logits.dim(0), k = want.dim(-1);
  const auto row = [&](const TensorView& t, std::int64_t n) {
    const auto ids = t.as<std::int64_t>().subspan(static_cast<std::size_t>(n * k), static_cast<std::size_t>(k));
    return Ids(ids.begin(), ids.end());
  };
  std::vector<Choice> choices;
  for (std::int64_t n = 0; n < N; ++n) {
    const Ids ids = row(got, n);
    Choice choice = Choice::same;
    if (ids != row(want, n))
      choice = Token(logits, n, slack, config, bias).may_choose(ids) ? Choice::tie : Choice::other;
    choices.push_back(choice);
  }
  return choices;
}

}  // namespace dsv2::harness
