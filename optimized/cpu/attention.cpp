#include "optimized/cpu/attention.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/simd.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

constexpr std::int64_t kKeyBlock = 64;

template <class T>
const T* key_row(const KeyRows& k, std::int64_t b, std::int64_t head, std::int64_t t) {
  return static_cast<const T*>(k.data) + b * k.batch_stride + head * k.head_stride + t * k.row_stride;
}

/// acc[m][n] += q[m] . k[n], over vector lanes.
template <int M, int N, class T>
void accumulate(const float* const (&q)[M], const T* const (&k)[N], std::int64_t width, V (&acc)[M][N]) {
  std::int64_t i = 0;
  for (; i + kWidth <= width; i += kWidth) {
    V qs[M];
    for (int m = 0; m < M; ++m) qs[m] = load(q[m] + i);
    for (int n = 0; n < N; ++n) {
      const V ks = load(k[n] + i);
      for (int m = 0; m < M; ++m) acc[m][n] = fma(qs[m], ks, acc[m][n]);
    }
  }
  if (i == width) return;
  V qs[M];
  for (int m = 0; m < M; ++m) qs[m] = load(q[m] + i, width - i);
  for (int n = 0; n < N; ++n) {
    const V ks = load(k[n] + i, width - i);
    for (int m = 0; m < M; ++m) acc[m][n] = fma(qs[m], ks, acc[m][n]);
  }
}

/// A query: sequence, position, head.
struct Query {
  std::int64_t b, s, h;
};

const float* q1_row(const AttentionParams& p, const Query& q) {
  return p.q1 + (q.b * p.tokens + q.s) * p.q1_token_stride + q.h * p.q1_head_stride;
}

/// scores[m][t - begin] = scale * q.k for keys begin..end-1; up to 3 elements beyond are written.
template <class K1, class K2, int M>
void score_rows(const AttentionParams& p, const Query* queries, std::int64_t begin, std::int64_t end, float* scores,
                std::int64_t stride) {
  const float *q1[M], *q2[M];
  const std::int64_t b = queries[0].b, head = queries[0].h / (p.heads / p.key_heads);
  for (int m = 0; m < M; ++m) {
    q1[m] = q1_row(p, queries[m]);
    q2[m] = p.q2 + ((b * p.tokens + queries[m].s) * p.heads + queries[m].h) * p.d2;
  }
  for (std::int64_t t = begin; t < end; t += 4) {
    V acc[M][4] = {};
    const K1* k1[4];
    for (int n = 0; n < 4; ++n) k1[n] = key_row<K1>(p.k1, b, head, t + n < end ? t + n : t);
    accumulate<M, 4>(q1, k1, p.d1, acc);
    if (p.d2) {
      const K2* k2[4];
      for (int n = 0; n < 4; ++n) k2[n] = key_row<K2>(p.k2, b, head, t + n < end ? t + n : t);
      accumulate<M, 4>(q2, k2, p.d2, acc);
    }
    for (int m = 0; m < M; ++m) {
      float* to = scores + m * stride + (t - begin);
      sum4(acc[m][0], acc[m][1], acc[m][2], acc[m][3], to);
      for (int n = 0; n < 4; ++n) to[n] *= p.scale;
    }
  }
}

bool all_masked(const AttentionParams& p, const Query& q) { return p.all_masked && p.all_masked[q.b * p.tokens + q.s]; }

/// Keys from here on are not visible to q.
std::int64_t key_end(const AttentionParams& p, const Query& q) {
  return p.mask_token || all_masked(p, q) ? p.total : p.past + q.s + 1;
}

