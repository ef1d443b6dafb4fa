// The command as a user runs it: exit codes, the line on stderr, what lands where.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "model/file.h"
#include "model/safetensors.h"
#include "run_dsv2.h"
#include "temporary_folder.h"

namespace dsv2 {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::Outcome;
using testing::TemporaryFolder;

const std::string kGolden = std::string(DSV2_SOURCE_DIR) + "/golden";

Outcome dsv2(const std::string& arguments) { return testing::run_dsv2(arguments); }

Json read(const fs::path& file) { return Json::parse(read_text_file(file)); }

void expect_one_line(const Outcome& run, const std::string& word) {
  EXPECT_EQ(run.code, 2) << run.out << run.err;
  EXPECT_NE(run.err.find(word), std::string::npos) << run.err;
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
}

/// A copy of a golden case in which one value of a tensor's expectation is changed.
fs::path tampered(const TemporaryFolder& folder, const std::string& name, const std::string& tensor, float by) {
  const fs::path copy = folder.path() / name;
  fs::copy(kGolden + "/cases/" + name, copy, fs::copy_options::recursive);
  std::vector<Tensor> kept;
  std::vector<NamedTensor> all;
  {
    const SafetensorsFile file(copy / "golden.safetensors");
    for (const std::string& n : file.names()) {
      Tensor t(file.view(n).dtype, file.view(n).shape);
      std::memcpy(t.data(), file.view(n).data, static_cast<std::size_t>(file.view(n).bytes()));
      if (n == tensor) t.as<float>()[7] += by;
      kept.push_back(std::move(t));
    }
    for (std::size_t i = 0; i < kept.size(); ++i) all.push_back({file.names()[i], kept[i].view()});
  }
  fs::remove(copy / "golden.safetensors");
  write_safetensors(copy / "golden.safetensors", all);
  return copy;
}

TEST(Check, GoldenCasesPassOnBothBackends) {
  const TemporaryFolder folder;
  const std::string report = (folder.path() / "r.json").string();
  const Outcome run = dsv2("check " + kGolden + " --json " + report);
  EXPECT_EQ(run.code, 0) << run.out << run.err;
  const Json j = read(report);
  EXPECT_EQ(j.at("exit_code"), 0);
  EXPECT_GE(j.at("totals").at("passed").get<int>(), 2 * 36);
  EXPECT_EQ(j.at("totals").at("failed"), 0);
  for (const Json& r : j.at("records")) {
    EXPECT_EQ(r.at("status"), "passed") << r.dump();
    if (r.at("op") == "decoder") {
      EXPECT_LT(r.at("budget_used").get<double>(), 1) << r.dump();
      EXPECT_GT(r.at("median_ns").get<double>(), 0) << r.dump();
    }
  }
}

TEST(Check, LowPrecisionPasses) {
  const Outcome run = dsv2("check " + kGolden + "/cases --dtype bf16 --backend cpu");
  EXPECT_EQ(run.code, 0) << run.out << run.err;
}

TEST(Check, EveryExpectationCanFail) {
  for (const char* tensor :
       {"full.logits", "full.hidden_states.1", "full.router_logits.1", "prefill.cache.0.k_pe", "greedy.logits"}) {
    const TemporaryFolder folder;
    const fs::path copy = tampered(folder, "mla_tiny", tensor, 1e-3f);
    const std::string report = (folder.path() / "r.json").string();
    const Outcome run = dsv2("check " + copy.string() + " --json " + report);
    EXPECT_EQ(run.code, 1) << tensor << run.out << run.err;
    EXPECT_NE(run.out.find("first divergence: " + std::string(tensor)), std::string::npos) << run.out;
    for (const Json& r : read(report).at("records"))  // no speed without correctness
      if (r.at("status") == "failed") {
        EXPECT_TRUE(r.at("median_ns").is_null() && r.at("prefill_tokens_per_s").is_null() &&
                    r.at("decode_tokens_per_s").is_null())
            << r.dump();
      }
  }
}

TEST(Check, BisectEndsInOneLine) {
  const TemporaryFolder folder;
  const std::string report = (folder.path() / "r.json").string();
  const Outcome run = dsv2("check --bisect --preset tiny-mla --seed 7 --dtype f32,bf16 --json " + report);
  EXPECT_EQ(run.code, 0) << run.out << run.err;
  EXPECT_NE(run.out.find("seed 7"), std::string::npos) << run.out;
  const std::string last = run.out.substr(run.out.rfind('\n', run.out.size() - 2) + 1);
  EXPECT_TRUE(last.starts_with("no op out of budget: worst layers.")) << last;
  const Json records = read(report).at("records");
  ASSERT_EQ(records.size(), 2u) << "the reference is not held against itself";
  for (const Json& r : records) {
    EXPECT_EQ(r.at("name"), "bisect/tiny-mla");
    EXPECT_EQ(r.at("seed"), 7);
    EXPECT_GT(r.at("bisect").size(), 60u);
    for (const Json& op : r.at("bisect")) EXPECT_LT(op.at("local").get<double>(), 1) << op.dump();
  }
  EXPECT_EQ(dsv2("check --bisect --preset tiny-mla --backend reference").code, 4);
  EXPECT_EQ(dsv2("check --bisect " + kGolden + "/bad_input").code, 4);
  expect_one_line(dsv2("check --preset tiny-mla"), "--bisect");
  expect_one_line(dsv2("check --bisect --preset tiny-mla " + kGolden), "--preset");
  expect_one_line(dsv2("check --bisect --preset tiny"), "tiny-mha");
}

TEST(Check, MetamorphicDrawsASeedAndTakesItBack) {
  const TemporaryFolder folder;
  const std::string report = (folder.path() / "r.json").string();
  const Outcome drawn = dsv2("check --metamorphic --backend cpu --threads 1 --json " + report);
  EXPECT_EQ(drawn.code, 0) << drawn.out << drawn.err;
  const Json records = read(report).at("records");
  ASSERT_EQ(records.size(), 26u) << "13 properties of two models";
  const Json& one = records.at(5);
  EXPECT_NE(drawn.out.find("seed " + one.at("seed").dump()), std::string::npos) << drawn.out;
  // Name and seed give the line again.
  const Outcome again =
      dsv2("check --metamorphic --backend cpu --threads 1 --filter '^" + one.at("name").get<std::string>() +
           "$' --seed " + one.at("seed").dump() + " --json " + report);
  EXPECT_EQ(again.code, 0) << again.out << again.err;
  const Json alone = read(report).at("records");
  ASSERT_EQ(alone.size(), 1u);
  EXPECT_EQ(alone[0].at("budget_used"), one.at("budget_used"));
  EXPECT_EQ(dsv2("check --metamorphic --filter nothing").code, 4);
  expect_one_line(dsv2("check --metamorphic " + kGolden), "--metamorphic");
}

TEST(Check, NaNInTheExpectationIsABrokenCase) {
  const TemporaryFolder folder;
  const fs::path copy = tampered(folder, "mla_tiny", "full.logits", std::nanf(""));
  expect_one_line(dsv2("check --backend cpu " + copy.string()), "full.logits");
}

TEST(Check, NothingCheckedIsNotSuccess) {
  const TemporaryFolder folder;
  EXPECT_EQ(dsv2("check " + folder.path().string()).code, 4);
  EXPECT_EQ(dsv2("check " + kGolden + "/cases --filter no_such_case").code, 4);
  const fs::path copy = folder.path() / "top1";
  fs::copy(kGolden + "/cases/top1", copy, fs::copy_options::recursive);
  Json j = read(copy / "case.json");
  for (Json& call : j["calls"]) call["outputs"] = Json::object();
  std::ofstream(copy / "case.json") << j;
  EXPECT_EQ(dsv2("check " + copy.string()).code, 4);
}

TEST(Check, BadUse) {
  expect_one_line(dsv2("check no/such/place"), "no/such/place");
  expect_one_line(dsv2("check --backend quantum " + kGolden + "/cases/top1"), "quantum");
  expect_one_line(dsv2("check --dtype f33 " + kGolden + "/cases/top1"), "f33");
  expect_one_line(dsv2("check --filter '(' " + kGolden + "/cases/top1"), "--filter");
  EXPECT_EQ(dsv2("check --no-such-flag").code, 2);
  EXPECT_EQ(dsv2("").code, 2);
}

TEST(Check, BrokenCases) {
  const TemporaryFolder folder;
  const auto broken = [&](const std::string& key, const Json& value, const std::string& word) {
    const fs::path copy = folder.path() / "c";
    fs::remove_all(copy);
    fs::copy(kGolden + "/cases/top1", copy, fs::copy_options::recursive);
    Json j = read(copy / "case.json");
    j[key] = value;
    std::ofstream(copy / "case.json") << j;
    expect_one_line(dsv2("check " + copy.string()), word);
  };
  broken("format", "dsv2-golden/2", "dsv2-golden/2");
  broken("head", "regression", "head");
  broken("moe_layers", {1}, "moe_layers");
  broken("tensors", "missing.safetensors", "missing.safetensors");
  broken("calls", 3, "calls");
  std::ofstream(folder.path() / "c" / "case.json") << "{\"format\":";
  expect_one_line(dsv2("check " + (folder.path() / "c").string()), "case.json");
}

TEST(Check, JsonOnStdoutIsJson) {
  const Outcome run = dsv2("check --json - " + kGolden + "/cases/top1");
  EXPECT_EQ(run.code, 0);
  EXPECT_EQ(Json::parse(run.out).at("schema_version"), 1);
}

TEST(Files, BrokenCheckpointsAreRefusedByEveryCommand) {
  const fs::path files = kGolden + "/bad_files";
  for (const char* file : {"nan_weight.safetensors", "truncated_data.safetensors", "header_length_2_63.safetensors",
                           "missing_tensor.safetensors"}) {
    const TemporaryFolder folder;
    fs::copy(files / "base", folder.path(), fs::copy_options::recursive);
    fs::copy(files / file, folder.path() / "model.safetensors", fs::copy_options::overwrite_existing);
    const std::string dir = folder.path().string();
    for (const std::string& command :
         {"inspect " + dir, "bench --prompt 4 --generate 1 --model " + dir, "generate --prompt-ids 1,2 --model " + dir})
      expect_one_line(dsv2(command), "model.safetensors");
  }
}

TEST(Bench, ChecksWhatItTimes) {
  const TemporaryFolder folder;
  const std::string report = (folder.path() / "b.json").string();
  const Outcome run = dsv2(
      "bench --preset tiny-mla --prompt 8,16 --depth 0,8 --generate 3 --batch 1-2 --backend reference,cpu --dtype "
      "f32,bf16 --json " +
      report);
  EXPECT_EQ(run.code, 0) << run.out << run.err;
  const Json j = read(report);
  EXPECT_EQ(j.at("records").size(), 2u * 2 * 2 * (2 + 2));
  for (const Json& r : j.at("records")) {
    EXPECT_EQ(r.at("status"), "passed") << r.dump();
    EXPECT_GT(r.at(r.at("phase") == "prefill" ? "prefill_tokens_per_s" : "decode_tokens_per_s").get<double>(), 0);
    EXPECT_GT(r.at("kv_bytes").get<std::int64_t>(), 0);
    EXPECT_GT(r.at("flops").get<double>(), 0);
  }
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> all;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) all.push_back(line);
  return all;
}

