// Whole kernels against plain C++, and counts against what can be calculated by hand. Every instruction set gives the
// same bits and the same counts, with one host thread or several.
#include <bit>
#include <cmath>

#include "gpusim_fixture.h"

namespace gpusim {
namespace {

std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

/// Numbers in [-0.5, 0.5), the same in every run.
std::vector<float> random_numbers(std::size_t count, std::uint32_t seed) {
  std::vector<float> result(count);
  for (float& value : result) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / 16777216.0f - 0.5f;
  }
  return result;
}

class GpusimPrograms : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (std::string(GPUSIM_PTX_DIR).empty()) GTEST_SKIP() << "no nvcc to compile tests/gpusim/programs.cu";
    device_.settings.isa = GetParam();
    device_.settings.counts = true;
  }
  void expect_clean(const LaunchResult& result) {
    EXPECT_EQ(text_of(result.findings), "");
    EXPECT_EQ(result.status, LaunchStatus::ok);
  }
  std::uint64_t of_class(const Counts& counts, InstructionClass kind) {
    return counts.by_class[static_cast<std::size_t>(kind)];
  }
  std::uint64_t flops(const Counts& counts, FlopType type) { return counts.flops[static_cast<std::size_t>(type)]; }

  Simulated device_{std::string(GPUSIM_PTX_DIR).empty() ? std::string(".version 8.0\n.target sm_80\n.address_size 64\n")
                                                        : read_text(std::string(GPUSIM_PTX_DIR) + "/programs.ptx")};
};

TEST_P(GpusimPrograms, GemmPlainCounts) {
  constexpr int kN = 64;
  const std::vector<float> a = random_numbers(kN * kN, 1);
  const std::vector<float> b = random_numbers(kN * kN, 2);
  float* const c = device_.fresh<float>(kN * kN);
  const LaunchResult result = device_.run("gemm_plain", {2, 8}, {32, 8}, device_.put(a), device_.put(b), c, kN);
  expect_clean(result);
  for (int row = 0; row < kN; ++row) {
    for (int column = 0; column < kN; ++column) {
      float sum = 0;
      for (int k = 0; k < kN; ++k) sum = std::fmaf(a[row * kN + k], b[k * kN + column], sum);
      ASSERT_EQ(c[row * kN + column], sum) << row << ", " << column;
    }
  }
  const Counts& counts = result.counts;
  EXPECT_EQ(flops(counts, FlopType::f32), 524288u);  // 2 * 64^3
  // 128 warps x 64 steps: one element of A for all lanes (a sector), 32 of B side by side (4 sectors).
  EXPECT_EQ(counts.global_load_requests, 2u * 128 * 64);
  EXPECT_EQ(counts.global_load_sectors, 5u * 128 * 64);
  EXPECT_EQ(counts.global_load_bytes, 2u * 128 * 64 * 128);
  EXPECT_EQ(counts.global_store_requests, 128u);
  EXPECT_EQ(counts.global_store_sectors, 4u * 128);
  EXPECT_EQ(counts.global_ideal_sectors, 5u * 128 * 64 + 4 * 128);
  EXPECT_EQ(counts.distinct_load_sectors, 2u * kN * kN * 4 / 32);
  EXPECT_EQ(counts.distinct_store_sectors, kN * kN * 4u / 32);
  EXPECT_EQ(counts.divergent_branches, 0u);
  EXPECT_EQ(counts.thread_instructions, 32 * counts.warp_instructions);
}

