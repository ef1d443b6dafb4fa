#pragma once

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// Elements of a packed row: `width` rounded up to kPackedMultiple.
static constexpr std::int64_t packed_width(std::int64_t width) {
  return (width + kPackedMultiple - 1) / kPackedMultiple * kPackedMultiple;
}

/// Rows as the matrix ops want them: gathered, in the element order of the instruction set and arithmetic, padded with
/// zeros. Items: packed rows.
struct PackParams {
  const void* x;             // [.,K], rows x_stride apart
  Storage storage;           // of x
  std::int64_t x_stride;     // elements
  const std::int64_t* rows;  // [N]: row of x that packed row i takes; null: i
  std::int64_t width;        // K
  Arithmetic arithmetic;     // of the matrix that the rows will meet
  void* y;                   // [N, packed width]: f32, or bf16 for bf16_dot
};

/// The inverse, for looking at packed rows (bf16_dot: as rounded). Items: rows.
struct UnpackParams {
  const void* x;          // [N, packed width]
  std::int64_t width;     // K
  Arithmetic arithmetic;  // for which x was packed
  float* y;               // [N,K]
};

}  // namespace dsv2::cpu
