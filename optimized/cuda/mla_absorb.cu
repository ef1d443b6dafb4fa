// kv_b_proj head by head, absorbed into the query and into what was attended to (end of section 2.1.2 of
// arXiv 2405.04434). keys: a block a head, 8 tokens and 256 columns, a thread two columns: rows of the matrix are read
// along their columns. values: a block a head, 8 tokens and 16 rows of the matrix (row_product.cuh). Sums are f32.
#include "optimized/cuda/device.h"
#include "optimized/cuda/dispatch.h"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/row_product.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kKeyThreads = 128, kKeyColumns = 2 * kKeyThreads;

template <Storage W, int ROWS>
__global__ void __launch_bounds__(kKeyThreads) mla_absorb_keys_kernel(MlaAbsorbParams p) {
  __shared__ float staged[ROWS][kMaxNopeWidth];
  const int h = blockIdx.x, n0 = blockIdx.y * ROWS, rows = min(ROWS, p.rows - n0), R = p.kv_b_proj.in;
  for (int at = threadIdx.x; at < ROWS * p.nope; at += kKeyThreads) {
    const int r = at / p.nope, j = at % p.nope;
    staged[r][j] = r < rows ? p.x[(n0 + r) * p.x_token_stride + h * p.x_head_stride + j] : 0.0f;
  }
  __syncthreads();  // the queries are staged
  const int column = blockIdx.z * kKeyColumns + 2 * threadIdx.x;
  if (column >= R) return;
  float sums[2][ROWS] = {};
  // Behind `in` a row has zeros up to its stride, which is even.
  const std::int64_t first = static_cast<std::int64_t>(h) * (p.nope + p.v) * p.kv_b_proj.stride + column;
#pragma unroll 4
  for (int j = 0; j < p.nope; ++j) {
    float2 w;
    const std::int64_t at = first + static_cast<std::int64_t>(j) * p.kv_b_proj.stride;
    if constexpr (W == Storage::f32)
      w = *reinterpret_cast<const float2*>(static_cast<const float*>(p.kv_b_proj.data) + at);
    else
      w = __bfloat1622float2(
          *reinterpret_cast<const __nv_bfloat162*>(static_cast<const __nv_bfloat16*>(p.kv_b_proj.data) + at));
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      sums[0][r] = fmaf(staged[r][j], w.x, sums[0][r]);
      sums[1][r] = fmaf(staged[r][j], w.y, sums[1][r]);
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    if (r >= rows) break;
    float* y = p.y + (static_cast<std::int64_t>(n0 + r) * p.heads + h) * R + column;
    y[0] = sums[0][r];
    if (column + 1 < R) y[1] = sums[1][r];
  }
}

template <Storage W, int ROWS>
__global__ void __launch_bounds__(kProductThreads<W>, kProductBlocks<ROWS>)
    mla_absorb_values_kernel(MlaAbsorbParams p) {
  __shared__ ProductMemory memory;
  const int h = blockIdx.x, n0 = blockIdx.y * ROWS, rows = min(ROWS, p.rows - n0);
  Matrix m[1] = {p.kv_b_proj};
  constexpr int kBytes = W == Storage::f32 ? 4 : 2;
  m[0].data = static_cast<const std::byte*>(m[0].data) +
              (static_cast<std::int64_t>(h) * (p.nope + p.v) + p.nope) * m[0].stride * kBytes;
  m[0].out = p.v;
  product<W, ROWS>(
      m, static_cast<int>(blockIdx.z) * kProductOut<W>,
      [&](int r) { return p.x + (n0 + r) * p.x_token_stride + h * p.x_head_stride; }, rows, RowNorm(), memory,
      [&](int o, int r, const float(&value)[1]) {
        p.y[(static_cast<std::int64_t>(n0 + r) * p.heads + h) * p.v + o] = value[0];
      });
}

template <class Launch>
void with_matrix(const MlaAbsorbParams& p, Launch launch) {
  DSV2_CHECK(p.kv_b_proj.storage == Storage::f32 || p.kv_b_proj.storage == Storage::bf16,
             "kv_b_proj: expected f32 or bf16 on the device");
  with_rows(p.rows, [&](auto rows) {
    if (p.kv_b_proj.storage == Storage::f32)
      launch(Constant<Storage::f32>(), rows);
    else
      launch(Constant<Storage::bf16>(), rows);
  });
}

unsigned up(int count, int by) { return static_cast<unsigned>((count + by - 1) / by); }

}  // namespace

void mla_absorb_keys(const MlaAbsorbParams& p, cudaStream_t stream) {
  DSV2_CHECK(p.nope <= kMaxNopeWidth, "qk_nope_head_dim: expected at most ", kMaxNopeWidth, ", found ", p.nope);
  with_matrix(p, [&](auto w, auto rows) {
    constexpr int kRows = decltype(rows)::value;
    const dim3 grid(static_cast<unsigned>(p.heads), up(p.rows, kRows), up(p.kv_b_proj.in, kKeyColumns));
    mla_absorb_keys_kernel<decltype(w)::value, kRows><<<grid, kKeyThreads, 0, stream>>>(p);
  });
  DSV2_CUDA_LAUNCHED(mla_absorb_keys);
}

void mla_absorb_values(const MlaAbsorbParams& p, cudaStream_t stream) {
  with_matrix(p, [&](auto w, auto rows) {
    constexpr Storage W = decltype(w)::value;
    constexpr int kRows = decltype(rows)::value;
    const dim3 grid(static_cast<unsigned>(p.heads), up(p.rows, kRows), up(p.v, kProductOut<W>));
    mla_absorb_values_kernel<W, kRows><<<grid, kProductThreads<W>, 0, stream>>>(p);
  });
  DSV2_CUDA_LAUNCHED(mla_absorb_values);
}

}  // namespace dsv2::cuda
