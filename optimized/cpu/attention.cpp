#include "optimized/cpu/attention.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/simd.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

constexpr std::int64_t kKeyBlock = 64;

// Register tiles of the block path: queries x keys, and queries x vectors of the values' columns.
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 3;
#endif
constexpr int kTileKeys = 4, kTileVectors = 4;
constexpr std::int64_t kColumns = kTileVectors * kWidth;

// Keys that one query meets at a time.
constexpr int kStreamed = 8;

template <class T>
void prefetch(const T* row, std::int64_t width) {
  for (std::int64_t i = 0; i < width; i += static_cast<std::int64_t>(64 / sizeof(T))) prefetch_line(row + i);
}

template <class T>
const T* key_row(const KeyRows& k, std::int64_t b, std::int64_t head, std::int64_t t) {
  return static_cast<const T*>(k.data) + b * k.batch_stride + head * k.head_stride + t * k.row_stride;
}

/// Scales of int8 rows from row t on.
const std::uint16_t* scales_from(const KeyRows& k, std::int64_t b, std::int64_t head, std::int64_t t) {
  return k.scales + (b * k.batch_stride + head * k.head_stride) / k.row_stride + t;
}

std::int64_t padded(std::int64_t width, std::int64_t multiple) { return (width + multiple - 1) / multiple * multiple; }

/// A query: sequence, position, head.
struct Query {
  std::int64_t b, s, h;
};

const float* q1_row(const AttentionParams& p, const Query& q) {
  return p.q1 + (q.b * p.tokens + q.s) * p.q1_token_stride + q.h * p.q1_head_stride;
}
const float* q2_row(const AttentionParams& p, const Query& q) {
  return p.q2 + ((q.b * p.tokens + q.s) * p.heads + q.h) * p.d2;
}

bool all_masked(const AttentionParams& p, const Query& q) { return p.all_masked && p.all_masked[q.b * p.tokens + q.s]; }

/// Keys from here on are not visible to q.
std::int64_t key_end(const AttentionParams& p, const Query& q) {
  return p.mask_token || all_masked(p, q) ? p.total : p.past + q.s + 1;
}

/// Puts -inf where q may not look, and behind `end` up to a whole block.
void mask_scores(const AttentionParams& p, const Query& q, std::int64_t begin, std::int64_t end, float* scores) {
  for (std::int64_t i = end - begin; i < kKeyBlock; ++i) scores[i] = -__builtin_inff();
  if (all_masked(p, q)) {
    for (std::int64_t t = begin; t < end; ++t) scores[t - begin] = 0;
    return;
  }
  const std::int64_t visible = key_end(p, q);
  for (std::int64_t t = visible > begin ? visible : begin; t < end; ++t) scores[t - begin] = -__builtin_inff();
  if (!p.mask) return;
  const std::uint8_t* mask = p.mask + q.b * p.mask_batch + q.s * p.mask_token;
  for (std::int64_t t = begin; t < end; ++t)
    if (!mask[t]) scores[t - begin] = -__builtin_inff();
}

/// Softmax of some queries, a block of keys after the other.
template <int Queries>
struct Softmax {
  static constexpr int kLanes = (Queries + kWidth - 1) / kWidth * kWidth;  // queries, up to whole vectors
  alignas(64) float max[kLanes], sum[kLanes], before[kLanes], total[kLanes];
  alignas(64) float scale[kLanes];  ///< what was summed before this block is to be multiplied by

  Softmax() {
    for (int r = 0; r < kLanes; ++r) max[r] = -__builtin_inff(), sum[r] = total[r] = 0;
  }

  /// Takes scores of a block, masked with -inf and still to be multiplied by `factor`, and leaves exp(score - max). In
  /// three passes over the queries, so that none waits for the sums across the lanes of another.
  void add(float (*scores)[kKeyBlock], std::int64_t count, float factor) {
    for (std::int64_t r = 0; r < count; ++r) {
      V top = broadcast(max[r]);
      for (std::int64_t i = 0; i < kKeyBlock; i += kWidth) {
        const V x = load(scores[r] + i) * factor;
        store(scores[r] + i, x);
        top = dsv2::cpu::DSV2_ISA::max(top, x);
      }
      before[r] = max[r];
      max[r] = max_lane(top);
    }
    for (std::int64_t r = 0; r < count; ++r) {
      const bool any = max[r] != -__builtin_inff();  // else nothing was visible so far
      V sums{};
      for (std::int64_t i = 0; i < kKeyBlock; i += kWidth) {
        const V e = any ? exp(load(scores[r] + i) - max[r]) : V{};
        store(scores[r] + i, e);
        sums += e;
      }
      total[r] = dsv2::cpu::DSV2_ISA::sum(sums);
      before[r] = any ? before[r] - max[r] : 0.0f;
    }
    for (std::int64_t r = 0; r < count; r += kWidth) {
      const V s = exp(load(before + r));
      store(scale + r, s);
      store(sum + r, load(sum + r) * s + load(total + r));
    }
  }
};

