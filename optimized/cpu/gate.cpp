#include "optimized/cpu/gate.h"

#include "optimized/cpu/isa.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

void score(const GateParams& p, const float* logits, float* scores) {
  if (p.scoring == ScoringFunc::sigmoid) {
    for (std::int64_t e = 0; e < p.experts; ++e) scores[e] = 1.0f / (1.0f + __builtin_expf(-logits[e]));
    return;
  }
  float max = logits[0], total = 0;
  for (std::int64_t e = 1; e < p.experts; ++e) max = logits[e] > max ? logits[e] : max;
  for (std::int64_t e = 0; e < p.experts; ++e) total += scores[e] = __builtin_expf(logits[e] - max);
  for (std::int64_t e = 0; e < p.experts; ++e) scores[e] /= total;
}

float group_score(const GateParams& p, const float* choice) {
  float best = -__builtin_inff(), second = best;
  for (std::int64_t e = 0; e < p.experts / p.groups; ++e) {
    if (choice[e] > best)
      second = best, best = choice[e];
    else if (choice[e] > second)
      second = choice[e];
  }
  return p.method == TopkMethod::noaux_tc && p.experts > p.groups ? best + second : best;
}

/// Rank of element i among n: how many are larger, or equal and before it.
std::int64_t rank(const float* x, std::int64_t n, std::int64_t i) {
  std::int64_t before = 0;
  for (std::int64_t j = 0; j < n; ++j) before += x[j] > x[i] || (x[j] == x[i] && j < i);
  return before;
}

/// Fills rejected groups with 0 (QUIRKS 7). `groups` has room for a score per group.
void limit_groups(const GateParams& p, float* choice, float* groups) {
  const std::int64_t size = p.experts / p.groups;
  for (std::int64_t g = 0; g < p.groups; ++g) groups[g] = group_score(p, choice + g * size);
  for (std::int64_t g = 0; g < p.groups; ++g)
    if (rank(groups, p.groups, g) >= p.top_groups)
      for (std::int64_t e = g * size; e < (g + 1) * size; ++e) choice[e] = 0.0f;
}

}  // namespace

void gate_select(const GateParams& p, Range items) {
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    float *scores = p.scores + i * p.experts, *choice = p.choice + i * p.experts;
    score(p, p.logits + i * p.experts, choice);
    if (p.bias)
      for (std::int64_t e = 0; e < p.experts; ++e) choice[e] += p.bias[e];
    if (p.method != TopkMethod::greedy) limit_groups(p, choice, scores);
    std::int64_t* idx = p.topk_idx + i * p.top_k;
    std::int64_t chosen = 0;
    for (std::int64_t e = 0; e < p.experts && chosen < p.top_k; ++e)
      if (rank(choice, p.experts, e) < p.top_k) idx[chosen++] = e;
    // Weights come from what competed, zeros of rejected groups included; in noaux_tc without the bias (QUIRKS 7, 9).
    if (p.method == TopkMethod::noaux_tc)
      score(p, p.logits + i * p.experts, scores);
    else
      for (std::int64_t e = 0; e < p.experts; ++e) scores[e] = choice[e];
  }
}

void gate_weight(const GateParams& p, Range items) {
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const std::int64_t* idx = p.topk_idx + i * p.top_k;
    float* weight = p.topk_weight + i * p.top_k;
    float total = 0;
    for (std::int64_t k = 0; k < p.top_k; ++k) total += weight[k] = p.scores[i * p.experts + idx[k]];
    const float divisor = p.normalise && p.top_k > 1 ? total + 1e-20f : 1.0f;
    for (std::int64_t k = 0; k < p.top_k; ++k) weight[k] = weight[k] / divisor * p.scaling;
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
