// Products of a matrix with few rows, bound by reading the matrix: each of its elements is loaded once, 16 bytes (or a
// word of a panel) a lane, and meets all rows, which wait in shared memory as f32. Sums are f32: of a lane its own
// columns, then over the lanes, in an order that does not depend on the number of rows.
#pragma once

#include "optimized/cuda/load.cuh"

namespace dsv2::cuda {

/// Columns of staged rows, in all.
inline constexpr int kStagedFloats = 4096;
/// Between the two halves of a row, and of a row and the next: half the banks.
inline constexpr int kStagedGap = 16;
/// Shared memory of a product.
struct ProductMemory {
  alignas(16) float staged[kStagedFloats + 2 * kStagedGap * kFewRows];
  float scales[kFewRows];  ///< of rows that are normalised
};
/// Columns that are staged at a time.
template <int ROWS>
inline constexpr int kStagedColumns = kStagedFloats / ROWS;

/// Where a column of a staged row lies. Lanes that take 8 bf16 columns read two vectors of 4 floats: the first ones of
/// all lanes are neighbours, and so are the second ones, half the banks on, so that neither reads nor writes meet.
template <Storage W, int ROWS>
__device__ inline int staged_at(int row, int column) {
  const int base = row * (kStagedColumns<ROWS> + 2 * kStagedGap);
  if constexpr (W == Storage::bf16)
    return base + (column >> 2 & 1) * (kStagedColumns<ROWS> / 2 + kStagedGap) + (column >> 3) * 4 + (column & 3);
  return base + column;
}

/// Columns [first, first + kStagedColumns) of rows 0..rows-1, zeros behind `width` and behind the last row. `row_of`
/// gives a row's first element; where there is a norm, its elements are scaled by it. The caller puts barriers around.
template <Storage W, int ROWS, class RowOf>
__device__ void stage(float* staged, RowOf row_of, int rows, int first, int width, const RowNorm& norm,
                      const float* scales) {
  const int columns = min(kStagedColumns<ROWS>, (width - first + kBlockColumns - 1) / kBlockColumns * kBlockColumns);
  for (int r = 0; r < ROWS; ++r) {
    const float* x = r < rows ? row_of(r) : nullptr;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) {
      float value = x != nullptr && first + c < width ? x[first + c] : 0.0f;
      if (norm.weight != nullptr && x != nullptr && first + c < width)
        value = norm.weight[first + c] * (value * scales[r]);
      staged[staged_at<W, ROWS>(r, c)] = value;
    }
  }
}

/// 1 / sqrt(mean(x^2) + eps) of each row, a warp a row; with a barrier at the end.
template <class RowOf>
__device__ void norm_scales(float* scales, RowOf row_of, int rows, int width, float eps) {
  for (int r = threadIdx.x / kWarp; r < rows; r += blockDim.x / kWarp) {
    const float* x = row_of(r);
    float sum = 0;
    for (int c = threadIdx.x % kWarp; c < width; c += kWarp) sum += x[c] * x[c];
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) scales[r] = 1.0f / sqrtf(sum / static_cast<float>(width) + eps);
  }
  __syncthreads();  // the scales are there
}

