// A warp's 32 lanes as arrays, and the number formats of PTX: compiled once per instruction set, into its namespace.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "gpusim/interpreter.h"
#include "gpusim/machine.h"

#ifndef DSV2_ISA
#error "compiled per instruction set: see CMakeLists.txt"
#endif

namespace gpusim::DSV2_ISA {

inline constexpr std::uint32_t kAllLanes = 0xffffffffu;

/// Bit l of element l: what masks are tested with, in vectors.
struct LaneBits {
  alignas(64) std::uint32_t bit[kWarpLanes];
  constexpr LaneBits() : bit() {
    for (int l = 0; l < kWarpLanes; ++l) bit[l] = 1u << l;
  }
};
inline constexpr LaneBits kLaneBits;

/// The lanes of a slot. The register file is raw bytes: these files are compiled with -fno-strict-aliasing.
template <class T>
inline T* lanes(Warp& warp, std::int32_t slot) {
  return reinterpret_cast<T*>(warp.base + slot);
}

inline std::uint32_t predicate(Warp& warp, std::int32_t slot) { return *lanes<std::uint32_t>(warp, slot); }

inline void write_predicate(Warp& warp, std::int32_t slot, std::uint32_t value) {
  std::uint32_t& to = *lanes<std::uint32_t>(warp, slot);
  to = (to & ~warp.exec) | (value & warp.exec);
}

/// to[l] = from[l] for the lanes of `mask`.
template <class T>
inline void blend(T* to, const T* from, std::uint32_t mask) {
  for (int l = 0; l < kWarpLanes; ++l) to[l] = (mask & kLaneBits.bit[l]) != 0 ? from[l] : to[l];
}

/// Writes value(l) into each lane of a register that takes part.
template <class T, class Value>
inline void write(Warp& warp, std::int32_t slot, Value value) {
  alignas(64) T scratch[kWarpLanes];
  T* const to = lanes<T>(warp, slot);
  T* const out = warp.full ? to : scratch;
  // A result lies on its source's very slot or apart from it, so no lane reads what another wrote.
#pragma GCC ivdep
  for (int l = 0; l < kWarpLanes; ++l) out[l] = value(l);
  if (!warp.full) blend(to, scratch, warp.exec);
}

/// Bit l: whether flags[l] is not zero.
inline std::uint32_t to_mask(const std::uint32_t* flags) {
  std::uint32_t mask = 0;
#if defined(__AVX512F__)
  mask = static_cast<std::uint32_t>(_mm512_test_epi32_mask(_mm512_loadu_si512(flags), _mm512_set1_epi32(-1))) |
         static_cast<std::uint32_t>(_mm512_test_epi32_mask(_mm512_loadu_si512(flags + 16), _mm512_set1_epi32(-1)))
             << 16;
#elif defined(__AVX2__)
  for (int i = 0; i < 4; ++i) {
    const __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(flags + 8 * i));
    const __m256i zero = _mm256_cmpeq_epi32(part, _mm256_setzero_si256());
    const auto zeros = static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(zero)));
    mask |= (~zeros & 0xffu) << (8 * i);
  }
#else
  for (int l = 0; l < kWarpLanes; ++l) mask |= static_cast<std::uint32_t>(flags[l] != 0) << l;
#endif
  return mask;
}

/// lanes_gathered, decided here where a whole warp meets under a full mask.
inline bool gathered(Warp& warp, const Instruction& in) {
  if (warp.exec == kAllLanes && in.e >= warp.first_constant && *lanes<std::uint32_t>(warp, in.e) == kAllLanes)
    return true;
  return lanes_gathered(warp, in);
}

/// Visits the lanes of a mask, the lowest first.
template <class Visit>
inline void for_lanes(std::uint32_t mask, Visit visit) {
  for (; mask != 0; mask &= mask - 1) visit(std::countr_zero(mask));
}

// ---- number formats

inline constexpr std::uint32_t kNan32 = 0x7fffffffu;  ///< the NaN that PTX's float arithmetic returns

inline std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

inline float canonical(float value) { return value != value ? float_of(kNan32) : value; }
inline double canonical(double value) { return value; }

/// Subnormals to zero of the same sign.
inline float flush(float value) {
  return (bits_of(value) & 0x7f800000u) == 0 ? float_of(bits_of(value) & 0x80000000u) : value;
}
inline double flush(double value) { return value; }

