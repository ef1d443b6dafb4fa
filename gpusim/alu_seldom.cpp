// Arithmetic that few programs use: video instructions, odd integer operations, f64 in directed roundings, pairs of
// integers and of floats. Lane by lane, by the definitions of the PTX ISA: nothing here is worth vectors.
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>

#include "gpusim/handlers.h"
#include "gpusim/lanes.h"
#include "gpusim/video.h"

namespace gpusim::DSV2_ISA {
namespace {

/// d[l] = op(lane) for the lanes that take part.
template <class T, class Op>
void each_lane(Warp& warp, const Instruction& in, Op op) {
  T* const d = lanes<T>(warp, in.d);
  for_lanes(warp.exec, [&](int l) { d[l] = op(l); });
}

template <class D, class A, D (*kOp)(A)>
void unary_of(Warp& warp, const Instruction& in) {
  const A* a = lanes<A>(warp, in.a);
  each_lane<D>(warp, in, [=](int l) { return kOp(a[l]); });
}
template <class D, class A, class B, D (*kOp)(A, B)>
void binary_of(Warp& warp, const Instruction& in) {
  const A* a = lanes<A>(warp, in.a);
  const B* b = lanes<B>(warp, in.b);
  each_lane<D>(warp, in, [=](int l) { return kOp(a[l], b[l]); });
}
template <class D, class A, class B, class C, D (*kOp)(A, B, C)>
void ternary_of(Warp& warp, const Instruction& in) {
  const A* a = lanes<A>(warp, in.a);
  const B* b = lanes<B>(warp, in.b);
  const C* c = lanes<C>(warp, in.c);
  each_lane<D>(warp, in, [=](int l) { return kOp(a[l], b[l], c[l]); });
}

// ---- integers

template <class T>
std::int64_t low24(T a) {
  if constexpr (std::is_signed_v<T>)
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) << 8) >> 8;
  else
    return static_cast<std::int64_t>(a & 0xffffffu);
}
/// Bits 31..0 or 47..16 of the 48-bit product.
template <class T, bool kHigh>
T multiply24(T a, T b) {
  const std::int64_t product = low24(a) * low24(b);
  return static_cast<T>(kHigh ? product >> 16 : product);
}
template <class T, bool kHigh>
T multiply_add24(T a, T b, T c) {
  return static_cast<T>(static_cast<std::uint32_t>(multiply24<T, kHigh>(a, b)) + static_cast<std::uint32_t>(c));
}
/// mad.hi.sat and mad24.hi.sat: s32 only.
std::int32_t clamp32(std::int64_t value) {
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(value, INT32_MIN, INT32_MAX));
}
std::int32_t multiply_add24_saturated(std::int32_t a, std::int32_t b, std::int32_t c) {
  return clamp32(std::int64_t{multiply24<std::int32_t, true>(a, b)} + c);
}
std::int32_t multiply_add_high_saturated(std::int32_t a, std::int32_t b, std::int32_t c) {
  return clamp32((std::int64_t{a} * b >> 32) + c);
}

/// Two 16-bit numbers of `a` times two bytes of `b`, the low or the high ones.
template <class A, class B, bool kHigh>
std::uint32_t dot_halves(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  if (kHigh) b >>= 16;
  for (int i = 0; i < 2; ++i) {
    c += static_cast<std::uint32_t>(static_cast<A>(a >> (16 * i)) * static_cast<B>(b >> (8 * i)));
  }
  return c;
}

std::uint32_t find_nth_set(std::uint32_t mask, std::uint32_t base, std::int32_t offset) {
  constexpr std::uint32_t kNone = 0xffffffffu;
  if (base > 31) return kNone;
  if (offset == 0) return (mask >> base & 1u) != 0 ? base : kNone;
  const int step = offset > 0 ? 1 : -1;
  std::int64_t left = std::abs(std::int64_t{offset});
  for (int at = static_cast<int>(base); at >= 0 && at < 32; at += step) {
    if ((mask >> at & 1u) != 0 && --left == 0) return static_cast<std::uint32_t>(at);
  }
  return kNone;
}

