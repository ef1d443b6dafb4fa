// Every check against a planted fault, the right kernel and line; and no alarm on correct kernels.
#include <algorithm>

#include "gpusim_fixture.h"
#include "model/error.h"

namespace gpusim {
namespace {

const std::string kSource = std::string(DSV2_SOURCE_DIR) + "/tests/gpusim/planted.cu";

class GpusimChecks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::string(GPUSIM_PTX_DIR).empty()) GTEST_SKIP() << "no nvcc to compile tests/gpusim/planted.cu";
  }
  Simulated device_{std::string(GPUSIM_PTX_DIR).empty() ? std::string(".version 8.0\n.target sm_80\n.address_size 64\n")
                                                        : read_text(std::string(GPUSIM_PTX_DIR) + "/planted.ptx")};

  std::vector<float> numbers(std::size_t count) const {
    std::vector<float> result(count);
    for (std::size_t i = 0; i < count; ++i) result[i] = static_cast<float>(i);
    return result;
  }

  /// One finding of this kind, at the marked line of the kernel; nothing else that fails a run.
  const Finding& expect_fault(const LaunchResult& result, FindingKind kind, const std::string& kernel) {
    static const Finding kNone;
    const auto found = std::find_if(result.findings.begin(), result.findings.end(),
                                    [&](const Finding& finding) { return finding.kind == kind; });
    if (found == result.findings.end()) {
      ADD_FAILURE() << "no " << name_of(kind) << ": " << text_of(result.findings);
      return kNone;
    }
    EXPECT_EQ(found->kernel, kernel);
    EXPECT_TRUE(found->place.file.ends_with("planted.cu")) << found->place.file;
    const bool race = kind == FindingKind::shared_race || kind == FindingKind::global_race;
    const int line = line_of_fault(kSource, kernel);
    // Of a race, either access may come second; a warp that is ahead also reads what is not written yet.
    EXPECT_TRUE(found->place.line == line || (race && found->other.line == line)) << to_string(*found);
    for (const Finding& other : result.findings) {
      const bool consequence = race && other.kind == FindingKind::uninitialised && other.place.line == line;
      EXPECT_TRUE(other.kind == kind || other.warning || consequence) << to_string(other);
    }
    return *found;
  }
  void expect_clean(const LaunchResult& result) {
    EXPECT_EQ(text_of(result.findings), "");
    EXPECT_EQ(result.status, LaunchStatus::ok);
  }
};

TEST_F(GpusimChecks, ReadPastTheEnd) {
  const LaunchResult result =
      device_.run("read_past_end", {1}, {64}, device_.put(numbers(64)), device_.fresh<float>(64));
  const Finding& finding = expect_fault(result, FindingKind::out_of_bounds, "read_past_end");
  EXPECT_EQ(finding.thread, (Dim3{63, 0, 0}));
  EXPECT_EQ(finding.times, 1u);
  EXPECT_EQ(result.status, LaunchStatus::illegal_address);
  EXPECT_NE(finding.message.find("0 bytes after the 256 bytes of cudaMalloc"), std::string::npos) << finding.message;
}

TEST_F(GpusimChecks, WritePastTheEnd) {
  const LaunchResult result = device_.run("write_past_end", {3}, {32}, device_.fresh<float>(70), 70);
  const Finding& finding = expect_fault(result, FindingKind::out_of_bounds, "write_past_end");
  EXPECT_EQ(finding.block, (Dim3{2, 0, 0}));
  EXPECT_EQ(finding.thread, (Dim3{6, 0, 0}));
  expect_clean(device_.run("write_within", {3}, {32}, device_.fresh<float>(70), 70));
}

TEST_F(GpusimChecks, UseAfterFree) {
  float* const data = device_.put(numbers(96));
  ASSERT_TRUE(device_.memory().release(reinterpret_cast<std::uint64_t>(data)));
  const LaunchResult result = device_.run("write_within", {3}, {32}, data, 70);
  ASSERT_EQ(result.findings.size(), 1u) << text_of(result.findings);
  EXPECT_EQ(result.findings[0].kind, FindingKind::use_after_free);
}

TEST_F(GpusimChecks, SharedPastTheEnd) {
  expect_fault(device_.run("shared_past_end", {1}, {1}, device_.fresh<float>(32), 32), FindingKind::out_of_bounds,
               "shared_past_end");
  expect_clean(device_.run("shared_past_end", {1}, {1}, device_.fresh<float>(32), 31));
}

TEST_F(GpusimChecks, Misaligned) {
  const LaunchResult result = device_.run("misaligned", {1}, {8}, device_.put(numbers(64)), device_.fresh<float>(32));
  expect_fault(result, FindingKind::misaligned, "misaligned");
  EXPECT_EQ(result.status, LaunchStatus::misaligned_address);
}

