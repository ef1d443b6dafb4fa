// mma of every shape and type: fragments filled at random, the product computed on the host from where the PTX ISA says
// that each element of a fragment stands ("Matrix Fragments for mma", one formula for each table there).
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <random>

#include "gpusim_fixture.h"

namespace gpusim {
namespace {

using std::int32_t, std::int64_t, std::int8_t, std::uint32_t, std::uint64_t;

struct Position {
  int row, column;
};
/// Where element `i` of lane `lane` stands.
using Layout = std::function<Position(int lane, int i)>;

int group(int lane) { return lane >> 2; }
int within(int lane) { return lane & 3; }

/// An element type: bits, and what they are worth. Bits are drawn so that sums are exact and in range.
struct Type {
  std::string name;
  int bits;
  std::function<double(uint64_t)> value;
  uint64_t mask = ~uint64_t{0};  ///< of random bits
};

double float_value(uint32_t bits, int exponent_bits, int fraction_bits, int bias) {
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const auto fraction = static_cast<double>(bits & ((1u << fraction_bits) - 1));
  const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                                         : std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
  return (bits >> (exponent_bits + fraction_bits) & 1) != 0 ? -magnitude : magnitude;
}
double signed_value(uint64_t bits, int width) {
  return static_cast<double>(static_cast<int64_t>(bits << (64 - width)) >> (64 - width));
}

const Type kF16{"f16", 16, [](uint64_t b) { return float_value(static_cast<uint32_t>(b), 5, 10, 15); }, 0xbf00};
const Type kBf16{"bf16", 16, [](uint64_t b) { return float_value(static_cast<uint32_t>(b), 8, 7, 127); }, 0xbff0};
const Type kTf32{"tf32", 32, [](uint64_t b) { return float_value(static_cast<uint32_t>(b), 8, 23, 127); }, 0xbff80000};
const Type kE4m3{"e4m3", 8, [](uint64_t b) { return float_value(static_cast<uint32_t>(b), 4, 3, 7); }, 0xbf};
const Type kE5m2{"e5m2", 8, [](uint64_t b) { return float_value(static_cast<uint32_t>(b), 5, 2, 15); }, 0xbf};
const Type kS8{"s8", 8, [](uint64_t b) { return signed_value(b, 8); }};
const Type kU8{"u8", 8, [](uint64_t b) { return static_cast<double>(b); }};
const Type kS4{"s4", 4, [](uint64_t b) { return signed_value(b, 4); }};
const Type kU4{"u4", 4, [](uint64_t b) { return static_cast<double>(b); }};
const Type kB1{"b1", 1, [](uint64_t b) { return static_cast<double>(b); }};
const Type kF64{"f64", 64, [](uint64_t b) { return std::bit_cast<double>(b); }};

struct Case {
  std::string shape;
  int m, k;
  Type a, b;
  std::string sums;  ///< "f32", "f16", "s32", "f64"
  Layout of_a, of_b, of_c;
  std::string prefix = "mma.sync.aligned.";
  std::string suffix = "";
  bool bits_differ = false, bits_agree = false, saturates = false;
  int sparse_group = 0;  ///< columns that a pair of indices describes; 0: dense
  int selector = 0;
  std::string layouts = "row.col";
};

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
/// Exact for what the tests compute: small multiples of powers of two.
uint32_t to_f16(double value) {
  if (value == 0) return std::signbit(value) ? 0x8000 : 0;
  const int exponent = std::max(std::ilogb(value), -14);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(std::fabs(value), 10 - exponent)));
  return (value < 0 ? 0x8000u : 0u) | static_cast<uint32_t>(((exponent + 14) << 10) + steps);
}

/// Registers of an operand: how many of 32 bits, or of 64 for doubles.
struct Fragment {
  int registers;
  int each;  ///< elements of a register
  bool wide;
};
Fragment fragment(int rows, int columns, int bits) {
  const int elements = rows * columns / 32;
  if (bits == 64) return {elements, 1, true};
  return {std::max(1, elements * bits / 32), 32 / bits, false};
}

