// What the checks of races look at closely and what they pass over: the two must say the same.
#include <algorithm>

#include "gpusim/block_touches.h"
#include "gpusim_fixture.h"

namespace gpusim {
namespace {

const std::string kSource = std::string(DSV2_SOURCE_DIR) + "/tests/gpusim/races.cu";

class GpusimRaces : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (std::string(GPUSIM_PTX_DIR).empty()) GTEST_SKIP() << "no nvcc to compile tests/gpusim/races.cu";
    device_.settings.isa = GetParam();
  }
  Simulated device_{std::string(GPUSIM_PTX_DIR).empty() ? std::string(".version 8.0\n.target sm_80\n.address_size 64\n")
                                                        : read_text(std::string(GPUSIM_PTX_DIR) + "/races.ptx")};

  int line(const std::string& fault) const { return line_of_fault(kSource, fault); }
};
INSTANTIATE_TEST_SUITE_P(Isa, GpusimRaces, ::testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return isa.param; });

TEST_P(GpusimRaces, WriteThatComesLongAfterTheReads) {
  for (const int form : {0, 1, 2, 3}) {
    for (const int rounds : {1, 2, 7, 5000}) {  // few, and more than are kept apart from the cells
      const auto run = [&](int ordered) {
        return device_.run("late_write", {2}, {64}, device_.fresh<float>(128), rounds, form, ordered);
      };
      EXPECT_EQ(text_of(run(1).findings), "") << form << ", " << rounds;
      const LaunchResult result = run(0);
      ASSERT_FALSE(result.findings.empty()) << form << ", " << rounds;
      const Finding& found = result.findings[0];
      EXPECT_EQ(found.kind, FindingKind::shared_race) << text_of(result.findings);
      EXPECT_TRUE(found.place.line == line("late_write") || found.other.line == line("late_write"));
      EXPECT_EQ(found.times, 2u);  // once a block
      for (std::size_t i = 1; i < result.findings.size(); ++i) EXPECT_TRUE(result.findings[i].warning);
    }
  }
}

TEST_P(GpusimRaces, WhatIsLoggedAndWhatIsToldToCellsAgree) {
  // Counting takes the way without the log.
  for (unsigned seed = 1; seed <= 12; ++seed) {
    for (const int barrier_in : {1, 3, 50}) {
      std::string found[2];
      for (const bool counts : {false, true}) {
        device_.settings.counts = counts;
        const LaunchResult result =
            device_.run("random_accesses", {3}, {32 * (1 + seed % 8)}, seed, 120, barrier_in,
                        device_.put(std::vector<float>(128, 1.0f)), device_.fresh<unsigned>(768));
        found[counts ? 1 : 0] = text_of(result.findings);
      }
      ASSERT_EQ(found[0], found[1]) << seed << ", " << barrier_in;
    }
  }
}

TEST_P(GpusimRaces, BlocksSideBySideInALine) {
  constexpr unsigned kThreads = 5;
  constexpr unsigned kBlocks = 200;
  for (const int threads : {1, 2, 4}) {
    device_.settings.threads = threads;
    float* const data = device_.put(std::vector<float>(kThreads * kBlocks, 3.0f));
    EXPECT_EQ(text_of(device_.run("in_place", {kBlocks}, {kThreads}, data).findings), "") << threads;
    EXPECT_TRUE(std::all_of(data, data + kThreads * kBlocks, [](float value) { return value == 7.0f; })) << threads;
  }
}

TEST_P(GpusimRaces, ReportsDoNotDependOnCoresAndKernelsRunOnce) {
  constexpr unsigned kThreads = 33;
  constexpr unsigned kBlocks = 64;
  std::string first;
  for (const int threads : {1, 2, 3, 2, 1}) {
    device_.settings.threads = threads;
    float* const data = device_.put(std::vector<float>(kThreads * kBlocks, 3.0f));
    const LaunchResult result =
        device_.run("in_place_and_one_more", {kBlocks}, {kThreads}, data, device_.fresh<float>(2));
    ASSERT_EQ(result.findings.size(), 2u) << text_of(result.findings);
    EXPECT_EQ(result.findings[0].kind, FindingKind::uninitialised);
    EXPECT_EQ(result.findings[0].times, 1u);
    EXPECT_EQ(result.findings[1].kind, FindingKind::global_race);
    EXPECT_EQ(result.findings[1].place.line, line("in_place_and_one_more"));
    EXPECT_EQ(result.findings[1].block, (Dim3{7, 0, 0}));
    if (first.empty()) first = text_of(result.findings);
    EXPECT_EQ(text_of(result.findings), first) << threads;
    EXPECT_EQ(data[0], 100.0f);
    EXPECT_TRUE(std::all_of(data + 1, data + kThreads * kBlocks, [](float value) { return value == 4.0f; })) << threads;
  }
}

