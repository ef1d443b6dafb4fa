// Blocks of 16 rows of one of three matrices (row_product.cuh), which are read once:
//   q_proj     of one head's q_nope: they are multiplied, while the block has them, by the same rows of the head's
//   W_uk,
//              and the last block of the head adds up what all of them gave, in their order: the query in the latent
//              space. Or of its rope part: they rotate.
//   kv_a_proj  the last block has the whole row: it normalises the latent part, rotates the rest and writes both into
//              the cache.
//   q_a_proj   as linear does.
// What it does is rms_norm, linear, rope, kv_write and mla_absorb of the same numbers.
#include "optimized/cuda/device.h"
#include "optimized/cuda/dispatch.h"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/last_block.cuh"
#include "optimized/cuda/rope.cuh"
#include "optimized/cuda/row_product.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kOut = 16;  // rows of a block
static_assert(kProductOut<Storage::bf16> == kOut && kProductOut<Storage::i8> == kOut);

__host__ __device__ constexpr int blocks_of(int rows) { return (rows + kOut - 1) / kOut; }
__host__ __device__ constexpr int even(int width) { return (width + 1) / 2 * 2; }
__host__ __device__ inline int blocks_of_head(const MlaQkvRopeParams& p) {
  return blocks_of(p.nope) + blocks_of(p.rope);
}
__host__ __device__ inline int blocks_of(const Matrix& m) { return m.data == nullptr ? 0 : blocks_of(m.out); }

__device__ inline float with_bias(const Matrix& m, int o, float value) {
  return m.bias != nullptr ? value + m.bias[o] : value;
}

/// Two columns of row `row` of kv_b_proj.
__device__ inline float2 two_columns(const Matrix& m, int row, int column) {
  const std::int64_t at = static_cast<std::int64_t>(row) * m.stride + column;
  if (m.storage == Storage::f32) return *reinterpret_cast<const float2*>(static_cast<const float*>(m.data) + at);
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(static_cast<const __nv_bfloat16*>(m.data) + at));
}

/// Rows first..first+15 of a head's q_nope, in `q`, into the latent space.
template <int ROWS>
__device__ void absorb(const MlaQkvRopeParams& p, int h, int first, const float (&q)[ROWS][kOut]) {
  const Matrix& m = p.kv_b_proj;
  const int N = p.batch * p.tokens, R = m.in, blocks = blocks_of(p.nope), count = min(kOut, p.nope - first);
  const auto parts_of = [&](int block, int n) {
    return p.partial + (static_cast<std::int64_t>(h * blocks + block) * N + n) * even(R);
  };
  for (int c = 2 * static_cast<int>(threadIdx.x); c < R; c += 2 * static_cast<int>(blockDim.x)) {
    float2 sums[ROWS] = {};
#pragma unroll
    for (int j = 0; j < kOut; ++j) {
      if (j >= count) break;
      const float2 w = two_columns(m, h * (p.nope + p.v) + first + j, c);
#pragma unroll
      for (int n = 0; n < ROWS; ++n) {
        sums[n].x = fmaf(q[n][j], w.x, sums[n].x);
        sums[n].y = fmaf(q[n][j], w.y, sums[n].y);
      }
    }
#pragma unroll
    for (int n = 0; n < ROWS; ++n)
      if (n < N) *reinterpret_cast<float2*>(parts_of(first / kOut, n) + c) = sums[n];
  }
  if (!is_last_block(p.arrived + 1 + h, blocks)) return;
  for (int at = threadIdx.x; at < N * R; at += blockDim.x) {
    const int n = at / R, c = at % R;
    float sum = 0;
#pragma unroll 8
    for (int block = 0; block < blocks; ++block) sum += parts_of(block, n)[c];
    p.q_latent[(static_cast<std::int64_t>(n) * p.heads + h) * R + c] = sum;
  }
}

__device__ inline Pair rotated_pair(const MlaQkvRopeParams& p, int n, int i, const float* pair) {
  const int at = n * (p.rope / 2) + i;
  return rotated({pair[0], pair[1]}, p.cos[at], p.sin[at]);
}

template <Storage W, int ROWS>
__device__ void query_block(const MlaQkvRopeParams& p, int block, ProductMemory& memory) {
  __shared__ float q[ROWS][kOut];
  const int N = p.batch * p.tokens, h = block / blocks_of_head(p), i = block % blocks_of_head(p);
  const bool turns = i >= blocks_of(p.nope);
  const int begin = h * (p.nope + p.rope) + (turns ? p.nope : 0), first = (turns ? i - blocks_of(p.nope) : i) * kOut;
  Matrix m[1] = {rows_from(p.q_proj, begin)};
  m[0].out = turns ? p.rope : p.nope;
  for (int at = threadIdx.x; at < ROWS * kOut; at += blockDim.x) q[at / kOut][at % kOut] = 0;
  product<W, ROWS>(
      m, first, [&](int n) { return p.x + static_cast<std::int64_t>(n) * p.q_proj.in; }, N, p.norm, memory,
      [&](int o, int n, const float(&value)[1]) { q[n][o - first] = with_bias(p.q_proj, begin + o, value[0]); });
  __syncthreads();  // the block's rows of q are there
  if (!turns) return absorb<ROWS>(p, h, first, q);
  for (int at = threadIdx.x; at < N * (kOut / 2); at += blockDim.x) {
    const int n = at / (kOut / 2), pair = at % (kOut / 2), c = first / 2 + pair;
    if (c >= p.rope / 2) continue;
    const Pair y = rotated_pair(p, n, c, &q[n][2 * pair]);
    float* const to = p.q_rope + (static_cast<std::int64_t>(n) * p.heads + h) * p.rope + c;
    to[0] = y.first, to[p.rope / 2] = y.second;
  }
}

