// Matrices spread over the lanes of a warp: ldmatrix, stmatrix, mma and wmma.
//
// Products are exact in f32 (f16, bf16, tf32, as 11 bits times 11) or in 32-bit integers, and are added to the f32
// accumulator one after the other in the order of k, each sum rounded to nearest. The hardware adds several products at
// once and truncates: results agree within a few ulps of the largest term, not bit by bit.
#include <algorithm>
#include <cmath>

#include "gpusim/handlers.h"
#include "gpusim/lanes.h"

namespace gpusim::DSV2_ISA {
namespace {

// ---- ldmatrix, stmatrix: 8x8 matrices of 16-bit elements, a row of 16 bytes at each of 8 lanes' addresses

/// The rows' host addresses: lane 8i + r gives row r of matrix i. Null where one is out of bounds.
bool matrix_rows(Warp& warp, const Instruction& in, Access access, bool instrumented,
                 std::uint64_t (&rows)[kWarpLanes]) {
  Addresses addresses;
  const int used = 8 * in.elements;
  addresses.mask = used == kWarpLanes ? kAllLanes : (1u << used) - 1;
  addresses.pattern = Pattern::scattered;
  std::uint32_t bad = 0;
  std::uint32_t misaligned = 0;
  for (int l = 0; l < used; ++l) {
    const std::uint64_t base =
        in.address_bytes == 8 ? lanes<std::uint64_t>(warp, in.a)[l] : lanes<std::uint32_t>(warp, in.a)[l];
    const std::uint64_t offset = (base + static_cast<std::uint64_t>(in.immediate)) & 0xffffffffu;
    addresses.at[l] = offset;
    bad |= static_cast<std::uint32_t>(offset < kSharedBase || offset + 16 > warp.block->shared_end) << l;
    misaligned |= static_cast<std::uint32_t>((offset & 15u) != 0) << l;
  }
  if (bad != 0) bad_shared_access(warp, in, bad, addresses.at, 16, access);
  if (bad == 0 && misaligned != 0) misaligned_access(warp, in, misaligned, addresses.at, 16);
  if ((bad | misaligned) != 0) return false;
  if (instrumented) observe_shared(warp, in, addresses, 16, access);
  const auto shared = reinterpret_cast<std::uint64_t>(warp.block->shared.data());
  for (int l = 0; l < used; ++l) rows[l] = shared + addresses.at[l];
  return true;
}

template <bool kInstrumented>
void load_matrix(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  std::uint64_t rows[kWarpLanes];
  if (!matrix_rows(warp, in, Access::read, kInstrumented, rows)) return;
  // All rows are read before any register is written: a register may hold the addresses.
  alignas(64) std::uint16_t matrix[4][8][8];
  for (int i = 0; i < in.elements; ++i) {
    for (int r = 0; r < 8; ++r) std::memcpy(matrix[i][r], reinterpret_cast<const void*>(rows[8 * i + r]), 16);
  }
  for (int i = 0; i < in.elements; ++i) {
    const auto& m = matrix[i];
    const bool transposed = in.mode != 0;
    alignas(64) std::uint32_t value[kWarpLanes];
    if (transposed) {
      for (int l = 0; l < kWarpLanes; ++l) {
        value[l] = m[l % 4 * 2][l / 4] | static_cast<std::uint32_t>(m[l % 4 * 2 + 1][l / 4]) << 16;
      }
    } else {
      std::memcpy(value, m, sizeof value);  // lane l holds the pair l % 4 of row l / 4
    }
    const std::uint32_t* from = value;
    write<std::uint32_t>(warp, warp.lists[in.list + i], [=](int l) { return from[l]; });
  }
}

template <bool kInstrumented>
void store_matrix(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  std::uint64_t rows[kWarpLanes];
  if (!matrix_rows(warp, in, Access::write, kInstrumented, rows)) return;
  for (int i = 0; i < in.elements; ++i) {
    const auto* value = lanes<std::uint32_t>(warp, warp.lists[in.list + i]);
    std::uint16_t m[8][8];
    for (int l = 0; l < kWarpLanes; ++l) {
      for (int half = 0; half < 2; ++half) {
        const auto bits = static_cast<std::uint16_t>(value[l] >> (16 * half));
        if (in.mode != 0) {
          m[l % 4 * 2 + half][l / 4] = bits;
        } else {
          m[l / 4][l % 4 * 2 + half] = bits;
        }
      }
    }
    for (int r = 0; r < 8; ++r) std::memcpy(reinterpret_cast<void*>(rows[8 * i + r]), m[r], 16);
  }
}

// ---- elements of A and B

struct Tf32 {};

/// How many elements a 32-bit register holds, what one is packed as, and its value.
template <class T>
struct Element;
template <>
struct Element<F16> {
  static constexpr int kPerRegister = 2;
  using Packed = std::uint16_t;
  using Value = float;
  static float value(Packed bits) { return from_f16(bits); }
};
template <>
struct Element<Bf16> {
  static constexpr int kPerRegister = 2;
  using Packed = std::uint16_t;
  using Value = float;
  static float value(Packed bits) { return from_bf16(bits); }
};
template <>
struct Element<Tf32> {
  static constexpr int kPerRegister = 1;
  using Packed = std::uint32_t;
  using Value = float;
  static float value(Packed bits) { return float_of(bits & 0xffffe000u); }
};
template <>
struct Element<std::int8_t> {
  static constexpr int kPerRegister = 4;
  using Packed = std::int8_t;
  using Value = std::int32_t;
  static std::int32_t value(Packed bits) { return bits; }
};
template <>
struct Element<std::uint8_t> {
  static constexpr int kPerRegister = 4;
  using Packed = std::uint8_t;
  using Value = std::int32_t;
  static std::int32_t value(Packed bits) { return bits; }
};

template <>
struct Element<double> {
  static constexpr int kPerRegister = 1;
  using Packed = double;
  using Value = double;
  static double value(double number) { return number; }
};

/// Slots of the operands, in the order of Instruction::list: A, B, C, D.
struct MatrixOperands {
  const std::int32_t* a;
  const std::int32_t* b;
  const std::int32_t* c;
  const std::int32_t* d;
};
MatrixOperands operands_of(const Warp& warp, const Instruction& in) {
  const std::int32_t* const a = warp.lists + in.list;
  const std::int32_t* const b = a + in.elements;
  const std::int32_t* const c = b + in.bytes;
  return {a, b, c, c + in.register_bytes};
}

// ---- mma: m16n8kK and m8n8k..; PTX ISA, "Matrix fragments for mma". A group of 4 lanes holds a row of A.

/// Accumulators: f32, packed f16, or s32. Lane l holds columns 2 (l % 4) and the next of row l / 4, and of row
/// l / 4 + 8: of each half of the rows, elements 2l and 2l + 1 counted row by row.
template <class V, bool kHalf>
void load_accumulator(Warp& warp, const std::int32_t* slots, V (&c)[16][8]) {
  for (int half = 0; half < 2; ++half) {
    V* const to = c[8 * half];
    if constexpr (kHalf) {
      const auto* packed = lanes<std::uint16_t>(warp, slots[half]);
      for (int at = 0; at < 64; ++at) to[at] = from_f16(packed[at]);
    } else {
      const auto* first = lanes<V>(warp, slots[2 * half]);
      const auto* second = lanes<V>(warp, slots[2 * half + 1]);
      for (int l = 0; l < kWarpLanes; ++l) {
        to[2 * l] = first[l];
        to[2 * l + 1] = second[l];
      }
    }
  }
}

template <class V, bool kHalf>
void store_accumulator(Warp& warp, const std::int32_t* slots, const V (&d)[16][8]) {
  for (int half = 0; half < 2; ++half) {
    const V* const from = d[8 * half];
    if constexpr (kHalf) {
      write<std::uint32_t>(warp, slots[half],
                           [=](int l) { return to_f16(from[2 * l]) | to_f16(from[2 * l + 1]) << 16; });
    } else {
      write<V>(warp, slots[2 * half], [=](int l) { return from[2 * l]; });
      write<V>(warp, slots[2 * half + 1], [=](int l) { return from[2 * l + 1]; });
    }
  }
}

/// The elements of a register in the order of the lanes: 8 rows (of A, or columns of B) of kChunk elements.
template <class T, class V>
void expand(Warp& warp, std::int32_t slot, V* out) {
  constexpr int kEach = Element<T>::kPerRegister;
  const auto* packed = lanes<typename Element<T>::Packed>(warp, slot);
  for (int at = 0; at < kWarpLanes * kEach; ++at) out[at] = Element<T>::value(packed[at]);
}

template <class A, class V, int kDepth>
void load_a(Warp& warp, const std::int32_t* slots, V (&a)[16][kDepth]) {
  constexpr int kChunk = 4 * Element<A>::kPerRegister;  // columns that the 4 lanes of a row hold in one register
  alignas(64) V part[8][kChunk];
  for (int i = 0; i < 2 * kDepth / kChunk; ++i) {
    expand<A>(warp, slots[i], part[0]);
    for (int r = 0; r < 8; ++r) std::memcpy(&a[8 * (i % 2) + r][kChunk * (i / 2)], part[r], sizeof part[r]);
  }
}

template <class B, class V, int kDepth>
void load_b(Warp& warp, const std::int32_t* slots, V (&b)[kDepth][8]) {
  constexpr int kChunk = 4 * Element<B>::kPerRegister;
  alignas(64) V part[8][kChunk];
  for (int i = 0; i < kDepth / kChunk; ++i) {
    expand<B>(warp, slots[i], part[0]);
    for (int k = 0; k < kChunk; ++k) {
      for (int n = 0; n < 8; ++n) b[kChunk * i + k][n] = part[n][k];
    }
  }
}

inline void multiply_add(float& sum, float a, float b) { sum = __builtin_fmaf(a, b, sum); }
inline void multiply_add(double& sum, double a, double b) { sum = __builtin_fma(a, b, sum); }
/// .satfinite clamps the sum; without it sums wrap.
inline void multiply_add(std::int32_t& sum, std::int32_t a, std::int32_t b) {
  sum = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum) + static_cast<std::uint32_t>(a * b));
}