TEST_P(GpusimRaces, ReadersOfALineAndOneWriter) {
  const auto run = [&](int writer, int cell) {
    return device_.run("all_read", {20}, {32}, device_.put(std::vector<float>(16, 2.0f)), device_.fresh<float>(640),
                       writer, cell);
  };
  for (const int writer : {0, 9, 19}) {
    const LaunchResult result = run(writer, 3);
    ASSERT_FALSE(result.findings.empty()) << writer;
    for (const Finding& finding : result.findings) {
      EXPECT_EQ(finding.kind, FindingKind::global_race);
      EXPECT_TRUE(finding.place.line == line("all_read") || finding.other.line == line("all_read"));
    }
    EXPECT_EQ(text_of(run(writer, 12).findings), "") << writer;
  }
}

TEST(GpusimBlockTouches, CellsOfALineAreToldApartOnceTheyHaveTo) {
  BlockTouches touches;
  for (int launch = 0; launch < 3; ++launch) {  // what earlier launches left is of nobody
    ASSERT_TRUE(touches.start(10));
    EXPECT_FALSE(touches.touch(0, 64, 32, true));
    EXPECT_FALSE(touches.touch(1, 96, 32, true));  // the line's other half
    EXPECT_FALSE(touches.touch(0, 64, 32, false));
    EXPECT_TRUE(touches.touch(2, 92, 8, false));  // both
    EXPECT_FALSE(touches.touch(5, 256, 32, false));
    EXPECT_FALSE(touches.touch(5, 288, 16, true));
    EXPECT_FALSE(touches.touch(6, 304, 16, true));
    EXPECT_TRUE(touches.touch(6, 256, 4, true));  // block 5 read it before the line was told apart
    EXPECT_FALSE(touches.touch(3, 128, 128, false));
    EXPECT_FALSE(touches.touch(4, 128, 64, false));
    EXPECT_TRUE(touches.touch(3, 160, 4, true));  // block 4 has read it
  }
}

TEST(GpusimBlockTouches, HostThreadsMeet) {
  BlockTouches a;
  BlockTouches b;
  ASSERT_TRUE(b.start(100));  // their numbers need not agree
  const auto met = [&](bool a_writes, bool b_writes, std::uint64_t b_at) {
    EXPECT_TRUE(a.start(10) && b.start(10));
    EXPECT_FALSE(a.touch(0, 4096, 128, a_writes));
    EXPECT_FALSE(b.touch(1, b_at, 4, b_writes));
    return BlockTouches::meet(a, b);
  };
  EXPECT_TRUE(met(true, true, 4096));
  EXPECT_TRUE(met(true, false, 4096 + 124));
  EXPECT_TRUE(met(false, true, 4096 + 64));
  EXPECT_FALSE(met(false, false, 4096));
  EXPECT_FALSE(met(true, true, 4096 + 128));
  EXPECT_FALSE(met(true, true, 8192));
}

TEST(GpusimMemory, LinesKnowWhatTheirBytesHaveInCommon) {
  DeviceMemory memory(1 << 20, true);
  const std::uint64_t address = memory.allocate(200, "a");
  const auto line = [&](std::size_t offset) { return static_cast<Byte>(*memory.line(address + offset)); };
  EXPECT_EQ(line(0), Byte::uninitialised);
  EXPECT_EQ(line(192), Byte::unallocated);  // 8 bytes of it are allocated
  memory.mark(address + 10, 100, Byte::initialised);
  EXPECT_EQ(line(0), Byte::uninitialised);
  EXPECT_EQ(line(64), Byte::uninitialised);
  memory.mark(address, 128, Byte::initialised);
  EXPECT_EQ(line(0), Byte::initialised);
  EXPECT_EQ(line(64), Byte::initialised);
  memory.copy_marks(address + 32, address + 136, 32);
  EXPECT_EQ(line(0), Byte::uninitialised);
  memory.release(address);
  EXPECT_EQ(line(64), Byte::freed);
  EXPECT_EQ(static_cast<int>(line(192)) & static_cast<int>(Byte::uninitialised), 0);
}

}  // namespace
}  // namespace gpusim
