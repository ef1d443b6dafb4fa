// Vectors of the instruction set that this file is compiled for: 16 floats (AVX-512), 8 (AVX2 + FMA) or 4 (portable,
// in the compiler's vector extension). Everything has internal linkage, and nothing from the standard library is
// called, so that no code of one instruction set is linked into another (ODR).
#pragma once

#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dsv2::cpu::DSV2_ISA {
namespace {

#if defined(__AVX512F__)
inline constexpr int kWidth = 16;
#elif defined(__AVX2__)
inline constexpr int kWidth = 8;
#else
inline constexpr int kWidth = 4;
#endif

using V = float __attribute__((vector_size(4 * kWidth)));
using U = std::uint32_t __attribute__((vector_size(4 * kWidth)));
using H = std::uint16_t __attribute__((vector_size(2 * kWidth)));
using B = std::int8_t __attribute__((vector_size(kWidth)));

/// Less zero, which the compiler may leave out; adding zero would turn -0 into 0.
inline V broadcast(float x) { return x - V{}; }
inline float widen(std::uint16_t bf16) { return __builtin_bit_cast(float, static_cast<std::uint32_t>(bf16) << 16); }

/// Round to nearest even, as to_bf16(); NaN is kept out by the callers.
inline std::uint16_t narrow(float x) {
  const auto u = __builtin_bit_cast(std::uint32_t, x);
  return static_cast<std::uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

inline V load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
/// Bits of bf16 as floats. The compiler's own conversion of 16 of them takes six instructions.
inline V widen(H h) {
#if defined(__AVX512F__)
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
  return (V)(__builtin_convertvector(h, U) << 16);
#endif
}
inline V load(const std::uint16_t* bf16) {
  H h;
  __builtin_memcpy(&h, bf16, sizeof h);
  return widen(h);
}
inline V load(const std::int8_t* p) {
  B b;
  __builtin_memcpy(&b, p, sizeof b);
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)b));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(__builtin_bit_cast(long long, b))));
#else
  return __builtin_convertvector(b, V);
#endif
}
/// The first n (less than kWidth) elements, then zeros.
inline V load(const float* p, std::int64_t n) {
  V v{};
  __builtin_memcpy(&v, p, static_cast<std::size_t>(n) * sizeof *p);
  return v;
}
inline V load(const std::uint16_t* bf16, std::int64_t n) {
  H h{};
  __builtin_memcpy(&h, bf16, static_cast<std::size_t>(n) * sizeof *bf16);
  return widen(h);
}
inline V load(const std::int8_t* p, std::int64_t n) {
  std::int8_t b[kWidth] = {};
  __builtin_memcpy(b, p, static_cast<std::size_t>(n));
  return load(b);
}
inline void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(float* p, V v, std::int64_t n) { __builtin_memcpy(p, &v, static_cast<std::size_t>(n) * sizeof *p); }

/// Asks for a line into the second-level cache: the first has too few buffers for all that memory can have on its way.
inline void prefetch_line(const void* p) { __builtin_prefetch(p, 0, 2); }

/// a * b + c, rounded once where the instruction set can.
inline V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline V max(V a, V b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  for (int i = 0; i < kWidth; ++i) a[i] = a[i] > b[i] ? a[i] : b[i];
  return a;
#endif
}

/// Sums of four vectors, each in the same order: lanes 4 apart from the bottom up last.
inline void sum4(V a, V b, V c, V d, float* out) {
#if defined(__AVX512F__)
  const V ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  const V cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const V s = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
  const __m256 h = _mm512_castps512_ps256(s) + _mm512_extractf32x8_ps(s, 1);
  _mm_storeu_ps(out, _mm256_castps256_ps128(h) + _mm256_extractf128_ps(h, 1));
#elif defined(__AVX2__)
  const V ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
  const V cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
  const V s = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
  _mm_storeu_ps(out, _mm256_castps256_ps128(s) + _mm256_extractf128_ps(s, 1));
#else
  const V v[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) out[i] = (v[i][0] + v[i][2]) + (v[i][1] + v[i][3]);
#endif
}
inline float sum(V v) {
  float out[4];
  sum4(v, V{}, V{}, V{}, out);
  return out[0];
}
inline float max_lane(V v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#endif
  float m = v[0];
  for (int i = 1; i < kWidth; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

/// e^x: Cephes' expf polynomial, below 2 ulp (cpu_test measures it); 0 below -87.33, finite above 88.37.
inline V exp(V x) {
  const V low = broadcast(-87.33f);
  const U positive = (U)(x >= low);
  x = max(low, broadcast(0) - max(broadcast(-88.37f), broadcast(0) - x));
  const V magic = broadcast(0x1.8p23f);  // adding it rounds to an integer, kept in the low bits
  const V shifted = fma(x, broadcast(1.44269504f), magic);
  const V n = shifted - magic;
  V r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  V p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  return (V)(((U)p + ((U)shifted << 23)) & positive);
}

}  // namespace
}  // namespace dsv2::cpu::DSV2_ISA