/// d += a * b, the products of an element in the order of k.
template <class V, int kDepth>
void multiply(const V (&a)[16][kDepth], const V (&b)[kDepth][8], V (&d)[16][8]) {
#if defined(__FMA__)
  if constexpr (std::is_same_v<V, float>) {
    constexpr int kRows = 8;  // at once: as many sums in flight as hide an addition's latency
    for (int m = 0; m < 16; m += kRows) {
      __m256 sum[kRows];
      for (int r = 0; r < kRows; ++r) sum[r] = _mm256_load_ps(d[m + r]);
      for (int k = 0; k < kDepth; ++k) {
        const __m256 row = _mm256_load_ps(b[k]);
        for (int r = 0; r < kRows; ++r) sum[r] = _mm256_fmadd_ps(_mm256_set1_ps(a[m + r][k]), row, sum[r]);
      }
      for (int r = 0; r < kRows; ++r) _mm256_store_ps(d[m + r], sum[r]);
    }
    return;
  }
#endif
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < kDepth; ++k) {
      for (int n = 0; n < 8; ++n) multiply_add(d[m][n], a[m][k], b[k][n]);
    }
  }
}

template <class A, class B, int kDepth, bool kHalfC, bool kHalfD>
void mma(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  using V = typename Element<A>::Value;
  const MatrixOperands slots = operands_of(warp, in);
  alignas(64) V a[16][kDepth];
  alignas(64) V b[kDepth][8];
  alignas(64) V d[16][8];
  load_a<A, V, kDepth>(warp, slots.a, a);
  load_b<B, V, kDepth>(warp, slots.b, b);
  load_accumulator<V, kHalfC>(warp, slots.c, d);
  multiply(a, b, d);
  store_accumulator<V, kHalfD>(warp, slots.d, d);
}

