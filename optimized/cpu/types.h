// What the kernels' parameters share. Kernel sources are compiled once per instruction set, so the headers that they
// include hold plain structs only: an inline function here could be emitted with instructions that a machine lacks.
#pragma once

#include <cstdint>

namespace dsv2::cpu {

/// Work items begin..end-1 of one call; each op says what an item is. Items do not depend on each other, and how they
/// are split into calls changes no bit of the result.
struct Range {
  std::int64_t begin, end;
};

/// Element type of an array in memory.
enum class Storage : std::uint8_t { f32, bf16, i8 };  // i8: cached rows, each with its scale

/// How a matrix is stored (panel.h) and multiplied, and therefore how the rows that meet it are packed (pack.h).
/// Accumulation is f32 throughout.
enum class Arithmetic : std::uint8_t {
  f32,       ///< f32 matrix, rows f32
  bf16,      ///< bf16 matrix widened exactly, rows f32
  bf16_dot,  ///< bf16 matrix, rows rounded to bf16: dot products of pairs (AVX-512 BF16)
  i8,
  i4,  ///< int8, int4 matrix, rows in 15-bit integers, exact integer sums over a group
  i8_wide,
  i4_wide,  ///< the same matrix, widened a block at a time: rows rounded to bf16 where bf16_dot is, else f32
};

}  // namespace dsv2::cpu