template <class T, bool kClamp>
T extend_sign(T a, std::uint32_t width) {
  const std::uint32_t bits = width & 31u;
  const auto value = static_cast<std::uint32_t>(a);
  if (kClamp && width > 31) return a;
  const std::uint32_t mask = ~0u << bits;
  const bool negative = std::is_signed_v<T> && bits != 0 && (value >> (bits - 1) & 1u) != 0;
  return static_cast<T>((value & ~mask) | (negative ? mask : 0u));
}

template <bool kClamp>
std::uint32_t bit_mask(std::uint32_t position, std::uint32_t width) {
  const std::uint32_t end = (position & 31u) + (width & 31u);
  const std::uint32_t from = kClamp && position > 31 ? 0u : ~0u << (position & 31u);
  const std::uint32_t beyond = end > 31 || (kClamp && width > 31) ? 0u : ~0u << end;
  return from & ~beyond;
}

/// The modes of prmt: bytes of {b, a}, chosen by the low bits of the selector.
enum class Bytes { forward, backward, replicate, edge_left, edge_right, halves };
template <Bytes kMode>
std::uint32_t permute(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t both = std::uint64_t{b} << 32 | a;
  const std::uint32_t s = selector & 3u;
  std::uint32_t result = 0;
  for (std::uint32_t i = 0; i < 4; ++i) {
    const std::uint32_t from = kMode == Bytes::forward      ? s + i
                               : kMode == Bytes::backward   ? (s - i) & 7u
                               : kMode == Bytes::replicate  ? s
                               : kMode == Bytes::edge_left  ? std::max(s, i)
                               : kMode == Bytes::edge_right ? std::min(s, i)
                                                            : (s & 1u) * 2 + (i & 1u);
    result |= static_cast<std::uint32_t>(both >> (8 * from) & 0xffu) << (8 * i);
  }
  return result;
}

/// lop3 with a predicate: p = (d != 0) combined with q.
void logic3_predicate(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const auto* b = lanes<std::uint32_t>(warp, in.b);
  const auto* c = lanes<std::uint32_t>(warp, in.c);
  std::uint32_t with = predicate(warp, in.e);
  if ((in.flags & kNegated) != 0) with = ~with;
  alignas(64) std::uint32_t value[kWarpLanes];
  std::uint32_t any = 0;
  for (int l = 0; l < kWarpLanes; ++l) {
    value[l] = 0;
    for (int term = 0; term < 8; ++term) {
      if ((in.immediate >> term & 1) == 0) continue;
      value[l] |=
          ((term & 4) != 0 ? a[l] : ~a[l]) & ((term & 2) != 0 ? b[l] : ~b[l]) & ((term & 1) != 0 ? c[l] : ~c[l]);
    }
    any |= static_cast<std::uint32_t>(value[l] != 0) << l;
  }
  if (in.d >= 0) each_lane<std::uint32_t>(warp, in, [&](int l) { return value[l]; });
  write_predicate(warp, in.d2, in.mode == 1 ? any & with : in.mode == 2 ? any | with : any ^ with);
}

/// Two integers of 16 bits.
template <class T, T (*kOp)(T, T)>
std::uint32_t on_pair(std::uint32_t a, std::uint32_t b) {
  const auto low = static_cast<std::uint16_t>(kOp(static_cast<T>(a), static_cast<T>(b)));
  const auto high = static_cast<std::uint16_t>(kOp(static_cast<T>(a >> 16), static_cast<T>(b >> 16)));
  return low | static_cast<std::uint32_t>(high) << 16;
}
template <class T>
T sum(T a, T b) {
  return static_cast<T>(a + b);
}
template <class T>
T smaller(T a, T b) {
  return std::min(a, b);
}
template <class T>
T larger(T a, T b) {
  return std::max(a, b);
}
template <class T>
T smaller_relu(T a, T b) {
  return std::max(std::min(a, b), T{0});
}
template <class T>
T larger_relu(T a, T b) {
  return std::max(std::max(a, b), T{0});
}

