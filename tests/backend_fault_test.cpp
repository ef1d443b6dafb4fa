// A backend that breaks fails the case in which it does; what a simulator finds fails the case and comes first.
#include "harness/backend_fault.h"

#include <gtest/gtest.h>

#include "harness/run_op.h"
#include "optimized/cpu/backend.h"

namespace dsv2::harness {
namespace {

Record record_of(std::string backend) {
  Record r;
  r.name = "rms_norm/a case";
  r.backend = std::move(backend);
  return r;
}

TEST(BackendFault, FailsTheRecordAndLosesTheBackend) {
  Record r = record_of("one that breaks");
  EXPECT_EQ(lost(r.backend), std::nullopt);
  book_error(r, BackendFault("an illegal access"));
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_EQ(r.reason, "run: an illegal access");
  EXPECT_EQ(lost(r.backend), "not run: one that breaks broke in rms_norm/a case");
  EXPECT_EQ(lost("another"), std::nullopt);
}

TEST(BackendFault, OtherErrorsRefuse) {
  Record r = record_of("one that refuses");
  book_error(r, Error("tokens: expected less"));
  EXPECT_EQ(r.status, Status::error);
  EXPECT_EQ(lost(r.backend), std::nullopt);
}

TEST(BackendFault, FindingsComeBeforeWrongNumbers) {
  Record r = record_of("cuda-sim");
  fail_record(r, "y", "wrong");
  book_findings(r, nullptr);
  EXPECT_EQ(r.failures.size(), 1u);
  book_findings(r, [] { return std::vector<std::string>{"kernel: a.cu:7: shared-race"}; });
  ASSERT_EQ(r.failures.size(), 2u);
  EXPECT_EQ(r.reason, "simulator: kernel: a.cu:7: shared-race");
  EXPECT_EQ(r.failures[1].name, "y");
}

/// The CPU's kernels, under another name; a race is found in the second case that runs.
int cases_run = 0;
Backend racing() {
  Backend backend = cpu::backend();
  backend.name = "racing";
  backend.findings = [] {
    return ++cases_run == 2 ? std::vector<std::string>{"kernel: a.cu:7: shared-race"} : std::vector<std::string>();
  };
  return backend;
}

TEST(BackendFault, AFindingFailsTheCaseInWhichItWasMade) {
  const std::vector<OpCase> cases =
      chosen_cases({{"rms_norm"}, {"f32"}, [](std::string_view name) {
                      return name.find("tiny-mla/b1-s1-p0/f32/n") != std::string_view::npos;
                    }});
  ASSERT_FALSE(cases.empty());
  const Backend backend = racing();
  std::vector<Status> statuses;
  for (int i = 0; i < 3; ++i) statuses.push_back(OpRun(cases.front(), 1).on(backend, Options()).status);
  EXPECT_EQ(statuses, (std::vector{Status::passed, Status::failed, Status::passed}));
}

TEST(BackendFault, CasesAfterABrokenOneAreSkipped) {
  const std::vector<OpCase> cases = chosen_cases({{"rms_norm"}, {"f32"}, [](std::string_view) { return true; }});
  Backend backend = cpu::backend();
  backend.name = "broken";
  Record r = record_of("broken");
  book_error(r, BackendFault("an illegal access"));
  const Record skipped = OpRun(cases.front(), 1).on(backend, Options());
  EXPECT_EQ(skipped.status, Status::skipped);
  EXPECT_EQ(skipped.reason, "not run: broken broke in rms_norm/a case");
}

}  // namespace
}  // namespace dsv2::harness
