#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <random>
#include <span>

#include "harness/command.h"
#include "harness/faults.h"
#include "harness/flags.h"
#include "harness/generate.h"
#include "harness/outputs.h"
#include "harness/report.h"
#include "harness/run_op.h"
#include "harness/table.h"
#include "harness/taps.h"
#include "optimized/cpu/backend.h"
#include "optimized/cpu/test_hook.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

struct SelftestFlags {
  std::int64_t seeds = 200;
  std::uint64_t seed = 0;
  OutputFlags outputs;
};

constexpr int kThreads = 2;

/// What a decoder is made for.
struct Setting {
  DType dtype, kv_dtype;
};

/// One model with random weights and two calls: a padded prefill of two sequences, then a decode step on its cache. The
/// double reference's answers are kept, so that many kernels can be held against them.
class Scenario {
 public:
  Scenario(const std::string& preset, Setting setting, std::uint64_t seed) : config_(Config::preset(preset)) {
    weights_ = Weights::random(config_, seed, setting.dtype);
    options_.dtype = setting.dtype;
    options_.kv_dtype = setting.kv_dtype;
    options_.threads = kThreads;
    const auto oracle = reference::backend().create(config_, weights_, options_);
    std::mt19937_64 engine(seed);
    std::uniform_int_distribution<std::int64_t> ids(0, config_.vocab_size - 1);
    const auto draw = [&](std::int64_t S) {
      Tensor t(DType::i64, {kBatch, S});
      for (auto& id : t.as<std::int64_t>()) id = ids(engine);
      return t;
    };
    prefill_.input.set("input_ids", draw(kTokens));
    prefill_.input.set("attention_mask", mask(kTokens));
    step_.input.set("input_ids", draw(1));
    step_.input.set("attention_mask", mask(kTokens + 1));
    const auto cache = oracle->make_cache(kBatch, kTokens + 1);
    answer(*oracle, *cache, prefill_);
    before_step_ = cache->to_legacy();
    answer(*oracle, *cache, step_);
  }

  /// The first comparison that fails when every op runs alone on these kernels; nullopt when all pass. `book`, if any,
  /// gets the comparisons up to there.
  std::optional<Comparison> first_failure(const cpu::Kernels& kernels, Record* book = nullptr) {
    const auto decoder = cpu::create_with_kernels(config_, weights_, options_, kernels);
    const auto empty = decoder->make_cache(kBatch, kTokens), held = decoder->make_cache(before_step_);
    if (auto c = judge(*decoder, *empty, prefill_, kTokens, book)) return c;
    return judge(*decoder, *held, step_, kTokens + 1, book);
  }

 private:
  static constexpr std::int64_t kBatch = 2, kTokens = 7;

  struct Work {
    OwnedInput input;
    RecordingSink right;
  };

  /// The second sequence is padded on the left by two.
  static Tensor mask(std::int64_t T) {
    Tensor m(DType::i64, {kBatch, T});
    for (std::int64_t i = 0; i < kBatch * T; ++i)
      m.as<std::int64_t>()[static_cast<std::size_t>(i)] = !(i >= T && i < T + 2);
    return m;
  }
  void answer(Decoder& oracle, KvCache& cache, Work& work) {
    ForwardInput in = work.input.input;
    in.cache = &cache;
    in.logits = Logits::all;
    in.taps = &work.right;
    oracle.forward(in);
  }
  std::optional<Comparison> judge(Decoder& decoder, KvCache& cache, Work& work, std::int64_t total, Record* book) {
    ForcingSink alone(work.right, config_, precision_of(options_), total, weights_.get());
    ForwardInput in = work.input.input;
    in.cache = &cache;
    in.logits = Logits::all;
    in.taps = &alone;
    decoder.forward(in);
    for (const Comparison& c : alone.comparisons()) {
      if (book) book->add(c);
      if (!c.passed) return c;
    }
    return std::nullopt;
  }

  Config config_;
  Options options_;
  std::shared_ptr<const Weights> weights_;
  Work prefill_, step_;
  LegacyCache before_step_;
};

constexpr const char* kPresets[] = {"tiny-mha", "tiny-mla"};
constexpr Setting kSettings[] = {{DType::f32, DType::f32},
                                 {DType::bf16, DType::bf16},
                                 {DType::f32, DType::i8},
                                 {DType::i8, DType::bf16},
                                 {DType::i4, DType::bf16}};

