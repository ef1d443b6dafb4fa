// The modelled time of launches that a simulator counted, and what they are held to.
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "harness/modelled.h"

namespace dsv2::harness {
namespace {

/// Launches of one shape.
Json shape(double launches, double distinct_bytes, double tensor_us, double other_flops) {
  return {{"launches", launches},     {"blocks", 100},
          {"threads_per_block", 128}, {"dynamic_shared_bytes", 64},
          {"resident_blocks", 4},     {"occupancy", 0.25},
          {"bytes_in_flight", 5e5},   {"distinct_bytes", distinct_bytes},
          {"tensor_us", tensor_us},   {"other_flops", other_flops}};
}

Json kernel(const std::string& name, const std::vector<Json>& shapes) {
  double launches = 0, bytes = 0;
  for (const Json& s : shapes) {
    launches += s.at("launches").get<double>();
    bytes += s.at("launches").get<double>() * s.at("distinct_bytes").get<double>();
  }
  const double sectors = bytes / 32;
  return {{"name", concat("void dsv2::cuda::(anonymous namespace)::", name, "_kernel<4>(Params)")},
          {"launches", launches},
          {"blocks", 100 * launches},
          {"registers", 40},
          {"machine_code", 80},
          {"stack_bytes", 0},
          {"static_shared_bytes", 128},
          {"shapes", shapes},
          {"counts",
           {{"distinct_load_sectors", sectors},
            {"distinct_store_sectors", 0},
            {"global_load_sectors", sectors},
            {"global_store_sectors", 0},
            {"global_ideal_sectors", sectors},
            {"shared_wavefronts", 1000},
            {"shared_ideal_wavefronts", 1000},
            {"flops", {{"f32", 1e6}, {"tensor_bf16", 3e6}}}}}};
}

/// 1000 GB/s, 1 TFLOP/s outside the tensor cores.
std::string report(const std::vector<Json>& kernels) {
  return Json{{"device",
               {{"name", "h100"},
                {"marketing", "NVIDIA"},
                {"multiprocessors", 100},
                {"bandwidth_gb_s", 1000},
                {"latency_ns", 400},
                {"dense_bf16_tflop_s", 100},
                {"f32_tflop_s", 1}}},
              {"counts", true},
              {"kernels", kernels}}
      .dump();
}

Json only(double launches, double bytes, double tensor_us, double flops) {
  const Json m = modelled(report({}), report({kernel("k", {shape(launches, bytes, tensor_us, flops)})}),
                          {.weights = 1e6, .kv = 0, .activations = 0});
  return m;
}

TEST(Modelled, ALaunchTakesWhatTakesLongestAndAGap) {
  EXPECT_NEAR(only(3, 93e6, 0, 0).at("modelled_us"), 3 * (100 + 1), 1e-9);
  EXPECT_NEAR(only(2, 93e6, 160, 0).at("modelled_us"), 2 * (200 + 1), 1e-9);
  EXPECT_NEAR(only(1, 93e6, 160, 300e6).at("modelled_us"), 300 + 1, 1e-9);
}

TEST(Modelled, EachLaunchIsBoundByWhatItDoes) {
  // One is bound by memory and one by arithmetic: the sums of both would be bound by neither.
  const Json m = modelled(report({}), report({kernel("k", {shape(1, 93e6, 0, 0), shape(1, 32, 0, 100e6)})}), {});
  EXPECT_NEAR(m.at("modelled_us"), 100 + 100 + 2, 1e-3);
}

TEST(Modelled, WhatRanBeforeIsTakenOff) {
  const Json before = kernel("k", {shape(1, 93e6, 0, 0), shape(4, 32, 0, 0)});
  const Json after = kernel("k", {shape(3, 93e6, 0, 0), shape(4, 32, 0, 0)});
  const Json m = modelled(report({before}), report({after, kernel("other", {shape(1, 64, 0, 0)})}), {});
  ASSERT_EQ(m.at("kernels").size(), 2u);
  EXPECT_EQ(m.at("kernels").at(0).at("name"), "k");
  EXPECT_EQ(m.at("kernels").at(0).at("launches"), 2);
  EXPECT_NEAR(m.at("kernels").at(0).at("modelled_us"), 202, 1e-9);
}

TEST(Modelled, ResourcesAreOfTheLaunchesThatMoveMost) {
  Json small = shape(50, 32, 0, 0), large = shape(1, 93e6, 0, 0);
  large["dynamic_shared_bytes"] = 4096;
  const Json m = modelled(report({}), report({kernel("k", {small, large})}), {});
  const Json& row = m.at("kernels").at(0);
  EXPECT_EQ(row.at("dynamic_shared_bytes"), 4096);
  EXPECT_EQ(row.at("registers"), 40);
  EXPECT_EQ(row.at("machine_code"), 80);
  EXPECT_NEAR(m.at("bytes_in_flight_needed"), 4e5, 1e-6);
}

TEST(Modelled, NoMoreBytesAreNeededInFlightThanALaunchMoves) {
  const auto needed = [](double bytes) {
    return only(5, bytes, 0, 0).at("kernels").at(0).at("bytes_in_flight_needed").get<double>();
  };
  EXPECT_NEAR(needed(3e5), 3e5, 1e-6);
  EXPECT_NEAR(needed(1e7), 4e5, 1e-6);
}

/// The bar of a name; null where there is none.
Json bar(const Json& bars, const char* name) {
  for (const Json& b : bars)
    if (b.at("bar") == name) return b;
  return nullptr;
}

constexpr BarsOf kDecode{.decode = true, .tensor_cores = true, .layers = 2};

/// 15 launches of 10 MB, which is what the minimum says.
Json step() {
  return modelled(report({}), report({kernel("k", {shape(15, 1e7, 0, 0)})}),
                  {.weights = 1.5e8, .kv = 0, .activations = 0});
}

TEST(Bars, AreMetByAGoodStep) {
  const Json bars = harness::bars(step(), kDecode);
  EXPECT_TRUE(all_met(bars)) << bars.dump(1);
  EXPECT_EQ(bars.size(), 8u);
  EXPECT_EQ(bar(bars, "launches_per_layer").at("found"), 6);
  EXPECT_NEAR(bar(bars, "bytes_in_flight_over_needed").at("found"), 1.25, 1e-9);
  EXPECT_TRUE(bar(bars, "tensor_core_share").is_null());
}

TEST(Bars, EachIsMissedAlone) {
  const auto misses = [](const char* name, auto&& spoil, BarsOf of = kDecode) {
    Json m = step();
    spoil(m);
    const Json bars = harness::bars(m, of);
    EXPECT_FALSE(all_met(bars)) << name;
    for (const Json& b : bars) EXPECT_EQ(b.at("met").get<bool>(), b.at("bar") != name) << name << ": " << b.dump();
  };
  misses("distinct_over_minimum", [](Json& m) { m["distinct_over_minimum"] = 1.06; });
  misses("requested_over_minimum", [](Json& m) { m["requested_over_minimum"] = 1.51; });
  misses("sector_efficiency", [](Json& m) { m["ideal_bytes"] = 0.97 * m["requested_bytes"].get<double>(); });
  misses("bank_conflicts", [](Json& m) { m["shared_ideal_wavefronts"] = 980; });
  misses("spill_bytes", [](Json& m) { m["kernels"][0]["stack_bytes"] = 8; });
  misses("spill_bytes", [](Json& m) { m["kernels"][0]["machine_code"] = 0; });  // nobody knows
  misses("bytes_in_flight_over_needed", [](Json& m) { m["kernels"][0]["bytes_in_flight"] = 3e5; });
  misses("launches_per_layer", [](Json& m) { m["launches"] = 16; });
  misses("share_of_roof", [](Json& m) { m["share_of_roof"] = 0.75; });
  misses("distinct_over_minimum", [](Json& m) { m["distinct_over_minimum"] = std::nan(""); });
  misses("tensor_core_share", [](Json& m) { m["other_flops"] = m["tensor_flops"]; },
         {.decode = false, .tensor_cores = true, .layers = 2});
}

TEST(Bars, TheRoofIsAskedOfAnH100Alone) {
  Json m = step();
  m["device"]["name"] = "rtx4090";
  EXPECT_TRUE(bar(bars(m, kDecode), "share_of_roof").is_null());
}

TEST(BesideMeasured, FindsTheSameWork) {
  const auto record = [](const char* name, const Json& median, bool is_modelled) {
    Json r = {{"name", name}, {"median_ns", median}};
    if (is_modelled) r["modelled"] = {{"modelled_us", 100.0}, {"roof_us", 80.0}};
    return r;
  };
  const Json simulated = {{"records",
                           {record("m/decode/cuda-sim/bf16", nullptr, true), record("op/1", nullptr, true),
                            record("op/2", nullptr, false)}}};
  const Json measured = {{"records", {record("m/decode/cuda/bf16", 125e3, false), record("op/2", 1.0, false)}}};
  const Json rows = beside_measured(simulated, measured);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows.at(0).at("name"), "m/decode/cuda/bf16");
  EXPECT_NEAR(rows.at(0).at("measured_over_modelled"), 1.25, 1e-9);
  EXPECT_NEAR(rows.at(0).at("share_of_roof"), 0.64, 1e-9);
  const Json itself = beside_measured(simulated, simulated);
  ASSERT_EQ(itself.size(), 2u);
  EXPECT_TRUE(itself.at(0).at("measured_us").is_null());
  std::ostringstream text;
  print_beside_measured(itself, text);
  EXPECT_NE(text.str().find("op/1"), std::string::npos);
}

}  // namespace
}  // namespace dsv2::harness
