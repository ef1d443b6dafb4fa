#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <regex>
#include <set>

#include "harness/backends.h"
#include "harness/bench_decoder.h"
#include "harness/bench_op.h"
#include "harness/blocks.h"
#include "harness/command.h"
#include "harness/flags.h"
#include "harness/memory_needs.h"
#include "harness/modelled.h"
#include "harness/ocr_bench.h"
#include "harness/outputs.h"
#include "harness/pinning.h"
#include "harness/ranges.h"
#include "harness/report.h"
#include "harness/table.h"
#include "harness/trace.h"
#include "model/cost.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

struct BenchFlags {
  std::string device;  ///< of a simulated backend; empty: its default
  ModelFlags model;
  BackendFlags backend;
  std::vector<std::string> dtypes, ops;
  std::string task;
  std::string prompt = "512", depth, batch = "1", noise, filter;
  std::int64_t generate = 64;
  std::optional<std::int64_t> repetitions, min_samples;
  std::optional<double> time_budget;
  std::optional<std::string> relative_error;
  OutputFlags outputs;
  bool list = false, pin = false, cold = false, bars = false;
};

/// Rows of one decoder: one backend, one set of options.
struct Group {
  const Backend* backend;
  Options options;
  std::vector<DecoderRow> rows;
};

/// How many times everything is measured.
int block_count(const BenchFlags& flags) {
  if (flags.noise.empty()) return 1;
  const std::vector<std::int64_t> n = parse_range(flags.noise, "--noise");
  DSV2_CHECK(n.size() == 1 && n[0] >= 3 && n[0] <= 100, "--noise: expected 3 to 100 repeats, found ", flags.noise);
  return static_cast<int>(n[0]);
}

DecoderBenchOptions bench_options(const BenchFlags& flags) {
  DecoderBenchOptions bench{.seed = flags.model.seed(), .generate = flags.generate, .timing = {}};
  TimingOptions& timing = bench.timing;
  timing.cold = flags.cold;
  if (flags.repetitions) {
    DSV2_CHECK(!flags.relative_error && !flags.min_samples && !flags.time_budget,
               "--repetitions: a fixed number, so --relative-error, --min-samples and --time-budget do not apply");
    timing.fixed_samples = *flags.repetitions;
  }
  if (flags.relative_error) timing.relative_error = parse_share(*flags.relative_error, "--relative-error");
  DSV2_CHECK(timing.relative_error > 0 && timing.relative_error < 1,
             "--relative-error: expected a share above 0 and below 100%, found ", flags.relative_error.value_or(""));
  if (flags.min_samples) timing.min_samples = *flags.min_samples;
  if (flags.time_budget) timing.budget_s = *flags.time_budget;
  DSV2_CHECK(timing.budget_s > 0 && timing.budget_s < 1e6, "--time-budget: expected seconds above 0, found ",
             timing.budget_s);
  timing.budget_s /= block_count(flags);
  return bench;
}

/// Backends for which --threads adds no rows.
bool one_thread(const Backend& backend) { return backend.name == reference::backend().name; }

/// Every row that the flags ask for, once, the decoders in order of dtype; only names that match --filter.
std::vector<Group> plan(const BenchFlags& flags, const Config& config) {
  const auto prompts = parse_range(flags.prompt, "--prompt"), batches = parse_range(flags.batch, "--batch");
  const auto depths =
      flags.depth.empty() ? std::vector<std::int64_t>{prompts.back()} : parse_range(flags.depth, "--depth");
  for (const std::int64_t b : batches) DSV2_CHECK(b >= 1, "--batch: expected at least 1, found ", b);
  const std::regex filter = parse_filter(flags.filter);
  std::vector<Group> groups;
  std::set<std::string> names;
  const auto add = [&](Group& group, DecoderRow row) {
    row.backend = group.backend;
    row.options = group.options;
    row.name = decoder_row_name(flags.model.label(), row, flags.backend.threads_given() && !one_thread(*group.backend),
                                flags.cold);
    if (std::regex_search(row.name, filter) && names.insert(row.name).second) group.rows.push_back(std::move(row));
  };
  for (const std::string& dtype : flags.model.dtypes(flags.dtypes, config, "bf16"))
    for (const Backend* backend : flags.backend.backends())
      for (Options options : flags.backend.every_options(dtype)) {
        if (one_thread(*backend)) options.threads = flags.backend.thread_count();
        Group group{backend, options, {}};
        for (const std::int64_t b : batches) {
          for (const std::int64_t p : prompts)
            if (p > 0) add(group, {.batch = b, .prompt = p});
          for (const std::int64_t d : depths)
            if (flags.generate > 0) add(group, {.batch = b, .depth = d});
        }
        if (!group.rows.empty()) groups.push_back(std::move(group));
      }
  return groups;
}

