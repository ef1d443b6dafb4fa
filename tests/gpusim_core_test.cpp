// Instructions one by one against plain C++ on edge values, in every instruction set; and PTX that is refused.
#include <bit>
#include <cfenv>
#include <cmath>
#include <functional>
#include <limits>

#include "gpusim_instruction.h"
#include "model/error.h"

namespace gpusim {
namespace {

void check_f32(const std::string& op, const std::function<float(float, float)>& reference) {
  check({op + " d, a, b;", 4, 4, 4, 4, kF32, kF32, {0}, [&](Bits a, Bits b, Bits) {
           return bits_of(reference(as_float(a), as_float(b)));
         }});
}

TEST(GpusimAlu, Float32) {
  check_f32("add.rn.f32", [](float a, float b) { return a + b; });
  check_f32("sub.f32", [](float a, float b) { return a - b; });
  check_f32("mul.f32", [](float a, float b) { return a * b; });
  check_f32("div.rn.f32", [](float a, float b) { return a / b; });
  check({"fma.rn.f32 d, a, b, c;", 4, 4, 4, 4, kF32, kF32, kF32,
         [](Bits a, Bits b, Bits c) { return bits_of(std::fmaf(as_float(a), as_float(b), as_float(c))); }});
  check({"sqrt.rn.f32 d, a;", 4, 4, 4, 4, kF32, {0}, {0}, [](Bits a, Bits, Bits) {
           return bits_of(std::sqrt(as_float(a)));
         }});
  check({"neg.f32 d, a;", 4, 4, 4, 4, kF32, {0}, {0}, [](Bits a, Bits, Bits) { return a ^ 0x80000000u; }});
  check({"abs.f32 d, a;", 4, 4, 4, 4, kF32, {0}, {0}, [](Bits a, Bits, Bits) { return a & 0x7fffffffu; }});
}

TEST(GpusimAlu, MinimumAndMaximumPreferNumbersAndOrderZeros) {
  const auto less = [](float a, float b) { return a < b || (a == b && std::signbit(a) && !std::signbit(b)); };
  check_f32("min.f32", [&](float a, float b) { return a != a ? b : b != b ? a : less(a, b) ? a : b; });
  check_f32("max.f32", [&](float a, float b) { return a != a ? b : b != b ? a : less(a, b) ? b : a; });
  const float nan = std::numeric_limits<float>::quiet_NaN();
  check_f32("min.NaN.f32", [&](float a, float b) { return a != a || b != b ? nan : less(a, b) ? a : b; });
  check_f32("max.NaN.f32", [&](float a, float b) { return a != a || b != b ? nan : less(a, b) ? b : a; });
}

TEST(GpusimAlu, FlushingAndSaturation) {
  const auto flush = [](float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; };
  check_f32("add.ftz.f32", [&](float a, float b) { return flush(flush(a) + flush(b)); });
  check_f32("mul.ftz.f32", [&](float a, float b) { return flush(flush(a) * flush(b)); });
  const auto saturate = [](float x) { return x != x ? 0.0f : x < 0 ? 0.0f : x > 1 ? 1.0f : x == 0 ? 0.0f : x; };
  check_f32("add.sat.f32", [&](float a, float b) { return saturate(a + b); });
  check({"fma.rn.sat.f32 d, a, b, c;", 4, 4, 4, 4, kF32, kF32, {0x3f000000, 0x7fc00000}, [&](Bits a, Bits b, Bits c) {
           return bits_of(saturate(std::fmaf(as_float(a), as_float(b), as_float(c))));
         }});
}

/// The host's rounding mode gives the reference.
float rounded(int mode, const std::function<float()>& compute) {
  const int before = std::fegetround();
  std::fesetround(mode);
  const volatile float result = compute();
  std::fesetround(before);
  return result;
}

TEST(GpusimAlu, DirectedRounding) {
  const std::pair<std::string, int> modes[] = {{"rz", FE_TOWARDZERO}, {"rm", FE_DOWNWARD}, {"rp", FE_UPWARD}};
  for (const auto& [name, mode] : modes) {
    // Volatile, so that nothing is computed before the mode is set.
    const auto with = [m = mode](auto op) {
      return [m, op](float a, float b) {
        const volatile float x = a;
        const volatile float y = b;
        return rounded(m, [&] { return op(x, y); });
      };
    };
    check_f32("add." + name + ".f32", with([](const volatile float& a, const volatile float& b) { return a + b; }));
    check_f32("mul." + name + ".f32", with([](const volatile float& a, const volatile float& b) { return a * b; }));
    check_f32("div." + name + ".f32", with([](const volatile float& a, const volatile float& b) { return a / b; }));
    check({"fma." + name + ".f32 d, a, b, c;", 4, 4, 4, 4, kF32, kF32, kF32, [m = mode](Bits a, Bits b, Bits c) {
             const volatile float x = as_float(a);
             const volatile float y = as_float(b);
             const volatile float z = as_float(c);
             return bits_of(rounded(m, [&] { return std::fmaf(x, y, z); }));
           }});
  }
}

TEST(GpusimAlu, Float64) {
  const auto binary = [](const std::string& op, const std::function<double(double, double)>& reference) {
    check({op + " d, a, b;", 8, 8, 8, 8, kF64, kF64, {0}, [&](Bits a, Bits b, Bits) {
             return bits_of(reference(as_double(a), as_double(b)));
           }});
  };
  std::vector<Bits> finite = kF64;
  std::erase(finite, 0x7ff0000000000000);
  binary("add.rn.f64", [](double a, double b) { return a + b; });
  check({"mul.rn.f64 d, a, b;", 8, 8, 8, 8, finite, finite, {0}, [](Bits a, Bits b, Bits) {
           return bits_of(as_double(a) * as_double(b));
         }});
  check({"fma.rn.f64 d, a, b, c;", 8, 8, 8, 8, finite, finite, finite,
         [](Bits a, Bits b, Bits c) { return bits_of(std::fma(as_double(a), as_double(b), as_double(c))); }});
}

template <class T>
void check_int(const std::string& op, int bytes, const std::function<Bits(T, T)>& reference) {
  check({op + " d, a, b;", bytes, bytes, bytes, bytes, kInt, kInt, {0}, [&](Bits a, Bits b, Bits) {
           return reference(static_cast<T>(a), static_cast<T>(b));
         }});
}

TEST(GpusimAlu, Integers) {
  using std::int16_t, std::int32_t, std::int64_t, std::uint16_t, std::uint32_t, std::uint64_t;
  check_int<uint32_t>("add.s32", 4, [](uint32_t a, uint32_t b) { return Bits{a + b}; });
  check_int<uint64_t>("sub.s64", 8, [](uint64_t a, uint64_t b) { return a - b; });
  check_int<uint32_t>("mul.lo.s32", 4, [](uint32_t a, uint32_t b) { return Bits{a * b}; });
  check_int<int32_t>("mul.hi.s32", 4, [](int32_t a, int32_t b) { return static_cast<Bits>(int64_t{a} * b >> 32); });
  check_int<uint32_t>("mul.hi.u32", 4, [](uint32_t a, uint32_t b) { return uint64_t{a} * b >> 32; });
  check_int<uint64_t>("mul.hi.u64", 8, [](uint64_t a, uint64_t b) {
    return static_cast<Bits>(static_cast<unsigned __int128>(a) * b >> 64);
  });
  check_int<int32_t>("min.s32", 4, [](int32_t a, int32_t b) { return static_cast<Bits>(std::min(a, b)); });
  check_int<uint16_t>("max.u16", 2, [](uint16_t a, uint16_t b) { return Bits{std::max(a, b)}; });
  check_int<int16_t>("mul.lo.s16", 2, [](int16_t a, int16_t b) { return static_cast<Bits>(a * b); });
  check_int<uint32_t>("div.u32", 4, [](uint32_t a, uint32_t b) { return Bits{b == 0 ? 0xffffffffu : a / b}; });
  check_int<int32_t>("rem.s32", 4, [](int32_t a, int32_t b) {
    return static_cast<Bits>(b == 0 ? a : b == -1 ? 0 : a % b);
  });
  check_int<uint32_t>("shl.b32", 4, [](uint32_t a, uint32_t b) { return Bits{b > 31 ? 0 : a << b}; });
  check_int<int32_t>("shr.s32", 4, [](int32_t a, int32_t b) {
    return static_cast<Bits>(a >> (static_cast<uint32_t>(b) > 31 ? 31 : b));
  });
  check({"mul.wide.s32 d, a, b;", 8, 4, 4, 4, kInt, kInt, {0}, [](Bits a, Bits b, Bits) {
           return static_cast<Bits>(int64_t{static_cast<int32_t>(a)} * static_cast<int32_t>(b));
         }});
  check({"mad.wide.u32 d, a, b, c;", 8, 4, 4, 8, kInt, kInt, kInt,
         [](Bits a, Bits b, Bits c) { return uint64_t{static_cast<uint32_t>(a)} * static_cast<uint32_t>(b) + c; }});
  check({"shr.u64 d, a, b;", 8, 8, 4, 4, kInt, kInt, {0}, [](Bits a, Bits b, Bits) {
           const auto by = static_cast<uint32_t>(b);
           return by > 63 ? 0 : a >> by;
         }});
  check({"add.cc.u32 d, a, b;\naddc.u32 d, c, 0;", 4, 4, 4, 4, kInt, kInt, kInt, [](Bits a, Bits b, Bits c) {
           return static_cast<uint32_t>(c) +
                  (Bits{static_cast<uint32_t>(a)} + static_cast<uint32_t>(b) > 0xffffffffu ? 1u : 0u);
         }});
}

TEST(GpusimAlu, BitFields) {
  using std::int32_t, std::uint32_t;
  const std::vector<Bits> some = {0, 1, 5, 8, 31, 32, 40, 255};
  check({"bfe.u32 d, a, b, c;", 4, 4, 4, 4, kInt, some, some, [](Bits a, Bits b, Bits c) {
           Bits result = 0;
           for (Bits i = 0; i < c && b + i < 32; ++i) result |= (a >> (b + i) & 1) << i;
           return result;
         }});
  check({"bfe.s32 d, a, b, c;", 4, 4, 4, 4, kInt, some, some, [](Bits a, Bits b, Bits c) {
           Bits result = 0;
           if (c == 0) return result;
           const Bits sign = a >> std::min<Bits>(31, b + c - 1) & 1;
           for (Bits i = 0; i < 32; ++i) result |= (i < c && b + i < 32 ? a >> (b + i) & 1 : sign) << i;
           return result;
         }});
  check({"bfi.b32 d, a, c, b, 8;", 4, 4, 4, 4, kInt, some, kInt, [](Bits a, Bits b, Bits c) {
           Bits result = c;
           for (Bits i = 0; i < 8 && b + i < 32; ++i)
             result = (result & ~(Bits{1} << (b + i))) | (a >> i & 1) << (b + i);
           return result;
         }});
  for (const int table : {0x96, 0xe8, 0xca, 0x01, 0x80, 0x6c}) {
    check({"lop3.b32 d, a, b, c, " + std::to_string(table) + ";",
           4,
           4,
           4,
           4,
           kInt,
           kInt,
           {0, 0x0f0f0f0f, 0xffffffff},
           [table](Bits a, Bits b, Bits c) {
             Bits result = 0;
             for (int i = 0; i < 32; ++i) {
               const auto index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1);
               result |= Bits(table >> index & 1) << i;
             }
             return result;
           }});
  }
  check({"prmt.b32 d, a, b, c;",
         4,
         4,
         4,
         4,
         {0x03020100, 0x80ff7f01},
         {0x07060504, 0x8090a0b0},
         {0x3210, 0x7654, 0x5140, 0xfb73, 0x0123},
         [](Bits a, Bits b, Bits c) {
           Bits result = 0;
           for (int i = 0; i < 4; ++i) {
             const auto choice = c >> (4 * i) & 15;
             const Bits byte = (b << 32 | a) >> (8 * (choice & 7)) & 255;
             result |= (choice & 8 ? (byte & 128 ? Bits{255} : Bits{0}) : byte) << (8 * i);
           }
           return result;
         }});
  check({"shf.l.wrap.b32 d, a, b, c;", 4, 4, 4, 4, kInt, kInt, some,
         [](Bits a, Bits b, Bits c) { return (b << 32 | (a & 0xffffffff)) << (c & 31) >> 32; }});
  check({"popc.b64 d, a;", 4, 8, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           return static_cast<Bits>(std::popcount(a));
         }});
  check({"clz.b32 d, a;", 4, 4, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           return static_cast<Bits>(std::countl_zero(static_cast<uint32_t>(a)));
         }});
  check({"bfind.s32 d, a;", 4, 4, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           auto value = static_cast<int32_t>(a);
           if (value < 0) value = ~value;
           return static_cast<Bits>(31 - std::countl_zero(static_cast<uint32_t>(value)));
         }});
  check({"dp4a.s32.u32 d, a, b, c;", 4, 4, 4, 4, kInt, kInt, {0, 7, 0x7fffffff}, [](Bits a, Bits b, Bits c) {
           auto sum = static_cast<uint32_t>(c);
           for (int i = 0; i < 4; ++i)
             sum += static_cast<uint32_t>(static_cast<std::int8_t>(a >> (8 * i)) *
                                          static_cast<std::uint8_t>(b >> (8 * i)));
           return Bits{sum};
         }});
}

