// The inner product tile of every matrix op: M packed rows against N matrix rows.
#pragma once

#include <cstddef>

#include "optimized/cpu/simd.h"
#include "optimized/cpu/types.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

// 24 accumulators of 32 registers, 12 of 16.
#if defined(__AVX512F__)
constexpr int kTileRows = 3, kTileCols = 8;
#else
constexpr int kTileRows = 3, kTileCols = 4;
#endif

/// Matrix rows that stay in L2 while all packed rows pass.
constexpr std::int64_t kGroup = 32;

/// Elements of one matrix kind: kStep of them are consumed at a time.
template <Arithmetic>
struct Dot;

template <>
struct Dot<Arithmetic::f32> {
  using Matrix = float;
  using Row = float;
  static constexpr int kStep = kWidth;
  template <int M, int N>
  static void step(const float* const* x, const float* const* w, std::int64_t k, V (&acc)[M][N]) {
    V xs[M];
    for (int m = 0; m < M; ++m) xs[m] = load(x[m] + k);
    for (int n = 0; n < N; ++n) {
      const V ws = load(w[n] + k);
      for (int m = 0; m < M; ++m) acc[m][n] = fma(xs[m], ws, acc[m][n]);
    }
  }
};

template <>
struct Dot<Arithmetic::bf16> {
  using Matrix = std::uint16_t;
  using Row = float;
  static constexpr int kStep = 2 * kWidth;
  template <int M, int N>
  static void step(const float* const* x, const std::uint16_t* const* w, std::int64_t k, V (&acc)[M][N]) {
    for (int odd = 0; odd < 2; ++odd) {
      V xs[M];
      for (int m = 0; m < M; ++m) xs[m] = load(x[m] + k + odd * kWidth);
      for (int n = 0; n < N; ++n) {
        U pairs;
        __builtin_memcpy(&pairs, w[n] + k, sizeof pairs);
        const V ws = (V)(odd ? pairs & 0xffff0000u : pairs << 16);
        for (int m = 0; m < M; ++m) acc[m][n] = fma(xs[m], ws, acc[m][n]);
      }
    }
  }
};

#if defined(__AVX512BF16__)
template <>
struct Dot<Arithmetic::bf16_dot> {
  using Matrix = std::uint16_t;
  using Row = std::uint16_t;
  static constexpr int kStep = 2 * kWidth;
  template <int M, int N>
  static void step(const std::uint16_t* const* x, const std::uint16_t* const* w, std::int64_t k, V (&acc)[M][N]) {
    __m512bh xs[M];
    for (int m = 0; m < M; ++m) __builtin_memcpy(&xs[m], x[m] + k, sizeof xs[m]);
    for (int n = 0; n < N; ++n) {
      __m512bh ws;
      __builtin_memcpy(&ws, w[n] + k, sizeof ws);
      for (int m = 0; m < M; ++m) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], xs[m], ws);
    }
  }
};
#endif

/// out[m][n] = x[m] . w[n] over `width` elements. x: packed rows; w: matrix rows, aligned to the element. Every element
/// of out is summed in the same order whatever M, N and its place. `ahead`: bytes from a matrix row to the one to
/// prefetch meanwhile; 0: none.
template <Arithmetic A, int M, int N, bool Prefetch>
inline void dot_tile(const typename Dot<A>::Row* const* x, const typename Dot<A>::Matrix* const* w, std::int64_t width,
                     std::ptrdiff_t ahead, float (*out)[N]) {
  using D = Dot<A>;
  V acc[M][N] = {};
  std::int64_t k = 0;
  for (; k + D::kStep <= width; k += D::kStep) {
    if constexpr (Prefetch)
      for (int n = 0; n < N; ++n) __builtin_prefetch(reinterpret_cast<const char*>(w[n] + k) + ahead, 0, 2);
    D::template step<M, N>(x, w, k, acc);
  }
  if (k < width) {
    typename D::Matrix tail[N][D::kStep] = {};
    const typename D::Matrix* tails[N];
    for (int n = 0; n < N; ++n) {
      __builtin_memcpy(tail[n], w[n] + k, static_cast<std::size_t>(width - k) * sizeof(typename D::Matrix));
      tails[n] = tail[n];
    }
    const typename D::Row* rest[M];
    for (int m = 0; m < M; ++m) rest[m] = x[m] + k;
    D::template step<M, N>(rest, tails, 0, acc);
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; n += 4) sum4(acc[m][n], acc[m][n + 1], acc[m][n + 2], acc[m][n + 3], out[m] + n);
}

/// Calls tile.operator()<M, Prefetch>(first row, group, ahead) for every group of `items` and all `rows`, kTileRows at
/// a time. The first pass over a group brings the next one from memory; few rows make few passes, so from closer by.
template <class Tile>
void for_each_tile(std::int64_t rows, Range items, std::int64_t near, Tile tile) {
  const std::int64_t whole = rows - rows % kTileRows;
  for (std::int64_t i = items.begin; i < items.end; i += kGroup) {
    const Range group{i, i + kGroup < items.end ? i + kGroup : items.end};
    if (rows == 1) tile.template operator()<1, true>(0, group, near);
    if (rows == 2) tile.template operator()<2, true>(0, group, near);
    if (rows >= kTileRows) tile.template operator()<kTileRows, true>(0, group, rows > kTileRows ? kGroup : near);
    for (std::int64_t r = kTileRows; r < whole; r += kTileRows) tile.template operator()<kTileRows, false>(r, group, 0);
    if (rows > kTileRows && rows - whole == 1) tile.template operator()<1, false>(whole, group, 0);
    if (rows > kTileRows && rows - whole == 2) tile.template operator()<2, false>(whole, group, 0);
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
  }
}

}  // namespace
}  // namespace dsv2::cpu::DSV2_ISA
