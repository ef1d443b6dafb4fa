// softmax(scale q k^T + mask) v of many queries on tensor cores, with online softmax (arXiv 2205.14135, 2307.08691).
//
// Blocks: 64 queries (tokens x the heads that share a key head), a key head, a sequence; the last queries, which see
// most, go first. Keys and values pass through shared memory in tiles by cp.async, the next one while this one is
// multiplied; tiles that no query of the block sees are not read. A warp has 16 queries and, of wide values, one half:
// it computes their scores alone, so that no warp waits for another between the two products. Queries are rounded to
// bf16 when they are staged, probabilities between the products; maxima, totals and sums are f32. A row in shared
// memory lies without padding, its pieces of 16 bytes exchanged by the row's number: neither copies nor ldmatrix meet
// in a bank.
#include <cmath>

#include "optimized/cuda/attention.cuh"
#include "optimized/cuda/device.h"
#include "optimized/cuda/dispatch.h"
#include "optimized/cuda/load.cuh"
#include "optimized/cuda/mma.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kRowWarps = 4, kRows = 16 * kRowWarps;
constexpr int kPiece = 8;  // bf16 in 16 bytes

/// D1, D2: widths of the two parts of a key, rounded up. With a second part (absorbed MLA) the first one of the keys is
/// the values, too.
template <int D1, int D2, int KEYS, int COLUMN_WARPS>
struct Shape {
  static constexpr int kD1 = D1, kD2 = D2, kWidth = D1 + D2, kValueWidth = D1;
  static constexpr int kKeys = KEYS;                           // of a tile
  static constexpr int kColumns = kValueWidth / COLUMN_WARPS;  // of a warp
  static constexpr int kThreads = kWarp * kRowWarps * COLUMN_WARPS;
  static constexpr bool kKeysAreValues = D2 > 0;
};

template <class S>
struct Memory {
  __nv_bfloat16 q[kRows * S::kWidth];
  __nv_bfloat16 k[2][S::kKeys * S::kWidth];
  __nv_bfloat16 v[2][S::kKeysAreValues ? 1 : S::kKeys * S::kValueWidth];

  __device__ const __nv_bfloat16* values(int stage) const {
    if constexpr (S::kKeysAreValues)
      return k[stage];
    else
      return v[stage];
  }
};

/// Where a piece of a row of WIDTH lies.
template <int WIDTH>
__device__ inline int swizzled(int row, int piece) {
  static_assert(WIDTH % (8 * kPiece) == 0);
  return row * WIDTH + (piece ^ row % 8) * kPiece;
}

/// What a block works on: rows first..first+count-1 of the queries of a key head, row r being head r % group of token
/// r / group.
struct Rows {
  int b, key_head, group, first, count;

  __device__ int token(int r) const { return (first + r) / group; }
  __device__ std::int64_t query(const AttentionParams& p, int r) const {
    return (static_cast<std::int64_t>(b) * p.tokens + token(r)) * p.heads + key_head * group + (first + r) % group;
  }
};

/// Queries to shared memory, zeros behind the last one. One that sees no key becomes zeros, too: it attends to all
/// alike.
template <class S>
__device__ void stage_queries(Memory<S>& memory, const AttentionParams& p, const Rows& rows) {
  constexpr int kQuads = S::kWidth / 4;  // 16 bytes of f32
  for (int at = threadIdx.x; at < kRows * kQuads; at += S::kThreads) {
    const int r = at / kQuads, column = at % kQuads * 4, in_second = column - S::kD1;
    float4 x = {};
    const float* from = nullptr;
    if (r < rows.count && !all_masked(p, rows.b, rows.token(r))) {
      if (in_second >= 0 && in_second < p.d2) from = p.q2 + rows.query(p, r) * p.d2 + in_second;
      if (in_second < 0 && column < p.d1) from = p.q1 + rows.query(p, r) * p.d1 + column;
    }
    if (from != nullptr) x = *reinterpret_cast<const float4*>(from);
    __nv_bfloat16* const to = &memory.q[swizzled<S::kWidth>(r, column / kPiece) + column % kPiece];
    *reinterpret_cast<std::uint64_t*>(to) = pack(x);
  }
}

