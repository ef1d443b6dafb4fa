// o_proj and the router of few rows. A block adds 16 columns to x (row_product.cuh) and multiplies them, while it has
// them, by the same columns of the router's matrix: its part of every logit, and of the square of the norm, which
// scales them at the end. Both matrices are read once. The last block that arrives adds the parts up, in the order of
// the blocks, and decides: a warp a token (gate.cuh), then all warps group the tokens (expert_groups.cuh).
#include <algorithm>

#include "optimized/cuda/device.h"
#include "optimized/cuda/dispatch.h"
#include "optimized/cuda/expert_groups.cuh"
#include "optimized/cuda/gate.cuh"
#include "optimized/cuda/last_block.cuh"
#include "optimized/cuda/row_product.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kColumns = 16;  // of a block
static_assert(kProductOut<Storage::bf16> == kColumns && kProductOut<Storage::i8> == kColumns);

/// Floats of a token's logits and square; rows of them begin with a sector.
__host__ __device__ constexpr int parts_pitch(int experts) { return (experts + 8) / 8 * 8; }

/// 16 bytes of a matrix.
__device__ inline void load_piece(float (&w)[4], const void* data, std::int64_t at) {
  const float4 piece = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
  w[0] = piece.x, w[1] = piece.y, w[2] = piece.z, w[3] = piece.w;
}
__device__ inline void load_piece(float (&w)[8], const void* data, std::int64_t at) {
  const uint4 piece = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(data) + at);
  const unsigned pairs[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    w[2 * i] = __uint_as_float(pairs[i] << 16), w[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
}

/// parts[n][e] = x[n] . columns first.. of row e of the router's matrix. Lanes beside each other share a row, 16 bytes
/// each.
template <Storage G, int ROWS, class X>
__device__ void logit_parts(const OProjRouteParams& p, int first, const X& x, float* parts) {
  constexpr int kEach = G == Storage::f32 ? 4 : 8, kLanes = kColumns / kEach;
  const int E = p.gate.experts, lanes = (E * kLanes + kWarp - 1) / kWarp * kWarp;
  for (int at = threadIdx.x; at < lanes; at += blockDim.x) {
    const int e = at / kLanes, c = at % kLanes * kEach;
    float w[kEach] = {};
    if (e < E && first + c < p.weight.in)  // behind `in` a row has zeros up to 16 bytes
      load_piece(w, p.weight.data, static_cast<std::int64_t>(e) * p.weight.stride + first + c);
#pragma unroll
    for (int n = 0; n < ROWS; ++n) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) sum = fmaf(w[i], x[n][c + i], sum);
#pragma unroll
      for (int other = 1; other < kLanes; other *= 2) sum += __shfl_xor_sync(kAllLanes, sum, other);
      if (at % kLanes == 0 && e < E && n < p.gate.rows) parts[n * parts_pitch(E) + e] = sum;
    }
  }
}

