// Arithmetic between registers: a handler for each operation and type, its 32 lanes in loops that vectorise.
#include <cmath>
#include <limits>

#include "gpusim/handlers.h"
#include "gpusim/lanes.h"

namespace gpusim::DSV2_ISA {
namespace {

// ---- handlers for operations that are given as types with a static `apply`

template <class Op, class D, class A>
void unary(Warp& warp, const Instruction& in) {
  const auto* a = lanes<typename Lane<A>::Storage>(warp, in.a);
  write<typename Lane<D>::Storage>(warp, in.d, [=](int l) { return Lane<D>::store(Op::apply(Lane<A>::load(a[l]))); });
}

template <class Op, class D, class A, class B>
void binary(Warp& warp, const Instruction& in) {
  const auto* a = lanes<typename Lane<A>::Storage>(warp, in.a);
  const auto* b = lanes<typename Lane<B>::Storage>(warp, in.b);
  write<typename Lane<D>::Storage>(
      warp, in.d, [=](int l) { return Lane<D>::store(Op::apply(Lane<A>::load(a[l]), Lane<B>::load(b[l]))); });
}

template <class Op, class D, class A, class B, class C>
void ternary(Warp& warp, const Instruction& in) {
  const auto* a = lanes<typename Lane<A>::Storage>(warp, in.a);
  const auto* b = lanes<typename Lane<B>::Storage>(warp, in.b);
  const auto* c = lanes<typename Lane<C>::Storage>(warp, in.c);
  write<typename Lane<D>::Storage>(warp, in.d, [=](int l) {
    return Lane<D>::store(Op::apply(Lane<A>::load(a[l]), Lane<B>::load(b[l]), Lane<C>::load(c[l])));
  });
}

/// The same on both halves of f16x2 and bf16x2.
template <class Op, class H>
void unary_pair(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  write<std::uint32_t>(warp, in.d, [=](int l) {
    const std::uint32_t low = Lane<H>::store(Op::apply(Lane<H>::load(a[l] & 0xffffu)));
    return low | Lane<H>::store(Op::apply(Lane<H>::load(a[l] >> 16))) << 16;
  });
}

template <class Op, class H>
void binary_pair(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const auto* b = lanes<std::uint32_t>(warp, in.b);
  write<std::uint32_t>(warp, in.d, [=](int l) {
    const std::uint32_t low = Lane<H>::store(Op::apply(Lane<H>::load(a[l] & 0xffffu), Lane<H>::load(b[l] & 0xffffu)));
    return low | Lane<H>::store(Op::apply(Lane<H>::load(a[l] >> 16), Lane<H>::load(b[l] >> 16))) << 16;
  });
}

template <class Op, class H>
void ternary_pair(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const auto* b = lanes<std::uint32_t>(warp, in.b);
  const auto* c = lanes<std::uint32_t>(warp, in.c);
  write<std::uint32_t>(warp, in.d, [=](int l) {
    const std::uint32_t low = Lane<H>::store(
        Op::apply(Lane<H>::load(a[l] & 0xffffu), Lane<H>::load(b[l] & 0xffffu), Lane<H>::load(c[l] & 0xffffu)));
    return low |
           Lane<H>::store(Op::apply(Lane<H>::load(a[l] >> 16), Lane<H>::load(b[l] >> 16), Lane<H>::load(c[l] >> 16)))
               << 16;
  });
}

// ---- operations

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
inline constexpr int kBits = 8 * static_cast<int>(sizeof(T));
/// Twice as wide, for products.
template <class T>
using Wide = std::conditional_t<
    sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>,
                       std::conditional_t<std::is_signed_v<T>, std::int32_t, std::uint32_t>>>;

// Integer arithmetic wraps: it is done unsigned, in at least 32 bits.
template <class T>
using Wrapping = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
template <class T>
Wrapping<T> wrapping(T value) {
  return static_cast<Wrapping<T>>(value);
}

struct Add {
  template <class T>
  static T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(wrapping(a) + wrapping(b));
    else
      return canonical(a + b);
  }
};
struct Subtract {
  template <class T>
  static T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(wrapping(a) - wrapping(b));
    else
      return canonical(a - b);
  }
};
struct Multiply {
  template <class T>
  static T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(wrapping(a) * wrapping(b));
    else
      return canonical(a * b);
  }
};
struct MultiplyHigh {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>((static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b)) >> kBits<T>);
  }
};
struct MultiplyWide {
  template <class T>
  static Wide<T> apply(T a, T b) {
    return static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b);
  }
};
struct MultiplyAdd {
  template <class T>
  static T apply(T a, T b, T c) {
    return Add::apply(Multiply::apply(a, b), c);
  }
};
struct MultiplyHighAdd {
  template <class T>
  static T apply(T a, T b, T c) {
    return Add::apply(MultiplyHigh::apply(a, b), c);
  }
};
struct MultiplyWideAdd {
  template <class T>
  static Wide<T> apply(T a, T b, Wide<T> c) {
    return Add::apply(MultiplyWide::apply(a, b), c);
  }
};
struct Fma {
  static float apply(float a, float b, float c) { return canonical(__builtin_fmaf(a, b, c)); }
  static double apply(double a, double b, double c) { return __builtin_fma(a, b, c); }
};
struct FmaF16 {
  static float apply(float a, float b, float c) { return fma_f16(a, b, c); }
};
struct FmaBf16 {
  static float apply(float a, float b, float c) { return fma_bf16(a, b, c); }
};
struct MultiplyBf16 {
  static float apply(float a, float b) { return fma_bf16(a, b, -0.0f); }
};
template <class Op>
struct Relu {
  template <class... T>
  static float apply(T... operands) {
    const float value = Op::apply(operands...);
    return value > 0 || value != value ? value : 0.0f;
  }
};
struct Divide {
  template <class T>
  static T apply(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      return canonical(a / b);
    } else {
      if (b == 0) return static_cast<T>(-1);
      if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract::apply(T{0}, a);
      return static_cast<T>(a / b);
    }
  }
};
struct Remainder {
  template <class T>
  static T apply(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};

/// The zero of equal operands: -0 for the minimum, +0 for the maximum.
inline float negative_zero_of(float a, float b) { return float_of(bits_of(a) | bits_of(b)); }
inline float positive_zero_of(float a, float b) { return float_of(bits_of(a) & bits_of(b)); }
inline double negative_zero_of(double a, double b) { return std::signbit(a) ? a : b; }
inline double positive_zero_of(double a, double b) { return std::signbit(a) ? b : a; }

struct Minimum {
  template <class T>
  static T apply(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      T result = a < b ? a : b;
      result = a == b ? negative_zero_of(a, b) : result;
      result = b != b ? a : result;  // a NaN loses against a number
      return canonical(result);
    } else {
      return a < b ? a : b;
    }
  }
};
struct Maximum {
  template <class T>
  static T apply(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
      T result = a > b ? a : b;
      result = a == b ? positive_zero_of(a, b) : result;
      result = b != b ? a : result;
      return canonical(result);
    } else {
      return a > b ? a : b;
    }
  }
};
/// min.NaN, max.NaN: a NaN wins.
template <class Op>
struct WithNan {
  static float apply(float a, float b) { return a != a || b != b ? float_of(kNan32) : Op::apply(a, b); }
};
struct Negate {
  template <class T>
  static T apply(T a) {
    return static_cast<T>(0 - wrapping(a));
  }
};
struct Absolute {
  template <class T>
  static T apply(T a) {
    return a < 0 ? Negate::apply(a) : a;
  }
};
/// Sign bits of a floating-point type, packed or not.
template <class T, T kSigns>
struct FlipSigns {
  static T apply(T a) { return a ^ kSigns; }
};
template <class T, T kSigns>
struct ClearSigns {
  static T apply(T a) { return a & static_cast<T>(~kSigns); }
};