template <Storage W, int ROWS>
__device__ void latent_block(const MlaQkvRopeParams& p, int block, ProductMemory& memory) {
  const Matrix m[1] = {p.kv_a_proj};
  const int N = p.batch * p.tokens, R = p.kv_b_proj.in, width = R + p.rope;
  const auto row = [&](int n) { return p.kv + static_cast<std::int64_t>(n) * width; };
  product<W, ROWS>(
      m, block * kOut, [&](int n) { return p.x + static_cast<std::int64_t>(n) * p.kv_a_proj.in; }, N, p.norm, memory,
      [&](int o, int n, const float(&value)[1]) { row(n)[o] = with_bias(p.kv_a_proj, o, value[0]); });
  if (!is_last_block(p.arrived, blocks_of(p.kv_a_proj))) return;
  norm_scales(memory.scales, row, N, R, p.latent_norm.eps);
  const auto to = [&](const CachedRows& rows, int n) {
    return cached_at(rows, n / p.tokens, 0, *p.past + n % p.tokens);
  };
  for (int at = threadIdx.x; at < N * R; at += blockDim.x) {
    const int n = at / R, c = at % R;
    store(p.latents.data, p.latents.storage, to(p.latents, n) + c,
          p.latent_norm.weight[c] * (row(n)[c] * memory.scales[n]));
  }
  const int half = p.rope / 2;
  for (int at = threadIdx.x; at < N * half; at += blockDim.x) {
    const int n = at / half, i = at % half;
    const Pair y = rotated_pair(p, n, i, row(n) + R + 2 * i);
    store(p.keys.data, p.keys.storage, to(p.keys, n) + i, y.first);
    store(p.keys.data, p.keys.storage, to(p.keys, n) + i + half, y.second);
  }
}

template <Storage W, int ROWS>
__global__ void __launch_bounds__(kProductThreads<W>, kProductBlocks<ROWS>) mla_qkv_rope_kernel(MlaQkvRopeParams p) {
  __shared__ ProductMemory memory;
  int block = blockIdx.x;
  const int of_queries = p.q_proj.data == nullptr ? 0 : p.heads * blocks_of_head(p);
  if (block < of_queries) return query_block<W, ROWS>(p, block, memory);
  block -= of_queries;
  if (block < blocks_of(p.kv_a_proj)) return latent_block<W, ROWS>(p, block, memory);
  const Matrix m[1] = {p.q_a_proj};
  product<W, ROWS>(
      m, (block - blocks_of(p.kv_a_proj)) * kOut,
      [&](int n) { return p.x + static_cast<std::int64_t>(n) * p.q_a_proj.in; }, p.batch * p.tokens, p.norm, memory,
      [&](int o, int n, const float(&value)[1]) {
        p.q_low[static_cast<std::int64_t>(n) * p.q_a_proj.out + o] = with_bias(p.q_a_proj, o, value[0]);
      });
}

}  // namespace

bool mla_qkv_rope_fits(int rows, const Matrix& q_proj, int nope, int rope) {
  const bool in_panels = q_proj.storage == Storage::i8 || q_proj.storage == Storage::i4;
  return rows <= kFewRows && (!in_panels || (nope % kPanelRows == 0 && rope % kPanelRows == 0));
}

std::int64_t mla_qkv_rope_partial_size(int rows, int heads, int nope, int latent) {
  return static_cast<std::int64_t>(heads) * blocks_of(nope) * rows * even(latent);
}

void mla_qkv_rope(const MlaQkvRopeParams& p, cudaStream_t stream) {
  const bool has_queries = p.q_proj.data != nullptr;
  with_storage(has_queries ? p.q_proj.storage : p.kv_a_proj.storage, [&](auto w) {
    constexpr Storage W = decltype(w)::value;
    with_rows(p.batch * p.tokens, [&](auto rows) {
      const int blocks =
          (has_queries ? p.heads * blocks_of_head(p) : 0) + blocks_of(p.kv_a_proj) + blocks_of(p.q_a_proj);
      mla_qkv_rope_kernel<W, decltype(rows)::value>
          <<<static_cast<unsigned>(blocks), kProductThreads<W>, 0, stream>>>(p);
    });
  });
  DSV2_CUDA_LAUNCHED(mla_qkv_rope);
}

}  // namespace dsv2::cuda