TEST_F(GpusimChecks, UninitialisedGlobal) {
  float* const in = device_.fresh<float>(64);
  device_.memory().mark(reinterpret_cast<std::uint64_t>(in), 40 * sizeof(float), Byte::initialised);
  const Finding finding = expect_fault(device_.run("uninitialised_global", {1}, {64}, in, device_.fresh<float>(64)),
                                       FindingKind::uninitialised, "uninitialised_global");
  EXPECT_EQ(finding.thread.x, 40u);
  EXPECT_EQ(finding.times, 24u);
  expect_clean(device_.run("uninitialised_global", {1}, {40}, in, device_.fresh<float>(64)));
}

TEST_F(GpusimChecks, RacesOfNarrowAccesses) {
  expect_fault(device_.run("narrow_missing_barrier", {1}, {64}, device_.fresh<float>(64)), FindingKind::shared_race,
               "narrow_missing_barrier");
  expect_clean(device_.run("narrow_neighbours", {1}, {64}, device_.fresh<float>(64)));
}

TEST_F(GpusimChecks, ProducersAndConsumersMeetInDifferentPlaces) {
  float* const out = device_.fresh<float>(32);
  expect_clean(device_.run("producer_consumer", {1}, {64}, device_.put(numbers(160)), out, 5));
  for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(out[lane], static_cast<float>(5 * (31 - lane) + 320)) << lane;
}

TEST_F(GpusimChecks, UninitialisedTailOfSharedMemory) {
  const Finding finding = expect_fault(device_.run("uninitialised_tail", {1}, {64}, device_.fresh<float>(64)),
                                       FindingKind::uninitialised, "uninitialised_tail");
  EXPECT_EQ(finding.thread.x, 5u);
}

TEST_F(GpusimChecks, WildPointerEndsTheLaunchWithoutChecksToo) {
  const LaunchResult with = device_.run("wild_pointer", {1}, {1}, device_.fresh<float>(1));
  expect_fault(with, FindingKind::out_of_bounds, "wild_pointer");
  device_.settings.checks = {};
  const LaunchResult without = device_.run("wild_pointer", {1}, {1}, device_.fresh<float>(1));
  EXPECT_EQ(without.status, LaunchStatus::illegal_address);
}

TEST_F(GpusimChecks, MissingBarrier) {
  const Finding finding = expect_fault(device_.run("missing_barrier", {1}, {64}, device_.fresh<float>(64)),
                                       FindingKind::shared_race, "missing_barrier");
  EXPECT_EQ(std::abs(finding.other.line - finding.place.line), 1);
  expect_clean(device_.run("with_barrier", {1}, {64}, device_.fresh<float>(64)));
}

TEST_F(GpusimChecks, MissingSecondBarrier) {
  float* const in = device_.put(numbers(256));
  expect_fault(device_.run("missing_second_barrier", {1}, {64}, in, device_.fresh<float>(64), 4),
               FindingKind::shared_race, "missing_second_barrier");
  expect_clean(device_.run("missing_second_barrier", {1}, {64}, in, device_.fresh<float>(64), 1));
}

TEST_F(GpusimChecks, RaceWithinAWarpIsAWarning) {
  const Finding finding = expect_fault(device_.run("within_warp", {1}, {32}, device_.fresh<float>(32)),
                                       FindingKind::shared_race_in_warp, "within_warp");
  EXPECT_TRUE(finding.warning);
  expect_clean(device_.run("within_warp_synced", {1}, {32}, device_.fresh<float>(32)));
}

TEST_F(GpusimChecks, NamedBarriersOrderOnlyThoseWhoMeet) {
  expect_clean(device_.run("named_barrier", {1}, {128}, device_.fresh<float>(64), 0));
  expect_fault(device_.run("named_barrier", {1}, {128}, device_.fresh<float>(64), 1), FindingKind::shared_race,
               "named_barrier");
}

TEST_F(GpusimChecks, BlocksThatWriteTheSamePlace) {
  expect_fault(device_.run("blocks_collide", {4}, {32}, device_.fresh<float>(32)), FindingKind::global_race,
               "blocks_collide");
  expect_clean(device_.run("blocks_collide", {1}, {32}, device_.fresh<float>(32)));
}

TEST_F(GpusimChecks, BlockThatReadsWhatAnotherWrites) {
  expect_fault(device_.run("block_reads_neighbour", {4}, {32}, device_.put(numbers(128)), device_.fresh<float>(128)),
               FindingKind::global_race, "block_reads_neighbour");
}

TEST_F(GpusimChecks, AtomicsOrderBlocks) {
  float* const out = device_.fresh<float>(1);
  expect_clean(
      device_.run("last_block_sums", {9}, {32}, device_.fresh<float>(9), device_.put(std::vector<unsigned>{0}), out));
  EXPECT_EQ(*out, 45.0f);
  expect_clean(device_.run("histogram", {8}, {32}, device_.put(std::vector<unsigned>(256, 5)),
                           device_.put(std::vector<unsigned>(16, 0)), 250));
}

TEST_F(GpusimChecks, GridSynchronisationOrdersBlocks) {
  device_.cooperative = true;
  float* const out = device_.fresh<float>(160);
  expect_clean(device_.run("grid_sync", {5}, {32}, device_.fresh<float>(160), out));
  for (int i = 0; i < 160; ++i) ASSERT_EQ(out[i], static_cast<float>((i + 40) % 160));
}

