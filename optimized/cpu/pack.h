#pragma once

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// Packed rows are padded with zeros to a multiple of this many elements.
inline constexpr std::int64_t kPackedMultiple = 64;

static constexpr std::int64_t packed_width(std::int64_t width) {
  return (width + kPackedMultiple - 1) / kPackedMultiple * kPackedMultiple;
}

/// Bytes of a packed row, K being packed_width:
///
///     f32, bf16   f32 [K]
///     bf16_dot    bf16 [K]
///     i8, i4      an element is scale * q, |q| <= 16319, by groups of 32: f32 scale[K/32], i32 sum of q [K/32], then q
///                 itself: where bytes are multiplied (AVX-512 VNNI) q = 128 high + low as i8 high[K], low[K];
///                 elsewhere i16 q[K], columns 0, 2, 1, 3 of each four
///     _wide       bf16 [K] where bf16_dot is, else f32 [K]; room for f32 in any case
static constexpr std::int64_t packed_bytes(Arithmetic arithmetic, std::int64_t width) {
  const std::int64_t padded = packed_width(width);
  switch (arithmetic) {
    case Arithmetic::bf16_dot:
      return padded * 2;
    case Arithmetic::i8:
    case Arithmetic::i4:
      return padded / 32 * 8 + padded * 2;
    default:
      return padded * 4;
  }
}

/// Rows as the matrix ops want them. Items: packed rows.
struct PackParams {
  const void* x;             // [.,K], rows x_stride apart
  Storage storage;           // of x: f32 or bf16
  std::int64_t x_stride;     // elements
  const std::int64_t* rows;  // [N]: row of x that packed row i takes; null: i
  std::int64_t width;        // K
  Arithmetic arithmetic;     // of the matrix that the rows will meet
  void* y;                   // [N], packed_bytes(arithmetic, width) each
};

/// The inverse, for looking at packed rows, as rounded. Items: rows.
struct UnpackParams {
  const void* x;          // [N] packed rows
  std::int64_t width;     // K
  Arithmetic arithmetic;  // for which x was packed
  float* y;               // [N,K]
};

}  // namespace dsv2::cpu
