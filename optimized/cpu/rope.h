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

/// Copies rows into the cache in its element type, rounding to nearest even. Items: tokens, b * S + s.
struct KvWriteParams {
  const float* x;             // [B,S,K,d], tokens x_stride apart
  std::int64_t x_stride;      // elements
  void* y;                    // row 0 of the first new position of sequence 0, head 0: [B,K,capacity,d]
  Storage storage;            // of y
  std::int64_t head_stride;   // elements of y between heads
  std::int64_t batch_stride;  // ... and between sequences
  std::int64_t tokens;        // S
  std::int64_t heads;         // K
  std::int64_t width;         // d
};

}  // namespace dsv2::cpu
