#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <regex>

#include "harness/backends.h"
#include "harness/bisect.h"
#include "harness/command.h"
#include "harness/error_sets.h"
#include "harness/flags.h"
#include "harness/golden_case.h"
#include "harness/metamorphic.h"
#include "harness/ocr_task.h"
#include "harness/outputs.h"
#include "harness/report.h"
#include "harness/run_case.h"
#include "harness/run_op.h"
#include "harness/table.h"

namespace dsv2::harness {
namespace {

namespace fs = std::filesystem;

struct CheckFlags {
  std::vector<std::string> paths;
  BackendFlags backend;
  std::vector<std::string> dtypes, ops;
  std::string task;
  ModelFlags model;
  std::string filter;
  OutputFlags outputs;
  bool no_taps = false, bisect = false, metamorphic = false, verbose = false;
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

/// Error sets are many small entries: one line a set and backend, and one for each entry that failed.
void print_table(std::span<const Record> records, bool verbose, std::ostream& out) {
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

/// What `read` returns; a case that cannot be read becomes a record of status error.
template <class Read>
auto load(const fs::path& folder, Report& report, Read&& read) -> std::optional<decltype(read())> {
  try {
    return read();
  } catch (const Error& e) {
    Record& r = report.records.emplace_back();
    r.name = folder.filename().string();
    r.op = "decoder";
    r.status = Status::error;
    r.reason = e.what();
    return std::nullopt;
  }
}

/// What check ends with, whatever it did.
int finish(const Report& report) {
  const ExitCode code = report.exit_code();
  if (code == ExitCode::bad_input)
    for (const Record& r : report.records)
      if (r.status == Status::error) std::cerr << "dsv2: " << r.reason << '\n';
  if (code == ExitCode::nothing_checked) std::cerr << "dsv2: nothing was checked\n";
  return static_cast<int>(code);
}

/// How many passed, and what else a run ends with.
int conclude(const CheckFlags& flags, const Report& report, std::ostream& out) {
  const auto count = [&](Status s) {
    return std::count_if(report.records.begin(), report.records.end(), [&](const Record& r) { return r.status == s; });
  };
  out << '\n'
      << count(Status::passed) << " passed, " << count(Status::failed) << " failed, " << count(Status::error)
      << " refused, " << count(Status::skipped) << " skipped";
  const std::string files = flags.outputs.files();
  out << (files.empty() ? "" : "; ") << files << '\n';
  return finish(report);
}

using Wanted = std::function<bool(std::string_view)>;

/// --op: single ops, from the table of op cases.
int run_ops(const CheckFlags& flags) {
  const std::regex filter = parse_filter(flags.filter);
  const std::vector<OpCase> cases = chosen_cases(
      {flags.ops, flags.dtypes, [&](std::string_view n) { return std::regex_search(n.begin(), n.end(), filter); }});
  const std::vector<const Backend*> chosen = flags.backend.backends();
  Report report;
  report.argv = command_line();
  report.seed = flags.model.seed();
  report.threads = flags.backend.thread_count();
  std::ostream& out = flags.outputs.text();
  out << "seed " << *report.seed << '\n';
  ProgressLine progress("check");
  for (std::size_t i = 0; i < cases.size(); ++i) {
    progress.show(i, cases.size(), cases[i].op);
    OpRun run(cases[i], *report.seed);
    for (const Backend* backend : chosen) report.records.push_back(run.on(*backend, flags.backend.options("f32")));
  }
  progress.clear();
  flags.outputs.write(report.to_json());
  print_op_table(report.records, flags.verbose, out);
  return conclude(flags, report, out);
}

/// The properties of the model of --preset or --model, else of two small ones, on every backend.
void add_metamorphic(const CheckFlags& flags, const Wanted& wanted, Report& report) {
  const auto check = [&](const std::string& label, const Config& config, const std::shared_ptr<const Weights>& weights,
                         const std::string& dtype) {
    const Options options = flags.backend.options(dtype);
    for (const Backend* backend : flags.backend.backends()) {
      const Subject subject = subject_of(*backend, label, config, weights, flags.model.seed(), options);
      for (Record& r : check_metamorphic(subject, wanted)) report.records.push_back(std::move(r));
    }
  };
  for (const std::string& dtype : flags.dtypes) {
    const DType stored = parse_dtype_flag(dtype, "--dtype");
    if (flags.model.given()) {
      const Config config = flags.model.config();
      check(flags.model.label(), config, flags.model.weights(config, stored), dtype);
      continue;
    }
    for (const char* preset : {"tiny-mha", "tiny-mla"}) {
      const Config config = Config::preset(preset);
      check(preset, config, Weights::random(config, flags.model.seed(), stored), dtype);
    }
  }
}

/// --metamorphic
int run_metamorphic(const CheckFlags& flags) {
  const std::regex filter = parse_filter(flags.filter);
  Report report;
  report.argv = command_line();
  report.threads = flags.backend.thread_count();
  report.limits = measure_limits(report.threads);
  report.seed = flags.model.seed();
  add_metamorphic(
      flags, [&](std::string_view n) { return std::regex_search(n.begin(), n.end(), filter); }, report);
  flags.outputs.write(report.to_json());
  std::ostream& out = flags.outputs.text();
  out << "seed " << flags.model.seed() << '\n';
  print_metamorphic(report.records, true, out);
  return finish(report);
}

/// --task ocr: what the models of golden/tiny_ocr, or that of --model, read of held-out pictures.
int run_task(const CheckFlags& flags) {
  std::vector<Options> every;
  for (const std::string& dtype : flags.dtypes) every.push_back(flags.backend.options(dtype));
  Report report;
  report.argv = command_line();
  report.threads = flags.backend.thread_count();
  const OcrPlaces places = ocr_places(default_golden_folder(), flags.model.model(), flags.paths);
  for (const fs::path& sets : places.sets)
    for (Record& r : run_ocr_task(places.models, sets, flags.backend.backends(), every, load_weights, check_ocr))
      report.records.push_back(std::move(r));
  flags.outputs.write(report.to_json());
  std::ostream& out = flags.outputs.text();
  print_ocr(report.records, flags.verbose, out);
  return conclude(flags, report, out);
}

/// --bisect: a record and a table for each case (or the model), dtype and backend, and one line at the end.
int run_bisect(const CheckFlags& flags) {
  Report report;
  report.argv = command_line();
  report.threads = flags.backend.thread_count();
  report.limits = measure_limits(report.threads);
  std::ostream& out = flags.outputs.text();
  std::vector<Bisected> all;
  const auto judge = [&](const BisectWork& work, const std::string& dtype) {
    for (const Backend* backend : flags.backend.backends()) {
      all.push_back(bisect_on(*backend, work, flags.backend.options(dtype)));
      print_bisection(all.back(), flags.verbose, out);
      report.records.push_back(all.back().record);
    }
  };
  if (flags.model.given()) {
    report.seed = flags.model.seed();
    const Config config = flags.model.config();
    for (const std::string& dtype : flags.dtypes)
      judge(bisect_work(flags.model.label(), config, flags.model.weights(config, parse_dtype_flag(dtype, "--dtype")),
                        flags.model.seed()),
            dtype);
  } else {
    std::vector<fs::path> cases, sets;
    for (const std::string& p : flags.paths) discover(p, cases, sets);
    const std::regex filter = parse_filter(flags.filter);
    for (const fs::path& folder : cases) {
      if (!std::regex_search(folder.string(), filter)) continue;
      const auto work = load(folder, report, [&] { return bisect_work(GoldenCase::load(folder)); });
      for (const std::string& dtype : flags.dtypes)
        if (work) judge(*work, dtype);
    }
  }
  flags.outputs.write(report.to_json());
  out << verdict(all) << '\n';
  return finish(report);
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
    const auto golden = load(folder, report, [&] { return GoldenCase::load(folder); });
    if (!golden) continue;
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
  const std::size_t golden_records = report.records.size();
  if (flags.metamorphic) {
    report.seed = flags.model.seed();
    add_metamorphic(flags, wanted, report);
  }

  flags.outputs.write(report.to_json());
  std::ostream& out = flags.outputs.text();
  const std::span<const Record> all = report.records;
  print_table(all.first(golden_records), flags.verbose, out);
  if (golden_records < all.size()) {
    out << "\nthe same asked in two ways, seed " << flags.model.seed() << '\n';
    print_metamorphic(all.subspan(golden_records), flags.verbose, out);
  }
  return conclude(flags, report, out);
}

}  // namespace

void add_check(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<CheckFlags>();
  CLI::App* sub =
      app.add_subcommand("check", "Hold backends against golden cases, and bad input against what must be refused");
  sub->add_option("path", flags->paths, "A case, a set of cases or an error set, from anywhere (default: golden)");
  flags->backend.add_to(*sub, "reference,cpu");
  sub->add_option("--dtype", flags->dtypes, "Of matrices: f32, bf16, int8, int4 (default f32; with --op: all)")
      ->delimiter(',')
      ->allow_extra_args(false);
  sub->add_option("--op", flags->ops, "Single ops instead, on drawn inputs: " + known_ops() + "; all")
      ->delimiter(',')
      ->allow_extra_args(false);
  sub->add_option(
         "--task", flags->task,
         "ocr: character errors of the models of golden/tiny_ocr (or --model) on held-out pictures; a path is a "
         "folder of such sets (default dtypes: all; backend: cpu)")
      ->check(CLI::IsMember({"ocr"}));
  sub->add_option("--filter", flags->filter, "Only cases and entries whose name matches this regular expression");
  flags->outputs.add_to(*sub);
  sub->add_flag("--no-taps", flags->no_taps, "Leave out the comparison of each op alone");
  sub->add_flag("--bisect", flags->bisect,
                "Where does a decoder first go wrong? Each op against the double reference, alone and accumulated, for "
                "the cases given or the model of --model or --preset");
  sub->add_flag(
      "--metamorphic", flags->metamorphic,
      "What must hold without golden data: the same asked in two ways. Of tiny-mha and tiny-mla, or the model "
      "of --model or --preset");
  flags->model.add_to(*sub, true);
  sub->add_flag("-v,--verbose", flags->verbose,
                "List every entry of the error sets, every op of --bisect, every property");
  sub->callback([flags, sub, &code] {
    DSV2_CHECK(
        flags->ops.empty() || (!flags->bisect && !flags->metamorphic && !flags->model.given() && flags->paths.empty()),
        "--op: expected without a path, --model, --preset, --bisect and --metamorphic, found one of them");
    DSV2_CHECK(flags->ops.empty() || flags->task.empty(), "--op, --task: expected one of them, found both");
    if (!flags->ops.empty()) return void(code = static_cast<ExitCode>(run_ops(*flags)));
    if (!flags->task.empty()) {
      DSV2_CHECK(!flags->bisect && !flags->metamorphic,
                 "--task: expected without --bisect and --metamorphic, found one");
      DSV2_CHECK(!flags->model.given() || !flags->model.random(), "--task: expected --model, found --preset");
      if (flags->dtypes.empty()) flags->dtypes = {"f32", "bf16", "int8", "int4"};
      if (sub->count("--backend") == 0) flags->backend.leave_out("reference");
      return void(code = static_cast<ExitCode>(run_task(*flags)));
    }
    if (flags->model.given()) flags->dtypes = flags->model.dtypes(flags->dtypes, flags->model.config(), "f32");
    if (flags->dtypes.empty()) flags->dtypes.emplace_back("f32");
    DSV2_CHECK(!flags->model.given() || flags->bisect || flags->metamorphic,
               "--model, --preset: expected with --bisect or --metamorphic, found neither");
    DSV2_CHECK(!flags->metamorphic || (!flags->bisect && flags->paths.empty()),
               "--metamorphic: expected without a path and --bisect, found ", flags->bisect ? "--bisect" : "a path");
    if (flags->metamorphic) return void(code = static_cast<ExitCode>(run_metamorphic(*flags)));
    DSV2_CHECK(!flags->model.given() || flags->paths.empty(), "--model, --preset: expected without a path, found both");
    if (flags->paths.empty()) {
      flags->paths.push_back(default_golden_folder());
      flags->metamorphic = true;
    }
    if (flags->bisect && sub->count("--backend") == 0) flags->backend.leave_out("reference");
    code = static_cast<ExitCode>(flags->bisect ? run_bisect(*flags) : run(*flags));
  });
}

}  // namespace dsv2::harness
