// Where element i of a row lies in its packed form.
#pragma once

#include "optimized/cpu/simd.h"
#include "optimized/cpu/types.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

template <Arithmetic A>
inline std::int64_t packed_index(std::int64_t i) {
  if constexpr (A == Arithmetic::bf16) {
    const std::int64_t in = i % (2 * kWidth);
    return i - in + (in % 2) * kWidth + in / 2;
  }
  return i;
}

inline void put(float* row, std::int64_t i, float x) { row[i] = x; }
inline void put(std::uint16_t* row, std::int64_t i, float x) { row[i] = narrow(x); }
inline float get(const float* row, std::int64_t i) { return row[i]; }
inline float get(const std::uint16_t* row, std::int64_t i) { return widen(row[i]); }

}  // namespace
}  // namespace dsv2::cpu::DSV2_ISA
