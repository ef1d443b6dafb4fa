// mma in the shapes and types that few programs use: 4-bit and binary numbers, fp8, f64, the 8x8 shapes, the four
// small products of Volta, and sparse A with its metadata. One general path: an element is found by its row and column.
//
// PTX ISA, "Matrix fragments for mma": a group of 4 lanes holds a row of A (a column of B), each as many neighbouring
// elements as a register has room for; registers go down by 8 rows first, then on by as many columns as the 4 lanes
// hold together. All shapes but m8n8k4 of f16 follow that rule.
#include <algorithm>
#include <cmath>

#include "gpusim/handlers.h"
#include "gpusim/lanes.h"

namespace gpusim::DSV2_ISA {
namespace {

// ---- elements: bits in a register, and the value

struct Tf32 {};
struct S4 {};
struct U4 {};
struct Bit {};
struct E4m3 {};
struct E5m2 {};

template <class T>
struct Element;
template <>
struct Element<F16> {
  static constexpr int kBits = 16;
  using Value = float;
  static float value(std::uint32_t bits) { return from_f16(bits); }
};
template <>
struct Element<Bf16> {
  static constexpr int kBits = 16;
  using Value = float;
  static float value(std::uint32_t bits) { return from_bf16(bits); }
};
template <>
struct Element<Tf32> {
  static constexpr int kBits = 32;
  using Value = float;
  static float value(std::uint32_t bits) { return float_of(bits & 0xffffe000u); }
};
/// A small float by its bits of exponent. Exponents of all ones are numbers in e4m3, but for the last fraction.
template <int kExponentBits, int kBias>
float small_float(std::uint32_t bits) {
  constexpr int kFraction = 7 - kExponentBits;
  const std::uint32_t magnitude = bits & 0x7fu;
  const auto exponent = static_cast<int>(magnitude >> kFraction);
  const std::uint32_t fraction = magnitude & ((1u << kFraction) - 1);
  float value = 0;
  if (kExponentBits == 5 && exponent == 31) {
    value = fraction == 0 ? HUGE_VALF : float_of(kNan32);
  } else if (kExponentBits == 4 && magnitude == 0x7fu) {
    value = float_of(kNan32);
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(fraction), 1 - kBias - kFraction);
  } else {
    value = std::ldexp(static_cast<float>(fraction | 1u << kFraction), exponent - kBias - kFraction);
  }
  return (bits & 0x80u) != 0 ? -value : value;
}
template <>
struct Element<E4m3> {
  static constexpr int kBits = 8;
  using Value = float;
  static float value(std::uint32_t bits) { return small_float<4, 7>(bits); }
};
template <>
struct Element<E5m2> {
  static constexpr int kBits = 8;
  using Value = float;
  static float value(std::uint32_t bits) { return small_float<5, 15>(bits); }
};
template <int kWidth, bool kIsSigned>
struct IntegerElement {
  static constexpr int kBits = kWidth;
  using Value = std::int32_t;
  static std::int32_t value(std::uint32_t bits) {
    const bool negative = kIsSigned && (bits >> (kWidth - 1) & 1u) != 0;
    return static_cast<std::int32_t>(bits) - (negative ? 1 << kWidth : 0);
  }
};
template <>
struct Element<std::int8_t> : IntegerElement<8, true> {};
template <>
struct Element<std::uint8_t> : IntegerElement<8, false> {};
template <>
struct Element<S4> : IntegerElement<4, true> {};
template <>
struct Element<U4> : IntegerElement<4, false> {};
template <>
struct Element<Bit> : IntegerElement<1, false> {};
template <>
struct Element<double> {
  static constexpr int kBits = 64;
  using Value = double;
};

/// Element `index` of a lane's fragment.
template <class T>
typename Element<T>::Value element(Warp& warp, const std::int32_t* slots, int lane, int index) {
  if constexpr (std::is_same_v<T, double>) {
    return lanes<double>(warp, slots[index])[lane];
  } else {
    constexpr int kBits = Element<T>::kBits;
    constexpr int kEach = 32 / kBits;
    const std::uint32_t word = lanes<std::uint32_t>(warp, slots[index / kEach])[lane];
    constexpr auto kMask = static_cast<std::uint32_t>((std::uint64_t{1} << kBits) - 1);
    return Element<T>::value(word >> (index % kEach * kBits) & kMask);
  }
}

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

template <class T>
inline constexpr int kEach = std::max(1, 32 / Element<T>::kBits);

/// A by rows, `kHalves` of 8 of them, and B by columns.
template <class T, int kHalves, int kDepth>
void load_a(Warp& warp, const std::int32_t* slots, typename Element<T>::Value (&a)[8 * kHalves][kDepth]) {
  constexpr int kChunk = 4 * kEach<T>;
  for (int row = 0; row < 8 * kHalves; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      const int lane = row % 8 * 4 + k % kChunk / kEach<T>;
      const int index = (k / kChunk * kHalves + row / 8) * kEach<T> + k % kEach<T>;
      a[row][k] = element<T>(warp, slots, lane, index);
    }
  }
}
template <class T, int kDepth>
void load_b(Warp& warp, const std::int32_t* slots, typename Element<T>::Value (&b)[8][kDepth]) {
  constexpr int kChunk = 4 * kEach<T>;
  for (int column = 0; column < 8; ++column) {
    for (int k = 0; k < kDepth; ++k) {
      const int lane = column * 4 + k % kChunk / kEach<T>;
      b[column][k] = element<T>(warp, slots, lane, k / kChunk * kEach<T> + k % kEach<T>);
    }
  }
}

