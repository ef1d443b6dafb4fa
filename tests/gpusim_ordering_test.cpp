// Races between blocks that a fence, a release or nothing at all orders, and of accesses narrower than a word.
#include "gpusim_fixture.h"

namespace gpusim {
namespace {

const std::string kSource = DSV2_SOURCE_DIR "/tests/gpusim/ordering.cu";

class GpusimOrdering : public testing::Test {
 protected:
  void SetUp() override {
    if (std::string(GPUSIM_PTX_DIR).empty()) GTEST_SKIP() << "no nvcc";
    device_ = std::make_unique<Simulated>(read_text(std::string(GPUSIM_PTX_DIR) + "/ordering.ptx"));
  }

  static void expect_clean(const LaunchResult& result) {
    EXPECT_EQ(text_of(result.findings), "");
    EXPECT_EQ(result.status, LaunchStatus::ok);
  }
  static void expect_race(const LaunchResult& result, const std::string& fault) {
    const int line = line_of_fault(kSource, fault);
    for (const Finding& finding : result.findings) {
      EXPECT_EQ(finding.kind, FindingKind::global_race) << to_string(finding);
      if (finding.place.line == line) return;
    }
    ADD_FAILURE() << fault << ": no race at line " << line << ":\n" << text_of(result.findings);
  }

  LaunchResult last_block(const std::string& kernel) {
    return device_->run(kernel, {4}, {32}, device_->fresh<float>(128), device_->put(std::vector<unsigned>(1, 0)),
                        device_->fresh<float>(32));
  }
  LaunchResult hand_over(const std::string& kernel) {
    device_->cooperative = true;  // the blocks wait for each other
    return device_->run(kernel, {3}, {32}, device_->fresh<int>(32), device_->put(std::vector<int>(1, 0)),
                        device_->put(std::vector<int>(32, 0)));
  }

  std::unique_ptr<Simulated> device_;
};

TEST_F(GpusimOrdering, TheLastBlockNeedsAFence) {
  auto* const partial = device_->fresh<float>(128);
  auto* const out = device_->fresh<float>(32);
  expect_clean(device_->run("last_block", {4}, {32}, partial, device_->put(std::vector<unsigned>(1, 0)), out));
  for (int i = 0; i < 32; ++i) EXPECT_EQ(out[i], 4.0f * static_cast<float>(i));
  expect_race(last_block("last_block_without_fence"), "last_block_without_fence");
  expect_race(last_block("last_block_with_block_fence"), "last_block_with_block_fence");
}

TEST_F(GpusimOrdering, AVolatileFlagNeedsAFence) {
  // Two blocks: several readers would write the same results.
  device_->cooperative = true;
  auto* const out = device_->fresh<int>(32);
  expect_clean(device_->run("flag", {2}, {32}, device_->fresh<int>(32), device_->put(std::vector<int>(1, 0)), out));
  for (int i = 0; i < 32; ++i) EXPECT_EQ(out[i], i);
  expect_race(hand_over("flag_without_fence"), "flag_without_fence");
}

TEST_F(GpusimOrdering, ReleaseOrdersAndRelaxedDoesNot) {
  device_->cooperative = true;
  expect_clean(device_->run("released", {2}, {32}, device_->fresh<int>(32), device_->put(std::vector<int>(1, 0)),
                            device_->fresh<int>(32)));
  expect_race(hand_over("relaxed"), "relaxed");
}

TEST_F(GpusimOrdering, ALockPublishesByAFence) {
  int* const sum = device_->put(std::vector<int>(1, 0));
  expect_clean(device_->run("locked", {6}, {32}, device_->put(std::vector<int>(1, 0)), sum));
  EXPECT_EQ(*sum, 6);
  expect_race(device_->run("locked_without_fence", {6}, {32}, device_->put(std::vector<int>(1, 0)), sum),
              "locked_without_fence");
}

TEST_F(GpusimOrdering, BytesOfAWordAreToldApart) {
  expect_clean(device_->run("own_bytes", {64}, {1}, device_->fresh<unsigned char>(64)));
  expect_race(device_->run("same_byte", {64}, {1}, device_->fresh<unsigned char>(64)), "same_byte");
  expect_clean(device_->run("own_halves", {64}, {1}, device_->fresh<unsigned short>(64)));
  expect_race(device_->run("half_in_word", {4}, {1}, device_->fresh<unsigned short>(4)), "half_in_word");
}

}  // namespace
}  // namespace gpusim
