// Products of a matrix with many rows: tiles of 64 rows by 64 of the matrix's, by blocks of 4 warps.
//
// On tensor cores (TENSOR) rows and matrix are rounded to bf16 on their way into shared memory, and mma m16n8k16 sums
// in f32; each warp has a quarter of the tile. Otherwise all of it is f32: each thread has 8 x 4 sums. Rows in shared
// memory are padded by 16 bytes (4 in f32), so that what a warp reads lies in different banks.
#pragma once

#include "optimized/cuda/load.cuh"
#include "optimized/cuda/mma.cuh"

namespace dsv2::cuda {

inline constexpr int kTile = 64, kTileThreads = 128;

/// The rows that a tile multiplies: row i is x[pick[first + i]], or x[first + i] without `pick`.
struct TileRows {
  const float* x;
  std::int64_t stride;
  const std::int32_t* pick;
  int first, count;
};

template <bool TENSOR>
struct TileMemory;
template <>
struct alignas(16) TileMemory<true> {
  static constexpr int kDepth = 64, kStride = kDepth + 8;
  using Element = __nv_bfloat16;
  union {
    struct {
      Element a[kTile][kStride], b[kTile][kStride];
      float scales[kDepth / kGroupColumns][kTile];  ///< of a quantised matrix
    };
    float c[kTile][kTile + 8];
  };
};
template <>
struct TileMemory<false> {
  static constexpr int kDepth = 32, kStride = kDepth + 1;
  using Element = float;
  union {
    struct {
      Element a[kTile][kStride], b[kTile][kStride];
    };
    float c[kTile][kTile + 2];
  };
};

template <class T>
__device__ inline T rounded(float x) {
  if constexpr (sizeof(T) == 4)
    return x;
  else
    return __float2bfloat16(x);
}

/// Columns [k0, k0 + depth) of the rows.
template <bool TENSOR>
__device__ void load_rows(TileMemory<TENSOR>& s, const TileRows& rows, int k0, int width) {
  using M = TileMemory<TENSOR>;
  const int k = k0 + threadIdx.x % M::kDepth;
  for (int i = threadIdx.x / M::kDepth; i < kTile; i += kTileThreads / M::kDepth) {
    float x = 0;
    if (i < rows.count && k < width) {
      const std::int64_t row = rows.pick != nullptr ? rows.pick[rows.first + i] : rows.first + i;
      x = rows.x[row * rows.stride + k];
    }
    s.a[i][k - k0] = rounded<typename M::Element>(x);
  }
}

/// The same of rows n0..n0+63 of the matrix.
template <bool TENSOR, Storage W>
__device__ void load_matrix(TileMemory<TENSOR>& s, const Matrix& m, int n0, int k0) {
  using M = TileMemory<TENSOR>;
  using T = typename M::Element;
  if constexpr (W == Storage::f32 || W == Storage::bf16) {
    const int k = k0 + threadIdx.x % M::kDepth;
    for (int i = threadIdx.x / M::kDepth; i < kTile; i += kTileThreads / M::kDepth)
      s.b[i][k - k0] = rounded<T>(
          n0 + i < m.out && k < m.in ? load(m.data, W, static_cast<std::int64_t>(n0 + i) * m.stride + k) : 0.0f);
  } else {
    using Q = Quantised<W>;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, row = lane % kPanelRows;
    const int at = warp * kPanelRows + row;
    const bool present = n0 + warp * kPanelRows < m.out;
    const std::byte* block = nullptr;
    if (present) block = Q::panel(m, n0 + warp * kPanelRows) + k0 / kBlockColumns * Q::kBlockBytes;
    if constexpr (TENSOR) s.scales[lane / kPanelRows][at] = present ? Q::scale(block, lane / kPanelRows, row) : 0.0f;
    const int begin = k0 % kBlockColumns;
    for (int i = begin / Q::kWordColumns + lane / kPanelRows; i < (begin + M::kDepth) / Q::kWordColumns; i += 2) {
      const std::uint32_t word = present ? Q::word(block, i, row) : 0;
      const int column = i * Q::kWordColumns;
      float scale = 1;
      if constexpr (!TENSOR) scale = present ? Q::scale(block, column / kGroupColumns, row) : 0.0f;
#pragma unroll
      for (int j = 0; j < Q::kWordColumns; ++j) s.b[at][column - begin + j] = rounded<T>(scale * Q::value(word, j));
    }
  }
}

/// s.c[i][j] = row i times row n0 + j of the matrix, for a block of kTileThreads; after a barrier. The caller puts
/// another one before the memory is used again.
template <bool TENSOR, Storage W>
__device__ void tile_product(TileMemory<TENSOR>& s, const TileRows& rows, const Matrix& m, int n0) {
  using M = TileMemory<TENSOR>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  constexpr int kSums = TENSOR ? 2 * 4 * 4 : 8 * 4;
  float sums[kSums] = {};
  [[maybe_unused]] float parts[kSums] = {};  // of a group of columns
  for (int k0 = 0; k0 < m.in; k0 += M::kDepth) {
    load_rows(s, rows, k0, m.in);
    load_matrix<TENSOR, W>(s, m, n0, k0);
    __syncthreads();  // both pieces are there
    if constexpr (TENSOR) {
      const int i0 = warp / 2 * 32, j0 = warp % 2 * 32;
#pragma unroll
      for (int k = 0; k < M::kDepth; k += 16) {
        unsigned a[2][4], b[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) load_fragment(a[i], &s.a[i0 + i * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
        for (int j = 0; j < 2; ++j)
          load_fragment(b[j], &s.b[j0 + j * 16 + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
        constexpr bool kGrouped = W == Storage::i8 || W == Storage::i4;
        if constexpr (kGrouped) {
          if (k % kGroupColumns == 0) {
#pragma unroll
            for (float& sum : parts) sum = 0;
          }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j)
            mma(reinterpret_cast<float(&)[4]>((kGrouped ? parts : sums)[(i * 4 + j) * 4]), a[i], b[j / 2][j % 2 * 2],
                b[j / 2][j % 2 * 2 + 1]);
        if constexpr (kGrouped) {
          if (k % kGroupColumns + 16 == kGroupColumns) {
#pragma unroll
            for (int at = 0; at < kSums; ++at)
              sums[at] =
                  fmaf(s.scales[k / kGroupColumns][j0 + at / 4 % 4 * 8 + lane % 4 * 2 + at % 2], parts[at], sums[at]);
          }
        }
      }
    } else {
      const int i0 = threadIdx.x / 16 * 8, j0 = threadIdx.x % 16;
#pragma unroll 4
      for (int k = 0; k < M::kDepth; ++k) {
        float b[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) b[j] = s.b[j0 + 16 * j][k];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float a = s.a[i0 + i][k];
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[i * 4 + j] = fmaf(a, b[j], sums[i * 4 + j]);
        }
      }
    }
    __syncthreads();  // both pieces have been read
  }
  if constexpr (TENSOR) {
    const int i0 = warp / 2 * 32 + lane / 4, j0 = warp % 2 * 32 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int x = 0; x < 4; x += 2)
          *reinterpret_cast<float2*>(&s.c[i0 + i * 16 + x * 4][j0 + j * 8]) = {sums[(i * 4 + j) * 4 + x],
                                                                               sums[(i * 4 + j) * 4 + x + 1]};
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) s.c[threadIdx.x / 16 * 8 + i][threadIdx.x % 16 + 16 * j] = sums[i * 4 + j];
  }
  __syncthreads();  // the tile is whole
}

}  // namespace dsv2::cuda
