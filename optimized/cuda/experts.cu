// The MLPs of a layer: routed experts, shared experts, a dense layer.
//
// Tokens are grouped by expert on the device; nothing that is launched depends on how many an expert got. With few
// rows, blocks share out the hidden units (experts_act) or the columns of y (experts_down), and each element of a
// touched expert is read once (row_product.cuh). With more rows, tiles of 64 places of one expert (tile_product.cuh);
// what an expert gives waits by place, and each token gathers its own, in ascending order of the experts: the same
// order in both ways, no atomics. An MLP over many rows, f32 or bf16, is three products of the library (blas.h).
#include <algorithm>

#include "optimized/cuda/device.h"
#include "optimized/cuda/dispatch.h"
#include "optimized/cuda/expert_groups.cuh"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/row_product.cuh"
#include "optimized/cuda/tile_product.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kGroupThreads = 1024;

__global__ void __launch_bounds__(kGroupThreads) expert_groups_kernel(ExpertGroupsParams p) {
  extern __shared__ int begins[];
  group_tokens(p, begins);
}

__device__ inline float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::silu:
      return x / (1.0f + expf(-x));
    case Activation::gelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case Activation::relu:
      return fmaxf(x, 0.0f);
  }
  return x;
}

__device__ inline Matrix matrix_of(const MatrixStack& stack, int e) {
  Matrix m = stack.first;
  m.data = static_cast<const std::byte*>(m.data) + e * stack.stride_bytes;
  return m;
}

/// An expert, and the places of its tokens.
struct Group {
  int expert, first, count;
};

/// ExpertsParams with the groups in it: a kernel cannot look at the host's.
struct Experts {
  ExpertsParams p;
  ExpertGroups g;
  bool grouped;

  /// The i-th that has tokens; count 0 where there are no more.
  __device__ Group touched(int i) const {
    if (!grouped) return {0, 0, i == 0 ? p.rows : 0};
    if (i >= g.counts[0]) return {0, 0, 0};
    const int e = g.touched[i];
    return {e, g.begin[e], g.begin[e + 1] - g.begin[e]};
  }
  /// The i-th tile; count 0 where there are no more.
  __device__ Group tile(int i) const {
    if (!grouped) return {0, i * kTileRows, min(kTileRows, p.rows - i * kTileRows)};
    if (i >= g.counts[1]) return {0, 0, 0};
    const int e = g.tiles[2 * i], first = g.tiles[2 * i + 1];
    return {e, first, min(kTileRows, g.begin[e + 1] - first)};
  }
  __device__ int token(int place) const { return grouped ? g.tokens[place] : place; }
  /// Of the choice of token n that is at `place`.
  __device__ float weight(int n, int place) const {
    if (!grouped) return 1;
    int j = 0;
    while (g.place[n * p.top_k + j] != place) ++j;
    return p.topk_weight[n * p.top_k + j];
  }
  __device__ bool has_shared() const { return p.shared_down_proj.first.data != nullptr; }
  __device__ float* shared_act() const {
    return p.act + static_cast<std::int64_t>(p.rows) * p.top_k * p.gate_proj.first.out;
  }
};

/// blockIdx.y: the i-th expert that has tokens; the last one is the shared MLP where there is one.
template <Storage W, int ROWS>
__global__ void __launch_bounds__(kProductThreads<W>, kProductBlocks<W == Storage::f32 ? 2 * ROWS : ROWS>)
    experts_act_rows_kernel(Experts x) {
  __shared__ ProductMemory memory;
  const ExpertsParams& p = x.p;
  const bool shared = x.has_shared() && blockIdx.y + 1 == gridDim.y;
  const Group group = shared ? Group{0, 0, p.rows} : x.touched(blockIdx.y);
  const Matrix m[2] = {matrix_of(shared ? p.shared_gate_proj : p.gate_proj, group.expert),
                       matrix_of(shared ? p.shared_up_proj : p.up_proj, group.expert)};
  const int first = static_cast<int>(blockIdx.x) * kProductOut<W>;
  if (group.count == 0 || first >= m[0].out) return;
  float* const act = shared ? x.shared_act() : p.act;
  product<W, ROWS>(
      m, first,
      [&](int r) {
        const int place = group.first + r;
        return p.x + static_cast<std::int64_t>(shared ? place : x.token(place)) * m[0].in;
      },
      group.count, p.norm, memory,
      [&](int o, int r, const float(&value)[2]) {
        act[static_cast<std::int64_t>(group.first + r) * m[0].out + o] = activate(p.activation, value[0]) * value[1];
      });
}

