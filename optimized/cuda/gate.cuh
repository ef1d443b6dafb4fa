// The router's decisions: a warp a token. All in f32. An expert's rank is how many are better (larger, or equal and
// before it): each lane ranks its own experts, so that ties go to the lower id whatever the lanes.
#pragma once

#include <cmath>

#include "optimized/cuda/kernels.h"
#include "optimized/cuda/load.cuh"

namespace dsv2::cuda {

/// Scores of a token's logits, into `scores`; ends with them visible to the warp.
__device__ inline void score(const GateParams& p, const float* logits, float* scores) {
  const int lane = threadIdx.x % kWarp;
  if (p.scoring == ScoringFunc::sigmoid) {
    for (int e = lane; e < p.experts; e += kWarp) scores[e] = 1.0f / (1.0f + expf(-logits[e]));
  } else {
    float most = -INFINITY, total = 0;
    for (int e = lane; e < p.experts; e += kWarp) most = fmaxf(most, logits[e]);
    most = warp_max(most);
    for (int e = lane; e < p.experts; e += kWarp) total += scores[e] = expf(logits[e] - most);
    total = warp_sum(total);
    for (int e = lane; e < p.experts; e += kWarp) scores[e] /= total;
  }
  __syncwarp();  // other lanes' scores are read next
}

__device__ inline int rank(const float* x, int n, int i) {
  int before = 0;
  for (int j = 0; j < n; ++j) before += x[j] > x[i] || (x[j] == x[i] && j < i) ? 1 : 0;
  return before;
}

__device__ inline float group_score(const GateParams& p, const float* choice) {
  float best = -INFINITY, second = -INFINITY;
  for (int e = 0; e < p.experts / p.groups; ++e) {
    if (choice[e] > best)
      second = best, best = choice[e];
    else if (choice[e] > second)
      second = choice[e];
  }
  return p.method == TopkMethod::noaux_tc && p.experts > p.groups ? best + second : best;
}

/// Token n: logits -> scores, topk_idx. `choice` is shared memory of the warp's own, [E + groups].
__device__ inline void select_experts(const GateParams& p, std::int64_t n, float* choice) {
  float* const groups = choice + p.experts;
  const int lane = threadIdx.x % kWarp;
  const float* logits = p.logits + n * p.experts;
  float* scores = p.scores + n * p.experts;
  score(p, logits, choice);
  const bool biased = p.method == TopkMethod::noaux_tc;
  // Weights come from what competes, zeros of rejected groups included; in noaux_tc without the bias (QUIRKS 7, 9).
  if (biased)
    for (int e = lane; e < p.experts; e += kWarp) scores[e] = choice[e];
  if (p.bias != nullptr)
    for (int e = lane; e < p.experts; e += kWarp) choice[e] += p.bias[e];
  __syncwarp();  // what competes is whole
  if (p.method != TopkMethod::greedy) {
    const int size = p.experts / p.groups;
    for (int g = lane; g < p.groups; g += kWarp) groups[g] = group_score(p, choice + g * size);
    __syncwarp();  // the groups' scores are there
    for (int g = lane; g < p.groups; g += kWarp)
      if (rank(groups, p.groups, g) >= p.top_groups)
        for (int e = g * size; e < (g + 1) * size; ++e) choice[e] = 0;
    __syncwarp();  // rejected groups are 0
  }
  if (!biased)
    for (int e = lane; e < p.experts; e += kWarp) scores[e] = choice[e];
  int chosen = 0;
  for (int first = 0; first < p.experts; first += kWarp) {
    const int e = first + lane;
    const bool mine = e < p.experts && rank(choice, p.experts, e) < p.top_k;
    const unsigned all = __ballot_sync(kAllLanes, mine);
    if (mine) p.topk_idx[n * p.top_k + chosen + __popc(all & ((1u << lane) - 1))] = e;
    chosen += __popc(all);
  }
}

/// Token n: scores, topk_idx -> topk_weight.
__device__ inline void weigh_experts(const GateParams& p, std::int64_t n) {
  const std::int32_t* idx = p.topk_idx + n * p.top_k;
  const float* scores = p.scores + n * p.experts;
  float total = 0;
  for (int j = 0; j < p.top_k; ++j) total += scores[idx[j]];  // every lane, in one order
  const float divisor = p.normalise && p.top_k > 1 ? total + 1e-20f : 1.0f;
  for (int j = threadIdx.x % kWarp; j < p.top_k; j += kWarp)
    p.topk_weight[n * p.top_k + j] = scores[idx[j]] / divisor * p.scaling;
}

}  // namespace dsv2::cuda