// ------------------------------------------------------------------------------------------------ one query alone
//
// Streams keys and values past one query: memory sets the pace. While a block of keys is multiplied its values are
// fetched, and while these are added the next block of keys, or at every turn the memory would wait for the arithmetic.

/// acc[n] += q . k[n] scale[n], over vector lanes.
template <int N, class T>
void accumulate(const float* q, const T* k, std::int64_t stride, const float* scale, std::int64_t width, V (&acc)[N]) {
  std::int64_t i = 0;
  const auto step = [&](V qs, auto&& load_key) {
    for (int n = 0; n < N; ++n) {
      V ks = load_key(k + n * stride + i);
      if constexpr (sizeof(T) == 1) ks *= scale[n];
      acc[n] = fma(qs, ks, acc[n]);
    }
  };
  for (; i + kWidth <= width; i += kWidth) step(load(q + i), [](const T* at) { return load(at); });
  const std::int64_t rest = width - i;
  if (rest) step(load(q + i, rest), [rest](const T* at) { return load(at, rest); });
}

/// A query's vector against part of the cache, in the form that the keys' type wants.
template <class T>
struct Streamed {
  const float* q;
  std::int64_t width;
  Streamed(const float* row, std::int64_t columns, bool) : q(row), width(columns) {}
  /// acc[n] += q . k[n] for kStreamed keys.
  void dot(const T* k, std::int64_t stride, const std::uint16_t* scales, V (&acc)[kStreamed]) const {
    float scale[kStreamed];
    if constexpr (sizeof(T) == 1)
      for (int n = 0; n < kStreamed; ++n) scale[n] = widen(scales[n]);
    accumulate<kStreamed>(q, k, stride, scale, width, acc);
  }
};

#if defined(__AVX512BF16__)
/// Rounded to bf16, where that is allowed, for dot products of pairs.
template <>
struct Streamed<std::uint16_t> {
  static constexpr std::int64_t kStep = 2 * kWidth, kMost = 1024;
  const float* q;
  std::int64_t width;
  bool rounds;
  alignas(64) std::uint16_t narrowed[kMost];
  Streamed(const float* row, std::int64_t columns, bool may_round)
      : q(row), width(columns), rounds(may_round && columns <= kMost && columns % kStep == 0) {
    for (std::int64_t i = 0; rounds && i < width; ++i) narrowed[i] = narrow(q[i]);
  }
  void dot(const std::uint16_t* k, std::int64_t stride, const std::uint16_t*, V (&acc)[kStreamed]) const {
    if (!rounds) return accumulate<kStreamed>(q, k, stride, nullptr, width, acc);
    for (std::int64_t i = 0; i < width; i += kStep) {
      __m512bh qs;
      __builtin_memcpy(&qs, narrowed + i, sizeof qs);
      for (int n = 0; n < kStreamed; ++n) {
        __m512bh ks;
        __builtin_memcpy(&ks, k + n * stride + i, sizeof ks);
        acc[n] = _mm512_dpbf16_ps(acc[n], qs, ks);
      }
    }
  }
};
#endif