bool is_one_in(const Fault& fault, Setting setting) {
  switch (fault.where) {
    case Where::everywhere:
      return setting.kv_dtype != DType::i8;
    case Where::f32:
      return setting.dtype == DType::f32 && setting.kv_dtype == DType::f32;
    case Where::int8_cache:
      return setting.kv_dtype == DType::i8;
    case Where::quantised:
      return is_quantised(setting.dtype);
    case Where::int4:
      return setting.dtype == DType::i4;
  }
  return true;
}

/// Op cases of small widths, drawn once.
class SmallOpCases {
 public:
  explicit SmallOpCases(std::uint64_t seed) {
    for (const OpCase& c : op_cases())
      if (is_small(c)) runs_.emplace_back(c, std::make_unique<OpRun>(c, seed));
  }
  /// The name of the first that rejects these kernels, of those that run kernel `op` in `dtype`; f32 where no other
  /// precision of the op exists.
  std::optional<std::string> first_failure(const cpu::Kernels& kernels, std::string_view op, DType dtype) const {
    const Backend backend = backend_with(kernels);
    Options options;
    options.threads = 1;
    for (const auto& [c, run] : runs_)
      if (runs_kernel(c.op, op) && c.dtype == (has(c.op, dtype) ? dtype : DType::f32) &&
          run->on(backend, options).status == Status::failed)
        return c.name();
    return std::nullopt;
  }

 private:
  bool has(std::string_view op, DType dtype) const {
    return std::any_of(runs_.begin(), runs_.end(),
                       [&](const auto& r) { return r.first.op == op && r.first.dtype == dtype; });
  }

  std::vector<std::pair<OpCase, std::unique_ptr<OpRun>>> runs_;
};

/// The record of right kernels on random models of one preset: they must pass.
Record without_fault(std::string_view preset, Setting setting, std::uint64_t seed, std::int64_t seeds) {
  Record r;
  r.name = concat("without a fault/", preset, "/cpu/", name(setting.dtype));
  if (setting.kv_dtype != setting.dtype) r.name += concat("/kv_", name(setting.kv_dtype));
  r.op = "decoder";
  r.backend = "cpu";
  r.dtype = name(setting.dtype);
  r.kv_dtype = name(setting.kv_dtype);
  r.seed = seed;
  r.coverage = concat("every op alone, in a prefill and a decode step of ", seeds, " random models");
  return r;
}

struct OpAlarms {
  Record record;
  std::int64_t count = 0;
};
/// Right kernels on the small op cases: an eighth of them with each seed, so that all have had their turn after eight.
OpAlarms check_op_seeds(std::int64_t seeds, std::uint64_t first_seed, std::ostream& out) {
  constexpr std::size_t kParts = 8;
  OpAlarms alarms;
  alarms.record = without_fault("op cases", {DType::f32, DType::f32}, first_seed, seeds);
  alarms.record.op = "ops";
  alarms.record.coverage = concat("an eighth of the small op cases with each of ", seeds, " seeds");
  std::vector<OpCase> cases = op_cases();
  std::erase_if(cases, [](const OpCase& c) { return !is_small(c); });
  Options options;
  options.threads = 1;
  ProgressLine progress("op cases without a fault");
  for (std::int64_t i = 0; i < seeds; ++i) {
    progress.show(i, seeds, "");
    const std::uint64_t seed = first_seed + static_cast<std::uint64_t>(i);
    for (std::size_t n = static_cast<std::size_t>(i) % kParts; n < cases.size(); n += kParts) {
      const Record r = OpRun(cases[n], seed).on(cpu::backend(), options);
      Comparison c;
      c.name = r.name;
      c.passed = r.status == Status::passed;
      c.reason = r.reason;
      c.budget_used = r.budget_used;
      alarms.record.add(c);
      if (c.passed) continue;
      ++alarms.count;
      progress.clear();
      out << "false alarm: " << r.name << " --seed " << seed << ": " << r.reason << '\n';
    }
  }
  return alarms;
}