struct And {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(a & b);
  }
};
struct Or {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(a | b);
  }
};
struct Xor {
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(a ^ b);
  }
};
struct Not {
  template <class T>
  static T apply(T a) {
    return static_cast<T>(~a);
  }
};
struct LogicalNot {
  template <class T>
  static T apply(T a) {
    return a == 0 ? 1 : 0;
  }
};
struct Identity {
  template <class T>
  static T apply(T a) {
    return a;
  }
};
struct ShiftLeft {
  template <class T>
  static T apply(T a, std::uint32_t by) {
    return by >= static_cast<std::uint32_t>(kBits<T>) ? T{0} : static_cast<T>(a << (by & (kBits<T> - 1)));
  }
};
struct ShiftRight {
  template <class T>
  static T apply(T a, std::uint32_t by) {
    const std::uint32_t last = kBits<T> - 1;
    if constexpr (std::is_signed_v<T>)
      return static_cast<T>(a >> (by > last ? last : by));
    else
      return by > last ? T{0} : static_cast<T>(a >> (by & last));
  }
};
/// Bits of {b, a}, shifted by at most 32.
template <bool kLeft, bool kWrap>
struct FunnelShift {
  static std::uint32_t apply(std::uint32_t a, std::uint32_t b, std::uint32_t by) {
    const std::uint32_t count = kWrap ? by & 31u : (by > 32u ? 32u : by);
    const std::uint64_t both = std::uint64_t{b} << 32 | a;
    return static_cast<std::uint32_t>(kLeft ? both << count >> 32 : both >> count);
  }
};
struct ExtractBits {
  template <class T>
  static T apply(T a, std::uint32_t position, std::uint32_t length) {
    constexpr std::uint32_t kWidth = kBits<T>;
    position &= 0xffu;
    length &= 0xffu;
    if (length == 0) return 0;
    if (position >= kWidth) return std::is_signed_v<T> && a < 0 ? static_cast<T>(-1) : T{0};
    const std::uint32_t kept = position + length > kWidth ? kWidth - position : length;
    const auto top = static_cast<Unsigned<T>>(static_cast<Unsigned<T>>(a) << (kWidth - position - kept));
    return static_cast<T>(static_cast<T>(top) >> (kWidth - kept));
  }
};
struct InsertBits {
  template <class T>
  static T apply(T a, T b, std::uint32_t position, std::uint32_t length) {
    constexpr std::uint32_t kWidth = kBits<T>;
    position &= 0xffu;
    length &= 0xffu;
    if (position >= kWidth || length == 0) return b;
    const T field = (length >= kWidth ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << length) - 1)) << position;
    return static_cast<T>((b & ~field) | ((a << position) & field));
  }
};
struct Population {
  template <class T>
  static std::uint32_t apply(T a) {
    return static_cast<std::uint32_t>(std::popcount(a));
  }
};
struct LeadingZeros {
  template <class T>
  static std::uint32_t apply(T a) {
    return static_cast<std::uint32_t>(std::countl_zero(a));
  }
};
struct ReverseBits {
  template <class T>
  static T apply(T a) {
    T result = 0;
    for (int i = 0; i < kBits<T>; ++i) result |= static_cast<T>((a >> i & 1) << (kBits<T> - 1 - i));
    return result;
  }
};
/// The highest bit that differs from the sign, or -1.
struct FindBit {
  template <class T>
  static std::uint32_t apply(T a) {
    const auto bits = static_cast<Unsigned<T>>(std::is_signed_v<T> && a < 0 ? ~a : a);
    return static_cast<std::uint32_t>(kBits<T> - 1 - std::countl_zero(bits));
  }
};
/// How far to shift it up to the top.
struct FindBitShift {
  template <class T>
  static std::uint32_t apply(T a) {
    const std::uint32_t bit = FindBit::apply(a);
    return bit == kAllLanes ? bit : static_cast<std::uint32_t>(kBits<T> - 1) - bit;
  }
};
struct SumOfDifferences {
  template <class T>
  static T apply(T a, T b, T c) {
    return Add::apply(c, a > b ? Subtract::apply(a, b) : Subtract::apply(b, a));
  }
};
struct Permute {
  static std::uint32_t apply(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
    const std::uint64_t both = std::uint64_t{b} << 32 | a;
    std::uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t choice = selector >> (4 * i) & 15u;
      std::uint32_t byte = static_cast<std::uint32_t>(both >> (8 * (choice & 7u))) & 0xffu;
      if ((choice & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0u;
      result |= byte << (8 * i);
    }
    return result;
  }
};
template <class A, class B>
struct DotBytes {
  static std::int32_t apply(std::uint32_t a, std::uint32_t b, std::int32_t c) {
    std::uint32_t sum = static_cast<std::uint32_t>(c);
    for (int i = 0; i < 4; ++i) {
      sum += static_cast<std::uint32_t>(static_cast<A>(a >> (8 * i)) * static_cast<B>(b >> (8 * i)));
    }
    return static_cast<std::int32_t>(sum);
  }
};
struct AddSaturated {
  static std::int32_t apply(std::int32_t a, std::int32_t b) {
    const std::int64_t sum = std::int64_t{a} + b;
    return static_cast<std::int32_t>(sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum);
  }
};
struct SubtractSaturated {
  static std::int32_t apply(std::int32_t a, std::int32_t b) {
    const std::int64_t sum = std::int64_t{a} - b;
    return static_cast<std::int32_t>(sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum);
  }
};
struct CopySign {
  static std::uint32_t apply(std::uint32_t a, std::uint32_t b) { return (b & 0x7fffffffu) | (a & 0x80000000u); }
  static std::uint64_t apply(std::uint64_t a, std::uint64_t b) {
    constexpr std::uint64_t kSign = std::uint64_t{1} << 63;
    return (b & ~kSign) | (a & kSign);
  }
};

// ---- special functions: within an ulp or two of exact, where the hardware's are coarser

struct Sqrt {
  template <class T>
  static T apply(T a) {
    return canonical(std::sqrt(a));
  }
};
struct ReciprocalSqrt {
  template <class T>
  static T apply(T a) {
    return canonical(1 / std::sqrt(a));
  }
};
struct Reciprocal {
  template <class T>
  static T apply(T a) {
    return canonical(1 / a);
  }
};
struct Sine {
  static float apply(float a) { return canonical(std::sin(a)); }
};
struct Cosine {
  static float apply(float a) { return canonical(std::cos(a)); }
};
struct HyperbolicTangent {
  static float apply(float a) { return canonical(std::tanh(a)); }
};
/// 2^x: the whole part by the exponent, the rest by its Taylor series to x^7 on [-0.5, 0.5]; error below 1 ulp.
struct Exp2 {
  static float apply(float x) {
    const float bounded = x < -160.0f ? -160.0f : x > 130.0f ? 130.0f : x;
    const float whole = __builtin_rintf(bounded == bounded ? bounded : 0.0f);
    const float t = (bounded == bounded ? bounded : 0.0f) - whole;
    float sum = 1.5252734e-5f;
    sum = __builtin_fmaf(sum, t, 1.5403530e-4f);
    sum = __builtin_fmaf(sum, t, 1.3333558e-3f);
    sum = __builtin_fmaf(sum, t, 9.6181291e-3f);
    sum = __builtin_fmaf(sum, t, 5.5504109e-2f);
    sum = __builtin_fmaf(sum, t, 2.4022651e-1f);
    sum = __builtin_fmaf(sum, t, 6.9314718e-1f);
    sum = __builtin_fmaf(sum, t, 1.0f);
    const int exponent = static_cast<int>(whole);
    const int half = exponent / 2;  // in two steps, so that subnormal results are reached and rounded once
    const float scaled = sum * float_of(static_cast<std::uint32_t>(half + 127) << 23);
    const float result = scaled * float_of(static_cast<std::uint32_t>(exponent - half + 127) << 23);
    return x != x ? float_of(kNan32) : result;
  }
};
/// log2 x = e + log2 m with m in [sqrt(1/2), sqrt(2)), by the series of artanh((m-1)/(m+1)).
struct Log2 {
  static float apply(float x) {
    const bool subnormal = x < 0x1p-126f;
    const float scaled = subnormal ? x * 0x1p24f : x;
    const std::uint32_t bits = bits_of(scaled);
    const std::uint32_t shifted = bits - 0x3f3504f3u;
    const auto exponent = static_cast<std::int32_t>(shifted) >> 23;
    const double m = static_cast<double>(float_of((shifted & 0x007fffffu) + 0x3f3504f3u));
    const double s = (m - 1.0) / (m + 1.0);
    const double z = s * s;
    double sum = 1.0 / 11;
    sum = sum * z + 1.0 / 9;
    sum = sum * z + 1.0 / 7;
    sum = sum * z + 1.0 / 5;
    sum = sum * z + 1.0 / 3;
    sum = sum * z + 1.0;
    const double value = s * sum * 2.8853900817779268 + (exponent - (subnormal ? 24 : 0));
    float result = static_cast<float>(value);
    result = x == 0 ? -std::numeric_limits<float>::infinity() : result;
    result = x < 0 ? float_of(kNan32) : result;
    return x == std::numeric_limits<float>::infinity() || x != x ? canonical(x) : result;
  }
};

/// .ftz: subnormal operands and results count as zero.
template <class Op>
struct Flushed {
  template <class... T>
  static float apply(T... operands) {
    return flush(Op::apply(flush(operands)...));
  }
};
/// .sat: into [0, 1], NaN to 0.
template <class Op>
struct Saturated {
  template <class... T>
  static float apply(T... operands) {
    const float value = Op::apply(operands...);
    return value > 1.0f ? 1.0f : value > 0.0f ? value : 0.0f;
  }
};

/// The neighbour of a finite value towards +infinity or -infinity.
template <class T>
T neighbour(T value, bool up) {
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(T) - 1);
  const Bits bits = std::bit_cast<Bits>(value);
  const bool negative = (bits & kSign) != 0;
  const Bits from_zero = up ? Bits{1} : kSign | Bits{1};
  const Bits moved = negative == up ? bits - 1 : bits + 1;
  return std::bit_cast<T>((bits & ~kSign) == 0 ? from_zero : moved);
}