void print_all_modelled(const std::vector<Record>& records, std::ostream& out) {
  for (const Record& r : records) {
    if (r.modelled.is_null()) continue;
    out << '\n' << r.name << ", ";
    print_modelled(r.modelled, out);
  }
}

/// The report's exit code, but that of a wrong result where --bars asks for bars and one is missed.
ExitCode exit_code(const BenchFlags& flags, const Report& report) {
  const ExitCode code = report.exit_code();
  if (code == ExitCode::nothing_checked) std::cerr << "dsv2: nothing was measured\n";
  if (!flags.bars || code != ExitCode::passed) return code;
  const bool met = std::all_of(report.records.begin(), report.records.end(),
                               [](const Record& r) { return r.modelled.is_null() || all_met(r.modelled.at("bars")); });
  return met ? code : ExitCode::wrong;
}

void print_table(const Report& report, std::ostream& out) {
  Table table({"backend", "dtype", "kv", "phase", "threads", "batch", "prompt", "depth", "tokens/s", "ms", "+-",
               "GFLOP/s", "GB/s", "of roof", "KV", "peak mem", "status", "budget"});
  for (const Record& r : report.records) {
    const bool timed = r.status == Status::passed && !r.samples_ns.empty();
    const double ns = timed ? r.median_ns() : 0;
    table.add({r.backend, r.dtype, r.kv_dtype, r.phase, r.threads ? std::to_string(*r.threads) : "",
               std::to_string(*r.batch), r.prompt ? std::to_string(*r.prompt) : "", std::to_string(*r.depth),
               timed ? fixed(*r.tokens / ns * 1e9, 2) : "", timed ? fixed(ns * 1e-6, 2) : "",
               timed ? percent(r.sampling->relative_error) : "", timed ? fixed(*r.flops / ns, 1) : "",
               timed ? fixed(r.bytes->total() / ns, 1) : "", timed ? percent(*r.share_of_roof) : "",
               r.kv_bytes ? si(static_cast<double>(*r.kv_bytes), "B") : "",
               r.peak_memory_bytes ? si(static_cast<double>(*r.peak_memory_bytes), "B") : "",
               std::string(name(r.status)), percent(r.budget_used)});
  }
  table.print(out);
  print_all_modelled(report.records, out);
  for (const Record& r : report.records)
    if (r.status != Status::passed) out << '\n' << name(r.status) << ": " << r.name << "\n  " << r.reason << '\n';
}

/// Of the row that needs most, of several groups.
template <class Groups>
MemoryNeeds largest_needs(const BenchFlags& flags, const Config& config, Groups from, Groups to) {
  MemoryNeeds most;
  for (auto group = from; group != to; ++group) {
    if (why_not(*group->backend, config, group->options)) continue;
    const DType stored = flags.model.stored_dtype(config, group->options.dtype);
    for (const DecoderRow& row : group->rows) {
      MemoryNeeds needs = memory_needs(config, *group->backend, stored, group->options, row.batch,
                                       context_of(row, flags.generate), longest_pass(row));
      needs.checking = checking_bytes(config, row, context_of(row, flags.generate));
      if (needs.total() + needs.checking > most.total() + most.checking) most = needs;
    }
  }
  return most;
}