/// Accumulators: lane l holds columns 2 (l % 4) and the next of rows l / 4, l / 4 + 8. `C` says how they are stored.
template <class C, int kRows, class V>
void load_sums(Warp& warp, const std::int32_t* slots, V (&sums)[kRows][8]) {
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < 8; ++column) {
      const int lane = row % 8 * 4 + column / 2;
      const int index = row / 8 * 2 + column % 2;
      if constexpr (std::is_same_v<C, F16>)
        sums[row][column] = element<F16>(warp, slots, lane, index);
      else
        sums[row][column] = lanes<C>(warp, slots[index])[lane];
    }
  }
}
template <class D, int kRows, class V>
void store_sums(Warp& warp, const std::int32_t* slots, const V (&sums)[kRows][8]) {
  for (int half = 0; half < kRows / 8; ++half) {
    const auto sum = [&](int lane, int j) { return sums[8 * half + lane / 4][lane % 4 * 2 + j]; };
    if constexpr (std::is_same_v<D, F16>) {
      write<std::uint32_t>(warp, slots[half], [&](int l) { return to_f16(sum(l, 0)) | to_f16(sum(l, 1)) << 16; });
    } else {
      for (int j = 0; j < 2; ++j) write<D>(warp, slots[2 * half + j], [&](int l) { return sum(l, j); });
    }
  }
}

/// How products are added up, in the order of k.
enum class Sum : std::uint8_t { wrap, saturate, bits_differ, bits_agree };
template <class V, int kDepth>
V dot(const V (&a)[kDepth], const V (&b)[kDepth], V sum, Sum how) {
  if constexpr (std::is_same_v<V, std::int32_t>) {
    std::int64_t total = sum;
    for (int k = 0; k < kDepth; ++k) {
      const std::int32_t product = how == Sum::bits_differ  ? a[k] ^ b[k]
                                   : how == Sum::bits_agree ? a[k] & b[k]
                                                            : a[k] * b[k];
      total += product;
    }
    if (how == Sum::saturate) total = std::clamp<std::int64_t>(total, INT32_MIN, INT32_MAX);
    return static_cast<std::int32_t>(total);
  } else {
    for (int k = 0; k < kDepth; ++k) sum = std::fma(a[k], b[k], sum);
    return sum;
  }
}

