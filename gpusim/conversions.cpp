// cvt between every pair of number formats, with rounding, saturation, relu and flushing of subnormals.
#include <cmath>
#include <limits>

#include "gpusim/handlers.h"
#include "gpusim/lanes.h"

namespace gpusim::DSV2_ISA {
namespace {

template <class T>
inline constexpr bool kIsFloat =
    std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, F16> || std::is_same_v<T, Bf16>;

/// To a whole number, in the type that it has.
template <Rounding kRounding, class T>
T whole(T value) {
  switch (kRounding) {
    case Rounding::zero:
      return std::trunc(value);
    case Rounding::down:
      return std::floor(value);
    case Rounding::up:
      return std::ceil(value);
    default:
      return std::rint(value);
  }
}

/// Calls `body` with the rounding as a constant, so that its loop vectorises.
template <class Body>
void with_rounding(std::uint8_t mode, Body body) {
  switch (static_cast<Rounding>(mode)) {
    case Rounding::zero:
      return body(std::integral_constant<Rounding, Rounding::zero>());
    case Rounding::down:
      return body(std::integral_constant<Rounding, Rounding::down>());
    case Rounding::up:
      return body(std::integral_constant<Rounding, Rounding::up>());
    default:
      return body(std::integral_constant<Rounding, Rounding::nearest>());
  }
}

// ---- between integers

template <class D, class S>
D clamp_to(S value) {
  using Both = __int128;
  // The sign of a char counts here.
  // NOLINTBEGIN(bugprone-signed-char-misuse)
  const Both low = std::numeric_limits<D>::min();
  const Both high = std::numeric_limits<D>::max();
  const Both wide = value;
  // NOLINTEND(bugprone-signed-char-misuse)
  return static_cast<D>(wide < low ? low : wide > high ? high : wide);
}

template <class D, class S>
void integer_to_integer(Warp& warp, const Instruction& in) {
  const auto* a = lanes<typename Lane<S>::Storage>(warp, in.a);
  if ((in.flags & kSaturate) != 0) {
    write<typename Lane<D>::Storage>(warp, in.d,
                                     [=](int l) { return Lane<D>::store(clamp_to<D>(Lane<S>::load(a[l]))); });
  } else {
    write<typename Lane<D>::Storage>(warp, in.d,
                                     [=](int l) { return Lane<D>::store(static_cast<D>(Lane<S>::load(a[l]))); });
  }
}

// ---- floats to integers: out-of-range values become the nearest one, NaN becomes 0; of doubles, or as 64 bits, the
// top bit alone

template <class D, bool kNanIsTopBit, class V>
D to_integer(V value) {
  // The first value above the range is a power of two, so it is exact.
  constexpr V kLow = static_cast<V>(std::numeric_limits<D>::min());
  constexpr D kHalf = std::numeric_limits<D>::max() / 2 + 1;
  constexpr V kAbove = static_cast<V>(kHalf) * 2;
  const bool high = value >= kAbove;
  const bool low = value <= kLow;
  const V inside = high || low || value != value ? V{0} : value;
  const D result = static_cast<D>(inside);
  constexpr D kTopBit = static_cast<D>(std::make_unsigned_t<D>{1} << (8 * sizeof(D) - 1));
  const D nan = kNanIsTopBit && value != value ? kTopBit : result;
  return high ? std::numeric_limits<D>::max() : low ? std::numeric_limits<D>::min() : nan;
}

template <class D, class S>
void float_to_integer(Warp& warp, const Instruction& in) {
  const auto* a = lanes<typename Lane<S>::Storage>(warp, in.a);
  const bool flushes = (in.flags & kFlush) != 0;
  constexpr bool kNanIsTopBit = std::is_same_v<S, double> || sizeof(D) == 8;
  with_rounding(in.mode, [&](auto rounding) {
    write<typename Lane<D>::Storage>(warp, in.d, [=](int l) {
      auto value = Lane<S>::load(a[l]);
      value = flushes ? flush(value) : value;
      return Lane<D>::store(to_integer<D, kNanIsTopBit>(whole<decltype(rounding)::value>(value)));
    });
  });
}

// ---- to floats

/// `rounded` is nearest to the exact value; moves it where the rounding asks for the other neighbour.
template <Rounding kRounding, class T>
T adjust(T rounded, bool exact_is_less, bool exact_is_greater) {
  const bool down = kRounding == Rounding::down || (kRounding == Rounding::zero && rounded > 0);
  const bool up = kRounding == Rounding::up || (kRounding == Rounding::zero && rounded < 0);
  if (down && exact_is_less) return std::nextafter(rounded, -std::numeric_limits<T>::infinity());
  if (up && exact_is_greater) return std::nextafter(rounded, std::numeric_limits<T>::infinity());
  return rounded;
}

/// A double or float as a D, rounded once.
template <class D, Rounding kRounding>
struct Narrow;

template <Rounding kRounding>
struct Narrow<double, kRounding> {
  static double from(double value) { return value; }
};
template <Rounding kRounding>
struct Narrow<float, kRounding> {
  static float from(float value) { return value; }
  static float from(double value) {
    const auto rounded = static_cast<float>(value);
    if constexpr (kRounding == Rounding::nearest) return rounded;
    return adjust<kRounding>(rounded, value<static_cast<double>(rounded), value> static_cast<double>(rounded));
  }
};
/// 16-bit formats: what Lane stores is rounded to nearest; the neighbour in bits where another rounding asks for it.
template <class H, Rounding kRounding>
struct NarrowHalf {
  static float from(float value) {
    if constexpr (kRounding == Rounding::nearest) return value;
    const std::uint32_t bits = Lane<H>::store(value);
    const float rounded = Lane<H>::load(bits);
    if (rounded != rounded || value - value != 0) return value;
    const bool down = kRounding == Rounding::down || (kRounding == Rounding::zero && value > 0);
    const bool up = kRounding == Rounding::up || (kRounding == Rounding::zero && value < 0);
    if (down && rounded > value) return Lane<H>::load(value > 0 ? bits - 1 : (bits == 0 ? 0x8001u : bits + 1));
    if (up && rounded < value) return Lane<H>::load(value < 0 ? bits - 1 : (bits == 0x8000u ? 0x0001u : bits + 1));
    return rounded;
  }
  static float from(double value) {
    const auto narrow = static_cast<float>(value);
    if constexpr (kRounding == Rounding::nearest) {
      const double error = value - static_cast<double>(narrow);
      return round_to_odd(narrow, error == error ? static_cast<float>(error) : 0.0f);
    }
    return from(adjust<kRounding>(narrow, value<static_cast<double>(narrow), value> static_cast<double>(narrow)));
  }
};
template <Rounding kRounding>
struct Narrow<F16, kRounding> : NarrowHalf<F16, kRounding> {};
template <Rounding kRounding>
struct Narrow<Bf16, kRounding> : NarrowHalf<Bf16, kRounding> {};

/// NaN becomes 0 under .sat and stays under .relu.
template <class V>
V limit(V value, bool saturates, bool relu) {
  if (saturates) value = value > 1 ? V{1} : value > 0 ? value : V{0};
  if (relu) value = value < 0 ? V{0} : value;
  return value;
}

template <class D, class S>
void float_to_float(Warp& warp, const Instruction& in) {
  const auto* a = lanes<typename Lane<S>::Storage>(warp, in.a);
  const bool saturates = (in.flags & kSaturate) != 0;
  const bool relu = (in.flags & kRelu) != 0;
  const bool flushes = (in.flags & kFlush) != 0;
  const bool to_whole = (in.flags & kToInteger) != 0;
  with_rounding(in.mode, [&](auto rounding) {
    constexpr Rounding kRounding = decltype(rounding)::value;
    if (!saturates && !relu && !flushes && !to_whole) {
      write<typename Lane<D>::Storage>(warp, in.d, [=](int l) {
        return Lane<D>::store(canonical(Narrow<D, kRounding>::from(Lane<S>::load(a[l]))));
      });
      return;
    }
    write<typename Lane<D>::Storage>(warp, in.d, [=](int l) {
      auto value = Lane<S>::load(a[l]);
      value = flushes ? flush(value) : value;
      value = limit(value, saturates, relu);
      // A whole number is rounded to by the modifier; narrowing it after that is to nearest.
      const auto result =
          to_whole ? Narrow<D, Rounding::nearest>::from(whole<kRounding>(value)) : Narrow<D, kRounding>::from(value);
      return Lane<D>::store(canonical(flushes ? flush(result) : result));
    });
  });
}

template <class D, class S>
void integer_to_float(Warp& warp, const Instruction& in) {
  const auto* a = lanes<typename Lane<S>::Storage>(warp, in.a);
  const bool saturates = (in.flags & kSaturate) != 0;
  with_rounding(in.mode, [&](auto rounding) {
    constexpr Rounding kRounding = decltype(rounding)::value;
    write<typename Lane<D>::Storage>(warp, in.d, [=](int l) {
      const S value = Lane<S>::load(a[l]);
      if constexpr (std::is_same_v<D, float> && kRounding == Rounding::nearest) {
        return limit(static_cast<float>(value), saturates, false);
      } else if constexpr (sizeof(S) < 8) {
        return Lane<D>::store(limit(Narrow<D, kRounding>::from(static_cast<double>(value)), saturates, false));
      } else {
        // 64-bit integers are exact in long double only.
        using F = std::conditional_t<std::is_same_v<D, double>, double, float>;
        const auto exact = static_cast<long double>(value);
        F nearest = static_cast<F>(value);
        if constexpr (std::is_same_v<D, F16> || std::is_same_v<D, Bf16>) {
          // A sticky last bit, so that the 16-bit result is rounded once.
          const auto error = static_cast<float>(exact - static_cast<long double>(nearest));
          nearest = Narrow<D, kRounding>::from(round_to_odd(nearest, error));
        } else {
          nearest = adjust<kRounding>(
              nearest, exact<static_cast<long double>(nearest), exact> static_cast<long double>(nearest));
        }
        return Lane<D>::store(limit(nearest, saturates, false));
      }
    });
  });
}

// ---- packed results and small formats

template <class H>
void pack_halves(Warp& warp, const Instruction& in) {
  const auto* a = lanes<float>(warp, in.a);
  const auto* b = lanes<float>(warp, in.b);
  const bool relu = (in.flags & kRelu) != 0;
  if (in.mode == static_cast<std::uint8_t>(Rounding::nearest) && !relu) {
    write<std::uint32_t>(warp, in.d, [=](int l) { return Lane<H>::store(a[l]) << 16 | Lane<H>::store(b[l]); });
    return;
  }
  with_rounding(in.mode, [&](auto rounding) {
    using Rounded = Narrow<H, decltype(rounding)::value>;
    write<std::uint32_t>(warp, in.d, [=](int l) {
      const std::uint32_t high = Lane<H>::store(canonical(Rounded::from(limit(a[l], false, relu))));
      const std::uint32_t low = Lane<H>::store(canonical(Rounded::from(limit(b[l], false, relu))));
      return high << 16 | low;
    });
  });
}

/// tf32 is f32 with 10 bits of fraction.
void to_tf32(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const bool away = static_cast<Rounding>(in.mode) == Rounding::nearest_away;
  const bool truncates = static_cast<Rounding>(in.mode) == Rounding::zero;
  const bool relu = (in.flags & kRelu) != 0;
  write<std::uint32_t>(warp, in.d, [=](int l) {
    const std::uint32_t bits = a[l];
    const bool special = (bits & 0x7f800000u) == 0x7f800000u;
    const std::uint32_t half = truncates ? 0u : away ? 0x1000u : 0xfffu + (bits >> 13 & 1u);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    std::uint32_t result = special ? bits : (bits + half) & 0xffffe000u;
    result = relu && (bits >> 31) != 0 && !nan ? 0u : result;
    return nan ? kNan32 : result;
  });
}

/// A format of 8 bits: exponent bits, their bias, and the largest finite magnitude.
struct SmallFormat {
  int exponent_bits;
  int bias;
  std::uint32_t largest;
};
inline constexpr SmallFormat kE4m3{4, 7, 0x7e};
inline constexpr SmallFormat kE5m2{5, 15, 0x7b};

template <SmallFormat kFormat>
float from_small(std::uint32_t bits) {
  constexpr int kFraction = 7 - kFormat.exponent_bits;
  const auto exponent = static_cast<int>(bits >> kFraction & ((1u << kFormat.exponent_bits) - 1));
  const std::uint32_t fraction = bits & ((1u << kFraction) - 1);
  const std::uint32_t magnitude = bits & 0x7fu;
  float value = 0;
  if (magnitude > kFormat.largest) {
    const bool infinity = kFormat.exponent_bits == 5 && fraction == 0;
    value = infinity ? std::numeric_limits<float>::infinity() : float_of(kNan32);
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(fraction), 1 - kFormat.bias - kFraction);
  } else {
    value = std::ldexp(static_cast<float>((1u << kFraction) | fraction), exponent - kFormat.bias - kFraction);
  }
  return (bits & 0x80u) != 0 ? -value : value;
}

/// To nearest even, out-of-range values to the largest: .satfinite, the only form there is.
template <SmallFormat kFormat>
std::uint32_t to_small(float value) {
  if (value != value) return 0x7fu;
  constexpr int kFraction = 7 - kFormat.exponent_bits;
  const std::uint32_t sign = bits_of(value) >> 24 & 0x80u;
  const float magnitude = std::fabs(value);
  if (magnitude == 0) return sign;  // has no exponent
  if (magnitude >= from_small<kFormat>(kFormat.largest)) return sign | kFormat.largest;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  exponent = std::max(exponent - 1, 1 - kFormat.bias);
  const float steps = std::rint(std::ldexp(magnitude, kFraction - exponent));
  // Steps of the binade, the implicit one included: adding binades carries into the exponent as it should.
  const int binade = exponent + kFormat.bias - 1;
  const auto bits = static_cast<std::uint32_t>((binade << kFraction) + static_cast<int>(steps));
  return sign | bits;
}

template <SmallFormat kFormat>
void pack_small(Warp& warp, const Instruction& in) {
  const auto* a = lanes<float>(warp, in.a);
  const auto* b = lanes<float>(warp, in.b);
  const bool relu = (in.flags & kRelu) != 0;
  write<std::uint32_t>(warp, in.d, [=](int l) {
    return to_small<kFormat>(limit(a[l], false, relu)) << 8 | to_small<kFormat>(limit(b[l], false, relu));
  });
}
template <SmallFormat kFormat>
void halves_to_small(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const bool relu = (in.flags & kRelu) != 0;
  write<std::uint32_t>(warp, in.d, [=](int l) {
    const float high = limit(from_f16(a[l] >> 16), false, relu);
    return to_small<kFormat>(high) << 8 | to_small<kFormat>(limit(from_f16(a[l] & 0xffffu), false, relu));
  });
}
template <SmallFormat kFormat>
void small_to_halves(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const bool relu = (in.flags & kRelu) != 0;
  write<std::uint32_t>(warp, in.d, [=](int l) {
    const float high = limit(from_small<kFormat>(a[l] >> 8 & 0xffu), false, relu);
    return to_f16(high) << 16 | to_f16(limit(from_small<kFormat>(a[l] & 0xffu), false, relu));
  });
}

// ---- the table

template <class D, class S>
Handler conversion() {
  if constexpr (kIsFloat<D> && kIsFloat<S>)
    return float_to_float<D, S>;
  else if constexpr (kIsFloat<D>)
    return integer_to_float<D, S>;
  else if constexpr (kIsFloat<S>)
    return float_to_integer<D, S>;
  else
    return integer_to_integer<D, S>;
}

template <class D>
void conversions_to(HandlerRegistry& registry, const char* head) {
  add_handler(registry, head, "u8", conversion<D, std::uint8_t>());
  add_handler(registry, head, "s8", conversion<D, std::int8_t>());
  add_handler(registry, head, "u16", conversion<D, std::uint16_t>());
  add_handler(registry, head, "s16", conversion<D, std::int16_t>());
  add_handler(registry, head, "u32", conversion<D, std::uint32_t>());
  add_handler(registry, head, "s32", conversion<D, std::int32_t>());
  add_handler(registry, head, "u64", conversion<D, std::uint64_t>());
  add_handler(registry, head, "s64", conversion<D, std::int64_t>());
  add_handler(registry, head, "f16", conversion<D, F16>());
  add_handler(registry, head, "bf16", conversion<D, Bf16>());
  add_handler(registry, head, "f32", conversion<D, float>());
  add_handler(registry, head, "f64", conversion<D, double>());
}

}  // namespace