TEST(GpusimAlu, ComparisonsAndSelection) {
  const std::tuple<std::string, std::function<bool(float, float)>> comparisons[] = {
      {"eq", [](float a, float b) { return a == b; }},
      {"ne", [](float a, float b) { return a < b || a > b; }},
      {"lt", [](float a, float b) { return a < b; }},
      {"ge", [](float a, float b) { return a >= b; }},
      {"neu", [](float a, float b) { return a != b; }},
      {"equ", [](float a, float b) { return !(a < b || a > b); }},
      {"ltu", [](float a, float b) { return !(a >= b); }},
      {"nan", [](float a, float b) { return a != a || b != b; }},
      {"num", [](float a, float b) { return a == a && b == b; }},
  };
  for (const auto& [name, holds] : comparisons) {
    check({"setp." + name + ".f32 %p1, a, b;\nselp.b32 d, 11, c, %p1;",
           4,
           4,
           4,
           4,
           kF32,
           kF32,
           {22},
           [&holds](Bits a, Bits b, Bits c) { return holds(as_float(a), as_float(b)) ? Bits{11} : c; }});
  }
  check({"setp.gt.s64 %p2, a, 0;\nsetp.lt.and.u64 %p1|%p3, a, b, !%p2;\nselp.u32 d, 1, 2, %p1;\n@%p3 add.u32 d, d, 4;",
         4,
         8,
         8,
         4,
         kInt,
         kInt,
         {0},
         [](Bits a, Bits b, Bits) {
           const bool other = static_cast<std::int64_t>(a) <= 0;
           return Bits{(a < b && other ? 1u : 2u) + (!(a < b) && other ? 4u : 0u)};
         }});
}