template <class A, class B, class C, class D, int kRows, int kDepth>
void mma(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  using V = typename Element<A>::Value;
  const MatrixOperands slots = operands_of(warp, in);
  V a[kRows][kDepth];
  V b[8][kDepth];
  V d[kRows][8];
  load_a<A, kRows / 8, kDepth>(warp, slots.a, a);
  load_b<B, kDepth>(warp, slots.b, b);
  load_sums<C, kRows>(warp, slots.c, d);
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < 8; ++column)
      d[row][column] = dot<V, kDepth>(a[row], b[column], d[row][column], static_cast<Sum>(in.mode));
  }
  store_sums<D, kRows>(warp, slots.d, d);
}

// ---- sparse A: of each group of columns half are stored, and two bits of metadata say where each stood

/// Columns of a group that a pair of 2-bit numbers describes, and how many neighbours each number moves.
template <class T>
inline constexpr int kGroup = Element<T>::kBits == 32  ? 2
                              : Element<T>::kBits == 4 ? 8
                                                       : 4;

/// The metadata of 32 bits that describes stored columns of `row`: 16-bit types have rows r and r + 8 in one word's
/// halves, narrower ones a word for each; the words go on along the columns from lane to lane of the group of 4, and
/// `selector` says where they start: the order that CUTLASS's reorder_meta makes (tools/util, host_reorder.h).
template <class T, int kDepth>
std::uint32_t metadata_of(Warp& warp, const Instruction& in, int row, int group) {
  const auto* words = lanes<std::uint32_t>(warp, in.c);
  const int first = row % 8 * 4;
  const auto selector = static_cast<int>(in.immediate);
  constexpr int kGroups = kDepth / kGroup<T>;  // of a row, 4 bits each
  if constexpr (Element<T>::kBits >= 16) {
    constexpr int kWords = std::max(1, kGroups / 4);
    const std::uint32_t word = words[first + selector * kWords + group / 4];
    return word >> (row / 8 * 16 + group % 4 * 4) & 15u;
  } else {
    constexpr int kWords = kGroups / 8 * 2;
    const std::uint32_t word = words[first + (kWords == 4 ? 0 : selector * kWords) + group / 8 * 2 + row / 8];
    return word >> (group % 8 * 4) & 15u;
  }
}

template <class A, class B, class C, class D, int kDepth>
void mma_sparse(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  using V = typename Element<A>::Value;
  const MatrixOperands slots = operands_of(warp, in);
  constexpr int kStored = kDepth / 2;
  V stored[16][kStored];
  V b[8][kDepth];
  V d[16][8];
  load_a<A, 2, kStored>(warp, slots.a, stored);
  load_b<B, kDepth>(warp, slots.b, b);
  load_sums<C, 16>(warp, slots.c, d);
  constexpr int kHalfGroup = kGroup<A> / 2;
  for (int row = 0; row < 16; ++row) {
    V a[kDepth] = {};
    for (int k = 0; k < kStored; ++k) {
      const int group = k / kHalfGroup;
      const std::uint32_t metadata = metadata_of<A, kDepth>(warp, in, row, group);
      const int in_group = k % kHalfGroup;
      int column = group * kGroup<A>;
      if constexpr (kGroup<A> == 2) {  // tf32: the number counts halves of an element
        column += static_cast<int>((metadata & 3u) / 2);
      } else {
        constexpr int kNeighbours = kGroup<A> / 4;
        column +=
            static_cast<int>(metadata >> (in_group / kNeighbours * 2) & 3u) * kNeighbours + in_group % kNeighbours;
      }
      a[column] = stored[row][k];
    }
    for (int column = 0; column < 8; ++column)
      d[row][column] = dot<V, kDepth>(a, b[column], d[row][column], static_cast<Sum>(in.mode));
  }
  store_sums<D, 16>(warp, slots.d, d);
}