/// The f32 or f64 nearest to an exact value, moved where it lies on the wrong side of it. `error`: exact - rounded.
template <Rounding kRounding, class T>
T directed(T rounded, T error) {
  // Without short-circuits, so that loops vectorise.
  const bool down = (kRounding == Rounding::down) | ((kRounding == Rounding::zero) & (rounded > 0));
  const bool up = (kRounding == Rounding::up) | ((kRounding == Rounding::zero) & (rounded < 0));
  const bool moves = (rounded - rounded == 0) & ((down & (error < 0)) | (up & (error > 0)));
  return moves ? neighbour(rounded, error > 0) : rounded;
}
/// An infinity that came of finite operands is the largest number when rounding goes the other way.
template <Rounding kRounding, class T>
T bounded(T value, bool finite_operands) {
  const bool infinite = (value == std::numeric_limits<T>::infinity()) | (value == -std::numeric_limits<T>::infinity());
  const bool keeps = ((kRounding == Rounding::up) & (value > 0)) | ((kRounding == Rounding::down) & (value < 0));
  const T largest = value > 0 ? std::numeric_limits<T>::max() : -std::numeric_limits<T>::max();
  return infinite & finite_operands & !keeps ? largest : value;
}
template <class... T>
bool all_finite(T... values) {
  return ((values - values == 0) & ...);
}

/// Of a * b - c the sign, in a number that does not underflow: the product of two floats is exact in double.
inline float residue(float a, float b, float c) {
  const double difference = static_cast<double>(a) * b - c;
  return difference > 0 ? 1.0f : difference < 0 ? -1.0f : 0.0f;
}
inline double residue(double a, double b, double c) { return std::fma(a, b, -c); }

template <Rounding kRounding>
struct DirectedAdd {
  template <class T>
  static T apply(T a, T b) {
    const T sum = a + b;
    const T back = sum - a;
    const T error = (a - (sum - back)) + (b - back);
    T result = directed<kRounding>(sum, error);
    if (sum == 0 && std::signbit(a) != std::signbit(b)) result = kRounding == Rounding::down ? -T{0} : T{0};
    return bounded<kRounding>(canonical(result), all_finite(a, b));
  }
};
template <Rounding kRounding>
struct DirectedSubtract {
  template <class T>
  static T apply(T a, T b) {
    return DirectedAdd<kRounding>::apply(a, static_cast<T>(-b));
  }
};
template <Rounding kRounding>
struct DirectedMultiply {
  template <class T>
  static T apply(T a, T b) {
    const T product = a * b;
    const T result = directed<kRounding>(product, residue(a, b, product));
    return bounded<kRounding>(canonical(result), all_finite(a, b));
  }
};
/// directed and bounded in whole numbers: expf and its like round down once a call, and selects between floats by
/// comparisons of others do not vectorise.
template <Rounding kRounding>
float directed_bits(float value, float error, bool finite_operands) {
  constexpr std::uint32_t kMagnitude = 0x7fffffffu;
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t negative = bits >> 31;
  const std::uint32_t more = error > 0 ? 1u : 0u;
  const std::uint32_t less = error < 0 ? 1u : 0u;
  const std::uint32_t up = kRounding == Rounding::up ? more : kRounding == Rounding::zero ? more & negative : 0u;
  const std::uint32_t down = kRounding == Rounding::down ? less : kRounding == Rounding::zero ? less & ~negative : 0u;
  const std::uint32_t away = up ^ negative;  // from zero: one more in the bits, else one less
  const std::uint32_t from_zero = up != 0 ? 1u : 0x80000001u;
  const std::uint32_t moved = (bits & kMagnitude) == 0 ? from_zero : bits + 2 * away - 1;
  const std::uint32_t is_finite = (bits & kMagnitude) < 0x7f800000u ? 1u : 0u;
  std::uint32_t result = ((up | down) & is_finite) != 0 ? moved : bits;
  const std::uint32_t keeps = kRounding == Rounding::up ? 1 - negative : kRounding == Rounding::down ? negative : 0u;
  const std::uint32_t overflowed = (bits & kMagnitude) == 0x7f800000u && finite_operands ? 1 - keeps : 0u;
  result = overflowed != 0 ? (bits & 0x80000000u) | 0x7f7fffffu : result;
  return float_of((bits & kMagnitude) > 0x7f800000u ? kNan32 : result);
}

template <Rounding kRounding>
struct DirectedFma {
  static float apply(float a, float b, float c) {
    const float value = __builtin_fmaf(a, b, c);
    const double product = static_cast<double>(a) * b;  // exact
    const double sum = product + c;
    const double back = sum - product;
    const double rest = (product - (sum - back)) + (c - back);
    const double error = (sum - static_cast<double>(value)) + rest;
    // Only its sign matters: no error of this sum is below 2^-298, so that it does not vanish in a float.
    const auto sign = static_cast<float>(error * 0x1p200);
    const float finite = (a - a) * (b - b) * (c - c);  // NaN where an operand is not
    // Terms of opposite signs that cancel leave -0 where down is the direction: the sum that rounds is that zero.
    const std::uint32_t opposite = bits_of(a) ^ bits_of(b) ^ bits_of(c);
    const std::uint32_t magnitude = (bits_of(value) | bits_of(sign)) & 0x7fffffffu;
    const std::uint32_t cancelled = kRounding == Rounding::down && magnitude == 0 ? opposite & 0x80000000u : 0u;
    return float_of(bits_of(directed_bits<kRounding>(value, sign, finite == 0)) | cancelled);
  }
};
template <Rounding kRounding>
struct DirectedDivide {
  template <class T>
  static T apply(T a, T b) {
    const T quotient = a / b;
    const T rest = -residue(quotient, b, a);
    const T result = directed<kRounding>(quotient, b < 0 ? -rest : rest);
    return bounded<kRounding>(canonical(result), all_finite(a, b) && b != 0);
  }
};
template <Rounding kRounding>
struct DirectedReciprocal {
  template <class T>
  static T apply(T a) {
    return DirectedDivide<kRounding>::apply(T{1}, a);
  }
};
template <Rounding kRounding>
struct DirectedSqrt {
  template <class T>
  static T apply(T a) {
    const T root = std::sqrt(a);
    return canonical(directed<kRounding>(root, -residue(root, root, a)));
  }
};

