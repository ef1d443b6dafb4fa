// softmax(scale (q1 k1^T + q2 k2^T) + mask) v with online softmax in f32: no row of scores is ever stored.
//
// Blocks: a part of the keys (split-KV: a few queries fill the device), heads that share a key head, a query. A warp
// reads 16 bytes a lane: 128 columns of bf16 are 16 lanes, so that a load has two keys. The loads of several keys and
// of their values are issued before the first is used; a key is read once for HEADS heads. Masks are read beside the
// keys, and what they hide counts for nothing. Each group of lanes has a softmax of its own; groups, then warps, then
// parts (by the block that ends last) are merged in a fixed order by their maxima. Sums are f32. Rows that are not in
// multiples of 16 bytes are read an element a lane.
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

/// What a lane reads of a row at a time: 16 bytes, or an element.
template <Storage S>
struct Words;
template <>
struct Words<Storage::bf16> {
  using Word = uint4;
  static constexpr int kColumns = 8;
  __device__ static Word load(const CachedRows& rows, std::int64_t at) {
    return *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(rows.data) + at);
  }
  __device__ static void unpack(const Word& word, float (&x)[kColumns]) {
    const unsigned pairs[] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
      x[i] = __uint_as_float(i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xffff0000u);
  }
};
template <>
struct Words<Storage::f32> {
  using Word = float4;
  static constexpr int kColumns = 4;
  __device__ static Word load(const CachedRows& rows, std::int64_t at) {
    return *reinterpret_cast<const float4*>(static_cast<const float*>(rows.data) + at);
  }
  __device__ static void unpack(const Word& word, float (&x)[kColumns]) {
    x[0] = word.x, x[1] = word.y, x[2] = word.z, x[3] = word.w;
  }
};
struct Elements {
  using Word = float;
  static constexpr int kColumns = 1;
  __device__ static Word load(const CachedRows& rows, std::int64_t at) {
    return cuda::load(rows.data, rows.storage, at);
  }
  __device__ static void unpack(const Word& word, float (&x)[kColumns]) { x[0] = word; }
};

