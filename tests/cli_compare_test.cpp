// dsv2 compare as a user runs it: exit codes, what lands where, and children that misbehave.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <sstream>
#include <thread>

#include "harness/report.h"
#include "model/file.h"
#include "model/json.h"
#include "tests/json_schema.h"
#include "tests/temporary_folder.h"

namespace dsv2::harness {
namespace {

namespace fs = std::filesystem;
using Plain = nlohmann::json;
using dsv2::testing::TemporaryFolder;

struct Outcome {
  int code;
  std::string out, err;
};

/// Temporaries go to `folder`.
Outcome compare(const TemporaryFolder& folder, const std::string& arguments) {
  const std::string out = (folder / "out").string(), err = (folder / "err").string();
  const std::string command =
      concat("TMPDIR=", folder.path().string(), " ", DSV2_BINARY, " compare ", arguments, " >", out, " 2>", err);
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text_file(out), read_text_file(err)};
}

void expect_refused(const Outcome& run, const std::string& word) {
  EXPECT_EQ(run.code, 2) << run.out << run.err;
  EXPECT_NE(run.err.find(word), std::string::npos) << run.err;
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
}

/// No folder of the command's own is left.
void expect_clean(const TemporaryFolder& folder) {
  for (const auto& entry : fs::directory_iterator(folder.path()))
    EXPECT_FALSE(entry.path().filename().string().starts_with("dsv2-compare")) << entry.path();
}

std::string complaints(const fs::path& file) {
  return testing::schema_complaints(read_text_file(file), "compare.schema.json");
}

Record record(const std::string& name, double ns) {
  Record r;
  r.name = name;
  r.op = "decoder";
  r.phase = "decode";
  r.backend = "cpu";
  r.dtype = "f32";
  r.status = Status::passed;
  r.compared = 3;
  r.budget_used = 0.2;
  for (int i = 0; i < 64; ++i) r.samples_ns.push_back(static_cast<std::int64_t>(ns * (1 + 0.0002 * ((i * 37) % 50))));
  r.noise_floor = 0.01;
  return r;
}

std::string report(std::vector<Record> records) {
  Report report;
  report.argv = {"dsv2", "bench"};
  report.limits = {40, 100, std::nullopt, std::nullopt};
  report.threads = 2;
  report.records = std::move(records);
  return report.to_json().dump();
}

Record failed(Record r, const std::string& reason) {
  r.status = Status::failed;
  r.reason = reason;
  return r;
}

/// A stand-in for a dsv2 binary: a script that gets `bench ARGS --json FILE` and runs `body`, where $report is FILE.
std::string script(const TemporaryFolder& folder, const std::string& name, const std::string& body) {
  const fs::path path = folder / name;
  write_text_file(path, "#!/bin/sh\nfor report; do :; done\n" + body + "\n");
  ::chmod(path.c_str(), 0755);
  return path.string();
}

/// One whose every run takes a little longer than the one before, `ns` at first, and notes its name in the file `log`.
std::string timed_binary(const TemporaryFolder& folder, const std::string& name, double ns) {
  std::string body = concat("echo ", name, " >>", (folder / "log").string(), "\nn=$(grep -c ", name, " ",
                            (folder / "log").string(), ")\n");
  for (int run = 1; run <= 8; ++run)
    write_text_file(folder / concat(name, ".", run), report({record("row", ns * (1 + 0.001 * run))}));
  return script(folder, name, body + "cp " + (folder / name).string() + ".$n \"$report\"");
}

TEST(Compare, ExitCodesAndJson) {
  const TemporaryFolder folder;
  const auto file = [&](const char* name, const std::string& text) {
    write_text_file(folder / name, text);
    return (folder / name).string();
  };
  const std::string base = file("base.json", report({record("a", 1e6), record("b", 1e6)}));
  const std::string slow = file("slow.json", report({record("a", 1.2e6), record("b", 1e6)}));
  const std::string wrong = file("wrong.json", report({record("a", 1.2e6), failed(record("b", 1e6), "off by one")}));
  const std::string other = file("other.json", report({record("c", 1e6)}));
  const fs::path json = folder / "c.json";
  const auto run = [&](const std::string& next, const std::string& flags) {
    const Outcome outcome = compare(folder, concat(base, " ", next, " --json ", json.string(), " ", flags));
    EXPECT_EQ(complaints(json), "") << next;
    const Plain j = Plain::parse(read_text_file(json));
    EXPECT_EQ(j.at("exit_code"), outcome.code);
    EXPECT_EQ(j.at("argv").at(1), "compare");
    return std::pair{outcome, j};
  };
  EXPECT_EQ(run(base, "").first.code, 0);
  const auto [slower, j] = run(slow, "");
  EXPECT_EQ(slower.code, 3) << slower.out;
  const Plain& a = j.at("rows").at(0);
  EXPECT_EQ(a.at("name"), "a");
  EXPECT_EQ(a.at("verdict"), "slower");
  EXPECT_DOUBLE_EQ(a.at("ratio").get<double>(), a.at("new").get<double>() / a.at("base").get<double>());
  EXPECT_NEAR(a.at("ratio").get<double>(), 1.2, 1e-3);
  EXPECT_EQ(run(slow, "--max-regression 25%").first.code, 0);
  EXPECT_EQ(run(slow, "--max-regression 0.25").first.code, 0);
  EXPECT_EQ(run(slow, "--filter b").first.code, 0);
  const auto [bad, k] = run(wrong, "");
  EXPECT_EQ(bad.code, 1);
  EXPECT_EQ(k.at("rows").at(0).at("correctness"), "regressed");
  EXPECT_NE(bad.out.find("off by one"), std::string::npos) << bad.out;
  const auto [nothing, l] = run(other, "");
  EXPECT_EQ(nothing.code, 4);
  EXPECT_NE(nothing.err.find("no record in common: one has a, the other c"), std::string::npos) << nothing.err;
  EXPECT_EQ(run(base, "--filter nowhere").first.code, 4);
}

TEST(Compare, BadInputIsRefused) {
  const TemporaryFolder folder;
  const std::string good = report({record("a", 1e6)});
  Json newer = Json::parse(good);
  newer["schema_version"] = 2;
  write_text_file(folder / "good.json", good);
  write_text_file(folder / "newer.json", newer.dump());
  write_text_file(folder / "cut.json", good.substr(0, good.size() / 2));
  write_text_file(folder / "list.json", "[]");
  const std::string base = (folder / "good.json").string() + " ";
  for (const char* name : {"newer.json", "cut.json", "list.json", "missing.json"}) {
    expect_refused(compare(folder, base + (folder / name).string()), (folder / name).string());
    expect_refused(compare(folder, (folder / name).string() + " " + base), (folder / name).string());
  }
  expect_refused(compare(folder, base), "expected two reports");
  expect_refused(compare(folder, ""), "expected two reports");
  expect_refused(compare(folder, base + base + "--max-regression fast"), "--max-regression");
  expect_refused(compare(folder, base + base + "--filter '('"), "--filter");
  expect_refused(compare(folder, base + base + "--json - --markdown -"), "stdout");
  expect_refused(compare(folder, base + base + "--json /dev/null/c.json"), "/dev/null/c.json");
  EXPECT_EQ(compare(folder, base + base + "--rounds 8").code, 2);
}

TEST(Compare, DataGoesToStdoutAlone) {
  const TemporaryFolder folder;
  write_text_file(folder / "r.json", report({record("a", 1e6)}));
  const std::string both = concat((folder / "r.json").string(), " ", (folder / "r.json").string());
  EXPECT_EQ(Plain::parse(compare(folder, both + " --json -").out).at("rows").size(), 1u);
  const Outcome markdown = compare(folder, both + " --markdown -");
  EXPECT_TRUE(markdown.out.starts_with("**0 correctness regressions")) << markdown.out;
  EXPECT_NE(markdown.out.find("| same | a |"), std::string::npos) << markdown.out;
  EXPECT_NE(markdown.err.find("1 same"), std::string::npos) << markdown.err;
}

TEST(Interleave, OneBinaryIsNeitherFasterNorSlower) {
  const TemporaryFolder folder;
  const fs::path json = folder / "c.json";
  const Outcome run =
      compare(folder, concat("--interleave ", DSV2_BINARY, " ", DSV2_BINARY, " --rounds 6 --json ", json.string(),
                             " -- --preset tiny-mha --threads 1 --prompt 4 --depth 4 --generate 4 --repetitions 3"));
  EXPECT_EQ(run.code, 0) << run.out << run.err;
  EXPECT_EQ(complaints(json), "");
  const Plain j = Plain::parse(read_text_file(json));
  ASSERT_EQ(j.at("rows").size(), 2u);
  for (const Plain& row : j.at("rows")) {
    EXPECT_EQ(row.at("base_values"), 6);
    EXPECT_TRUE(row.at("verdict") == "same" || row.at("verdict") == "undecided") << row.dump(1);
  }
  expect_clean(folder);
}

TEST(Interleave, TakesTurnsAndFindsASlowdown) {
  const TemporaryFolder folder;
  const std::string a = timed_binary(folder, "left", 1e6), b = timed_binary(folder, "right", 1.1e6);
  const fs::path json = folder / "c.json";
  const Outcome run =
      compare(folder, concat("--interleave ", a, " ", b, " --seed 5 --json ", json.string(), " -- --preset x"));
  EXPECT_EQ(run.code, 3) << run.out << run.err;
  const Plain j = Plain::parse(read_text_file(json));
  EXPECT_EQ(j.at("rows").at(0).at("verdict"), "slower");
  EXPECT_EQ(j.at("interleave").at("seed"), 5);
  const auto order = j.at("interleave").at("order").get<std::string>();
  ASSERT_EQ(order.size(), 16u);
  for (std::size_t i = 0; i < order.size(); i += 4)
    EXPECT_TRUE(order.substr(i, 4) == "ABBA" || order.substr(i, 4) == "BAAB") << order;
  std::string ran;
  for (std::istringstream log(read_text_file(folder / "log")); !log.eof();) {
    std::string line;
    if (std::getline(log, line)) ran += line == "left" ? 'A' : 'B';
  }
  EXPECT_EQ(ran, order);
  const Outcome again = compare(folder, concat("--interleave ", b, " ", a, " --seed 5 -- --preset x"));
  EXPECT_EQ(again.code, 2) << "the ninth run has no report: " << again.out << again.err;
  expect_clean(folder);
}

TEST(Interleave, AChildThatFailsItsCheckIsWrong) {
  const TemporaryFolder folder;
  write_text_file(folder / "good.json", report({record("row", 1e6)}));
  write_text_file(folder / "bad.json", report({failed(record("row", 1e6), "logits are off")}));
  const std::string good = script(folder, "good", concat("cp ", (folder / "good.json").string(), " \"$report\""));
  const std::string bad =
      script(folder, "bad", concat("cp ", (folder / "bad.json").string(), " \"$report\"; echo complaint >&2; exit 1"));
  const std::string crash = script(folder, "crash", "kill -SEGV $$");
  for (const std::string& pair : {good + " " + bad, bad + " " + good}) {
    const Outcome run = compare(folder, concat("--interleave ", pair, " -- --preset x"));
    EXPECT_EQ(run.code, 1) << run.out << run.err;
    EXPECT_NE(run.err.find("logits are off"), std::string::npos) << run.err;
    EXPECT_NE(run.err.find("complaint"), std::string::npos) << run.err;
  }
  const Outcome run = compare(folder, concat("--interleave ", good, " ", crash, " -- --preset x"));
  EXPECT_EQ(run.code, 1) << run.out << run.err;
  EXPECT_NE(run.err.find("crash bench: killed by signal 11"), std::string::npos) << run.err;
  expect_clean(folder);
}

TEST(Interleave, WhatDoesNotRunIsRefused) {
  const TemporaryFolder folder;
  const std::string me = DSV2_BINARY;
  const auto refused = [&](const std::string& a, const std::string& b, const std::string& arguments) {
    const Outcome run = compare(
        folder, concat("--interleave ", a, " ", b, " --json ", (folder / "c.json").string(), " -- ", arguments));
    EXPECT_EQ(run.code, 2) << run.out << run.err;
    EXPECT_FALSE(fs::exists(folder / "c.json"));
    expect_clean(folder);
    return run.err;
  };
  EXPECT_NE(refused("no/such/binary", me, "").find("no/such/binary: expected a program"), std::string::npos);
  EXPECT_NE(refused(me, folder.path().string(), "").find("found a folder"), std::string::npos);
  write_text_file(folder / "plain", "text");
  EXPECT_NE(refused(me, (folder / "plain").string(), "").find("plain: cannot be run"), std::string::npos);
  ::chmod((folder / "plain").c_str(), 0755);
  EXPECT_NE(refused((folder / "plain").string(), (folder / "plain").string(), "").find("plain: cannot be run"),
            std::string::npos);
  EXPECT_NE(refused("/bin/true", "/bin/true", "").find("is this dsv2?"), std::string::npos);
  const std::string said = refused(me, me, "--preset no-such-preset");
  EXPECT_NE(said.find("no-such-preset"), std::string::npos) << said;
  EXPECT_NE(said.find("bench: exit code 2"), std::string::npos) << said;
  EXPECT_NE(refused(me, me, "--preset tiny-mha --json x").find("--json"), std::string::npos);
}

TEST(Interleave, AnInterruptEndsTheChildAndLeavesNothing) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const TemporaryFolder folder;
    const fs::path pid_file = folder / "pid", json = folder / "c.json";
    const std::string hang = script(folder, "hang",
                                    concat("echo $$ >", pid_file.string(), ".new; mv ", pid_file.string(), ".new ",
                                           pid_file.string(), "; exec sleep 100"));
    const pid_t child = ::fork();
    if (child == 0) {
      ::setenv("TMPDIR", folder.path().c_str(), 1);
      if (!std::freopen((folder / "err").c_str(), "w", stderr)) ::_exit(99);
      ::execl(DSV2_BINARY, DSV2_BINARY, "compare", "--interleave", hang.c_str(), hang.c_str(), "--json", json.c_str(),
              "--", "--preset", "x", nullptr);
      ::_exit(99);
    }
    ASSERT_GT(child, 0);
    for (int i = 0; i < 600 && !fs::exists(pid_file); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ASSERT_TRUE(fs::exists(pid_file));
    const int sleeper = std::stoi(read_text_file(pid_file));
    ::kill(child, signal);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == signal) << status;
    EXPECT_NE(::kill(sleeper, 0), 0) << "the child lives on";
    EXPECT_FALSE(fs::exists(json));
    EXPECT_NE(read_text_file(folder / "err").find("interrupted"), std::string::npos);
    expect_clean(folder);
  }
}

}  // namespace
}  // namespace dsv2::harness