/// Measures the rows of every group, in each of several passes over the groups of one dtype, so that between the
/// blocks of a row lie all the others: a machine that slowly changes its speed shows.
void measure_all(const BenchFlags& flags, const Config& config, const std::vector<Group>& groups,
                 MeasuredLimits& limits, Report& report, std::vector<StepProfile>& profiles) {
  const DecoderBenchOptions bench = bench_options(flags);
  const int block_total = block_count(flags);
  for (const Group& g : groups)
    limits.of(g.options.threads);  // now: it takes memory that no row should be charged with
  std::size_t rows = 0, done = 0;
  for (const Group& g : groups) rows += g.rows.size();
  for (auto from = groups.begin(); from != groups.end();) {
    const auto to =
        std::find_if(from, groups.end(), [&](const Group& g) { return g.options.dtype != from->options.dtype; });
    require_memory(largest_needs(flags, config, from, to), flags.model.label());
    std::vector<std::vector<Record>> blocks;  // of each row
    std::shared_ptr<const Weights> weights;
    for (int block = 0; block < block_total; ++block) {
      std::size_t row = 0;
      for (auto group = from; group != to; ++group) {
        std::unique_ptr<DecoderBench> decoder;
        const auto why = why_not(*group->backend, config, group->options);
        if (!why) {
          if (!weights) weights = flags.model.weights(config, group->options.dtype);
          decoder = std::make_unique<DecoderBench>(config, *group->backend, weights, group->options, bench, limits);
        }
        ProgressLine progress("bench");
        for (const DecoderRow& r : group->rows) {
          progress.show(done++, rows * static_cast<std::size_t>(block_total), r.name);
          if (block == 0) blocks.emplace_back();
          blocks[row++].push_back(decoder ? decoder->measure(r, block) : skipped_row(r, *why));
        }
        if (decoder && block == 0)
          profiles.insert(profiles.end(), decoder->profiles().begin(), decoder->profiles().end());
      }
    }
    for (auto& of_row : blocks) report.records.push_back(pool_blocks(std::move(of_row)));
    from = to;
  }
}

int list(const Config& config, const std::vector<Group>& groups) {
  bool any = false;
  for (const Group& g : groups) {
    if (const auto why = why_not(*g.backend, config, g.options)) {
      std::cerr << "dsv2: left out: " << g.backend->name << ' ' << name(g.options.dtype) << ": " << *why << '\n';
      continue;
    }
    any = true;
    for (const DecoderRow& row : g.rows) std::cout << row.name << '\n';
  }
  return static_cast<int>(any ? ExitCode::passed : ExitCode::nothing_checked);
}

void print_op_speeds(const std::vector<Record>& records, std::ostream& out) {
  Table table({"op", "backend", "threads", "time", "+-", "GFLOP/s", "GB/s", "of roof", "status", "budget"});
  for (const Record& r : records) {
    const bool timed = r.status == Status::passed && !r.samples_ns.empty();
    const double ns = timed ? r.median_ns() : 0;
    table.add({r.name, r.backend, r.threads ? std::to_string(*r.threads) : "", timed ? duration(ns) : "",
               timed ? percent(r.sampling->relative_error) : "", timed && *r.flops > 0 ? fixed(*r.flops / ns, 1) : "",
               timed ? fixed(r.bytes->total() / ns, 1) : "", timed && r.share_of_roof ? percent(*r.share_of_roof) : "",
               std::string(name(r.status)), percent(r.budget_used)});
  }
  table.print(out);
  print_all_modelled(records, out);
  for (const Record& r : records)
    if (r.status != Status::passed) out << '\n' << name(r.status) << ": " << r.name << "\n  " << r.reason << '\n';
}

/// A report that says how it came about, of threads that are pinned where that was asked for.
Report start_report(const BenchFlags& flags) {
  if (flags.pin) pin_threads(flags.backend.thread_count());
  Report report;
  report.argv = command_line();
  report.seed = flags.model.seed();
  report.threads = flags.backend.thread_count();
  report.pinned = threads_are_pinned();
  return report;
}

