// Instructions that few programs use, against their definitions in the PTX ISA, in every instruction set.
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <span>

#include "gpusim_instruction.h"
#include "model/error.h"

namespace gpusim {
namespace {

using std::int16_t, std::int32_t, std::int64_t, std::int8_t, std::uint16_t, std::uint32_t, std::uint64_t, std::uint8_t;

const std::vector<Bits> kSome = {0, 1, 0x7f, 0x80, 0xffff, 0x80017fff, 0x12f456f8, 0x7fffffff, 0x80000000, 0xffffffff};
const std::vector<Bits> kCounts = {0, 1, 2, 5, 15, 16, 30, 31, 32, 33, 63, 0x80000000};

/// d, a, b and c of 32 bits.
void check_words(const std::string& code, const std::vector<Bits>& of_c,
                 const std::function<uint32_t(uint32_t, uint32_t, uint32_t)>& reference) {
  check({code, 4, 4, 4, 4, kSome, kSome, of_c, [&](Bits a, Bits b, Bits c) {
           return Bits{reference(static_cast<uint32_t>(a), static_cast<uint32_t>(b), static_cast<uint32_t>(c))};
         }});
}

int64_t signed24(uint32_t a) { return static_cast<int32_t>(a << 8) >> 8; }
uint32_t clamp32(int64_t value) { return static_cast<uint32_t>(std::clamp<int64_t>(value, INT32_MIN, INT32_MAX)); }

TEST(GpusimSeldom, ProductsOf24Bits) {
  check_words("mul24.lo.u32 d, a, b;", {0}, [](uint32_t a, uint32_t b, uint32_t) {
    return static_cast<uint32_t>(uint64_t{a & 0xffffff} * (b & 0xffffff));
  });
  check_words("mul24.hi.u32 d, a, b;", {0}, [](uint32_t a, uint32_t b, uint32_t) {
    return static_cast<uint32_t>(uint64_t{a & 0xffffff} * (b & 0xffffff) >> 16);
  });
  check_words("mul24.hi.s32 d, a, b;", {0},
              [](uint32_t a, uint32_t b, uint32_t) { return static_cast<uint32_t>(signed24(a) * signed24(b) >> 16); });
  check_words("mad24.lo.s32 d, a, b, c;", kSome,
              [](uint32_t a, uint32_t b, uint32_t c) { return static_cast<uint32_t>(signed24(a) * signed24(b)) + c; });
  check_words("mad24.hi.sat.s32 d, a, b, c;", kSome, [](uint32_t a, uint32_t b, uint32_t c) {
    return clamp32((signed24(a) * signed24(b) >> 16) + static_cast<int32_t>(c));
  });
  check_words("mad.hi.sat.s32 d, a, b, c;", kSome, [](uint32_t a, uint32_t b, uint32_t c) {
    return clamp32((int64_t{static_cast<int32_t>(a)} * static_cast<int32_t>(b) >> 32) + static_cast<int32_t>(c));
  });
}

TEST(GpusimSeldom, CarriesOfHighProducts) {
  // The carry of the high half's sum: the sign counts in the product, not in the sum.
  check_words("mad.hi.cc.s32 d, a, b, c;\naddc.u32 d, d, 0;", kSome, [](uint32_t a, uint32_t b, uint32_t c) {
    const auto high = static_cast<uint32_t>(int64_t{static_cast<int32_t>(a)} * static_cast<int32_t>(b) >> 32);
    return high + c + (uint64_t{high} + c > UINT32_MAX ? 1 : 0);
  });
  check_words("mad.hi.cc.u32 d, a, b, c;\naddc.u32 d, d, 0;", kSome, [](uint32_t a, uint32_t b, uint32_t c) {
    const auto high = static_cast<uint32_t>(uint64_t{a} * b >> 32);
    return high + c + (uint64_t{high} + c > UINT32_MAX ? 1 : 0);
  });
  check_words("sub.cc.u32 d, a, b;\nmadc.lo.cc.u32 d, a, b, c;\naddc.u32 d, d, 0;", kSome,
              [](uint32_t a, uint32_t b, uint32_t c) {
                const uint64_t sum = uint64_t{a * b} + c + (a < b ? 1 : 0);
                return static_cast<uint32_t>(sum) + static_cast<uint32_t>(sum >> 32);
              });
}

TEST(GpusimSeldom, SumsOfProductsOfHalvesAndBytes) {
  const auto reference = [](bool a_signed, bool b_signed, bool high) {
    return [=](uint32_t a, uint32_t b, uint32_t c) {
      for (int i = 0; i < 2; ++i) {
        const uint32_t half = a >> (16 * i) & 0xffff;
        const uint32_t byte = b >> (8 * i + (high ? 16 : 0)) & 0xff;
        const int32_t x = a_signed ? static_cast<int16_t>(half) : static_cast<int32_t>(half);
        const int32_t y = b_signed ? static_cast<int8_t>(byte) : static_cast<int32_t>(byte);
        c += static_cast<uint32_t>(x * y);
      }
      return c;
    };
  };
  for (const bool a_signed : {false, true}) {
    for (const bool b_signed : {false, true}) {
      for (const bool high : {false, true}) {
        const std::string code = std::string("dp2a.") + (high ? "hi" : "lo") + (a_signed ? ".s32" : ".u32") +
                                 (b_signed ? ".s32" : ".u32") + " d, a, b, c;";
        check_words(code, {0, 7, 0x7fffffff}, reference(a_signed, b_signed, high));
      }
      const std::string code =
          std::string("dp4a") + (a_signed ? ".s32" : ".u32") + (b_signed ? ".s32" : ".u32") + " d, a, b, c;";
      check_words(code, {0, 0x80000000}, [=](uint32_t a, uint32_t b, uint32_t c) {
        for (int i = 0; i < 4; ++i) {
          const uint32_t x = a >> (8 * i) & 0xff, y = b >> (8 * i) & 0xff;
          c += static_cast<uint32_t>((a_signed ? static_cast<int8_t>(x) : static_cast<int32_t>(x)) *
                                     (b_signed ? static_cast<int8_t>(y) : static_cast<int32_t>(y)));
        }
        return c;
      });
    }
  }
}

TEST(GpusimSeldom, ModesOfPrmt) {
  // PTX ISA, prmt: the bytes that d gets, the lowest first, for each selector.
  const std::pair<std::string, std::array<std::array<int, 4>, 4>> modes[] = {
      {"f4e", {{{0, 1, 2, 3}, {1, 2, 3, 4}, {2, 3, 4, 5}, {3, 4, 5, 6}}}},
      {"b4e", {{{0, 7, 6, 5}, {1, 0, 7, 6}, {2, 1, 0, 7}, {3, 2, 1, 0}}}},
      {"rc8", {{{0, 0, 0, 0}, {1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}}}},
      {"ecl", {{{0, 1, 2, 3}, {1, 1, 2, 3}, {2, 2, 2, 3}, {3, 3, 3, 3}}}},
      {"ecr", {{{0, 0, 0, 0}, {0, 1, 1, 1}, {0, 1, 2, 2}, {0, 1, 2, 3}}}},
      {"rc16", {{{0, 1, 0, 1}, {2, 3, 2, 3}, {0, 1, 0, 1}, {2, 3, 2, 3}}}},
  };
  for (const auto& [name, bytes] : modes) {
    check({"prmt.b32." + name + " d, a, b, c;",
           4,
           4,
           4,
           4,
           {0x03020100, 0x80ff7f01},
           {0x07060504, 0x8090a0b0},
           {0, 1, 2, 3, 0xfffffffe},
           [&bytes = bytes](Bits a, Bits b, Bits c) {
             Bits result = 0;
             for (std::size_t i = 0; i < 4; ++i) {
               const int from = bytes[c & 3][i];
               result |= ((b << 32 | a) >> (8 * from) & 255) << (8 * i);
             }
             return result;
           }});
  }
}

TEST(GpusimSeldom, MasksSignsAndNthBits) {
  for (const bool clamp : {false, true}) {
    const std::string mode = clamp ? ".clamp" : ".wrap";
    check({"bmsk" + mode + ".b32 d, a, b;", 4, 4, 4, 4, kCounts, kCounts, {0}, [clamp](Bits a, Bits b, Bits) {
             const Bits first = clamp ? a : a & 31;
             const Bits width = clamp ? b : b & 31;
             Bits result = 0;
             for (Bits i = 0; i < 32; ++i) result |= Bits{i >= first && i < first + width} << i;
             return result;
           }});
    const auto extended = [clamp](Bits a, Bits b, bool is_signed) {
      const Bits width = clamp ? b : b & 31;
      if (width == 0) return Bits{0};
      Bits result = 0;
      for (Bits i = 0; i < 32; ++i) result |= (i < width ? a >> i & 1 : (is_signed ? a >> (width - 1) & 1 : 0)) << i;
      return result;
    };
    check({"szext" + mode + ".s32 d, a, b;", 4, 4, 4, 4, kSome, kCounts, {0}, [&](Bits a, Bits b, Bits) {
             return extended(a, b, true);
           }});
    check({"szext" + mode + ".u32 d, a, b;", 4, 4, 4, 4, kSome, kCounts, {0}, [&](Bits a, Bits b, Bits) {
             return extended(a, b, false);
           }});
  }
  check({"fns.b32 d, a, b, c;",
         4,
         4,
         4,
         4,
         kSome,
         {0, 3, 15, 31},
         {0, 1, 2, 5, 0xffffffff, 0xfffffffd},
         [](Bits mask, Bits base, Bits offset) {
           const auto step = static_cast<int32_t>(offset);
           std::vector<Bits> found;  // set bits from `base` on, in the direction asked for
           for (auto at = static_cast<int>(base); at >= 0 && at < 32; at += step < 0 ? -1 : 1) {
             if ((mask >> at & 1) != 0) found.push_back(static_cast<Bits>(at));
             if (step == 0) break;
           }
           const auto wanted = static_cast<std::size_t>(std::max(1, std::abs(step)));
           return found.size() >= wanted ? found[wanted - 1] : Bits{0xffffffff};
         }});
  check({"sad.u16 d, a, b, c;", 2, 2, 2, 2, kSome, kSome, {0, 0xffff}, [](Bits a, Bits b, Bits c) {
           return c + static_cast<Bits>(std::abs(static_cast<int>(a & 0xffff) - static_cast<int>(b & 0xffff)));
         }});
}

TEST(GpusimSeldom, Lop3SetsAPredicate) {
  for (const std::string op : {"and", "or", "xor"}) {
    check({"setp.gt.u32 %p1, c, 10;\nlop3." + op + ".b32 d|%p2, a, b, c, 0xe8, !%p1;\n@%p2 xor.b32 d, d, 0x55;",
           4,
           4,
           4,
           4,
           kSome,
           kSome,
           {0, 5, 0xffff0000},
           [&op](Bits a, Bits b, Bits c) {
             const Bits majority = (a & b) | (a & c) | (b & c);
             const bool other = c <= 10;
             const bool any = majority != 0;
             const bool set = op == "and" ? any && other : op == "or" ? any || other : any != other;
             return set ? majority ^ 0x55 : majority;
           }});
  }
}

TEST(GpusimSeldom, PairsOfIntegers) {
  const auto pairs = [](auto op, auto type) {
    using T = decltype(type);
    return [op](uint32_t a, uint32_t b, uint32_t) {
      const auto low = static_cast<uint16_t>(op(static_cast<T>(a), static_cast<T>(b)));
      const auto high = static_cast<uint16_t>(op(static_cast<T>(a >> 16), static_cast<T>(b >> 16)));
      return uint32_t{low} | uint32_t{high} << 16;
    };
  };
  const auto least = [](auto a, auto b) { return std::min(a, b); };
  check_words("add.s16x2 d, a, b;", {0}, pairs([](int a, int b) { return a + b; }, int16_t{}));
  check_words("min.s16x2 d, a, b;", {0}, pairs(least, int16_t{}));
  check_words("min.u16x2 d, a, b;", {0}, pairs(least, uint16_t{}));
  check_words("max.s16x2.relu d, a, b;", {0}, pairs([](int a, int b) { return std::max({a, b, 0}); }, int16_t{}));
  check_words("min.relu.s32 d, a, b;", {0}, [](uint32_t a, uint32_t b, uint32_t) {
    return static_cast<uint32_t>(std::max(0, std::min(static_cast<int32_t>(a), static_cast<int32_t>(b))));
  });
}

TEST(GpusimSeldom, PackingConversions) {
  check_words("cvt.pack.sat.s16.s32 d, a, b;", {0}, [](uint32_t a, uint32_t b, uint32_t) {
    const auto part = [](uint32_t v) {
      return static_cast<uint32_t>(std::clamp<int32_t>(static_cast<int32_t>(v), -32768, 32767)) & 0xffff;
    };
    return part(b) | part(a) << 16;
  });
  check_words("cvt.pack.sat.u8.s32.b32 d, a, b, c;", kSome, [](uint32_t a, uint32_t b, uint32_t c) {
    const auto part = [](uint32_t v) {
      return static_cast<uint32_t>(std::clamp<int32_t>(static_cast<int32_t>(v), 0, 255));
    };
    return part(b) | part(a) << 8 | c << 16;
  });
  check_words("cvt.pack.sat.s4.s32.b32 d, a, b, c;", kSome, [](uint32_t a, uint32_t b, uint32_t c) {
    const auto part = [](uint32_t v) {
      return static_cast<uint32_t>(std::clamp<int32_t>(static_cast<int32_t>(v), -8, 7)) & 15;
    };
    return part(b) | part(a) << 4 | c << 8;
  });
}

// ---- video instructions

TEST(GpusimSeldom, VideoOfOneNumber) {
  check_words("vadd.s32.u32.s32.sat d, a.h1, b.b2, c;", {0}, [](uint32_t a, uint32_t b, uint32_t) {
    return clamp32(int64_t{a >> 16} + static_cast<int8_t>(b >> 16));
  });
  check_words("vsub.s32.u32.s32.sat d.b1, a.b3, b.h0, c;", {0x12345678}, [](uint32_t a, uint32_t b, uint32_t c) {
    const int64_t value = std::clamp<int64_t>(int64_t{a >> 24} - static_cast<int16_t>(b), -128, 127);
    return (c & 0xffff00ff) | (static_cast<uint32_t>(value) & 0xff) << 8;
  });
  check_words("vabsdiff.u32.s32.s32.add d, a, b, c;", {5}, [](uint32_t a, uint32_t b, uint32_t c) {
    return static_cast<uint32_t>(std::abs(int64_t{static_cast<int32_t>(a)} - static_cast<int32_t>(b))) + c;
  });
  check_words("vmax.s32.s32.u32.min d, a.b0, b.b1, c;", {0xffffff80, 40}, [](uint32_t a, uint32_t b, uint32_t c) {
    const int64_t value = std::max<int64_t>(static_cast<int8_t>(a), b >> 8 & 0xff);
    return static_cast<uint32_t>(std::min<int64_t>(value, static_cast<int32_t>(c)));
  });
  check_words("vshl.u32.u32.u32.clamp d, a, b;", {0},
              [](uint32_t a, uint32_t b, uint32_t) { return static_cast<uint32_t>(b >= 32 ? 0 : a << b); });
  check_words("vshr.s32.s32.u32.wrap d, a, b;", {0}, [](uint32_t a, uint32_t b, uint32_t) {
    return static_cast<uint32_t>(static_cast<int32_t>(a) >> (b & 31));
  });
  check_words("vmad.s32.s32.u32.shr7 d, a.h0, b.h1, -c;", kSome, [](uint32_t a, uint32_t b, uint32_t c) {
    return static_cast<uint32_t>((int64_t{static_cast<int16_t>(a)} * (b >> 16) - static_cast<int32_t>(c)) >> 7);
  });
  check_words("vmad.u32.u32.u32.po.sat d, a, b, c;", kSome, [](uint32_t a, uint32_t b, uint32_t c) {
    const auto sum = static_cast<unsigned __int128>(a) * b + c + 1;
    return sum > UINT32_MAX ? UINT32_MAX : static_cast<uint32_t>(sum);
  });
  check_words("vset.s32.u32.lt d, a, b;", {0},
              [](uint32_t a, uint32_t b, uint32_t) { return uint32_t{static_cast<int32_t>(a) < int64_t{b}}; });
}

/// A video instruction on halves or bytes.
struct Parts {
  int count;
  bool a_signed, b_signed, d_signed, saturates, sums;
  int mask;
  std::function<int64_t(int64_t, int64_t)> op;

  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    const int width = 32 / count;
    const uint32_t keep = (1u << width) - 1;
    const auto part = [&](uint32_t v, int i, bool is_signed) {
      const auto bits = int64_t{v >> (i * width) & keep};
      return is_signed && (bits >> (width - 1) & 1) != 0 ? bits - (int64_t{1} << width) : bits;
    };
    uint32_t result = c;
    for (int i = 0; i < count; ++i) {
      if ((mask >> i & 1) == 0) continue;
      int64_t value = op(part(a, i, a_signed), part(b, i, b_signed));
      if (saturates)
        value = d_signed ? std::clamp<int64_t>(value, -int64_t{keep / 2} - 1, keep / 2)
                         : std::clamp<int64_t>(value, 0, keep);
      if (sums)
        result += static_cast<uint32_t>(value);
      else
        result = (result & ~(keep << (i * width))) | (static_cast<uint32_t>(value) & keep) << (i * width);
    }
    return result;
  }
};

TEST(GpusimSeldom, VideoOfHalvesAndBytes) {
  const auto add = [](int64_t a, int64_t b) { return a + b; };
  const auto difference = [](int64_t a, int64_t b) { return std::abs(a - b); };
  check_words("vadd4.s32.s32.s32.sat d, a, b, c;", {0}, Parts{4, true, true, true, true, false, 15, add});
  check_words("vadd2.u32.u32.s32.sat d, a, b, c;", {0}, Parts{2, false, true, false, true, false, 3, add});
  check_words("vsub2.s32.s32.s32 d.h1, a, b, c;", {0x13579bdf},
              Parts{2, true, true, true, false, false, 2, [](int64_t a, int64_t b) { return a - b; }});
  check_words("vabsdiff4.u32.u32.u32.add d, a, b, c;", {0, 100},
              Parts{4, false, false, false, false, true, 15, difference});
  check_words("vabsdiff2.s32.s32.s32.sat d, a, b, c;", {0}, Parts{2, true, true, true, true, false, 3, difference});
  check_words("vavrg4.s32.s32.s32 d, a, b, c;", {0},
              Parts{4, true, true, true, false, false, 15,
                    [](int64_t a, int64_t b) { return (a + b + (a + b >= 0 ? 1 : 0)) >> 1; }});
  check_words("vmin4.u32.u32.s32 d.b20, a, b, c;", {0xa5a5a5a5},
              Parts{4, false, true, false, false, false, 5, [](int64_t a, int64_t b) { return std::min(a, b); }});
  check_words("vset2.u32.u32.ge d, a, b, c;", {0},
              Parts{2, false, false, false, false, false, 3, [](int64_t a, int64_t b) { return int64_t{a >= b}; }});
}

// ---- floats

float smaller(float a, float b) {
  if (a != a) return b;
  if (b != b) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
float larger(float a, float b) { return -smaller(-a, -b); }

TEST(GpusimSeldom, ExtremesOfMagnitudesAndOfThree) {
  const auto by_sign = [](float value, float a, float b) {
    return value != value ? value : std::signbit(a) != std::signbit(b) ? -std::fabs(value) : std::fabs(value);
  };
  check({"min.xorsign.abs.f32 d, a, b;", 4, 4, 4, 4, kF32, kF32, {0}, [&](Bits a, Bits b, Bits) {
           const float x = as_float(a), y = as_float(b);
           return bits_of(by_sign(smaller(std::fabs(x), std::fabs(y)), x, y));
         }});
  check({"max.NaN.xorsign.abs.f32 d, a, b;", 4, 4, 4, 4, kF32, kF32, {0}, [&](Bits a, Bits b, Bits) {
           const float x = as_float(a), y = as_float(b);
           return bits_of(x != x || y != y ? NAN : by_sign(larger(std::fabs(x), std::fabs(y)), x, y));
         }});
  check({"max.f32 d, a, b, c;", 4, 4, 4, 4, kF32, kF32, kF32,
         [](Bits a, Bits b, Bits c) { return bits_of(larger(larger(as_float(a), as_float(b)), as_float(c))); }});
  check({"min.NaN.abs.f32 d, a, b, c;", 4, 4, 4, 4, kF32, kF32, kF32, [](Bits a, Bits b, Bits c) {
           const float x = std::fabs(as_float(a)), y = std::fabs(as_float(b)), z = std::fabs(as_float(c));
           return bits_of(x != x || y != y || z != z ? NAN : std::min({x, y, z}));
         }});
}

TEST(GpusimSeldom, SignsAndClassesOfDoubles) {
  check({"copysign.f64 d, a, b;", 8, 8, 8, 8, kF64, kF64, {0}, [](Bits a, Bits b, Bits) {
           return bits_of(std::copysign(as_double(b), as_double(a)));
         }});
  check({"copysign.f32 d, a, b;", 4, 4, 4, 4, kF32, kF32, {0}, [](Bits a, Bits b, Bits) {
           return (a & 0x80000000) | (b & 0x7fffffff);
         }});
  std::vector<Bits> values = kF64;
  values.insert(values.end(), {0x7ff8000000000001, 0xfff0000000000000, 0x8000000000000001, 0x0010000000000000});
  const std::pair<std::string, std::function<bool(int)>> classes[] = {
      {"finite", [](int c) { return c != FP_NAN && c != FP_INFINITE; }},
      {"infinite", [](int c) { return c == FP_INFINITE; }},
      {"number", [](int c) { return c != FP_NAN; }},
      {"notanumber", [](int c) { return c == FP_NAN; }},
      {"normal", [](int c) { return c == FP_NORMAL; }},
      {"subnormal", [](int c) { return c == FP_SUBNORMAL; }}};
  for (const auto& [name, holds] : classes) {
    check({"testp." + name + ".f64 %p1, a;\nselp.b32 d, 1, 0, %p1;",
           4,
           8,
           4,
           4,
           values,
           {0},
           {0},
           [&holds = holds](Bits a, Bits, Bits) { return Bits{holds(std::fpclassify(as_double(a)))}; }});
  }
}

TEST(GpusimSeldom, DoublesInDirectedRoundings) {
  std::vector<Bits> values;
  for (const Bits value : kF64) {
    if (value << 1 >> 53 != 0x7ff) values.push_back(value);
  }
  const std::pair<std::string, int> modes[] = {{"rz", FE_TOWARDZERO}, {"rm", FE_DOWNWARD}, {"rp", FE_UPWARD}};
  for (const auto& [name, mode] : modes) {
    const auto with = [mode = mode](auto compute) {
      return [mode, compute](Bits a, Bits b, Bits c) {
        const volatile double x = as_double(a), y = as_double(b), z = as_double(c);
        const int before = std::fegetround();
        std::fesetround(mode);
        const volatile double result = compute(x, y, z);
        std::fesetround(before);
        return result != result ? Bits{0x7fffffffffffffff} : bits_of(double{result});
      };
    };
    const auto same = [](const std::function<Bits(Bits, Bits, Bits)>& reference) { return reference; };
    using V = const volatile double;
    const auto test = [&](const std::string& code, const std::vector<Bits>& c, const Reference& reference) {
      check({code, 8, 8, 8, 8, values, values, c, reference});
    };
    test("add." + name + ".f64 d, a, b;", {0}, same(with([](V& x, V& y, V&) { return x + y; })));
    test("mul." + name + ".f64 d, a, b;", {0}, same(with([](V& x, V& y, V&) { return x * y; })));
    test("fma." + name + ".f64 d, a, b, c;", values,
         same(with([](V& x, V& y, V& z) { return std::fma(double{x}, double{y}, double{z}); })));
    std::vector<Bits> positive;
    for (const Bits value : values) {
      if (value != 0 && value >> 63 == 0) positive.push_back(value);
    }
    check({"div." + name + ".f64 d, a, b;", 8, 8, 8, 8, values, positive, {0}, same(with([](V& x, V& y, V&) {
             return x / y;
           }))});
    check({"sqrt." + name + ".f64 d, a;", 8, 8, 8, 8, positive, {0}, {0}, same(with([](V& x, V&, V&) {
             return std::sqrt(double{x});
           }))});
  }
}

TEST(GpusimSeldom, PairsOfFloats) {
  std::vector<Bits> pairs;
  for (std::size_t i = 0; i < kF32.size(); i += 2) pairs.push_back(kF32[i] << 32 | kF32[(i + 5) % kF32.size()]);
  const auto both = [](const std::function<float(float, float, float)>& op) {
    return [op](Bits a, Bits b, Bits c) {
      Bits result = 0;
      for (int half = 0; half < 2; ++half)
        result |= bits_of(op(as_float(a >> (32 * half)), as_float(b >> (32 * half)), as_float(c >> (32 * half))))
                  << (32 * half);
      return result;
    };
  };
  const auto flush = [](float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; };
  check({"add.rn.f32x2 d, a, b;", 8, 8, 8, 8, pairs, pairs, {0}, both([](float a, float b, float) { return a + b; })});
  check({"mul.ftz.f32x2 d, a, b;", 8, 8, 8, 8, pairs, pairs, {0}, both([&](float a, float b, float) {
           return flush(flush(a) * flush(b));
         })});
  check({"fma.rn.f32x2 d, a, b, c;", 8, 8, 8, 8, pairs, pairs, pairs,
         both([](float a, float b, float c) { return std::fmaf(a, b, c); })});
  check({"add.rz.f32x2 d, a, b;", 8, 8, 8, 8, {0x3f8000003f800000}, {0x33800001b3800001}, {0}, [](Bits, Bits, Bits) {
           return Bits{0x3f8000003f7ffffe};  // just above one, and just below the number before it
         }});
}

// ---- memory

TEST(GpusimSeldom, WideVectorsOfMemory) {
  const std::string text = R"(.version 8.8
.target sm_100
.address_size 64
.visible .entry f(.param .u64 from, .param .u64 to)
{
.reg .b32 %r<12>; .reg .b64 %rd<12>; .reg .pred %p<2>;
ld.param.u64 %rd1, [from]; ld.param.u64 %rd2, [to];
mov.u32 %r1, %tid.x;
mad.wide.u32 %rd3, %r1, 32, %rd1;
mad.wide.u32 %rd4, %r1, 64, %rd2;
ld.global.nc.L1::no_allocate.L2::256B.v8.b32 {%r2, %r3, %r4, %r5, %r6, %r7, %r8, %r9}, [%rd3];
st.global.v8.b32 [%rd4], {%r9, %r8, %r7, %r6, %r5, %r4, %r3, %r2};
ld.global.v4.b64 {%rd5, %rd6, %rd7, %rd8}, [%rd3];
st.global.v4.b64 [%rd4+32], {%rd8, %rd7, %rd6, %rd5};
ret;
}
)";
  Simulated device(text);
  std::vector<uint32_t> values(32 * 8);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint32_t>(i * 2654435761u);
  auto* to = device.fresh<uint32_t>(32 * 16);
  const LaunchResult result = device.run("f", {1}, {32}, device.put(values), to);
  ASSERT_EQ(text_of(result.findings), "");
  for (std::size_t t = 0; t < 32; ++t) {
    for (std::size_t i = 0; i < 8; ++i) {
      EXPECT_EQ(to[t * 16 + i], values[t * 8 + 7 - i]);
      EXPECT_EQ(to[t * 16 + 8 + i], values[t * 8 + (3 - i / 2) * 2 + i % 2]);
    }
  }
}

TEST(GpusimSeldom, AtomicsOfVectorsAndOf128Bits) {
  const std::string text = R"(.version 8.3
.target sm_90
.address_size 64
.visible .entry f(.param .u64 sums, .param .u64 big)
{
.reg .b32 %r<4>; .reg .b64 %rd<12>; .reg .b128 %q<4>; .reg .f32 %f<9>; .reg .b16 %h<5>;
ld.param.u64 %rd1, [sums]; ld.param.u64 %rd2, [big];
mov.u32 %r1, %tid.x;
cvt.rn.f32.u32 %f1, %r1;
mov.f32 %f2, 0f3F800000; mov.f32 %f3, 0f40000000; mov.f32 %f4, 0f40400000;
red.global.add.v4.f32 [%rd1], {%f1, %f2, %f3, %f4};
atom.global.v2.f32.add {%f5, %f6}, [%rd1+16], {%f2, %f3};
mov.b16 %h1, 0x3c00; mov.b16 %h2, 0x4000;
red.global.add.noftz.v2.f16 [%rd1+24], {%h1, %h2};
red.global.add.noftz.bf16x2 [%rd1+28], 0x40003f80;
cvt.u64.u32 %rd3, %r1;
mov.b128 %q1, {%rd3, %rd3};
add.u64 %rd4, %rd3, 1;
mov.b128 %q2, {%rd4, %rd4};
atom.global.cas.b128 %q3, [%rd2], %q1, %q2;
ret;
}
)";
  Simulated device(text);
  auto* sums = device.put(std::vector<uint32_t>(8, 0));
  auto* big = device.put(std::vector<uint64_t>(2, 0));
  const LaunchResult result = device.run("f", {1}, {32}, sums, big);
  ASSERT_EQ(text_of(result.findings), "");
  EXPECT_EQ(as_float(sums[0]), 31.0f * 16);
  for (int i = 1; i < 4; ++i) EXPECT_EQ(as_float(sums[i]), 32.0f * static_cast<float>(i));
  EXPECT_EQ(as_float(sums[4]), 32.0f);
  EXPECT_EQ(as_float(sums[5]), 64.0f);
  EXPECT_EQ(sums[6], 0x54005000u);  // f16: 32 and 64
  EXPECT_EQ(sums[7], 0x42804200u);  // bf16: 32 and 64
  EXPECT_EQ(big[0], 32u);           // lane l finds l and writes l + 1
  EXPECT_EQ(big[1], 32u);
}

