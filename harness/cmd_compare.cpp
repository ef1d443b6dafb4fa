#include <CLI/CLI.hpp>
#include <array>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>

#include "harness/command.h"
#include "harness/compare_runs.h"
#include "harness/flags.h"
#include "harness/modelled.h"
#include "harness/process.h"
#include "harness/table.h"
#include "model/file.h"

namespace dsv2::harness {
namespace {

namespace fs = std::filesystem;

struct CompareFlags {
  std::vector<std::string> words;                // two reports, or what `bench` takes
  std::pair<std::string, std::string> binaries;  // A and B; a pair: CLI11 lets a vector eat the -- that follows
  std::string max_regression = "5%", filter, json, markdown;
  int rounds = 0;
  bool modelled = false;
  std::optional<std::uint64_t> seed;
};

constexpr int kRounds = 8;

CompareOptions parse_options(const CompareFlags& flags) {
  CompareOptions options;
  options.rules.max_regression = parse_share(flags.max_regression, "--max-regression");
  try {
    if (!flags.filter.empty()) options.filter = std::regex(flags.filter);
  } catch (const std::regex_error& e) {
    fail("--filter: expected a regular expression, found ", flags.filter, ": ", e.what());
  }
  return options;
}

/// A folder for what the children write, removed with everything in it.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (fs::temp_directory_path() / "dsv2-compare-XXXXXX").string();
    DSV2_CHECK(::mkdtemp(name.data()), name, ": cannot be made");
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  fs::path operator/(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

/// Two binaries in turns, ABBA or BAAB for each two rounds as drawn: neither side has the earlier, quieter or warmer
/// half.
class Interleaving {
 public:
  Interleaving(const CompareFlags& flags, std::uint64_t seed)
      : binaries_{flags.binaries.first, flags.binaries.second},
        arguments_(flags.words),
        rounds_(flags.rounds ? flags.rounds : kRounds) {
    std::mt19937_64 engine(seed);
    for (int round = 0; round < rounds_; ++round) {
      if (round % 2 == 0)
        order_ += engine() % 2 ? "AB" : "BA";
      else
        order_ += {order_[order_.size() - 1], order_[order_.size() - 2]};
    }
  }

  const std::string& order() const { return order_; }
  int rounds() const { return rounds_; }
  bool wrong() const { return wrong_; }  ///< a child failed its check

  /// Reports of all rounds of each side; fewer when a child fails its check. Throws Error when one does not run.
  std::array<std::vector<Json>, 2> run() {
    const SignalsHeld signals;
    const ScratchFolder scratch;
    std::array<std::vector<Json>, 2> reports;
    ProgressLine progress("compare");
    for (std::size_t i = 0; i < order_.size(); ++i) {
      const std::size_t side = order_[i] == 'A' ? 0 : 1;
      progress.show(i, order_.size(), concat("runs; now ", order_[i], ": ", binaries_[side]));
      if (wrong_ && !reports[side].empty()) continue;  // nothing more to learn; but each side is to be heard once
      reports[side].push_back(child(side, scratch, signals, progress));
    }
    return reports;
  }

 private:
  Json child(std::size_t side, const ScratchFolder& scratch, const SignalsHeld& signals, ProgressLine& progress) {
    const std::string& binary = binaries_[side];
    const fs::path report = scratch / "report.json", out = scratch / "out", err = scratch / "err";
    fs::remove(report);
    std::vector<std::string> argv = {binary, "bench"};
    argv.insert(argv.end(), arguments_.begin(), arguments_.end());
    argv.insert(argv.end(), {"--json", report.string()});
    const ChildExit end = run_child(argv, out, err, signals);
    const std::string said = read_text_file(err);
    if (end.code || end.signal) {
      progress.clear();
      std::cerr << said << (said.empty() || said.ends_with('\n') ? "" : "\n");
    }
    const std::string who = concat(binary, " bench: ");
    if (end.signal) {
      wrong_ = true;
      throw Crashed{concat(who, describe(end))};
    }
    const auto code = static_cast<ExitCode>(end.code);
    DSV2_CHECK(code == ExitCode::passed || code == ExitCode::wrong || code == ExitCode::nothing_checked, who,
               describe(end), said.empty() ? "" : ", see above");
    DSV2_CHECK(fs::exists(report), who, "expected a report, found none: is this dsv2?");
    Json json = read_report(report);
    if (code == ExitCode::wrong) {
      wrong_ = true;
      for (const Json& record : json.at("records"))
        if (record.at("status") == "failed")
          std::cerr << "dsv2: " << binary << ": " << record.at("name").get<std::string>()
                    << ": failed: " << (record.at("reason").is_string() ? record.at("reason").get<std::string>() : "")
                    << '\n';
    }
    return json;
  }

 public:
  /// Thrown when a child ends by a signal of its own: that is wrong, not bad input.
  struct Crashed {
    std::string message;
  };

 private:
  std::array<std::string, 2> binaries_;
  std::vector<std::string> arguments_;
  int rounds_;
  std::string order_;
  bool wrong_ = false;
};

/// Why nothing was compared, in one line.
std::string nothing_compared(const CompareFlags& flags, const RunComparison& c) {
  const auto example = [&](bool of_base) -> std::string {
    for (const ComparedRow& row : c.rows)
      if (of_base ? row.base_status : row.next_status) return row.name;
    return "no record";
  };
  const std::string both = concat(c.base.label, " and ", c.next.label);
  if (c.rows.empty()) return concat(both, " have no record", flags.filter.empty() ? "" : " whose name --filter finds");
  if (!c.any_common())
    return concat(both, " have no record in common: one has ", example(true), ", the other ", example(false));
  return concat("no record is passed in both ", both);
}

int finish(const CompareFlags& flags, const RunComparison& c, ExitCode code) {
  Json json = c.to_json(command_line());
  json["exit_code"] = static_cast<int>(code);
  if (!flags.json.empty()) write_output(flags.json, json.dump(1) + "\n");
  if (!flags.markdown.empty()) {
    std::ostringstream text;
    c.print_markdown(text);
    write_output(flags.markdown, text.str());
  }
  if (c.any_common()) c.print(flags.json == "-" || flags.markdown == "-" ? std::cerr : std::cout);
  if (code == ExitCode::nothing_checked)
    std::cerr << "dsv2: nothing was compared: " << nothing_compared(flags, c) << '\n';
  return static_cast<int>(code);
}

int compare_files(const CompareFlags& flags) {
  DSV2_CHECK(flags.words.size() == 2, "compare: expected two reports, BASE.json NEW.json, found ", flags.words.size());
  const CompareOptions options = parse_options(flags);
  const Json base = read_report(flags.words[0]), next = read_report(flags.words[1]);
  const RunComparison c = compare_runs(base, flags.words[0], next, flags.words[1], options);
  return finish(flags, c, c.exit_code());
}

/// Nothing is judged: a model that is off says something of the model.
int compare_with_model(const CompareFlags& flags) {
  DSV2_CHECK(flags.words.size() == 2, "compare: expected two reports, MODELLED.json MEASURED.json, found ",
             flags.words.size());
  const Json rows = beside_measured(read_report(flags.words[0]), read_report(flags.words[1]));
  if (!flags.json.empty()) write_output(flags.json, Json{{"argv", command_line()}, {"rows", rows}}.dump(1) + "\n");
  if (rows.empty()) {
    std::cerr << "dsv2: nothing was compared: no modelled record of " << flags.words[0] << " is in " << flags.words[1]
              << '\n';
    return static_cast<int>(ExitCode::nothing_checked);
  }
  print_beside_measured(rows, flags.json == "-" ? std::cerr : std::cout);
  return static_cast<int>(ExitCode::passed);
}

int interleave(const CompareFlags& flags) {
  CompareOptions options = parse_options(flags);
  options.rules.rounds = true;
  for (const std::string& word : flags.words)
    DSV2_CHECK(word != "--json" && !word.starts_with("--json="),
               "compare --interleave: --json goes before --, not to bench");
  check_executable(flags.binaries.first);
  check_executable(flags.binaries.second);
  const std::uint64_t seed = flags.seed ? *flags.seed : std::random_device{}();
  Interleaving turns(flags, seed);
  std::cerr << "order " << turns.order() << " (--seed " << seed << ")\n";
  try {
    const auto reports = turns.run();
    RunComparison c = compare_runs(pool_rounds(reports[0]), flags.binaries.first, pool_rounds(reports[1]),
                                   flags.binaries.second, options);
    c.interleave = {{"rounds", turns.rounds()}, {"seed", seed}, {"order", turns.order()}};
    return finish(flags, c, turns.wrong() ? ExitCode::wrong : c.exit_code());
  } catch (const Interleaving::Crashed& crash) {
    std::cerr << "dsv2: " << crash.message << '\n';
    return static_cast<int>(ExitCode::wrong);
  } catch (const Interrupted& interrupted) {
    std::cerr << "dsv2: interrupted: nothing was written\n";
    die_of(interrupted);
  }
}

}  // namespace

void add_compare(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<CompareFlags>();
  CLI::App* sub = app.add_subcommand(
      "compare", "Is NEW right where BASE was, and is it slower? Two reports, or two binaries in turns");
  sub->footer("dsv2 compare BASE.json NEW.json, or dsv2 compare --interleave BIN_A BIN_B [OPTIONS] -- ARGS of bench");
  sub->add_option("words", flags->words, "BASE.json NEW.json, as check or bench wrote them with --json");
  sub->add_option("--interleave", flags->binaries, "Run `bench` of two dsv2 binaries in turns, A as the base")
      ->allow_extra_args(false);
  sub->add_flag("--modelled", flags->modelled, "BASE is of cuda-sim, NEW of a GPU: modelled times beside measured ones")
      ->excludes("--interleave");
  sub->add_option("--rounds", flags->rounds, concat("Runs of each binary (default ", kRounds, "; at least 6)"))
      ->check(CLI::Range(6, 1000))
      ->needs("--interleave");
  sub->add_option("--seed", flags->seed, "Of the order in which they run (default: drawn and printed)")
      ->needs("--interleave");
  sub->add_option("--max-regression", flags->max_regression, "A row SLOWER by more gives exit code 3 (default 5%)");
  sub->add_option("--filter", flags->filter, "Only rows whose name matches this regular expression");
  sub->add_option("--json", flags->json, "Write the comparison here (-: stdout)");
  sub->add_option("--markdown", flags->markdown, "Write a Markdown table here (-: stdout)");
  sub->callback([flags, &code] {
    DSV2_CHECK(flags->json != "-" || flags->markdown != "-", "compare: --json and --markdown cannot both go to stdout");
    if (flags->modelled) {
      code = static_cast<ExitCode>(compare_with_model(*flags));
      return;
    }
    code = static_cast<ExitCode>(flags->binaries.first.empty() ? compare_files(*flags) : interleave(*flags));
  });
}

}  // namespace dsv2::harness