// Rows in shared memory, of `width` columns, a multiple of 64. Lanes that take 8 columns read two vectors of 4: the
// first ones of all lanes are neighbours, and so are the second ones, half the banks on.
constexpr int kRowGap = 16;
template <int COLUMNS>
__device__ inline int place(int width, int c) {
  if constexpr (COLUMNS == 8) return (c >> 2 & 1) * (width / 2 + kRowGap) + (c >> 3) * 4 + (c & 3);
  return c;
}
template <int COLUMNS>
__device__ inline void read(const float* row, int width, int c, float (&x)[COLUMNS]) {
  if constexpr (COLUMNS == 1) {
    x[0] = row[c];
  } else {
#pragma unroll
    for (int i = 0; i < COLUMNS; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + place<COLUMNS>(width, c + i));
      x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
    }
  }
}
template <int COLUMNS>
__device__ inline void write(float* row, int width, int c, const float (&x)[COLUMNS]) {
  if constexpr (COLUMNS == 1) {
    row[c] = x[0];
  } else {
#pragma unroll
    for (int i = 0; i < COLUMNS; i += 4)
      *reinterpret_cast<float4*>(row + place<COLUMNS>(width, c + i)) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
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

/// Queries of the block's heads into shared memory, scaled, q2 from column `second` on: HEADS rows of `width` columns
/// and a gap. Zeros where there is nothing.
template <int HEADS, int COLUMNS>
__device__ void stage_queries(const AttentionParams& p, const Place& at, float* q, int second, int width) {
  const std::int64_t first = (static_cast<std::int64_t>(at.b) * p.tokens + at.s) * p.heads + at.first_head;
  for (int i = threadIdx.x; i < HEADS * width; i += kThreads) {
    const int h = i / width, c = i % width;
    float x = 0;
    if (h < at.heads && c < p.d1) x = p.q1[(first + h) * p.d1 + c];
    if (h < at.heads && c >= second && c < second + p.d2) x = p.q2[(first + h) * p.d2 + c - second];
    q[h * (width + kRowGap) + place<COLUMNS>(width, c)] = x * p.scale;
  }
}

/// scores[u][h] += columns c.. of key u times those of query h.
template <class Lane, int KEYS, int HEADS>
__device__ inline void dot(float (&scores)[KEYS][HEADS], const typename Lane::Word (&words)[KEYS], const float* q,
                           int width, int c) {
  float k[KEYS][Lane::kColumns];
#pragma unroll
  for (int u = 0; u < KEYS; ++u) Lane::unpack(words[u], k[u]);
#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
    float x[Lane::kColumns];
    read(q + h * (width + kRowGap), width, c, x);
#pragma unroll
    for (int u = 0; u < KEYS; ++u) {
#pragma unroll
      for (int i = 0; i < Lane::kColumns; ++i) scores[u][h] = fmaf(x[i], k[u][i], scores[u][h]);
    }
  }
}

/// exp(x - most), 0 where x is -infinity, also if nothing has been seen yet.
__device__ inline float weight_of(float x, float most) { return expf(x - (most == -INFINITY ? 0.0f : most)); }

/// What a part of the keys gave a head of a query: its sums [dv]; behind those of all parts, its maximum and total.
struct Part {
  float *sums, *ends;
};
__device__ inline Part part_of(const AttentionParams& p, std::int64_t head, int part) {
  const std::int64_t all = static_cast<std::int64_t>(p.batch) * p.tokens * p.heads * p.splits;
  const std::int64_t at = head * p.splits + part;
  return {p.partial + at * p.dv, p.partial + all * p.dv + at * 2};
}

/// The first `parts` parts of `heads` heads of a query, in an order that depends on their number alone; by a block.
__device__ void combine(const AttentionParams& p, std::int64_t first_head, int heads, int parts, float* weights) {
  const int lane = threadIdx.x % kWarp;
  for (int h = threadIdx.x / kWarp; h < heads; h += kWarps) {
    const float* ends = part_of(p, first_head + h, 0).ends;
    float most = -INFINITY, total = 0;
    for (int i = lane; i < parts; i += kWarp) most = fmaxf(most, ends[2 * i]);
    most = warp_max(most);
    for (int i = lane; i < parts; i += kWarp) {
      const float weight = weight_of(ends[2 * i], most);
      weights[h * parts + i] = weight;
      total = fmaf(weight, ends[2 * i + 1], total);
    }
    total = warp_sum(total);
    for (int i = lane; i < parts; i += kWarp) weights[h * parts + i] /= total;
  }
  __syncthreads();  // the weights are there
  for (int at = threadIdx.x; at < heads * p.dv; at += kThreads) {
    const int h = at / p.dv, c = at % p.dv;
    const float* sums = part_of(p, first_head + h, 0).sums + c;
    float sum = 0;
#pragma unroll 8
    for (int i = 0; i < parts; ++i) sum = fmaf(weights[h * parts + i], sums[i * p.dv], sum);
    p.y[first_head * p.dv + at] = sum;
  }
}

/// How a warp shares out rows of up to WIDTH columns.
template <class Lane, int WIDTH>
struct Layout {
  static constexpr int kLanes = std::min(kWarp, WIDTH / Lane::kColumns);  // of a key
  static constexpr int kWords = WIDTH / (kLanes * Lane::kColumns);        // of a key in a lane
  static constexpr int kUnroll = std::max(1, 4 / kWords);                 // keys that a lane has outstanding
  static constexpr int kGroups = kWarp / kLanes, kKeys = kUnroll * kGroups;
};

/// Columns of the staged queries, and shared memory of a block in floats: queries; then sums, maxima and totals; then
/// weights of parts.
template <int WIDTH>
__host__ __device__ int query_width(const AttentionParams& p) {
  return WIDTH + (p.d2 + 63) / 64 * 64;
}
template <int HEADS, int WIDTH>
int shared_floats(const AttentionParams& p) {
  return HEADS * std::max({query_width<WIDTH>(p) + kRowGap, WIDTH + kRowGap + 2, p.splits});
}

/// LATENT: values are k1.
template <class Lane, int HEADS, int WIDTH, bool LATENT>
__global__ void __launch_bounds__(kThreads, 2) attention_kernel(AttentionParams p) {
  using Of = Layout<Lane, WIDTH>;
  using Word = typename Lane::Word;
  constexpr int kColumns = Lane::kColumns, kUnroll = Of::kUnroll, kWords = Of::kWords;
  constexpr bool kValuesEarly = !LATENT && HEADS * WIDTH <= 8 * 128;  // where registers hold them beside the sums
  extern __shared__ __align__(16) float shared[];
  const Place at = place_of<HEADS>(p);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % Of::kLanes, group = threadIdx.x % kWarp / Of::kLanes;
  const int width = query_width<WIDTH>(p);
  stage_queries<HEADS, kColumns>(p, at, shared, WIDTH, width);
  __syncthreads();  // the queries are staged
  const bool blind = all_masked(p, at.b, at.s);
  const Sight sight = sight_of(p, at.b, at.s);
  const int total = *p.past + p.tokens;
  const int each = ((total + p.splits - 1) / p.splits + Of::kKeys - 1) / Of::kKeys * Of::kKeys;
  const int begin = static_cast<int>(blockIdx.x) * each, end = min(begin + each, sight.end);
  const auto row = [&](const CachedRows& rows, int t) {
    return at.b * rows.batch_stride + at.key_head * rows.head_stride + static_cast<std::int64_t>(t) * rows.row_stride;
  };

  float most[HEADS], sum[HEADS], y[HEADS][kWords][kColumns];
#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
    most[h] = -INFINITY, sum[h] = 0;
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) y[h][j][i] = 0;
    }
  }
  for (int t = begin + warp * Of::kKeys; t < end; t += kWarps * Of::kKeys) {
    if constexpr (HEADS > 1) asm volatile("" ::: "memory");  // queries stay in shared memory: registers have the sums
    // Behind the last key, and behind a row, what is there is read again: no load waits for a branch.
    int key[kUnroll];
    std::uint8_t visible[kUnroll];
    Word k[kWords][kUnroll], v[kWords][kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      key[u] = min(t + u * Of::kGroups + group, end - 1);
      visible[u] = sight.mask == nullptr ? 1 : sight.mask[key[u]];
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
        const int c = (j * Of::kLanes + lane) * kColumns;
        k[j][u] = Lane::load(p.k1, row(p.k1, key[u]) + (c < p.d1 ? c : 0));
        if constexpr (kValuesEarly) v[j][u] = Lane::load(p.v, row(p.v, key[u]) + (c < p.dv ? c : 0));
      }
    }
    float scores[kUnroll][HEADS] = {};
    for (int c = lane * kColumns; c < p.d2; c += Of::kLanes * kColumns) {
      Word k2[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) k2[u] = Lane::load(p.k2, row(p.k2, key[u]) + c);
      dot<Lane>(scores, k2, shared, width, WIDTH + c);
    }