/// Begins to copy columns [0, width) of keys t0.. of a head into columns `column`.. of rows of WIDTH, PART of them;
/// zeros behind `width` and from key `end` on.
template <class S, int WIDTH, int PART>
__device__ void copy_keys(__nv_bfloat16* to, int column, const CachedRows& rows, std::int64_t head, int t0, int end,
                          int width) {
  constexpr int kPieces = PART / kPiece;
  const auto* data = static_cast<const __nv_bfloat16*>(rows.data) + head;
  for (int at = threadIdx.x; at < S::kKeys * kPieces; at += S::kThreads) {
    const int row = at / kPieces, piece = at % kPieces;
    const bool present = t0 + row < end && piece * kPiece < width;
    const std::int64_t from = static_cast<std::int64_t>(t0 + row) * rows.row_stride + piece * kPiece;
    copy_async(&to[swizzled<WIDTH>(row, column / kPiece + piece)], present ? data + from : data, present);
  }
}
template <class S>
__device__ void copy_tile(Memory<S>& memory, int stage, const AttentionParams& p, const Rows& rows, int t0, int end) {
  const auto head = [&](const CachedRows& of) { return rows.b * of.batch_stride + rows.key_head * of.head_stride; };
  copy_keys<S, S::kWidth, S::kD1>(memory.k[stage], 0, p.k1, head(p.k1), t0, end, p.d1);
  if constexpr (S::kD2 > 0)
    copy_keys<S, S::kWidth, S::kD2>(memory.k[stage], S::kD1, p.k2, rows.b * p.k2.batch_stride, t0, end, p.d2);
  if constexpr (!S::kKeysAreValues)
    copy_keys<S, S::kValueWidth, S::kValueWidth>(memory.v[stage], 0, p.v, head(p.v), t0, end, p.dv);
  commit_copies();
}

/// Over the four lanes that share a row of a fragment.
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) flash_attention_kernel(AttentionParams p) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto& memory = *reinterpret_cast<Memory<S>*>(shared);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row0 = warp % kRowWarps * 16, column0 = warp / kRowWarps * S::kColumns;
  const int group = p.heads / p.key_heads, first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const Rows rows = {static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y), group, first,
                     min(kRows, p.tokens * group - first)};

  // Of this lane's two rows, lane / 4 and 8 below it. Keys below `open` are seen by all of the block; from `end` on by
  // none.
  Sight sights[2];
  bool blind = false;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row0 + lane / 4 + i * 8;
    sights[i] = r < rows.count ? sight_of(p, rows.b, rows.token(r)) : Sight{nullptr, 0};
    blind |= r < rows.count && all_masked(p, rows.b, rows.token(r));
  }
  const int past = *p.past, total = past + p.tokens;
  const bool whole = __syncthreads_or(blind) != 0 || p.mask_token != 0;
  const int end = whole ? total : past + rows.token(rows.count - 1) + 1;
  const int open = p.mask != nullptr ? 0 : past + rows.token(0) + 1;

  copy_tile(memory, 0, p, rows, 0, end);
  stage_queries(memory, p, rows);
  const float scale = p.scale * 1.44269504088896341f;  // of powers of 2
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {}, y[S::kColumns / 8][4] = {};
  for (int t0 = 0, stage = 0; t0 < end; t0 += S::kKeys, stage ^= 1) {
    if (t0 + S::kKeys < end) copy_tile(memory, stage ^ 1, p, rows, t0 + S::kKeys, end);
    if (t0 + S::kKeys < end)
      wait_for_copies<1>();
    else
      wait_for_copies<0>();
    __syncthreads();  // the tile is there, and the queries

    float scores[S::kKeys / 8][4] = {};
#pragma unroll
    for (int piece = 0; piece < S::kWidth / kPiece; piece += 2) {
      unsigned q[4], k[4];
      load_fragment(q, &memory.q[swizzled<S::kWidth>(row0 + lane % 16, piece + lane / 16)]);
#pragma unroll
      for (int j = 0; j < S::kKeys; j += 16) {
        load_fragment(k, &memory.k[stage][swizzled<S::kWidth>(j + lane % 8 + lane / 16 * 8, piece + lane / 8 % 2)]);
        mma(scores[j / 8], q, k[0], k[1]);
        mma(scores[j / 8 + 1], q, k[2], k[3]);
      }
    }
    if (t0 + S::kKeys > open) {
#pragma unroll
      for (int j = 0; j < S::kKeys / 8; ++j)
#pragma unroll
        for (int x = 0; x < 4; ++x)
          if (!sights[x / 2].sees(t0 + j * 8 + lane % 4 * 2 + x % 2)) scores[j][x] = -INFINITY;
    }

    // Scores become probabilities by the row's new maximum; what was summed before is brought down to it.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float next = most[i];
#pragma unroll
      for (int j = 0; j < S::kKeys / 8; ++j) next = fmaxf(next, fmaxf(scores[j][2 * i], scores[j][2 * i + 1]));
      next = row_max(next);
      const float base = next == -INFINITY ? 0.0f : next, keep = exp2f((most[i] - base) * scale);
      most[i] = next;
      sum[i] *= keep;
#pragma unroll
      for (int c = 0; c < S::kColumns / 8; ++c) y[c][2 * i] *= keep, y[c][2 * i + 1] *= keep;
#pragma unroll
      for (int j = 0; j < S::kKeys / 8; ++j)
#pragma unroll
        for (int x = 2 * i; x < 2 * i + 2; ++x) sum[i] += scores[j][x] = exp2f((scores[j][x] - base) * scale);
    }
    const __nv_bfloat16* values = memory.values(stage);
    constexpr int kPitch = S::kKeysAreValues ? S::kWidth : S::kValueWidth;