template <Storage W, int ROWS>
__global__ void __launch_bounds__(kProductThreads<W>, kProductBlocks<ROWS>) o_proj_route_kernel(OProjRouteParams p) {
  extern __shared__ float shared[];  // of the last block: [warps][E + 1], then [warps][E + groups], then counts [E]
  __shared__ ProductMemory memory;
  __shared__ float x[ROWS][kColumns + 1], weighted[ROWS][kColumns + 1];
  constexpr int kWarps = kProductThreads<W> / kWarp;
  const int first = static_cast<int>(blockIdx.x) * kColumns, D = p.o_proj.out, N = p.gate.rows, E = p.gate.experts;
  for (int at = threadIdx.x; at < ROWS * kColumns; at += blockDim.x)
    x[at / kColumns][at % kColumns] = weighted[at / kColumns][at % kColumns] = 0;
  const Matrix m[1] = {p.o_proj};
  product<W, ROWS>(
      m, first, [&](int n) { return p.attn + static_cast<std::int64_t>(n) * p.o_proj.in; }, N, RowNorm(), memory,
      [&](int o, int n, const float(&value)[1]) {
        float& sum = p.x[static_cast<std::int64_t>(n) * D + o];
        sum += p.o_proj.bias != nullptr ? value[0] + p.o_proj.bias[o] : value[0];
        x[n][o - first] = sum;
        weighted[n][o - first] = sum * p.norm.weight[o];
      });
  __syncthreads();  // the block's columns of x are there
  float* const parts = p.partial + static_cast<std::int64_t>(blockIdx.x) * N * parts_pitch(E);
  if (p.weight.storage == Storage::f32)
    logit_parts<Storage::f32, ROWS>(p, first, weighted, parts);
  else
    logit_parts<Storage::bf16, ROWS>(p, first, weighted, parts);
  if (threadIdx.x < N) {
    float squares = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) squares = fmaf(x[threadIdx.x][c], x[threadIdx.x][c], squares);
    parts[threadIdx.x * parts_pitch(E) + E] = squares;
  }
  if (!is_last_block(p.arrived, gridDim.x)) return;

  const int warp = threadIdx.x / kWarp;
  for (int n = 0; n < N; ++n) {
    for (int e = threadIdx.x % kWarp; e <= E; e += kWarp) {
      float sum = 0;
#pragma unroll 8
      for (int block = warp; block < static_cast<int>(gridDim.x); block += kWarps)
        sum += p.partial[(static_cast<std::int64_t>(block) * N + n) * parts_pitch(E) + e];
      shared[warp * (E + 1) + e] = sum;
    }
    __syncthreads();  // every warp's sums are there
    const auto sum_of = [&](int e) {
      float sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += shared[w * (E + 1) + e];
      return sum;
    };
    const float scale = 1.0f / sqrtf(sum_of(E) / static_cast<float>(D) + p.norm.eps);
    for (int e = threadIdx.x; e < E; e += blockDim.x) p.logits[n * E + e] = scale * sum_of(e);
    __syncthreads();  // the sums have been read; the logits are written
  }
  for (int n = warp; n < N; n += kWarps) {
    select_experts(p.gate, n, shared + warp * (E + p.gate.groups));
    __syncwarp();  // the choice of all lanes
    weigh_experts(p.gate, n);
  }
  __syncthreads();  // all tokens have chosen; their memory is free
  group_tokens({p.gate.topk_idx, N, p.gate.top_k, E, p.groups}, reinterpret_cast<int*>(shared));
}

/// Floats that the last block works in.
int decision_floats(int experts, int groups) { return kRowWarps * (experts + std::max(groups, 1)); }

}  // namespace

bool o_proj_route_fits(int rows, int experts, int groups) {
  constexpr int kSharedFloats = 7 * 1024;  // beside the product's, within the 48 KiB that every device gives
  return rows <= kFewRows && decision_floats(experts, groups) <= kSharedFloats;
}

std::int64_t o_proj_route_partial_size(int rows, int hidden, int experts) {
  return static_cast<std::int64_t>((hidden + kColumns - 1) / kColumns) * rows * parts_pitch(experts);
}

void o_proj_route(const OProjRouteParams& p, cudaStream_t stream) {
  const std::size_t shared = static_cast<std::size_t>(decision_floats(p.gate.experts, p.gate.groups)) * sizeof(float);
  with_storage(p.o_proj.storage, [&](auto w) {
    constexpr Storage W = decltype(w)::value;
    with_rows(p.gate.rows, [&](auto rows) {
      const int blocks = (p.o_proj.out + kColumns - 1) / kColumns;
      o_proj_route_kernel<W, decltype(rows)::value>
          <<<static_cast<unsigned>(blocks), kProductThreads<W>, shared, stream>>>(p);
    });
  });
  DSV2_CUDA_LAUNCHED(o_proj_route);
}

}  // namespace dsv2::cuda