/// sums[o][r] += this lane's part of rows w[o] [columns] times staged row r. `columns` is what is staged.
template <Storage W, int OUT, int ROWS>
__device__ void accumulate(float (&sums)[OUT][ROWS], const void* const (&w)[OUT], const float* staged, int columns) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (W == Storage::f32) {
#pragma unroll 4
    for (int c = lane * 4; c < columns; c += kWarp * 4) {
      float4 x[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) x[r] = *reinterpret_cast<const float4*>(staged + staged_at<W, ROWS>(r, c));
#pragma unroll
      for (int o = 0; o < OUT; ++o) {
        const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(w[o]) + c);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
          sums[o][r] = fmaf(v.w, x[r].w, fmaf(v.z, x[r].z, fmaf(v.y, x[r].y, fmaf(v.x, x[r].x, sums[o][r]))));
      }
    }
  } else {
#pragma unroll 4
    for (int c = lane * 8; c < columns; c += kWarp * 8) {
      uint4 v[OUT];
#pragma unroll
      for (int o = 0; o < OUT; ++o) v[o] = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(w[o]) + c);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const float4 x0 = *reinterpret_cast<const float4*>(staged + staged_at<W, ROWS>(r, c));
        const float4 x1 = *reinterpret_cast<const float4*>(staged + staged_at<W, ROWS>(r, c + 4));
#pragma unroll
        for (int o = 0; o < OUT; ++o) {
          const auto low = [](unsigned two) { return __uint_as_float(two << 16); };
          const auto high = [](unsigned two) { return __uint_as_float(two & 0xffff0000u); };
          float sum = sums[o][r];
          sum = fmaf(low(v[o].x), x0.x, sum), sum = fmaf(high(v[o].x), x0.y, sum);
          sum = fmaf(low(v[o].y), x0.z, sum), sum = fmaf(high(v[o].y), x0.w, sum);
          sum = fmaf(low(v[o].z), x1.x, sum), sum = fmaf(high(v[o].z), x1.y, sum);
          sum = fmaf(low(v[o].w), x1.z, sum), sum = fmaf(high(v[o].w), x1.w, sum);
          sums[o][r] = sum;
        }
      }
    }
  }
}