/// Declares registers NAME0.. and loads them from parameter NAME, or stores them there: 32 lanes by registers.
std::string move_fragment(const std::string& name, const Fragment& fragment, bool stores) {
  std::string text;
  for (int i = 0; i < fragment.registers; ++i) {
    const std::string at = "[%" + name + "+" + std::to_string(i * (fragment.wide ? 8 : 4)) + "]";
    const std::string reg = name + std::to_string(i);
    const std::string type = fragment.wide ? ".b64 " : ".b32 ";
    text += stores ? "st.global" + type + at + ", " + reg + ";\n" : "ld.global" + type + reg + ", " + at + ";\n";
  }
  return text;
}
std::string list(const std::string& name, int count) {
  std::string text = "{";
  for (int i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + name + std::to_string(i);
  return text + "}";
}

std::string kernel_of(const Case& test, const Fragment& a, const Fragment& b, const Fragment& c) {
  std::string text =
      ".version 8.7\n.target sm_90\n.address_size 64\n.visible .entry f(.param .u64 pa, .param .u64 pb, "
      ".param .u64 pc, .param .u64 pd, .param .u64 pe)\n{\n.reg .b32 %lane, e0; .reg .b64 %a, %b, %c, %d, %e;\n";
  text += "mov.u32 %lane, %tid.x;\n";
  const std::tuple<std::string, Fragment> operands[] = {{"a", a}, {"b", b}, {"c", c}, {"d", c}, {"e", {1, 1, false}}};
  for (const auto& [name, f] : operands) {
    if (name != "e") {
      for (int i = 0; i < f.registers; ++i)
        text += std::string(".reg ") + (f.wide ? ".b64 " : ".b32 ") + name + std::to_string(i) + ";\n";
    }
    text += "ld.param.u64 %" + name + ", [p" + name + "];\nmad.wide.u32 %" + name + ", %lane, " +
            std::to_string(f.registers * (f.wide ? 8 : 4)) + ", %" + name + ";\n";
    if (name != "d") text += move_fragment(name, f, false);
  }
  text += test.prefix + test.shape + "." + test.layouts + (test.saturates ? ".satfinite" : "") + "." + test.sums + "." +
          test.a.name + "." + test.b.name + "." + test.sums + test.suffix + " " + list("d", c.registers) + ", " +
          list("a", a.registers) + ", " + list("b", b.registers) + ", " + list("c", c.registers);
  if (test.sparse_group != 0) text += ", e0, " + std::to_string(test.selector);
  return text + ";\n" + move_fragment("d", c, true) + "ret;\n}\n";
}

/// Random elements: the fragment's words, and the matrix that they mean.
struct Filled {
  std::vector<uint64_t> words;
  std::vector<std::vector<double>> matrix;
};
Filled fill(const Type& type, const Fragment& f, int rows, int columns, const Layout& layout, std::mt19937_64& random) {
  Filled result{std::vector<uint64_t>(static_cast<std::size_t>(32 * f.registers), 0),
                std::vector<std::vector<double>>(static_cast<std::size_t>(rows),
                                                 std::vector<double>(static_cast<std::size_t>(columns), NAN))};
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < rows * columns / 32; ++i) {
      uint64_t bits = random() & type.mask;
      if (type.bits == 64)
        bits = std::bit_cast<uint64_t>(static_cast<double>(static_cast<int64_t>(bits % 201) - 100) / 8);
      if (type.bits < 64) bits &= (uint64_t{1} << type.bits) - 1;
      // Floats near one, so that sums are exact.
      if (type.name == "f16") bits = (bits & 0x8300) | 0x3800;
      if (type.name == "bf16") bits = (bits & 0x8060) | 0x3f00;
      if (type.name == "tf32") bits = (bits & 0x80600000) | 0x3f000000;
      if (type.name == "e4m3") bits = (bits & 0x87) | 0x30;
      if (type.name == "e5m2") bits = (bits & 0x83) | 0x38;
      const Position at = layout(lane, i);
      result.matrix[static_cast<std::size_t>(at.row)][static_cast<std::size_t>(at.column)] = type.value(bits);
      auto& word = result.words[static_cast<std::size_t>(lane * f.registers + i / f.each)];
      word |= f.wide ? bits : bits << (i % f.each * type.bits);
    }
  }
  return result;
}

template <class T>
std::vector<T> narrow(const std::vector<uint64_t>& words) {
  std::vector<T> result;
  for (const uint64_t word : words) result.push_back(static_cast<T>(word));
  return result;
}

/// A matrix with zeros where the metadata says so: which of each group's columns are stored.
struct Sparse {
  std::vector<uint32_t> words = std::vector<uint32_t>(32, 0);
  std::vector<std::vector<double>> matrix;
};