#if defined(__AVX2__)
/// Where q may be rounded: integers of 15 bits, whose products with int8 are summed as integers, exactly. A lane sums
/// at most 2 kMost / kStep products below 2^21: no overflow.
template <>
struct Streamed<std::int8_t> {
  static constexpr std::int64_t kStep = 2 * kWidth, kMost = 1024;
  static constexpr float kLargest = 16383;
  const float* q;
  std::int64_t width;
  bool rounds;
  float step = 0;
  alignas(64) std::int16_t narrowed[kMost];
  Streamed(const float* row, std::int64_t columns, bool may_round)
      : q(row), width(columns), rounds(may_round && columns <= kMost && columns % kStep == 0) {
    if (!rounds) return;
    float top = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      const float magnitude = q[i] < 0 ? -q[i] : q[i];
      top = magnitude > top ? magnitude : top;
    }
    step = top / kLargest;
    const float inverse = top > 1e-30f ? kLargest / top : 0.0f;
    for (std::int64_t i = 0; i < width; ++i)
      narrowed[i] = static_cast<std::int16_t>(__builtin_bit_cast(std::uint32_t, q[i] * inverse + 0x1.8p23f));
  }
  void dot(const std::int8_t* k, std::int64_t stride, const std::uint16_t* scales, V (&acc)[kStreamed]) const {
    if (!rounds) {
      float scale[kStreamed];
      for (int n = 0; n < kStreamed; ++n) scale[n] = widen(scales[n]);
      return accumulate<kStreamed>(q, k, stride, scale, width, acc);
    }
#if defined(__AVX512F__)
    __m512i sums[kStreamed] = {};
    for (std::int64_t i = 0; i < width; i += kStep) {
      const __m512i qs = _mm512_load_si512(narrowed + i);
      for (int n = 0; n < kStreamed; ++n) {
        const __m512i ks =
            _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(k + n * stride + i)));
        sums[n] = _mm512_add_epi32(sums[n], _mm512_madd_epi16(qs, ks));
      }
    }
    for (int n = 0; n < kStreamed; ++n)
      acc[n] = fma(_mm512_cvtepi32_ps(sums[n]), broadcast(step * widen(scales[n])), acc[n]);
#else
    __m256i sums[kStreamed] = {};
    for (std::int64_t i = 0; i < width; i += kStep) {
      const __m256i qs = _mm256_load_si256(reinterpret_cast<const __m256i*>(narrowed + i));
      for (int n = 0; n < kStreamed; ++n) {
        const __m256i ks = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(k + n * stride + i)));
        sums[n] = _mm256_add_epi32(sums[n], _mm256_madd_epi16(qs, ks));
      }
    }
    for (int n = 0; n < kStreamed; ++n)
      acc[n] = fma(_mm256_cvtepi32_ps(sums[n]), broadcast(step * widen(scales[n])), acc[n]);
#endif
  }
};
#endif

/// scores[t - begin] = q.k for the keys begin..end-1, as many as there are in a block. A whole block is written.
template <class K1, class K2, class Each>
void stream_scores(const AttentionParams& p, const Query& q, const Streamed<K1>& q1, const Streamed<K2>& q2,
                   std::int64_t begin, std::int64_t end, float* scores, Each each) {
  const std::int64_t head = q.h / (p.heads / p.key_heads);
  for (std::int64_t t = begin; t < end; t += kStreamed) {
    const bool whole = t + kStreamed <= end;
    V acc[kStreamed] = {};
    const auto add = [&]<class K>(const Streamed<K>& part, const KeyRows& rows) {
      const K* k = key_row<K>(rows, q.b, head, t);
      const std::uint16_t* scales = sizeof(K) == 1 ? scales_from(rows, q.b, head, t) : nullptr;
      if (whole) return part.dot(k, rows.row_stride, scales, acc);
      for (std::int64_t n = 0; n < end - t; ++n) {  // one key in each place, so that it is summed as in a whole group
        V one[kStreamed] = {};
        one[0] = acc[n];
        std::uint16_t same[kStreamed] = {};
        for (int i = 0; sizeof(K) == 1 && i < kStreamed; ++i) same[i] = scales[n];
        part.dot(k + n * rows.row_stride, 0, same, one);
        acc[n] = one[0];
      }
    };
    add(q1, p.k1);
    if (p.d2) add(q2, p.k2);
    for (std::int64_t n = t; n < t + kStreamed && n < end; ++n) each(n);
    float* to = scores + (t - begin);
    sum4(acc[0], acc[1], acc[2], acc[3], to);
    sum4(acc[4], acc[5], acc[6], acc[7], to + 4);
  }
}

/// out = out * scale + sum over t of weights[t] v[t].
template <int Vectors, class T, class Each>
void stream_values(const AttentionParams& p, const T* v, std::int64_t keys, const float* weights, float scale,
                   std::int64_t column, float* out, Each each) {
  V acc[Vectors];
  for (int j = 0; j < Vectors; ++j) acc[j] = load(out + column + j * kWidth) * scale;
  for (std::int64_t t = 0; t < keys; ++t) {
    const V w = broadcast(weights[t]);
    const T* row = v + t * p.v.row_stride + column;
    each(t);
    for (int j = 0; j < Vectors; ++j) acc[j] = fma(w, load(row + j * kWidth), acc[j]);
  }
  for (int j = 0; j < Vectors; ++j) store(out + column + j * kWidth, acc[j]);
}

