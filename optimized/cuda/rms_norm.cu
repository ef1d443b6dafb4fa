// A block a row (arXiv 1910.07467, eq. 4): read twice, the second time from the cache. Sums of squares in f32, each
// thread its own columns, then warps, then the block: the same order in every run.
#include "optimized/cuda/device.h"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/load.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void rms_norm_kernel(RmsNormParams p) {
  __shared__ float sums[kThreads / kWarp];
  const float* x = p.x + blockIdx.x * p.x_stride;
  float* y = p.y + static_cast<std::int64_t>(blockIdx.x) * p.width;
  float sum = 0;
  for (int c = threadIdx.x; c < p.width; c += kThreads) sum += x[c] * x[c];
  const float mean = block_sum(sum, sums) / static_cast<float>(p.width);
  const float scale = 1.0f / sqrtf(mean + p.eps);
  auto* rounded = reinterpret_cast<__nv_bfloat16*>(p.rounded) + blockIdx.x * p.rounded_stride;
  for (int c = threadIdx.x; c < p.width; c += kThreads) {
    const float value = p.weight[c] * (x[c] * scale);
    y[c] = value;
    if (p.rounded != nullptr) rounded[c] = __float2bfloat16(value);
  }
}

__global__ void add_kernel(AddParams p) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < p.count) p.x[i] += p.y[i];
}

}  // namespace

void rms_norm(const RmsNormParams& p, cudaStream_t stream) {
  rms_norm_kernel<<<static_cast<unsigned>(p.rows), kThreads, 0, stream>>>(p);
  DSV2_CUDA_LAUNCHED(rms_norm);
}

void add(const AddParams& p, cudaStream_t stream) {
  add_kernel<<<static_cast<unsigned>((p.count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(p);
  DSV2_CUDA_LAUNCHED(add);
}

}  // namespace dsv2::cuda