void run_case(const Case& test, std::mt19937_64& random) {
  SCOPED_TRACE(test.prefix + test.shape + "." + test.layouts + "." + test.sums + "." + test.a.name + "." + test.b.name +
               test.suffix);
  const int stored = test.sparse_group != 0 ? test.k / 2 : test.k;
  const Fragment a = fragment(test.m, stored, test.a.bits);
  const Fragment b = fragment(test.k, 8, test.b.bits);
  const int sum_bits = test.sums == "f64" ? 64 : test.sums == "f16" ? 16 : 32;
  const Fragment c = fragment(test.m, 8, sum_bits);
  const Filled fa = fill(test.a, a, test.m, stored, test.of_a, random);
  const Filled fb = fill(test.b, b, test.k, 8, test.of_b, random);

  std::vector<std::vector<double>> matrix = fa.matrix;
  std::vector<uint32_t> metadata(32, 0);
  if (test.sparse_group != 0) {
    const int half = test.sparse_group / 2;
    const int groups = test.k / test.sparse_group;
    for (int row = 0; row < test.m; ++row) {
      std::vector<double> full(static_cast<std::size_t>(test.k), 0.0);
      for (int g = 0; g < groups; ++g) {
        constexpr std::array<std::pair<int, int>, 6> kPairs = {{{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}}};
        auto [first, second] = kPairs[random() % 6];
        if (test.sparse_group == 2) first = static_cast<int>(random() % 2) * 2, second = first + 1;
        for (int i = 0; i < half; ++i) {
          const int neighbours = std::max(1, test.sparse_group / 4);
          int column =
              test.sparse_group == 2 ? first / 2 : (i / neighbours == 0 ? first : second) * neighbours + i % neighbours;
          column += g * test.sparse_group;
          full[static_cast<std::size_t>(column)] =
              fa.matrix[static_cast<std::size_t>(row)][static_cast<std::size_t>(g * half + i)];
        }
        // 16-bit and wider: rows r and r + 8 share a word, 4 groups each; narrower: a word a row, 8 groups.
        const auto nibble = static_cast<uint32_t>(first | second << 2);
        const bool halves = test.a.bits >= 16;
        const int words_of_row = std::max(1, groups / 4);
        const int lane = halves ? row % 8 * 4 + test.selector * words_of_row + g / 4
                                : row % 8 * 4 + (groups == 16 ? 0 : test.selector * 2) + g / 8 * 2 + row / 8;
        metadata[static_cast<std::size_t>(lane)] |= nibble << (halves ? row / 8 * 16 + g % 4 * 4 : g % 8 * 4);
      }
      matrix[static_cast<std::size_t>(row)] = full;
    }
  }

  // Accumulators: small whole numbers; at the brink of the range for .satfinite.
  std::vector<uint64_t> words_of_c(static_cast<std::size_t>(32 * c.registers), 0);
  std::vector<std::vector<double>> sums(static_cast<std::size_t>(test.m), std::vector<double>(8, NAN));
  const int c_elements = test.m * 8 / 32;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < c_elements; ++i) {
      double value = static_cast<double>(static_cast<int64_t>(random() % 21) - 10);
      if (test.saturates) value = random() % 2 != 0 ? 2147483000.0 : -2147483000.0;
      const Position at = test.of_c(lane, i);
      sums[static_cast<std::size_t>(at.row)][static_cast<std::size_t>(at.column)] = value;
      auto& word = words_of_c[static_cast<std::size_t>(lane * c.registers + i / c.each)];
      if (test.sums == "s32") word = static_cast<uint32_t>(static_cast<int32_t>(value));
      if (test.sums == "f32") word = bits_of(static_cast<float>(value));
      if (test.sums == "f64") word = std::bit_cast<uint64_t>(value);
      if (test.sums == "f16") word |= uint64_t{to_f16(value)} << (16 * (i % 2));
    }
  }
  for (int row = 0; row < test.m; ++row) {
    for (int column = 0; column < 8; ++column) {
      double& sum = sums[static_cast<std::size_t>(row)][static_cast<std::size_t>(column)];
      for (int k = 0; k < test.k; ++k) {
        const double x = matrix[static_cast<std::size_t>(row)][static_cast<std::size_t>(k)];
        const double y = fb.matrix[static_cast<std::size_t>(k)][static_cast<std::size_t>(column)];
        sum += test.bits_differ ? (x != y ? 1 : 0) : test.bits_agree ? (x == 1 && y == 1 ? 1 : 0) : x * y;
      }
      if (test.saturates) sum = std::clamp(sum, -2147483648.0, 2147483647.0);
    }
  }

  for (const std::string& isa : available_isas()) {
    Simulated device(kernel_of(test, a, b, c));
    device.settings.isa = isa;
    device.settings.counts = true;
    const auto put = [&](const std::vector<uint64_t>& words, const Fragment& f) {
      return f.wide ? static_cast<void*>(device.put(words)) : static_cast<void*>(device.put(narrow<uint32_t>(words)));
    };
    void* const d = put(std::vector<uint64_t>(words_of_c.size(), 0), c);
    const LaunchResult result =
        device.run("f", {1}, {32}, put(fa.words, a), put(fb.words, b), put(words_of_c, c), d, device.put(metadata));
    ASSERT_EQ(text_of(result.findings), "");
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < c_elements; ++i) {
        const Position at = test.of_c(lane, i);
        const double expected = sums[static_cast<std::size_t>(at.row)][static_cast<std::size_t>(at.column)];
        const int index = lane * c.registers + i / c.each;
        const uint32_t word = c.wide ? 0 : static_cast<uint32_t*>(d)[index];
        if (test.sums == "f64") {
          ASSERT_EQ(static_cast<double*>(d)[index], expected) << isa;
        }
        if (test.sums == "s32") {
          ASSERT_EQ(static_cast<double>(static_cast<int32_t>(word)), expected)
              << isa << " lane " << lane << " element " << i;
        }
        if (test.sums == "f32") {
          ASSERT_EQ(static_cast<double>(std::bit_cast<float>(word)), expected)
              << isa << " lane " << lane << " element " << i;
        }
        if (test.sums == "f16") {
          ASSERT_EQ(word >> (16 * (i % 2)) & 0xffff, to_f16(expected)) << isa;
        }
      }
    }
  }
}

