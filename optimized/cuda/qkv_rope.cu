// A block is 16 pairs of columns of one head of q, k or v: rows i and i + width/2 of its matrix (row_product.cuh, two
// matrices), which rotate against each other. Reads the matrices once, x and its norm once a block; q_rope and the
// cache are written once. What it does is linear, rope and kv_write of the same numbers.
#include "optimized/cuda/device.h"
#include "optimized/cuda/dispatch.h"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/rope.cuh"
#include "optimized/cuda/row_product.cuh"

namespace dsv2::cuda {
namespace {

template <Storage W, int ROWS>
__global__ void __launch_bounds__(kProductThreads<W>, kProductBlocks<ROWS>) qkv_rope_kernel(QkvRopeParams p) {
  __shared__ ProductMemory memory;
  const int half = p.width / 2, of_head = half / kProductOut<W>;
  int head = static_cast<int>(blockIdx.x) / of_head;
  const int first = static_cast<int>(blockIdx.x) % of_head * kProductOut<W>;
  const bool is_query = head < p.heads, is_key = !is_query && head < p.heads + p.key_heads;
  if (!is_query) head -= is_key ? p.heads : p.heads + p.key_heads;
  const Matrix& of = is_query ? p.q_proj : is_key ? p.k_proj : p.v_proj;
  const Matrix m[2] = {rows_from(of, head * p.width), rows_from(of, head * p.width + half)};
  const float* bias = of.bias != nullptr ? of.bias + head * p.width : nullptr;
  product<W, ROWS>(
      m, first, [&](int n) { return p.x + static_cast<std::int64_t>(n) * of.in; }, p.batch * p.tokens, p.norm, memory,
      [&](int i, int n, const float(&value)[2]) {
        Pair x = {value[0], value[1]};
        if (bias != nullptr) x.first += bias[i], x.second += bias[i + half];
        if (is_query || is_key) x = rotated(x, p.cos[n * half + i], p.sin[n * half + i]);
        if (is_query) {
          float* y = p.q_rope + (static_cast<std::int64_t>(n) * p.heads + head) * p.width + i;
          y[0] = x.first, y[half] = x.second;
          return;
        }
        const CachedRows& rows = is_key ? p.keys : p.values;
        const std::int64_t to = cached_at(rows, n / p.tokens, head, *p.past + n % p.tokens) + i;
        store(rows.data, rows.storage, to, x.first);
        store(rows.data, rows.storage, to + half, x.second);
      });
}

}  // namespace

bool qkv_rope_fits(int rows, int width) { return rows <= kFewRows && width % (2 * kPanelRows) == 0; }

void qkv_rope(const QkvRopeParams& p, cudaStream_t stream) {
  with_storage(p.q_proj.storage, [&](auto w) {
    constexpr Storage W = decltype(w)::value;
    with_rows(p.batch * p.tokens, [&](auto rows) {
      const int blocks = (p.heads + 2 * p.key_heads) * (p.width / 2 / kProductOut<W>);
      qkv_rope_kernel<W, decltype(rows)::value><<<static_cast<unsigned>(blocks), kProductThreads<W>, 0, stream>>>(p);
    });
  });
  DSV2_CUDA_LAUNCHED(qkv_rope);
}

}  // namespace dsv2::cuda