TEST_P(GpusimPrograms, GemmTiledCounts) {
  constexpr int kN = 64;
  const std::vector<float> a = random_numbers(kN * kN, 3);
  const std::vector<float> b = random_numbers(kN * kN, 4);
  float* const c = device_.fresh<float>(kN * kN);
  const LaunchResult result = device_.run("gemm_tiled", {4, 4}, {16, 16}, device_.put(a), device_.put(b), c, kN);
  expect_clean(result);
  for (int i = 0; i < kN * kN; ++i) {
    float sum = 0;
    for (int k = 0; k < kN; ++k) sum = std::fmaf(a[i / kN * kN + k], b[k * kN + i % kN], sum);
    ASSERT_EQ(c[i], sum) << i;
  }
  EXPECT_EQ(flops(result.counts, FlopType::f32), 524288u);
  EXPECT_EQ(result.counts.barriers, 16u * 4 * 2);  // blocks x tiles x barriers
  // Blocks x warps x tiles: two stores, and of A vectors (4 loads of 16 bytes) or scalars, of B 16 loads.
  EXPECT_EQ(of_class(result.counts, InstructionClass::shared_store), 16u * 8 * 4 * 2);
  EXPECT_EQ(result.counts.distinct_load_sectors, 2u * kN * kN * 4 / 32);
}

TEST_P(GpusimPrograms, SectorsOfStridedAccess) {
  for (const int stride : {1, 2, 8, 32}) {
    const std::vector<float> in = random_numbers(64 * 32, 5);
    float* const out = device_.fresh<float>(64);
    const LaunchResult result = device_.run("copy_strided", {2}, {32}, device_.put(in), out, stride);
    expect_clean(result);
    for (std::size_t i = 0; i < 64; ++i) ASSERT_EQ(out[i], in[i * static_cast<std::size_t>(stride)]);
    EXPECT_EQ(result.counts.global_load_requests, 2u);
    EXPECT_EQ(result.counts.global_load_sectors, 2u * static_cast<unsigned>(std::min(32, 4 * stride))) << stride;
    EXPECT_EQ(result.counts.global_ideal_sectors, 2u * 4 + 2 * 4);
  }
}

TEST_P(GpusimPrograms, VectorsOfSixteenBytes) {
  const std::vector<float> in = random_numbers(4 * 64, 6);
  float* const out = device_.fresh<float>(4 * 64);
  const LaunchResult result = device_.run("copy_vectors", {2}, {32}, device_.put(in), out);
  expect_clean(result);
  EXPECT_EQ(std::memcmp(out, in.data(), in.size() * sizeof(float)), 0);
  EXPECT_EQ(result.counts.global_load_requests, 2u);
  EXPECT_EQ(result.counts.global_load_sectors, 2u * 16);
  EXPECT_EQ(result.counts.global_load_bytes, 2u * 512);
}

TEST_P(GpusimPrograms, BankConflictsOfATranspose) {
  const std::vector<float> in = random_numbers(1024, 7);
  float* const out = device_.fresh<float>(1024);
  const LaunchResult result = device_.run("transpose", {1}, {32, 32}, device_.put(in), out);
  expect_clean(result);
  for (int i = 0; i < 1024; ++i) ASSERT_EQ(out[i], in[static_cast<std::size_t>(i % 32 * 32 + i / 32)]);
  EXPECT_EQ(result.counts.shared_requests, 64u);
  EXPECT_EQ(result.counts.shared_wavefronts, 32u + 32 * 32);  // stores in a row, loads down a column: one bank
  EXPECT_EQ(result.counts.shared_ideal_wavefronts, 64u);
}

/// The kernel's text, but for the lanes that are active where paths have joined again.
int divergence_value(int i, int n) {
  int value = i;
  if (i % 2 == 0) {
    for (int j = 0; j < i; ++j) {
      if (j == 7) continue;
      if (j == 13) break;
      value += j * (i % 3 == 0 ? 2 : 1);
    }
    return value;
  }
  if (i % 3 == 0) {
    int steps = 0;
    for (unsigned x = static_cast<unsigned>(i); x != 1; ++steps) x = x % 2 == 0 ? x / 2 : 3 * x + 1;
    return steps;
  }
  if (i > n) return -1;
  const int choices[] = {100, value + 200, value * 3, value ^ 0x55, ~value};
  return choices[i % 5];
}

