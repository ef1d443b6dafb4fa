// A block of one warp a token (gate.cuh).
#include "optimized/cuda/gate.cuh"

#include "optimized/cuda/device.h"

namespace dsv2::cuda {
namespace {

__global__ void __launch_bounds__(kWarp) gate_select_kernel(GateParams p) {
  extern __shared__ float choice[];
  select_experts(p, blockIdx.x, choice);
}

__global__ void __launch_bounds__(kWarp) gate_weight_kernel(GateParams p) { weigh_experts(p, blockIdx.x); }

}  // namespace

void gate_select(const GateParams& p, cudaStream_t stream) {
  const std::size_t shared = static_cast<std::size_t>(p.experts + p.groups) * sizeof(float);
  gate_select_kernel<<<static_cast<unsigned>(p.rows), kWarp, shared, stream>>>(p);
  DSV2_CUDA_LAUNCHED(gate_select);
}

void gate_weight(const GateParams& p, cudaStream_t stream) {
  gate_weight_kernel<<<static_cast<unsigned>(p.rows), kWarp, 0, stream>>>(p);
  DSV2_CUDA_LAUNCHED(gate_weight);
}

}  // namespace dsv2::cuda
