// How 32 columns of a row are packed, and looked at.
#pragma once

#include "optimized/cpu/panel_product.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

inline float get(const float* row, std::int64_t i) { return row[i]; }
inline float get(const std::uint16_t* row, std::int64_t i) { return widen(row[i]); }

/// What rows of an arithmetic hold.
enum class Packed : std::uint8_t { f32, bf16, integers };
template <Arithmetic A>
constexpr Packed packed_as() {
  constexpr Packed kWideRows = kWide == Arithmetic::f32 ? Packed::f32 : Packed::bf16;
  switch (A) {
    case Arithmetic::f32:
    case Arithmetic::bf16:
      return Packed::f32;
    case Arithmetic::bf16_dot:
      return Packed::bf16;
    case Arithmetic::i8:
    case Arithmetic::i4:
      return Packed::integers;
    case Arithmetic::i8_wide:
    case Arithmetic::i4_wide:
      return kWideRows;
  }
  return kWideRows;
}

inline constexpr float kLargestInteger = 127 * 128 + 63;  // 128 high + low, both in a byte

/// Packs x[0..31] as columns column..column+31 (a multiple of 32) of a row of `padded` columns.
template <Arithmetic A>
inline void pack_group(const float* x, char* row, std::int64_t padded, std::int64_t column) {
  if constexpr (packed_as<A>() == Packed::f32) {
    __builtin_memcpy(reinterpret_cast<float*>(row) + column, x, kQuantGroup * sizeof *x);
  } else if constexpr (packed_as<A>() == Packed::bf16) {
    auto* y = reinterpret_cast<std::uint16_t*>(row) + column;
    for (std::int64_t i = 0; i < kQuantGroup; ++i) y[i] = narrow(x[i]);
  } else {
    V top{}, check{};  // check: 0, NaN where an element is not finite
    for (std::int64_t i = 0; i < kQuantGroup; i += kWidth) {
      const V v = load(x + i);
      top = max(top, max(v, -v));
      check = check + v * 0.0f;
    }
    const float largest = max_lane(top);
    const bool some = largest > 0x1p-100f;
    const IntRow to = int_row(row, padded);
    const_cast<float*>(to.scale)[column / kQuantGroup] = (some ? largest / kLargestInteger : 0.0f) + sum(check);
    const float inverse = some ? kLargestInteger / largest : 0.0f;
    I total{};
    std::int32_t q[kQuantGroup];
    for (std::int64_t i = 0; i < kQuantGroup; i += kWidth) {
      constexpr float kMagic = 0x1.8p23f;  // adding it rounds to an integer, kept in the low bits
      const I rounded = (I)(load(x + i) * inverse + kMagic) - 0x4b400000;
      total += rounded;
      __builtin_memcpy(q + i, &rounded, sizeof rounded);
    }
    std::int32_t all = 0;
    for (int i = 0; i < kWidth; ++i) all += total[i];
    const_cast<std::int32_t*>(to.sum)[column / kQuantGroup] = all;
    auto* bytes = const_cast<char*>(to.q);
#if defined(__AVX512VNNI__)
    for (std::int64_t i = 0; i < kQuantGroup; ++i) {
      const std::int32_t high = (q[i] + 64) >> 7;
      bytes[column + i] = static_cast<char>(high);
      bytes[padded + column + i] = static_cast<char>(q[i] - 128 * high);
    }
#else
    constexpr int kOrder[4] = {0, 2, 1, 3};
    std::int16_t ordered[kQuantGroup];
    for (std::int64_t i = 0; i < kQuantGroup; ++i) ordered[i] = static_cast<std::int16_t>(q[i / 4 * 4 + kOrder[i % 4]]);
    __builtin_memcpy(bytes + 2 * column, ordered, sizeof ordered);
#endif
  }
}

/// Column `i` of a packed row.
template <Arithmetic A>
inline float unpack_column(const char* row, std::int64_t padded, std::int64_t i) {
  if constexpr (packed_as<A>() == Packed::f32) {
    return reinterpret_cast<const float*>(row)[i];
  } else if constexpr (packed_as<A>() == Packed::bf16) {
    return widen(reinterpret_cast<const std::uint16_t*>(row)[i]);
  } else {
    const IntRow from = int_row(row, padded);
#if defined(__AVX512VNNI__)
    const int q = 128 * static_cast<signed char>(from.q[i]) + static_cast<signed char>(from.q[padded + i]);
#else
    constexpr int kPlace[4] = {0, 2, 1, 3};
    const int q = get_as<std::int16_t>(from.q + 2 * (i / 4 * 4 + kPlace[i % 4]));
#endif
    return static_cast<float>(q) * from.scale[i / kQuantGroup];
  }
}

}  // namespace
}  // namespace dsv2::cpu::DSV2_ISA