/// The same for one panel: half a warp has a row a lane, and takes every other word. `warp` of `warps` takes every
/// warps-th block; `panel` begins at the first staged column.
template <Storage W, int ROWS>
__device__ void accumulate_panel(float (&sums)[ROWS], const std::byte* panel, const float* staged, int columns,
                                 int warp, int warps) {
  using Q = Quantised<W>;
  const int lane = threadIdx.x % kWarp, row = lane % kPanelRows, half = lane / kPanelRows;
  for (int c = warp * kBlockColumns; c < columns; c += warps * kBlockColumns) {
    const std::byte* block = panel + c / kBlockColumns * Q::kBlockBytes;
    std::uint32_t words[Q::kWords / 2];
#pragma unroll
    for (int i = 0; i < Q::kWords / 2; ++i) words[i] = Q::word(block, 2 * i + half, row);
#pragma unroll
    for (int group = 0; group < kBlockColumns / kGroupColumns; ++group) {
      const float scale = Q::scale(block, group, row);
      float of_group[ROWS] = {};
#pragma unroll
      for (int i = group * Q::kWords / 4; i < (group + 1) * Q::kWords / 4; ++i) {
        const int column = c + (2 * i + half) * Q::kWordColumns;
#pragma unroll
        for (int j = 0; j < Q::kWordColumns; j += 4) {
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
            const float4 x = *reinterpret_cast<const float4*>(staged + staged_at<W, ROWS>(r, column + j));
            of_group[r] = fmaf(Q::value(words[i], j), x.x, of_group[r]);
            of_group[r] = fmaf(Q::value(words[i], j + 1), x.y, of_group[r]);
            of_group[r] = fmaf(Q::value(words[i], j + 2), x.z, of_group[r]);
            of_group[r] = fmaf(Q::value(words[i], j + 3), x.w, of_group[r]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; ++r) sums[r] = fmaf(scale, of_group[r], sums[r]);
    }
  }
}

/// How many rows of the matrix a warp multiplies at a time.
inline constexpr int kOutPerWarp = 2;
inline constexpr int kRowWarps = 8, kPanelWarps = 4;
/// Threads of a block, and rows of the matrix that it multiplies.
template <Storage W>
inline constexpr int kProductThreads = kWarp*(W == Storage::f32 || W == Storage::bf16 ? kRowWarps : kPanelWarps);
template <Storage W>
inline constexpr int kProductOut = W == Storage::f32 || W == Storage::bf16 ? kRowWarps* kOutPerWarp : kPanelRows;

/// Blocks of a processor that registers are rationed for: enough without spilling.
template <int ROWS>
inline constexpr int kProductBlocks = ROWS <= 2 ? 2 : 1;

/// out(o, r, value) for rows o = first..first+kProductOut-1 (below m.out) of MATRICES equal matrices times `rows` rows,
/// by the whole block: value[i] of matrix i. Threads beside each other have rows o beside each other. MATRICES share
/// the staged rows: gate and up, the halves of a head. Ends without a barrier, and so does what `out` writes.
template <Storage W, int ROWS, int MATRICES, class RowOf, class Out>
__device__ void product(const Matrix (&m)[MATRICES], int first, RowOf row_of, int rows, const RowNorm& norm,
                        ProductMemory& memory, Out out) {
  constexpr int kThreads = kProductThreads<W>, kOut = kProductOut<W>;
  float *const staged = memory.staged, *const scales = memory.scales;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, width = m[0].in;
  constexpr bool kInRows = W == Storage::f32 || W == Storage::bf16;
  constexpr int kSums = kInRows ? kOutPerWarp * MATRICES : MATRICES;
  if (norm.weight != nullptr) norm_scales(scales, row_of, rows, width, norm.eps);
  float sums[kSums][ROWS] = {};
  for (int c = 0; c < width; c += kStagedColumns<ROWS>) {
    if (c > 0) __syncthreads();  // all have read what is overwritten now
    stage<W, ROWS>(staged, row_of, rows, c, width, norm, scales);
    __syncthreads();  // the rows are staged
    if constexpr (kInRows) {
      constexpr int kBytes = W == Storage::f32 ? 4 : 2;
      const void* w[kSums];
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        // A row behind the last one reads the last one's and is not told.
        const int o = min(first + warp * kOutPerWarp + i % kOutPerWarp, m[0].out - 1);
        const Matrix& of = m[i / kOutPerWarp];
        w[i] = static_cast<const std::byte*>(of.data) + (static_cast<std::int64_t>(o) * of.stride + c) * kBytes;
      }
      accumulate<W>(sums, w, staged, min(kStagedColumns<ROWS>, m[0].stride - c));
    } else {
      const int columns = min(kStagedColumns<ROWS>, (width - c + kBlockColumns - 1) / kBlockColumns * kBlockColumns);
#pragma unroll
      for (int i = 0; i < MATRICES; ++i)
        accumulate_panel<W>(sums[i], Quantised<W>::panel(m[i], first) + c / kBlockColumns * Quantised<W>::kBlockBytes,
                            staged, columns, warp, kPanelWarps);
    }
  }
  __syncthreads();  // all have read the staged rows: the sums take their place, [matrix][row][part][o]
  constexpr int kParts = kInRows ? 1 : kPanelWarps;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if constexpr (kInRows) {
        const float sum = warp_sum(sums[i][r]);
        if (lane == 0) staged[(i / kOutPerWarp * ROWS + r) * kOut + warp * kOutPerWarp + i % kOutPerWarp] = sum;
      } else {
        const float sum = sums[i][r] + __shfl_xor_sync(kAllLanes, sums[i][r], kPanelRows);
        if (lane < kPanelRows) staged[((i * ROWS + r) * kParts + warp) * kOut + lane] = sum;
      }
    }
  }
  __syncthreads();  // the sums are there
  for (int at = threadIdx.x; at < rows * kOut; at += kThreads) {
    const int r = at / kOut, o = at % kOut;
    if (first + o >= m[0].out) continue;
    float value[MATRICES] = {};
#pragma unroll
    for (int i = 0; i < MATRICES; ++i)
      for (int part = 0; part < kParts; ++part) value[i] += staged[((i * ROWS + r) * kParts + part) * kOut + o];
    out(first + o, r, value);
  }
}

/// Rows `first` and on of a matrix; of one in panels, a multiple of their height.
__device__ inline Matrix rows_from(Matrix m, int first) {
  if (m.storage == Storage::f32 || m.storage == Storage::bf16)
    m.data = static_cast<const std::byte*>(m.data) +
             static_cast<std::int64_t>(first) * m.stride * (m.storage == Storage::f32 ? 4 : 2);
  else
    m.data =
        m.storage == Storage::i8 ? Quantised<Storage::i8>::panel(m, first) : Quantised<Storage::i4>::panel(m, first);
  m.out -= first;
  return m;
}

}  // namespace dsv2::cuda