// ---- comparisons

struct Equal {
  template <class T>
  static bool holds(T a, T b) {
    return a == b;
  }
};
struct NotEqual {  // ordered: false where one is a NaN
  template <class T>
  static bool holds(T a, T b) {
    return a < b || a > b;
  }
};
struct Less {
  template <class T>
  static bool holds(T a, T b) {
    return a < b;
  }
};
struct LessEqual {
  template <class T>
  static bool holds(T a, T b) {
    return a <= b;
  }
};
struct Greater {
  template <class T>
  static bool holds(T a, T b) {
    return a > b;
  }
};
struct GreaterEqual {
  template <class T>
  static bool holds(T a, T b) {
    return a >= b;
  }
};
/// The unordered ones hold where the opposite does not.
template <class Opposite>
struct Unless {
  template <class T>
  static bool holds(T a, T b) {
    return !Opposite::holds(a, b);
  }
};
struct BothNumbers {
  template <class T>
  static bool holds(T a, T b) {
    return a == a && b == b;
  }
};

template <class Comparison, class A, bool kFlushed>
std::uint32_t compare(Warp& warp, const Instruction& in) {
  const auto* a = lanes<typename Lane<A>::Storage>(warp, in.a);
  const auto* b = lanes<typename Lane<A>::Storage>(warp, in.b);
  alignas(64) std::uint32_t flags[kWarpLanes];
  for (int l = 0; l < kWarpLanes; ++l) {
    auto x = Lane<A>::load(a[l]);
    auto y = Lane<A>::load(b[l]);
    if constexpr (kFlushed) {
      x = flush(x);
      y = flush(y);
    }
    flags[l] = Comparison::holds(x, y) ? kAllLanes : 0u;
  }
  return to_mask(flags);
}

std::uint32_t combine(std::uint8_t op, std::uint32_t a, std::uint32_t b) {
  return op == 1 ? a & b : op == 2 ? a | b : a ^ b;
}

template <class Comparison, class A, bool kFlushed = false>
void set_predicate(Warp& warp, const Instruction& in) {
  std::uint32_t holds = compare<Comparison, A, kFlushed>(warp, in);
  std::uint32_t fails = ~holds;
  if (in.mode != 0) {
    std::uint32_t with = predicate(warp, in.c);
    if ((in.flags & kNegated) != 0) with = ~with;
    holds = combine(in.mode, holds, with);
    fails = combine(in.mode, fails, with);
  }
  if (in.d >= 0) write_predicate(warp, in.d, holds);
  if (in.d2 >= 0) write_predicate(warp, in.d2, fails);
}

template <class Comparison, class A, bool kFlushed = false>
void set_value(Warp& warp, const Instruction& in) {
  const std::uint32_t holds = compare<Comparison, A, kFlushed>(warp, in);
  const auto value = static_cast<std::uint32_t>(in.immediate);
  write<std::uint32_t>(warp, in.d, [=](int l) { return (holds & kLaneBits.bit[l]) != 0 ? value : 0u; });
}

template <class Comparison, class H>
void set_pair(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const auto* b = lanes<std::uint32_t>(warp, in.b);
  const auto value = static_cast<std::uint32_t>(in.immediate);
  write<std::uint32_t>(warp, in.d, [=](int l) {
    const bool low = Comparison::holds(Lane<H>::load(a[l] & 0xffffu), Lane<H>::load(b[l] & 0xffffu));
    const bool high = Comparison::holds(Lane<H>::load(a[l] >> 16), Lane<H>::load(b[l] >> 16));
    return (low ? value : 0u) | (high ? value << 16 : 0u);
  });
}

template <class Test>
void test_float(Warp& warp, const Instruction& in) {
  const auto* a = lanes<float>(warp, in.a);
  std::uint32_t mask = 0;
  for (int l = 0; l < kWarpLanes; ++l)
    mask |= static_cast<std::uint32_t>(Test::holds(bits_of(a[l]) & 0x7fffffffu)) << l;
  write_predicate(warp, in.d, mask);
}
inline constexpr std::uint32_t kInfinity = 0x7f800000u;
struct IsFinite {
  static bool holds(std::uint32_t magnitude) { return magnitude < kInfinity; }
};
struct IsInfinite {
  static bool holds(std::uint32_t magnitude) { return magnitude == kInfinity; }
};
struct IsNumber {
  static bool holds(std::uint32_t magnitude) { return magnitude <= kInfinity; }
};
struct IsNan {
  static bool holds(std::uint32_t magnitude) { return magnitude > kInfinity; }
};
struct IsNormal {
  static bool holds(std::uint32_t magnitude) { return magnitude >= 0x00800000u && magnitude < kInfinity; }
};
struct IsSubnormal {
  static bool holds(std::uint32_t magnitude) { return magnitude != 0 && magnitude < 0x00800000u; }
};

// ---- selection, bits and predicates

template <class T>
void select(Warp& warp, const Instruction& in) {
  const T* a = lanes<T>(warp, in.a);
  const T* b = lanes<T>(warp, in.b);
  const std::uint32_t which = predicate(warp, in.c);
  write<T>(warp, in.d, [=](int l) { return (which & kLaneBits.bit[l]) != 0 ? a[l] : b[l]; });
}

template <class T, class C>
void select_by_sign(Warp& warp, const Instruction& in) {
  const T* a = lanes<T>(warp, in.a);
  const T* b = lanes<T>(warp, in.b);
  const C* c = lanes<C>(warp, in.c);
  write<T>(warp, in.d, [=](int l) { return c[l] >= 0 ? a[l] : b[l]; });
}

template <class T>
void insert_bits(Warp& warp, const Instruction& in) {
  const T* a = lanes<T>(warp, in.a);
  const T* b = lanes<T>(warp, in.b);
  const auto* position = lanes<std::uint32_t>(warp, in.c);
  const auto* length = lanes<std::uint32_t>(warp, in.e);
  write<T>(warp, in.d, [=](int l) { return InsertBits::apply(a[l], b[l], position[l], length[l]); });
}

/// Any function of three bits, by its truth table.
void logic3(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const auto* b = lanes<std::uint32_t>(warp, in.b);
  const auto* c = lanes<std::uint32_t>(warp, in.c);
  std::uint32_t term[8];
  for (int i = 0; i < 8; ++i) term[i] = (in.immediate >> i & 1) != 0 ? kAllLanes : 0u;
  write<std::uint32_t>(warp, in.d, [=](int l) {
    const std::uint32_t x = a[l], y = b[l], z = c[l];
    const std::uint32_t low = (~y & ((~z & term[0]) | (z & term[1]))) | (y & ((~z & term[2]) | (z & term[3])));
    const std::uint32_t high = (~y & ((~z & term[4]) | (z & term[5]))) | (y & ((~z & term[6]) | (z & term[7])));
    return (~x & low) | (x & high);
  });
}

template <class Op>
void predicate_binary(Warp& warp, const Instruction& in) {
  write_predicate(warp, in.d, Op::apply(predicate(warp, in.a), predicate(warp, in.b)));
}
template <class Op>
void predicate_unary(Warp& warp, const Instruction& in) {
  write_predicate(warp, in.d, Op::apply(predicate(warp, in.a)));
}

