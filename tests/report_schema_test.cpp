// Every report that the command writes here, and some built by hand, against reports/schema.json.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "harness/report.h"
#include "model/file.h"
#include "model/json.h"
#include "tests/json_schema.h"
#include "tests/temporary_folder.h"

namespace dsv2::harness {
namespace {

using Plain = nlohmann::json;
using dsv2::testing::TemporaryFolder;

std::string complaints(const std::string& report) { return testing::schema_complaints(report, "schema.json"); }

Record timed(Status status) {
  Record r;
  r.name = "tiny/decode";
  r.op = "decoder";
  r.phase = "decode";
  r.backend = "cpu";
  r.dtype = "f32";
  r.status = status;
  if (status != Status::passed) r.reason = "why";
  r.flops = 1e6;
  r.bytes = Bytes{1000, 100, 10};
  r.tokens = 1;
  r.samples_ns = {300, 100, 200};
  r.share_of_roof = 0.5;
  r.roof = "read bandwidth";
  return r;
}

Report with(std::vector<Record> records) {
  Report report;
  report.argv = {"dsv2", "check"};
  report.limits.read_bandwidth_gb_s = std::numeric_limits<double>::quiet_NaN();  // must arrive as null
  report.limits.peak_f32_gflop_s = 100;
  report.records = std::move(records);
  return report;
}

TEST(ReportSchema, EveryStatusIsValidAndOnlyPassedHasASpeed) {
  for (const Status status : {Status::passed, Status::failed, Status::skipped, Status::error}) {
    const Json report = with({timed(status)}).to_json();
    EXPECT_EQ(complaints(report.dump()), "") << name(status);
    EXPECT_EQ(report["records"][0]["median_ns"].is_null(), status != Status::passed);
  }
}

TEST(ReportSchema, ComparisonWithNanIsValid) {
  Record r = timed(Status::skipped);
  Comparison c;
  c.name = "logits";
  c.passed = false;
  c.count = c.outside = 1;
  c.worst = {0, 3};
  c.got = std::numeric_limits<double>::quiet_NaN();
  c.budget_used = c.relative_l2 = std::numeric_limits<double>::infinity();
  r.add(c);
  const Json report = with({r}).to_json();
  EXPECT_EQ(complaints(report.dump()), "");
  EXPECT_TRUE(report["records"][0]["failures"][0]["got"].is_null());
}

TEST(ReportSchema, WhatAStepsOpsAndBudgetsHold) {
  Record r = timed(Status::skipped);
  r.ops = {{.name = "lm_head", .op = "lm_head", .count = 1, .time_ns = 5, .flops = 10, .bytes = {1, 2, 3}},
           {.name = "other", .op = "", .count = 2, .time_ns = 0}};
  Comparison c;
  c.count = 1;
  for (const auto& [tensor, used] :
       {std::pair{"layers.1.mlp", 0.2}, {"layers.1.mlp", 0.1001}, {"layers.0.mlp", 0.3}, {"lm_head", 0.0}}) {
    c.name = tensor;
    c.budget_used = used;
    r.add(c);
  }
  Json report = with({r}).to_json();
  EXPECT_EQ(complaints(report.dump()), "");
  const Json& budgets = report["records"][0]["budgets"];
  EXPECT_EQ(budgets, Json::parse(R"({"by_op": {"mlp": 0.3, "lm_head": 0.0}, "by_layer": {"0": 0.3, "1": 0.2}})"));
  const Json ops = report["records"][0]["ops"];
  EXPECT_EQ(ops.size(), 2u);

  c.name = "layers.2.mlp";
  c.passed = false;
  c.budget_used = std::numeric_limits<double>::quiet_NaN();
  r.add(c);
  c.budget_used = 0.5;
  r.add(c);
  report = with({r}).to_json();
  EXPECT_EQ(complaints(report.dump()), "");
  EXPECT_TRUE(report["records"][0]["budgets"]["by_op"]["mlp"].is_null()) << "a NaN is worse than any number";
  EXPECT_TRUE(report["records"][0]["ops"].empty()) << "no time without correctness";
  report["records"][0]["ops"] = ops;
  EXPECT_NE(complaints(report.dump()), "");
}

TEST(ReportSchema, FaultsComeWithTheirSeeds) {
  Report gate = with({});
  gate.gate_test = GateTest{.faults = {{"zeros", "linear", "f32", std::nullopt, false}}, .seeds = 1};
  Json report = gate.to_json();
  EXPECT_EQ(complaints(report.dump()), "");
  EXPECT_EQ(report["exit_code"], 1);
  report.erase("false_alarms");
  EXPECT_NE(complaints(report.dump()), "");
}

TEST(ReportSchema, SpeedWithoutCorrectnessIsRefused) {
  const Json good = with({timed(Status::passed)}).to_json();
  ASSERT_EQ(complaints(good.dump()), "");
  for (const char* key :
       {"median_ns", "quartiles_ns", "decode_tokens_per_s", "gflop_s", "gb_s", "share_of_roof", "samples_ns"}) {
    Json bad = with({timed(Status::failed)}).to_json();
    bad["records"][0][key] = good["records"][0][key];
    EXPECT_NE(complaints(bad.dump()), "") << key;
  }
  Json bad = with({timed(Status::failed)}).to_json();
  bad["records"][0]["prefill_tokens_per_s"] = 5.0;
  EXPECT_NE(complaints(bad.dump()), "");
}

TEST(ReportSchema, BrokenReportsAreRefused) {
  const Json good = with({timed(Status::passed)}).to_json();
  const auto changed = [&](auto change) {
    Json report = good;
    change(report);
    return complaints(report.dump());
  };
  EXPECT_EQ(changed([](Json& j) { j["new_key"] = 1; }), "") << "additions do not break";
  EXPECT_NE(changed([](Json& j) { j["schema_version"] = 2; }), "");
  EXPECT_NE(changed([](Json& j) { j.erase("machine"); }), "");
  EXPECT_NE(changed([](Json& j) { j["records"][0].erase("status"); }), "");
  EXPECT_NE(changed([](Json& j) { j["records"][0]["status"] = "ok"; }), "");
  EXPECT_NE(changed([](Json& j) { j["records"][0]["median_ns"] = "NaN"; }), "");
  EXPECT_NE(changed([](Json& j) { j["records"][0]["bytes"].erase("kv"); }), "");
  EXPECT_NE(changed([](Json& j) { j["records"][0]["samples_ns"] = Json::array(); }), "");
  EXPECT_THROW(complaints(R"({"schema_version": NaN})"), Error);
}

TEST(ReportSchema, WhatTheCommandWritesIsValid) {
  const TemporaryFolder folder;
  const std::string golden = DSV2_SOURCE_DIR "/golden/";
  for (const std::string& arguments :
       {concat("check ", golden, "cases/top1 ", golden, "bad_files"),
        concat("check ", golden, "cases/bf16_mla --dtype bf16"),
        concat("check --filter matches_nothing ", golden, "cases"),
        std::string("bench --preset tiny-mha --prompt 4 --depth 0,3 --generate 2 --repetitions 1 --dtype f32,bf16"),
        std::string("bench --preset tiny-mla --prompt 4 --generate 2 --time-budget 1 --noise --cold"),
        std::string("selftest --seeds 1 --seed 1")}) {
    const std::filesystem::path file = folder / "report.json";
    const std::string command = concat(DSV2_BINARY, " ", arguments, " --json ", file.string(), " >/dev/null 2>&1");
    const int ignored = std::system(command.c_str());  // a report is written whatever the outcome
    (void)ignored;
    ASSERT_TRUE(std::filesystem::exists(file)) << command;
    EXPECT_EQ(complaints(read_text_file(file)), "") << command;
    EXPECT_NO_THROW(read_report(file)) << command;
    std::filesystem::remove(file);
  }
}

TEST(ReportCommand, RefusesWhatIsNoReport) {
  const TemporaryFolder folder;
  const std::string good = with({timed(Status::passed)}).to_json().dump();
  Json newer = Json::parse(good);
  newer["schema_version"] = 2;
  int n = 0;
  for (const std::string& text : {newer.dump(), good.substr(0, good.size() / 2), std::string("{\"rows\": []}"),
                                  std::string("[]"), std::string()}) {
    const std::filesystem::path file = folder / concat("bad", n++, ".json"), page = folder / "page.html";
    write_text_file(file, text);
    const std::string command = concat(DSV2_BINARY, " report ", file.string(), " --html ", page.string(), " 2>&1");
    std::string said;
    FILE* pipe = popen(command.c_str(), "r");
    ASSERT_NE(pipe, nullptr);
    for (int c; (c = std::fgetc(pipe)) != EOF;) said += static_cast<char>(c);
    EXPECT_EQ(WEXITSTATUS(pclose(pipe)), static_cast<int>(ExitCode::bad_input)) << text;
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
    EXPECT_NE(said.find(file.string()), std::string::npos) << said;
    EXPECT_FALSE(std::filesystem::exists(page)) << said;
  }
}

}  // namespace
}  // namespace dsv2::harness