inline float from_f16(std::uint32_t half) {
  const std::uint32_t magnitude = half & 0x7fffu;
  // The exponent's bias differs by 112: a multiplication, which is exact for subnormals too.
  std::uint32_t bits = bits_of(float_of(magnitude << 13) * 0x1p112f);
  bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return float_of(bits | (half & 0x8000u) << 16);
}

inline std::uint32_t to_f16(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: round to even at bit 13, then move the exponent's bias.
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Subnormal results: adding 0.5 lets the addition do the rounding.
  const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  std::uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= 0x47800000u ? 0x7c00u : result;  // 65536 and up: infinity; 65520 and up round to it
  const bool nan = magnitude > 0x7f800000u;
  return nan ? 0x7fffu : result | sign;
}

inline float from_bf16(std::uint32_t value) { return float_of(value << 16); }
inline std::uint32_t to_bf16(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded;
}

/// A sum that rounds once when it is narrowed further: its last bit is set where the exact value lies beside it.
inline float round_to_odd(float sum, float error) {
  const std::uint32_t bits = bits_of(sum);
  const std::uint32_t step = (bits_of(error) ^ bits) >> 31 != 0 ? bits - 1 : bits | 1u;
  const bool inexact = error != 0 && (bits & 1u) == 0 && (bits & 0x7f800000u) != 0x7f800000u;
  return inexact ? float_of(step) : sum;
}

/// a*b+c rounded once to f16. The product of two f16 is exact in f32.
inline float fma_f16(float a, float b, float c) {
  const float product = a * b;
  const float sum = product + c;
  const float back = sum - product;
  const float error = (product - (sum - back)) + (c - back);
  return round_to_odd(sum, error == error ? error : 0.0f);
}

/// A double, rounded to f32 such that rounding it to bf16 rounds once.
inline float to_odd_float(double value, double error) {
  std::uint64_t bits = std::bit_cast<std::uint64_t>(value);
  if (error != 0 && (bits & 1u) == 0) bits = ((error < 0) != (value < 0)) ? bits - 1 : bits | 1u;
  const double odd = std::bit_cast<double>(bits);
  const float narrow = static_cast<float>(odd);
  if (static_cast<double>(narrow) == odd || narrow != narrow || (bits_of(narrow) & 1u) != 0) return narrow;
  if ((bits_of(narrow) & 0x7fffffffu) == 0x7f800000u) return narrow;
  const bool too_large = (static_cast<double>(narrow) > odd) == (odd > 0);
  const std::uint32_t magnitude = bits_of(narrow);
  return float_of(too_large ? magnitude - 1 : magnitude + 1);
}

/// a*b+c rounded once to bf16.
inline float fma_bf16(float a, float b, float c) {
  const double product = static_cast<double>(a) * b;
  const double sum = product + c;
  const double back = sum - product;
  const double error = (product - (sum - back)) + (c - back);
  return to_odd_float(sum, error == error && sum - sum == 0 ? error : 0.0);
}

struct F16 {};
struct Bf16 {};
template <class T>
struct PairOf {};  ///< two of them in 32 bits, the first in the low half

/// How a lane of type T lies in its register, and the value that is computed with.
template <class T>
struct Lane {
  using Storage = T;
  using Value = T;
  static Value load(Storage bits) { return bits; }
  static Storage store(Value value) { return value; }
};
template <class T>
struct NarrowLane {
  using Storage = std::uint32_t;
  using Value = T;
  static Value load(Storage bits) { return static_cast<T>(bits); }
  static Storage store(Value value) { return static_cast<std::uint32_t>(static_cast<std::int32_t>(value)); }
};
template <>
struct Lane<std::int8_t> : NarrowLane<std::int8_t> {};
template <>
struct Lane<std::uint8_t> : NarrowLane<std::uint8_t> {};
template <>
struct Lane<std::int16_t> : NarrowLane<std::int16_t> {};
template <>
struct Lane<std::uint16_t> : NarrowLane<std::uint16_t> {};
template <>
struct Lane<F16> {
  using Storage = std::uint32_t;
  using Value = float;
  static float load(Storage bits) { return from_f16(bits & 0xffffu); }
  static Storage store(float value) { return to_f16(value); }
};
template <>
struct Lane<Bf16> {
  using Storage = std::uint32_t;
  using Value = float;
  static float load(Storage bits) { return from_bf16(bits & 0xffffu); }
  static Storage store(float value) { return to_bf16(value); }
};

}  // namespace gpusim::DSV2_ISA
