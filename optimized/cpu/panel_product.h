// The product of every matrix op: packed rows against panels of 16 matrix rows.
#pragma once

#include <cstddef>

#include "optimized/cpu/pack.h"
#include "optimized/cpu/panel.h"
#include "optimized/cpu/simd.h"
#include "optimized/cpu/types.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

inline constexpr int kVectors = kPanel / kWidth;  // vectors that hold a panel's sums

// Registers for sums (of 32 or 16), and packed rows that a tile takes at most.
#if defined(__AVX512F__)
inline constexpr int kRegisters = 24, kTileRows = 12, kTileRowsInt = 4;
#elif defined(__AVX2__)
inline constexpr int kRegisters = 12, kTileRows = 6, kTileRowsInt = 2;
#else
inline constexpr int kRegisters = 8, kTileRows = 2, kTileRowsInt = 1;
#endif

/// Panels that a tile of M rows takes at a time: a power of two, as many of P as there are registers for.
template <int P, int M, int Sets>
constexpr int panels_at_once() {
  int n = P;
  while (n > 1 && n * M * kVectors * Sets > kRegisters) n /= 2;
  return n;
}

/// Panels that are read after `n` of P from p on were.
template <int P, int n>
inline const char* const* after(int p, const char* const* w, const char* const* next) {
  return p + n < P ? w + p + n : next;
}

/// Packed rows: row i, or the one that `index` names.
struct Rows {
  const char* base;
  std::int64_t stride;        // bytes
  const std::int64_t* index;  // null: i
  const char* operator[](std::int64_t i) const { return base + (index ? index[i] : i) * stride; }
  Rows from(std::int64_t i) const {
    return index ? Rows{base, stride, index + i} : Rows{base + i * stride, stride, index};
  }
};

template <class T>
T get_as(const void* p) {
  T x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

// ---- floats: a step of a panel is 64 bytes

/// kColumns columns of panels against M rows.
template <Arithmetic>
struct Step;

template <>
struct Step<Arithmetic::f32> {
  using Row = float;
  static constexpr int kColumns = 1;
  template <int M, int P>
  static void run(const float* const (&x)[M], const char* const (&w)[P], std::int64_t k, V (&acc)[M][P][kVectors]) {
    V ws[P][kVectors];
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kVectors; ++v) ws[p][v] = get_as<V>(w[p] + k * 64 + v * static_cast<int>(sizeof(V)));
    for (int m = 0; m < M; ++m) {
      const V xs = broadcast(x[m][k]);
      for (int p = 0; p < P; ++p)
        for (int v = 0; v < kVectors; ++v) acc[m][p][v] = fma(xs, ws[p][v], acc[m][p][v]);
    }
  }
};

template <>
struct Step<Arithmetic::bf16> {
  using Row = float;
  static constexpr int kColumns = 2;
  template <int M, int P>
  static void run(const float* const (&x)[M], const char* const (&w)[P], std::int64_t k, V (&acc)[M][P][kVectors]) {
    for (int odd = 0; odd < 2; ++odd) {
      // With several rows the odd column's weights are loaded anew: both columns' do not fit beside the sums.
      if (M > 2 && odd) __asm__ volatile("" ::: "memory");
      V ws[P][kVectors];
      for (int p = 0; p < P; ++p)
        for (int v = 0; v < kVectors; ++v) {
          const U pairs = get_as<U>(w[p] + k * 64 + v * static_cast<int>(sizeof(U)));
          ws[p][v] = (V)(odd ? pairs & 0xffff0000u : pairs << 16);
        }
      for (int m = 0; m < M; ++m) {
        const V xs = broadcast(x[m][2 * k + odd]);
        for (int p = 0; p < P; ++p)
          for (int v = 0; v < kVectors; ++v) acc[m][p][v] = fma(xs, ws[p][v], acc[m][p][v]);
      }
    }
  }
};