/// Integer sums that do not fit become the nearest that do.
template <class A, class B, int kDepth>
void mma_saturated(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  const MatrixOperands slots = operands_of(warp, in);
  std::int32_t a[16][kDepth];
  std::int32_t b[kDepth][8];
  std::int32_t d[16][8];
  load_a<A, std::int32_t, kDepth>(warp, slots.a, a);
  load_b<B, std::int32_t, kDepth>(warp, slots.b, b);
  load_accumulator<std::int32_t, false>(warp, slots.c, d);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      std::int64_t sum = d[m][n];
      for (int k = 0; k < kDepth; ++k) sum += std::int64_t{a[m][k]} * b[k][n];
      d[m][n] = static_cast<std::int32_t>(std::clamp<std::int64_t>(sum, INT32_MIN, INT32_MAX));
    }
  }
  store_accumulator<std::int32_t, false>(warp, slots.d, d);
}

template <class A, class B, int kDepth>
void mma_integer(Warp& warp, const Instruction& in) {
  in.mode != 0 ? mma_saturated<A, B, kDepth>(warp, in) : mma<A, B, kDepth, false, false>(warp, in);
}

/// m8n8k4 of doubles: lane l holds A[l / 4][l % 4], B[l % 4][l / 4], C[l / 4][2 (l % 4) + {0, 1}].
void mma_f64(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  const MatrixOperands slots = operands_of(warp, in);
  const double* a = lanes<double>(warp, slots.a[0]);
  const double* b = lanes<double>(warp, slots.b[0]);
  double d[8][8];
  for (int j = 0; j < 2; ++j) {
    const double* c = lanes<double>(warp, slots.c[j]);
    for (int l = 0; l < kWarpLanes; ++l) d[l / 4][l % 4 * 2 + j] = c[l];
  }
  for (int m = 0; m < 8; ++m) {
    for (int n = 0; n < 8; ++n) {
      for (int k = 0; k < 4; ++k) multiply_add(d[m][n], a[4 * m + k], b[4 * n + k]);
    }
  }
  for (int j = 0; j < 2; ++j) {
    write<double>(warp, slots.d[j], [&](int l) { return d[l / 4][l % 4 * 2 + j]; });
  }
}

