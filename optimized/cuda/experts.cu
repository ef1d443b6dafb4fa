// The MLPs of a layer: routed experts, shared experts, a dense layer.
//
// Tokens are grouped by expert on the device; nothing that is launched depends on how many an expert got. With few
// rows, blocks share out the hidden units (experts_act) or the columns of y (experts_down), and each element of a
// touched expert is read once (row_product.cuh). With many rows, tiles of 64 places of one expert (tile_product.cuh);
// what an expert gives waits by place, and each token gathers its own, in ascending order of the experts: the same
// order in both ways, no atomics.
#include <algorithm>

#include "optimized/cuda/device.h"
#include "optimized/cuda/dispatch.h"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/row_product.cuh"
#include "optimized/cuda/tile_product.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kGroupThreads = 1024, kGroupWarps = kGroupThreads / kWarp;

/// Sum over the lanes before this one; `total` becomes that of all.
__device__ inline int exclusive_sum(int x, int& total) {
  const int lane = threadIdx.x % kWarp;
  int sum = x;
  for (int by = 1; by < kWarp; by *= 2) {
    const int other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(by));
    if (lane >= by) sum += other;
  }
  total = __shfl_sync(kAllLanes, sum, kWarp - 1);
  return sum - x;
}

/// One block. A warp counts the choices of an expert, 32 at a time; one warp adds up; then each writes its expert's
/// tokens. Shared: counts [E].
__global__ void __launch_bounds__(kGroupThreads) expert_groups_kernel(ExpertGroupsParams p) {
  extern __shared__ int begins[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, places = p.rows * p.top_k;
  const ExpertGroups& g = p.groups;
  for (int e = warp; e < p.experts; e += kGroupWarps) {
    int count = 0;
    for (int i = lane; i - lane < places; i += kWarp)
      count += __popc(__ballot_sync(kAllLanes, i < places && p.topk_idx[i] == e));
    if (lane == 0) begins[e] = count;
  }
  __syncthreads();  // all have been counted
  if (warp == 0) {
    int begin = 0, touched = 0, tiles = 0;
    for (int first = 0; first < p.experts; first += kWarp) {
      const int e = first + lane, count = e < p.experts ? begins[e] : 0;
      const int its_tiles = (count + kTileRows - 1) / kTileRows;
      int all, all_touched, all_tiles;
      const int at = begin + exclusive_sum(count, all);
      const int touched_at = touched + exclusive_sum(count > 0 ? 1 : 0, all_touched);
      const int tile = tiles + exclusive_sum(its_tiles, all_tiles);
      if (e < p.experts) {
        begins[e] = g.begin[e] = at;
        if (count > 0) g.touched[touched_at] = e;
        for (int t = 0; t < its_tiles; ++t) {
          g.tiles[2 * (tile + t)] = e;
          g.tiles[2 * (tile + t) + 1] = at + t * kTileRows;
        }
      }
      begin += all, touched += all_touched, tiles += all_tiles;
    }
    if (lane == 0) g.begin[p.experts] = begin, g.counts[0] = touched, g.counts[1] = tiles;
  }
  __syncthreads();  // each expert's first place is known
  for (int e = warp; e < p.experts; e += kGroupWarps) {
    int at = begins[e];
    for (int i = lane; i - lane < places; i += kWarp) {
      const bool mine = i < places && p.topk_idx[i] == e;
      const unsigned all = __ballot_sync(kAllLanes, mine);
      if (mine) {
        const int place = at + __popc(all & ((1u << lane) - 1));
        g.tokens[place] = i / p.top_k;
        g.place[i] = place;
      }
      at += __popc(all);
    }
  }
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
};

template <Storage W, int ROWS>
__device__ void act_rows(const Experts& x, const Group& group, float* staged) {
  const ExpertsParams& p = x.p;
  const Matrix m[2] = {matrix_of(p.gate_proj, group.expert), matrix_of(p.up_proj, group.expert)};
  product<W, ROWS>(
      m, static_cast<int>(blockIdx.x) * kProductOut<W>,
      [&](int r) { return p.x + static_cast<std::int64_t>(x.token(group.first + r)) * m[0].in; }, group.count, staged,
      [&](int o, int r, const float(&value)[2]) {
        p.act[static_cast<std::int64_t>(group.first + r) * m[0].out + o] = activate(p.activation, value[0]) * value[1];
      });
}

template <Storage W>
__global__ void __launch_bounds__(kProductThreads<W>) experts_act_rows_kernel(Experts x) {
  __shared__ alignas(16) float staged[kStagedFloats];
  const Group group = x.touched(blockIdx.y);
  if (group.count == 0) return;
  if (group.count == 1)
    act_rows<W, 1>(x, group, staged);
  else if (group.count == 2)
    act_rows<W, 2>(x, group, staged);
  else if (group.count <= 4)
    act_rows<W, 4>(x, group, staged);
  else
    act_rows<W, 8>(x, group, staged);
}

template <Storage W, int ROWS>
__device__ void down_rows(const Experts& x, const Group& group, int first, float* staged, float* sums) {
  const ExpertsParams& p = x.p;
  const Matrix m[1] = {matrix_of(p.down_proj, group.expert)};
  product<W, ROWS>(
      m, first, [&](int r) { return p.act + static_cast<std::int64_t>(group.first + r) * m[0].in; }, group.count,
      staged,
      [&](int o, int r, const float(&value)[1]) {
        const int n = x.token(group.first + r);
        float weight = 1;
        if (x.grouped)
          for (int j = 0; j < p.top_k; ++j)
            if (x.g.place[n * p.top_k + j] == group.first + r) weight = p.topk_weight[n * p.top_k + j];
        sums[(o - first) * kFewRows + n] += weight * value[0];
      });
}

/// Shared sums of [kProductOut][tokens]: a thread that adds an expert's part is the one that added the part before.
template <Storage W>
__global__ void __launch_bounds__(kProductThreads<W>) experts_down_rows_kernel(Experts x) {
  __shared__ alignas(16) float staged[kStagedFloats];
  __shared__ float sums[kProductOut<W> * kFewRows];
  for (int at = threadIdx.x; at < kProductOut<W> * kFewRows; at += kProductThreads<W>) sums[at] = 0;
  const int first = blockIdx.x * kProductOut<W>, D = x.p.down_proj.first.out;
  for (int i = 0;; ++i) {
    const Group group = x.touched(i);
    if (group.count == 0) break;
    __syncthreads();  // sums are 0, or another expert's part is in; what was staged has been read
    if (group.count == 1)
      down_rows<W, 1>(x, group, first, staged, sums);
    else if (group.count == 2)
      down_rows<W, 2>(x, group, first, staged, sums);
    else if (group.count <= 4)
      down_rows<W, 4>(x, group, first, staged, sums);
    else
      down_rows<W, 8>(x, group, first, staged, sums);
  }
  __syncthreads();  // the sums are whole
  for (int at = threadIdx.x; at < kProductOut<W> * x.p.rows; at += kProductThreads<W>) {
    const int o = at % kProductOut<W>, n = at / kProductOut<W>;
    if (first + o >= D) continue;
    float& y = x.p.y[static_cast<std::int64_t>(n) * D + first + o];
    const float sum = sums[o * kFewRows + n];
    y = x.p.adds ? y + sum : sum;
  }
}

template <bool TENSOR, Storage W>
__global__ void __launch_bounds__(kTileThreads) experts_act_tiles_kernel(Experts x) {
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

}  // namespace

void expert_groups(const ExpertGroupsParams& p, cudaStream_t stream) {
  const std::size_t shared = static_cast<std::size_t>(p.experts) * sizeof(int);
  expert_groups_kernel<<<1, kGroupThreads, shared, stream>>>(p);
  DSV2_CUDA_LAUNCHED(expert_groups);
}

void experts_act(const ExpertsParams& p, cudaStream_t stream) {
  with_storage(p.gate_proj.first.storage, [&](auto w) {
    constexpr Storage W = decltype(w)::value;
    const int F = p.gate_proj.first.out;
    if (p.rows <= kFewRows) {
      const int groups = p.groups != nullptr ? std::min(p.experts, p.rows * p.top_k) : 1;
      experts_act_rows_kernel<W>
          <<<dim3(up(F, kProductOut<W>), static_cast<unsigned>(groups)), kProductThreads<W>, 0, stream>>>(on_device(p));
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

void experts_down(const ExpertsParams& p, cudaStream_t stream) {
  with_storage(p.down_proj.first.storage, [&](auto w) {
    constexpr Storage W = decltype(w)::value;
    const int D = p.down_proj.first.out;
    if (p.rows <= kFewRows) {
      experts_down_rows_kernel<W><<<up(D, kProductOut<W>), kProductThreads<W>, 0, stream>>>(on_device(p));
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