/// Sums [tokens][kProductOut] of a block's columns of y, expert after expert, the shared MLP last. The thread that adds
/// is not always the same: barriers lie between.
template <Storage W, int ROWS>
__global__ void __launch_bounds__(kProductThreads<W>, kProductBlocks<ROWS>) experts_down_rows_kernel(Experts x) {
  constexpr int kOut = kProductOut<W>;
  __shared__ ProductMemory memory;
  __shared__ float sums[kFewRows * kOut];
  const ExpertsParams& p = x.p;
  for (int at = threadIdx.x; at < kFewRows * kOut; at += kProductThreads<W>) sums[at] = 0;
  const int first = blockIdx.x * kOut, D = p.down_proj.first.out;
  for (int i = 0, shared = 0;; ++i) {
    Group group = x.touched(i);
    if (group.count == 0) {
      if (shared != 0 || !x.has_shared()) break;
      shared = 1;
      group = {0, 0, p.rows};
    }
    const Matrix m[1] = {matrix_of(shared != 0 ? p.shared_down_proj : p.down_proj, group.expert)};
    const float* act = shared != 0 ? x.shared_act() : p.act;
    __syncthreads();  // sums are 0, or another expert's part is in; what was staged has been read
    product<W, ROWS>(
        m, first, [&](int r) { return act + static_cast<std::int64_t>(group.first + r) * m[0].in; }, group.count,
        RowNorm(), memory,
        [&](int o, int r, const float(&value)[1]) {
          const int place = group.first + r, n = shared != 0 ? place : x.token(place);
          sums[n * kOut + o - first] += (shared != 0 ? 1.0f : x.weight(n, place)) * value[0];
        });
  }
  __syncthreads();  // the sums are whole
  for (int at = threadIdx.x; at < kOut * p.rows; at += kProductThreads<W>) {
    const int o = at % kOut, n = at / kOut;
    if (first + o >= D) continue;
    float& y = p.y[static_cast<std::int64_t>(n) * D + first + o];
    y = p.adds ? y + sums[at] : sums[at];
  }
}

// Two blocks of a multiprocessor: for three, ptxas spills a few bytes on sm_86 and up.
template <bool TENSOR, Storage W>
__global__ void __launch_bounds__(kTileThreads, 2) experts_act_tiles_kernel(Experts x) {
  __shared__ TileMemory<TENSOR> memory;
  const ExpertsParams& p = x.p;
  const Group tile = x.tile(blockIdx.y);
  if (tile.count <= 0) return;
  const int n0 = blockIdx.x * kTile, F = p.gate_proj.first.out, D = p.gate_proj.first.in;
  const TileRows rows = {p.x, D, x.grouped ? x.g.tokens : nullptr, tile.first, tile.count};
  constexpr int kEach = kTile * kTile / kTileThreads;
  float gate[kEach];
  tile_product<TENSOR, W>(memory, rows, matrix_of(p.gate_proj, tile.expert), n0);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = i * kTileThreads + threadIdx.x;
    gate[i] = activate(p.activation, memory.c[at / kTile][at % kTile]);
  }
  __syncthreads();  // the tile has been read
  tile_product<TENSOR, W>(memory, rows, matrix_of(p.up_proj, tile.expert), n0);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = i * kTileThreads + threadIdx.x, r = at / kTile, j = at % kTile;
    if (r < tile.count && n0 + j < F)
      p.act[static_cast<std::int64_t>(tile.first + r) * F + n0 + j] = gate[i] * memory.c[r][j];
  }
}

