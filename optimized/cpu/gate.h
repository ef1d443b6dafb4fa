#pragma once

#include "model/config.h"
#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// Chooses k of E experts from the gate's logits (QUIRKS 6-9). Ties go to the lower id. Items: tokens.
struct GateParams {
  const float* logits;      // [N,E]
  float* scores;            // [N,E]: written by gate_select (softmax or sigmoid), read by gate_weight
  float* choice;            // [N,E]: scratch, scores as they compete
  const float* bias;        // [E], noaux_tc; else null
  std::int64_t* topk_idx;   // [N,k], ascending: written by gate_select, read by gate_weight
  float* topk_weight;       // [N,k]: written by gate_weight
  std::int64_t experts;     // E
  std::int64_t top_k;       // k
  std::int64_t groups;      // n_group, divides E
  std::int64_t top_groups;  // topk_group
  TopkMethod method;
  ScoringFunc scoring;
  bool normalise;  // norm_topk_prob
  float scaling;   // routed_scaling_factor
};

}  // namespace dsv2::cpu