/// A 16-bit format by its bits of fraction and of exponent: exact conversion to double, and back by hand.
struct Half {
  int fraction_bits;
  int exponent_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  double value(Bits bits) const {
    const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
    const auto fraction = static_cast<double>(bits & ((1u << fraction_bits) - 1));
    double magnitude = 0;
    if (exponent == (1 << exponent_bits) - 1) {
      magnitude = fraction == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
    } else if (exponent == 0) {
      magnitude = std::ldexp(fraction, 1 - bias() - fraction_bits);
    } else {
      magnitude = std::ldexp(fraction + (1 << fraction_bits), exponent - bias() - fraction_bits);
    }
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
  }
  /// To nearest even, of a value given exactly.
  Bits nearest(long double value) const {
    if (value != value) return 0x7fff;
    const Bits sign = std::signbit(value) ? 0x8000 : 0;
    const long double magnitude = std::fabs(value);
    const Bits infinity = Bits((1 << exponent_bits) - 1) << fraction_bits;
    if (std::isinf(magnitude)) return sign | infinity;
    int exponent = magnitude == 0 ? -1000 : std::ilogb(magnitude);
    exponent = std::max(exponent, 1 - bias());
    const long double steps = std::nearbyint(std::ldexp(magnitude, fraction_bits - exponent));
    const auto bits = (static_cast<Bits>(exponent + bias() - 1) << fraction_bits) + static_cast<Bits>(steps);
    return sign | std::min(bits, infinity);
  }
};
constexpr Half kHalf{10, 5};
constexpr Half kBrain{7, 8};