// ---- m8n8k4 of f16: four products at once, each by 4 lanes and the 4 lanes 16 beyond

enum QuadLayout : std::uint8_t { kColumnsOfA = 1, kColumnsOfB = 2 };

/// Row and column of accumulator `i` of f32 in lane `lane` of the eight.
struct Place {
  int row, column;
};
Place f32_place(int lane, bool high, int i) {
  return {(lane & 1) + (i & 2) + (high ? 4 : 0), (i & 4) + (lane & 2) + (i & 1)};
}

template <bool kHalfC, bool kHalfD>
void mma_quads(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  const MatrixOperands slots = operands_of(warp, in);
  float result[kWarpLanes][8];
  for (int product = 0; product < 4; ++product) {
    float a[8][4];
    float b[4][8];
    float d[8][8];
    const auto visit = [&](auto each) {
      for (int l = 0; l < 8; ++l) each(4 * product + l % 4 + (l < 4 ? 0 : 16), l % 4, l >= 4);
    };
    visit([&](int lane, int l, bool high) {
      const int own = l + (high ? 4 : 0);
      for (int i = 0; i < 4; ++i) {
        const float x = element<F16>(warp, slots.a, lane, i);
        const float y = element<F16>(warp, slots.b, lane, i);
        if ((in.mode & kColumnsOfA) != 0)
          a[i + (high ? 4 : 0)][l] = x;
        else
          a[own][i] = x;
        if ((in.mode & kColumnsOfB) != 0)
          b[i][own] = y;
        else
          b[l][i + (high ? 4 : 0)] = y;
      }
      for (int i = 0; i < 8; ++i) {
        if constexpr (kHalfC) {
          d[own][i] = element<F16>(warp, slots.c, lane, i);
        } else {
          const Place at = f32_place(l, high, i);
          d[at.row][at.column] = lanes<float>(warp, slots.c[i])[lane];
        }
      }
    });
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 8; ++column) {
        for (int k = 0; k < 4; ++k) d[row][column] = std::fma(a[row][k], b[k][column], d[row][column]);
      }
    }
    visit([&](int lane, int l, bool high) {
      for (int i = 0; i < 8; ++i) {
        const Place at = kHalfD ? Place{l + (high ? 4 : 0), i} : f32_place(l, high, i);
        result[lane][i] = d[at.row][at.column];
      }
    });
  }
  if constexpr (kHalfD) {
    for (int i = 0; i < 4; ++i) {
      write<std::uint32_t>(warp, slots.d[i],
                           [&](int l) { return to_f16(result[l][2 * i]) | to_f16(result[l][2 * i + 1]) << 16; });
    }
  } else {
    for (int i = 0; i < 8; ++i) write<float>(warp, slots.d[i], [&](int l) { return result[l][i]; });
  }
}

// ---- wmma of numbers narrower than a byte, m8n8k32 and m8n8k128: A by rows and B by columns, 32 bits a lane

