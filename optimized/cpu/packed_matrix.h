// Matrices of a checkpoint in the panels that the kernels read (panel.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/tensor.h"
#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// Where int8 and int4 matrices are multiplied with rows in integers; with more rows they are widened first, which
/// costs as much as some products, and then each product less.
inline constexpr std::int64_t kFewIntegerRows = 16;

/// How a matrix of this arithmetic meets `rows` rows.
Arithmetic for_rows(Arithmetic arithmetic, std::int64_t rows);

/// Bytes of [rows, cols] in panels.
std::int64_t packed_matrix_bytes(Arithmetic arithmetic, std::int64_t rows, std::int64_t cols);

/// Rows first..first+count-1 (at most 16) of a matrix as one panel of that arithmetic: f32 from any dtype, widened
/// exactly; bf16 from bf16; i8 and i4 from themselves, from any row on.
void pack_panel(const TensorView& matrix, std::int64_t first, std::int64_t count, Arithmetic arithmetic, std::byte* to);

/// The whole of a matrix [rows, cols], or of a stack of them, one after the other.
void pack_matrix(const TensorView& matrix, Arithmetic arithmetic, std::byte* to);

}  // namespace dsv2::cpu