/// cvt.pack: two numbers, saturated to `mode` bits each, `b`'s the low ones; what is left of 32 bits is the low of `c`.
template <class S>
void convert_pack(Warp& warp, const Instruction& in) {
  const auto* a = lanes<S>(warp, in.a);
  const auto* b = lanes<S>(warp, in.b);
  const std::uint32_t* c = in.c >= 0 ? lanes<std::uint32_t>(warp, in.c) : nullptr;
  const int bits = in.mode;
  const bool is_signed = (in.flags & kSigned) != 0;
  const std::int64_t low = is_signed ? -(std::int64_t{1} << (bits - 1)) : 0;
  const std::int64_t high = (std::int64_t{1} << (is_signed ? bits - 1 : bits)) - 1;
  const std::uint32_t mask = (1u << bits) - 1;
  each_lane<std::uint32_t>(warp, in, [=](int l) {
    const auto part = [=](S value) {
      return static_cast<std::uint32_t>(std::clamp<std::int64_t>(value, low, high)) & mask;
    };
    const std::uint32_t pair = part(b[l]) | part(a[l]) << bits;
    return bits == 16 ? pair : pair | (c == nullptr ? 0u : c[l] << (2 * bits));
  });
}

// ---- floats

/// min and max of magnitudes with the sign of the product, and of three: as the two-operand forms, pairwise.
template <bool kMinimum>
float extreme(float a, float b) {
  if (a != a) return canonical(b);
  if (b != b) return a;
  if (a == b) return float_of(kMinimum ? bits_of(a) | bits_of(b) : bits_of(a) & bits_of(b));
  return (a < b) == kMinimum ? a : b;
}
template <bool kMinimum, bool kNan>
float extreme(float a, float b) {
  if (kNan && (a != a || b != b)) return float_of(kNan32);
  return extreme<kMinimum>(a, b);
}
template <bool kMinimum, bool kNan, bool kFlush>
float extreme_magnitude(float a, float b) {
  if (kFlush) a = flush(a), b = flush(b);
  const float result = extreme<kMinimum, kNan>(std::fabs(a), std::fabs(b));
  if (result != result) return float_of(kNan32);
  return float_of(bits_of(result) | ((bits_of(a) ^ bits_of(b)) & 0x80000000u));
}
template <bool kMinimum, bool kNan, bool kFlush>
float extreme_of_three(float a, float b, float c) {
  if (kFlush) a = flush(a), b = flush(b), c = flush(c);
  return extreme<kMinimum, kNan>(extreme<kMinimum, kNan>(a, b), c);
}
template <bool kMinimum, bool kNan, bool kFlush>
float extreme_magnitude_of_three(float a, float b, float c) {
  return extreme_of_three<kMinimum, kNan, kFlush>(std::fabs(a), std::fabs(b), std::fabs(c));
}
template <class H, bool kMinimum, bool kNan>
std::uint32_t half_magnitude(std::uint32_t a, std::uint32_t b) {
  return Lane<H>::store(extreme_magnitude<kMinimum, kNan, false>(Lane<H>::load(a), Lane<H>::load(b)));
}
template <std::uint32_t (*kOp)(std::uint32_t, std::uint32_t)>
std::uint32_t on_halves(std::uint32_t a, std::uint32_t b) {
  return kOp(a & 0xffffu, b & 0xffffu) | kOp(a >> 16, b >> 16) << 16;
}

