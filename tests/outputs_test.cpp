// A report's other forms, each read back by somebody else's rules; where they are written, and what an interrupt
// leaves.
#include "harness/outputs.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <thread>

#include "harness/interrupt.h"
#include "model/file.h"
#include "tests/temporary_folder.h"

namespace dsv2::harness {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;

/// What a name or a message may hold at worst: every format's own marks, control characters, a non-character.
const std::string kNasty = "a|b,\"c\" <d> & 'e' `f` *g* [h](i) ]]> \x01\x1b[31m \uFFFE é @j #1\nsecond line";

Record record(Status status, const std::string& name) {
  Record r;
  r.name = name;
  r.op = "decoder";
  r.phase = "decode";
  r.backend = "cpu";
  r.dtype = "f32";
  r.batch = 1;
  r.depth = 512;
  r.status = status;
  if (status != Status::passed) r.reason = kNasty;
  r.flops = 1e6;
  r.bytes = Bytes{1000, 100, 10};
  r.tokens = 1;
  r.samples_ns = {3'000'000, 1'000'000, 2'000'000};
  r.share_of_roof = 0.5;
  r.roof = "read bandwidth";
  return r;
}

/// One record of each status; the failed one has two divergences, the first of them with a NaN.
Json report() {
  Report all;
  all.argv = {"dsv2", "check", kNasty};
  all.limits = {.read_bandwidth_gb_s = 10, .peak_f32_gflop_s = 100, .peak_bf16_gflop_s = {}, .peak_int8_gflop_s = {}};
  all.threads = 2;
  all.records = {record(Status::passed, kNasty), record(Status::skipped, "s"), record(Status::error, "e")};
  Record failed = record(Status::skipped, "f");
  for (const double got : {std::numeric_limits<double>::quiet_NaN(), 1.5}) {
    Comparison c;
    c.name = got == 1.5 ? "second tensor" : "full.logits|x";
    c.passed = false;
    c.count = 10;
    c.outside = 1;
    c.worst = {0, 5, 17};
    c.got = got;
    c.want = 1.25;
    c.bound = 0.001;
    c.budget_used = got == 1.5 ? 250 : std::numeric_limits<double>::infinity();
    c.rule = "<= 0.001";
    failed.add(c);
  }
  all.records.push_back(failed);
  return Json::parse(dump(all.to_json()));
}

/// What a command prints.
std::string said_by(const std::string& command) {
  std::FILE* pipe = ::popen(command.c_str(), "r");
  std::string said;
  for (int c; (c = std::fgetc(pipe)) != EOF;) said += static_cast<char>(c);
  ::pclose(pipe);
  return said;
}

/// JUnit XML through a parser that is not ours.
class Junit : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::system("xmllint --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "xmllint is not installed";
  }
  std::string at(const std::string& xml, const std::string& xpath) {
    write_text_file(folder_ / "r.xml", xml);
    std::string text = said_by("xmllint --xpath '" + xpath + "' " + (folder_ / "r.xml").string() + " 2>&1");
    if (text.ends_with('\n')) text.pop_back();
    return text;
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(Junit, EveryStatusHasItsElement) {
  const std::string xml = to_junit(report());
  EXPECT_EQ(at(xml, "count(/testsuites/testsuite/testcase)"), "4");
  EXPECT_EQ(at(xml, "concat(/testsuites/@tests, /testsuites/@failures, /testsuites/@errors, /testsuites/@skipped)"),
            "4111");
  EXPECT_EQ(at(xml, "concat(//testsuite/@name, //testsuite/@failures)"),
            "cpu.f32"
            "1");
  EXPECT_EQ(at(xml, "string(//testcase[failure]/@name)"), "f decode");
  EXPECT_EQ(at(xml, "string(//testcase[skipped]/@name)"), "s decode");
  EXPECT_EQ(at(xml, "string(//testcase[error]/@name)"), "e decode");
  EXPECT_EQ(at(xml, "count(//testcase[@classname=\"cpu.f32\"])"), "4");
  EXPECT_EQ(at(xml, "number(//testcase[1]/@time)"), "0.006") << "the sum of the samples, in seconds";
  EXPECT_EQ(at(xml, "number(//testcase[failure]/@time)"), "0") << "no time without correctness";
  const std::string body = at(xml, "string(//failure)");
  EXPECT_TRUE(body.starts_with("first divergence: full.logits|x[0, 5, 17]: got nan")) << body;
  EXPECT_NE(body.find("then: second tensor"), std::string::npos) << body;
}

TEST_F(Junit, TextIsTextWhateverItHolds) {
  const std::string shown = "a|b,\"c\" <d> & 'e' `f` *g* [h](i) ]]> \uFFFD\uFFFD[31m \uFFFD é @j #1\nsecond line";
  const std::string xml = to_junit(report());
  EXPECT_EQ(at(xml, "string(//testcase[1]/@name)"), shown + " decode");
  EXPECT_EQ(at(xml, "string(//skipped/@message)"), shown);
  EXPECT_EQ(at(xml, "string(//error)"), shown);
}

TEST_F(Junit, NoTestIsNoSuccess) {
  Report nothing;
  nothing.argv = {"dsv2", "check"};
  const std::string xml = to_junit(nothing.to_json());
  EXPECT_EQ(at(xml, "string(/testsuites/@errors)"), "1");
  EXPECT_EQ(at(xml, "string(//error/@message)"), "nothing was checked");
}

TEST_F(Junit, AMissedFaultIsAFailedTest) {
  Report gate;
  gate.argv = {"dsv2", "selftest"};
  Comparison caught;
  caught.name = "layers.0.mlp";
  gate.gate_test = GateTest{.faults = {{"zeros", "linear", "f32", caught, true},
                                       {"stale", "linear", "f32", caught, false},
                                       {"none", "linear", "f32", std::nullopt, false}},
                            .seeds = 1};
  EXPECT_EQ(gate.exit_code(), ExitCode::wrong);
  const std::string xml = to_junit(gate.to_json());
  EXPECT_EQ(at(xml, "concat(//testsuite/@name, //testsuite/@tests, //testsuite/@failures)"),
            "faults.f32"
            "32");
  EXPECT_EQ(at(xml, "string(//testcase[@name=\"linear: none\"]/failure/@message)"), "not caught");
}

/// RFC 4180, strictly: CRLF after each record, quotes doubled within quotes.
std::vector<std::vector<std::string>> parse_csv(const std::string& text) {
  std::vector<std::vector<std::string>> rows(1, std::vector<std::string>(1));
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string& cell = rows.back().back();
    if (text[i] == '"') {
      EXPECT_TRUE(cell.empty()) << "a quote within a cell without quotes";
      for (++i; i < text.size() && !(text[i] == '"' && text[i + 1] != '"'); ++i) {
        cell += text[i];
        if (text[i] == '"') ++i;
      }
      EXPECT_TRUE(text[i + 1] == ',' || text[i + 1] == '\r') << text.substr(i, 20);
    } else if (text[i] == ',') {
      rows.back().emplace_back();
    } else if (text[i] == '\r') {
      EXPECT_EQ(text[++i], '\n');
      if (i + 1 < text.size()) rows.emplace_back(1);
    } else {
      EXPECT_NE(text[i], '\n') << "a bare line end";
      cell += text[i];
    }
  }
  return rows;
}

TEST(Csv, OneRowARecordAndEmptyForNull) {
  const auto rows = parse_csv(to_csv(report()));
  ASSERT_EQ(rows.size(), 5u);
  std::map<std::string, std::size_t> column;
  for (std::size_t i = 0; i < rows[0].size(); ++i) EXPECT_TRUE(column.emplace(rows[0][i], i).second) << rows[0][i];
  for (const auto& row : rows) EXPECT_EQ(row.size(), rows[0].size());
  const auto& passed = rows[1];
  const auto& failed = rows[4];
  EXPECT_EQ(passed[column.at("name")], kNasty);
  EXPECT_EQ(passed[column.at("median_ns")], "2000000.0");
  EXPECT_EQ(passed[column.at("samples")], "3");
  EXPECT_EQ(passed[column.at("bytes_kv")], "100.0");
  EXPECT_EQ(passed[column.at("decode_tokens_per_s")], "500.0");
  EXPECT_EQ(passed[column.at("prompt")], "");
  EXPECT_EQ(passed[column.at("threads")], "2");
  EXPECT_EQ(failed[column.at("status")], "failed");
  EXPECT_EQ(failed[column.at("failures")], "2");
  for (const char* speed : {"median_ns", "decode_tokens_per_s", "gb_s", "share_of_roof", "min_ns"})
    EXPECT_EQ(failed[column.at(speed)], "") << speed;
}

TEST(Csv, HeaderIsTheSameInEveryRun) {
  const std::string some = to_csv(report()), none = to_csv(Report{}.to_json());
  EXPECT_EQ(none, some.substr(0, some.find("\r\n") + 2));
}

/// Cells of a row: pipes without a backslash part them.
std::ptrdiff_t pipes(const std::string& line) {
  std::ptrdiff_t n = 0;
  for (std::size_t i = 0; i < line.size(); ++i) n += line[i] == '|' && (i == 0 || line[i - 1] != '\\');
  return n;
}

TEST(Markdown, VerdictFirstAndTablesWhole) {
  const std::string text = to_markdown(report());
  EXPECT_TRUE(text.starts_with("## FAILED: dsv2 check\n\n1 passed, 1 failed, 1 refused, 1 skipped\n")) << text;
  EXPECT_NE(text.find("| full.logits\\|x | \\[0,5,17] | not finite | 1.25 | not finite | 1 |"), std::string::npos)
      << text;
  EXPECT_NE(text.find("| 500.00 | 2.000 |"), std::string::npos) << text;
  EXPECT_EQ(text.find("<d>"), std::string::npos);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  std::ptrdiff_t columns = 0, tables = 0;
  for (std::size_t from = 0; from < text.size();) {
    const std::string line = text.substr(from, text.find('\n', from) - from);
    from += line.size() + 1;
    if (!line.starts_with('|')) {
      columns = 0;
      continue;
    }
    tables += columns == 0;
    if (columns == 0) columns = pipes(line);
    EXPECT_EQ(pipes(line), columns) << line;
  }
  EXPECT_EQ(tables, 3) << "what failed, how fast, all";
}

TEST(Markdown, FitsIntoACommentWithAThousandFailures) {
  Report all;
  all.argv = {"dsv2", "check"};
  all.records.assign(1000, record(Status::error, "r"));
  const std::string text = to_markdown(all.to_json());
  EXPECT_LT(text.size(), 65536u);
  EXPECT_NE(text.find("and 950 more"), std::string::npos);
}

struct Outcome {
  int code;
  std::string err;
};
Outcome dsv2(const std::string& arguments) {
  const TemporaryFolder folder;
  const std::string err = (folder / "err").string();
  const int status = std::system(concat(DSV2_BINARY, " ", arguments, " >/dev/null 2>", err).c_str());
  return {WEXITSTATUS(status), read_text_file(err)};
}

TEST(Outputs, EveryFormIsWrittenWhateverTheOutcome) {
  const TemporaryFolder folder;
  const auto flags = [&](const std::string& name) {
    std::string all;
    for (const char* form : {"json", "junit", "markdown", "csv"})
      all += concat(" --", form, " ", (folder / (name + "." + form)).string());
    return all;
  };
  const std::string golden = DSV2_SOURCE_DIR "/golden/";
  EXPECT_EQ(dsv2("check " + golden + "cases/top1" + flags("passed")).code, 0);
  EXPECT_EQ(dsv2("check " + golden + "cases --filter no_such_case" + flags("nothing")).code, 4);
  fs::create_directories(folder / "broken");
  write_text_file(folder / "broken/case.json", "{");
  EXPECT_EQ(dsv2("check " + (folder / "broken").string() + flags("refused")).code, 2);
  for (const char* run : {"passed", "nothing", "refused"})
    for (const char* form : {"json", "junit", "markdown", "csv"})
      EXPECT_GT(fs::file_size(folder / concat(run, ".", form)), 100u) << run << form;
}

TEST(Outputs, OneFormAtMostOnStdout) {
  const std::string bench = "bench --preset tiny-mla --prompt 4 --generate 1 --repetitions 1 ";
  EXPECT_EQ(dsv2(bench + "--csv -").code, 0);
  const Outcome two = dsv2(bench + "--csv - --junit -");
  EXPECT_EQ(two.code, 2);
  EXPECT_EQ(two.err, "dsv2: --junit and --csv: expected two places, found stdout for both\n");
  const TemporaryFolder folder;
  const std::string same = (folder / "same").string();
  EXPECT_EQ(dsv2(bench + "--csv " + same + " --markdown " + same).code, 2);
  EXPECT_EQ(dsv2(bench + "--csv " + folder.path().string()).code, 2);
  EXPECT_EQ(dsv2(bench + "--csv /dev/null/x").code, 2);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

// Of /dev/null the same holds; a FIFO is what a test may lose.
TEST(Outputs, AFifoIsWrittenToAndNotReplaced) {
  const TemporaryFolder folder;
  const fs::path fifo = folder / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  std::thread reader([&] { EXPECT_TRUE(said_by("cat " + fifo.string()).starts_with("{")); });
  write_output(fifo, "{}");
  reader.join();
  EXPECT_TRUE(fs::is_fifo(fifo));
}

/// Runs `work` in a child process that SIGINT ends; how it ended.
template <class Work>
int interrupted(Work work) {
  const pid_t child = ::fork();
  if (child == 0) {
    clean_up_when_interrupted();
    work();
    ::raise(SIGINT);
    std::this_thread::sleep_for(std::chrono::seconds(20));
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

TEST(Interrupt, LeavesNoHalfWrittenFile) {
  const TemporaryFolder folder;
  write_text_file(folder / "report.json", "the one before");
  const int status = interrupted([&] {
    auto* file = new AtomicFile(folder / "report.json");  // never ended: the signal comes while it is written
    file->write("half", 4);
    auto* copy = new TemporaryPath(folder / "copy");
    fs::create_directories(copy->path() / "below");
    write_text_file(copy->path() / "below/file", "text");
  });
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT) << status;
  EXPECT_EQ(read_text_file(folder / "report.json"), "the one before");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(Interrupt, OfTheCommandLeavesNothingAndIsSeenByTheShell) {
  const TemporaryFolder folder;
  const std::string json = (folder / "r.json").string(), xml = (folder / "r.xml").string();
  const pid_t child = ::fork();
  if (child == 0) {
    [[maybe_unused]] const auto* quiet = std::freopen("/dev/null", "w", stdout);
    ::execl(DSV2_BINARY, DSV2_BINARY, "bench", "--preset", "tiny-mla", "--generate", "100000", "--repetitions", "1000",
            "--prompt", "0", "--depth", "0", "--json", json.c_str(), "--junit", xml.c_str(), nullptr);
    ::_exit(127);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  ASSERT_EQ(::kill(child, SIGINT), 0);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT) << status;
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

}  // namespace
}  // namespace dsv2::harness