/// Into `partial`, by place; without groups, where place and token are one, into y.
template <bool TENSOR, Storage W>
__global__ void __launch_bounds__(kTileThreads) experts_down_tiles_kernel(Experts x) {
  __shared__ TileMemory<TENSOR> memory;
  const ExpertsParams& p = x.p;
  const Group tile = x.tile(blockIdx.y);
  if (tile.count <= 0) return;
  const int n0 = blockIdx.x * kTile, D = p.down_proj.first.out, F = p.down_proj.first.in;
  tile_product<TENSOR, W>(memory, {p.act, F, nullptr, tile.first, tile.count}, matrix_of(p.down_proj, tile.expert), n0);
  for (int at = threadIdx.x; at < tile.count * kTile; at += kTileThreads) {
    const int r = at / kTile, j = at % kTile;
    if (n0 + j >= D) continue;
    const std::int64_t to = static_cast<std::int64_t>(tile.first + r) * D + n0 + j;
    if (x.grouped)
      p.partial[to] = memory.c[r][j];
    else
      p.y[to] = p.adds ? p.y[to] + memory.c[r][j] : memory.c[r][j];
  }
}

/// y[n] (+)= sum over j of weight[n,j] partial[place[n,j]]: chosen experts are in ascending order.
__global__ void experts_combine_kernel(Experts x) {
  const ExpertsParams& p = x.p;
  const int n = blockIdx.x, D = p.down_proj.first.out;
  float* y = p.y + static_cast<std::int64_t>(n) * D;
  for (int d = threadIdx.x; d < D; d += blockDim.x) {
    float sum = 0;
    for (int j = 0; j < p.top_k; ++j)
      sum += p.topk_weight[n * p.top_k + j] * p.partial[static_cast<std::int64_t>(x.g.place[n * p.top_k + j]) * D + d];
    y[d] = p.adds ? y[d] + sum : sum;
  }
}

Experts on_device(const ExpertsParams& p) {
  Experts x = {p, {}, p.groups != nullptr};
  if (p.groups != nullptr) x.g = *p.groups;
  x.p.groups = nullptr;
  return x;
}
unsigned up(int count, int by) { return static_cast<unsigned>((count + by - 1) / by); }
/// Tiles of rows that there can be.
unsigned most_tiles(const ExpertsParams& p) {
  return p.groups != nullptr ? static_cast<unsigned>(max_expert_tiles(p.rows * p.top_k, p.experts))
                             : up(p.rows, kTileRows);
}

/// act = activation(act) * up, or, into `rounded`, the same in bf16. A block a row.
struct Gated {
  float* act;
  const float* up;
  int width;
  Activation activation;
  std::uint16_t* rounded;  ///< rows rounded_stride apart; null: into act
  std::int64_t rounded_stride;
};
constexpr int kGatedThreads = 256;
__global__ void gated_kernel(Gated p) {
  float* act = p.act + blockIdx.x * static_cast<std::int64_t>(p.width);
  const float* up = p.up + blockIdx.x * static_cast<std::int64_t>(p.width);
  auto* rounded = reinterpret_cast<__nv_bfloat16*>(p.rounded) + blockIdx.x * p.rounded_stride;
  for (int f = threadIdx.x; f < p.width; f += kGatedThreads) {
    const float value = activate(p.activation, act[f]) * up[f];
    if (p.rounded != nullptr)
      rounded[f] = __float2bfloat16(value);
    else
      act[f] = value;
  }
}

bool by_library(const ExpertsParams& p, const Matrix& m) {
  return p.groups == nullptr && Blas::takes(p.rows, m.storage, p.rounds);
}
/// Whether the next product takes act from Blas::rounded().
bool leaves_rounded(const ExpertsParams& p) {
  const Matrix& down = p.down_proj.first;
  return p.act_rounded && down.storage == Storage::bf16 && by_library(p, p.gate_proj.first) && by_library(p, down);
}

LinearParams linear_params(const ExpertsParams& p, const float* x, const std::uint16_t* rounded, int in) {
  return {.x = x,
          .x_stride = in,
          .rows = p.rows,
          .pick = nullptr,
          .rounds = p.rounds,
          .rounded = rounded,
          .adds = false,
          .segment_count = 1,
          .segments = {}};
}