TEST_F(GpusimChecks, LanesWaitAtABarrierForThoseOnALongerPath) {
  float* const out = device_.put(numbers(8));
  expect_clean(device_.run("straggler_before_barrier", {1}, {64}, out, 3));
  EXPECT_EQ(out[0], 3.0f);
}

TEST_F(GpusimChecks, DivergentBarrier) {
  expect_fault(device_.run("divergent_barrier", {1}, {32}, device_.fresh<float>(32)), FindingKind::divergent_barrier,
               "divergent_barrier");
}

TEST_F(GpusimChecks, BarrierAfterExit) {
  expect_fault(device_.run("barrier_after_exit", {1}, {64}, device_.fresh<float>(64), 40),
               FindingKind::divergent_barrier, "barrier_after_exit");
  expect_clean(device_.run("barrier_after_exit", {1}, {64}, device_.fresh<float>(64), 64));
}

TEST_F(GpusimChecks, ShuffleWithLanesThatDoNotTakePart) {
  expect_fault(device_.run("bad_shuffle", {1}, {32}, device_.fresh<float>(32)), FindingKind::bad_shuffle,
               "bad_shuffle");
  expect_clean(device_.run("half_warp_shuffle", {1}, {32}, device_.fresh<float>(32)));
}

TEST_F(GpusimChecks, Deadlock) {
  const LaunchResult result = device_.run("barrier_never_met", {1}, {64}, device_.fresh<float>(64));
  EXPECT_EQ(result.status, LaunchStatus::time_out);
  expect_fault(result, FindingKind::deadlock, "barrier_never_met");
}

TEST_F(GpusimChecks, EndlessLoopUnderABudget) {
  device_.settings.instruction_budget = 1'000'000;
  const LaunchResult result =
      device_.run("endless", {1}, {32}, device_.put(std::vector<int>{0}), device_.fresh<float>(1));
  EXPECT_EQ(result.status, LaunchStatus::time_out);
  expect_fault(result, FindingKind::instruction_budget, "endless");
  expect_clean(device_.run("endless", {1}, {32}, device_.put(std::vector<int>{1}), device_.fresh<float>(1)));
}

TEST_F(GpusimChecks, ManyShortBlocksUnderABudget) {
  device_.settings.instruction_budget = 300;
  const LaunchResult result = device_.run("write_within", {1000}, {32}, device_.fresh<float>(32000), 32000);
  EXPECT_EQ(result.status, LaunchStatus::time_out);
  ASSERT_EQ(result.findings.size(), 1u) << text_of(result.findings);
  EXPECT_EQ(result.findings[0].kind, FindingKind::instruction_budget);
}

TEST_F(GpusimChecks, CopyThatIsNotWaitedFor) {
  float* const in = device_.put(numbers(256));
  expect_fault(device_.run("missing_wait", {1}, {32}, in, device_.fresh<float>(128)),
               FindingKind::async_copy_not_waited, "missing_wait");
  float* const out = device_.fresh<float>(256);
  expect_clean(device_.run("with_wait", {1}, {32}, in, out));
  for (int i = 0; i < 256; ++i) ASSERT_EQ(out[i], static_cast<float>(i));
}

TEST_F(GpusimChecks, Trap) {
  const LaunchResult result = device_.run("traps", {1}, {1}, device_.fresh<float>(1), 4);
  EXPECT_EQ(result.status, LaunchStatus::trap);
  expect_fault(result, FindingKind::trap, "traps");
  expect_clean(device_.run("traps", {1}, {1}, device_.fresh<float>(1), 3));
}

TEST_F(GpusimChecks, EachCheckAloneSeesItsOwnFault) {
  const auto kinds = [&](const std::string& kernel, Checks checks) {
    device_.settings.checks = checks;
    const LaunchResult result = device_.run(kernel, {1}, {64}, device_.fresh<float>(64));
    std::vector<FindingKind> found;  // each kind once, warnings apart
    for (const Finding& finding : result.findings) {
      if (!finding.warning && std::find(found.begin(), found.end(), finding.kind) == found.end())
        found.push_back(finding.kind);
    }
    return found;
  };
  using Kinds = std::vector<FindingKind>;
  EXPECT_EQ(kinds("missing_barrier", {.shared_races = true}), Kinds{FindingKind::shared_race});
  EXPECT_EQ(kinds("missing_barrier", {.memory = true}), Kinds{});
  EXPECT_EQ(kinds("uninitialised_tail", {.initialised = true}), Kinds{FindingKind::uninitialised});
  EXPECT_EQ(kinds("uninitialised_tail", {.shared_races = true}), Kinds{});
  EXPECT_EQ(kinds("bad_shuffle", {.barriers = true}), Kinds{FindingKind::bad_shuffle});
  EXPECT_EQ(kinds("bad_shuffle", {.memory = true}), Kinds{});
}

}  // namespace
}  // namespace gpusim