/// Matrix i, row r lies at lane 8i + r's address; lane l holds the pair l % 4 of row l / 4, or of column l / 4.
TEST(GpusimSeldom, MatricesAreStoredAsTheyAreLoaded) {
  for (const bool transposed : {false, true}) {
    for (const int count : {1, 2, 4}) {
      std::string list = "{";
      for (int i = 0; i < count; ++i) list += (i == 0 ? "%r" : ", %r") + std::to_string(4 + i);
      const std::string text = R"(.version 8.0
.target sm_90
.address_size 64
.visible .entry f(.param .u64 from, .param .u64 to)
{
.reg .b32 %r<12>; .reg .b64 %rd<6>;
.shared .align 16 .b8 tile[512];
ld.param.u64 %rd1, [from]; ld.param.u64 %rd2, [to];
mov.u32 %r1, %tid.x;
mul.wide.u32 %rd3, %r1, 16;
add.u64 %rd1, %rd1, %rd3; add.u64 %rd2, %rd2, %rd3;
ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd1];
mov.u32 %r2, tile;
mad.lo.u32 %r3, %r1, 16, %r2;
st.shared.v4.u32 [%r3], {0, 0, 0, 0};
bar.warp.sync 0xffffffff;
stmatrix.sync.aligned.m8n8.x)" +
                               std::to_string(count) + (transposed ? ".trans" : "") + ".shared.b16 [%r3], " + list +
                               R"(};
bar.warp.sync 0xffffffff;
ld.shared.v4.u32 {%r8, %r9, %r10, %r11}, [%r3];
st.global.v4.u32 [%rd2], {%r8, %r9, %r10, %r11};
ret;
}
)";
      std::vector<uint32_t> registers(128);
      for (std::size_t i = 0; i < registers.size(); ++i)
        registers[i] = static_cast<uint32_t>((2 * i + 1) << 16 | 2 * i);
      for (const std::string& isa : available_isas()) {
        Simulated device(text);
        device.settings.isa = isa;
        auto* const out = reinterpret_cast<uint16_t*>(device.fresh<uint32_t>(128));
        const LaunchResult result = device.run("f", {1}, {32}, device.put(registers), out);
        ASSERT_EQ(text_of(result.findings), "") << text;
        for (std::size_t matrix = 0; matrix < 4; ++matrix) {
          for (std::size_t row = 0; row < 8; ++row) {
            for (std::size_t column = 0; column < 8; ++column) {
              const std::size_t of = transposed ? column : row, at = transposed ? row : column;
              const std::size_t lane = of * 4 + at / 2;
              const uint32_t word = registers[lane * 4 + matrix];
              const uint32_t expected = matrix < static_cast<std::size_t>(count) ? word >> (16 * (at % 2)) & 0xffff : 0;
              ASSERT_EQ(out[(matrix * 8 + row) * 8 + column], expected) << count << transposed << isa;
            }
          }
        }
      }
    }
  }
}