TEST(GpusimAlu, HalvesRoundOnce) {
  const std::tuple<std::string, Half, std::vector<Bits>> formats[] = {{"f16", kHalf, kF16}, {"bf16", kBrain, kBf16}};
  for (const auto& entry : formats) {
    const std::string& name = std::get<0>(entry);
    const Half format = std::get<1>(entry);
    const std::vector<Bits>& values = std::get<2>(entry);
    const auto value = [format](Bits bits) { return static_cast<long double>(format.value(bits)); };
    check({"add." + name + " d, a, b;", 2, 2, 2, 2, values, values, {0}, [&](Bits a, Bits b, Bits) {
             return format.nearest(value(a) + value(b));
           }});
    check({"mul." + name + " d, a, b;", 2, 2, 2, 2, values, values, {0}, [&](Bits a, Bits b, Bits) {
             return format.nearest(value(a) * value(b));
           }});
    // Sums whose terms lie too far apart for a long double to hold exactly are left to the directed cases below.
    std::vector<Bits> moderate = values;
    if (name == "bf16")
      std::erase_if(moderate, [&](Bits bits) {
        const auto v = std::fabs(format.value(bits));
        return v != 0 && (v < 1e-9 || (v > 1e9 && !std::isinf(v)));
      });
    check({"fma.rn." + name + " d, a, b, c;", 2, 2, 2, 2, moderate, moderate, moderate,
           [&](Bits a, Bits b, Bits c) { return format.nearest(value(a) * value(b) + value(c)); }});
    check({"fma.rn." + name + "x2 d, a, b, c;",
           4,
           4,
           4,
           4,
           {moderate[5] | moderate[8] << 16, moderate[7] << 16},
           {moderate[7] | moderate[6] << 16},
           {moderate[3] | moderate[5] << 16},
           [&](Bits a, Bits b, Bits c) {
             const auto half = [&](int shift) {
               return format.nearest(value(a >> shift & 0xffff) * value(b >> shift & 0xffff) +
                                     value(c >> shift & 0xffff));
             };
             return half(0) | half(16) << 16;
           }});
  }
  // 1 + 2^-11 + 2^-24 rounds up in f16; rounding to f32 first would lose the last term's say on the tie.
  check({"fma.rn.f16 d, a, b, c;", 2, 2, 2, 2, {0x1000}, {0x3c00, 0x1001}, {0x3c00}, [](Bits a, Bits b, Bits c) {
           return kHalf.nearest(static_cast<long double>(kHalf.value(a)) * kHalf.value(b) + kHalf.value(c));
         }});
}