/// Adds with the condition code, one lane after the other: rare.
enum class CarryOp { add, subtract, multiply_low, multiply_high, multiply_high_signed };
template <class T, CarryOp kOp>
void with_carry(Warp& warp, const Instruction& in) {
  const T* a = lanes<T>(warp, in.a);
  const T* b = lanes<T>(warp, in.b);
  const T* c = kOp >= CarryOp::multiply_low ? lanes<T>(warp, in.c) : nullptr;
  T* d = lanes<T>(warp, in.d);
  const std::uint32_t carries = predicate(warp, in.e);
  std::uint32_t carry_out = 0;
  for_lanes(warp.exec, [&](int l) {
    T x = a[l];
    T y = b[l];
    if constexpr (kOp >= CarryOp::multiply_low) {
      using Factor = std::conditional_t<kOp == CarryOp::multiply_high_signed, std::make_signed_t<T>, T>;
      const auto product = static_cast<unsigned __int128>(static_cast<Factor>(x)) * static_cast<Factor>(y);
      x = static_cast<T>(kOp == CarryOp::multiply_low ? product : product >> kBits<T>);
      y = c[l];
    }
    const T carry = (in.mode & 1) != 0 ? static_cast<T>(carries >> l & 1u) : T{0};
    T partial = 0;
    T result = 0;
    bool out = false;
    if constexpr (kOp == CarryOp::subtract) {
      out = __builtin_sub_overflow(x, y, &partial);
      out |= __builtin_sub_overflow(partial, carry, &result);
    } else {
      out = __builtin_add_overflow(x, y, &partial);
      out |= __builtin_add_overflow(partial, carry, &result);
    }
    d[l] = result;
    carry_out |= static_cast<std::uint32_t>(out) << l;
  });
  if ((in.mode & 2) != 0) write_predicate(warp, in.e, carry_out);
}

// ---- moves

struct Quad {
  std::uint64_t low, high;
};

void move_predicate(Warp& warp, const Instruction& in) { write_predicate(warp, in.d, predicate(warp, in.a)); }

void move_quad(Warp& warp, const Instruction& in) {
  const Quad* a = lanes<Quad>(warp, in.a);
  Quad* d = lanes<Quad>(warp, in.d);
  for_lanes(warp.exec, [=](int l) { d[l] = a[l]; });
}

/// ld.param at a fixed offset: its value is a constant of the launch.
void load_parameter(Warp& warp, const Instruction& in) {
  const std::int32_t* to = warp.lists + in.list;
  const std::int32_t* from = to + in.elements;
  for (int i = 0; i < in.elements; ++i) {
    if (to[i] < 0) continue;
    if (in.register_bytes == 16) {
      const Quad* a = lanes<Quad>(warp, from[i]);
      Quad* d = lanes<Quad>(warp, to[i]);
      for_lanes(warp.exec, [=](int l) { d[l] = a[l]; });
    } else if (in.register_bytes == 8) {
      const auto* a = lanes<std::uint64_t>(warp, from[i]);
      write<std::uint64_t>(warp, to[i], [=](int l) { return a[l]; });
    } else {
      const auto* a = lanes<std::uint32_t>(warp, from[i]);
      write<std::uint32_t>(warp, to[i], [=](int l) { return a[l]; });
    }
  }
}

template <class Whole, class Part>
void unpack_as(Warp& warp, const Instruction& in) {
  const Whole* a = lanes<Whole>(warp, in.a);
  const std::uint64_t keep = in.bytes == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * in.bytes)) - 1;
  for (int i = 0; i < in.elements; ++i) {
    const std::int32_t to = warp.lists[in.list + i];
    if (to < 0) continue;
    const int shift = 8 * in.bytes * i;
    write<Part>(warp, to, [=](int l) { return static_cast<Part>(static_cast<std::uint64_t>(a[l] >> shift) & keep); });
  }
}
template <class Whole, class Part>
void pack_as(Warp& warp, const Instruction& in) {
  alignas(64) Whole whole[kWarpLanes] = {};
  const std::uint64_t keep = in.bytes == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * in.bytes)) - 1;
  for (int i = 0; i < in.elements; ++i) {
    const Part* part = lanes<Part>(warp, warp.lists[in.list + i]);
    const int shift = 8 * in.bytes * i;
    for (int l = 0; l < kWarpLanes; ++l) whole[l] |= static_cast<Whole>(part[l] & keep) << shift;
  }
  const Whole* from = whole;
  write<Whole>(warp, in.d, [=](int l) { return from[l]; });
}
void unpack(Warp& warp, const Instruction& in) {
  if (in.register_bytes == 4) return unpack_as<std::uint32_t, std::uint32_t>(warp, in);
  if (in.register_bytes == 8) return unpack_as<std::uint64_t, std::uint32_t>(warp, in);
  if (in.bytes == 8) return unpack_as<unsigned __int128, std::uint64_t>(warp, in);
  unpack_as<unsigned __int128, std::uint32_t>(warp, in);
}
void pack(Warp& warp, const Instruction& in) {
  if (in.register_bytes == 4) return pack_as<std::uint32_t, std::uint32_t>(warp, in);
  if (in.register_bytes == 8) return pack_as<std::uint64_t, std::uint32_t>(warp, in);
  if (in.bytes == 8) return pack_as<unsigned __int128, std::uint64_t>(warp, in);
  pack_as<unsigned __int128, std::uint32_t>(warp, in);
}

/// Into a window of the generic space, and back.
void to_generic(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint64_t>(warp, in.a);
  const auto window = static_cast<std::uint64_t>(in.immediate);
  write<std::uint64_t>(warp, in.d, [=](int l) { return a[l] | window; });
}
void from_generic(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint64_t>(warp, in.a);
  write<std::uint64_t>(warp, in.d, [=](int l) { return a[l] & 0xffffffffu; });
}
void is_space(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint64_t>(warp, in.a);
  const auto window = static_cast<std::uint64_t>(in.immediate);
  std::uint32_t mask = 0;
  for (int l = 0; l < kWarpLanes; ++l) mask |= static_cast<std::uint32_t>(a[l] >> kWindowShift == window) << l;
  write_predicate(warp, in.d, mask);
}
void is_global(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint64_t>(warp, in.a);
  std::uint32_t mask = 0;
  for (int l = 0; l < kWarpLanes; ++l) {
    const std::uint64_t window = a[l] >> kWindowShift << kWindowShift;
    const bool other = window == kSharedWindow || window == kLocalWindow || window == kParamWindow;
    mask |= static_cast<std::uint32_t>(!other) << l;
  }
  write_predicate(warp, in.d, mask);
}

// ---- the table

template <class Op, class T>
void add_unary(HandlerRegistry& registry, const char* head, const char* type) {
  add_handler(registry, head, type, unary<Op, T, T>);
}
template <class Op, class T>
void add_binary(HandlerRegistry& registry, const char* head, const char* type) {
  add_handler(registry, head, type, binary<Op, T, T, T>);
}
template <class Op, class T>
void add_ternary(HandlerRegistry& registry, const char* head, const char* type) {
  add_handler(registry, head, type, ternary<Op, T, T, T, T>);
}

template <class Op>
void integer_binary(HandlerRegistry& registry, const char* head) {
  add_binary<Op, std::uint16_t>(registry, head, "u16");
  add_binary<Op, std::int16_t>(registry, head, "s16");
  add_binary<Op, std::uint32_t>(registry, head, "u32");
  add_binary<Op, std::int32_t>(registry, head, "s32");
  add_binary<Op, std::uint64_t>(registry, head, "u64");
  add_binary<Op, std::int64_t>(registry, head, "s64");
}
template <class Op>
void integer_ternary(HandlerRegistry& registry, const char* head) {
  add_ternary<Op, std::uint16_t>(registry, head, "u16");
  add_ternary<Op, std::int16_t>(registry, head, "s16");
  add_ternary<Op, std::uint32_t>(registry, head, "u32");
  add_ternary<Op, std::int32_t>(registry, head, "s32");
  add_ternary<Op, std::uint64_t>(registry, head, "u64");
  add_ternary<Op, std::int64_t>(registry, head, "s64");
}
template <class Op>
void bits_binary(HandlerRegistry& registry, const char* head) {
  add_binary<Op, std::uint16_t>(registry, head, "b16");
  add_binary<Op, std::uint32_t>(registry, head, "b32");
  add_binary<Op, std::uint64_t>(registry, head, "b64");
  add_handler(registry, head, "pred", predicate_binary<Op>);
}
template <class Op>
void bits_unary(HandlerRegistry& registry, const char* head) {
  add_unary<Op, std::uint16_t>(registry, head, "b16");
  add_unary<Op, std::uint32_t>(registry, head, "b32");
  add_unary<Op, std::uint64_t>(registry, head, "b64");
}