TEST(Bench, ListNamesTheRowsThatAFilterPicks) {
  const std::string rows =
      "bench --preset tiny-mla --backend reference,cpu --dtype f32 --kv-dtype f32,bf16 --threads 1,2 --prompt 8 "
      "--depth 0,8 --generate 2 ";
  const Outcome all = dsv2(rows + "--list");
  ASSERT_EQ(all.code, 0) << all.err;
  const auto names = lines(all.out);
  EXPECT_EQ(names.size(), 2u * 3 + 2 * 2 * 3) << "the reference has one thread: " << all.out;
  EXPECT_EQ(names.back(), "tiny-mla/decode/cpu/f32/kv_bf16/b1/d8/t2");
  const Outcome picked = dsv2(rows + "--repetitions 1 --json - --filter '^" + names.back() + "$'");
  ASSERT_EQ(picked.code, 0) << picked.err;
  const Json records = Json::parse(picked.out).at("records");
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].at("name"), names.back());
  EXPECT_EQ(records[0].at("threads"), 2);
  EXPECT_EQ(dsv2(rows + "--list --filter no_such_row").code, 4);
  EXPECT_EQ(dsv2(rows + "--filter no_such_row").code, 4);
}

TEST(Bench, NoiseIsMeasuredInBlocks) {
  const Outcome run =
      dsv2("bench --preset tiny-mha --prompt 4 --depth 3 --generate 4 --repetitions 2 --noise --json -");
  ASSERT_EQ(run.code, 0) << run.err;
  for (const Json& r : Json::parse(run.out).at("records")) {
    EXPECT_GE(r.at("noise_floor").get<double>(), 0) << r.dump();
    EXPECT_EQ(r.at("sampling").at("blocks"), 3);
    EXPECT_EQ(r.at("samples_ns").size(), r.at("phase") == "decode" ? 3u * 2 * 4 : 3u * 2);
  }
}