#pragma unroll
    for (int j = 0; j < S::kKeys; j += 16) {
      const float(&low)[4] = scores[j / 8], (&high)[4] = scores[j / 8 + 1];
      const unsigned weights[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]),
                                   pack(high[2], high[3])};
#pragma unroll
      for (int c = 0; c < S::kColumns; c += 16) {
        unsigned v[4];
        load_fragment_transposed(v, &values[swizzled<kPitch>(j + lane % 16, (column0 + c) / kPiece + lane / 16)]);
        mma(y[c / 8], weights, v[0], v[1]);
        mma(y[c / 8 + 1], weights, v[2], v[3]);
      }
    }
    __syncthreads();  // the tile has been read
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row0 + lane / 4 + i * 8;
    const float whole_sum = row_sum(sum[i]);
    if (r >= rows.count) continue;
    float* const to = p.y + rows.query(p, r) * p.dv;
#pragma unroll
    for (int c = 0; c < S::kColumns / 8; ++c) {
      const int column = column0 + c * 8 + lane % 4 * 2;
      if (column < p.dv)
        *reinterpret_cast<float2*>(to + column) = {y[c][2 * i] / whole_sum, y[c][2 * i + 1] / whole_sum};
    }
  }
}

template <class S>
constexpr int kBytes = sizeof(Memory<S>);

template <class S>
void launch(const AttentionParams& p, cudaStream_t stream) {
  DSV2_CUDA(cudaFuncSetAttribute(flash_attention_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes<S>));
  const int rows = p.tokens * (p.heads / p.key_heads);
  const dim3 grid(static_cast<unsigned>((rows + kRows - 1) / kRows), static_cast<unsigned>(p.key_heads),
                  static_cast<unsigned>(p.batch));
  flash_attention_kernel<S><<<grid, S::kThreads, kBytes<S>, stream>>>(p);
  DSV2_CUDA_LAUNCHED(flash_attention);
}

/// call(shape) with the smallest shape that holds p; false: none does.
template <class Call>
bool with_shape(const AttentionParams& p, Call&& call) {
  const auto holds = [&]<class S>(S shape) {
    const bool fits = p.d1 <= S::kD1 && (p.d2 == 0) == (S::kD2 == 0) && p.d2 <= S::kD2;
    if (fits) call(shape);
    return fits;
  };
  return holds(Shape<64, 0, 64, 1>()) || holds(Shape<128, 0, 64, 1>()) || holds(Shape<256, 0, 32, 1>()) ||
         holds(Shape<64, 64, 64, 1>()) || holds(Shape<512, 64, 32, 2>());
}

bool in_pieces(const CachedRows& rows, int width) {
  return rows.storage == Storage::bf16 && width % kPiece == 0 && rows.row_stride % kPiece == 0;
}

int shared_memory_of_block() {
  int device = 0, bytes = 0;
  DSV2_CUDA(cudaGetDevice(&device));
  DSV2_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

}  // namespace

bool flash_attention_fits(const AttentionParams& p) {
  if (!p.rounds || p.tokens < kFlashTokens || p.d1 != p.dv) return false;
  if (!in_pieces(p.k1, p.d1) || !in_pieces(p.v, p.dv) || (p.d2 > 0 && !in_pieces(p.k2, p.d2))) return false;
  if (p.d2 > 0 && p.k1.data != p.v.data) return false;
  bool room = false;
  return with_shape(p, [&]<class S>(S) { room = kBytes<S> <= shared_memory_of_block(); }) && room;
}

void flash_attention(const AttentionParams& p, cudaStream_t stream) {
  with_shape(p, [&]<class S>(S) { launch<S>(p, stream); });
}

}  // namespace dsv2::cuda