// ---- wmma: the layout of a fragment is the implementation's own. Here the matrix is counted row by row, and element
// `at` is number at / 32 of lane at % 32; fragments that have more room than their matrix leave it alone.

/// Type of an element in memory.
template <class T>
struct Stored {
  using Memory = typename Element<T>::Packed;
};
template <>
struct Stored<float> {
  using Memory = std::uint32_t;
};
template <>
struct Stored<std::int32_t> {
  using Memory = std::uint32_t;
};

/// Element `index` of a lane's fragment within its 32-bit registers.
template <class Memory>
Memory* packed_element(Warp& warp, const std::int32_t* slots, int lane, int index) {
  constexpr int kEach = sizeof(Memory) < 4 ? 4 / static_cast<int>(sizeof(Memory)) : 1;
  return lanes<Memory>(warp, slots[index / kEach]) + lane * kEach + index % kEach;
}

/// What a wmma load or store is told: where the matrix begins, and how far apart its rows (or columns) are.
struct MatrixPlace {
  std::uint64_t base = 0;
  std::uint64_t stride = 0;  ///< in elements
  bool shared = false;
};
MatrixPlace matrix_place(Warp& warp, const Instruction& in, std::uint64_t default_stride) {
  const int lane = std::countr_zero(warp.exec);
  MatrixPlace place;
  place.base = in.address_bytes == 8 ? lanes<std::uint64_t>(warp, in.a)[lane] : lanes<std::uint32_t>(warp, in.a)[lane];
  place.base += static_cast<std::uint64_t>(in.immediate);
  place.stride = in.b >= 0 ? lanes<std::uint32_t>(warp, in.b)[lane] : default_stride;
  place.shared = in.space == ptx::Space::shared || place.base >> kWindowShift == kSharedWindow >> kWindowShift;
  if (place.shared) place.base &= 0xffffffffu;
  return place;
}

