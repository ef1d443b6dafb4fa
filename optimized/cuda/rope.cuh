// Rotation of a pair of columns, and where a row of a cache lies.
#pragma once

#include <cstdint>

#include "optimized/cuda/types.h"

namespace dsv2::cuda {

struct Pair {
  float first, second;
};
__device__ inline Pair rotated(Pair x, float cos, float sin) {
  return {x.first * cos - x.second * sin, x.second * cos + x.first * sin};
}

/// Row `position` of a head.
__device__ inline std::int64_t cached_at(const CachedRows& rows, int b, int head, int position) {
  return b * rows.batch_stride + head * rows.head_stride + static_cast<std::int64_t>(position) * rows.row_stride;
}

}  // namespace dsv2::cuda