/// `then` (null: none) is the query whose keys are read after these.
template <class K1, class K2, class T>
void attend_one(const AttentionParams& p, const Query& q, const Query* then) {
  alignas(64) float scores[1][kKeyBlock];
  Softmax<1> softmax;
  float* out = p.out + ((q.b * p.tokens + q.s) * p.heads + q.h) * p.dv;
  for (std::int64_t i = 0; i < p.dv; ++i) out[i] = 0;
  const std::int64_t head = q.h / (p.heads / p.key_heads), end = key_end(p, q);
  const Streamed<K1> q1(q1_row(p, q), p.d1, p.rounds);
  const Streamed<K2> q2(p.d2 ? q2_row(p, q) : nullptr, p.d2, p.rounds);
  for (std::int64_t t = 0; t < end; t += kKeyBlock) {
    const std::int64_t block_end = t + kKeyBlock < end ? t + kKeyBlock : end;
    const T* v = key_row<T>(p.v, q.b, head, t);
    stream_scores<K1, K2>(p, q, q1, q2, t, block_end, scores[0],
                          [&](std::int64_t n) { prefetch(v + (n - t) * p.v.row_stride, p.dv); });
    mask_scores(p, q, t, block_end, scores[0]);
    softmax.add(scores, 1, p.scale);
    float* const weights = scores[0];
    const float scale = softmax.scale[0];
    if constexpr (sizeof(T) == 1) {
      const std::uint16_t* scales = scales_from(p.v, q.b, head, t);
      for (std::int64_t i = 0; i < block_end - t; ++i) weights[i] *= widen(scales[i]);
    }
    const K1* next = key_row<K1>(p.k1, q.b, head, t + kKeyBlock);
    std::int64_t following = end - t - kKeyBlock;  // keys of the blocks to come
    if (following <= 0 && then) {
      next = key_row<K1>(p.k1, then->b, then->h / (p.heads / p.key_heads), 0);
      following = key_end(p, *then);
    }
    const auto fetch = [&](std::int64_t n) {
      if (n < following) prefetch(next + n * p.k1.row_stride, p.d1);
    };
    const auto nothing = [](std::int64_t) {};
    constexpr int kVectors = 8;
    std::int64_t i = 0;
    for (; i + kVectors * kWidth <= p.dv; i += kVectors * kWidth) {
      if (i == 0)
        stream_values<kVectors>(p, v, block_end - t, weights, scale, i, out, fetch);
      else
        stream_values<kVectors>(p, v, block_end - t, weights, scale, i, out, nothing);
    }
    for (; i + kWidth <= p.dv; i += kWidth) stream_values<1>(p, v, block_end - t, weights, scale, i, out, nothing);
    if (i == p.dv) continue;
    V acc = load(out + i, p.dv - i) * scale;
    for (std::int64_t n = 0; n < block_end - t; ++n)
      acc = fma(broadcast(weights[n]), load(v + n * p.v.row_stride + i, p.dv - i), acc);
    store(out + i, acc, p.dv - i);
  }
  for (std::int64_t i = 0; i < p.dv; ++i) out[i] /= softmax.sum[0];
}

// ------------------------------------------------------------------------------------------ a block of queries
//
// Arithmetic sets the pace. A block of keys is copied once for all queries of the block, widened (or rounded to bf16,
// for dot products of pairs, where that is allowed) and padded with zeros; tiles of kTileRows x kTileKeys sums stay in
// registers. Each sum runs in the order that it has for one query alone, so long as nothing is rounded.

/// f32 operands. A row of queries or keys: k1's columns, padded to whole vectors, then k2's.
struct Exact {
  using Element = float;
  static constexpr std::int64_t kStep = kWidth;
  template <int M, int N>
  static void step(const float* q, std::int64_t q_stride, const float* k, std::int64_t k_stride, V (&acc)[M][N]) {
    V ks[N];
    for (int n = 0; n < N; ++n) ks[n] = load(k + n * k_stride);
    for (int m = 0; m < M; ++m) {
      const V qs = load(q + m * q_stride);
      for (int n = 0; n < N; ++n) acc[m][n] = fma(qs, ks[n], acc[m][n]);
    }
  }
  template <class T>
  static void copy(const T* from, float scale, std::int64_t width, float* to) {
    std::int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) store(to + i, sizeof(T) == 1 ? load(from + i) * scale : load(from + i));
    if (i < width) {
      const V rest = load(from + i, width - i);
      store(to + i, sizeof(T) == 1 ? rest * scale : rest);
    }
  }

  /// Values: vectors of columns of one key, `last` columns in the last one.
  static constexpr int kKeys = 1;
  using Weight = float;
  static void weigh(const float* weights, float* to) { __builtin_memcpy(to, weights, kKeyBlock * sizeof *to); }
  template <class T>
  static void interleave(const T* v, std::int64_t, std::int64_t vectors, std::int64_t last, V* to) {
    for (std::int64_t j = 0; j < vectors; ++j)
      to[j] = j + 1 == vectors && last < kWidth ? load(v + j * kWidth, last) : load(v + j * kWidth);
  }
  static V multiply_add(const float* weight, V values, V acc) { return fma(broadcast(*weight), values, acc); }
};

