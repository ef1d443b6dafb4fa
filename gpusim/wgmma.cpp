// wgmma: each warp's 16 rows of a warpgroup's product, from operands in shared memory.
//
// As in tensor.cpp, products are exact and added to an f32 or s32 accumulator in the order of k, each sum rounded to
// nearest; the hardware adds several at once, of fp8 with fewer bits. Sums in f16 are rounded once an instruction.
//
// Accumulators stay where they are: register 4j + 2h + p holds, in lane 4r + q, row r + 8h and column 8j + 2q + p.
// So A is spread out once to lanes, and of B the four columns of each j and p lie side by side.
#include <algorithm>
#include <array>
#include <cstring>

#include "gpusim/handlers.h"
#include "gpusim/lanes.h"
#include "gpusim/wgmma.h"

namespace gpusim::DSV2_ISA {
namespace {

struct Tf32 {};
struct E4m3 {};
struct E5m2 {};

constexpr float from_fp8(std::uint32_t bits, int exponent_bits, int bias) {
  const int mantissa_bits = 7 - exponent_bits;
  const auto mantissa = static_cast<int>(bits & ((1u << mantissa_bits) - 1));
  const auto exponent = static_cast<int>(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
  const int shift = (exponent == 0 ? 1 : exponent) - bias - mantissa_bits;
  float value = static_cast<float>(exponent == 0 ? mantissa : mantissa | 1 << mantissa_bits);
  for (int i = 0; i < shift; ++i) value *= 2.0f;
  for (int i = 0; i > shift; --i) value *= 0.5f;
  if (exponent_bits == 5 && exponent == 31) {
    value = mantissa == 0 ? __builtin_inff() : __builtin_nanf("");
  } else if (exponent_bits == 4 && (bits & 0x7fu) == 0x7fu) {
    value = __builtin_nanf("");
  }
  return (bits & 0x80u) != 0 ? -value : value;
}
struct Fp8Values {
  std::array<float, 256> value;
  constexpr Fp8Values(int exponent_bits, int bias) : value() {
    for (std::uint32_t i = 0; i < 256; ++i) value[i] = from_fp8(i, exponent_bits, bias);
  }
};
constexpr Fp8Values kE4m3(4, 7);
constexpr Fp8Values kE5m2(5, 15);

/// What an element is packed as, and its value.
template <class T>
struct Element;
template <>
struct Element<F16> {
  using Packed = std::uint16_t;
  using Value = float;
  static float value(Packed bits) { return from_f16(bits); }
};
template <>
struct Element<Bf16> {
  using Packed = std::uint16_t;
  using Value = float;
  static float value(Packed bits) { return from_bf16(bits); }
};
template <>
struct Element<Tf32> {
  using Packed = std::uint32_t;
  using Value = float;
  static float value(Packed bits) { return float_of(bits & 0xffffe000u); }
};
template <>
struct Element<E4m3> {
  using Packed = std::uint8_t;
  using Value = float;
  static float value(Packed bits) { return kE4m3.value[bits]; }
};
template <>
struct Element<E5m2> {
  using Packed = std::uint8_t;
  using Value = float;
  static float value(Packed bits) { return kE5m2.value[bits]; }
};
template <>
struct Element<std::int8_t> {
  using Packed = std::int8_t;
  using Value = std::int32_t;
  static std::int32_t value(Packed bits) { return bits; }
};
template <>
struct Element<std::uint8_t> {
  using Packed = std::uint8_t;
  using Value = std::int32_t;
  static std::int32_t value(Packed bits) { return bits; }
};

template <class T>
constexpr int kDepth = static_cast<int>(kWgmmaDepthBytes / sizeof(typename Element<T>::Packed));
constexpr int kMostColumns = 256;
constexpr int kHalves = 2;    ///< of a warp's rows: r and r + 8
constexpr int kQuads = 4;     ///< columns 2q + p of a core matrix, of the same p
constexpr int kRowsEach = 8;  ///< of a half

/// Values of elements that lie side by side.
template <class T>
void convert(const typename Element<T>::Packed* packed, int count, typename Element<T>::Value* out) {
  for (int i = 0; i < count; ++i) out[i] = Element<T>::value(packed[i]);
}

/// Rows `first` and up of an operand, kCount of them, as [row][k].
template <class T, int kCount>
void read_rows(const std::byte* shared, const MatrixLayout& layout, bool transposed, std::uint32_t first,
               typename Element<T>::Value* out) {
  using Packed = typename Element<T>::Packed;
  constexpr int kEach = 16 / static_cast<int>(sizeof(Packed));
  constexpr int kTotal = kCount * kDepth<T>;
  // As they lie: 16 bytes of each row and chunk; of a transposed matrix, of each k and chunk of rows.
  alignas(64) std::byte bytes[kTotal * sizeof(Packed)];
  const std::uint32_t outer = transposed ? kDepth<T> : kCount;
  const std::uint32_t inner = transposed ? kCount / kEach : 2;
  const std::uint32_t first_row = transposed ? 0 : first;
  const std::uint32_t first_chunk = transposed ? first / kEach : 0;
  for (std::uint32_t row = 0; row < outer; ++row) {
    for (std::uint32_t chunk = 0; chunk < inner; ++chunk) {
      std::memcpy(bytes + 16 * (row * inner + chunk), shared + layout.chunk(first_row + row, first_chunk + chunk), 16);
    }
  }
  if (!transposed) return convert<T>(reinterpret_cast<const Packed*>(bytes), kTotal, out);
  alignas(64) typename Element<T>::Value values[kTotal];
  convert<T>(reinterpret_cast<const Packed*>(bytes), kTotal, values);
  for (int k = 0; k < kDepth<T>; ++k) {
    for (int row = 0; row < kCount; ++row) out[row * kDepth<T> + k] = values[k * kCount + row];
  }
}

/// A from registers: register 2c + h holds, of row r + 8h, the q-th pack of the c-th 16 bytes of K.
template <class T>
void read_registers(Warp& warp, const std::int32_t* slots, typename Element<T>::Value* out) {
  using Packed = typename Element<T>::Packed;
  constexpr int kEach = 4 / static_cast<int>(sizeof(Packed));
  for (int c = 0; c < 2; ++c) {
    for (int h = 0; h < kHalves; ++h) {
      const Packed* const packed = lanes<Packed>(warp, slots[2 * c + h]);
      for (int l = 0; l < kWarpLanes; ++l) {
        auto* const to = out + (l / kQuads + kRowsEach * h) * kDepth<T> + (c * kQuads + l % kQuads) * kEach;
        for (int i = 0; i < kEach; ++i) to[i] = Element<T>::value(packed[l * kEach + i]);
      }
    }
  }
}

/// A of the warp, spread to lanes: [k][half][lane].
template <class V, int kK>
using SpreadA = V[kK][kHalves][kWarpLanes];

template <class T, class V>
void load_a(Warp& warp, const Instruction& in, SpreadA<V, kDepth<T>>& spread) {
  alignas(64) V rows[kWgmmaRows * kDepth<T>];
  if (in.a >= 0) {
    const bool transposed = (in.mode & kWgmmaTransposeA) != 0;
    const MatrixLayout layout(*lanes<std::uint64_t>(warp, in.a), transposed);
    const auto first = static_cast<std::uint32_t>(warp.index % kWarpgroupWarps * kWgmmaRows);
    read_rows<T, kWgmmaRows>(warp.block->shared.data(), layout, transposed, first, rows);
  } else {
    read_registers<T>(warp, warp.lists + in.list + in.elements, rows);
  }
  const bool negate = (in.mode & kWgmmaNegate) != 0;
  for (int k = 0; k < kDepth<T>; ++k) {
    for (int row = 0; row < kWgmmaRows; ++row) {
      const V value = negate ? -rows[row * kDepth<T> + k] : rows[row * kDepth<T> + k];
      for (int q = 0; q < kQuads; ++q) spread[k][row / kRowsEach][row % kRowsEach * kQuads + q] = value;
    }
  }
}

/// The columns of one j, as [p][k][q].
template <class V, int kK>
using QuadsB = V[2][kK][kQuads];

template <class T, class V>
void load_b(const std::byte* shared, const MatrixLayout& layout, bool transposed, int j, QuadsB<V, kDepth<T>>& quads) {
  alignas(64) V rows[8 * kDepth<T>];
  read_rows<T, 8>(shared, layout, transposed, static_cast<std::uint32_t>(8 * j), rows);
  for (int p = 0; p < 2; ++p) {
#if defined(__SSE2__)
    if constexpr (std::is_same_v<V, float>) {
      for (int k = 0; k < kDepth<T>; k += 4) {
        __m128 q0 = _mm_load_ps(rows + (0 + p) * kDepth<T> + k);
        __m128 q1 = _mm_load_ps(rows + (2 + p) * kDepth<T> + k);
        __m128 q2 = _mm_load_ps(rows + (4 + p) * kDepth<T> + k);
        __m128 q3 = _mm_load_ps(rows + (6 + p) * kDepth<T> + k);
        _MM_TRANSPOSE4_PS(q0, q1, q2, q3);
        _mm_store_ps(quads[p][k], q0);
        _mm_store_ps(quads[p][k + 1], q1);
        _mm_store_ps(quads[p][k + 2], q2);
        _mm_store_ps(quads[p][k + 3], q3);
      }
      continue;
    }
#endif
    for (int k = 0; k < kDepth<T>; ++k) {
      for (int q = 0; q < kQuads; ++q) quads[p][k][q] = rows[(2 * q + p) * kDepth<T> + k];
    }
  }
}

/// sums[p][h][lane] += A B over k, for the columns of one j.
template <class V>
using Sums = V[2][kHalves][kWarpLanes];

template <int kK>
void multiply(const SpreadA<float, kK>& a, const QuadsB<float, kK>& b, Sums<float>& sums) {
#if defined(__AVX512F__)
  __m512 sum[2][kHalves][2];
  for (int p = 0; p < 2; ++p) {
    for (int i = 0; i < 4; ++i) sum[p][i / 2][i % 2] = _mm512_load_ps(sums[p][i / 2] + 16 * (i % 2));
  }
  for (int k = 0; k < kK; ++k) {
    for (int p = 0; p < 2; ++p) {
      const __m512 column = _mm512_broadcast_f32x4(_mm_load_ps(b[p][k]));
      for (int i = 0; i < 4; ++i) {
        sum[p][i / 2][i % 2] =
            _mm512_fmadd_ps(_mm512_load_ps(a[k][i / 2] + 16 * (i % 2)), column, sum[p][i / 2][i % 2]);
      }
    }
  }
  for (int p = 0; p < 2; ++p) {
    for (int i = 0; i < 4; ++i) _mm512_store_ps(sums[p][i / 2] + 16 * (i % 2), sum[p][i / 2][i % 2]);
  }
#elif defined(__FMA__)
  for (int p = 0; p < 2; ++p) {
    __m256 sum[kHalves][4];
    for (int i = 0; i < 8; ++i) sum[i / 4][i % 4] = _mm256_load_ps(sums[p][i / 4] + 8 * (i % 4));
    for (int k = 0; k < kK; ++k) {
      const __m256 column = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(b[p][k]));
      for (int i = 0; i < 8; ++i) {
        sum[i / 4][i % 4] = _mm256_fmadd_ps(_mm256_load_ps(a[k][i / 4] + 8 * (i % 4)), column, sum[i / 4][i % 4]);
      }
    }
    for (int i = 0; i < 8; ++i) _mm256_store_ps(sums[p][i / 4] + 8 * (i % 4), sum[i / 4][i % 4]);
  }
#else
  for (int p = 0; p < 2; ++p) {
    for (int k = 0; k < kK; ++k) {
      for (int h = 0; h < kHalves; ++h) {
        for (int l = 0; l < kWarpLanes; ++l) {
          sums[p][h][l] = __builtin_fmaf(a[k][h][l], b[p][k][l % kQuads], sums[p][h][l]);
        }
      }
    }
  }
#endif
}

template <int kK>
void multiply(const SpreadA<std::int32_t, kK>& a, const QuadsB<std::int32_t, kK>& b, Sums<std::int32_t>& sums) {
  for (int p = 0; p < 2; ++p) {
    for (int h = 0; h < kHalves; ++h) {
      for (int r = 0; r < kRowsEach; ++r) {
        std::uint32_t sum[kQuads];
        std::memcpy(sum, sums[p][h] + kQuads * r, sizeof sum);
        for (int k = 0; k < kK; ++k) {
          const std::int32_t value = a[k][h][kQuads * r];
          for (int q = 0; q < kQuads; ++q) sum[q] += static_cast<std::uint32_t>(value * b[p][k][q]);
        }
        std::memcpy(sums[p][h] + kQuads * r, sum, sizeof sum);
      }
    }
  }
}

/// The registers of one j: 4 of f32 or s32, or 2 of packed f16.
template <class V, bool kHalf>
void load_sums(Warp& warp, const std::int32_t* slots, int j, Sums<V>& sums) {
  for (int h = 0; h < kHalves; ++h) {
    if constexpr (kHalf) {
      const auto* packed = lanes<std::uint32_t>(warp, slots[2 * j + h]);
      for (int l = 0; l < kWarpLanes; ++l) {
        sums[0][h][l] = from_f16(packed[l] & 0xffffu);
        sums[1][h][l] = from_f16(packed[l] >> 16);
      }
    } else {
      for (int p = 0; p < 2; ++p) std::memcpy(sums[p][h], lanes<V>(warp, slots[4 * j + 2 * h + p]), sizeof sums[p][h]);
    }
  }
}
template <class V, bool kHalf>
void store_sums(Warp& warp, const std::int32_t* slots, int j, const Sums<V>& sums) {
  for (int h = 0; h < kHalves; ++h) {
    if constexpr (kHalf) {
      auto* packed = lanes<std::uint32_t>(warp, slots[2 * j + h]);
      for (int l = 0; l < kWarpLanes; ++l) packed[l] = to_f16(sums[0][h][l]) | to_f16(sums[1][h][l]) << 16;
    } else {
      for (int p = 0; p < 2; ++p) std::memcpy(lanes<V>(warp, slots[4 * j + 2 * h + p]), sums[p][h], sizeof sums[p][h]);
    }
  }
}

/// Sums that do not fit become the nearest that do: of 32 products alone, each sum does.
void add_saturated(Sums<std::int32_t>& sums, const Sums<std::int32_t>& products) {
  for (int p = 0; p < 2; ++p) {
    for (int h = 0; h < kHalves; ++h) {
      for (int l = 0; l < kWarpLanes; ++l) {
        const std::int64_t sum = std::int64_t{sums[p][h][l]} + products[p][h][l];
        sums[p][h][l] = static_cast<std::int32_t>(std::clamp<std::int64_t>(sum, INT32_MIN, INT32_MAX));
      }
    }
  }
}

template <class A, class B, bool kHalf>
void product(Warp& warp, const Instruction& in) {
  if (!begin_product(warp, in)) return;
  using V = typename Element<A>::Value;
  alignas(64) SpreadA<V, kDepth<A>> a;
  load_a<A, V>(warp, in, a);
  const bool transposed = (in.mode & kWgmmaTransposeB) != 0;
  const MatrixLayout layout(*lanes<std::uint64_t>(warp, in.b), transposed);
  const std::int32_t* const slots = warp.lists + in.list;
  const bool adds = predicate(warp, in.c) != 0;
  const bool saturates = (in.mode & kWgmmaSaturate) != 0;
  const std::byte* const shared = warp.block->shared.data();
  for (int j = 0; j < static_cast<int>(in.immediate) / 8; ++j) {
    alignas(64) QuadsB<V, kDepth<B>> b;
    load_b<B, V>(shared, layout, transposed, j, b);
    alignas(64) Sums<V> sums = {};
    if (adds && !saturates) load_sums<V, kHalf>(warp, slots, j, sums);
    multiply<kDepth<A>>(a, b, sums);
    if constexpr (std::is_same_v<V, std::int32_t>) {
      if (adds && saturates) {
        alignas(64) Sums<V> old;
        load_sums<V, kHalf>(warp, slots, j, old);
        add_saturated(old, sums);
        std::memcpy(&sums, &old, sizeof sums);
      }
    }
    store_sums<V, kHalf>(warp, slots, j, sums);
  }
}

}  // namespace

void register_wgmma(HandlerRegistry& registry) {
  add_handler(registry, "wgmma.mma.f32.bf16.bf16", "", product<Bf16, Bf16, false>);
  add_handler(registry, "wgmma.mma.f32.f16.f16", "", product<F16, F16, false>);
  add_handler(registry, "wgmma.mma.f16.f16.f16", "", product<F16, F16, true>);
  add_handler(registry, "wgmma.mma.f32.tf32.tf32", "", product<Tf32, Tf32, false>);
  add_handler(registry, "wgmma.mma.f32.e4m3.e4m3", "", product<E4m3, E4m3, false>);
  add_handler(registry, "wgmma.mma.f32.e4m3.e5m2", "", product<E4m3, E5m2, false>);
  add_handler(registry, "wgmma.mma.f32.e5m2.e4m3", "", product<E5m2, E4m3, false>);
  add_handler(registry, "wgmma.mma.f32.e5m2.e5m2", "", product<E5m2, E5m2, false>);
  add_handler(registry, "wgmma.mma.f16.e4m3.e4m3", "", product<E4m3, E4m3, true>);
  add_handler(registry, "wgmma.mma.f16.e4m3.e5m2", "", product<E4m3, E5m2, true>);
  add_handler(registry, "wgmma.mma.f16.e5m2.e4m3", "", product<E5m2, E4m3, true>);
  add_handler(registry, "wgmma.mma.f16.e5m2.e5m2", "", product<E5m2, E5m2, true>);
  add_handler(registry, "wgmma.mma.s32.s8.s8", "", product<std::int8_t, std::int8_t, false>);
  add_handler(registry, "wgmma.mma.s32.s8.u8", "", product<std::int8_t, std::uint8_t, false>);
  add_handler(registry, "wgmma.mma.s32.u8.s8", "", product<std::uint8_t, std::int8_t, false>);
  add_handler(registry, "wgmma.mma.s32.u8.u8", "", product<std::uint8_t, std::uint8_t, false>);
}

}  // namespace gpusim::DSV2_ISA