TEST(GpusimSeldom, ClocksAreTheSameInEveryRun) {
  const std::string text = R"(.version 8.0
.target sm_80
.address_size 64
.visible .entry f(.param .u64 to)
{
.reg .b32 %r<5>; .reg .b64 %rd<8>; .reg .pred %p<2>;
ld.param.u64 %rd1, [to];
mov.u32 %r2, %ctaid.x; mov.u32 %r3, %tid.x; mad.lo.u32 %r3, %r2, 32, %r3;
mad.wide.u32 %rd2, %r3, 16, %rd1;
mov.u64 %rd3, %clock64;
LOOP:
mov.u64 %rd4, %clock64;
sub.u64 %rd5, %rd4, %rd3;
setp.lt.u64 %p1, %rd5, 1000;
@%p1 bra LOOP;
mov.u64 %rd6, %globaltimer;
st.global.v2.u64 [%rd2], {%rd5, %rd6};
pmevent 3;
ret;
}
)";
  std::vector<uint64_t> runs[2];
  for (auto& seen : runs) {
    Simulated device(text);
    auto* to = device.fresh<uint64_t>(4 * 32 * 2);
    ASSERT_EQ(text_of(device.run("f", {4}, {32}, to).findings), "");
    seen.assign(to, to + 4 * 32 * 2);
    EXPECT_GE(seen[0], 1000u);
    EXPECT_GT(seen[65], seen[1]);  // the next block runs later
  }
  EXPECT_EQ(runs[0], runs[1]);
}