// ---- where elements stand; names of the shapes as in the tables of the PTX ISA

Layout sums_of(int m) {
  return [m](int lane, int i) {
    return Position{group(lane) + (m == 16 && i >= 2 ? 8 : 0), within(lane) * 2 + (i & 1)};
  };
}
/// A of m8n8: `each` neighbouring elements.
Layout a8(int each) {
  return [each](int lane, int i) { return Position{group(lane), within(lane) * each + i}; };
}
Layout b_of(int each) {
  return [each](int lane, int i) {
    return Position{within(lane) * each + i % each + i / each * 4 * each, group(lane)};
  };
}
/// A of m16n8 in two registers: rows g and g + 8.
Layout a16_two(int each) {
  return [each](int lane, int i) { return Position{group(lane) + (i < each ? 0 : 8), within(lane) * each + i % each}; };
}
/// In four: rows g, g + 8, then the same further on.
Layout a16_four(int each) {
  return [each](int lane, int i) {
    const bool low = i < each || (i >= 2 * each && i < 3 * each);
    return Position{group(lane) + (low ? 0 : 8), within(lane) * each + i % each + (i < 2 * each ? 0 : 4 * each)};
  };
}
/// f64 of m16n8k16, in eight.
Position a16_f64_k16(int lane, int i) { return {group(lane) + (i % 2 == 0 ? 0 : 8), within(lane) + i / 2 * 4}; }

class Mma : public testing::Test {
 protected:
  void run(const Case& test) { run_case(test, random_); }
  std::mt19937_64 random_{20240229};
};
using GpusimMma = Mma;

TEST_F(GpusimMma, Halves) {
  for (const Type& type : {kF16, kBf16}) {
    run({"m16n8k8", 16, 8, type, type, "f32", a16_two(2), b_of(2), sums_of(16)});
    run({"m16n8k16", 16, 16, type, type, "f32", a16_four(2), b_of(2), sums_of(16)});
  }
  run({"m16n8k8", 16, 8, kF16, kF16, "f16", a16_two(2), b_of(2), sums_of(16)});
  run({"m16n8k16", 16, 16, kF16, kF16, "f16", a16_four(2), b_of(2), sums_of(16)});
}

TEST_F(GpusimMma, Tf32AndDoubles) {
  run({"m16n8k4", 16, 4, kTf32, kTf32, "f32", a16_two(1), b_of(1), sums_of(16)});
  run({"m16n8k8", 16, 8, kTf32, kTf32, "f32", a16_four(1), b_of(1), sums_of(16)});
  run({"m8n8k4", 8, 4, kF64, kF64, "f64", a8(1), b_of(1), sums_of(8)});
  run({"m16n8k4", 16, 4, kF64, kF64, "f64", a16_two(1), b_of(1), sums_of(16)});
  run({"m16n8k8", 16, 8, kF64, kF64, "f64", a16_four(1), b_of(1), sums_of(16)});
  run({"m16n8k16", 16, 16, kF64, kF64, "f64", a16_f64_k16, b_of(1), sums_of(16)});
}

