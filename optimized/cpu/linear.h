#pragma once

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// One matrix of a sweep: y = x W^T + bias.
struct LinearSegment {
  const void* x;           // [N] packed rows
  const void* weight;      // [O,K] in panels
  const float* bias;       // [O] or null
  float* y;                // [N,O], rows y_stride apart
  std::int64_t y_stride;   // elements
  std::int64_t out_width;  // O
};

/// Several matrices of one arithmetic over rows of one shape, in one sweep: q, k and v; one head after the other.
/// Items: matrix rows, segment after segment, each filled up to a multiple of kItem; ranges begin at such. Each matrix
/// is read once; a sum runs in the order of k.
struct LinearParams {
  Arithmetic arithmetic;
  std::int64_t rows;      // N
  std::int64_t width;     // K
  std::int64_t x_stride;  // bytes between packed rows
  const LinearSegment* segments;
  std::int64_t segment_count;
};

}  // namespace dsv2::cpu
