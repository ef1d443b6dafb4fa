#pragma once

#include "model/config.h"
#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// One MLP and the tokens that pass through it: a routed expert, the shared experts, or a dense layer.
struct ExpertSegment {
  const void *gate_proj, *up_proj;  // [F,D]
  const void* down_proj;            // [D,F]
  std::int64_t width;               // F
  std::int64_t rows;                // n, tokens
  const std::int64_t* tokens;       // [n], ascending; null: 0..n-1
  const float* weight;              // [n]: share of this expert in each token's sum; null: 1
  void* act;                        // [n, packed_width(F)], packed for the arithmetic of down_proj
};

/// experts_act: act = activation(x gate_proj^T) * (x up_proj^T). Items: hidden units, segment after segment.
/// experts_down: y[token] = sum over segments of weight * (act down_proj^T), added in the order of the segments.
/// Items: columns of y. Together they read each touched expert once; nothing is gathered.
struct ExpertsParams {
  const ExpertSegment* segments;
  std::int64_t segment_count;
  Arithmetic up_arithmetic;    // of gate_proj and up_proj
  Arithmetic down_arithmetic;  // of down_proj
  Activation activation;
  std::int64_t hidden;  // D
  std::int64_t tokens;  // N
  const void* x;        // [N, packed_width(D)], packed for up_arithmetic
  float* y;             // [N,D]
};

}  // namespace dsv2::cpu
