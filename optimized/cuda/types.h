// Arrays on the device as kernels take them. Sizes are ints: no matrix has 2^31 rows or columns; offsets are 64-bit.
#pragma once

#include <cstdint>

namespace dsv2::cuda {

/// How numbers lie in device memory. i8 and i4: panels of model/quantised.h, as a checkpoint has them.
enum class Storage : std::uint8_t { f32, bf16, i8, i4 };

/// y = x W^T + bias. No data: absent.
struct Matrix {
  const void* data =
      nullptr;  ///< [out, in]: f32 and bf16 in rows of `stride` elements, zeros behind `in`; i8, i4 in panels
  Storage storage = Storage::f32;
  int out = 0, in = 0;
  int stride = 0;               ///< a multiple of 16 bytes; panels: unused
  const float* bias = nullptr;  ///< [out] or null
};

/// E equal matrices behind each other.
struct MatrixStack {
  Matrix first;
  std::int64_t stride_bytes = 0;
};

/// weight * x / sqrt(mean(x^2) + eps) in place of a row x on its way into a product. Null: x itself.
struct RowNorm {
  const float* weight = nullptr;
  float eps = 0;
};

/// Rows of a cache part, [B, heads, capacity, dim].
struct CachedRows {
  void* data = nullptr;
  Storage storage = Storage::f32;  ///< f32 or bf16
  std::int64_t batch_stride = 0;   ///< elements
  std::int64_t head_stride = 0;
  int row_stride = 0;
};

/// Up to this many rows meet a matrix one by one, bound by reading it; more of them in tiles.
inline constexpr int kFewRows = 8;

}  // namespace dsv2::cuda
