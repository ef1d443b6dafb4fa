// y = x W^T + bias. Few rows: blocks share out the rows of the matrices (row_product.cuh), which are read once. More
// rows: a block a tile of 64 x 64 (tile_product.cuh). What is read beside the matrix: the rows, once a block. Many rows
// of f32 or bf16: the library (blas.h), the rows rounded for it once.
#include "optimized/cuda/device.h"
#include "optimized/cuda/dispatch.h"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/row_product.cuh"
#include "optimized/cuda/tile_product.cuh"

namespace dsv2::cuda {
namespace {

/// The segment that block `block` works on, and which of its blocks it is, `out` rows of the matrix to each.
__device__ inline const LinearSegment& segment_of(const LinearParams& p, int& block, int out) {
  int s = 0;
  for (; s + 1 < p.segment_count; ++s) {
    const int blocks = (p.segments[s].weight.out + out - 1) / out;
    if (block < blocks) break;
    block -= blocks;
  }
  return p.segments[s];
}
int blocks_of(const LinearParams& p, int out) {
  int blocks = 0;
  for (int s = 0; s < p.segment_count; ++s) blocks += (p.segments[s].weight.out + out - 1) / out;
  return blocks;
}

__device__ inline void put(const LinearParams& p, const LinearSegment& s, int row, int out, float value) {
  float& y = s.y[row * s.y_stride + out];
  if (s.weight.bias != nullptr) value += s.weight.bias[out];
  y = p.adds ? y + value : value;
}

template <Storage W, int ROWS>
__global__ void __launch_bounds__(kProductThreads<W>, kProductBlocks<ROWS>) linear_rows_kernel(LinearParams p) {
  __shared__ ProductMemory memory;
  int block = blockIdx.x;
  const LinearSegment& s = segment_of(p, block, kProductOut<W>);
  const Matrix m[1] = {s.weight};
  product<W, ROWS>(
      m, block * kProductOut<W>, [&](int r) { return p.x + (p.pick != nullptr ? p.pick[r] : r) * p.x_stride; }, p.rows,
      RowNorm(), memory, [&](int o, int r, const float(&value)[1]) { put(p, s, r, o, value[0]); });
}

template <bool TENSOR, Storage W>
__global__ void __launch_bounds__(kTileThreads, 2) linear_tiles_kernel(LinearParams p) {
  __shared__ TileMemory<TENSOR> memory;
  int block = blockIdx.x;
  const LinearSegment& s = segment_of(p, block, kTile);
  const int n0 = block * kTile, first = blockIdx.y * kTile;
  const TileRows rows = {p.x, p.x_stride, p.pick, first, min(kTile, p.rows - first)};
  tile_product<TENSOR, W>(memory, rows, s.weight, n0);
  for (int at = threadIdx.x; at < rows.count * kTile; at += kTileThreads) {
    const int i = at / kTile, j = at % kTile;
    if (n0 + j < s.weight.out) put(p, s, first + i, n0 + j, memory.c[i][j]);
  }
}

/// y[i] = x[pick[i]] in bf16, rows y_stride apart. A block a row.
constexpr int kRoundThreads = 256;
__global__ void round_rows_kernel(LinearParams p, std::uint16_t* y, std::int64_t y_stride) {
  const float* from = p.x + (p.pick != nullptr ? p.pick[blockIdx.x] : blockIdx.x) * p.x_stride;
  auto* to = reinterpret_cast<__nv_bfloat16*>(y) + blockIdx.x * y_stride;
  for (int c = threadIdx.x; c < p.segments[0].weight.in; c += kRoundThreads) to[c] = __float2bfloat16(from[c]);
}

void linear_by_library(const LinearParams& p, const Blas& blas, cudaStream_t stream) {
  const Matrix& first = p.segments[0].weight;
  MatmulParams product{
      .x = p.x, .x_stride = p.x_stride, .rows = p.rows, .weight = {}, .adds = p.adds, .y = nullptr, .y_stride = 0};
  if (first.storage == Storage::bf16) {
    product.x = p.rounded, product.x_stride = first.stride;
    if (p.rounded == nullptr) {
      product.x = blas.rounded();
      round_rows_kernel<<<static_cast<unsigned>(p.rows), kRoundThreads, 0, stream>>>(p, blas.rounded(), first.stride);
      DSV2_CUDA_LAUNCHED(round_rows);
    }
  }
  for (int i = 0; i < p.segment_count; ++i) {
    const LinearSegment& s = p.segments[i];
    product.weight = s.weight, product.y = s.y, product.y_stride = s.y_stride;
    blas.matmul(product, stream);
  }
}

}  // namespace

void linear(const LinearParams& p, const Blas& blas, cudaStream_t stream) {
  const Storage storage = p.segments[0].weight.storage;
  const bool as_they_lie = p.pick == nullptr || storage == Storage::bf16;
  if (Blas::takes(p.rows, storage, p.rounds) && as_they_lie) return linear_by_library(p, blas, stream);
  with_storage(storage, [&](auto w) {
    constexpr Storage W = decltype(w)::value;
    if (p.rows <= kFewRows) {
      with_rows(p.rows, [&](auto rows) {
        linear_rows_kernel<W, decltype(rows)::value>
            <<<static_cast<unsigned>(blocks_of(p, kProductOut<W>)), kProductThreads<W>, 0, stream>>>(p);
      });
      return;
    }
    const dim3 grid(static_cast<unsigned>(blocks_of(p, kTile)), static_cast<unsigned>((p.rows + kTile - 1) / kTile));
    if (on_tensor_cores(W, p.rounds))
      linear_tiles_kernel<W != Storage::f32, W><<<grid, kTileThreads, 0, stream>>>(p);
    else
      linear_tiles_kernel<false, W><<<grid, kTileThreads, 0, stream>>>(p);
  });
  DSV2_CUDA_LAUNCHED(linear);
}

}  // namespace dsv2::cuda