void act_by_library(const ExpertsParams& p, const Blas& blas, cudaStream_t stream) {
  const Matrix &gate = p.gate_proj.first, &up = p.up_proj.first;
  LinearParams l = linear_params(p, p.x, p.rounded, gate.in);
  l.segment_count = 2;
  l.segments[0] = {gate, p.act, gate.out}, l.segments[1] = {up, blas.up(), up.out};
  linear(l, blas, stream);
  const Gated gated = {.act = p.act,
                       .up = blas.up(),
                       .width = gate.out,
                       .activation = p.activation,
                       .rounded = leaves_rounded(p) ? blas.rounded() : nullptr,
                       .rounded_stride = p.down_proj.first.stride};
  gated_kernel<<<static_cast<unsigned>(p.rows), kGatedThreads, 0, stream>>>(gated);
}

void down_by_library(const ExpertsParams& p, const Blas& blas, cudaStream_t stream) {
  const Matrix& down = p.down_proj.first;
  LinearParams l = linear_params(p, p.act, leaves_rounded(p) ? blas.rounded() : nullptr, down.in);
  l.adds = p.adds;
  l.segments[0] = {down, p.y, down.out};
  linear(l, blas, stream);
}

}  // namespace

void expert_groups(const ExpertGroupsParams& p, cudaStream_t stream) {
  const std::size_t shared = static_cast<std::size_t>(p.experts) * sizeof(int);
  expert_groups_kernel<<<1, kGroupThreads, shared, stream>>>(p);
  DSV2_CUDA_LAUNCHED(expert_groups);
}

void experts_act(const ExpertsParams& p, const Blas& blas, cudaStream_t stream) {
  if (by_library(p, p.gate_proj.first)) {
    act_by_library(p, blas, stream);
    DSV2_CUDA_LAUNCHED(experts_act);
    return;
  }
  with_storage(p.gate_proj.first.storage, [&](auto w) {
    constexpr Storage W = decltype(w)::value;
    const int F = p.gate_proj.first.out;
    if (p.rows <= kFewRows) {
      const bool shared = p.shared_gate_proj.first.data != nullptr;
      const int groups = (p.groups != nullptr ? std::min(p.experts, p.rows * p.top_k) : 1) + (shared ? 1 : 0);
      const int widest = shared ? std::max(F, p.shared_gate_proj.first.out) : F;
      const dim3 grid(up(widest, kProductOut<W>), static_cast<unsigned>(groups));
      with_rows(p.rows, [&](auto rows) {
        experts_act_rows_kernel<W, decltype(rows)::value><<<grid, kProductThreads<W>, 0, stream>>>(on_device(p));
      });
      return;
    }
    const dim3 grid(up(F, kTile), most_tiles(p));
    if (on_tensor_cores(W, p.rounds))
      experts_act_tiles_kernel<W != Storage::f32, W><<<grid, kTileThreads, 0, stream>>>(on_device(p));
    else
      experts_act_tiles_kernel<false, W><<<grid, kTileThreads, 0, stream>>>(on_device(p));
  });
  DSV2_CUDA_LAUNCHED(experts_act);
}

void experts_down(const ExpertsParams& p, const Blas& blas, cudaStream_t stream) {
  if (by_library(p, p.down_proj.first)) return down_by_library(p, blas, stream);
  with_storage(p.down_proj.first.storage, [&](auto w) {
    constexpr Storage W = decltype(w)::value;
    const int D = p.down_proj.first.out;
    if (p.rows <= kFewRows) {
      with_rows(p.rows, [&](auto rows) {
        experts_down_rows_kernel<W, decltype(rows)::value>
            <<<up(D, kProductOut<W>), kProductThreads<W>, 0, stream>>>(on_device(p));
      });
      return;
    }
    const dim3 grid(up(D, kTile), most_tiles(p));
    if (on_tensor_cores(W, p.rounds))
      experts_down_tiles_kernel<W != Storage::f32, W><<<grid, kTileThreads, 0, stream>>>(on_device(p));
    else
      experts_down_tiles_kernel<false, W><<<grid, kTileThreads, 0, stream>>>(on_device(p));
    if (p.groups != nullptr) experts_combine_kernel<<<static_cast<unsigned>(p.rows), 256, 0, stream>>>(on_device(p));
  });
  DSV2_CUDA_LAUNCHED(experts_down);
}

}  // namespace dsv2::cuda