#if defined(__AVX512BF16__)
template <>
struct Step<Arithmetic::bf16_dot> {
  using Row = std::uint16_t;
  static constexpr int kColumns = 2;
  template <int M, int P>
  static void run(const std::uint16_t* const (&x)[M], const char* const (&w)[P], std::int64_t k,
                  V (&acc)[M][P][kVectors]) {
    __m512bh ws[P];
    for (int p = 0; p < P; ++p) ws[p] = get_as<__m512bh>(w[p] + k * 64);
    for (int m = 0; m < M; ++m) {
      const auto xs = (__m512bh)_mm512_set1_epi32(get_as<int>(x[m] + 2 * k));
      for (int p = 0; p < P; ++p) acc[m][p][0] = _mm512_dpbf16_ps(acc[m][p][0], xs, ws[p]);
    }
  }
};
/// What widened panels are multiplied as.
inline constexpr Arithmetic kWide = Arithmetic::bf16_dot;
#else
inline constexpr Arithmetic kWide = Arithmetic::f32;
#endif

// Bytes ahead in a panel that are asked for while few rows stream it.
inline constexpr std::int64_t kAhead = 1024;

/// c[m][p*16..] += x[m] . w[p] over `steps` steps from step `first` of the rows on; c rows are `c_stride` apart. While
/// it runs, `next` (null: nothing) is what is read after w: the end of a sweep over w asks for it.
template <class S, int M, int P, bool Prefetch>
inline void float_tile(const Rows& x, const char* const* panels, const char* const* next, std::int64_t first,
                       std::int64_t steps, float* c, std::int64_t c_stride) {
  const typename S::Row* xs[M];
  for (int m = 0; m < M; ++m) xs[m] = reinterpret_cast<const typename S::Row*>(x[m]) + first * S::kColumns;
  const char* w[P];
  for (int p = 0; p < P; ++p) w[p] = panels[p];
  V acc[M][P][kVectors];
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kVectors; ++v) acc[m][p][v] = load(c + m * c_stride + p * kPanel + v * kWidth);
  std::int64_t k = 0;
  if constexpr (Prefetch) {
    for (; k < steps - kAhead / 64; ++k) {
      for (int p = 0; p < P; ++p) prefetch_line(w[p] + k * 64 + kAhead);
      S::template run<M, P>(xs, w, k, acc);
    }
    for (; k < steps; ++k) {
      for (int p = 0; p < P; ++p) prefetch_line(next[p] + (k - steps) * 64 + kAhead);
      S::template run<M, P>(xs, w, k, acc);
    }
  } else {
    for (; k < steps; ++k) S::template run<M, P>(xs, w, k, acc);
  }
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kVectors; ++v) store(c + m * c_stride + p * kPanel + v * kWidth, acc[m][p][v]);
}

template <class S, int M, int P, bool Prefetch>
inline void float_tiles(const Rows& x, const char* const* w, const char* const* next, std::int64_t first,
                        std::int64_t steps, float* c) {
  constexpr int kAtOnce = panels_at_once<P, M, 1>();
  for (int p = 0; p < P; p += kAtOnce)
    float_tile<S, M, kAtOnce, Prefetch>(x, w + p, after<P, kAtOnce>(p, w, next), first, steps, c + p * kPanel,
                                        P * kPanel);
}

/// All rows against `steps` steps of P panels that are in a cache by the second tile of rows.
template <class S, int P>
void float_block(const Rows& x, std::int64_t rows, const char* const* w, const char* const* next, std::int64_t first,
                 std::int64_t steps, float* c) {
  std::int64_t r = 0;
  if (rows >= kTileRows) {
    constexpr int kAtOnce = panels_at_once<P, kTileRows, 1>();
    const std::int64_t whole = rows - rows % kTileRows;
    for (int p = 0; p < P; p += kAtOnce) {
      float_tile<S, kTileRows, kAtOnce, true>(x, w + p, after<P, kAtOnce>(p, w, next), first, steps, c + p * kPanel,
                                              P * kPanel);
      for (r = kTileRows; r < whole; r += kTileRows)
        float_tile<S, kTileRows, kAtOnce, false>(x.from(r), w + p, next + p, first, steps,
                                                 c + r * P * kPanel + p * kPanel, P * kPanel);
    }
  }
  const auto rest = [&]<int M>() {
    for (; rows - r >= M; r += M) {
      if (r == 0)
        float_tiles<S, M, P, true>(x, w, next, first, steps, c);
      else
        float_tiles<S, M, P, false>(x.from(r), w, next, first, steps, c + r * P * kPanel);
    }
  };
  if constexpr (kTileRows > 6) rest.template operator()<6>();
  if constexpr (kTileRows > 4) rest.template operator()<4>();
  if constexpr (kTileRows > 2) rest.template operator()<2>();
  rest.template operator()<1>();
}