/// Two modules: a function and a variable by name, and a private string that both have.
TEST(GpusimSeldom, ModulesAreJoinedByName) {
  const std::string header = ".version 8.0\n.target sm_80\n.address_size 64\n";
  const std::string texts[] = {header + R"(.extern .func (.param .b32 result) twice(.param .b32 value);
.extern .global .align 4 .u32 shared_number;
.global .align 4 .u32 own = 5;
.visible .entry f(.param .u64 to)
{
.reg .b32 %r<6>; .reg .b64 %rd<2>;
ld.param.u64 %rd1, [to];
{ .param .b32 p; .param .b32 q;
st.param.b32 [p], 21;
call (q), twice, (p);
ld.param.b32 %r1, [q]; }
ld.global.u32 %r2, [shared_number];
ld.global.u32 %r3, [own];
st.global.u32 [%rd1], %r1; st.global.u32 [%rd1+4], %r2; st.global.u32 [%rd1+8], %r3;
ret;
}
)",
                               header + R"(.visible .global .align 4 .u32 shared_number = 77;
.global .align 4 .u32 own = 9;
.visible .func (.param .b32 result) twice(.param .b32 value)
{
.reg .b32 %r<4>;
ld.param.b32 %r1, [value];
ld.global.u32 %r2, [own];
mad.lo.u32 %r3, %r1, 2, %r2;
st.param.b32 [result], %r3;
ret;
}
)"};
  DeviceMemory memory(std::size_t{1} << 30, true);
  const auto module = Module::link(texts, memory);
  const std::uint64_t out = memory.allocate(12, "cudaMalloc");
  LaunchConfig config;
  config.parameters = std::as_bytes(std::span(&out, 1));
  Settings settings;
  settings.checks = Checks::all();
  const LaunchResult result = launch(*module, "f", config, memory, DeviceModel{}, settings);
  ASSERT_EQ(text_of(result.findings), "");
  const auto* numbers = reinterpret_cast<const uint32_t*>(out);
  EXPECT_EQ(numbers[0], 51u);  // by its own `own`
  EXPECT_EQ(numbers[1], 77u);
  EXPECT_EQ(numbers[2], 5u);
  EXPECT_THROW(Module::link({}, memory), dsv2::Error);
}