TEST(GpusimAlu, ConversionsOfFloats) {
  std::vector<Bits> values = kF32;
  for (const Bits extra : {0x33000000, 0x33000001, 0x387fe000, 0x38800000, 0x477fefff, 0x477ff000, 0x3f808000,
                           0x3f818000, 0x3f808001, 0x00008000, 0x7f7f8000})
    values.push_back(extra);
  const auto exact = [](Bits a) { return static_cast<long double>(as_float(a)); };
  check({"cvt.rn.f16.f32 d, a;", 2, 4, 4, 4, values, {0}, {0}, [&](Bits a, Bits, Bits) {
           return kHalf.nearest(exact(a));
         }});
  check({"cvt.rn.bf16.f32 d, a;", 2, 4, 4, 4, values, {0}, {0}, [&](Bits a, Bits, Bits) {
           return kBrain.nearest(exact(a));
         }});
  check({"cvt.rn.bf16x2.f32 d, a, b;", 4, 4, 4, 4, values, values, {0}, [&](Bits a, Bits b, Bits) {
           return kBrain.nearest(exact(a)) << 16 | kBrain.nearest(exact(b));
         }});
  check({"cvt.rn.relu.f16x2.f32 d, a, b;", 4, 4, 4, 4, values, {0xbf800000}, {0}, [&](Bits a, Bits, Bits) {
           return (as_float(a) < 0 ? Bits{0} : kHalf.nearest(exact(a))) << 16;
         }});
  check({"cvt.f32.f16 d, a;", 4, 2, 4, 4, kF16, {0}, {0}, [](Bits a, Bits, Bits) {
           return bits_of(static_cast<float>(kHalf.value(a)));
         }});
  check({"cvt.f32.bf16 d, a;", 4, 2, 4, 4, kBf16, {0}, {0}, [](Bits a, Bits, Bits) {
           return bits_of(static_cast<float>(kBrain.value(a)));
         }});
  check({"cvt.rn.f32.f64 d, a;", 4, 8, 4, 4, kF64, {0}, {0}, [](Bits a, Bits, Bits) {
           return bits_of(static_cast<float>(as_double(a)));
         }});
  check({"cvt.rz.f32.f64 d, a;", 4, 8, 4, 4, kF64, {0}, {0}, [](Bits a, Bits, Bits) {
           const volatile double value = as_double(a);
           return bits_of(rounded(FE_TOWARDZERO, [&] { return static_cast<float>(value); }));
         }});
  check({"cvt.f64.f32 d, a;",
         8,
         4,
         4,
         4,
         {0x00000001, 0x3f800001, 0xff7fffff, 0x7f800000},
         {0},
         {0},
         [](Bits a, Bits, Bits) { return bits_of(static_cast<double>(as_float(a))); }});
  // A wider register holds the source, takes the result, or both: its low part; extended.
  const std::vector<Bits> wide = {0x00000000ffffffff, 0x1234567880000000, 0xffffffff7fffffff, 0x0000000100000080};
  check({"cvt.s64.s32 d, a;", 8, 8, 4, 4, wide, {0}, {0}, [](Bits a, Bits, Bits) {
           return static_cast<Bits>(std::int64_t{static_cast<std::int32_t>(a)});
         }});
  check({"cvt.s32.s8 d, a;", 8, 8, 4, 4, wide, {0}, {0}, [](Bits a, Bits, Bits) {
           return static_cast<Bits>(std::int64_t{static_cast<std::int8_t>(a)});
         }});
  check({"cvt.u32.u16 d, a;", 8, 4, 4, 4, wide, {0}, {0}, [](Bits a, Bits, Bits) {
           return static_cast<Bits>(static_cast<std::uint16_t>(a));
         }});
  const std::pair<std::string, float (*)(float)> whole[] = {
      {"rni", std::nearbyint}, {"rzi", std::trunc}, {"rmi", std::floor}, {"rpi", std::ceil}};
  for (const auto& [name, to_whole] : whole) {
    check({"cvt." + name + ".f32.f32 d, a;", 4, 4, 4, 4, values, {0}, {0}, [w = to_whole](Bits a, Bits, Bits) {
             return bits_of(w(as_float(a)));
           }});
    check({"cvt." + name + ".s32.f32 d, a;", 4, 4, 4, 4, values, {0}, {0}, [w = to_whole](Bits a, Bits, Bits) {
             const double value = static_cast<double>(w(as_float(a)));
             return value != value
                        ? Bits{0}
                        : static_cast<Bits>(static_cast<std::int32_t>(std::clamp(value, -2147483648.0, 2147483647.0)));
           }});
  }
  check({"cvt.rzi.u64.f32 d, a;", 8, 4, 4, 4, values, {0}, {0}, [](Bits a, Bits, Bits) {
           const long double value = std::trunc(static_cast<long double>(as_float(a)));
           if (value != value) return Bits{1} << 63;
           return value < 0 ? Bits{0} : value >= 18446744073709551616.0L ? ~Bits{0} : static_cast<Bits>(value);
         }});
  check({"cvt.rna.tf32.f32 d, a;",
         4,
         4,
         4,
         4,
         {0x3f800fff, 0x3f801000, 0xbf801000, 0x7f800000, 0x3f803000},
         {0},
         {0},
         [](Bits a, Bits, Bits) { return (a & 0x7f800000) == 0x7f800000 ? a : (a + 0x1000) & 0xffffe000; }});
}

