// softmax(scale (q1 k1^T + q2 k2^T) + mask) v with online softmax in f32: no row of scores is ever stored.
//
// Blocks: a part of the keys (split-KV: a few queries fill the device), heads that share a key head, a query. A warp
// takes every fourth key of the block's part: its lanes walk along the key and meet all heads of the block, so that a
// key is read once for HEADS heads. Warps, then parts (by the block that ends last), are merged in a fixed order by
// their maxima. Sums are f32.
#include <algorithm>
#include <cmath>

#include "optimized/cuda/attention.cuh"
#include "optimized/cuda/device.h"
#include "optimized/cuda/dispatch.h"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/last_block.cuh"
#include "optimized/cuda/load.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;

/// q . k of this warp's lanes, over HEADS heads whose queries lie in shared memory `width` apart.
template <int HEADS>
__device__ inline void dot(float (&sums)[HEADS], const float* q, int width, const CachedRows& rows, std::int64_t at,
                           int d) {
  for (int i = threadIdx.x % kWarp; i < d; i += kWarp) {
    const float k = load(rows.data, rows.storage, at + i);
#pragma unroll
    for (int h = 0; h < HEADS; ++h) sums[h] = fmaf(q[h * width + i], k, sums[h]);
  }
}

struct Place {
  int b, s, key_head, first_head, heads;  // heads: of the block, at most HEADS
};
template <int HEADS>
__device__ inline Place place_of(const AttentionParams& p) {
  const int group = p.heads / p.key_heads, blocks = (group + HEADS - 1) / HEADS;
  const int key_head = static_cast<int>(blockIdx.y) / blocks, first = static_cast<int>(blockIdx.y) % blocks * HEADS;
  const int n = blockIdx.z;
  return {n / p.tokens, n % p.tokens, key_head, key_head * group + first, min(HEADS, group - first)};
}

/// Queries of the block's heads into shared memory, [HEADS][d1 + d2], scaled.
template <int HEADS>
__device__ void stage_queries(const AttentionParams& p, const Place& at, float* q) {
  const int width = p.d1 + p.d2;
  const std::int64_t n = static_cast<std::int64_t>(at.b) * p.tokens + at.s;
  for (int i = threadIdx.x; i < HEADS * width; i += blockDim.x) {
    const int h = i / width, c = i % width;
    float x = 0;
    if (h < at.heads) {
      const std::int64_t row = n * p.heads + at.first_head + h;
      x = c < p.d1 ? p.q1[row * p.d1 + c] : p.q2[row * p.d2 + c - p.d1];
    }
    q[i] = x * p.scale;
  }
}

template <int HEADS>
__device__ inline void scores_of(const AttentionParams& p, const Place& at, const float* q, int t,
                                 float (&scores)[HEADS]) {
  const int width = p.d1 + p.d2;
#pragma unroll
  for (int h = 0; h < HEADS; ++h) scores[h] = 0;
  const auto row = [&](const CachedRows& rows) {
    return at.b * rows.batch_stride + at.key_head * rows.head_stride + static_cast<std::int64_t>(t) * rows.row_stride;
  };
  dot(scores, q, width, p.k1, row(p.k1), p.d1);
  if (p.d2 > 0)
    dot(scores, q + p.d1, width, p.k2, at.b * p.k2.batch_stride + static_cast<std::int64_t>(t) * p.k2.row_stride, p.d2);
#pragma unroll
  for (int h = 0; h < HEADS; ++h) scores[h] = warp_sum(scores[h]);
}

/// The parts of a head of a query, in ascending order; by a block.
__device__ void combine(const AttentionParams& p, std::int64_t head) {
  const float* parts = p.partial + head * p.splits * (p.dv + 2);
  float most = -INFINITY, total = 0;
  for (int i = 0; i < p.splits; ++i) most = fmaxf(most, parts[i * (p.dv + 2) + p.dv]);
  for (int i = 0; i < p.splits; ++i) {
    const float* m = parts + i * (p.dv + 2) + p.dv;
    if (m[1] > 0) total += expf(m[0] - most) * m[1];
  }
  for (int c = threadIdx.x; c < p.dv; c += kThreads) {
    float sum = 0;
    for (int i = 0; i < p.splits; ++i) {
      const float* part = parts + i * (p.dv + 2);
      if (part[p.dv + 1] > 0) sum += expf(part[p.dv] - most) * part[c];
    }
    p.y[head * p.dv + c] = sum / total;
  }
}

