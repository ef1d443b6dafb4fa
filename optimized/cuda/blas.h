// Products of many rows by cuBLASLt: bound by arithmetic, where the library's kernels are the best there are. On the
// simulator gpusim answers its calls.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "optimized/cuda/device.h"
#include "optimized/cuda/types.h"

struct cublasLtContext;

namespace dsv2::cuda {

/// From this many rows on, products are the library's: as many as mma multiplies at once.
inline constexpr int kManyRows = 16;

/// y = x W^T + bias, or y += it. Rows and matrix of one storage, f32 or bf16; sums and y in f32.
struct MatmulParams {
  const void* x;  ///< [rows, in], rows x_stride elements apart
  std::int64_t x_stride;
  int rows;
  Matrix weight;
  bool adds;
  float* y;  ///< [rows, out], rows y_stride apart
  std::int64_t y_stride;
};

/// The library's handle and workspace, and rows on their way to it and from it.
class Blas {
 public:
  Blas();

  /// Whether rows meet a matrix of this storage here; `rounds`: they may be rounded to bf16 for it.
  static bool takes(int rows, Storage storage, bool rounds) {
    return rows >= kManyRows && (storage == Storage::f32 || (storage == Storage::bf16 && rounds));
  }
  /// Memory for `rows` of at most `in` columns, and for MLPs of at most `hidden` units.
  void make_room(int rows, std::int64_t in, std::int64_t hidden);
  /// What bytes() is then.
  static std::int64_t bytes_for(std::int64_t rows, std::int64_t in, std::int64_t hidden) {
    if (rows < kManyRows) return 0;
    return workspace_for(rows, in, hidden) + 2 * rows * rounded_stride(in) + 4 * rows * hidden;
  }
  std::int64_t bytes() const { return workspace_.bytes() + rounded_.bytes() + up_.bytes(); }
  std::uint16_t* rounded() const { return rounded_.data(); }  ///< bf16 [rows, in]
  float* up() const { return up_.data(); }                    ///< [rows, hidden]

  /// Throws Error where the library refuses.
  void matmul(const MatmulParams& p, cudaStream_t stream) const;

 private:
  /// What NVIDIA recommends for Hopper, and less where the sums of no product split sixteen times over k fill it.
  static std::int64_t workspace_for(std::int64_t rows, std::int64_t in, std::int64_t hidden) {
    constexpr std::int64_t kMost = std::int64_t{32} << 20, kParts = 16;
    return std::min(kMost, kParts * rows * std::max(in, hidden) * std::int64_t{sizeof(float)});
  }
  /// Rows of bf16 begin at multiples of 16 bytes.
  static std::int64_t rounded_stride(std::int64_t in) { return (in + 7) / 8 * 8; }

  struct Destroy {
    void operator()(cublasLtContext* handle) const;
  };
  std::unique_ptr<cublasLtContext, Destroy> handle_;
  DeviceBuffer<std::byte> workspace_;
  DeviceBuffer<std::uint16_t> rounded_;
  DeviceBuffer<float> up_;
};

}  // namespace dsv2::cuda