#pragma unroll
    for (int j = 0; j < kWords; ++j) dot<Lane>(scores, k[j], shared, width, (j * Of::kLanes + lane) * kColumns);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const bool hidden = t + u * Of::kGroups + group >= end || visible[u] == 0;
#pragma unroll
      for (int h = 0; h < HEADS; ++h) {
#pragma unroll
        for (int lanes = Of::kLanes / 2; lanes > 0; lanes /= 2)
          scores[u][h] += __shfl_xor_sync(kAllLanes, scores[u][h], lanes);
        // Where nothing is visible every score is the same lowest number: uniform.
        scores[u][h] = hidden ? -INFINITY : blind ? 0.0f : scores[u][h];
      }
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
        const int c = (j * Of::kLanes + lane) * kColumns;
        if constexpr (LATENT)
          v[j][u] = k[j][u];
        else if constexpr (!kValuesEarly)
          v[j][u] = Lane::load(p.v, row(p.v, key[u]) + (c < p.dv ? c : 0));
        if (hidden) v[j][u] = Word{};  // 0 times what is there may not be 0
      }
    }
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      float next = most[h];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) next = fmaxf(next, scores[u][h]);
      const float keep = weight_of(most[h], next);
      most[h] = next, sum[h] *= keep;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) sum[h] += scores[u][h] = weight_of(scores[u][h], next);
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) y[h][j][i] *= keep;
      }
    }
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        float x[kColumns];
        Lane::unpack(v[j][u], x);
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
#pragma unroll
          for (int i = 0; i < kColumns; ++i) y[h][j][i] = fmaf(scores[u][h], x[i], y[h][j][i]);
        }
      }
    }
  }