/// --op: single ops, from the table of op cases.
int run_ops(const BenchFlags& flags) {
  const std::regex filter = parse_filter(flags.filter);
  std::vector<OpCase> cases = chosen_cases(
      {flags.ops, flags.dtypes, [&](std::string_view n) { return std::regex_search(n.begin(), n.end(), filter); }});
  if (flags.filter.empty()) std::erase_if(cases, [](const OpCase& c) { return !is_timed_by_default(c); });
  const DecoderBenchOptions bench = bench_options(flags);
  if (flags.list) {
    for (const OpCase& c : cases) std::cout << c.name() << (flags.cold ? "/cold" : "") << '\n';
    return static_cast<int>(cases.empty() ? ExitCode::nothing_checked : ExitCode::passed);
  }
  Report report = start_report(flags);
  MeasuredLimits limits;
  const std::vector<const Backend*> chosen = flags.backend.backends();
  const std::vector<Options> options = flags.backend.every_options("f32");
  for (const Options& o : options) limits.of(o.threads);
  const int block_total = block_count(flags);
  std::vector<std::vector<Record>> rows(cases.size() * chosen.size() * options.size());
  {
    ProgressLine progress("bench");
    for (int block = 0; block < block_total; ++block) {
      auto row = rows.begin();
      for (std::size_t i = 0; i < cases.size(); ++i) {
        progress.show(static_cast<std::size_t>(block) * cases.size() + i,
                      static_cast<std::size_t>(block_total) * cases.size(), cases[i].name());
        OpRun run(cases[i], *report.seed + static_cast<std::uint64_t>(block));
        for (const Backend* backend : chosen)
          for (const Options& o : options) {
            Record r = bench_op(run, *backend, o, bench.timing, limits);
            if (flags.backend.threads_given() && !one_thread(*backend)) r.name += concat("/t", o.threads);
            (row++)->push_back(std::move(r));
          }
      }
    }
  }
  for (auto& blocks : rows) report.records.push_back(pool_blocks(std::move(blocks)));
  report.limits = limits.of(report.threads);
  flags.outputs.write(report.to_json());
  std::ostream& out = flags.outputs.text();
  out << machine().cpu << ", " << machine().isa << ", " << report.threads << " threads, reads "
      << fixed(report.limits.read_bandwidth_gb_s, 1) << " GB/s, f32 peak " << fixed(report.limits.peak_f32_gflop_s, 0)
      << " GFLOP/s; seed " << *report.seed << "\n\n";
  print_op_speeds(report.records, out);
  if (const std::string files = flags.outputs.files(); !files.empty()) out << '\n' << files << '\n';
  const ExitCode code = report.exit_code();
  if (code == ExitCode::nothing_checked) std::cerr << "dsv2: nothing was measured\n";
  return static_cast<int>(code);
}

/// Simulated backends count instead of taking time; for one device.
void prepare_simulators(const BenchFlags& flags) {
  bool any = false;
  for (const Backend* backend : flags.backend.backends()) any = any || backend->simulated;
  DSV2_CHECK(any || flags.device.empty(), "--device: a simulated backend has one (cuda-sim); found none");
  DSV2_CHECK(any || !flags.bars, "--bars: a simulated backend is held to them (cuda-sim); found none");
  if (any) count_on_simulator(flags.device);
}

/// --task ocr: pictures of text, on the models of golden/tiny_ocr or that of --model.
int run_task(const BenchFlags& flags) {
  Report report = start_report(flags);
  report.seed = std::nullopt;  // nothing is drawn
  std::vector<Options> every;
  for (const std::string& dtype :
       flags.dtypes.empty() ? std::vector<std::string>{"f32", "bf16", "int8", "int4"} : flags.dtypes)
    for (const Options& o : flags.backend.every_options(dtype)) every.push_back(o);
  const OcrPlaces places = ocr_places(default_golden_folder(), flags.model.model(), {});
  for (const std::filesystem::path& sets : places.sets)
    report.records = run_ocr_task(places.models, sets, flags.backend.backends(), every, load_weights, bench_ocr);
  flags.outputs.write(report.to_json());
  std::ostream& out = flags.outputs.text();
  out << machine().cpu << ", " << machine().isa << ", " << report.threads << " threads\n\n";
  print_ocr_speeds(report.records, out);
  if (const std::string files = flags.outputs.files(); !files.empty()) out << '\n' << files << '\n';
  const ExitCode code = report.exit_code();
  if (code == ExitCode::nothing_checked) std::cerr << "dsv2: nothing was measured\n";
  return static_cast<int>(code);
}

int run(const BenchFlags& flags) {
  prepare_simulators(flags);
  if (!flags.task.empty()) {
    DSV2_CHECK(flags.ops.empty() && (!flags.model.given() || !flags.model.random()),
               "--task: expected alone or with --model, found --op or --preset");
    return run_task(flags);
  }
  if (!flags.ops.empty()) return run_ops(flags);
  const Config config = flags.model.config();
  bench_options(flags);  // bad values are refused before anything takes time
  const std::vector<Group> groups = plan(flags, config);
  if (groups.empty()) std::cerr << "dsv2: no row to measure: see --filter, --prompt and --generate\n";
  if (flags.list) return list(config, groups);
  Report report = start_report(flags);
  MeasuredLimits limits;
  limits.of(report.threads);
  const ParameterCount parameters = count_parameters(config);
  report.model = {{"name", flags.model.label()},
                  {"config", Json::parse(config.to_json())},
                  {"weights", flags.model.random() ? concat("random, seed ", flags.model.seed()) : flags.model.model()},
                  {"parameters", {{"total", parameters.total}, {"active", parameters.active}}}};
  std::vector<StepProfile> profiles;
  measure_all(flags, config, groups, limits, report, profiles);
  report.limits = limits.of(report.threads);
  flags.outputs.write(report.to_json());
  if (flags.outputs.wants("--trace")) flags.outputs.write_other("--trace", dump(trace_of(profiles)));
  std::ostream& out = flags.outputs.text();
  const MachineLimits& l = report.limits;
  out << flags.model.label() << ": " << si(static_cast<double>(parameters.total), "") << " parameters, "
      << si(static_cast<double>(parameters.active), "") << " active; " << machine().cpu << ", " << machine().isa << ", "
      << report.threads << " threads, reads " << fixed(l.read_bandwidth_gb_s, 1) << " GB/s, f32 peak "
      << fixed(l.peak_f32_gflop_s, 0) << " GFLOP/s\n\n";
  print_table(report, out);
  if (const std::string files = flags.outputs.files(); !files.empty()) out << '\n' << files << '\n';
  return static_cast<int>(exit_code(flags, report));
}

}  // namespace

