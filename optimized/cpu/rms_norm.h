#pragma once

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// y = x / sqrt(mean(x^2) + eps) * weight, the mean in f32 over vector lanes. Items: rows.
struct RmsNormParams {
  const float* x;         // [N,D], rows x_stride apart
  std::int64_t x_stride;  // elements
  const float* weight;    // [D]
  float eps;
  std::int64_t width;  // D
  float* y;            // [N,D]; may be x when x_stride = D
};

/// x += y, element by element. Items: elements.
struct AddParams {
  float* x;
  const float* y;
};

}  // namespace dsv2::cpu