template <class T, bool kInstrumented>
void wmma_load_narrow(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  constexpr std::uint64_t kEachWord = 32 / Element<T>::kBits;
  const int leader = std::countr_zero(warp.exec);
  std::uint64_t base =
      in.address_bytes == 8 ? lanes<std::uint64_t>(warp, in.a)[leader] : lanes<std::uint32_t>(warp, in.a)[leader];
  base += static_cast<std::uint64_t>(in.immediate);
  const std::uint64_t stride = in.b >= 0 ? lanes<std::uint32_t>(warp, in.b)[leader] : 4 * kEachWord;
  const bool shared = in.space == ptx::Space::shared || base >> kWindowShift == kSharedWindow >> kWindowShift;
  if (shared) base &= 0xffffffffu;
  Addresses addresses;
  addresses.mask = kAllLanes;
  std::uint32_t bad = 0;
  const std::uint64_t begin = shared ? kSharedBase : warp.machine->arena_base;
  const std::uint64_t size = shared ? warp.block->shared_end - kSharedBase : DeviceMemory::kArenaBytes;
  for (int l = 0; l < kWarpLanes; ++l) {
    const auto row = static_cast<std::uint64_t>(l / 4);
    addresses.at[l] = base + row * stride * Element<T>::kBits / 8 + static_cast<std::uint64_t>(l % 4) * 4;
    bad |= static_cast<std::uint32_t>(addresses.at[l] - begin > size - 4) << l;
  }
  if (bad != 0) {
    shared ? bad_shared_access(warp, in, bad, addresses.at, 4, Access::read)
           : bad_global_access(warp, in, bad, addresses.at, 4, Access::read);
    addresses.mask &= ~bad;
  }
  if constexpr (kInstrumented) {
    shared ? observe_shared(warp, in, addresses, 4, Access::read)
           : observe_global(warp, in, addresses, 4, Access::read);
  }
  const std::uint64_t host = shared ? reinterpret_cast<std::uint64_t>(warp.block->shared.data()) : 0;
  auto* const to = lanes<std::uint32_t>(warp, warp.lists[in.list]);
  for_lanes(addresses.mask,
            [&](int l) { std::memcpy(to + l, reinterpret_cast<const void*>(host + addresses.at[l]), 4); });
}

/// Sums in tensor.cpp's order of wmma fragments: element `at`, row by row, is number at / 32 of lane at % 32.
template <class T, int kDepth>
void wmma_multiply_narrow(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  const MatrixOperands slots = operands_of(warp, in);
  std::int32_t a[8][kDepth];
  std::int32_t b[8][kDepth];
  std::int32_t d[64];
  load_a<T, 1, kDepth>(warp, slots.a, a);
  load_b<T, kDepth>(warp, slots.b, b);
  for (int at = 0; at < 64; ++at) {
    const std::int32_t c = lanes<std::int32_t>(warp, slots.c[at / kWarpLanes])[at % kWarpLanes];
    d[at] = dot<std::int32_t, kDepth>(a[at / 8], b[at % 8], c, static_cast<Sum>(in.mode));
  }
  for (int i = 0; i < 2; ++i) write<std::int32_t>(warp, slots.d[i], [&](int l) { return d[i * kWarpLanes + l]; });
}

// ---- the table

template <class A, class B, int kRows, int kDepth>
void add_integer(HandlerRegistry& registry, const char* shape, const char* types) {
  add_handler(registry, shape, types, mma<A, B, std::int32_t, std::int32_t, kRows, kDepth>);
}
template <int kRows, int kDepth>
void add_bytes(HandlerRegistry& registry, const char* shape) {
  add_integer<std::int8_t, std::int8_t, kRows, kDepth>(registry, shape, "s32.s8.s8.s32");
  add_integer<std::int8_t, std::uint8_t, kRows, kDepth>(registry, shape, "s32.s8.u8.s32");
  add_integer<std::uint8_t, std::int8_t, kRows, kDepth>(registry, shape, "s32.u8.s8.s32");
  add_integer<std::uint8_t, std::uint8_t, kRows, kDepth>(registry, shape, "s32.u8.u8.s32");
}
template <int kRows, int kDepth>
void add_nibbles(HandlerRegistry& registry, const char* shape) {
  add_integer<S4, S4, kRows, kDepth>(registry, shape, "s32.s4.s4.s32");
  add_integer<S4, U4, kRows, kDepth>(registry, shape, "s32.s4.u4.s32");
  add_integer<U4, S4, kRows, kDepth>(registry, shape, "s32.u4.s4.s32");
  add_integer<U4, U4, kRows, kDepth>(registry, shape, "s32.u4.u4.s32");
}
template <class A, class B, int kDepth>
void add_fp8(HandlerRegistry& registry, const char* shape, const char* f32, const char* f16) {
  add_handler(registry, shape, f32, mma<A, B, float, float, 16, kDepth>);
  add_handler(registry, shape, f16, mma<A, B, F16, F16, 16, kDepth>);
}
template <int kDepth>
void add_fp8_shape(HandlerRegistry& registry, const char* shape) {
  add_fp8<E4m3, E4m3, kDepth>(registry, shape, "f32.e4m3.e4m3.f32", "f16.e4m3.e4m3.f16");
  add_fp8<E4m3, E5m2, kDepth>(registry, shape, "f32.e4m3.e5m2.f32", "f16.e4m3.e5m2.f16");
  add_fp8<E5m2, E4m3, kDepth>(registry, shape, "f32.e5m2.e4m3.f32", "f16.e5m2.e4m3.f16");
  add_fp8<E5m2, E5m2, kDepth>(registry, shape, "f32.e5m2.e5m2.f32", "f16.e5m2.e5m2.f16");
}