// ---- int8 and int4: a block of a panel is 64 columns with their scales

// Bytes ahead, of all panels of a tile together, that are asked for while it streams them: as measured, int8 alone
// wants fewer where one row leaves the core waiting for memory in any case.
template <bool kInt4, int M>
inline constexpr std::int64_t kAheadInt = kInt4 || M > 1 ? 9216 : 4608;

using I = std::int32_t __attribute__((vector_size(4 * kWidth)));

template <Arithmetic A>
struct Quant {
  static constexpr bool kInt4 = A == Arithmetic::i4 || A == Arithmetic::i4_wide;
  static constexpr int kOffset = kInt4 ? 8 : 128;
  static constexpr int kChunks = kInt4 ? 4 : 8;  // in a group
  static constexpr int kColumnsInChunk = kInt4 ? 8 : 4;
  static constexpr std::int64_t kBytes = kScaleBytes + 2 * kChunks * 64;  // of a block

  static V scales(const char* block, int group, int v) {
    return load(reinterpret_cast<const std::uint16_t*>(block) + group * kPanel + v * kWidth);
  }
  static const char* chunk(const char* block, int group, int c) {
    return block + kScaleBytes + (group * kChunks + c) * 64;
  }
};

/// A packed row of integers.
struct IntRow {
  const float* scale;
  const std::int32_t* sum;
  const char* q;  // pack.h
};
inline IntRow int_row(const char* row, std::int64_t padded) {
  const auto* scale = reinterpret_cast<const float*>(row);
  const auto* sum = reinterpret_cast<const std::int32_t*>(scale + padded / kQuantGroup);
  return {scale, sum, reinterpret_cast<const char*>(sum + padded / kQuantGroup)};
}

inline V to_float(I x) { return __builtin_convertvector(x, V); }
inline I broadcast_int(std::int32_t x) { return I{} + x; }

#if defined(__AVX512VNNI__)
inline constexpr int kIntSets = 3;  // high and low sums, and their float sums

/// dot[m][p] = sum of x q over one group of every panel row; meanwhile the same chunks of the blocks `ahead` are asked
/// for.
template <Arithmetic A, int M, int P, bool Prefetch>
inline void group_dot(const IntRow (&x)[M], std::int64_t padded, const char* const (&block)[P],
                      const char* const (&ahead)[P], int group, std::int64_t column, I (&dot)[M][P][kVectors]) {
  using Q = Quant<A>;
  __m512i high[M][P], low[M][P];
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p) {
      high[m][p] = _mm512_setzero_si512();
      low[m][p] = _mm512_set1_epi32(-Q::kOffset * x[m].sum[column / kQuantGroup]);
    }
  const auto add = [&](const __m512i(&w)[P], std::int64_t k) {
    for (int m = 0; m < M; ++m) {
      const __m512i h = _mm512_set1_epi32(get_as<int>(x[m].q + k)),
                    l = _mm512_set1_epi32(get_as<int>(x[m].q + padded + k));
      for (int p = 0; p < P; ++p) {
        high[m][p] = _mm512_dpbusd_epi32(high[m][p], w[p], h);
        low[m][p] = _mm512_dpbusd_epi32(low[m][p], w[p], l);
      }
    }
  };
  for (int c = 0; c < Q::kChunks; ++c) {
    if constexpr (Prefetch) {
      __asm__ volatile("");  // an unrolled loop would ask for a whole group's lines at once
      for (int p = 0; p < P; ++p) prefetch_line(Q::chunk(ahead[p], group, c));
    }
    __m512i w[P];
    for (int p = 0; p < P; ++p) w[p] = get_as<__m512i>(Q::chunk(block[p], group, c));
    const std::int64_t k = column + c * Q::kColumnsInChunk;
    if constexpr (Q::kInt4) {
      const __m512i nibble = _mm512_set1_epi8(15);
      __m512i half[P];
      for (int p = 0; p < P; ++p) half[p] = _mm512_and_si512(w[p], nibble);
      add(half, k);
      for (int p = 0; p < P; ++p) half[p] = _mm512_and_si512(_mm512_srli_epi16(w[p], 4), nibble);
      add(half, k + 4);
    } else {
      add(w, k);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p) dot[m][p][0] = (I)_mm512_add_epi32(_mm512_slli_epi32(high[m][p], 7), low[m][p]);
}
#else
inline constexpr int kIntSets = 2;