/// LANES: columns of a value in each lane, at most. Shared: queries; then sums [HEADS][dv], maxima and totals [HEADS].
template <int HEADS, int LANES>
__global__ void __launch_bounds__(kThreads, 2) attention_kernel(AttentionParams p) {
  extern __shared__ float shared[];
  const Place at = place_of<HEADS>(p);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  stage_queries<HEADS>(p, at, shared);
  __syncthreads();  // the queries are staged
  const bool blind = all_masked(p, at.b, at.s);
  const Sight sight = sight_of(p, at.b, at.s);
  const int total = *p.past + p.tokens, each = (total + p.splits - 1) / p.splits;
  const int begin = static_cast<int>(blockIdx.x) * each, end = min(begin + each, sight.end);

  float most[HEADS], sum[HEADS], y[HEADS][LANES];
#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
    most[h] = -INFINITY, sum[h] = 0;
#pragma unroll
    for (int i = 0; i < LANES; ++i) y[h][i] = 0;
  }
  for (int t = begin + warp; t < end; t += kWarps) {
    if (sight.mask != nullptr && sight.mask[t] == 0) continue;
    float scores[HEADS];
    if (blind) {  // every score is the same lowest number: uniform
#pragma unroll
      for (int h = 0; h < HEADS; ++h) scores[h] = 0;
    } else {
      scores_of<HEADS>(p, at, shared, t, scores);
    }
    const std::int64_t row =
        at.b * p.v.batch_stride + at.key_head * p.v.head_stride + static_cast<std::int64_t>(t) * p.v.row_stride;
    float v[LANES];
#pragma unroll
    for (int i = 0; i < LANES; ++i)
      v[i] = lane + i * kWarp < p.dv ? load(p.v.data, p.v.storage, row + lane + i * kWarp) : 0.0f;
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      const float next = fmaxf(most[h], scores[h]);
      const float keep = expf(most[h] - next), weight = expf(scores[h] - next);
      most[h] = next;
      sum[h] = fmaf(sum[h], keep, weight);
#pragma unroll
      for (int i = 0; i < LANES; ++i) y[h][i] = fmaf(y[h][i], keep, weight * v[i]);
    }
  }

  // Warp after warp into shared memory, in place of the queries.
  float* const sums = shared;
  float* const mosts = shared + HEADS * p.dv;
  float* const totals = mosts + HEADS;
  for (int w = 0; w < kWarps; ++w) {
    __syncthreads();  // the queries have been read; the warp before is in
    if (w != warp) continue;
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      const float before = w == 0 ? -INFINITY : mosts[h], next = fmaxf(before, most[h]);
      const float keep = before == -INFINITY ? 0.0f : expf(before - next);
      const float weight = most[h] == -INFINITY ? 0.0f : expf(most[h] - next);
#pragma unroll
      for (int i = 0; i < LANES; ++i) {
        const int c = lane + i * kWarp;
        if (c < p.dv) sums[h * p.dv + c] = (w == 0 ? 0.0f : sums[h * p.dv + c] * keep) + weight * y[h][i];
      }
      const float all = (w == 0 ? 0.0f : totals[h] * keep) + weight * sum[h];
      __syncwarp();  // every lane has read the maximum and the total
      if (lane == 0) mosts[h] = next, totals[h] = all;
    }
  }
  __syncthreads();  // all warps are in
  const std::int64_t n = static_cast<std::int64_t>(at.b) * p.tokens + at.s;
  for (int i = threadIdx.x; i < at.heads * p.dv; i += kThreads) {
    const int h = i / p.dv, c = i % p.dv;
    const std::int64_t head = n * p.heads + at.first_head + h;
    if (p.splits == 1)
      p.y[head * p.dv + c] = sums[i] / totals[h];
    else
      p.partial[(head * p.splits + blockIdx.x) * (p.dv + 2) + c] = sums[i];
  }
  if (p.splits == 1) return;
  for (int h = threadIdx.x; h < at.heads; h += kThreads) {
    float* part = p.partial + ((n * p.heads + at.first_head + h) * p.splits + blockIdx.x) * (p.dv + 2) + p.dv;
    part[0] = mosts[h], part[1] = totals[h];
  }
  if (!is_last_block(p.arrived + blockIdx.z * gridDim.y + blockIdx.y, gridDim.x)) return;
  for (int h = 0; h < at.heads; ++h) combine(p, n * p.heads + at.first_head + h);
}

