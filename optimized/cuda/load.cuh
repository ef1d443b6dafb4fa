// How device code reads matrices and cached rows.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "optimized/cuda/types.h"

namespace dsv2::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Panels of model/quantised.h: 16 rows, in blocks of 64 columns: scales of two groups, then words of 4 bytes a row.
inline constexpr int kPanelRows = 16, kBlockColumns = 64, kGroupColumns = 32, kScaleBytes = 64;

/// What an int8 or int4 block holds.
template <Storage W>
struct Quantised {
  static constexpr int kWordColumns = W == Storage::i8 ? 4 : 8;  ///< of one row in a word
  static constexpr int kWords = kBlockColumns / kWordColumns;
  static constexpr int kBlockBytes = kScaleBytes + kWords * kPanelRows * 4;
  static constexpr int kZero = W == Storage::i8 ? 128 : 8;

  __device__ static const std::byte* panel(const Matrix& m, int row) {
    const std::int64_t blocks = (m.in + kBlockColumns - 1) / kBlockColumns;
    return static_cast<const std::byte*>(m.data) + row / kPanelRows * blocks * kBlockBytes;
  }
  __device__ static float scale(const std::byte* block, int group, int row) {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(block)[group * kPanelRows + row]);
  }
  __device__ static std::uint32_t word(const std::byte* block, int index, int row) {
    return reinterpret_cast<const std::uint32_t*>(block + kScaleBytes)[index * kPanelRows + row];
  }
  /// Column i of a word, without its scale.
  __device__ static float value(std::uint32_t word, int i) {
    const std::uint32_t bits = W == Storage::i8 ? word >> (8 * i) & 0xffu : word >> (8 * (i & 3) + (i & 4)) & 0xfu;
    return static_cast<float>(static_cast<int>(bits) - kZero);
  }
};

/// An element of an array that is not in panels.
__device__ inline float load(const void* data, Storage storage, std::int64_t at) {
  return storage == Storage::f32 ? static_cast<const float*>(data)[at]
                                 : __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
}
__device__ inline void store(void* data, Storage storage, std::int64_t at, float x) {
  if (storage == Storage::f32)
    static_cast<float*>(data)[at] = x;
  else
    static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16(x);
}

__device__ inline float warp_sum(float x) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
  return x;
}

/// The sum over a block of whole warps, in every thread. `shared` holds a float a warp; it may be used again after the
/// next barrier.
__device__ inline float block_sum(float x, float* shared) {
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();  // every warp's sum is there
  x = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) x += shared[w];
  return x;
}

}  // namespace dsv2::cuda