void add_bench(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* sub = app.add_subcommand("bench", "Measure prefill and decode of a model, checked before and after");
  flags->model.add_to(*sub);
  flags->backend.add_to(*sub, "cpu");
  sub->add_option(
      "--device", flags->device,
      "cuda-sim: the device that is counted and modelled for: a100, h100, h200, rtx4090, rtx5090 (default h100)");
  sub->add_flag("--bars", flags->bars, "cuda-sim: exit with 1 where a row misses one of the bars that it prints");
  sub->add_option("--dtype", flags->dtypes,
                  "Of matrices and their arithmetic: f32, bf16, int8, int4 (default: what a quantised checkpoint has, "
                  "else bf16; "
                  "with --op: all)")
      ->delimiter(',')
      ->allow_extra_args(false);
  CLI::Option* op = sub->add_option("--op", flags->ops,
                                    "Single ops instead, at real widths or those of --filter: " + known_ops() + "; all")
                        ->delimiter(',')
                        ->allow_extra_args(false);
  sub->add_option(
         "--task", flags->task,
         "ocr: instead, held-out pictures of text on the models of golden/tiny_ocr (or --model): tokens/s, n-gram "
         "lookup, experts used")
      ->check(CLI::IsMember({"ocr"}));
  sub->add_option("--prompt", flags->prompt,
                  "Tokens of a prefill; lists and ranges: 128,512 or 1-8*2 (default 512; 0: none)");
  sub->add_option("--generate", flags->generate, "Decode steps in one repetition (default 64; 0: none)")
      ->check(CLI::Range(0, 1 << 20));
  sub->add_option("--depth", flags->depth, "Tokens in the cache when decoding starts (default: the prompt)");
  sub->add_option("--batch", flags->batch, "Sequences at once (default 1)");
  sub->add_option("--relative-error", flags->relative_error,
                  "Sample until the median is known this well, with 95 % confidence (default 2%)");
  sub->add_option("--min-samples", flags->min_samples, "... but at least this many prefills or steps (default 5)")
      ->check(CLI::Range(1, 1000000));
  sub->add_option("--time-budget", flags->time_budget,
                  "... for at most this many seconds a row; a repetition begun is finished (default 10)");
  sub->add_option("--repetitions", flags->repetitions,
                  "Instead: exactly so many prefills, and runs of --generate decode steps")
      ->check(CLI::Range(1, 10000));
  sub->add_flag("--noise{3}", flags->noise,
                "Measure everything 3 times (--noise=N), rows in turn: how far medians of one program differ");
  sub->add_flag("--cold", flags->cold, "Flush the caches before each run; such rows end in /cold");
  sub->add_flag("--pin", flags->pin, "Bind each thread to a core");
  sub->add_option("--filter", flags->filter, "Only rows whose name matches this regular expression");
  sub->add_flag("--list", flags->list, "Print the names of the rows, and measure nothing");
  flags->outputs.add_to(*sub);
  flags->outputs.add_other(*sub, "--trace", "One prefill and one decode step by op, for ui.perfetto.dev (-: stdout)");
  // An op case names its model and its shape; what it cannot take is refused, not ignored.
  for (const char* other : {"--model", "--preset", "--prompt", "--generate", "--depth", "--batch", "--kv-dtype",
                            "--attention", "--trace", "--bars"})
    op->excludes(sub->get_option(other));
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