TEST_F(GpusimMma, Fp8) {
  for (const Type& a : {kE4m3, kE5m2}) {
    for (const Type& b : {kE4m3, kE5m2}) {
      run({"m16n8k16", 16, 16, a, b, "f32", a16_two(4), b_of(4), sums_of(16)});
      run({"m16n8k32", 16, 32, a, b, "f32", a16_four(4), b_of(4), sums_of(16)});
    }
  }
  run({"m16n8k32", 16, 32, kE5m2, kE5m2, "f16", a16_four(4), b_of(4), sums_of(16)});
}

TEST_F(GpusimMma, IntegersOfEveryWidth) {
  for (const bool saturates : {false, true}) {
    for (const Type& a : {kS8, kU8}) {
      for (const Type& b : {kS8, kU8}) {
        run({.shape = "m8n8k16",
             .m = 8,
             .k = 16,
             .a = a,
             .b = b,
             .sums = "s32",
             .of_a = a8(4),
             .of_b = b_of(4),
             .of_c = sums_of(8),
             .saturates = saturates});
        run({.shape = "m16n8k16",
             .m = 16,
             .k = 16,
             .a = a,
             .b = b,
             .sums = "s32",
             .of_a = a16_two(4),
             .of_b = b_of(4),
             .of_c = sums_of(16),
             .saturates = saturates});
        run({.shape = "m16n8k32",
             .m = 16,
             .k = 32,
             .a = a,
             .b = b,
             .sums = "s32",
             .of_a = a16_four(4),
             .of_b = b_of(4),
             .of_c = sums_of(16),
             .saturates = saturates});
      }
    }
    for (const Type& a : {kS4, kU4}) {
      for (const Type& b : {kS4, kU4}) {
        run({.shape = "m8n8k32",
             .m = 8,
             .k = 32,
             .a = a,
             .b = b,
             .sums = "s32",
             .of_a = a8(8),
             .of_b = b_of(8),
             .of_c = sums_of(8),
             .saturates = saturates});
        run({.shape = "m16n8k32",
             .m = 16,
             .k = 32,
             .a = a,
             .b = b,
             .sums = "s32",
             .of_a = a16_two(8),
             .of_b = b_of(8),
             .of_c = sums_of(16),
             .saturates = saturates});
        run({.shape = "m16n8k64",
             .m = 16,
             .k = 64,
             .a = a,
             .b = b,
             .sums = "s32",
             .of_a = a16_four(8),
             .of_b = b_of(8),
             .of_c = sums_of(16),
             .saturates = saturates});
      }
    }
  }
}

TEST_F(GpusimMma, Bits) {
  for (const bool differ : {false, true}) {
    const std::string suffix = differ ? ".xor.popc" : ".and.popc";
    const auto test = [&](const std::string& shape, int m, int k, const Layout& a) {
      run({.shape = shape,
           .m = m,
           .k = k,
           .a = kB1,
           .b = kB1,
           .sums = "s32",
           .of_a = a,
           .of_b = b_of(32),
           .of_c = sums_of(m),
           .suffix = suffix,
           .bits_differ = differ,
           .bits_agree = !differ});
    };
    test("m8n8k128", 8, 128, a8(32));
    test("m16n8k128", 16, 128, a16_two(32));
    test("m16n8k256", 16, 256, a16_four(32));
  }
}

TEST_F(GpusimMma, Sparse) {
  const auto test = [&](const std::string& shape, int k, const Type& a, const Type& b, const std::string& sums,
                        const Layout& of_a, int each, int group_columns, int selectors) {
    for (int selector = 0; selector < selectors; ++selector) {
      for (const std::string prefix : {"mma.sp.sync.aligned.", "mma.sp::ordered_metadata.sync.aligned."}) {
        run({.shape = shape,
             .m = 16,
             .k = k,
             .a = a,
             .b = b,
             .sums = sums,
             .of_a = of_a,
             .of_b = b_of(each),
             .of_c = sums_of(16),
             .prefix = prefix,
             .sparse_group = group_columns,
             .selector = selector});
      }
    }
  };
  test("m16n8k16", 16, kF16, kF16, "f32", a16_two(2), 2, 4, 4);
  test("m16n8k16", 16, kF16, kF16, "f16", a16_two(2), 2, 4, 4);
  test("m16n8k32", 32, kBf16, kBf16, "f32", a16_four(2), 2, 4, 2);
  test("m16n8k8", 8, kTf32, kTf32, "f32", a16_two(1), 1, 2, 4);
  test("m16n8k16", 16, kTf32, kTf32, "f32", a16_four(1), 1, 2, 2);
  test("m16n8k32", 32, kS8, kU8, "s32", a16_two(4), 4, 4, 2);
  test("m16n8k64", 64, kU8, kS8, "s32", a16_four(4), 4, 4, 1);
  test("m16n8k64", 64, kS4, kU4, "s32", a16_two(8), 8, 8, 2);
  test("m16n8k128", 128, kS4, kS4, "s32", a16_four(8), 8, 8, 1);
  test("m16n8k64", 64, kE4m3, kE5m2, "f32", a16_four(4), 4, 4, 1);
}