TEST_P(GpusimPrograms, DivergentPathsJoinAgain) {
  constexpr int kLimit = 40;
  int* const out = device_.fresh<int>(64);
  const LaunchResult result = device_.run("divergence", {1}, {64}, out, kLimit);
  expect_clean(result);
  for (int i = 0; i < 64; ++i) {
    int active = 0;  // lanes of the warp that have not returned early
    for (int lane = i / 32 * 32; lane < i / 32 * 32 + 32; ++lane)
      active += !(lane % 2 != 0 && lane % 3 != 0 && lane > kLimit);
    const bool returned = i % 2 != 0 && i % 3 != 0 && i > kLimit;
    ASSERT_EQ(out[i], returned ? -1 : divergence_value(i, kLimit) + active) << i;
  }
  EXPECT_GT(result.counts.divergent_branches, 0u);
}

TEST_P(GpusimPrograms, LanesOfOneWarpTakeALockInTurn) {
  int* const lock = device_.put(std::vector<int>{0});
  int* const counter = device_.put(std::vector<int>{0});
  expect_clean(device_.run("spin_lock", {3}, {64}, lock, counter));
  EXPECT_EQ(*counter, 3 * 64);
}

TEST_P(GpusimPrograms, CallsThroughPointersAndModuleVariables) {
  const std::vector<float> in = random_numbers(32, 8);
  float* const out = device_.fresh<float>(32);
  for (const int which : {0, 1}) {
    expect_clean(device_.run("calls", {1}, {32}, device_.put(in), out, which));
    const float table[] = {3, 1, 4, 1};
    for (int i = 0; i < 32; ++i) {
      const float called =
          (which ^ (i & 1)) == 0 ? in[static_cast<std::size_t>(i)] * 3.0f : in[static_cast<std::size_t>(i)] + 3.0f;
      ASSERT_EQ(out[i], called + (i % 2 == 0 ? 0.5f : 0.25f) * table[i % 4]) << i;
    }
  }
}

TEST_P(GpusimPrograms, Printf) {
  ::testing::internal::CaptureStdout();
  expect_clean(device_.run("prints", {1}, {32}, 2));
  std::fflush(stdout);
  EXPECT_EQ(::testing::internal::GetCapturedStdout(),
            "thread 0 of block: 0.00 1099511627776 %\nthread 1 of block: 0.50 1099511627776 %\n");
}

TEST_P(GpusimPrograms, ArraysInLocalMemory) {
  constexpr int kN = 5;
  int* const out = device_.fresh<int>(64);
  expect_clean(device_.run("local_array", {1}, {64}, out, kN));
  for (int t = 0; t < 64; ++t) {
    int values[16] = {};
    for (int i = 0; i < 16; ++i) values[i * kN % 16] = i * t;
    int sum = 0;
    for (int i = 0; i < kN; ++i) sum += values[(i + t) % 16];
    ASSERT_EQ(out[t], sum) << t;
  }
}

TEST_P(GpusimPrograms, WarpFunctions) {
  std::vector<int> in(32);
  for (int i = 0; i < 32; ++i) in[static_cast<std::size_t>(i)] = (i * 37 + 11) % 101;
  int* const out = device_.fresh<int>(32 * 12);
  expect_clean(device_.run("warp_functions", {1}, {32}, device_.put(in), out));
  int sum = 0, most = -1000, odd = 0;
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) {
    const int v = in[static_cast<std::size_t>(i)];
    sum += v;
    most = std::max(most, v - 50);
    odd += v & 1;
    ballot |= static_cast<unsigned>(v & 1) << i;
  }
  for (int l = 0; l < 32; ++l) {
    const auto at = [&](int lane) { return in[static_cast<std::size_t>(lane)]; };
    unsigned same = 0;
    for (int i = 0; i < 32; ++i) same |= static_cast<unsigned>((at(i) & 7) == (at(l) & 7)) << i;
    const int expected[] = {at(l * 5 % 32),
                            l >= 3 ? at(l - 3) : at(l),
                            l % 8 + 3 < 8 ? at(l + 3) : at(l),
                            at(l ^ 21),
                            static_cast<int>(ballot),
                            0,
                            1,
                            static_cast<int>(same),
                            sum,
                            most,
                            odd,
                            1};
    for (int i = 0; i < 12; ++i) ASSERT_EQ(out[l * 12 + i], expected[i]) << "lane " << l << " value " << i;
  }
}