template <class T>
void wide_products(HandlerRegistry& registry, const char* type) {
  add_handler(registry, "mul.wide", type, binary<MultiplyWide, Wide<T>, T, T>);
  add_handler(registry, "mad.wide", type, ternary<MultiplyWideAdd, Wide<T>, T, T, Wide<T>>);
}

void register_integers(HandlerRegistry& registry) {
  integer_binary<Add>(registry, "add");
  integer_binary<Subtract>(registry, "sub");
  integer_binary<Multiply>(registry, "mul.lo");
  integer_binary<MultiplyHigh>(registry, "mul.hi");
  integer_binary<Divide>(registry, "div");
  integer_binary<Remainder>(registry, "rem");
  integer_binary<Minimum>(registry, "min");
  integer_binary<Maximum>(registry, "max");
  integer_ternary<MultiplyAdd>(registry, "mad.lo");
  integer_ternary<MultiplyHighAdd>(registry, "mad.hi");
  integer_ternary<SumOfDifferences>(registry, "sad");
  wide_products<std::uint16_t>(registry, "u16");
  wide_products<std::int16_t>(registry, "s16");
  wide_products<std::uint32_t>(registry, "u32");
  wide_products<std::int32_t>(registry, "s32");
  add_binary<AddSaturated, std::int32_t>(registry, "add.sat", "s32");
  add_binary<SubtractSaturated, std::int32_t>(registry, "sub.sat", "s32");
  add_unary<Negate, std::int16_t>(registry, "neg", "s16");
  add_unary<Negate, std::int32_t>(registry, "neg", "s32");
  add_unary<Negate, std::int64_t>(registry, "neg", "s64");
  add_unary<Absolute, std::int16_t>(registry, "abs", "s16");
  add_unary<Absolute, std::int32_t>(registry, "abs", "s32");
  add_unary<Absolute, std::int64_t>(registry, "abs", "s64");
  add_ternary<DotBytes<std::int8_t, std::int8_t>, std::int32_t>(registry, "dp4a.s32", "s32");
  add_handler(registry, "dp4a.u32", "u32",
              ternary<DotBytes<std::uint8_t, std::uint8_t>, std::int32_t, std::uint32_t, std::uint32_t, std::int32_t>);
  add_handler(registry, "dp4a.s32", "u32",
              ternary<DotBytes<std::int8_t, std::uint8_t>, std::int32_t, std::uint32_t, std::uint32_t, std::int32_t>);
  add_handler(registry, "dp4a.u32", "s32",
              ternary<DotBytes<std::uint8_t, std::int8_t>, std::int32_t, std::uint32_t, std::uint32_t, std::int32_t>);
}

template <class T>
void register_shift(HandlerRegistry& registry, const char* type) {
  add_handler(registry, "shl", type, binary<ShiftLeft, T, T, std::uint32_t>);
  add_handler(registry, "shr", type, binary<ShiftRight, T, T, std::uint32_t>);
}
template <class T>
void register_bit_scan(HandlerRegistry& registry, const char* type) {
  add_handler(registry, "bfind", type, unary<FindBit, std::uint32_t, T>);
  add_handler(registry, "bfind.shiftamt", type, unary<FindBitShift, std::uint32_t, T>);
  add_handler(registry, "bfe", type, ternary<ExtractBits, T, T, std::uint32_t, std::uint32_t>);
}

void register_bits(HandlerRegistry& registry) {
  bits_binary<And>(registry, "and");
  bits_binary<Or>(registry, "or");
  bits_binary<Xor>(registry, "xor");
  bits_unary<Not>(registry, "not");
  bits_unary<LogicalNot>(registry, "cnot");
  add_handler(registry, "not", "pred", predicate_unary<Not>);
  register_shift<std::uint16_t>(registry, "b16");
  register_shift<std::uint16_t>(registry, "u16");
  register_shift<std::int16_t>(registry, "s16");
  register_shift<std::uint32_t>(registry, "b32");
  register_shift<std::uint32_t>(registry, "u32");
  register_shift<std::int32_t>(registry, "s32");
  register_shift<std::uint64_t>(registry, "b64");
  register_shift<std::uint64_t>(registry, "u64");
  register_shift<std::int64_t>(registry, "s64");
  register_bit_scan<std::uint32_t>(registry, "u32");
  register_bit_scan<std::int32_t>(registry, "s32");
  register_bit_scan<std::uint64_t>(registry, "u64");
  register_bit_scan<std::int64_t>(registry, "s64");
  add_ternary<FunnelShift<true, true>, std::uint32_t>(registry, "shf.l.wrap", "b32");
  add_ternary<FunnelShift<true, false>, std::uint32_t>(registry, "shf.l.clamp", "b32");
  add_ternary<FunnelShift<false, true>, std::uint32_t>(registry, "shf.r.wrap", "b32");
  add_ternary<FunnelShift<false, false>, std::uint32_t>(registry, "shf.r.clamp", "b32");
  add_handler(registry, "bfi", "b32", insert_bits<std::uint32_t>);
  add_handler(registry, "bfi", "b64", insert_bits<std::uint64_t>);
  add_handler(registry, "lop3", "b32", logic3);
  add_ternary<Permute, std::uint32_t>(registry, "prmt", "b32");
  add_handler(registry, "popc", "b32", unary<Population, std::uint32_t, std::uint32_t>);
  add_handler(registry, "popc", "b64", unary<Population, std::uint32_t, std::uint64_t>);
  add_handler(registry, "clz", "b32", unary<LeadingZeros, std::uint32_t, std::uint32_t>);
  add_handler(registry, "clz", "b64", unary<LeadingZeros, std::uint32_t, std::uint64_t>);
  add_unary<ReverseBits, std::uint32_t>(registry, "brev", "b32");
  add_unary<ReverseBits, std::uint64_t>(registry, "brev", "b64");
  for (const char* type : {"b16", "u16", "s16", "b32", "u32", "s32", "f32"}) {
    add_handler(registry, "selp", type, select<std::uint32_t>);
  }
  for (const char* type : {"b64", "u64", "s64", "f64"}) add_handler(registry, "selp", type, select<std::uint64_t>);
  add_handler(registry, "slct.b32", "s32", select_by_sign<std::uint32_t, std::int32_t>);
  add_handler(registry, "slct.b32", "f32", select_by_sign<std::uint32_t, float>);
  add_handler(registry, "slct.b64", "s32", select_by_sign<std::uint64_t, std::int32_t>);
  add_handler(registry, "slct.b64", "f32", select_by_sign<std::uint64_t, float>);
  add_handler(registry, "carry.add", "b32", with_carry<std::uint32_t, CarryOp::add>);
  add_handler(registry, "carry.add", "b64", with_carry<std::uint64_t, CarryOp::add>);
  add_handler(registry, "carry.sub", "b32", with_carry<std::uint32_t, CarryOp::subtract>);
  add_handler(registry, "carry.sub", "b64", with_carry<std::uint64_t, CarryOp::subtract>);
  add_handler(registry, "carry.mad.lo", "b32", with_carry<std::uint32_t, CarryOp::multiply_low>);
  add_handler(registry, "carry.mad.lo", "b64", with_carry<std::uint64_t, CarryOp::multiply_low>);
  add_handler(registry, "carry.mad.hi", "b32", with_carry<std::uint32_t, CarryOp::multiply_high>);
  add_handler(registry, "carry.mad.hi", "b64", with_carry<std::uint64_t, CarryOp::multiply_high>);
  add_handler(registry, "carry.mad.hi", "s32", with_carry<std::uint32_t, CarryOp::multiply_high_signed>);
  add_handler(registry, "carry.mad.hi", "s64", with_carry<std::uint64_t, CarryOp::multiply_high_signed>);
}