int run(const SelftestFlags& flags) {
  const std::uint64_t first_seed = flags.seed ? flags.seed : std::random_device{}();
  const cpu::Kernels& kernels = *cpu::find_isa("").kernels;
  set_true_kernels(kernels);
  std::ostream& out = flags.outputs.text();
  out << "seed " << first_seed << '\n';
  Report report;
  report.argv = command_line();
  report.seed = first_seed;
  report.threads = kThreads;
  report.limits = measure_limits(kThreads);
  GateTest test{.faults = {}, .seeds = flags.seeds};
  const SmallOpCases ops(first_seed);
  Table table({"fault", "op", "dtype", "caught by", "located", "op case"});
  int missed = 0, mislaid = 0;
  for (const Setting setting : kSettings) {
    const DType dtype = setting.dtype;
    std::vector<std::unique_ptr<Scenario>> scenarios;
    for (const char* preset : kPresets) scenarios.push_back(std::make_unique<Scenario>(preset, setting, first_seed));
    for (const Fault& fault : faults()) {
      if (!is_one_in(fault, setting)) continue;
      cpu::Kernels wrong = kernels;
      fault.inject(wrong);
      std::optional<Comparison> caught;
      for (const auto& scenario : scenarios)
        if (!caught) caught = scenario->first_failure(wrong);
      std::optional<std::string> op_case = ops.first_failure(wrong, fault.op, dtype);
      // What no layer of these models shows, an op case may; it names the op by being one.
      const bool by_case_alone = !caught && op_case;
      if (by_case_alone) caught.emplace().name = concat("op case ", *op_case);
      const bool located = caught && (by_case_alone || located_at(fault.op, caught->name));
      missed += !caught;
      mislaid += caught && !located;
      table.add({std::string(fault.name), std::string(fault.op), std::string(name(dtype)),
                 caught ? caught->name : "NOT CAUGHT", located ? "yes" : "NO", op_case.value_or("")});
      test.faults.push_back({std::string(fault.name), std::string(fault.op), std::string(name(dtype)),
                             std::move(caught), located, std::move(op_case)});
    }
  }
  table.print(out);

  ProgressLine progress("seeds without a fault");
  for (const Setting setting : flags.seeds > 0 ? std::span(kSettings) : std::span<const Setting>())
    for (const char* preset : kPresets)
      report.records.push_back(without_fault(preset, setting, first_seed, flags.seeds));
  for (std::int64_t i = 0; i < flags.seeds; ++i) {
    progress.show(i, flags.seeds, "");
    std::size_t control = 0;
    for (const Setting setting : kSettings)
      for (const char* preset : kPresets) {
        const std::uint64_t seed = first_seed + static_cast<std::uint64_t>(i);
        Scenario scenario(preset, setting, seed);
        if (const auto c = scenario.first_failure(kernels, &report.records[control++])) {
          ++test.false_alarms;
          progress.clear();
          out << "false alarm: " << preset << ' ' << name(setting.dtype) << " kv " << name(setting.kv_dtype)
              << " --seed " << seed << ": " << describe(*c) << '\n';
        }
      }
  }
  progress.clear();
  const OpAlarms op_alarms = check_op_seeds(flags.seeds, first_seed, out);
  if (flags.seeds > 0) report.records.push_back(op_alarms.record);
  test.false_alarms += op_alarms.count;
  out << '\n'
      << test.faults.size() << " faults: " << test.faults.size() - static_cast<std::size_t>(missed) << " rejected, "
      << missed << " missed, " << mislaid << " blamed on another op; " << flags.seeds
      << " seeds without a fault: " << test.false_alarms << " false alarms\n";
  report.gate_test = std::move(test);
  flags.outputs.write(report.to_json());
  if (const std::string files = flags.outputs.files(); !files.empty()) out << files << '\n';
  return static_cast<int>(report.exit_code());
}

}  // namespace

void add_selftest(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<SelftestFlags>();
  CLI::App* sub =
      app.add_subcommand("selftest", "Test the gate itself: wrong kernels must be rejected and named, right ones pass");
  sub->add_option("--seeds", flags->seeds, "Random models that must pass without a fault (default 200)")
      ->check(CLI::Range(0, 1000000));
  sub->add_option("--seed", flags->seed, "First seed (default: drawn and printed)");
  flags->outputs.add_to(*sub);
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