/// Sums of products of pairs of 16-bit integers.
inline I multiply_pairs(U a, I b) {
#if defined(__AVX512BW__)
  return (I)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (I)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  const I s = (I)a;
  return ((s << 16) >> 16) * ((b << 16) >> 16) + (s >> 16) * (b >> 16);
#endif
}

template <Arithmetic A, int M, int P, bool Prefetch>
inline void group_dot(const IntRow (&x)[M], std::int64_t, const char* const (&block)[P], const char* const (&ahead)[P],
                      int group, std::int64_t column, I (&dot)[M][P][kVectors]) {
  using Q = Quant<A>;
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kVectors; ++v) dot[m][p][v] = broadcast_int(-Q::kOffset * x[m].sum[column / kQuantGroup]);
  for (int c = 0; c < Q::kChunks; ++c) {
    if constexpr (Prefetch) {
      __asm__ volatile("");  // an unrolled loop would ask for a whole group's lines at once
      for (int p = 0; p < P; ++p) prefetch_line(Q::chunk(ahead[p], group, c));
    }
    U w[P][kVectors];
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kVectors; ++v)
        w[p][v] = get_as<U>(Q::chunk(block[p], group, c) + v * static_cast<int>(sizeof(U)));
    // Two columns in the 16-bit halves of each row's 32 bits, as the rows are packed.
    const auto add = [&](int shift, std::uint32_t mask, std::int64_t k) {
      for (int m = 0; m < M; ++m) {
        const I xs = broadcast_int(get_as<std::int32_t>(x[m].q + 2 * k));
        for (int p = 0; p < P; ++p)
          for (int v = 0; v < kVectors; ++v) dot[m][p][v] += multiply_pairs(w[p][v] >> shift & mask, xs);
      }
    };
    const std::int64_t k = column + c * Q::kColumnsInChunk;
    if constexpr (Q::kInt4) {
      add(0, 0x000f000fu, k);
      add(8, 0x000f000fu, k + 2);
      add(4, 0x000f000fu, k + 4);
      add(12, 0x000f000fu, k + 6);
    } else {
      add(0, 0x00ff00ffu, k);
      add(8, 0x00ff00ffu, k + 2);
    }
  }
}
#endif

