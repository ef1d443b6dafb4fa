// One instruction in a kernel of its own, on every combination of edge values, against plain C++.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "gpusim_fixture.h"

namespace gpusim {

using Bits = std::uint64_t;
using Reference = std::function<Bits(Bits, Bits, Bits)>;

inline std::string type_of(int bytes) { return ".b" + std::to_string(8 * bytes); }

/// A kernel that computes d from a, b and c with `code`, an element a thread, 8 bytes apart in memory.
inline std::string kernel_of(const std::string& code, int d, int a, int b, int c) {
  std::string text =
      ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry f(.param .u64 pa, .param .u64 pb, .param .u64 "
      "pc, .param .u64 pd)\n{\n";
  text += ".reg .pred %p<4>;\n.reg .b32 %r<5>;\n.reg .b64 %rd<9>;\n";
  const auto declare = [&](const std::string& name, int bytes) {
    text += ".reg " + type_of(bytes) + " " + name + ";\n";
  };
  declare("d", d);
  declare("a", a);
  declare("b", b);
  declare("c", c);
  text += "mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %ntid.x;\nmov.u32 %r3, %tid.x;\nmad.lo.s32 %r4, %r1, %r2, %r3;\n";
  const auto load = [&](const std::string& name, int bytes, const std::string& index) {
    text +=
        "ld.param.u64 %rd" + index + ", [p" + name + "];\nmad.wide.s32 %rd" + index + ", %r4, 8, %rd" + index + ";\n";
    if (name != "d") text += "ld.global" + type_of(bytes) + " " + name + ", [%rd" + index + "];\n";
  };
  load("a", a, "1");
  load("b", b, "2");
  load("c", c, "3");
  load("d", d, "4");
  return text + code + "\nst.global" + type_of(d) + " [%rd4], d;\nret;\n}\n";
}

inline const std::vector<Bits> kF32 = {0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x3f800000,
                                       0xbf800000, 0x3f800001, 0x40490fdb, 0x4b000001, 0xcb7fffff, 0x4f000000,
                                       0x5f000000, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000,
                                       0x3eaaaaab, 0xc2f6e979, 0x3f000000, 0xc0200000};
inline const std::vector<Bits> kF64 = {0x0000000000000000, 0x8000000000000000, 0x3ff0000000000000, 0xbff8000000000000,
                                       0x7ff0000000000000, 0x3fd5555555555555, 0x43e0000000000000, 0x47efffffe0000000,
                                       0x36a0000000000000, 0xc1dfffffffc00000, 0x7fefffffffffffff, 0x0000000000000001,
                                       0x3ff0000010000000, 0x3ff0000030000000};
inline const std::vector<Bits> kInt = {0,
                                       1,
                                       2,
                                       3,
                                       31,
                                       32,
                                       33,
                                       63,
                                       64,
                                       0x7f,
                                       0x80,
                                       0xff,
                                       0x7fff,
                                       0x8000,
                                       0xffff,
                                       0x10000,
                                       0x12345678,
                                       0x7fffffff,
                                       0x80000000,
                                       0xffffffff,
                                       0x80000001,
                                       0x123456789abcdef0,
                                       0x7fffffffffffffff,
                                       0x8000000000000000,
                                       0xffffffffffffffff};
inline const std::vector<Bits> kF16 = {0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x3c00, 0xbc00, 0x3c01,
                                       0x3555, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x4248, 0x6400};
inline const std::vector<Bits> kBf16 = {0x0000, 0x8000, 0x0001, 0x807f, 0x0080, 0x3f80, 0xbf80, 0x3f81,
                                        0x3eab, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0x4049, 0x4b00};

struct Case {
  std::string code;
  int d, a, b, c;
  std::vector<Bits> of_a, of_b, of_c;
  Reference reference;
};

/// Every combination of the inputs, in every instruction set, with all lanes and with every third one.
inline void check(const Case& test) {
  std::vector<Bits> a, b, c;
  for (const Bits x : test.of_a) {
    for (const Bits y : test.of_b) {
      for (const Bits z : test.of_c) {
        a.push_back(x);
        b.push_back(y);
        c.push_back(z);
      }
    }
  }
  const std::size_t count = a.size();
  const std::size_t padded = (count + 31) / 32 * 32;
  a.resize(padded, a[0]);
  b.resize(padded, b[0]);
  c.resize(padded, c[0]);
  const Bits keep = test.d == 8 ? ~Bits{0} : (Bits{1} << (8 * test.d)) - 1;
  const std::string partly = "rem.u32 %r3, %r3, 3;\nsetp.ne.u32 %p1, %r3, 0;\n@%p1 bra SKIP;\n" + test.code + "\nSKIP:";
  for (const std::string& isa : available_isas()) {
    for (const bool part : {false, true}) {
      Simulated device(kernel_of(part ? partly : test.code, test.d, test.a, test.b, test.c));
      device.settings.isa = isa;
      Bits* const d = device.put(std::vector<Bits>(padded, 0));
      const LaunchResult result =
          device.run("f", {static_cast<unsigned>(padded / 32)}, {32}, device.put(a), device.put(b), device.put(c), d);
      ASSERT_EQ(text_of(result.findings), "") << test.code;
      for (std::size_t i = 0; i < count; ++i) {
        if (part && i % 32 % 3 != 0) continue;
        ASSERT_EQ(d[i], test.reference(a[i], b[i], c[i]) & keep)
            << test.code << " in " << isa << " of 0x" << std::hex << a[i] << ", 0x" << b[i] << ", 0x" << c[i];
      }
    }
  }
}

inline float as_float(Bits bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits)); }
inline double as_double(Bits bits) { return std::bit_cast<double>(bits); }
/// Float results: any NaN is PTX's NaN.
inline Bits bits_of(float value) { return value != value ? 0x7fffffffu : std::bit_cast<std::uint32_t>(value); }
inline Bits bits_of(double value) { return std::bit_cast<Bits>(value); }

}  // namespace gpusim