#if defined(__AVX512BF16__)
/// bf16 operands: pairs of columns of q and k, pairs of keys of the weights and values.
struct Rounded {
  using Element = std::uint16_t;
  static constexpr std::int64_t kStep = 2 * kWidth;
  template <int M, int N>
  static void step(const std::uint16_t* q, std::int64_t q_stride, const std::uint16_t* k, std::int64_t k_stride,
                   V (&acc)[M][N]) {
    __m512bh ks[N];
    for (int n = 0; n < N; ++n) __builtin_memcpy(&ks[n], k + n * k_stride, sizeof ks[n]);
    for (int m = 0; m < M; ++m) {
      __m512bh qs;
      __builtin_memcpy(&qs, q + m * q_stride, sizeof qs);
      for (int n = 0; n < N; ++n) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], qs, ks[n]);
    }
  }
  static void store_rounded(std::uint16_t* to, V x) {
    const __m256bh h = _mm512_cvtneps_pbh(x);
    __builtin_memcpy(to, &h, sizeof h);
  }
  template <class T>
  static void copy(const T* from, float scale, std::int64_t width, std::uint16_t* to) {
    if constexpr (sizeof(T) == 2) {
      __builtin_memcpy(to, from, static_cast<std::size_t>(width) * sizeof *to);
      for (std::int64_t i = width; i < padded(width, kWidth); ++i) to[i] = 0;
      return;
    }
    std::int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) store_rounded(to + i, load(from + i) * scale);
    if (i < width) store_rounded(to + i, load(from + i, width - i) * scale);
  }

  static constexpr int kKeys = 2;
  using Weight = std::uint16_t;
  static void weigh(const float* weights, std::uint16_t* to) {
    for (std::int64_t i = 0; i < kKeyBlock; i += kWidth) store_rounded(to + i, load(weights + i));
  }
  /// Columns of one key in the low halves, of the next in the high ones; `next` elements on, 0: there is none.
  template <class T>
  static void interleave(const T* v, std::int64_t next, std::int64_t vectors, std::int64_t last, V* to) {
    std::int64_t j = 0;
    if constexpr (sizeof(T) == 2) {
      const auto low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                        5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
      const auto high = _mm512_add_epi16(low, _mm512_set1_epi16(kWidth));
      for (; next && j + 2 <= vectors && (j + 2 < vectors || last == kWidth); j += 2) {
        const auto a = _mm512_loadu_si512(v + j * kWidth), b = _mm512_loadu_si512(v + next + j * kWidth);
        to[j] = (V)_mm512_permutex2var_epi16(a, low, b);
        to[j + 1] = (V)_mm512_permutex2var_epi16(a, high, b);
      }
    }
    for (; j < vectors; ++j) {
      const auto half = [n = j + 1 < vectors ? kWidth : last](const T* at) {
        const V x = n < kWidth ? load(at, n) : load(at);
        if constexpr (sizeof(T) == 4) {
          const __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
          return (U)wide << 16;
        }
        return (U)x;  // exact in bf16: the low half is 0
      };
      const U first = half(v + j * kWidth) >> 16;
      to[j] = (V)(next ? first | half(v + next + j * kWidth) : first);
    }
  }
  static V multiply_add(const std::uint16_t* weight, V values, V acc) {
    std::int32_t pair;
    __builtin_memcpy(&pair, weight, sizeof pair);
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)values);
  }
};
#endif

/// Calls f with `count`, of 1..N, as a constant.
template <int N, class F>
void with_count(std::int64_t count, F&& f) {
  if (count == N) return f.template operator()<N>();
  if constexpr (N > 1) with_count<N - 1>(count, f);
}

/// What a block works in. The widest rows that still leave room for a tile: kMaxAttentionWidth.
template <class A>
struct Scratch {
  static constexpr std::int64_t kElements = kQueryBlock * 640;
  alignas(64) typename A::Element queries[kElements], keys[kElements];
  alignas(64) float scores[kQueryBlock][kKeyBlock];
  alignas(64) typename A::Weight weights[kQueryBlock][kKeyBlock];
  alignas(64) V values[kKeyBlock / A::kKeys][kTileVectors];
  std::int64_t visible[kQueryBlock];  // keys from here on are masked for all queries of the tile that starts here
};
static_assert(kTileKeys * (kMaxAttentionWidth + 4 * kWidth) <= Scratch<Exact>::kElements);

