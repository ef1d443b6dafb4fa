// The router of few rows. Blocks share out the experts' logits (row_product.cuh); the last block that arrives has all
// of them before it and decides: a warp a token (gate.cuh), then all warps group the tokens (expert_groups.cuh).
#include <algorithm>

#include "optimized/cuda/device.h"
#include "optimized/cuda/dispatch.h"
#include "optimized/cuda/expert_groups.cuh"
#include "optimized/cuda/gate.cuh"
#include "optimized/cuda/last_block.cuh"
#include "optimized/cuda/row_product.cuh"

namespace dsv2::cuda {
namespace {

template <Storage W, int ROWS>
__global__ void __launch_bounds__(kProductThreads<W>, kProductBlocks<ROWS>) route_kernel(RouteParams p) {
  extern __shared__ float choices[];  // [warps][E + groups]; then the groups' counts [E]
  __shared__ ProductMemory memory;
  const Matrix m[1] = {p.weight};
  product<W, ROWS>(
      m, static_cast<int>(blockIdx.x) * kProductOut<W>,
      [&](int n) { return p.x + static_cast<std::int64_t>(n) * p.weight.in; }, p.gate.rows, p.norm, memory,
      [&](int e, int n, const float(&value)[1]) { p.logits[n * p.gate.experts + e] = value[0]; });
  if (!is_last_block(p.arrived, gridDim.x)) return;
  for (int n = threadIdx.x / kWarp; n < p.gate.rows; n += kProductThreads<W> / kWarp) {
    select_experts(p.gate, n, choices + threadIdx.x / kWarp * (p.gate.experts + p.gate.groups));
    __syncwarp();  // the choice of all lanes
    weigh_experts(p.gate, n);
  }
  __syncthreads();  // all tokens have chosen; their memory is free
  group_tokens({p.gate.topk_idx, p.gate.rows, p.gate.top_k, p.gate.experts, p.groups}, reinterpret_cast<int*>(choices));
}

}  // namespace

bool route_fits(int rows, int experts, int groups) {
  constexpr int kSharedFloats = 7 * 1024;  // beside the product's, within the 48 KiB that every device gives
  return std::min(rows, kRowWarps) * (experts + groups) <= kSharedFloats;
}

void route(const RouteParams& p, cudaStream_t stream) {
  const auto launch = [&](auto w) {
    constexpr Storage W = decltype(w)::value;
    const int warps = std::min(p.gate.rows, kProductThreads<W> / kWarp);
    const std::size_t shared =
        static_cast<std::size_t>(warps) * static_cast<std::size_t>(p.gate.experts + p.gate.groups) * sizeof(float);
    with_rows(p.gate.rows, [&](auto rows) {
      const int blocks = (p.gate.experts + kProductOut<W> - 1) / kProductOut<W>;
      route_kernel<W, decltype(rows)::value><<<static_cast<unsigned>(blocks), kProductThreads<W>, shared, stream>>>(p);
    });
  };
  if (p.weight.storage == Storage::bf16)
    launch(Constant<Storage::bf16>());
  else
    launch(Constant<Storage::f32>());
  DSV2_CUDA_LAUNCHED(route);
}

}  // namespace dsv2::cuda