/// A block a head of a query.
__global__ void __launch_bounds__(kThreads, 2) attention_probabilities_kernel(AttentionProbabilitiesParams q) {
  extern __shared__ float shared[];
  __shared__ float warps[kWarps];
  const AttentionParams& p = q.attention;
  const int h = blockIdx.y, n = blockIdx.z, group = p.heads / p.key_heads;
  const Place at = {n / p.tokens, n % p.tokens, h / group, h, 1};
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  stage_queries<1>(p, at, shared);
  __syncthreads();  // the query is staged
  const bool blind = all_masked(p, at.b, at.s);
  const Sight sight = sight_of(p, at.b, at.s);
  float* y = q.y + ((static_cast<std::int64_t>(at.b) * p.heads + h) * p.tokens + at.s) * q.total;
  float most = -INFINITY;
  for (int t = warp; t < q.total; t += kWarps) {
    float score[1] = {-INFINITY};
    if (sight.sees(t)) {
      if (blind)
        score[0] = 0;
      else
        scores_of<1>(p, at, shared, t, score);
    }
    if (lane == 0) y[t] = score[0];
    most = fmaxf(most, score[0]);
  }
  if (lane == 0) warps[warp] = most;
  __syncthreads();  // all scores are written, and each warp's maximum
  for (const float m : warps) most = fmaxf(most, m);
  float sum = 0;
  for (int t = threadIdx.x; t < q.total; t += kThreads) sum += y[t] = expf(y[t] - most);
  __syncthreads();  // the maxima have been read
  sum = block_sum(sum, warps);
  for (int t = threadIdx.x; t < q.total; t += kThreads) y[t] /= sum;
}

template <class Call>
void with_lanes(int dv, Call&& call) {
  if (dv <= 4 * kWarp) return call(Constant<4>());
  return call(Constant<kMaxValueWidth / kWarp>());
}

/// Heads of a block.
int heads_of(int heads, int key_heads) { return heads / key_heads >= 4 ? 8 : 1; }
unsigned head_blocks(int heads, int key_heads) {
  const int group = heads / key_heads, each = heads_of(heads, key_heads);
  return static_cast<unsigned>(key_heads * ((group + each - 1) / each));
}

}  // namespace

int attention_splits(int batch, int tokens, int heads, int key_heads, int most, int processors) {
  constexpr int kLeastKeys = 64, kBlocksOfProcessor = 4;
  const int blocks = batch * tokens * static_cast<int>(head_blocks(heads, key_heads));
  const int wanted = (kBlocksOfProcessor * processors + blocks - 1) / blocks;
  return std::max(1, std::min(wanted, most / kLeastKeys));
}

int attention_arrivals(int batch, int tokens, int heads, int key_heads) {
  return batch * tokens * static_cast<int>(head_blocks(heads, key_heads));
}

std::int64_t attention_partial_size(const AttentionParams& p) {
  if (p.splits == 1) return 0;
  return static_cast<std::int64_t>(p.batch) * p.tokens * p.heads * p.splits * (p.dv + 2);
}

void attention(const AttentionParams& p, cudaStream_t stream) {
  if (flash_attention_fits(p)) return flash_attention(p, stream);
  const auto launch = [&](auto heads, auto lanes) {
    constexpr int kHeads = decltype(heads)::value;
    const std::size_t floats =
        static_cast<std::size_t>(kHeads) * static_cast<std::size_t>(std::max(p.d1 + p.d2, p.dv + 2));
    const dim3 grid(static_cast<unsigned>(p.splits), head_blocks(p.heads, p.key_heads),
                    static_cast<unsigned>(p.batch * p.tokens));
    attention_kernel<kHeads, decltype(lanes)::value><<<grid, kThreads, floats * sizeof(float), stream>>>(p);
  };
  with_lanes(p.dv, [&](auto lanes) {
    if (heads_of(p.heads, p.key_heads) == 8)
      launch(Constant<8>(), lanes);
    else
      launch(Constant<1>(), lanes);
  });
  DSV2_CUDA_LAUNCHED(attention);
}

void attention_probabilities(const AttentionProbabilitiesParams& p, cudaStream_t stream) {
  const AttentionParams& a = p.attention;
  const dim3 grid(1, static_cast<unsigned>(a.heads), static_cast<unsigned>(a.batch * a.tokens));
  const std::size_t shared = static_cast<std::size_t>(a.d1 + a.d2) * sizeof(float);
  attention_probabilities_kernel<<<grid, kThreads, shared, stream>>>(p);
  DSV2_CUDA_LAUNCHED(attention_probabilities);
}

}  // namespace dsv2::cuda