template <class A, class B, int kDepth>
void add_sparse_integer(HandlerRegistry& registry, const char* shape, const char* types) {
  add_handler(registry, shape, types, mma_sparse<A, B, std::int32_t, std::int32_t, kDepth>);
}
template <int kDepth>
void add_sparse_halves(HandlerRegistry& registry, const char* shape) {
  add_handler(registry, shape, "f32.f16.f16.f32", mma_sparse<F16, F16, float, float, kDepth>);
  add_handler(registry, shape, "f16.f16.f16.f16", mma_sparse<F16, F16, F16, F16, kDepth>);
  add_handler(registry, shape, "f32.bf16.bf16.f32", mma_sparse<Bf16, Bf16, float, float, kDepth>);
}
template <int kDepth>
void add_sparse_bytes(HandlerRegistry& registry, const char* shape) {
  add_sparse_integer<std::int8_t, std::int8_t, kDepth>(registry, shape, "s32.s8.s8.s32");
  add_sparse_integer<std::int8_t, std::uint8_t, kDepth>(registry, shape, "s32.s8.u8.s32");
  add_sparse_integer<std::uint8_t, std::int8_t, kDepth>(registry, shape, "s32.u8.s8.s32");
  add_sparse_integer<std::uint8_t, std::uint8_t, kDepth>(registry, shape, "s32.u8.u8.s32");
}
template <int kDepth>
void add_sparse_nibbles(HandlerRegistry& registry, const char* shape) {
  add_sparse_integer<S4, S4, kDepth>(registry, shape, "s32.s4.s4.s32");
  add_sparse_integer<S4, U4, kDepth>(registry, shape, "s32.s4.u4.s32");
  add_sparse_integer<U4, S4, kDepth>(registry, shape, "s32.u4.s4.s32");
  add_sparse_integer<U4, U4, kDepth>(registry, shape, "s32.u4.u4.s32");
}
template <class A, class B>
void add_sparse_fp8(HandlerRegistry& registry, const char* types) {
  add_handler(registry, "mma.sp.m16n8k64", types, mma_sparse<A, B, float, float, 64>);
}

template <class T>
void add_narrow_loads(HandlerRegistry& registry, const char* a, const char* b, const char* type) {
  for (const char* space : {"global", "shared", "generic"}) {
    add_handler(registry, a, type, space, wmma_load_narrow<T, false>, wmma_load_narrow<T, true>);
    add_handler(registry, b, type, space, wmma_load_narrow<T, false>, wmma_load_narrow<T, true>);
  }
}