/// The host's own rounding, set for the one operation: exact in every corner, and slow.
template <int kMode, class T, class Compute>
T rounded(Compute compute) {
  const int before = std::fegetround();
  std::fesetround(kMode);
  const volatile T result = compute();
  std::fesetround(before);
  return result;
}
enum class Exact { add, subtract, multiply, divide, reciprocal, root };
/// Volatile operands, so that nothing is computed before the mode is set.
template <int kMode, Exact kOp, class T>
T directed(T a, T b) {
  const volatile T x = a;
  const volatile T y = b;
  return canonical(rounded<kMode, T>([&]() -> T {
    if constexpr (kOp == Exact::add) return x + y;
    if constexpr (kOp == Exact::subtract) return x - y;
    if constexpr (kOp == Exact::multiply) return x * y;
    if constexpr (kOp == Exact::divide) return x / y;
    if constexpr (kOp == Exact::reciprocal) return T{1} / x;
    if constexpr (kOp == Exact::root) return std::sqrt(x);
  }));
}
template <int kMode, Exact kOp>
double directed_unary(double a) {
  return directed<kMode, kOp, double>(a, 0);
}
template <int kMode, class T>
T directed_fma(T a, T b, T c) {
  const volatile T x = a;
  const volatile T y = b;
  const volatile T z = c;
  return canonical(rounded<kMode, T>([&]() -> T { return std::fma(T{x}, T{y}, T{z}); }));
}

/// Two floats in 64 bits.
template <float (*kOp)(float, float), bool kFlush>
std::uint64_t on_floats(std::uint64_t a, std::uint64_t b) {
  std::uint64_t result = 0;
  for (int half = 0; half < 2; ++half) {
    const float x = float_of(static_cast<std::uint32_t>(a >> (32 * half)));
    const float y = float_of(static_cast<std::uint32_t>(b >> (32 * half)));
    const float value = kFlush ? flush(kOp(flush(x), flush(y))) : kOp(x, y);
    result |= std::uint64_t{bits_of(value)} << (32 * half);
  }
  return result;
}
template <float (*kOp)(float, float, float), bool kFlush>
std::uint64_t on_floats(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  std::uint64_t result = 0;
  for (int half = 0; half < 2; ++half) {
    const float x = float_of(static_cast<std::uint32_t>(a >> (32 * half)));
    const float y = float_of(static_cast<std::uint32_t>(b >> (32 * half)));
    const float z = float_of(static_cast<std::uint32_t>(c >> (32 * half)));
    const float value = kFlush ? flush(kOp(flush(x), flush(y), flush(z))) : kOp(x, y, z);
    result |= std::uint64_t{bits_of(value)} << (32 * half);
  }
  return result;
}

/// Tests of a double by the bits of its magnitude.
inline constexpr std::uint64_t kInfinity64 = 0x7ff0000000000000u;
inline constexpr std::uint64_t kNormal64 = 0x0010000000000000u;
bool is_finite64(std::uint64_t m) { return m < kInfinity64; }
bool is_infinite64(std::uint64_t m) { return m == kInfinity64; }
bool is_number64(std::uint64_t m) { return m <= kInfinity64; }
bool is_nan64(std::uint64_t m) { return m > kInfinity64; }
bool is_normal64(std::uint64_t m) { return m >= kNormal64 && m < kInfinity64; }
bool is_subnormal64(std::uint64_t m) { return m != 0 && m < kNormal64; }
template <bool (*kTest)(std::uint64_t)>
void test_double(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint64_t>(warp, in.a);
  std::uint32_t mask = 0;
  for (int l = 0; l < kWarpLanes; ++l) mask |= static_cast<std::uint32_t>(kTest(a[l] & ~(std::uint64_t{1} << 63))) << l;
  write_predicate(warp, in.d, mask);
}

/// f16 with subnormals as zeros.
float flush_half(float value) { return std::fabs(value) < 0x1p-14f ? std::copysign(0.0f, value) : value; }
enum class HalfOp { add, subtract, multiply, minimum, maximum };
template <HalfOp kOp>
std::uint32_t flushed_half(std::uint32_t a, std::uint32_t b) {
  const float x = flush_half(from_f16(a & 0xffffu));
  const float y = flush_half(from_f16(b & 0xffffu));
  const float value = kOp == HalfOp::add        ? x + y
                      : kOp == HalfOp::subtract ? x - y
                      : kOp == HalfOp::multiply ? x * y
                                                : extreme<kOp == HalfOp::minimum>(x, y);
  return to_f16(flush_half(from_f16(to_f16(value))));
}
std::uint32_t flushed_half_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  const auto load = [](std::uint32_t bits) { return flush_half(from_f16(bits & 0xffffu)); };
  return to_f16(flush_half(from_f16(to_f16(fma_f16(load(a), load(b), load(c))))));
}
std::uint32_t flushed_halves_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return flushed_half_fma(a, b, c) | flushed_half_fma(a >> 16, b >> 16, c >> 16) << 16;
}