TEST_P(GpusimPrograms, FloatAtomicsAddInTheOrderOfTheBlocks) {
  const auto run = [&](int threads) {
    device_.settings.threads = threads;
    float* const sum = device_.put(std::vector<float>{0});
    expect_clean(device_.run("float_atomics", {10}, {64}, sum, 600));
    return *sum;
  };
  float expected = 0;
  for (int i = 0; i < 600; ++i) expected += 1.0f / static_cast<float>(i + 1);
  EXPECT_EQ(run(1), expected);
  EXPECT_EQ(run(4), expected);
}

TEST_P(GpusimPrograms, MmaGemm) {
  constexpr int kM = 32, kN = 16, kK = 64;
  const std::vector<float> a = random_numbers(kM * kK, 9);
  const std::vector<float> b = random_numbers(kN * kK, 10);
  std::vector<std::uint16_t> a16, b16;
  for (const float value : a) a16.push_back(to_bf16(value));
  for (const float value : b) b16.push_back(to_bf16(value));
  float* const c = device_.fresh<float>(kM * kN);
  const LaunchResult result =
      device_.run("gemm_mma", {kN / 8, kM / 16}, {32}, device_.put(a16), device_.put(b16), c, kN, kK);
  expect_clean(result);
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kN; ++n) {
      float sum = 0;
      for (int k = 0; k < kK; ++k)
        sum = std::fmaf(from_bf16(a16[static_cast<std::size_t>(m * kK + k)]),
                        from_bf16(b16[static_cast<std::size_t>(n * kK + k)]), sum);
      ASSERT_EQ(c[m * kN + n], sum) << m << ", " << n;
    }
  }
  EXPECT_EQ(flops(result.counts, FlopType::tensor_bf16), 2u * kM * kN * kK);
  EXPECT_EQ(of_class(result.counts, InstructionClass::tensor), 4u * 4);  // tiles x steps of 16
}

/// D = A B + C of one wmma fragment, element types by their conversions.
template <class Memory, class Sum, class Make, class Value>
void check_wmma(Simulated& device, const std::string& kernel, int m, int n, int k, Make make, Value value) {
  std::vector<Memory> a, b;
  std::vector<Sum> c;
  for (int i = 0; i < m * k; ++i) a.push_back(make(i * 7 % 31 - 15));
  for (int i = 0; i < n * k; ++i) b.push_back(make(i * 5 % 29 - 14));
  for (int i = 0; i < m * n; ++i) c.push_back(static_cast<Sum>(i % 11));
  Sum* const d = device.fresh<Sum>(c.size());
  const LaunchResult result = device.run(kernel, {1}, {32}, device.put(a), device.put(b), device.put(c), d);
  EXPECT_EQ(text_of(result.findings), "");
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      Sum sum = c[static_cast<std::size_t>(i * n + j)];
      for (int l = 0; l < k; ++l)
        sum += static_cast<Sum>(value(a[static_cast<std::size_t>(i * k + l)])) *
               static_cast<Sum>(value(b[static_cast<std::size_t>(j * k + l)]));
      ASSERT_EQ(d[i * n + j], sum) << kernel << ": " << i << ", " << j;
    }
  }
  std::uint64_t tensor = 0;
  for (const FlopType type :
       {FlopType::tensor_bf16, FlopType::tensor_f16, FlopType::tensor_tf32, FlopType::tensor_int8}) {
    tensor += result.counts.flops[static_cast<std::size_t>(type)];
  }
  EXPECT_EQ(tensor, 2u * static_cast<unsigned>(m * n * k)) << kernel;
}