template <class A>
std::int64_t row_width(const AttentionParams& p) {
  return padded(padded(p.d1, kWidth) + padded(p.d2, kWidth), A::kStep);
}

/// Copies a row's two parts.
template <class A, class T1, class T2>
void copy_row(const T1* first, float scale1, std::int64_t d1, const T2* second, float scale2, std::int64_t d2,
              std::int64_t width, typename A::Element* to) {
  A::copy(first, scale1, d1, to);
  const std::int64_t at = padded(d1, kWidth), filled = at + padded(d2, kWidth);
  if (d2) A::copy(second, scale2, d2, to + at);
  for (std::int64_t i = filled; i < width; ++i) to[i] = 0;
}

/// Part of the keys of a block, rows `stride` elements apart, and where its columns lie in a row of queries.
template <class Element>
struct KeyPart {
  const Element* rows;
  std::int64_t stride, at, columns;
};

/// scores[r][t - begin] = q.k for every query of the block and the keys begin..end-1 that its tile may see; up to
/// kTileKeys - 1 keys beyond are written.
template <class A, class K1, class K2>
void block_scores(const AttentionParams& p, const Query& any, std::int64_t count, std::int64_t begin, std::int64_t end,
                  Scratch<A>& s) {
  using Part = KeyPart<typename A::Element>;
  constexpr std::int64_t kKeysInCache = 16;  // with a tile of queries in a first-level cache
  const std::int64_t b = any.b, head = any.h / (p.heads / p.key_heads), width = row_width<A>(p);
  std::int64_t keys = Scratch<A>::kElements / width / kTileKeys * kTileKeys;
  keys = keys < kKeyBlock ? keys : kKeyBlock;
  for (std::int64_t first = begin; first < end; first += keys) {
    const std::int64_t n_keys = end - first < keys ? end - first : keys, tiled = padded(n_keys, kTileKeys);
    Part parts[2] = {{s.keys, width, 0, width}, {}};
    bool in_place = false;
    if constexpr (__is_same(K1, typename A::Element) && __is_same(K2, typename A::Element)) {
      in_place = tiled == n_keys && p.k1.row_stride == p.d1 && p.d1 % A::kStep == 0 &&
                 (!p.d2 || (p.k2.row_stride == p.d2 && p.d2 % A::kStep == 0));
      if (in_place) {
        parts[0] = {key_row<K1>(p.k1, b, head, first), p.d1, 0, p.d1};
        if (p.d2) parts[1] = {key_row<K2>(p.k2, b, head, first), p.d2, p.d1, p.d2};
      }
    }
    for (std::int64_t n = 0; n < tiled && !in_place; ++n) {
      const std::int64_t t = first + (n < n_keys ? n : n_keys - 1);
      copy_row<A>(key_row<K1>(p.k1, b, head, t), sizeof(K1) == 1 ? widen(*scales_from(p.k1, b, head, t)) : 1.0f, p.d1,
                  p.d2 ? key_row<K2>(p.k2, b, head, t) : nullptr,
                  p.d2 && sizeof(K2) == 1 ? widen(*scales_from(p.k2, b, head, t)) : 1.0f, p.d2, width,
                  s.keys + n * width);
    }
    for (std::int64_t some = 0; some < tiled; some += kKeysInCache) {
      for (std::int64_t r = 0; r < count; r += kTileRows) {
        const std::int64_t visible = s.visible[r] - first,
                           upto = some + kKeysInCache < tiled ? some + kKeysInCache : tiled;
        const std::int64_t seen = visible < upto ? visible : upto;
        with_count<kTileRows>(count - r < kTileRows ? count - r : kTileRows, [&]<int M>() {
          for (std::int64_t n = some; n < seen; n += kTileKeys) {
            V acc[M][kTileKeys] = {};
            if (in_place && r == 0)
              for (const Part& part : parts)
                for (std::int64_t k = n; k < n + kTileKeys; ++k)
                  prefetch(part.rows + (k + kKeysInCache) * part.stride, part.columns);
            for (const Part& part : parts) {
              const auto *q = s.queries + r * width + part.at, *k = part.rows + n * part.stride;
              for (std::int64_t i = 0; i < part.columns; i += A::kStep)
                A::template step<M, kTileKeys>(q + i, width, k + i, part.stride, acc);
            }
            for (int m = 0; m < M; ++m) {
              float* to = s.scores[r + m] + (first - begin) + n;
              sum4(acc[m][0], acc[m][1], acc[m][2], acc[m][3], to);
            }
          }
        });
      }
    }
  }
}