TEST(Bench, SamplesUntilTheMedianIsKnown) {
  const Outcome run = dsv2(
      "bench --preset tiny-mha --prompt 64 --generate 0 --threads 1 --relative-error 60% --min-samples 30 "
      "--time-budget "
      "60 --json "
      "-");
  ASSERT_EQ(run.code, 0) << run.err;
  const Json r = Json::parse(run.out).at("records").at(0);
  EXPECT_EQ(r.at("sampling").at("stopped"), "converged") << r.dump();
  EXPECT_LE(r.at("sampling").at("relative_error").get<double>(), 0.6);
  EXPECT_GE(r.at("samples_ns").size(), 30u);
  EXPECT_TRUE(r.at("noise_floor").is_null());
}

TEST(Bench, ColdRowsSayTheyAre) {
  const Outcome run = dsv2("bench --preset tiny-mha --prompt 4 --generate 2 --repetitions 2 --cold --json -");
  ASSERT_EQ(run.code, 0) << run.err;
  for (const Json& r : Json::parse(run.out).at("records")) {
    EXPECT_TRUE(r.at("name").get<std::string>().ends_with("/cold")) << r.at("name");
    EXPECT_EQ(r.at("sampling").at("cache"), "cold");
  }
}

TEST(Bench, PinBindsThreadsOrSaysWhyNot) {
  const std::string row = "bench --preset tiny-mha --prompt 4 --generate 0 --repetitions 2 ";
  const Outcome loose = dsv2(row + "--threads 1 --json -"), pinned = dsv2(row + "--threads 1 --pin --json -");
  ASSERT_EQ(pinned.code, 0) << pinned.err;
  const Json machine = Json::parse(pinned.out).at("machine");
  EXPECT_EQ(machine.at("pinned"), true);
  EXPECT_EQ(machine.at("cores"), Json::parse(loose.out).at("machine").at("cores")) << "bound, yet every core counts";
  expect_one_line(dsv2(row + "--threads 4096 --pin"), "--pin");
}