template <Arithmetic A, int M, int P, bool Prefetch>
inline void int_tile(const Rows& rows, const char* const* panels, const char* const* next, std::int64_t width, float* c,
                     std::int64_t c_stride) {
  using Q = Quant<A>;
  const std::int64_t padded = packed_width(width), blocks = padded / kQuantBlock;
  IntRow x[M];
  for (int m = 0; m < M; ++m) x[m] = int_row(rows[m], padded);
  V acc[M][P][kVectors] = {};
  for (std::int64_t b = 0; b < blocks; ++b) {
    constexpr std::int64_t kBlocksAhead = kAheadInt<Q::kInt4, M> / (P * Q::kBytes);
    const char *block[P], *ahead[P];
    for (int p = 0; p < P; ++p) {
      block[p] = panels[p] + b * Q::kBytes;
      ahead[p] = b + kBlocksAhead < blocks ? block[p] + kBlocksAhead * Q::kBytes
                                           : next[p] + (b + kBlocksAhead - blocks) * Q::kBytes;
      if constexpr (Prefetch) prefetch_line(ahead[p]);
    }
    for (int group = 0; group < 2; ++group) {
      const std::int64_t column = b * kQuantBlock + group * kQuantGroup;
      I dot[M][P][kVectors];
      group_dot<A, M, P, Prefetch>(x, padded, block, ahead, group, column, dot);
      for (int p = 0; p < P; ++p)
        for (int v = 0; v < kVectors; ++v) {
          const V scale = Q::scales(block[p], group, v);
          for (int m = 0; m < M; ++m)
            acc[m][p][v] = fma(to_float(dot[m][p][v]) * x[m].scale[column / kQuantGroup], scale, acc[m][p][v]);
        }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kVectors; ++v) store(c + m * c_stride + p * kPanel + v * kWidth, acc[m][p][v]);
}

template <Arithmetic A, int P>
void int_products(const Rows& x, std::int64_t rows, const char* const* w, const char* const* next, std::int64_t width,
                  float* c) {
  std::int64_t r = 0;
  const auto tiles = [&]<int M>() {
    constexpr int kAtOnce = panels_at_once<P, M, kIntSets>();
    for (; rows - r >= M; r += M)
      for (int p = 0; p < P; p += kAtOnce) {
        float* to = c + r * P * kPanel + p * kPanel;
        const char* const* then = after<P, kAtOnce>(p, w, next);
        if (r == 0)
          int_tile<A, M, kAtOnce, true>(x, w + p, then, width, to, P * kPanel);
        else
          int_tile<A, M, kAtOnce, false>(x.from(r), w + p, then, width, to, P * kPanel);
      }
  };
  if constexpr (kTileRowsInt > 2) {
    tiles.template operator()<4>();
    tiles.template operator()<3>();
  }
  if constexpr (kTileRowsInt > 1) tiles.template operator()<2>();
  tiles.template operator()<1>();
}

/// A panel's columns of one block as steps of kWide.
template <Arithmetic A>
inline void widen_block(const char* block, char* to) {
  using Q = Quant<A>;
  for (int group = 0; group < 2; ++group)
    for (int v = 0; v < kVectors; ++v) {
      const V scale = Q::scales(block, group, v);
      const auto column = [&](U w, int shift) {
        return (to_float((I)(w >> shift & (Q::kInt4 ? 15u : 255u))) - static_cast<float>(Q::kOffset)) * scale;
      };
      for (int c = 0; c < Q::kChunks; ++c) {
        const U w = get_as<U>(Q::chunk(block, group, c) + v * static_cast<int>(sizeof(U)));
        const int first = group * static_cast<int>(kQuantGroup) + c * Q::kColumnsInChunk;
        for (int half = 0; half < (Q::kInt4 ? 2 : 1); ++half)
          for (int j = 0; j < 4; j += 2) {
            const V even = column(w, 8 * j + 4 * half), odd = column(w, 8 * j + 8 + 4 * half);
            char* at = to + (first + 4 * half + j) * (kWide == Arithmetic::f32 ? 64 : 32);
#if defined(__AVX512BF16__)
            const auto order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
            const auto pairs = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
            __builtin_memcpy(at, &pairs, sizeof pairs);
#else
            store(reinterpret_cast<float*>(at) + v * kWidth, even);
            store(reinterpret_cast<float*>(at) + kPanel + v * kWidth, odd);
#endif
          }
      }
    }
}

/// Steps of a bf16 panel, two columns each, as columns of floats.
inline void widen_pairs(const char* w, std::int64_t steps, float* to) {
  for (std::int64_t k = 0; k < steps; ++k)
    for (int v = 0; v < kVectors; ++v) {
      const U pairs = get_as<U>(w + k * 64 + v * static_cast<int>(sizeof(U)));
      store(to + 2 * k * kPanel + v * kWidth, (V)(pairs << 16));
      store(to + (2 * k + 1) * kPanel + v * kWidth, (V)(pairs & 0xffff0000u));
    }
}

/// c[r][p*16..] = x[r] . w[p] over `width` columns, for `rows` rows and P panels; c is [rows][P*16]. `next`: the panels
/// that will be read after these, asked for in time. Every element is summed in the same order whatever `rows` and its
/// place.
template <Arithmetic A, int P>
void products(const Rows& x, std::int64_t rows, const char* const* w, const char* const* next, std::int64_t width,
              float* c) {
  if constexpr (A == Arithmetic::i8 || A == Arithmetic::i4) {
    int_products<A, P>(x, rows, w, next, width, c);
  } else {
    __builtin_memset(c, 0, static_cast<std::size_t>(rows * P * kPanel) * sizeof *c);
    if constexpr (A == Arithmetic::i8_wide || A == Arithmetic::i4_wide) {
      using Q = Quant<A>;
      using S = Step<kWide>;
      constexpr std::int64_t kBlocks = kWide == Arithmetic::f32 ? 2 : 4;  // 32 KiB of four panels
      constexpr std::int64_t kStepsInBlock = kQuantBlock / S::kColumns;
      alignas(64) char wide[P][kBlocks * kStepsInBlock * 64];
      const char* panels[P];
      for (int p = 0; p < P; ++p) panels[p] = wide[p];
      const std::int64_t blocks = (width + kQuantBlock - 1) / kQuantBlock;
      for (std::int64_t b = 0; b < blocks; b += kBlocks) {
        const std::int64_t count = blocks - b < kBlocks ? blocks - b : kBlocks;
        for (int p = 0; p < P; ++p)
          for (std::int64_t i = 0; i < count; ++i)
            widen_block<A>(w[p] + (b + i) * Q::kBytes, wide[p] + i * kStepsInBlock * 64);
        float_block<S, P>(x, rows, panels, panels, b * kStepsInBlock, count * kStepsInBlock, c);
      }
    } else if (A == Arithmetic::bf16 && kVectors > 1 && rows > kTileRows) {
      // Where a panel's sums fill several vectors there are none to spare for widening in the tile.
      constexpr std::int64_t kColumns = 128;  // 32 KiB of four panels
      alignas(64) float wide[P][kColumns * kPanel];
      const char* panels[P];
      for (int p = 0; p < P; ++p) panels[p] = reinterpret_cast<const char*>(wide[p]);
      for (std::int64_t k = 0; k < width; k += kColumns) {
        const std::int64_t count = width - k < kColumns ? width - k : kColumns;
        for (int p = 0; p < P; ++p) widen_pairs(w[p] + k / 2 * 64, (count + 1) / 2, wide[p]);
        float_block<Step<Arithmetic::f32>, P>(x, rows, panels, panels, k, count, c);
      }
    } else {
      using S = Step<A>;
      // 16 KiB of a panel: two of them and the rows that meet them stay in a first-level cache. Few rows need no block.
      const std::int64_t steps = (width + S::kColumns - 1) / S::kColumns, block = rows > kTileRows ? 256 : steps;
      for (std::int64_t k = 0; k < steps; k += block) {
        const std::int64_t count = steps - k < block ? steps - k : block;
        const char *at[P], *after[P];
        for (int p = 0; p < P; ++p) {
          at[p] = w[p] + k * 64;
          after[p] = k + count < steps ? at[p] + count * 64 : next[p];
        }
        float_block<S, P>(x, rows, at, after, k, count, c);
      }
    }
  }
}

/// Panels of `count` matrix rows from row `first` on, for products(); those beyond the matrix repeat the last one.
template <int P>
inline void panels_of(const void* matrix, std::int64_t bytes, std::int64_t rows, std::int64_t first, const char** w) {
  const std::int64_t last = (rows + kPanel - 1) / kPanel - 1;
  for (int p = 0; p < P; ++p) {
    const std::int64_t panel = first / kPanel + p;
    w[p] = static_cast<const char*>(matrix) + (panel < last ? panel : last) * bytes;
  }
}

/// Calls f(row, sums [16P]) for each of `rows` rows, with its products(); a chunk of rows at a time is on the stack.
template <Arithmetic A, int P, class F>
inline void for_each_product(const Rows& x, std::int64_t rows, const char* const* w, const char* const* next,
                             std::int64_t width, F&& f) {
  constexpr std::int64_t kRowChunk = 192;
  alignas(64) float c[kRowChunk * P * kPanel];
  for (std::int64_t r = 0; r < rows; r += kRowChunk) {
    const std::int64_t count = rows - r < kRowChunk ? rows - r : kRowChunk;
    products<A, P>(x.from(r), count, w, next, width, c);
    for (std::int64_t m = 0; m < count; ++m) f(r + m, c + m * P * kPanel);
  }
}

/// Calls f with `arithmetic` as a constant. bf16_dot must not be asked of an instruction set without it.
template <class F>
inline void with_arithmetic(Arithmetic arithmetic, F&& f) {
  switch (arithmetic) {
    case Arithmetic::f32:
      return f.template operator()<Arithmetic::f32>();
    case Arithmetic::bf16:
      return f.template operator()<Arithmetic::bf16>();
    case Arithmetic::bf16_dot:
#if defined(__AVX512BF16__)
      return f.template operator()<Arithmetic::bf16_dot>();
#else
      __builtin_trap();
#endif
    case Arithmetic::i8:
      return f.template operator()<Arithmetic::i8>();
    case Arithmetic::i4:
      return f.template operator()<Arithmetic::i4>();
    case Arithmetic::i8_wide:
      return f.template operator()<Arithmetic::i8_wide>();
    case Arithmetic::i4_wide:
      return f.template operator()<Arithmetic::i4_wide>();
  }
}

}  // namespace
}  // namespace dsv2::cpu::DSV2_ISA