/// Puts -inf where q may not look.
void mask_scores(const AttentionParams& p, const Query& q, std::int64_t begin, std::int64_t end, float* scores) {
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

/// Softmax state of a query between blocks of keys.
struct Running {
  float max, sum;
};

/// Turns a block of scores (padded to whole vectors with -inf) into exp(score - max); returns by how much what was
/// summed before has to be scaled.
float exponentiate(float* scores, std::int64_t padded, Running& r) {
  V top = broadcast(r.max);
  for (std::int64_t i = 0; i < padded; i += kWidth) top = max(top, load(scores + i));
  const float highest = max_lane(top);
  if (highest == -__builtin_inff()) {  // nothing visible so far
    for (std::int64_t i = 0; i < padded; i += kWidth) store(scores + i, V{});
    return 1.0f;
  }
  V total{};
  for (std::int64_t i = 0; i < padded; i += kWidth) {
    const V e = exp(load(scores + i) - highest);
    store(scores + i, e);
    total += e;
  }
  const float scale = exp(broadcast(r.max - highest))[0];
  r.max = highest;
  r.sum = r.sum * scale + sum(total);
  return scale;
}

/// out[m] = out[m] * scale[m] + sum over t of weights[m][t] v[t].
template <class T, int M>
void add_values(const AttentionParams& p, const T* v, std::int64_t keys, const float* weights, std::int64_t stride,
                const float* scale, float* const* out) {
  constexpr int kVectors = M == 1 ? 8 : 4;
  std::int64_t i = 0;
  for (; i + kVectors * kWidth <= p.dv; i += kVectors * kWidth) {
    V acc[M][kVectors];
    for (int m = 0; m < M; ++m)
      for (int j = 0; j < kVectors; ++j) acc[m][j] = load(out[m] + i + j * kWidth) * scale[m];
    for (std::int64_t t = 0; t < keys; ++t) {
      V vs[kVectors];
      for (int j = 0; j < kVectors; ++j) vs[j] = load(v + t * p.v.row_stride + i + j * kWidth);
      for (int m = 0; m < M; ++m) {
        const V w = broadcast(weights[m * stride + t]);
        for (int j = 0; j < kVectors; ++j) acc[m][j] = fma(w, vs[j], acc[m][j]);
      }
    }
    for (int m = 0; m < M; ++m)
      for (int j = 0; j < kVectors; ++j) store(out[m] + i + j * kWidth, acc[m][j]);
  }
  for (; i < p.dv; i += kWidth) {
    const std::int64_t n = p.dv - i < kWidth ? p.dv - i : kWidth;
    V acc[M];
    for (int m = 0; m < M; ++m) acc[m] = load(out[m] + i, n) * scale[m];
    for (std::int64_t t = 0; t < keys; ++t) {
      const V vs = load(v + t * p.v.row_stride + i, n);
      for (int m = 0; m < M; ++m) acc[m] = fma(broadcast(weights[m * stride + t]), vs, acc[m]);
    }
    for (int m = 0; m < M; ++m) store(out[m] + i, acc[m], n);
  }
}

template <class K1, class K2, class T>
void attend(const AttentionParams& p, const Query* queries, std::int64_t count) {
  alignas(64) float scores[kQueryBlock][kKeyBlock + 4];
  Running running[kQueryBlock];
  float* out[kQueryBlock];
  std::int64_t end = 0;
  for (std::int64_t r = 0; r < count; ++r) {
    const Query& q = queries[r];
    running[r] = {-__builtin_inff(), 0.0f};
    out[r] = p.out + ((q.b * p.tokens + q.s) * p.heads + q.h) * p.dv;
    for (std::int64_t i = 0; i < p.dv; ++i) out[r][i] = 0;
    end = key_end(p, q) > end ? key_end(p, q) : end;
  }
  const std::int64_t head = queries[0].h / (p.heads / p.key_heads);
  for (std::int64_t t = 0; t < end; t += kKeyBlock) {
    const std::int64_t block_end = t + kKeyBlock < end ? t + kKeyBlock : end;
    float scale[kQueryBlock];
    std::int64_t r = 0;
    for (; r + 4 <= count; r += 4) score_rows<K1, K2, 4>(p, queries + r, t, block_end, scores[r], kKeyBlock + 4);
    for (; r < count; ++r) score_rows<K1, K2, 1>(p, queries + r, t, block_end, scores[r], kKeyBlock + 4);
    for (r = 0; r < count; ++r) {
      mask_scores(p, queries[r], t, block_end, scores[r]);
      for (std::int64_t i = block_end - t; i < kKeyBlock; ++i) scores[r][i] = -__builtin_inff();
      scale[r] = exponentiate(scores[r], kKeyBlock, running[r]);
    }
    const T* v = key_row<T>(p.v, queries[0].b, head, t);
    for (r = 0; r + 4 <= count; r += 4)
      add_values<T, 4>(p, v, block_end - t, scores[r], kKeyBlock + 4, scale + r, out + r);
    for (; r < count; ++r) add_values<T, 1>(p, v, block_end - t, scores[r], kKeyBlock + 4, scale + r, out + r);
  }
  for (std::int64_t r = 0; r < count; ++r)
    for (std::int64_t i = 0; i < p.dv; ++i) out[r][i] /= running[r].sum;
}

/// Calls f with the element types of k1, k2 and v.
template <class F>
void with_storage(const AttentionParams& p, F&& f) {
  if (p.k1.storage == Storage::bf16)
    f.template operator()<std::uint16_t, std::uint16_t, std::uint16_t>();  // straight from a bf16 cache
  else if (p.d2 && p.k2.storage == Storage::bf16)
    f.template operator()<float, std::uint16_t, float>();  // expanded from a bf16 cache
  else
    f.template operator()<float, float, float>();
}

}  // namespace

void attention(const AttentionParams& p, Range items) {
  const std::int64_t group = p.heads / p.key_heads, queries = p.tokens * group;
  const std::int64_t blocks = (queries + kQueryBlock - 1) / kQueryBlock;
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const std::int64_t first = i % blocks * kQueryBlock, head = i / blocks % p.key_heads;
    const std::int64_t count = queries - first < kQueryBlock ? queries - first : kQueryBlock;
    Query block[kQueryBlock];
    for (std::int64_t r = 0; r < count; ++r)
      block[r] = {i / blocks / p.key_heads, (first + r) / group, head * group + (first + r) % group};
    with_storage(p, [&]<class K1, class K2, class T>() { attend<K1, K2, T>(p, block, count); });
  }
}

void attention_probabilities(const AttentionParams& p, Range items) {
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const Query q{i / p.tokens / p.heads, i % p.tokens, i / p.tokens % p.heads};
    float* out = p.out + i * p.total;
    Running running{-__builtin_inff(), 0.0f};
    // Twice over the keys, so that a row needs no scratch: first the maximum and the sum, then the probabilities.
    for (int pass = 0; pass < 2; ++pass) {
      for (std::int64_t t = 0; t < p.total; t += kKeyBlock) {
        alignas(64) float scores[kKeyBlock + 4];
        const std::int64_t count = p.total - t < kKeyBlock ? p.total - t : kKeyBlock;
        with_storage(
            p, [&]<class K1, class K2, class>() { score_rows<K1, K2, 1>(p, &q, t, t + count, scores, kKeyBlock); });
        mask_scores(p, q, t, t + count, scores);
        for (std::int64_t j = count; j < kKeyBlock; ++j) scores[j] = -__builtin_inff();
        if (pass == 0) {
          exponentiate(scores, kKeyBlock, running);
          continue;
        }
        for (std::int64_t j = 0; j < kKeyBlock; j += kWidth)
          store(scores + j, exp(load(scores + j) - running.max) / running.sum);
        __builtin_memcpy(out + t, scores, static_cast<std::size_t>(count) * sizeof *out);
      }
    }
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
