// A block a row. Of equal values the lowest index wins, in each thread, each warp, and the block.
#include <cmath>

#include "optimized/cuda/availability.h"
#include "optimized/cuda/device.h"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/load.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kThreads = 1024;

struct Best {
  float value;
  int at;
};
__device__ inline Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

__global__ void __launch_bounds__(kThreads) argmax_kernel(ArgmaxParams p) {
  __shared__ Best warps[kThreads / kWarp];
  const float* x = p.x + static_cast<std::int64_t>(blockIdx.x) * p.width;
  Best best = {-INFINITY, p.width};
  for (int i = threadIdx.x; i < p.width; i += kThreads) best = better(best, {x[i], i});
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    best = better(best, {__shfl_xor_sync(kAllLanes, best.value, lanes), __shfl_xor_sync(kAllLanes, best.at, lanes)});
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = best;
  __syncthreads();  // every warp's best is there
  if (threadIdx.x != 0) return;
  for (const Best& b : warps) best = better(best, b);
  p.ids[blockIdx.x] = best.at < p.width ? best.at : 0;
}

}  // namespace

cudaError_t kernel_image() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, argmax_kernel);
}

void argmax(const ArgmaxParams& p, cudaStream_t stream) {
  argmax_kernel<<<static_cast<unsigned>(p.rows), kThreads, 0, stream>>>(p);
  DSV2_CUDA_LAUNCHED(argmax);
}

}  // namespace dsv2::cuda