/// An operation on f32 in its four forms.
template <class Op>
void float_binary(HandlerRegistry& registry, const char* head, const char* ftz, const char* sat, const char* ftz_sat) {
  add_binary<Op, float>(registry, head, "f32");
  add_binary<Flushed<Op>, float>(registry, ftz, "f32");
  add_binary<Saturated<Op>, float>(registry, sat, "f32");
  add_binary<Saturated<Flushed<Op>>, float>(registry, ftz_sat, "f32");
}

template <class Op>
void float_unary(HandlerRegistry& registry, const char* head, const char* ftz) {
  add_unary<Op, float>(registry, head, "f32");
  add_unary<Flushed<Op>, float>(registry, ftz, "f32");
}

template <template <Rounding> class Op>
void directed_binary(HandlerRegistry& registry, const char* rz, const char* rm, const char* rp) {
  add_binary<Op<Rounding::zero>, float>(registry, rz, "f32");
  add_binary<Op<Rounding::down>, float>(registry, rm, "f32");
  add_binary<Op<Rounding::up>, float>(registry, rp, "f32");
}
template <template <Rounding> class Op>
void directed_unary(HandlerRegistry& registry, const char* rz, const char* rm, const char* rp) {
  add_unary<Op<Rounding::zero>, float>(registry, rz, "f32");
  add_unary<Op<Rounding::down>, float>(registry, rm, "f32");
  add_unary<Op<Rounding::up>, float>(registry, rp, "f32");
}

void register_directed(HandlerRegistry& registry) {
  directed_binary<DirectedAdd>(registry, "add.rz", "add.rm", "add.rp");
  directed_binary<DirectedSubtract>(registry, "sub.rz", "sub.rm", "sub.rp");
  directed_binary<DirectedMultiply>(registry, "mul.rz", "mul.rm", "mul.rp");
  directed_binary<DirectedDivide>(registry, "div.rz", "div.rm", "div.rp");
  directed_unary<DirectedReciprocal>(registry, "rcp.rz", "rcp.rm", "rcp.rp");
  directed_unary<DirectedSqrt>(registry, "sqrt.rz", "sqrt.rm", "sqrt.rp");
  add_ternary<DirectedFma<Rounding::zero>, float>(registry, "fma.rz", "f32");
  add_ternary<DirectedFma<Rounding::down>, float>(registry, "fma.rm", "f32");
  add_ternary<DirectedFma<Rounding::up>, float>(registry, "fma.rp", "f32");
}

void register_floats(HandlerRegistry& registry) {
  float_binary<Add>(registry, "add", "add.ftz", "add.sat", "add.ftz.sat");
  float_binary<Subtract>(registry, "sub", "sub.ftz", "sub.sat", "sub.ftz.sat");
  float_binary<Multiply>(registry, "mul", "mul.ftz", "mul.sat", "mul.ftz.sat");
  float_binary<Divide>(registry, "div", "div.ftz", "div.sat", "div.ftz.sat");
  for (const char* head : {"fma", "mad"}) add_ternary<Fma, float>(registry, head, "f32");
  add_ternary<Flushed<Fma>, float>(registry, "fma.ftz", "f32");
  add_ternary<Saturated<Fma>, float>(registry, "fma.sat", "f32");
  add_ternary<Saturated<Flushed<Fma>>, float>(registry, "fma.ftz.sat", "f32");
  add_binary<Minimum, float>(registry, "min", "f32");
  add_binary<Maximum, float>(registry, "max", "f32");
  add_binary<Flushed<Minimum>, float>(registry, "min.ftz", "f32");
  add_binary<Flushed<Maximum>, float>(registry, "max.ftz", "f32");
  add_binary<WithNan<Minimum>, float>(registry, "min.NaN", "f32");
  add_binary<WithNan<Maximum>, float>(registry, "max.NaN", "f32");
  add_binary<Flushed<WithNan<Minimum>>, float>(registry, "min.ftz.NaN", "f32");
  add_binary<Flushed<WithNan<Maximum>>, float>(registry, "max.ftz.NaN", "f32");
  float_unary<Sqrt>(registry, "sqrt", "sqrt.ftz");
  float_unary<ReciprocalSqrt>(registry, "rsqrt", "rsqrt.ftz");
  float_unary<Reciprocal>(registry, "rcp", "rcp.ftz");
  float_unary<Sine>(registry, "sin", "sin.ftz");
  float_unary<Cosine>(registry, "cos", "cos.ftz");
  float_unary<Exp2>(registry, "ex2", "ex2.ftz");
  float_unary<Log2>(registry, "lg2", "lg2.ftz");
  float_unary<HyperbolicTangent>(registry, "tanh", "tanh.ftz");
  for (const char* head : {"neg", "neg.ftz"})
    add_unary<FlipSigns<std::uint32_t, 0x80000000u>, std::uint32_t>(registry, head, "f32");
  for (const char* head : {"abs", "abs.ftz"})
    add_unary<ClearSigns<std::uint32_t, 0x80000000u>, std::uint32_t>(registry, head, "f32");
  add_binary<CopySign, std::uint32_t>(registry, "copysign", "f32");
  add_binary<CopySign, std::uint64_t>(registry, "copysign", "f64");

  add_binary<Add, double>(registry, "add", "f64");
  add_binary<Subtract, double>(registry, "sub", "f64");
  add_binary<Multiply, double>(registry, "mul", "f64");
  add_binary<Divide, double>(registry, "div", "f64");
  for (const char* head : {"fma", "mad"}) add_ternary<Fma, double>(registry, head, "f64");
  add_binary<Minimum, double>(registry, "min", "f64");
  add_binary<Maximum, double>(registry, "max", "f64");
  add_unary<Sqrt, double>(registry, "sqrt", "f64");
  for (const char* head : {"rsqrt", "rsqrt.ftz"}) add_unary<ReciprocalSqrt, double>(registry, head, "f64");
  for (const char* head : {"rcp", "rcp.ftz"}) add_unary<Reciprocal, double>(registry, head, "f64");
  constexpr std::uint64_t kSign = std::uint64_t{1} << 63;
  add_unary<FlipSigns<std::uint64_t, kSign>, std::uint64_t>(registry, "neg", "f64");
  add_unary<ClearSigns<std::uint64_t, kSign>, std::uint64_t>(registry, "abs", "f64");

  add_handler(registry, "testp.finite", "f32", test_float<IsFinite>);
  add_handler(registry, "testp.infinite", "f32", test_float<IsInfinite>);
  add_handler(registry, "testp.number", "f32", test_float<IsNumber>);
  add_handler(registry, "testp.notanumber", "f32", test_float<IsNan>);
  add_handler(registry, "testp.normal", "f32", test_float<IsNormal>);
  add_handler(registry, "testp.subnormal", "f32", test_float<IsSubnormal>);
}

