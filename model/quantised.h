// Matrices in int8 and int4: integers in groups of 32 along a row, one bf16 scale a group.
//
// An element is scale * (u - 2^(bits-1)), u the unsigned integer that is stored: 8.5 and 4.5 bits an element, scales
// included. Scales are signed and chosen among a few by least squares; measured on N(0,1) the relative L2 error is
// 0.50 % (int8) and 8.3 % (int4), where ggml's Q8_0 and Q4_0, of the same size, have 0.55 % and 8.6 %. A group of 64
// would save 0.25 bits and lose 0.9 dB.
//
// Layout, in the order that a product reads it: panels of 16 rows, in a panel blocks of 64 columns, in a block
//
//     bf16  scale[2][16]        of columns 0..31 and 32..63, of each row
//     u8    chunk[8 | 16][16][4]   int4 | int8
//
// A chunk holds 4 bytes of each row: int8 columns 4c..4c+3; int4 columns 8c..8c+3 in the low and 8c+4..8c+7 in the high
// nibbles. So one 64-byte load serves 16 rows, and its scales are one more. The last panel and the last block are
// filled up with elements of value 0; a block is 1088 (int8) or 576 bytes (int4), a multiple of a cache line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "model/tensor.h"

namespace dsv2 {

inline constexpr std::int64_t kQuantGroup = 32, kQuantPanel = 16, kQuantBlock = 64;

/// Bytes of one block and of one panel of `cols` columns. `dtype`: i8 or i4.
std::int64_t quantised_block_bytes(DType dtype);
std::int64_t quantised_panel_bytes(DType dtype, std::int64_t cols);

/// Quantises rows 0..rows-1 (at most 16) of `from` [rows, cols] into one panel. Every element must be finite. The same
/// bits on every machine.
void quantise_panel(const float* from, std::int64_t rows, std::int64_t cols, DType dtype, std::byte* panel);

/// quantise_panel() as compiled for one instruction set.
struct QuantiseVariant {
  std::string_view isa;
  void (*quantise_panel)(const float* from, std::int64_t rows, std::int64_t cols, DType dtype, std::byte* panel);
};
/// Those that this machine runs, the one in use last.
std::span<const QuantiseVariant> quantise_variants();

/// All of a matrix [.., rows, cols] (f64, f32, bf16, f16), in parallel. Throws Error for another rank or dtype.
Tensor quantise(const TensorView& matrix, DType dtype);

/// Rows first..first+count-1 of a matrix [rows, cols] of any dtype, widened exactly to T (float or double). The one way
/// to read a matrix whose dtype is not known.
template <class T>
void widen_rows_into(const TensorView& matrix, std::int64_t first, std::int64_t count, T* to);
extern template void widen_rows_into<float>(const TensorView&, std::int64_t, std::int64_t, float*);
extern template void widen_rows_into<double>(const TensorView&, std::int64_t, std::int64_t, double*);

}  // namespace dsv2