TEST_P(GpusimPrograms, WmmaFragments) {
  // Small whole numbers: exact in every format, so the order of the sum does not show.
  const auto make_bf16 = [](int v) { return to_bf16(static_cast<float>(v)); };
  check_wmma<std::uint16_t, float>(device_, "wmma_bf16_16_16", 16, 16, 16, make_bf16, from_bf16);
  check_wmma<std::uint16_t, float>(device_, "wmma_bf16_32_8", 32, 8, 16, make_bf16, from_bf16);
  check_wmma<std::uint16_t, float>(device_, "wmma_bf16_8_32", 8, 32, 16, make_bf16, from_bf16);
  // f16 of -15..15: sign, exponent, the bits below the leading one.
  const auto make_f16 = [](int v) {
    if (v == 0) return std::uint16_t{0};
    const int exponent = 31 - std::countl_zero(static_cast<unsigned>(std::abs(v)));
    const int fraction = (std::abs(v) << (10 - exponent)) & 0x3ff;
    return static_cast<std::uint16_t>((v < 0 ? 0x8000 : 0) | (exponent + 15) << 10 | fraction);
  };
  const auto value_f16 = [](std::uint16_t bits) {
    if ((bits & 0x7fff) == 0) return 0.0f;
    const float magnitude = std::ldexp(static_cast<float>((bits & 0x3ff) | 0x400), (bits >> 10 & 31) - 25);
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
  };
  check_wmma<std::uint16_t, float>(device_, "wmma_f16_16_16", 16, 16, 16, make_f16, value_f16);
  const auto same = [](auto v) { return v; };
  check_wmma<std::int8_t, int>(
      device_, "wmma_s8_16_16", 16, 16, 16, [](int v) { return static_cast<std::int8_t>(8 * v); }, same);
  check_wmma<std::uint8_t, int>(
      device_, "wmma_u8_32_8", 32, 8, 16, [](int v) { return static_cast<std::uint8_t>(v + 200); }, same);
  check_wmma<float, float>(
      device_, "wmma_tf32", 16, 16, 8, [](int v) { return static_cast<float>(v); }, same);
}

TEST_P(GpusimPrograms, TwoRunsGiveTheSameCountsWhateverTheThreads) {
  constexpr int kN = 64;
  float* const a = device_.put(random_numbers(kN * kN, 11));
  float* const c = device_.fresh<float>(kN * kN);
  device_.settings.checks = {};
  device_.settings.threads = 1;
  const LaunchResult one = device_.run("gemm_tiled", {4, 4}, {16, 16}, a, a, c, kN);
  device_.settings.threads = 3;
  const LaunchResult three = device_.run("gemm_tiled", {4, 4}, {16, 16}, a, a, c, kN);
  EXPECT_EQ(one.counts, three.counts);
  ASSERT_EQ(one.lines.size(), three.lines.size());
  Counts sum;
  for (std::size_t i = 0; i < one.lines.size(); ++i) {
    EXPECT_EQ(one.lines[i].counts, three.lines[i].counts);
    EXPECT_TRUE(one.lines[i].place.file.ends_with("programs.cu"));
    sum += one.lines[i].counts;
  }
  // Lines add up to the launch, but for what belongs to the launch alone.
  sum.barriers = one.counts.barriers;
  sum.distinct_load_sectors = one.counts.distinct_load_sectors;
  sum.distinct_store_sectors = one.counts.distinct_store_sectors;
  EXPECT_EQ(sum, one.counts);
}

INSTANTIATE_TEST_SUITE_P(Isa, GpusimPrograms, ::testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace gpusim