TEST(Bench, BadUse) {
  for (const char* flags : {"--relative-error x", "--relative-error 0", "--relative-error 200%", "--time-budget 0",
                            "--time-budget nan", "--min-samples 0", "--repetitions 0", "--noise=1", "--noise=x",
                            "--threads 5000", "--threads 1,x", "--kv-dtype f32,f33", "--filter '('"}) {
    const std::string text(flags);
    expect_one_line(dsv2("bench --preset tiny-mha --prompt 4 " + text), text.substr(0, text.find_first_of(" =")));
  }
  expect_one_line(dsv2("bench --preset tiny-mha --repetitions 3 --time-budget 2"), "--repetitions");
  expect_one_line(dsv2("generate --preset tiny-mha --prompt-ids 1 --threads 1,2"), "--threads");
  expect_one_line(dsv2("generate --preset tiny-mha --prompt-ids 1 --kv-dtype f32,bf16"), "--kv-dtype");
  expect_one_line(dsv2("bench"), "--preset");
  expect_one_line(dsv2("bench --preset no-such-preset"), "no-such-preset");
  expect_one_line(dsv2("bench --preset tiny-mha --prompt 5-1"), "--prompt");
  expect_one_line(dsv2("bench --preset tiny-mha --batch 0"), "--batch");
  expect_one_line(dsv2("bench --preset tiny-mha --isa z80"), "z80");
  expect_one_line(dsv2("bench --preset deepseek-v3 --prompt 4"), "GB");  // 1.3 TB do not fit
}

TEST(Cost, JsonHasTheKeysThatScriptsRelyOn) {
  const Outcome run = dsv2("cost --preset ocr-mla-40l --context 8192 --json -");
  ASSERT_EQ(run.code, 0) << run.err;
  const Json j = Json::parse(run.out);
  for (const char* key : {"parameters", "flops", "bytes", "kv_bytes_per_token", "kv_bytes", "layers", "claims"})
    EXPECT_TRUE(j.contains(key)) << key;
  EXPECT_NEAR(j.at("flops").get<double>(), 98e9, 0.05e9);
  EXPECT_EQ(j.at("claims").at(0).at("claimed"), 14.13e12);
  double sum = 0;
  for (const Json& layer : j.at("layers")) sum += layer.at("flops").get<double>();
  EXPECT_EQ(sum, j.at("flops").get<double>());
  expect_one_line(dsv2("cost --preset ocr-mla-40l --tokens 10 --context 5"), "--context");
  EXPECT_EQ(dsv2("cost --preset ocr-mla-40l --batch 0").code, 2);
}