TEST(GpusimSeldom, WhatIsNotModelledIsRefusedByName) {
  const std::pair<std::string, std::string> refused[] = {
      {"multimem.red.relaxed.sys.global.add.f32 [%rd1], %f1;", "multimem.red"},
      {"tex.2d.v4.f32.f32 {%f1, %f1, %f1, %f1}, [%rd1, {%f1, %f1}];", "tex.2d"},
      {"mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e4m3.e4m3.f32 {%f1,%f1,%f1,%f1}, {%r1,%r1,%r1,%r1}, "
       "{%r1,%r1}, "
       "{%f1,%f1,%f1,%f1};",
       "kind::f8f6f4"},
      {"cvt.rs.f16x2.f32 %r1, %f1, %f1, %r1;", "stochastic"},
  };
  for (const auto& [code, named] : refused) {
    Simulated device(
        ".version 8.8\n.target sm_90\n.address_size 64\n.visible .entry f()\n{\n.reg .b32 %r<3>; .reg .b64 "
        "%rd<3>; .reg .f32 %f<3>;\n" +
        code + "\nret;\n}\n");
    const LaunchResult result = device.run("f", {1}, {1});
    EXPECT_EQ(result.status, LaunchStatus::illegal_instruction) << code;
    ASSERT_EQ(result.findings.size(), 1u) << code;
    EXPECT_EQ(result.findings[0].kind, FindingKind::unsupported);
    EXPECT_NE(result.findings[0].message.find(named), std::string::npos) << result.findings[0].message;
  }
}

}  // namespace
}  // namespace gpusim