template <class H, class Product, class MultiplyAddition>
void register_halves(HandlerRegistry& registry, const char* type, const char* pair) {
  add_binary<Add, H>(registry, "add", type);
  add_binary<Subtract, H>(registry, "sub", type);
  add_binary<Product, H>(registry, "mul", type);
  add_ternary<MultiplyAddition, H>(registry, "fma", type);
  add_ternary<Relu<MultiplyAddition>, H>(registry, "fma.relu", type);
  add_binary<Saturated<Add>, H>(registry, "add.sat", type);
  add_binary<Saturated<Subtract>, H>(registry, "sub.sat", type);
  add_binary<Saturated<Product>, H>(registry, "mul.sat", type);
  add_ternary<Saturated<MultiplyAddition>, H>(registry, "fma.sat", type);
  add_binary<Minimum, H>(registry, "min", type);
  add_binary<Maximum, H>(registry, "max", type);
  add_binary<WithNan<Minimum>, H>(registry, "min.NaN", type);
  add_binary<WithNan<Maximum>, H>(registry, "max.NaN", type);
  for (const char* head : {"ex2", "ex2.ftz"}) add_unary<Exp2, H>(registry, head, type);
  add_unary<HyperbolicTangent, H>(registry, "tanh", type);
  add_unary<FlipSigns<std::uint32_t, 0x8000u>, std::uint32_t>(registry, "neg", type);
  add_unary<ClearSigns<std::uint32_t, 0x8000u>, std::uint32_t>(registry, "abs", type);

  add_handler(registry, "add", pair, binary_pair<Add, H>);
  add_handler(registry, "sub", pair, binary_pair<Subtract, H>);
  add_handler(registry, "mul", pair, binary_pair<Product, H>);
  add_handler(registry, "fma", pair, ternary_pair<MultiplyAddition, H>);
  add_handler(registry, "fma.relu", pair, ternary_pair<Relu<MultiplyAddition>, H>);
  add_handler(registry, "add.sat", pair, binary_pair<Saturated<Add>, H>);
  add_handler(registry, "sub.sat", pair, binary_pair<Saturated<Subtract>, H>);
  add_handler(registry, "mul.sat", pair, binary_pair<Saturated<Product>, H>);
  add_handler(registry, "fma.sat", pair, ternary_pair<Saturated<MultiplyAddition>, H>);
  add_handler(registry, "min", pair, binary_pair<Minimum, H>);
  add_handler(registry, "max", pair, binary_pair<Maximum, H>);
  add_handler(registry, "min.NaN", pair, binary_pair<WithNan<Minimum>, H>);
  add_handler(registry, "max.NaN", pair, binary_pair<WithNan<Maximum>, H>);
  for (const char* head : {"ex2", "ex2.ftz"}) add_handler(registry, head, pair, unary_pair<Exp2, H>);
  add_handler(registry, "tanh", pair, unary_pair<HyperbolicTangent, H>);
  add_unary<FlipSigns<std::uint32_t, 0x80008000u>, std::uint32_t>(registry, "neg", pair);
  add_unary<ClearSigns<std::uint32_t, 0x80008000u>, std::uint32_t>(registry, "abs", pair);
}

/// setp and set of one comparison.
template <class Comparison, class T>
void register_comparison_of(HandlerRegistry& registry, const char* setp, const char* set, const char* type) {
  add_handler(registry, setp, type, set_predicate<Comparison, T>);
  add_handler(registry, set, type, set_value<Comparison, T>);
}
template <class Comparison>
void integer_comparison(HandlerRegistry& registry, const char* setp, const char* set) {
  register_comparison_of<Comparison, std::uint16_t>(registry, setp, set, "u16");
  register_comparison_of<Comparison, std::uint16_t>(registry, setp, set, "b16");
  register_comparison_of<Comparison, std::int16_t>(registry, setp, set, "s16");
  register_comparison_of<Comparison, std::uint32_t>(registry, setp, set, "u32");
  register_comparison_of<Comparison, std::uint32_t>(registry, setp, set, "b32");
  register_comparison_of<Comparison, std::int32_t>(registry, setp, set, "s32");
  register_comparison_of<Comparison, std::uint64_t>(registry, setp, set, "u64");
  register_comparison_of<Comparison, std::uint64_t>(registry, setp, set, "b64");
  register_comparison_of<Comparison, std::int64_t>(registry, setp, set, "s64");
}
template <class Comparison>
void float_comparison(HandlerRegistry& registry, const char* setp, const char* set, const char* setp_ftz,
                      const char* set_ftz) {
  register_comparison_of<Comparison, float>(registry, setp, set, "f32");
  register_comparison_of<Comparison, double>(registry, setp, set, "f64");
  register_comparison_of<Comparison, F16>(registry, setp, set, "f16");
  register_comparison_of<Comparison, Bf16>(registry, setp, set, "bf16");
  add_handler(registry, setp_ftz, "f32", set_predicate<Comparison, float, true>);
  add_handler(registry, set_ftz, "f32", set_value<Comparison, float, true>);
  add_handler(registry, set, "f16x2", set_pair<Comparison, F16>);
  add_handler(registry, set, "bf16x2", set_pair<Comparison, Bf16>);
}

#define GPUSIM_INTEGER_COMPARISON(name, Comparison) integer_comparison<Comparison>(registry, "setp." name, "set." name)
#define GPUSIM_FLOAT_COMPARISON(name, Comparison) \
  float_comparison<Comparison>(registry, "setp." name, "set." name, "setp." name ".ftz", "set." name ".ftz")

void register_comparisons(HandlerRegistry& registry) {
  GPUSIM_INTEGER_COMPARISON("eq", Equal);
  GPUSIM_INTEGER_COMPARISON("ne", NotEqual);
  GPUSIM_INTEGER_COMPARISON("lt", Less);
  GPUSIM_INTEGER_COMPARISON("le", LessEqual);
  GPUSIM_INTEGER_COMPARISON("gt", Greater);
  GPUSIM_INTEGER_COMPARISON("ge", GreaterEqual);
  GPUSIM_INTEGER_COMPARISON("lo", Less);
  GPUSIM_INTEGER_COMPARISON("ls", LessEqual);
  GPUSIM_INTEGER_COMPARISON("hi", Greater);
  GPUSIM_INTEGER_COMPARISON("hs", GreaterEqual);
  GPUSIM_FLOAT_COMPARISON("eq", Equal);
  GPUSIM_FLOAT_COMPARISON("ne", NotEqual);
  GPUSIM_FLOAT_COMPARISON("lt", Less);
  GPUSIM_FLOAT_COMPARISON("le", LessEqual);
  GPUSIM_FLOAT_COMPARISON("gt", Greater);
  GPUSIM_FLOAT_COMPARISON("ge", GreaterEqual);
  GPUSIM_FLOAT_COMPARISON("equ", Unless<NotEqual>);
  GPUSIM_FLOAT_COMPARISON("neu", Unless<Equal>);
  GPUSIM_FLOAT_COMPARISON("ltu", Unless<GreaterEqual>);
  GPUSIM_FLOAT_COMPARISON("leu", Unless<Greater>);
  GPUSIM_FLOAT_COMPARISON("gtu", Unless<LessEqual>);
  GPUSIM_FLOAT_COMPARISON("geu", Unless<Less>);
  GPUSIM_FLOAT_COMPARISON("num", BothNumbers);
  GPUSIM_FLOAT_COMPARISON("nan", Unless<BothNumbers>);
}

void register_moves(HandlerRegistry& registry) {
  add_handler(registry, "mov.b32", "", unary<Identity, std::uint32_t, std::uint32_t>);
  add_handler(registry, "mov.b64", "", unary<Identity, std::uint64_t, std::uint64_t>);
  add_handler(registry, "mov.b128", "", move_quad);
  add_handler(registry, "mov.pred", "", move_predicate);
  add_handler(registry, "ld.parameter", "", load_parameter);
  add_handler(registry, "pack", "", pack);
  add_handler(registry, "unpack", "", unpack);
  add_handler(registry, "cvta", "", to_generic);
  add_handler(registry, "cvta.to", "", from_generic);
  add_handler(registry, "isspacep", "", is_space);
  add_handler(registry, "isspacep.global", "", is_global);
}

}  // namespace

void register_arithmetic(HandlerRegistry& registry) {
  register_integers(registry);
  register_bits(registry);
  register_floats(registry);
  register_directed(registry);
  register_halves<F16, Multiply, FmaF16>(registry, "f16", "f16x2");
  register_halves<Bf16, MultiplyBf16, FmaBf16>(registry, "bf16", "bf16x2");
  register_comparisons(registry);
  register_moves(registry);
}

}  // namespace gpusim::DSV2_ISA