// ---- video instructions

void video(Warp& warp, const Instruction& in) {
  const VideoOperation operation = unpack_video(in.immediate);
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const auto* b = lanes<std::uint32_t>(warp, in.b);
  const std::uint32_t* c = in.c >= 0 ? lanes<std::uint32_t>(warp, in.c) : nullptr;
  each_lane<std::uint32_t>(warp, in, [&](int l) { return run_video(operation, a[l], b[l], c == nullptr ? 0u : c[l]); });
}

// ---- the table

void register_odd_integers(HandlerRegistry& registry) {
  using I = std::int32_t;
  using U = std::uint32_t;
  add_handler(registry, "mul24.lo", "s32", binary_of<I, I, I, multiply24<I, false>>);
  add_handler(registry, "mul24.lo", "u32", binary_of<U, U, U, multiply24<U, false>>);
  add_handler(registry, "mul24.hi", "s32", binary_of<I, I, I, multiply24<I, true>>);
  add_handler(registry, "mul24.hi", "u32", binary_of<U, U, U, multiply24<U, true>>);
  add_handler(registry, "mad24.lo", "s32", ternary_of<I, I, I, I, multiply_add24<I, false>>);
  add_handler(registry, "mad24.lo", "u32", ternary_of<U, U, U, U, multiply_add24<U, false>>);
  add_handler(registry, "mad24.hi", "s32", ternary_of<I, I, I, I, multiply_add24<I, true>>);
  add_handler(registry, "mad24.hi", "u32", ternary_of<U, U, U, U, multiply_add24<U, true>>);
  add_handler(registry, "mad24.hi.sat", "s32", ternary_of<I, I, I, I, multiply_add24_saturated>);
  add_handler(registry, "mad.hi.sat", "s32", ternary_of<I, I, I, I, multiply_add_high_saturated>);
  add_handler(registry, "dp2a.lo.s32", "s32", ternary_of<U, U, U, U, dot_halves<std::int16_t, std::int8_t, false>>);
  add_handler(registry, "dp2a.lo.s32", "u32", ternary_of<U, U, U, U, dot_halves<std::int16_t, std::uint8_t, false>>);
  add_handler(registry, "dp2a.lo.u32", "s32", ternary_of<U, U, U, U, dot_halves<std::uint16_t, std::int8_t, false>>);
  add_handler(registry, "dp2a.lo.u32", "u32", ternary_of<U, U, U, U, dot_halves<std::uint16_t, std::uint8_t, false>>);
  add_handler(registry, "dp2a.hi.s32", "s32", ternary_of<U, U, U, U, dot_halves<std::int16_t, std::int8_t, true>>);
  add_handler(registry, "dp2a.hi.s32", "u32", ternary_of<U, U, U, U, dot_halves<std::int16_t, std::uint8_t, true>>);
  add_handler(registry, "dp2a.hi.u32", "s32", ternary_of<U, U, U, U, dot_halves<std::uint16_t, std::int8_t, true>>);
  add_handler(registry, "dp2a.hi.u32", "u32", ternary_of<U, U, U, U, dot_halves<std::uint16_t, std::uint8_t, true>>);
  add_handler(registry, "fns", "b32", ternary_of<U, U, U, I, find_nth_set>);
  add_handler(registry, "szext.clamp", "s32", binary_of<I, I, U, extend_sign<I, true>>);
  add_handler(registry, "szext.clamp", "u32", binary_of<U, U, U, extend_sign<U, true>>);
  add_handler(registry, "szext.wrap", "s32", binary_of<I, I, U, extend_sign<I, false>>);
  add_handler(registry, "szext.wrap", "u32", binary_of<U, U, U, extend_sign<U, false>>);
  add_handler(registry, "bmsk.clamp", "b32", binary_of<U, U, U, bit_mask<true>>);
  add_handler(registry, "bmsk.wrap", "b32", binary_of<U, U, U, bit_mask<false>>);
  add_handler(registry, "prmt.b32", "f4e", ternary_of<U, U, U, U, permute<Bytes::forward>>);
  add_handler(registry, "prmt.b32", "b4e", ternary_of<U, U, U, U, permute<Bytes::backward>>);
  add_handler(registry, "prmt.b32", "rc8", ternary_of<U, U, U, U, permute<Bytes::replicate>>);
  add_handler(registry, "prmt.b32", "ecl", ternary_of<U, U, U, U, permute<Bytes::edge_left>>);
  add_handler(registry, "prmt.b32", "ecr", ternary_of<U, U, U, U, permute<Bytes::edge_right>>);
  add_handler(registry, "prmt.b32", "rc16", ternary_of<U, U, U, U, permute<Bytes::halves>>);
  add_handler(registry, "lop3.predicate", "", logic3_predicate);
  add_handler(registry, "cvt.pack", "s32", convert_pack<I>);
  add_handler(registry, "video", "", video);
}

