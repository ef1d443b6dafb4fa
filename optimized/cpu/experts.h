#pragma once

#include "model/config.h"
#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// One MLP and the tokens that pass through it: a routed expert, the shared experts, or a dense layer.
struct ExpertSegment {
  const void *gate_proj, *up_proj;  // [F,D] in panels
  const void* down_proj;            // [D,F] in panels
  std::int64_t width;               // F
  std::int64_t rows;                // n, tokens
  const std::int64_t* tokens;       // [n], ascending; null: 0..n-1
  const float* weight;              // [n]: share of this expert in each token's sum; null: 1
  void* act;                        // [n] packed rows of F, for the arithmetic of down_proj
};

/// experts_act: act = activation(x gate_proj^T) * (x up_proj^T). Items: hidden units, segment after
/// segment, each filled up to a multiple of kItem.
/// experts_down: y[token] = sum over segments of weight * (act down_proj^T), added in the order of the segments.
/// Items: columns of y, filled up to a multiple of kItem. Ranges begin at such. Together they read each touched expert
/// once; nothing is gathered.
struct ExpertsParams {
  const ExpertSegment* segments;
  std::int64_t segment_count;
  Arithmetic up_arithmetic;    // of gate_proj and up_proj
  Arithmetic down_arithmetic;  // of down_proj
  Activation activation;
  std::int64_t hidden;  // D
  std::int64_t tokens;  // N
  const void* x;        // [N] packed rows of D, for up_arithmetic
  float* y;             // [N,D]
};

}  // namespace dsv2::cpu