/// out[r] = out[r] * scale[r] + sum over t of weights[r][t] v[t].
template <class A, class T>
void block_values(const AttentionParams& p, const T* v, std::int64_t begin, std::int64_t keys, std::int64_t count,
                  const float* scale, float* const* out, Scratch<A>& s) {
  for (std::int64_t column = 0; column < p.dv; column += kColumns) {
    const std::int64_t columns = p.dv - column < kColumns ? p.dv - column : kColumns;
    const std::int64_t vectors = (columns + kWidth - 1) / kWidth, last = columns - (vectors - 1) * kWidth;
    for (std::int64_t t = 0; t < keys; t += A::kKeys)
      A::interleave(v + t * p.v.row_stride + column, t + 1 < keys ? p.v.row_stride : 0, vectors, last,
                    s.values[t / A::kKeys]);
    with_count<kTileVectors>(vectors, [&]<int N>() {
      for (std::int64_t r = 0; r < count; r += kTileRows) {
        const std::int64_t seen = s.visible[r] - begin < keys ? s.visible[r] - begin : keys;
        with_count<kTileRows>(count - r < kTileRows ? count - r : kTileRows, [&]<int M>() {
          V acc[M][N];
          for (int m = 0; m < M; ++m) {
            const float* from = out[r + m] + column;
            for (int j = 0; j + 1 < N; ++j) acc[m][j] = load(from + j * kWidth) * scale[r + m];
            const float* end = from + (N - 1) * kWidth;
            acc[m][N - 1] = (last < kWidth ? load(end, last) : load(end)) * scale[r + m];
          }
          for (std::int64_t t = 0; t < seen; t += A::kKeys)
            for (int m = 0; m < M; ++m)
              for (int j = 0; j < N; ++j)
                acc[m][j] = A::multiply_add(&s.weights[r + m][t], s.values[t / A::kKeys][j], acc[m][j]);
          for (int m = 0; m < M; ++m) {
            float* to = out[r + m] + column;
            for (int j = 0; j + 1 < N; ++j) store(to + j * kWidth, acc[m][j]);
            float* end = to + (N - 1) * kWidth;
            last < kWidth ? store(end, acc[m][N - 1], last) : store(end, acc[m][N - 1]);
          }
        });
      }
    });
  }
}

template <class A, class K1, class K2, class T>
void attend_block(const AttentionParams& p, const Query* queries, std::int64_t count) {
  Scratch<A> s;
  Softmax<kQueryBlock> softmax;
  float* out[kQueryBlock];
  std::int64_t end = 0;
  const std::int64_t width = row_width<A>(p);
  for (std::int64_t r = 0; r < count; ++r) {
    const Query& q = queries[r];
    out[r] = p.out + ((q.b * p.tokens + q.s) * p.heads + q.h) * p.dv;
    for (std::int64_t i = 0; i < p.dv; ++i) out[r][i] = 0;
    end = key_end(p, q) > end ? key_end(p, q) : end;
    copy_row<A>(q1_row(p, q), 1.0f, p.d1, p.d2 ? q2_row(p, q) : nullptr, 1.0f, p.d2, width, s.queries + r * width);
  }
  for (std::int64_t r = 0; r < count; ++r) {
    const std::int64_t first = r - r % kTileRows, seen = key_end(p, queries[r]);
    s.visible[first] = r == first || seen > s.visible[first] ? seen : s.visible[first];
  }
  const std::int64_t b = queries[0].b, head = queries[0].h / (p.heads / p.key_heads);
  for (std::int64_t t = 0; t < end; t += kKeyBlock) {
    const std::int64_t block_end = t + kKeyBlock < end ? t + kKeyBlock : end;
    block_scores<A, K1, K2>(p, queries[0], count, t, block_end, s);
    for (std::int64_t r = 0; r < count; ++r) mask_scores(p, queries[r], t, block_end, s.scores[r]);
    softmax.add(s.scores, count, p.scale);
    for (std::int64_t r = 0; r < count; ++r) {
      if constexpr (sizeof(T) == 1) {
        const std::uint16_t* scales = scales_from(p.v, b, head, t);
        for (std::int64_t i = 0; i < block_end - t; ++i) s.scores[r][i] *= widen(scales[i]);
      }
      A::weigh(s.scores[r], s.weights[r]);
    }
    block_values<A>(p, key_row<T>(p.v, b, head, t), t, block_end - t, count, softmax.scale, out, s);
  }
  for (std::int64_t r = 0; r < count; ++r)
    for (std::int64_t i = 0; i < p.dv; ++i) out[r][i] /= softmax.sum[r];
}

