#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <regex>

#include "harness/backends.h"
#include "harness/command.h"
#include "harness/error_sets.h"
#include "harness/flags.h"
#include "harness/golden_case.h"
#include "harness/outputs.h"
#include "harness/report.h"
#include "harness/run_case.h"
#include "harness/table.h"

namespace dsv2::harness {
namespace {

namespace fs = std::filesystem;

struct CheckFlags {
  std::vector<std::string> paths;
  BackendFlags backend;
  std::vector<std::string> dtypes{"f32"};
  std::string filter;
  OutputFlags outputs;
  bool no_taps = false, verbose = false;
};

/// Folders with a case.json or an expectations.json at or below `path`, in order of name.
void discover(const fs::path& path, std::vector<fs::path>& cases, std::vector<fs::path>& sets) {
  DSV2_CHECK(fs::exists(path), path.string(), ": no such file or folder");
  const fs::path folder = fs::is_directory(path) ? path : path.parent_path();
  if (!fs::is_directory(path)) {
    const fs::path file = path.filename();
    DSV2_CHECK(file == "case.json" || file == "expectations.json", path.string(),
               ": expected a folder, a case.json or an expectations.json");
  }
  if (fs::exists(folder / "case.json")) return cases.push_back(folder);
  if (fs::exists(folder / "expectations.json")) return sets.push_back(folder);
  std::vector<fs::path> below;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_directory()) below.push_back(entry.path());
  std::sort(below.begin(), below.end());
  for (const fs::path& p : below) discover(p, cases, sets);
}

std::regex parse_filter(const std::string& text) {
  try {
    return std::regex(text);
  } catch (const std::regex_error& e) {
    fail("--filter: expected a regular expression, found ", text, ": ", e.what());
  }
}

/// Error sets are many small entries: one line a set and backend, and one for each entry that failed.
void print_table(const std::vector<Record>& records, bool verbose, std::ostream& out) {
  Table table({"case", "phase", "backend", "dtype", "status", "tensors", "budget", "worst"});
  std::map<std::pair<std::string, std::string>, std::array<int, 2>> sets;  // (set, backend) -> passed, all
  for (const Record& r : records) {
    const bool entry = r.op != "decoder";
    if (entry) {
      auto& [passed, all] = sets[{r.name.substr(0, r.name.find('/')), r.backend}];
      passed += r.status == Status::passed;
      ++all;
      if (r.status == Status::passed && !verbose) continue;
    }
    table.add({r.name, r.phase, r.backend, r.dtype, std::string(name(r.status)), std::to_string(r.compared),
               r.compared ? percent(r.budget_used) : "", entry ? r.coverage.substr(0, 80) : r.worst});
  }
  for (const auto& [key, counts] : sets)
    table.add({key.first + "/", "", key.second, "", counts[0] == counts[1] ? "passed" : "failed",
               concat(counts[0], " of ", counts[1]), "", "entries that behave as expected"});
  table.print(out);
  for (const Record& r : records) {
    if (r.status == Status::passed) continue;
    out << '\n'
        << name(r.status) << ": " << r.name << (r.phase.empty() ? "" : " ") << r.phase << " on " << r.backend << '\n';
    out << (r.failures.empty() ? "  " : "  first divergence: ") << r.reason << '\n';
    if (r.failures.size() > 1) out << "  and " << r.failures.size() - 1 << " tensors after it\n";
  }
}

int run(const CheckFlags& flags) {
  std::vector<fs::path> cases, sets;
  for (const std::string& p : flags.paths) discover(p, cases, sets);
  const std::regex filter = parse_filter(flags.filter);
  const auto wanted = [&](std::string_view n) {
    return flags.filter.empty() || std::regex_search(n.begin(), n.end(), filter);
  };
  const std::vector<const Backend*> chosen = flags.backend.backends();

  Report report;
  report.argv = command_line();
  report.threads = flags.backend.thread_count();
  report.limits = measure_limits(report.threads);
  ProgressLine progress("check");
  std::size_t done = 0;
  for (const fs::path& folder : cases) {
    progress.show(++done, cases.size(), folder.filename().string());
    if (!wanted(folder.filename().string()) && !wanted(folder.string())) continue;
    std::optional<GoldenCase> golden;
    try {
      golden = GoldenCase::load(folder);
    } catch (const Error& e) {
      Record r;
      r.name = folder.filename().string();
      r.op = "decoder";
      r.status = Status::error;
      r.reason = e.what();
      report.records.push_back(std::move(r));
      continue;
    }
    for (const std::string& dtype : flags.dtypes)
      for (const Backend* backend : chosen) {
        CaseOptions options{flags.backend.options(dtype), !flags.no_taps};
        for (Record& r : run_case(*golden, *backend, options)) report.records.push_back(std::move(r));
      }
  }
  for (const fs::path& folder : sets) {
    progress.show(1, 1, folder.filename().string());
    for (Record& r : run_error_set(folder, chosen, flags.backend.options("f32"), wanted))
      report.records.push_back(std::move(r));
  }
  progress.clear();

  flags.outputs.write(report.to_json());
  std::ostream& out = flags.outputs.text();
  print_table(report.records, flags.verbose, out);
  const auto count = [&](Status s) {
    return std::count_if(report.records.begin(), report.records.end(), [&](const Record& r) { return r.status == s; });
  };
  out << '\n'
      << count(Status::passed) << " passed, " << count(Status::failed) << " failed, " << count(Status::error)
      << " refused, " << count(Status::skipped) << " skipped";
  const std::string files = flags.outputs.files();
  out << (files.empty() ? "" : "; ") << files << '\n';
  const ExitCode code = report.exit_code();
  if (code == ExitCode::bad_input)
    for (const Record& r : report.records)
      if (r.status == Status::error) std::cerr << "dsv2: " << r.reason << '\n';
  if (code == ExitCode::nothing_checked) std::cerr << "dsv2: nothing was checked\n";
  return static_cast<int>(code);
}

}  // namespace

void add_check(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<CheckFlags>();
  CLI::App* sub =
      app.add_subcommand("check", "Hold backends against golden cases, and bad input against what must be refused");
  sub->add_option("path", flags->paths, "A case, a set of cases or an error set, from anywhere (default: golden)");
  flags->backend.add_to(*sub, "reference,cpu");
  sub->add_option("--dtype", flags->dtypes, "Of matrices and their arithmetic: f32, bf16 (default f32)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->default_str("f32");
  sub->add_option("--filter", flags->filter, "Only cases and entries whose name matches this regular expression");
  flags->outputs.add_to(*sub);
  sub->add_flag("--no-taps", flags->no_taps, "Leave out the comparison of each op alone");
  sub->add_flag("-v,--verbose", flags->verbose, "List every entry of the error sets");
  sub->callback([flags, &code] {
    if (flags->paths.empty()) flags->paths.push_back(default_golden_folder());
    code = static_cast<ExitCode>(run(*flags));
  });
}

}  // namespace dsv2::harness
