// Matrices spread over the lanes of a warp: ldmatrix, stmatrix, mma and wmma.
//
// Products are exact in f32 (f16, bf16, tf32, as 11 bits times 11) or in 32-bit integers, and are added to the f32
// accumulator one after the other in the order of k, each sum rounded to nearest. The hardware adds several products at
// once and truncates: results agree within a few ulps of the largest term, not bit by bit.
#include <algorithm>
#include <cmath>

#include "gpusim/handlers.h"
#include "gpusim/lanes.h"
#include "gpusim/shared_watch.h"

namespace gpusim::DSV2_ISA {
namespace {

// ---- ldmatrix, stmatrix: 8x8 matrices of 16-bit elements, a row of 16 bytes at each of 8 lanes' addresses

/// The rows' offsets in shared memory: lane 8i + r gives row r of matrix i. False where one is out of bounds.
template <bool kInstrumented>
bool matrix_rows(Warp& warp, const Instruction& in, Access access, SharedOffsets& rows) {
  constexpr std::uint32_t kRowBytes = 16;
  const int used = 8 * in.elements;
  const std::uint32_t shared_end = static_cast<std::uint32_t>(warp.block->shared_end);
  rows.mask = used == kWarpLanes ? kAllLanes : (1u << used) - 1;
  rows.least = kAllLanes;
  rows.most = 0;
  std::uint32_t low = 0;
  for (int l = 0; l < kWarpLanes; ++l) {
    const int lane = l & (used - 1);
    const std::uint32_t base = in.address_bytes == 8
                                   ? static_cast<std::uint32_t>(lanes<std::uint64_t>(warp, in.a)[lane])
                                   : lanes<std::uint32_t>(warp, in.a)[lane];
    rows.at[l] = base + static_cast<std::uint32_t>(in.immediate);
    rows.least = rows.at[l] < rows.least ? rows.at[l] : rows.least;
    rows.most = rows.at[l] > rows.most ? rows.at[l] : rows.most;
    low |= rows.at[l];
  }
  const bool inside = rows.least >= kSharedBase && std::uint64_t{rows.most} + kRowBytes <= shared_end;
  const bool aligned = (low & (kRowBytes - 1)) == 0;
  if (inside && aligned && (!kInstrumented || is_plainly_right(warp, in, rows, kRowBytes, access))) return true;

  Addresses addresses;
  addresses.mask = rows.mask;
  for (int l = 0; l < kWarpLanes; ++l) addresses.at[l] = rows.at[l];
  std::uint32_t bad = 0;
  std::uint32_t misaligned = 0;
  for_lanes(rows.mask, [&](int l) {
    const std::uint64_t offset = rows.at[l];
    bad |= static_cast<std::uint32_t>(offset < kSharedBase || offset + kRowBytes > shared_end) << l;
    misaligned |= static_cast<std::uint32_t>((offset & (kRowBytes - 1)) != 0) << l;
  });
  if (bad != 0) bad_shared_access(warp, in, bad, addresses.at, kRowBytes, access);
  if (bad == 0 && misaligned != 0) misaligned_access(warp, in, misaligned, addresses.at, kRowBytes);
  if ((bad | misaligned) != 0) return false;
  observe_shared(warp, in, addresses, kRowBytes, access);
  return true;
}

template <bool kInstrumented>
void load_matrix(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  SharedOffsets rows;  // a copy: a register that is written may hold the addresses
  if (!matrix_rows<kInstrumented>(warp, in, Access::read, rows)) return;
  const std::byte* const shared = warp.block->shared.data();
  for (int i = 0; i < in.elements; ++i) {
    std::uint16_t m[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(m[r], shared + rows.at[8 * i + r], sizeof m[r]);
    alignas(64) std::uint32_t value[kWarpLanes];
    if (in.mode != 0) {  // transposed
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
  SharedOffsets rows;
  if (!matrix_rows<kInstrumented>(warp, in, Access::write, rows)) return;
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
    for (int r = 0; r < 8; ++r) std::memcpy(warp.block->shared.data() + rows.at[8 * i + r], m[r], sizeof m[r]);
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

/// Accumulators of integers. Lane l holds columns 2 (l % 4) and the next of row l / 4, and of row l / 4 + 8: of each
/// half of the rows, elements 2l and 2l + 1 counted row by row.
inline void load_accumulator(Warp& warp, const std::int32_t* slots, std::int32_t (&c)[16][8]) {
  for (int i = 0; i < 4; ++i) {
    const auto* from = lanes<std::int32_t>(warp, slots[i]);
    std::int32_t* const to = c[8 * (i / 2)] + i % 2;
    for (int l = 0; l < kWarpLanes; ++l) to[2 * l] = from[l];
  }
}

inline void store_accumulator(Warp& warp, const std::int32_t* slots, const std::int32_t (&d)[16][8]) {
  for (int i = 0; i < 4; ++i) {
    const std::int32_t* const from = d[8 * (i / 2)] + i % 2;
    write<std::int32_t>(warp, slots[i], [=](int l) { return from[2 * l]; });
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

// Floats are multiplied in the layout of the lanes: 4 lanes, 128 bits, hold a row of the accumulators, and its elements
// of A for the same 4 (or 8) of k, so that one element for the whole row is a shuffle.

/// The elements of a register: `out[p]` has the lanes' p-th.
template <class T>
void expand_parts(Warp& warp, std::int32_t slot, float (&out)[Element<T>::kPerRegister][kWarpLanes]) {
  constexpr int kEach = Element<T>::kPerRegister;
  const auto* packed = lanes<std::uint32_t>(warp, slot);
  for (int p = 0; p < kEach; ++p) {
    for (int l = 0; l < kWarpLanes; ++l)
      out[p][l] = Element<T>::value(static_cast<typename Element<T>::Packed>(packed[l] >> (32 / kEach * p)));
  }
}

/// B by k, its even columns first: what a row of an accumulator register is multiplied with.
template <class T, int kDepth>
void load_b_rows(Warp& warp, const std::int32_t* slots, float (&b)[kDepth][2][4]) {
  constexpr int kEach = Element<T>::kPerRegister;
  alignas(64) float parts[kEach][kWarpLanes];
  for (int i = 0; i < kDepth / (4 * kEach); ++i) {
    expand_parts<T>(warp, slots[i], parts);
    for (int p = 0; p < kEach; ++p) {
      for (int odd = 0; odd < 2; ++odd) {
        const float* const column = parts[p] + 4 * odd;  // lane 4n + q holds element q of column n
        const int k = 4 * kEach * i + p;
#if defined(__SSE2__)
        __m128 row[4];
        for (int n = 0; n < 4; ++n) row[n] = _mm_load_ps(column + 8 * n);
        _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
        for (int q = 0; q < 4; ++q) _mm_store_ps(b[k + kEach * q][odd], row[q]);
#else
        for (int q = 0; q < 4; ++q) {
          for (int n = 0; n < 4; ++n) b[k + kEach * q][odd][n] = column[8 * n + q];
        }
#endif
      }
    }
  }
}

/// d += a * b, the products of an element in the order of k. `a`: by half of the rows; `d`: by register.
template <int kChunks, int kEach>
void multiply_rows(const float (&a)[2][kChunks][kEach][kWarpLanes], const float (&b)[4 * kEach * kChunks][2][4],
                   float (&d)[4][kWarpLanes]) {
#if defined(__AVX512F__)
  __m512 sum[4][2];
  for (int i = 0; i < 4; ++i) {
    for (int g = 0; g < 2; ++g) sum[i][g] = _mm512_load_ps(d[i] + 16 * g);
  }
  for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
#pragma GCC unroll 2
      for (int p = 0; p < kEach; ++p) {
        const auto& row = b[4 * kEach * chunk + kEach * q + p];
        const __m512 even = _mm512_broadcast_f32x4(_mm_load_ps(row[0]));
        const __m512 odd = _mm512_broadcast_f32x4(_mm_load_ps(row[1]));
        for (int half = 0; half < 2; ++half) {
          for (int g = 0; g < 2; ++g) {
            const __m512 all = _mm512_load_ps(a[half][chunk][p] + 16 * g);
            const __m512 one = _mm512_permutevar_ps(all, _mm512_set1_epi32(q));
            sum[2 * half][g] = _mm512_fmadd_ps(one, even, sum[2 * half][g]);
            sum[2 * half + 1][g] = _mm512_fmadd_ps(one, odd, sum[2 * half + 1][g]);
          }
        }
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int g = 0; g < 2; ++g) _mm512_store_ps(d[i] + 16 * g, sum[i][g]);
  }
#elif defined(__FMA__)
  for (int half = 0; half < 2; ++half) {  // 8 sums in flight hide an addition's latency
    __m256 sum[2][4];
    for (int odd = 0; odd < 2; ++odd) {
      for (int g = 0; g < 4; ++g) sum[odd][g] = _mm256_load_ps(d[2 * half + odd] + 8 * g);
    }
    for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
#pragma GCC unroll 2
        for (int p = 0; p < kEach; ++p) {
          const auto& row = b[4 * kEach * chunk + kEach * q + p];
          const __m256 even = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(row[0]));
          const __m256 odd = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(row[1]));
          for (int g = 0; g < 4; ++g) {
            const __m256 all = _mm256_load_ps(a[half][chunk][p] + 8 * g);
            const __m256 one = _mm256_permutevar_ps(all, _mm256_set1_epi32(q));
            sum[0][g] = _mm256_fmadd_ps(one, even, sum[0][g]);
            sum[1][g] = _mm256_fmadd_ps(one, odd, sum[1][g]);
          }
        }
      }
    }
    for (int odd = 0; odd < 2; ++odd) {
      for (int g = 0; g < 4; ++g) _mm256_store_ps(d[2 * half + odd] + 8 * g, sum[odd][g]);
    }
  }
#else
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < 4 * kEach * kChunks; ++k) {
      const float* const elements = a[half][k / (4 * kEach)][k % kEach];
      for (int l = 0; l < kWarpLanes; ++l) {
        const float one = elements[l / 4 * 4 + k / kEach % 4];
        multiply_add(d[2 * half][l], one, b[k][0][l % 4]);
        multiply_add(d[2 * half + 1][l], one, b[k][1][l % 4]);
      }
    }
  }
#endif
}

template <class T, int kDepth, bool kHalfC, bool kHalfD>
void mma_float(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  constexpr int kEach = Element<T>::kPerRegister;
  constexpr int kChunks = kDepth / (4 * kEach);
  const MatrixOperands slots = operands_of(warp, in);
  alignas(64) float a[2][kChunks][kEach][kWarpLanes];
  alignas(64) float b[kDepth][2][4];
  alignas(64) float d[4][kWarpLanes];
  for (int i = 0; i < 2 * kChunks; ++i) expand_parts<T>(warp, slots.a[i], a[i % 2][i / 2]);
  load_b_rows<T, kDepth>(warp, slots.b, b);
  for (int i = 0; i < 4; ++i) {
    if constexpr (kHalfC) {
      const auto* c = lanes<std::uint32_t>(warp, slots.c[i / 2]);
      for (int l = 0; l < kWarpLanes; ++l) d[i][l] = from_f16(c[l] >> (16 * (i % 2)) & 0xffffu);
    } else {
      std::memcpy(d[i], lanes<float>(warp, slots.c[i]), sizeof d[i]);
    }
  }
  multiply_rows<kChunks, kEach>(a, b, d);
  if constexpr (kHalfD) {
    for (int half = 0; half < 2; ++half) {
      const auto* pair = d + 2 * half;
      write<std::uint32_t>(warp, slots.d[half], [=](int l) { return to_f16(pair[0][l]) | to_f16(pair[1][l]) << 16; });
    }
  } else {
    for (int i = 0; i < 4; ++i) {
      const float* const from = d[i];
      write<float>(warp, slots.d[i], [=](int l) { return from[l]; });
    }
  }
}

/// Integers. Saturated, sums that do not fit become the nearest that do; else they wrap.
template <class A, class B, int kDepth>
void mma_integer(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  const MatrixOperands slots = operands_of(warp, in);
  alignas(64) std::int32_t a[16][kDepth];
  alignas(64) std::int32_t b[kDepth][8];
  alignas(64) std::int32_t d[16][8];
  load_a<A, std::int32_t, kDepth>(warp, slots.a, a);
  load_b<B, std::int32_t, kDepth>(warp, slots.b, b);
  load_accumulator(warp, slots.c, d);
  for (int m = 0; m < 16; ++m) {
    if (in.mode == 0) {
      for (int k = 0; k < kDepth; ++k) {
        for (int n = 0; n < 8; ++n) multiply_add(d[m][n], a[m][k], b[k][n]);
      }
      continue;
    }
    for (int n = 0; n < 8; ++n) {
      std::int64_t sum = d[m][n];
      for (int k = 0; k < kDepth; ++k) sum += std::int64_t{a[m][k]} * b[k][n];
      d[m][n] = static_cast<std::int32_t>(std::clamp<std::int64_t>(sum, INT32_MIN, INT32_MAX));
    }
  }
  store_accumulator(warp, slots.d, d);
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

/// Whether `count` lines of `bytes` each, `step` apart, lie within memory, and nothing has to be looked at while they
/// are loaded or stored.
template <bool kInstrumented>
bool matrix_is_plain(const Warp& warp, const MatrixPlace& place, std::uint64_t count, std::uint64_t bytes,
                     std::uint64_t step) {
  const Machine& machine = *warp.machine;
  const std::uint64_t begin = place.shared ? kSharedBase : machine.arena_base;
  const std::uint64_t size = place.shared ? warp.block->shared_end - kSharedBase : DeviceMemory::kArenaBytes;
  const std::uint64_t span = (count - 1) * step + bytes;
  if (place.base - begin > size || span > size - (place.base - begin)) return false;
  if constexpr (kInstrumented) {
    const bool ordered = machine.checks.global_races && machine.touches == nullptr;
    if (place.shared || !machine.quick || ordered || machine.touched) return false;
    if (!machine.checks.any_global() || !machine.launch->memory->has_shadow()) return true;
    auto common = static_cast<std::uint8_t>(Byte::initialised);
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t first = place.base + i * step;
      for (std::uint64_t at = first; at < first + bytes; at = (at / DeviceMemory::kLine + 1) * DeviceMemory::kLine)
        common &= machine.launch->memory->line_state(at);
    }
    return common == static_cast<std::uint8_t>(Byte::initialised);
  }
  return true;
}

/// Between the registers of a fragment and a matrix in memory, a register of all lanes at a time.
template <class Memory, int kRows, int kColumns, bool kColumnMajor, bool kLoads>
void move_matrix(Warp& warp, const std::int32_t* slots, std::byte* matrix, std::uint64_t stride) {
  using Bits = std::make_unsigned_t<Memory>;
  constexpr int kEach = 4 / static_cast<int>(sizeof(Bits));
  const auto address = [=](int at) {
    const auto row = static_cast<std::uint64_t>(at / kColumns);
    const auto column = static_cast<std::uint64_t>(at % kColumns);
    return matrix + (kColumnMajor ? column * stride + row : row * stride + column) * sizeof(Bits);
  };
  for (int i = 0; i < kRows * kColumns / kWarpLanes / kEach; ++i) {
    auto* const packed = lanes<std::uint32_t>(warp, slots[i]);
    alignas(64) Bits elements[kEach][kWarpLanes];
    constexpr int kRun = kColumnMajor ? 1 : kColumns < kWarpLanes ? kColumns : kWarpLanes;  // side by side in memory
    if constexpr (!kLoads) {
      for (int e = 0; e < kEach; ++e) {
        for (int l = 0; l < kWarpLanes; ++l) elements[e][l] = static_cast<Bits>(packed[l] >> (32 / kEach * e));
      }
    }
    for (int e = 0; e < kEach; ++e) {
      for (int l = 0; l < kWarpLanes; l += kRun) {
        std::byte* const at = address((i * kEach + e) * kWarpLanes + l);
        kLoads ? std::memcpy(elements[e] + l, at, kRun * sizeof(Bits))
               : std::memcpy(at, elements[e] + l, kRun * sizeof(Bits));
      }
    }
    if constexpr (kLoads) {
      for (int l = 0; l < kWarpLanes; ++l) {
        std::uint32_t word = 0;
        for (int e = 0; e < kEach; ++e) word |= static_cast<std::uint32_t>(elements[e][l]) << (32 / kEach * e);
        packed[l] = word;
      }
    }
  }
}

/// Element `index` of every lane, with checks and counts: a request of 32 elements.
template <class T, int kRows, int kColumns, bool kColumnMajor, bool kLoads, bool kInstrumented>
void wmma_memory(Warp& warp, const Instruction& in) {
  using Memory = typename Stored<T>::Memory;
  constexpr auto kBytes = static_cast<int>(sizeof(Memory));
  constexpr Access kAccess = kLoads ? Access::read : Access::write;
  if (!gathered(warp, in)) return;
  // NOLINTNEXTLINE(bugprone-branch-clone): of square matrices they are one
  const MatrixPlace place = matrix_place(warp, in, kColumnMajor ? kRows : kColumns);
  const std::int32_t* slots = warp.lists + in.list;
  const std::uint64_t begin = place.shared ? kSharedBase : warp.machine->arena_base;
  const std::uint64_t size = place.shared ? warp.block->shared_end - kSharedBase : DeviceMemory::kArenaBytes;
  const std::uint64_t host = place.shared ? reinterpret_cast<std::uint64_t>(warp.block->shared.data()) : 0;
  if constexpr (kBytes <= 4) {
    constexpr int kLines = kColumnMajor ? kColumns : kRows;  // NOLINT(bugprone-branch-clone): the same
    constexpr int kLineElements = kRows * kColumns / kLines;
    if (matrix_is_plain<kInstrumented>(warp, place, kLines, kLineElements * sizeof(Memory),
                                       place.stride * sizeof(Memory))) {
      for (std::uint64_t i = 0; kInstrumented && warp.machine->touches != nullptr && i < kLines; ++i)
        note_touch(warp, place.base + i * place.stride * sizeof(Memory), kLineElements * sizeof(Memory), kAccess);
      auto* const matrix = reinterpret_cast<std::byte*>(host + place.base);
      return move_matrix<Memory, kRows, kColumns, kColumnMajor, kLoads>(warp, slots, matrix, place.stride);
    }
  }
  for (int i = 0; i < kRows * kColumns / kWarpLanes; ++i) {
    Addresses addresses;
    addresses.mask = kAllLanes;
    std::uint32_t bad = 0;
    for (int l = 0; l < kWarpLanes; ++l) {
      const std::uint64_t at = static_cast<std::uint64_t>(i) * kWarpLanes + static_cast<std::uint64_t>(l);
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

/// d += a * b, the products of an element in the order of k; several rows at once, to hide an addition's latency.
template <class V, int kM, int kN, int kK>
void multiply_matrices(const V* a, const V* b, V* d) {
#if defined(__FMA__)
  if constexpr (std::is_same_v<V, float>) {
    constexpr int kParts = kN / 8;
    constexpr int kBlock = 8 / kParts;
    for (int m = 0; m < kM; m += kBlock) {
      __m256 sum[kBlock][kParts];
      for (int r = 0; r < kBlock; ++r) {
        for (int p = 0; p < kParts; ++p) sum[r][p] = _mm256_load_ps(d + (m + r) * kN + 8 * p);
      }
      for (int k = 0; k < kK; ++k) {
        for (int r = 0; r < kBlock; ++r) {
          const __m256 one = _mm256_set1_ps(a[(m + r) * kK + k]);
          for (int p = 0; p < kParts; ++p)
            sum[r][p] = _mm256_fmadd_ps(one, _mm256_load_ps(b + k * kN + 8 * p), sum[r][p]);
        }
      }
      for (int r = 0; r < kBlock; ++r) {
        for (int p = 0; p < kParts; ++p) _mm256_store_ps(d + (m + r) * kN + 8 * p, sum[r][p]);
      }
    }
    return;
  }
#endif
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < kN; ++n) multiply_add(d[m * kN + n], a[m * kK + k], b[k * kN + n]);
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
  multiply_matrices<V, kM, kN, kK>(a, b, d);
  store_sums<V, D>(warp, slots.d, kM * kN, d);
}

// ---- the table

template <class A, int kDepth>
void add_float_mma(HandlerRegistry& registry, const char* head) {
  add_handler(registry, head, "", mma_float<A, kDepth, false, false>);
}

template <int kDepth>
void add_half_mma(HandlerRegistry& registry, const char* f32, const char* f16, const char* f16_c, const char* f16_d) {
  add_handler(registry, f32, "", mma_float<F16, kDepth, false, false>);
  add_handler(registry, f16, "", mma_float<F16, kDepth, true, true>);
  add_handler(registry, f16_c, "", mma_float<F16, kDepth, true, false>);
  add_handler(registry, f16_d, "", mma_float<F16, kDepth, false, true>);
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