void register_dense(HandlerRegistry& registry) {
  add_bytes<8, 16>(registry, "mma.m8n8k16");
  add_nibbles<8, 32>(registry, "mma.m8n8k32");
  add_nibbles<16, 32>(registry, "mma.m16n8k32");
  add_nibbles<16, 64>(registry, "mma.m16n8k64");
  for (const char* types : {"s32.b1.b1.s32.and", "s32.b1.b1.s32.xor"}) {
    add_integer<Bit, Bit, 8, 128>(registry, "mma.m8n8k128", types);
    add_integer<Bit, Bit, 16, 128>(registry, "mma.m16n8k128", types);
    add_integer<Bit, Bit, 16, 256>(registry, "mma.m16n8k256", types);
  }
  add_fp8_shape<16>(registry, "mma.m16n8k16");
  add_fp8_shape<32>(registry, "mma.m16n8k32");
  add_handler(registry, "mma.m16n8k4", "f64.f64.f64.f64", mma<double, double, double, double, 16, 4>);
  add_handler(registry, "mma.m16n8k8", "f64.f64.f64.f64", mma<double, double, double, double, 16, 8>);
  add_handler(registry, "mma.m16n8k16", "f64.f64.f64.f64", mma<double, double, double, double, 16, 16>);
  add_handler(registry, "mma.m8n8k4", "f32.f16.f16.f32", mma_quads<false, false>);
  add_handler(registry, "mma.m8n8k4", "f16.f16.f16.f16", mma_quads<true, true>);
  add_handler(registry, "mma.m8n8k4", "f32.f16.f16.f16", mma_quads<true, false>);
  add_handler(registry, "mma.m8n8k4", "f16.f16.f16.f32", mma_quads<false, true>);
}

void register_sparse(HandlerRegistry& registry) {
  add_sparse_halves<16>(registry, "mma.sp.m16n8k16");
  add_sparse_halves<32>(registry, "mma.sp.m16n8k32");
  add_handler(registry, "mma.sp.m16n8k8", "f32.tf32.tf32.f32", mma_sparse<Tf32, Tf32, float, float, 8>);
  add_handler(registry, "mma.sp.m16n8k16", "f32.tf32.tf32.f32", mma_sparse<Tf32, Tf32, float, float, 16>);
  add_sparse_bytes<32>(registry, "mma.sp.m16n8k32");
  add_sparse_bytes<64>(registry, "mma.sp.m16n8k64");
  add_sparse_nibbles<64>(registry, "mma.sp.m16n8k64");
  add_sparse_nibbles<128>(registry, "mma.sp.m16n8k128");
  add_sparse_fp8<E4m3, E4m3>(registry, "f32.e4m3.e4m3.f32");
  add_sparse_fp8<E4m3, E5m2>(registry, "f32.e4m3.e5m2.f32");
  add_sparse_fp8<E5m2, E4m3>(registry, "f32.e5m2.e4m3.f32");
  add_sparse_fp8<E5m2, E5m2>(registry, "f32.e5m2.e5m2.f32");
}

void register_narrow_wmma(HandlerRegistry& registry) {
  add_narrow_loads<S4>(registry, "wmma.load.a.m8n8k32.row", "wmma.load.b.m8n8k32.col", "s4");
  add_narrow_loads<U4>(registry, "wmma.load.a.m8n8k32.row", "wmma.load.b.m8n8k32.col", "u4");
  add_narrow_loads<Bit>(registry, "wmma.load.a.m8n8k128.row", "wmma.load.b.m8n8k128.col", "b1");
  add_handler(registry, "wmma.mma.m8n8k32", "s32.s4.s32", wmma_multiply_narrow<S4, 32>);
  add_handler(registry, "wmma.mma.m8n8k32", "s32.u4.s32", wmma_multiply_narrow<U4, 32>);
  add_handler(registry, "wmma.mma.m8n8k128", "s32.b1.s32", wmma_multiply_narrow<Bit, 128>);
}

}  // namespace

void register_seldom_tensor(HandlerRegistry& registry) {
  register_dense(registry);
  register_sparse(registry);
  register_narrow_wmma(registry);
}

}  // namespace gpusim::DSV2_ISA