TEST(GpusimAlu, ConversionsOfIntegers) {
  check({"cvt.rn.f32.s32 d, a;", 4, 4, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           return bits_of(static_cast<float>(static_cast<std::int32_t>(a)));
         }});
  check({"cvt.rn.f32.u64 d, a;", 4, 8, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           return bits_of(static_cast<float>(a));
         }});
  check({"cvt.rn.f64.s64 d, a;", 8, 8, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           return bits_of(static_cast<double>(static_cast<std::int64_t>(a)));
         }});
  check({"cvt.rz.f32.u32 d, a;", 4, 4, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           const volatile std::uint32_t value = static_cast<std::uint32_t>(a);
           return bits_of(rounded(FE_TOWARDZERO, [&] { return static_cast<float>(value); }));
         }});
  check({"cvt.rn.f16.s32 d, a;", 2, 4, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           return kHalf.nearest(static_cast<std::int32_t>(a));
         }});
  check({"cvt.s64.s32 d, a;", 8, 4, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           return static_cast<Bits>(std::int64_t{static_cast<std::int32_t>(a)});
         }});
  check({"cvt.u32.u16 d, a;", 4, 2, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) { return a & 0xffff; }});
  check({"cvt.s32.s8 d, a;", 4, 4, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           return static_cast<Bits>(static_cast<std::int8_t>(a));
         }});
  check({"cvt.sat.u8.s32 d, a;", 4, 4, 4, 4, kInt, {0}, {0}, [](Bits a, Bits, Bits) {
           return static_cast<Bits>(std::clamp(static_cast<std::int32_t>(a), 0, 255));
         }});
}

/// Approximations: within the error that PTX allows them.
TEST(GpusimAlu, ApproximationsAreWithinTheirBounds) {
  std::vector<Bits> values;
  for (int i = -400; i <= 400; ++i) values.push_back(std::bit_cast<std::uint32_t>(static_cast<float>(i) * 0.317f));
  const auto near = [&](const std::string& op, const std::function<double(double)>& reference, double ulps,
                        bool positive_only) {
    for (const std::string& isa : available_isas()) {
      Simulated device(kernel_of(op + " d, a;", 4, 4, 4, 4));
      device.settings.isa = isa;
      std::vector<Bits> in = values;
      if (positive_only) std::erase_if(in, [](Bits bits) { return as_float(bits) <= 0; });
      in.resize(in.size() / 32 * 32);
      Bits* const d = device.put(std::vector<Bits>(in.size(), 0));
      Bits* const a = device.put(in);
      ASSERT_EQ(text_of(device.run("f", {static_cast<unsigned>(in.size() / 32)}, {32}, a, a, a, d).findings), "");
      for (std::size_t i = 0; i < in.size(); ++i) {
        const double exact = reference(static_cast<double>(as_float(in[i])));
        const double bound = ulps * std::max(std::fabs(exact) * 0x1p-23, 0x1p-149);
        ASSERT_TRUE(std::fabs(static_cast<double>(as_float(d[i])) - exact) <= bound)
            << op << " of " << as_float(in[i]) << " in " << isa << ": " << as_float(d[i]) << " for " << exact;
      }
    }
  };
  near(
      "ex2.approx.f32", [](double x) { return std::exp2(x); }, 2, false);
  near(
      "rcp.approx.f32", [](double x) { return 1 / x; }, 1, true);
  near(
      "rsqrt.approx.f32", [](double x) { return 1 / std::sqrt(x); }, 2, true);
  near(
      "sin.approx.f32", [](double x) { return std::sin(x); }, 2, false);
  near(
      "tanh.approx.f32", [](double x) { return std::tanh(x); }, 2, false);
  // Near 1 the logarithm is small: its error is counted in units of 2^-22, as PTX does.
  near(
      "lg2.approx.f32", [](double x) { return std::log2(x); }, 2, true);
}

TEST(GpusimAlu, PackingAndVectors) {
  check({".reg .b16 h<4>;\nmov.b64 {h0, h1, h2, h3}, a;\nmov.b64 d, {h3, h2, h1, h0};",
         8,
         8,
         4,
         4,
         kInt,
         {0},
         {0},
         [](Bits a, Bits, Bits) { return a >> 48 | (a >> 32 & 0xffff) << 16 | (a >> 16 & 0xffff) << 32 | a << 48; }});
  check({".reg .b32 lo, hi;\nmov.b64 {lo, hi}, a;\nmov.b64 d, {hi, lo};",
         8,
         8,
         4,
         4,
         kInt,
         {0},
         {0},
         [](Bits a, Bits, Bits) { return a >> 32 | a << 32; }});
}

// ---- what is refused