template <class T>
void register_integer_pairs(HandlerRegistry& registry, const char* type) {
  using U = std::uint32_t;
  add_handler(registry, "add", type, binary_of<U, U, U, on_pair<T, sum<T>>>);
  add_handler(registry, "min", type, binary_of<U, U, U, on_pair<T, smaller<T>>>);
  add_handler(registry, "max", type, binary_of<U, U, U, on_pair<T, larger<T>>>);
}

template <bool kMinimum>
void register_extremes(HandlerRegistry& registry, const char* two, const char* ftz, const char* nan,
                       const char* ftz_nan, const char* three, const char* three_ftz, const char* three_nan,
                       const char* three_ftz_nan) {
  using F = float;
  add_handler(registry, two, "xorsign.abs.f32", binary_of<F, F, F, extreme_magnitude<kMinimum, false, false>>);
  add_handler(registry, ftz, "xorsign.abs.f32", binary_of<F, F, F, extreme_magnitude<kMinimum, false, true>>);
  add_handler(registry, nan, "xorsign.abs.f32", binary_of<F, F, F, extreme_magnitude<kMinimum, true, false>>);
  add_handler(registry, ftz_nan, "xorsign.abs.f32", binary_of<F, F, F, extreme_magnitude<kMinimum, true, true>>);
  add_handler(registry, three, "f32", ternary_of<F, F, F, F, extreme_of_three<kMinimum, false, false>>);
  add_handler(registry, three_ftz, "f32", ternary_of<F, F, F, F, extreme_of_three<kMinimum, false, true>>);
  add_handler(registry, three_nan, "f32", ternary_of<F, F, F, F, extreme_of_three<kMinimum, true, false>>);
  add_handler(registry, three_ftz_nan, "f32", ternary_of<F, F, F, F, extreme_of_three<kMinimum, true, true>>);
  add_handler(registry, three, "abs.f32", ternary_of<F, F, F, F, extreme_magnitude_of_three<kMinimum, false, false>>);
  add_handler(registry, three_ftz, "abs.f32",
              ternary_of<F, F, F, F, extreme_magnitude_of_three<kMinimum, false, true>>);
  add_handler(registry, three_nan, "abs.f32",
              ternary_of<F, F, F, F, extreme_magnitude_of_three<kMinimum, true, false>>);
  add_handler(registry, three_ftz_nan, "abs.f32",
              ternary_of<F, F, F, F, extreme_magnitude_of_three<kMinimum, true, true>>);
}