/// Element `index` of every lane, with checks and counts: a request of 32 elements.
template <class T, int kRows, int kColumns, bool kColumnMajor, bool kLoads, bool kInstrumented>
void wmma_memory(Warp& warp, const Instruction& in) {
  using Memory = typename Stored<T>::Memory;
  constexpr auto kBytes = static_cast<int>(sizeof(Memory));
  constexpr Access kAccess = kLoads ? Access::read : Access::write;
  if (!gathered(warp, in)) return;
  const MatrixPlace place = matrix_place(warp, in, kColumnMajor ? kRows : kColumns);
  const std::int32_t* slots = warp.lists + in.list;
  const std::uint64_t begin = place.shared ? kSharedBase : warp.machine->arena_base;
  const std::uint64_t size = place.shared ? warp.block->shared_end - kSharedBase : DeviceMemory::kArenaBytes;
  const std::uint64_t host = place.shared ? reinterpret_cast<std::uint64_t>(warp.block->shared.data()) : 0;
  for (int i = 0; i < kRows * kColumns / kWarpLanes; ++i) {
    Addresses addresses;
    addresses.mask = kAllLanes;
    std::uint32_t bad = 0;
    for (int l = 0; l < kWarpLanes; ++l) {
      const auto at = static_cast<std::uint64_t>(i * kWarpLanes + l);
      const std::uint64_t row = at / kColumns;
      const std::uint64_t column = at % kColumns;
      const std::uint64_t element = kColumnMajor ? column * place.stride + row : row * place.stride + column;
      addresses.at[l] = place.base + element * sizeof(Memory);
      bad |= static_cast<std::uint32_t>(addresses.at[l] - begin + sizeof(Memory) > size) << l;
    }
    if (bad != 0) {
      place.shared ? bad_shared_access(warp, in, bad, addresses.at, kBytes, kAccess)
                   : bad_global_access(warp, in, bad, addresses.at, kBytes, kAccess);
      addresses.mask &= ~bad;
    }
    if constexpr (kInstrumented) {
      place.shared ? observe_shared(warp, in, addresses, kBytes, kAccess)
                   : observe_global(warp, in, addresses, kBytes, kAccess);
    }
    for_lanes(addresses.mask, [&](int l) {
      Memory* const element = packed_element<Memory>(warp, slots, l, i);
      void* const memory = reinterpret_cast<void*>(host + addresses.at[l]);
      kLoads ? std::memcpy(element, memory, sizeof(Memory)) : std::memcpy(memory, element, sizeof(Memory));
    });
  }
}

template <class T, class V>
void load_fragment(Warp& warp, const std::int32_t* slots, int elements, V* out) {
  constexpr int kEach = Element<T>::kPerRegister;
  for (int i = 0; i < elements / kWarpLanes; ++i) {
    const auto* packed = lanes<typename Element<T>::Packed>(warp, slots[i / kEach]) + i % kEach;
    for (int l = 0; l < kWarpLanes; ++l) out[i * kWarpLanes + l] = Element<T>::value(packed[l * kEach]);
  }
}

/// Accumulators in f16 are packed in pairs; others fill their registers.
template <class V, class C>
void load_sums(Warp& warp, const std::int32_t* slots, int elements, V* out) {
  for (int i = 0; i < elements / kWarpLanes; ++i) {
    for (int l = 0; l < kWarpLanes; ++l) {
      if constexpr (std::is_same_v<C, F16>) {
        out[i * kWarpLanes + l] = from_f16(*packed_element<std::uint16_t>(warp, slots, l, i));
      } else {
        out[i * kWarpLanes + l] = lanes<V>(warp, slots[i])[l];
      }
    }
  }
}
template <class V, class D>
void store_sums(Warp& warp, const std::int32_t* slots, int elements, const V* sums) {
  for (int i = 0; i < elements / kWarpLanes; ++i) {
    for (int l = 0; l < kWarpLanes; ++l) {
      if constexpr (std::is_same_v<D, F16>) {
        *packed_element<std::uint16_t>(warp, slots, l, i) =
            static_cast<std::uint16_t>(to_f16(sums[i * kWarpLanes + l]));
      } else {
        lanes<V>(warp, slots[i])[l] = sums[i * kWarpLanes + l];
      }
    }
  }
}

template <class T, class C, class D, int kM, int kN, int kK>
void wmma_multiply(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  using V = typename Element<T>::Value;
  const MatrixOperands slots = operands_of(warp, in);
  alignas(64) V a[kM * kK];
  alignas(64) V b[kK * kN];
  alignas(64) V d[kM * kN];
  load_fragment<T>(warp, slots.a, kM * kK, a);
  load_fragment<T>(warp, slots.b, kK * kN, b);
  load_sums<V, C>(warp, slots.c, kM * kN, d);
  if constexpr (std::is_same_v<V, std::int32_t>) {
    if (in.mode != 0) {  // .satfinite
      for (int at = 0; at < kM * kN; ++at) {
        std::int64_t sum = d[at];
        for (int k = 0; k < kK; ++k) sum += std::int64_t{a[at / kN * kK + k]} * b[k * kN + at % kN];
        d[at] = static_cast<std::int32_t>(std::clamp<std::int64_t>(sum, INT32_MIN, INT32_MAX));
      }
      return store_sums<V, D>(warp, slots.d, kM * kN, d);
    }
  }
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < kN; ++n) multiply_add(d[m * kN + n], a[m * kK + k], b[k * kN + n]);
    }
  }
  store_sums<V, D>(warp, slots.d, kM * kN, d);
}