TEST(GpusimPtx, ErrorsNameTheLine) {
  DeviceMemory memory(1 << 20, false);
  const auto message = [&](const std::string& text) {
    try {
      Module::load(text, memory);
    } catch (const dsv2::Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(message("\x7f"
                    "ELF")
                .find("expected .version"),
            std::string::npos);
  EXPECT_NE(message(".version 12.0\n.target sm_80\n").find("PTX version 12.0 is not modelled"), std::string::npos);
  EXPECT_NE(message(".version 8.0\n.target sm_80\n.address_size 32\n").find("PTX line 3"), std::string::npos);
  const std::string head = ".version 8.0\n.target sm_80\n.address_size 64\n.entry f()\n{\n.reg .b32 %r<2>;\n";
  EXPECT_NE(message(head + "mov.u32 %r9, 1;\nret;\n}\n").find("PTX line 7: undeclared register"), std::string::npos);
  EXPECT_NE(message(head + "bra NOWHERE;\n}\n").find("no label 'NOWHERE'"), std::string::npos);
  EXPECT_NE(message(head + "mov.u32 %r1, 1\n}\n").find("PTX line 8"), std::string::npos);
}

TEST(GpusimPtx, UnknownInstructionsAreRefusedWhenReached) {
  const std::string text =
      ".version 8.0\n.target sm_80\n.address_size 64\n.entry f(.param .u32 n)\n{\n.reg .b32 %r<3>;\n.reg .pred %p;\n"
      "ld.param.u32 %r1, [n];\nsetp.eq.u32 %p, %r1, 0;\n@%p bra END;\nfrobnicate.u32 %r2, %r1;\nEND: ret;\n}\n";
  Simulated device(text);
  ASSERT_EQ(device.module().kernel("f")->unsupported.size(), 1u);
  EXPECT_NE(device.module().kernel("f")->unsupported[0].find("frobnicate"), std::string::npos);
  EXPECT_EQ(device.run("f", {1}, {32}, 0).status, LaunchStatus::ok);
  const LaunchResult result = device.run("f", {1}, {32}, 1);
  EXPECT_EQ(result.status, LaunchStatus::illegal_instruction);
  ASSERT_EQ(result.findings.size(), 1u);
  EXPECT_EQ(result.findings[0].kind, FindingKind::unsupported);
  EXPECT_EQ(result.findings[0].place.ptx, "frobnicate.u32 %r2, %r1");
}

TEST(GpusimPtx, ScopesHideRegistersAndLabels) {
  // The inner d is another register; both L labels are their own.
  check(
      {"mov.b32 d, a;\n{ .reg .b32 d;\nmov.b32 d, 7;\nbra L;\nmov.b32 d, 9;\nL: add.u32 d, d, 1;\n}\nbra L;\nadd.u32 "
       "d, d, 100;\nL:\n",
       4,
       4,
       4,
       4,
       kInt,
       {0},
       {0},
       [](Bits a, Bits, Bits) { return a; }});
}

/// What a warp has outstanding in the kernel of this body, whose parameter is the array %rd1.
double bytes_in_flight(const std::string& body) {
  Simulated device(
      ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry f(.param .u64 a)\n{\n.reg .b32 %r<12>;\n"
      ".reg .b64 %rd<4>;\n.reg .pred %p;\n.shared .align 16 .b8 tile[1024];\nld.param.u64 %rd1, [a];\n"
      "mov.u32 %r1, 0;\nmov.u32 %r2, 0;\n" +
          body + "st.global.u32 [%rd1], %r1;\nret;\n}\n",
      Checks{});
  device.settings.counts = true;
  return device.run("f", {1}, {32}, device.put(std::vector<unsigned>(256))).warp_bytes_in_flight;
}

TEST(GpusimInFlight, LoadsGoTogetherUpToOneThatNeedsAnother) {
  constexpr double kWord = 4 * 32;
  const std::string a = "ld.global.u32 %r3, [%rd1];\n", b = "ld.global.u32 %r4, [%rd1+128];\n";
  const std::string use_a = "add.u32 %r1, %r1, %r3;\n", use_b = "add.u32 %r1, %r1, %r4;\n";
  EXPECT_EQ(bytes_in_flight(a + use_a), kWord);
  EXPECT_EQ(bytes_in_flight(a + b + use_a + use_b), 2 * kWord);
  EXPECT_EQ(bytes_in_flight(a + use_a + b + use_b), 2 * kWord);  // ptxas moves the second one up
  EXPECT_EQ(bytes_in_flight(a + use_a + "st.global.u32 [%rd1], %r1;\n" + b + use_b), kWord);
  EXPECT_EQ(bytes_in_flight(a + use_a + "bar.sync 0;\n" + b + use_b), kWord);
  EXPECT_EQ(bytes_in_flight(a + use_a + "st.shared.u32 [tile], %r1;\n" + b + use_b), 2 * kWord);
  // An address that was loaded: zeros.
  EXPECT_EQ(bytes_in_flight(a + "cvt.u64.u32 %rd2, %r3;\nadd.u64 %rd2, %rd2, %rd1;\nld.global.u32 %r4, [%rd2];\n"),
            kWord);
  EXPECT_EQ(bytes_in_flight("ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd1];\n" + b), 5 * kWord);
  EXPECT_EQ(bytes_in_flight(""), 0);
}

TEST(GpusimInFlight, IsTheMeanOverWhatIsLoaded) {
  // A word before the loop, two in each of its four turns.
  EXPECT_EQ(bytes_in_flight("ld.global.u32 %r3, [%rd1];\nL:\nld.global.u32 %r4, [%rd1+128];\n"
                            "ld.global.u32 %r6, [%rd1+256];\nadd.u32 %r1, %r1, %r4;\nadd.u32 %r2, %r2, 1;\n"
                            "setp.lt.u32 %p, %r2, 4;\n@%p bra L;\nadd.u32 %r1, %r1, %r3;\n"),
            (8 * 2 + 1) / 9.0 * 128);
}

TEST(GpusimInFlight, AsynchronousCopiesAreOutUntilTheirWait) {
  const auto copy = [](int at) {
    return dsv2::concat("cp.async.ca.shared.global [tile+", at, "], [%rd1+", at, "], 16;\ncp.async.commit_group;\n");
  };
  const std::string wait_all = "cp.async.wait_all;\n", wait_one = "cp.async.wait_group 1;\n";
  EXPECT_EQ(bytes_in_flight(copy(0) + copy(16) + wait_all), 2 * 512);
  EXPECT_EQ(bytes_in_flight(copy(0) + wait_all + copy(16) + wait_all), 512);
  EXPECT_EQ(bytes_in_flight(copy(0) + copy(16) + wait_one + copy(32) + wait_all), 2 * 512);
}

/// Each block of a cluster of two writes its shared memory and reads the other's.
TEST(GpusimCluster, BlocksReadEachOthersSharedMemory) {
  const std::string text =
      ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry f(.param .u64 out) .reqnctapercluster 2, 1, "
      "1\n{\n"
      ".reg .b32 %r<12>;\n.reg .b64 %rd<4>;\n.shared .align 4 .b8 tile[256];\n"
      "mov.u32 %r1, %tid.x;\nmov.u32 %r2, %cluster_ctarank;\nmov.u32 %r3, %ctaid.x;\n"
      "shl.b32 %r4, %r1, 2;\nmov.u32 %r5, tile;\nadd.u32 %r5, %r5, %r4;\n"
      "mad.lo.u32 %r6, %r3, 1000, %r1;\nst.shared.u32 [%r5], %r6;\n"
      "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n"
      "xor.b32 %r7, %r2, 1;\nmapa.shared::cluster.u32 %r8, %r5, %r7;\nld.shared::cluster.u32 %r9, [%r8];\n"
      "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n"
      "ld.param.u64 %rd1, [out];\nmov.u32 %r10, %ntid.x;\nmad.lo.u32 %r11, %r3, %r10, %r1;\n"
      "mad.wide.u32 %rd2, %r11, 4, %rd1;\nst.global.u32 [%rd2], %r9;\nret;\n}\n";
  Simulated device(text);
  EXPECT_EQ(device.module().kernel("f")->cluster, (Dim3{2, 1, 1}));
  device.cluster = {2, 1, 1};
  unsigned* const out = device.fresh<unsigned>(4 * 64);
  const LaunchResult result = device.run("f", {4}, {64}, out);
  EXPECT_EQ(text_of(result.findings), "");
  for (unsigned block = 0; block < 4; ++block) {
    for (unsigned t = 0; t < 64; ++t) ASSERT_EQ(out[block * 64 + t], (block ^ 1) * 1000 + t) << block << ", " << t;
  }
}

TEST(GpusimMemory, FreedMemoryIsNotHandedOutAgain) {
  DeviceMemory memory(1 << 20, true);
  const std::uint64_t first = memory.allocate(1000, "a");
  EXPECT_EQ(first % DeviceMemory::kAlignment, 0u);
  EXPECT_EQ(memory.allocate(1 << 20, "too much"), 0u);
  EXPECT_TRUE(memory.release(first));
  EXPECT_FALSE(memory.release(first));
  const std::uint64_t second = memory.allocate(1000, "b");
  EXPECT_GE(second, first + 1000 + DeviceMemory::kGap);
  EXPECT_EQ(*memory.shadow(first), static_cast<std::uint8_t>(Byte::freed));
  EXPECT_EQ(*memory.shadow(second + 999), static_cast<std::uint8_t>(Byte::uninitialised));
  EXPECT_EQ(*memory.shadow(second + 1000), static_cast<std::uint8_t>(Byte::unallocated));
  EXPECT_EQ(memory.find(second + 10)->what, "b");
  EXPECT_EQ(memory.used_bytes(), 1000u);
}

}  // namespace
}  // namespace gpusim