void register_conversions(HandlerRegistry& registry) {
  conversions_to<std::uint8_t>(registry, "cvt.u8");
  conversions_to<std::int8_t>(registry, "cvt.s8");
  conversions_to<std::uint16_t>(registry, "cvt.u16");
  conversions_to<std::int16_t>(registry, "cvt.s16");
  conversions_to<std::uint32_t>(registry, "cvt.u32");
  conversions_to<std::int32_t>(registry, "cvt.s32");
  conversions_to<std::uint64_t>(registry, "cvt.u64");
  conversions_to<std::int64_t>(registry, "cvt.s64");
  conversions_to<F16>(registry, "cvt.f16");
  conversions_to<Bf16>(registry, "cvt.bf16");
  conversions_to<float>(registry, "cvt.f32");
  conversions_to<double>(registry, "cvt.f64");
  add_handler(registry, "cvt.f16x2", "f32", pack_halves<F16>);
  add_handler(registry, "cvt.bf16x2", "f32", pack_halves<Bf16>);
  add_handler(registry, "cvt.tf32", "f32", to_tf32);
  add_handler(registry, "cvt.e4m3x2", "f32", pack_small<kE4m3>);
  add_handler(registry, "cvt.e5m2x2", "f32", pack_small<kE5m2>);
  add_handler(registry, "cvt.e4m3x2", "f16x2", halves_to_small<kE4m3>);
  add_handler(registry, "cvt.e5m2x2", "f16x2", halves_to_small<kE5m2>);
  add_handler(registry, "cvt.f16x2", "e4m3x2", small_to_halves<kE4m3>);
  add_handler(registry, "cvt.f16x2", "e5m2x2", small_to_halves<kE5m2>);
}

}  // namespace gpusim::DSV2_ISA