TEST(Cost, BadUse) {
  expect_one_line(dsv2("cost"), "--preset");
  expect_one_line(dsv2("cost --preset no-such-preset"), "no-such-preset");
  expect_one_line(dsv2("cost --preset tiny-mha --dtype f33"), "--dtype");
  expect_one_line(dsv2("cost --preset tiny-mha --attention absorbed"), "--attention");
  expect_one_line(dsv2("cost --preset tiny-mha --logits some"), "--logits");
  expect_one_line(dsv2("cost --preset tiny-mha --distinct-experts 9"), "distinct_experts");
  expect_one_line(dsv2("cost --preset tiny-mha --json /dev/null/c.json"), "/dev/null/c.json");
  expect_one_line(dsv2("cost --model no/such/model"), "no/such/model");
}

TEST(Cost, AConfigThatClaimsMillionsOfExpertsIsPricedAtOnce) {
  const TemporaryFolder folder;
  Json c = read(kGolden + "/cases/mla_tiny/config.json");
  Json& keys = c.contains("language_config") ? c["language_config"] : c;
  keys["num_hidden_layers"] = keys["n_routed_experts"] = 4096;
  std::ofstream(folder.path() / "config.json") << c;
  const Outcome run = dsv2("cost --model " + folder.path().string() + " --json -");
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_GT(Json::parse(run.out).at("parameters").at("total").get<double>(), 4095.0 * 4096 * 3 * 64);
}

TEST(InitInspectGenerate, RoundTrip) {
  const TemporaryFolder folder;
  const std::string dir = (folder.path() / "m").string(), json = (folder.path() / "i.json").string();
  ASSERT_EQ(dsv2("init --preset tiny-mha --seed 3 --dtype bf16 --out " + dir).code, 0);
  expect_one_line(dsv2("init --preset tiny-mha --out " + dir), "not empty");
  EXPECT_EQ(dsv2("init --preset tiny-mha --seed 3 --dtype bf16 --force --out " + dir).code, 0);
  expect_one_line(dsv2("init --preset tiny-mha --dtype f16 --out " + dir + "4"), "--dtype");
  expect_one_line(dsv2("init --preset tiny-mha --out " + dir + "/config.json"), "expected a folder");
  ASSERT_EQ(dsv2("inspect " + dir + " --json " + json).code, 0);
  EXPECT_GT(read(json).at("tensors_used").get<int>(), 10);
  const std::string prompt = " --prompt-ids 1,2,3 --eos none --max-new-tokens 8";
  const Outcome a = dsv2("generate --model " + dir + prompt),
                b = dsv2("generate --preset tiny-mha --seed 3 --dtype bf16 --kv-dtype f32" + prompt);
  const Outcome c = dsv2("generate --backend reference --model " + dir + prompt);
  EXPECT_EQ(a.code, 0) << a.err;
  EXPECT_EQ(std::count(a.out.begin(), a.out.end(), ','), 7);
  EXPECT_EQ(a.out, c.out);
  EXPECT_EQ(b.code, 0) << b.err;
  expect_one_line(dsv2("generate --model " + dir + " --prompt-ids 1,x"), "--prompt-ids");
  expect_one_line(dsv2("generate --model " + dir + " --prompt-ids 99999999"), "input_ids");
  expect_one_line(dsv2("generate --model " + dir + " --prompt-ids 1 --max-new-tokens 0"), "max_new_tokens");
}

TEST(Dump, WritesTapsAndLogits) {
  const TemporaryFolder folder;
  const std::string out = (folder.path() / "d.safetensors").string();
  ASSERT_EQ(dsv2("dump --preset tiny-mla --prompt-ids 1,2,3 --out " + out).code, 0);
  const SafetensorsFile file(out);
  for (const char* name :
       {"logits", "layers.0", "layers.1.mlp.gate.topk_idx", "norm", "layers.0.self_attn.attn_weights"})
    EXPECT_TRUE(file.find(name)) << name;
}

TEST(Selftest, EveryFaultIsRejectedAndNamed) {
  const Outcome run = dsv2("selftest --seeds 3 --seed 1 --json -");
  ASSERT_EQ(run.code, 0) << run.err;
  const Json j = Json::parse(run.out);
  EXPECT_GE(j.at("faults").size(), 80u);
  EXPECT_EQ(j.at("false_alarms"), 0);
  for (const Json& fault : j.at("faults")) EXPECT_TRUE(fault.at("located").get<bool>()) << fault.dump();
}

TEST(Backends, AreListed) {
  const Outcome run = dsv2("backends --json -");
  ASSERT_EQ(run.code, 0);
  const Json j = Json::parse(run.out);
  EXPECT_EQ(j.at("backends").at(0).at("name"), "reference");
  EXPECT_EQ(j.at("backends").at(1).at("name"), "cpu");
  EXPECT_NE(dsv2("--version").out.find("dsv2 0."), std::string::npos);
}

}  // namespace
}  // namespace dsv2