/// Calls f with the element types of k1, k2 and v.
template <class F>
void with_storage(const AttentionParams& p, F&& f) {
  if (p.k1.storage == Storage::i8)
    f.template operator()<std::int8_t, std::int8_t, std::int8_t>();  // straight from the cache
  else if (p.k1.storage == Storage::bf16)
    f.template operator()<std::uint16_t, std::uint16_t, std::uint16_t>();
  else if (p.d2 && p.k2.storage == Storage::i8)
    f.template operator()<float, std::int8_t, float>();  // expanded from the cache
  else if (p.d2 && p.k2.storage == Storage::bf16)
    f.template operator()<float, std::uint16_t, float>();
  else
    f.template operator()<float, float, float>();
}

template <class K1, class K2, class T>
void attend(const AttentionParams& p, const Query* queries, std::int64_t count, const Query* then) {
  if (count == 1) return attend_one<K1, K2, T>(p, queries[0], then);
#if defined(__AVX512BF16__)
  if (p.rounds) return attend_block<Rounded, K1, K2, T>(p, queries, count);
#endif
  attend_block<Exact, K1, K2, T>(p, queries, count);
}

}  // namespace

void attention(const AttentionParams& p, Range items) {
  const std::int64_t group = p.heads / p.key_heads, queries = p.tokens * group;
  const std::int64_t blocks = (queries + p.query_block - 1) / p.query_block;
  // Rows so wide that a block of queries does not fit are taken in several passes over the keys.
  const std::int64_t fit = Scratch<Exact>::kElements / row_width<Exact>(p);
  const std::int64_t pass = fit < p.query_block ? fit : p.query_block;
  // The last queries see the most keys: they come first, so that no thread is left with them alone.
  const auto first_of = [&](std::int64_t i) { return (blocks - 1 - i % blocks) * p.query_block; };
  const auto query = [&](std::int64_t i, std::int64_t row) {
    return Query{i / blocks / p.key_heads, row / group, i / blocks % p.key_heads * group + row % group};
  };
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const std::int64_t first = first_of(i);
    const std::int64_t end = first + p.query_block < queries ? first + p.query_block : queries;
    const bool last = i + 1 == items.end;
    const Query then = last ? Query{} : query(i + 1, first_of(i + 1));
    for (std::int64_t from = first; from < end; from += pass) {
      const std::int64_t count = end - from < pass ? end - from : pass;
      Query block[kQueryBlock];
      for (std::int64_t r = 0; r < count; ++r) block[r] = query(i, from + r);
      with_storage(p,
                   [&]<class K1, class K2, class T>() { attend<K1, K2, T>(p, block, count, last ? nullptr : &then); });
    }
  }
}

void attention_probabilities(const AttentionParams& p, Range items) {
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const Query q{i / p.tokens / p.heads, i % p.tokens, i / p.tokens % p.heads};
    float* out = p.out + i * p.total;
    Softmax<1> softmax;
    // Twice over the keys, so that a row needs no scratch: first the maximum and the sum, then the probabilities.
    for (int pass = 0; pass < 2; ++pass) {
      for (std::int64_t t = 0; t < p.total; t += kKeyBlock) {
        alignas(64) float scores[1][kKeyBlock];
        const std::int64_t count = p.total - t < kKeyBlock ? p.total - t : kKeyBlock;
        with_storage(p, [&]<class K1, class K2, class>() {
          const Streamed<K1> q1(q1_row(p, q), p.d1, p.rounds);
          const Streamed<K2> q2(p.d2 ? q2_row(p, q) : nullptr, p.d2, p.rounds);
          stream_scores<K1, K2>(p, q, q1, q2, t, t + count, scores[0], [](std::int64_t) {});
        });
        mask_scores(p, q, t, t + count, scores[0]);
        if (pass == 0) {
          softmax.add(scores, 1, p.scale);
          continue;
        }
        for (std::int64_t j = 0; j < kKeyBlock; j += kWidth)
          store(scores[0] + j, exp(load(scores[0] + j) * p.scale - softmax.max[0]) / softmax.sum[0]);
        __builtin_memcpy(out + t, scores[0], static_cast<std::size_t>(count) * sizeof *out);
      }
    }
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