#pragma unroll
  for (int lanes = Of::kLanes; lanes < kWarp; lanes *= 2) {
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      const float next = fmaxf(most[h], __shfl_xor_sync(kAllLanes, most[h], lanes));
      const float keep = weight_of(most[h], next);
      most[h] = next, sum[h] *= keep;
      sum[h] += __shfl_xor_sync(kAllLanes, sum[h], lanes);
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          y[h][j][i] *= keep;
          y[h][j][i] += __shfl_xor_sync(kAllLanes, y[h][j][i], lanes);
        }
      }
    }
  }

  // Warp after warp into shared memory, in place of the queries.
  constexpr int kPitch = WIDTH + kRowGap;
  float* const sums = shared;
  float* const mosts = shared + HEADS * kPitch;
  float* const totals = mosts + HEADS;
  for (int w = 0; w < kWarps; ++w) {
    __syncthreads();  // the queries have been read; the warp before is in
    if (w != warp) continue;
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      const float before = w == 0 ? -INFINITY : mosts[h], next = fmaxf(before, most[h]);
      const float keep = weight_of(before, next), weight = weight_of(most[h], next);
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
        const int c = (j * Of::kLanes + lane) * kColumns;
        float all[kColumns] = {};
        if (w > 0) read(sums + h * kPitch, WIDTH, c, all);
#pragma unroll
        for (int i = 0; i < kColumns; ++i) all[i] = fmaf(all[i], keep, weight * y[h][j][i]);
        __syncwarp();  // every group has read what one of them writes
        if (group == 0) write(sums + h * kPitch, WIDTH, c, all);
      }
      const float all = (w == 0 ? 0.0f : totals[h] * keep) + weight * sum[h];
      __syncwarp();  // every lane has read the maximum and the total
      if (threadIdx.x % kWarp == 0) mosts[h] = next, totals[h] = all;
    }
  }
  __syncthreads();  // all warps are in
  const std::int64_t first = (static_cast<std::int64_t>(at.b) * p.tokens + at.s) * p.heads + at.first_head;
  for (int i = threadIdx.x; i < at.heads * p.dv; i += kThreads) {
    const int h = i / p.dv, c = i % p.dv;
    const float found = sums[h * kPitch + place<kColumns>(WIDTH, c)];
    if (p.splits == 1)
      p.y[(first + h) * p.dv + c] = found / totals[h];
    else
      part_of(p, first + h, blockIdx.x).sums[c] = found;
  }
  if (p.splits == 1) return;
  for (int h = threadIdx.x; h < at.heads; h += kThreads) {
    float* const ends = part_of(p, first + h, blockIdx.x).ends;
    ends[0] = mosts[h], ends[1] = totals[h];
  }
  if (!is_last_block(p.arrived + blockIdx.z * gridDim.y + blockIdx.y, gridDim.x)) return;
  combine(p, first, at.heads, (total + each - 1) / each, shared);
}

/// q . k of this warp's lanes.
__device__ inline float dot(const float* q, const CachedRows& rows, std::int64_t at, int d) {
  float sum = 0;
  for (int i = threadIdx.x % kWarp; i < d; i += kWarp) sum = fmaf(q[i], load(rows.data, rows.storage, at + i), sum);
  return sum;
}