// ---- the table

template <class A, int kDepth>
void add_float_mma(HandlerRegistry& registry, const char* head) {
  add_handler(registry, head, "", mma<A, A, kDepth, false, false>);
}

template <int kDepth>
void add_half_mma(HandlerRegistry& registry, const char* f32, const char* f16, const char* f16_c, const char* f16_d) {
  add_handler(registry, f32, "", mma<F16, F16, kDepth, false, false>);
  add_handler(registry, f16, "", mma<F16, F16, kDepth, true, true>);
  add_handler(registry, f16_c, "", mma<F16, F16, kDepth, true, false>);
  add_handler(registry, f16_d, "", mma<F16, F16, kDepth, false, true>);
}

template <int kDepth>
void add_integer_mma(HandlerRegistry& registry, const char* ss, const char* su, const char* us, const char* uu) {
  add_handler(registry, ss, "", mma_integer<std::int8_t, std::int8_t, kDepth>);
  add_handler(registry, su, "", mma_integer<std::int8_t, std::uint8_t, kDepth>);
  add_handler(registry, us, "", mma_integer<std::uint8_t, std::int8_t, kDepth>);
  add_handler(registry, uu, "", mma_integer<std::uint8_t, std::uint8_t, kDepth>);
}

template <class T, int kRows, int kColumns, bool kColumnMajor, bool kLoads>
void add_wmma_memory(HandlerRegistry& registry, const char* head, const char* type) {
  for (const char* space : {"global", "shared", "generic"}) {
    add_handler(registry, head, type, space, wmma_memory<T, kRows, kColumns, kColumnMajor, kLoads, false>,
                wmma_memory<T, kRows, kColumns, kColumnMajor, kLoads, true>);
  }
}

/// Loads of A and B of one shape. `shape`: "m16n16k16", as a literal, so that keys are joined by the compiler.
#define GPUSIM_WMMA_OPERANDS(shape, kM, kN, kK, type, T)                                \
  add_wmma_memory<T, kM, kK, false, true>(registry, "wmma.load.a." shape ".row", type); \
  add_wmma_memory<T, kM, kK, true, true>(registry, "wmma.load.a." shape ".col", type);  \
  add_wmma_memory<T, kK, kN, false, true>(registry, "wmma.load.b." shape ".row", type); \
  add_wmma_memory<T, kK, kN, true, true>(registry, "wmma.load.b." shape ".col", type)
#define GPUSIM_WMMA_SUMS(shape, kM, kN, type, T)                                          \
  add_wmma_memory<T, kM, kN, false, true>(registry, "wmma.load.c." shape ".row", type);   \
  add_wmma_memory<T, kM, kN, true, true>(registry, "wmma.load.c." shape ".col", type);    \
  add_wmma_memory<T, kM, kN, false, false>(registry, "wmma.store.d." shape ".row", type); \
  add_wmma_memory<T, kM, kN, true, false>(registry, "wmma.store.d." shape ".col", type)
#define GPUSIM_WMMA(shape, kM, kN, kK)                                                                         \
  GPUSIM_WMMA_OPERANDS(shape, kM, kN, kK, "f16", F16);                                                         \
  GPUSIM_WMMA_OPERANDS(shape, kM, kN, kK, "bf16", Bf16);                                                       \
  GPUSIM_WMMA_OPERANDS(shape, kM, kN, kK, "s8", std::int8_t);                                                  \
  GPUSIM_WMMA_OPERANDS(shape, kM, kN, kK, "u8", std::uint8_t);                                                 \
  GPUSIM_WMMA_SUMS(shape, kM, kN, "f32", float);                                                               \
  GPUSIM_WMMA_SUMS(shape, kM, kN, "f16", F16);                                                                 \
  GPUSIM_WMMA_SUMS(shape, kM, kN, "s32", std::int32_t);                                                        \
  add_handler(registry, "wmma.mma." shape ".f32.f16.f32", "", wmma_multiply<F16, float, float, kM, kN, kK>);   \
  add_handler(registry, "wmma.mma." shape ".f16.f16.f16", "", wmma_multiply<F16, F16, F16, kM, kN, kK>);       \
  add_handler(registry, "wmma.mma." shape ".f32.f16.f16", "", wmma_multiply<F16, F16, float, kM, kN, kK>);     \
  add_handler(registry, "wmma.mma." shape ".f16.f16.f32", "", wmma_multiply<F16, float, F16, kM, kN, kK>);     \
  add_handler(registry, "wmma.mma." shape ".f32.bf16.f32", "", wmma_multiply<Bf16, float, float, kM, kN, kK>); \
  add_handler(registry, "wmma.mma." shape ".s32.s8.s32", "",                                                   \
              wmma_multiply<std::int8_t, std::int32_t, std::int32_t, kM, kN, kK>);                             \
  add_handler(registry, "wmma.mma." shape ".s32.u8.s32", "",                                                   \
              wmma_multiply<std::uint8_t, std::int32_t, std::int32_t, kM, kN, kK>)