template <class H>
void register_half_magnitudes(HandlerRegistry& registry, const char* type, const char* pair) {
  using U = std::uint32_t;
  add_handler(registry, "min.xorsign.abs", type, binary_of<U, U, U, half_magnitude<H, true, false>>);
  add_handler(registry, "max.xorsign.abs", type, binary_of<U, U, U, half_magnitude<H, false, false>>);
  add_handler(registry, "min.NaN.xorsign.abs", type, binary_of<U, U, U, half_magnitude<H, true, true>>);
  add_handler(registry, "max.NaN.xorsign.abs", type, binary_of<U, U, U, half_magnitude<H, false, true>>);
  add_handler(registry, "min.xorsign.abs", pair, binary_of<U, U, U, on_halves<half_magnitude<H, true, false>>>);
  add_handler(registry, "max.xorsign.abs", pair, binary_of<U, U, U, on_halves<half_magnitude<H, false, false>>>);
  add_handler(registry, "min.NaN.xorsign.abs", pair, binary_of<U, U, U, on_halves<half_magnitude<H, true, true>>>);
  add_handler(registry, "max.NaN.xorsign.abs", pair, binary_of<U, U, U, on_halves<half_magnitude<H, false, true>>>);
}

template <HalfOp kOp>
void register_flushed_half(HandlerRegistry& registry, const char* head) {
  using U = std::uint32_t;
  add_handler(registry, head, "f16", binary_of<U, U, U, flushed_half<kOp>>);
  add_handler(registry, head, "f16x2", binary_of<U, U, U, on_halves<flushed_half<kOp>>>);
}

/// f64 and pairs of f32 in one of the roundings. `names`: add, sub, mul, div, rcp, sqrt, fma, each with it.
struct DirectedNames {
  const char *add, *subtract, *multiply, *divide, *reciprocal, *root, *fma;
  const char *add_ftz, *subtract_ftz, *multiply_ftz, *fma_ftz;
};
template <int kMode>
void register_directed_pairs(HandlerRegistry& registry, const DirectedNames& names) {
  using P = std::uint64_t;
  add_handler(registry, names.add, "f32x2", binary_of<P, P, P, on_floats<directed<kMode, Exact::add, float>, false>>);
  add_handler(registry, names.subtract, "f32x2",
              binary_of<P, P, P, on_floats<directed<kMode, Exact::subtract, float>, false>>);
  add_handler(registry, names.multiply, "f32x2",
              binary_of<P, P, P, on_floats<directed<kMode, Exact::multiply, float>, false>>);
  add_handler(registry, names.fma, "f32x2", ternary_of<P, P, P, P, on_floats<directed_fma<kMode, float>, false>>);
  add_handler(registry, names.add_ftz, "f32x2",
              binary_of<P, P, P, on_floats<directed<kMode, Exact::add, float>, true>>);
  add_handler(registry, names.subtract_ftz, "f32x2",
              binary_of<P, P, P, on_floats<directed<kMode, Exact::subtract, float>, true>>);
  add_handler(registry, names.multiply_ftz, "f32x2",
              binary_of<P, P, P, on_floats<directed<kMode, Exact::multiply, float>, true>>);
  add_handler(registry, names.fma_ftz, "f32x2", ternary_of<P, P, P, P, on_floats<directed_fma<kMode, float>, true>>);
}
template <int kMode>
void register_directed(HandlerRegistry& registry, const DirectedNames& names) {
  using D = double;
  add_handler(registry, names.add, "f64", binary_of<D, D, D, directed<kMode, Exact::add, D>>);
  add_handler(registry, names.subtract, "f64", binary_of<D, D, D, directed<kMode, Exact::subtract, D>>);
  add_handler(registry, names.multiply, "f64", binary_of<D, D, D, directed<kMode, Exact::multiply, D>>);
  add_handler(registry, names.divide, "f64", binary_of<D, D, D, directed<kMode, Exact::divide, D>>);
  add_handler(registry, names.reciprocal, "f64", unary_of<D, D, directed_unary<kMode, Exact::reciprocal>>);
  add_handler(registry, names.root, "f64", unary_of<D, D, directed_unary<kMode, Exact::root>>);
  add_handler(registry, names.fma, "f64", ternary_of<D, D, D, D, directed_fma<kMode, D>>);
  register_directed_pairs<kMode>(registry, names);
}

