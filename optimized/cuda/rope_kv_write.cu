// Rotary embedding of queries and keys, and writing of keys and values into the cache, in one launch: a block a token,
// a thread a pair of columns (a column of values). Reads and writes each number once; angles come from a table.
#include "optimized/cuda/device.h"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/load.cuh"
#include "optimized/cuda/rope.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kThreads = 256;

/// Pair i of a head.
__device__ inline Pair rotate(const RopeKvWriteParams& p, const float* x, int n, int i) {
  const int half = p.width / 2;
  const std::int64_t at = static_cast<std::int64_t>(n) * half + i;
  return rotated({x[p.interleaved ? 2 * i : i], x[p.interleaved ? 2 * i + 1 : i + half]}, p.cos[at], p.sin[at]);
}

__global__ void rope_kv_write_kernel(RopeKvWriteParams p) {
  const int n = blockIdx.x, b = n / p.tokens, half = p.width / 2;
  const int position = p.past != nullptr ? *p.past + n % p.tokens : 0;
  for (int at = threadIdx.x; at < p.heads * half; at += kThreads) {
    const int h = at / half, i = at % half;
    const Pair r = rotate(p, p.q + n * p.q_token_stride + h * p.q_head_stride, n, i);
    float* y = p.q_rope + (static_cast<std::int64_t>(n) * p.heads + h) * p.width;
    y[i] = r.first, y[i + half] = r.second;
  }
  for (int at = threadIdx.x; at < p.key_heads * half; at += kThreads) {
    const int h = at / half, i = at % half;
    const Pair r = rotate(p, p.k + n * p.k_token_stride + h * p.k_head_stride, n, i);
    if (p.k_rope != nullptr) {
      float* y = p.k_rope + (static_cast<std::int64_t>(n) * p.key_heads + h) * p.width;
      y[i] = r.first, y[i + half] = r.second;
    }
    if (p.keys.data != nullptr) {
      const std::int64_t to = cached_at(p.keys, b, h, position);
      store(p.keys.data, p.keys.storage, to + i, r.first);
      store(p.keys.data, p.keys.storage, to + i + half, r.second);
    }
  }
  if (p.cached_values.data == nullptr) return;
  const int width = p.value_heads * p.value_width;
  for (int at = threadIdx.x; at < width; at += kThreads)
    store(p.cached_values.data, p.cached_values.storage,
          cached_at(p.cached_values, b, at / p.value_width, position) + at % p.value_width,
          p.values[static_cast<std::int64_t>(n) * width + at]);
}

__global__ void kv_write_kernel(KvWriteParams p) {
  const int n = blockIdx.x, width = p.heads * p.width;
  for (int at = threadIdx.x; at < width; at += kThreads)
    store(p.rows.data, p.rows.storage,
          cached_at(p.rows, n / p.tokens, at / p.width, *p.past + n % p.tokens) + at % p.width,
          p.x[static_cast<std::int64_t>(n) * width + at]);
}

}  // namespace

void rope_kv_write(const RopeKvWriteParams& p, cudaStream_t stream) {
  rope_kv_write_kernel<<<static_cast<unsigned>(p.batch * p.tokens), kThreads, 0, stream>>>(p);
  DSV2_CUDA_LAUNCHED(rope_kv_write);
}

void kv_write(const KvWriteParams& p, cudaStream_t stream) {
  kv_write_kernel<<<static_cast<unsigned>(p.batch * p.tokens), kThreads, 0, stream>>>(p);
  DSV2_CUDA_LAUNCHED(kv_write);
}

}  // namespace dsv2::cuda