/// A block a head of a query.
__global__ void __launch_bounds__(kThreads, 2) attention_probabilities_kernel(AttentionProbabilitiesParams q) {
  extern __shared__ float shared[];
  __shared__ float warps[kWarps];
  const AttentionParams& p = q.attention;
  const int h = blockIdx.y, n = blockIdx.z, group = p.heads / p.key_heads;
  const Place at = {n / p.tokens, n % p.tokens, h / group, h, 1};
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  stage_queries<1, 1>(p, at, shared, p.d1, p.d1 + p.d2);
  __syncthreads();  // the query is staged
  const bool blind = all_masked(p, at.b, at.s);
  const Sight sight = sight_of(p, at.b, at.s);
  float* y = q.y + ((static_cast<std::int64_t>(at.b) * p.heads + h) * p.tokens + at.s) * q.total;
  float most = -INFINITY;
  for (int t = warp; t < q.total; t += kWarps) {
    float score = sight.sees(t) ? 0.0f : -INFINITY;
    if (sight.sees(t) && !blind) {
      const auto row = [&](const CachedRows& rows) {
        return at.b * rows.batch_stride + at.key_head * rows.head_stride +
               static_cast<std::int64_t>(t) * rows.row_stride;
      };
      score = dot(shared, p.k1, row(p.k1), p.d1);
      if (p.d2 > 0) score += dot(shared + p.d1, p.k2, row(p.k2), p.d2);
      score = warp_sum(score);
    }
    if (lane == 0) y[t] = score;
    most = fmaxf(most, score);
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

/// Whether each row that is read begins and ends at a multiple of 16 bytes.
bool in_words(const AttentionParams& p) {
  const int columns = p.k1.storage == Storage::f32 ? 4 : 8;
  const auto fits = [&](const CachedRows& rows, int width) {
    return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && rows.storage == p.k1.storage &&
           rows.batch_stride % columns == 0 && rows.head_stride % columns == 0 && rows.row_stride % columns == 0 &&
           width % columns == 0;
  };
  return fits(p.k1, p.d1) && fits(p.v, p.dv) && (p.d2 == 0 || fits(p.k2, p.d2));
}

/// Heads of a block.
int heads_of(int heads, int key_heads) { return heads / key_heads >= 4 ? 8 : 1; }
unsigned head_blocks(int heads, int key_heads) {
  const int group = heads / key_heads, each = heads_of(heads, key_heads);
  return static_cast<unsigned>(key_heads * ((group + each - 1) / each));
}

}  // namespace

int attention_splits(int batch, int tokens, int heads, int key_heads, int most, int processors) {
  constexpr int kBlocksOfProcessor = 4;
  // What a part adds, its sums, is little beside its keys.
  const int least_keys = heads_of(heads, key_heads) == 1 ? 32 : 64;
  const int blocks = batch * tokens * static_cast<int>(head_blocks(heads, key_heads));
  const int wanted = (kBlocksOfProcessor * processors + blocks - 1) / blocks;
  return std::max(1, std::min(wanted, (most + least_keys - 1) / least_keys));
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
  const auto launch = [&](auto lane, auto heads, auto width, auto latent) {
    constexpr int kHeads = decltype(heads)::value, kWidth = decltype(width)::value;
    const dim3 grid(static_cast<unsigned>(p.splits), head_blocks(p.heads, p.key_heads),
                    static_cast<unsigned>(p.batch * p.tokens));
    const auto shared = static_cast<std::size_t>(shared_floats<kHeads, kWidth>(p)) * sizeof(float);
    attention_kernel<decltype(lane), kHeads, kWidth, decltype(latent)::value><<<grid, kThreads, shared, stream>>>(p);
  };
  const auto with_heads = [&](auto lane, auto width) {
    if (heads_of(p.heads, p.key_heads) == 1) return launch(lane, Constant<1>(), width, Constant<false>());
    if (p.v.data == p.k1.data && p.dv == p.d1) return launch(lane, Constant<8>(), width, Constant<true>());
    return launch(lane, Constant<8>(), width, Constant<false>());
  };
  const auto with_width = [&](auto lane) {
    if (std::max(p.d1, p.dv) <= 128) return with_heads(lane, Constant<128>());
    return with_heads(lane, Constant<kMaxValueWidth>());
  };
  if (!in_words(p))
    with_width(Elements());
  else if (p.k1.storage == Storage::f32)
    with_width(Words<Storage::f32>());
  else
    with_width(Words<Storage::bf16>());
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