void register_odd_floats(HandlerRegistry& registry) {
  register_extremes<true>(registry, "min", "min.ftz", "min.NaN", "min.ftz.NaN", "min3", "min3.ftz", "min3.NaN",
                          "min3.ftz.NaN");
  register_extremes<false>(registry, "max", "max.ftz", "max.NaN", "max.ftz.NaN", "max3", "max3.ftz", "max3.NaN",
                           "max3.ftz.NaN");
  register_half_magnitudes<F16>(registry, "f16", "f16x2");
  register_half_magnitudes<Bf16>(registry, "bf16", "bf16x2");
  register_flushed_half<HalfOp::add>(registry, "add.ftz");
  register_flushed_half<HalfOp::subtract>(registry, "sub.ftz");
  register_flushed_half<HalfOp::multiply>(registry, "mul.ftz");
  register_flushed_half<HalfOp::minimum>(registry, "min.ftz");
  register_flushed_half<HalfOp::maximum>(registry, "max.ftz");
  using U = std::uint32_t;
  add_handler(registry, "fma.ftz", "f16", ternary_of<U, U, U, U, flushed_half_fma>);
  add_handler(registry, "fma.ftz", "f16x2", ternary_of<U, U, U, U, flushed_halves_fma>);
  register_directed<FE_TOWARDZERO>(registry, {"add.rz", "sub.rz", "mul.rz", "div.rz", "rcp.rz", "sqrt.rz", "fma.rz",
                                              "add.rz.ftz", "sub.rz.ftz", "mul.rz.ftz", "fma.rz.ftz"});
  register_directed<FE_DOWNWARD>(registry, {"add.rm", "sub.rm", "mul.rm", "div.rm", "rcp.rm", "sqrt.rm", "fma.rm",
                                            "add.rm.ftz", "sub.rm.ftz", "mul.rm.ftz", "fma.rm.ftz"});
  register_directed<FE_UPWARD>(registry, {"add.rp", "sub.rp", "mul.rp", "div.rp", "rcp.rp", "sqrt.rp", "fma.rp",
                                          "add.rp.ftz", "sub.rp.ftz", "mul.rp.ftz", "fma.rp.ftz"});
  register_directed_pairs<FE_TONEAREST>(
      registry, {"add", "sub", "mul", "", "", "", "fma", "add.ftz", "sub.ftz", "mul.ftz", "fma.ftz"});
  add_handler(registry, "testp.finite", "f64", test_double<is_finite64>);
  add_handler(registry, "testp.infinite", "f64", test_double<is_infinite64>);
  add_handler(registry, "testp.number", "f64", test_double<is_number64>);
  add_handler(registry, "testp.notanumber", "f64", test_double<is_nan64>);
  add_handler(registry, "testp.normal", "f64", test_double<is_normal64>);
  add_handler(registry, "testp.subnormal", "f64", test_double<is_subnormal64>);
}

}  // namespace

void register_seldom_arithmetic(HandlerRegistry& registry) {
  using I = std::int32_t;
  using U = std::uint32_t;
  register_odd_integers(registry);
  register_integer_pairs<std::int16_t>(registry, "s16x2");
  register_integer_pairs<std::uint16_t>(registry, "u16x2");
  add_handler(registry, "min.relu", "s16x2", binary_of<U, U, U, on_pair<std::int16_t, smaller_relu<std::int16_t>>>);
  add_handler(registry, "max.relu", "s16x2", binary_of<U, U, U, on_pair<std::int16_t, larger_relu<std::int16_t>>>);
  add_handler(registry, "min.relu", "s32", binary_of<I, I, I, smaller_relu<I>>);
  add_handler(registry, "max.relu", "s32", binary_of<I, I, I, larger_relu<I>>);
  register_odd_floats(registry);
}

}  // namespace gpusim::DSV2_ISA
