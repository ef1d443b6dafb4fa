// Rows of the cache: how they are addressed, written and read back.
#pragma once

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// Rows that a query looks at: a matrix per (sequence, key head).
struct KeyRows {
  const void* data = nullptr;  // null: absent
  Storage storage = Storage::f32;
  std::int64_t batch_stride = 0, head_stride = 0, row_stride = 0;  // elements; head_stride 0: shared by all heads
  const std::uint16_t* scales = nullptr;                           // i8: bf16, one for each row, in the rows' order
};

/// Copies rows into the cache in its element type, rounding to nearest even; to i8 as quantise_row() of
/// model/kv_cache.h says. Items: tokens, b * S + s.
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
  std::uint16_t* scales;      // i8: the scale of row y, [B,K,capacity] bf16; else null
};

/// Rows 0.. of one matrix as f32. Items: rows.
struct KvWidenParams {
  KeyRows rows;  // of sequence and head 0
  std::int64_t width;
  float* y;  // [., width]
};

}  // namespace dsv2::cpu