/// The four products of Volta's shape: lanes 4q..4q+3 and 16 beyond compute number q.
TEST_F(GpusimMma, FourSmallProducts) {
  for (const bool a_columns : {false, true}) {
    for (const bool b_columns : {false, true}) {
      for (const std::string sums : {"f32", "f16"}) {
        const std::string layouts = std::string(a_columns ? "col" : "row") + "." + (b_columns ? "col" : "row");
        // Rows of the quads follow each other: A of 32 x 4, B of 4 x 32, D of 32 x 8.
        const auto quad = [](int lane) { return lane / 4 % 4; };
        const auto own = [](int lane) { return lane % 4 + (lane < 16 ? 0 : 4); };
        const auto high = [](int lane) { return lane < 16 ? 0 : 4; };
        const Fragment fragment_ab{2, 2, false};
        const Layout of_a = [&](int lane, int i) {
          return a_columns ? Position{8 * quad(lane) + i + high(lane), lane % 4}
                           : Position{8 * quad(lane) + own(lane), i};
        };
        const Layout of_b = [&](int lane, int i) {
          return b_columns ? Position{i, 8 * quad(lane) + own(lane)}
                           : Position{lane % 4, 8 * quad(lane) + i + high(lane)};
        };
        const Layout of_d = [&](int lane, int i) {
          if (sums == "f16") return Position{8 * quad(lane) + own(lane), i};
          return Position{8 * quad(lane) + (lane & 1) + (i & 2) + high(lane), (i & 4) + (lane & 2) + (i & 1)};
        };
        const Filled a = fill(kF16, fragment_ab, 32, 4, of_a, random_);
        const Filled b = fill(kF16, fragment_ab, 4, 32, of_b, random_);
        const Fragment c{sums == "f16" ? 4 : 8, sums == "f16" ? 2 : 1, false};
        Case test{.shape = "m8n8k4",
                  .m = 8,
                  .k = 4,
                  .a = kF16,
                  .b = kF16,
                  .sums = sums,
                  .of_a = of_a,
                  .of_b = of_b,
                  .of_c = of_d,
                  .layouts = layouts};
        for (const std::string& isa : available_isas()) {
          Simulated device(kernel_of(test, fragment_ab, fragment_ab, c));
          device.settings.isa = isa;
          auto* const d = device.put(std::vector<uint32_t>(static_cast<std::size_t>(32 * c.registers), 0));
          const LaunchResult result =
              device.run("f", {1}, {32}, device.put(narrow<uint32_t>(a.words)), device.put(narrow<uint32_t>(b.words)),
                         device.put(std::vector<uint32_t>(static_cast<std::size_t>(32 * c.registers), 0)), d,
                         device.put(std::vector<uint32_t>(32, 0)));
          ASSERT_EQ(text_of(result.findings), "");
          for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 8; ++i) {
              const Position at = of_d(lane, i);
              double expected = 0;
              for (int k = 0; k < 4; ++k)
                expected += a.matrix[static_cast<std::size_t>(at.row)][static_cast<std::size_t>(k)] *
                            b.matrix[static_cast<std::size_t>(k)][static_cast<std::size_t>(at.row / 8 * 8 + at.column)];
              const uint32_t word = d[lane * c.registers + i / c.each];
              if (sums == "f32") {
                ASSERT_EQ(static_cast<double>(std::bit_cast<float>(word)), expected) << layouts << isa;
              }
              if (sums == "f16") {
                ASSERT_EQ(word >> (16 * (i % 2)) & 0xffff, to_f16(expected)) << layouts << isa;
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace gpusim
