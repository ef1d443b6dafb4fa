#pragma once

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// Rotates pairs of each head's row by its token's angles: pairs (i, i + d/2), or (2i, 2i+1) when interleaved, whose
/// result is de-interleaved (first members, then second: QUIRKS 2). Items: tokens.
struct RopeParams {
  const float* x;             // [N,H,d]
  std::int64_t token_stride;  // elements of x between tokens
  std::int64_t head_stride;   // ... and between heads
  std::int64_t heads;         // H
  std::int64_t width;         // d, even
  bool interleaved;
  const float* cos;  // [N,d/2]
  const float* sin;  // [N,d/2]
  float* y;          // [N,H,d], not x
};

}  // namespace dsv2::cpu