void register_wmma(HandlerRegistry& registry) {
  GPUSIM_WMMA("m16n16k16", 16, 16, 16);
  GPUSIM_WMMA("m32n8k16", 32, 8, 16);
  GPUSIM_WMMA("m8n32k16", 8, 32, 16);
  GPUSIM_WMMA_OPERANDS("m16n16k8", 16, 16, 8, "tf32", Tf32);
  GPUSIM_WMMA_SUMS("m16n16k8", 16, 16, "f32", float);
  GPUSIM_WMMA_OPERANDS("m8n8k4", 8, 8, 4, "f64", double);
  GPUSIM_WMMA_SUMS("m8n8k4", 8, 8, "f64", double);
  add_handler(registry, "wmma.mma.m8n8k4.f64.f64.f64", "", wmma_multiply<double, double, double, 8, 8, 4>);
  GPUSIM_WMMA_SUMS("m8n8k32", 8, 8, "s32", std::int32_t);  // their operands: tensor_seldom.cpp
  GPUSIM_WMMA_SUMS("m8n8k128", 8, 8, "s32", std::int32_t);
  add_handler(registry, "wmma.mma.m16n16k8.f32.tf32.f32", "", wmma_multiply<Tf32, float, float, 16, 16, 8>);
}

}  // namespace

void register_tensor(HandlerRegistry& registry) {
  for (const char* space : {"shared", "generic"}) {
    add_handler(registry, "ldmatrix", "", space, load_matrix<false>, load_matrix<true>);
    add_handler(registry, "stmatrix", "", space, store_matrix<false>, store_matrix<true>);
  }
  add_float_mma<Bf16, 8>(registry, "mma.m16n8k8.f32.bf16.bf16.f32");
  add_float_mma<Bf16, 16>(registry, "mma.m16n8k16.f32.bf16.bf16.f32");
  add_float_mma<Tf32, 4>(registry, "mma.m16n8k4.f32.tf32.tf32.f32");
  add_float_mma<Tf32, 8>(registry, "mma.m16n8k8.f32.tf32.tf32.f32");
  add_half_mma<8>(registry, "mma.m16n8k8.f32.f16.f16.f32", "mma.m16n8k8.f16.f16.f16.f16", "mma.m16n8k8.f32.f16.f16.f16",
                  "mma.m16n8k8.f16.f16.f16.f32");
  add_half_mma<16>(registry, "mma.m16n8k16.f32.f16.f16.f32", "mma.m16n8k16.f16.f16.f16.f16",
                   "mma.m16n8k16.f32.f16.f16.f16", "mma.m16n8k16.f16.f16.f16.f32");
  add_integer_mma<16>(registry, "mma.m16n8k16.s32.s8.s8.s32", "mma.m16n8k16.s32.s8.u8.s32",
                      "mma.m16n8k16.s32.u8.s8.s32", "mma.m16n8k16.s32.u8.u8.s32");
  add_integer_mma<32>(registry, "mma.m16n8k32.s32.s8.s8.s32", "mma.m16n8k32.s32.s8.u8.s32",
                      "mma.m16n8k32.s32.u8.s8.s32", "mma.m16n8k32.s32.u8.u8.s32");
  add_handler(registry, "mma.m8n8k4.f64.f64.f64.f64", "", mma_f64);
  register_wmma(registry);
}

}  // namespace gpusim::DSV2_ISA
