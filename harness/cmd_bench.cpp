#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <random>
#include <set>

#include "harness/command.h"
#include "harness/flags.h"
#include "harness/generate.h"
#include "harness/ranges.h"
#include "harness/report.h"
#include "harness/table.h"
#include "harness/taps.h"
#include "model/cost.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchFlags {
  ModelFlags model;
  BackendFlags backend;
  std::vector<std::string> dtypes{"bf16"};
  std::string prompt = "512", depth, batch = "1";
  std::int64_t generate = 64, repetitions = 3;
  std::string json;
};

/// Random ids, new ones at each call.
class TokenSource {
 public:
  TokenSource(std::uint64_t seed, std::int64_t vocab) : engine_(seed), ids_(0, vocab - 1) {}
  OwnedInput next(std::int64_t B, std::int64_t S) {
    Tensor ids(DType::i64, {B, S});
    for (auto& id : ids.as<std::int64_t>()) id = ids_(engine_);
    OwnedInput input;
    input.set("input_ids", std::move(ids));
    return input;
  }

 private:
  std::mt19937_64 engine_;
  std::uniform_int_distribution<std::int64_t> ids_;
};

/// The last `tokens` positions of [B,S,D].
Tensor last_rows(const Tensor& t, std::int64_t tokens) {
  const std::int64_t B = t.dim(0), S = t.dim(1), D = t.dim(2);
  Tensor rows(DType::f64, {B, tokens, D});
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t i = 0; i < tokens * D; ++i)
      rows.as<double>()[static_cast<std::size_t>(b * tokens * D + i)] = t.at((b * S + S - tokens) * D + i);
  return rows;
}

Tensor last_ids(const TensorView& ids, std::int64_t tokens) {
  const std::int64_t B = ids.dim(0), S = ids.dim(1);
  Tensor last(DType::i64, {B, tokens});
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t s = 0; s < tokens; ++s)
      last.as<std::int64_t>()[static_cast<std::size_t>(b * tokens + s)] =
          ids.as<std::int64_t>()[static_cast<std::size_t>(b * S + S - tokens + s)];
  return last;
}

/// Mean over the MoE layers of how many different experts a step used; nullopt for a dense model.
std::optional<double> distinct_experts(const RecordingSink& routes) {
  if (routes.all().empty()) return std::nullopt;
  double sum = 0;
  int layers = 0;
  for (const auto& [tap, idx] : routes.all()) {
    if (!tap.ends_with(".topk_idx")) continue;
    const auto ids = idx.as<std::int64_t>();
    sum += static_cast<double>(std::set<std::int64_t>(ids.begin(), ids.end()).size());
    ++layers;
  }
  return sum / layers;
}

class Bench {
 public:
  Bench(const BenchFlags& flags, const Config& config, const Backend& backend,
        const std::shared_ptr<const Weights>& weights, const Options& options, const MachineLimits& limits)
      : flags_(flags),
        config_(config),
        backend_(backend),
        options_(options),
        limits_(limits),
        tokens_(flags.model.seed() + 1, config.vocab_size) {
    reset_peak_memory();
    decoder_ = backend.create(config, weights, options);
    Options judge;  // the reference in double; the reference itself is held against its float twin
    const bool itself = backend.name == reference::backend().name;
    if (itself) judge.accumulate = options.accumulate == DType::f64 ? DType::f32 : DType::f64;
    oracle_ = reference::backend().create(config, weights, judge);
  }

  Record prefill(std::int64_t B, std::int64_t S) {
    Record r = blank("prefill", B, S, 0);
    const std::int64_t tail = std::min<std::int64_t>(S, kCheckedTokens);
    OwnedInput input = tokens_.next(B, S);
    const auto check = [&] {
      const auto cache = decoder_->make_cache(B, S);
      input.input.cache = cache.get();
      input.input.logits = Logits::last;
      RecordingSink routes(is_router_tap), right_routes(is_router_tap);
      input.input.taps = &routes;
      const ForwardOutput got = decoder_->forward(input.input);
      distinct_ = distinct_experts(routes);
      r.kv_bytes = cache->bytes();
      if (!right_hidden_) {
        cache->truncate(S - tail);
        const auto before = S > tail ? oracle_->make_cache(cache->to_legacy()) : oracle_->make_cache(B, tail);
        OwnedInput last;
        last.set("input_ids", last_ids(*input.input.input_ids, tail));
        last.input.cache = before.get();
        last.input.logits = Logits::last;
        last.input.taps = &right_routes;
        ForwardOutput right = oracle_->forward(last.input);
        right_hidden_ = std::move(right.last_hidden_state);
        right_logits_ = std::move(right.logits);
        same_experts_ = same_routes(routes, right_routes, B, S, tail);
      }
      const Selection rows = same_experts_;
      r.rows_left_out = std::count(rows.begin(), rows.end(), false);
      r.add(judge("last_hidden_state", last_rows(got.last_hidden_state, tail).view(), right_hidden_.view(), rows));
      Selection final_rows;
      for (std::int64_t b = 0; b < B; ++b) final_rows.push_back(rows[static_cast<std::size_t>((b + 1) * tail - 1)]);
      r.add(judge("logits", got.logits.view(), right_logits_.view(), final_rows));
    };
    right_hidden_ = {};
    check();
    const Cost c = cost(config_, workload(B, S, S));
    for (std::int64_t i = 0; i < flags_.repetitions && r.status == Status::passed; ++i) {
      OwnedInput fresh = tokens_.next(B, S);
      const auto cache = decoder_->make_cache(B, S);
      fresh.input.cache = cache.get();
      fresh.input.logits = Logits::last;
      const auto start = Clock::now();
      const ForwardOutput out = decoder_->forward(fresh.input);
      r.samples_ns.push_back((Clock::now() - start).count());
      r.add(finite(out.logits));
    }
    check();
    r.coverage =
        concat("last ", tail, " of ", S, " tokens through all layers from the tested cache, before and after timing");
    finish(r, c, static_cast<double>(B * S));
    return r;
  }

  Record decode(std::int64_t B, std::int64_t depth) {
    Record r = blank("decode", B, std::nullopt, depth);
    const auto cache = decoder_->make_cache(B, depth + flags_.generate + 1);
    if (depth > 0) {
      OwnedInput fill = tokens_.next(B, depth);
      fill.input.cache = cache.get();
      decoder_->forward(fill.input);
    }
    r.kv_bytes = cache->bytes();
    OwnedInput step = tokens_.next(B, 1);
    step.input.cache = cache.get();
    step.input.logits = Logits::last;
    Tensor right;
    const auto check = [&] {
      if (!right) {  // every op alone first: it also gives the oracle's answer
        const auto right_cache = depth > 0 ? oracle_->make_cache(cache->to_legacy()) : oracle_->make_cache(B, 1);
        RecordingSink everything;
        ForwardInput in = step.input;
        in.cache = right_cache.get();
        in.taps = &everything;
        right = std::move(oracle_->forward(in).logits);
        ForcingSink alone(everything, config_, options_.dtype == DType::f32 ? DType::f32 : DType::bf16, depth + 1);
        in.cache = cache.get();
        in.taps = &alone;
        decoder_->forward(in);
        cache->truncate(depth);
        for (const Comparison& c : alone.comparisons()) r.add(c);
      }
      RecordingSink routes(is_router_tap);
      step.input.taps = &routes;
      const ForwardOutput got = decoder_->forward(step.input);
      step.input.taps = nullptr;
      cache->truncate(depth);
      distinct_ = distinct_experts(routes);
      r.add(judge("logits", got.logits.view(), right.view(), {}));
    };
    check();
    const Cost c = cost(config_, workload(B, 1, depth + (flags_.generate + 1) / 2));
    for (std::int64_t i = 0; i < flags_.repetitions && r.status == Status::passed; ++i) {
      cache->truncate(depth);
      for (std::int64_t n = 0; n < flags_.generate; ++n) {
        OwnedInput fresh = tokens_.next(B, 1);
        fresh.input.cache = cache.get();
        fresh.input.logits = Logits::last;
        const auto start = Clock::now();
        const ForwardOutput out = decoder_->forward(fresh.input);
        r.samples_ns.push_back((Clock::now() - start).count());
        if (n + 1 == flags_.generate) r.add(finite(out.logits));
      }
    }
    cache->truncate(depth);
    check();
    r.coverage =
        concat("one step at depth ", depth, ": every op alone and all layers together, before and after timing");
    finish(r, c, static_cast<double>(B));
    return r;
  }

 private:
  static constexpr std::int64_t kCheckedTokens = 4;

  Record blank(std::string phase, std::int64_t B, std::optional<std::int64_t> prompt, std::int64_t depth) {
    watch_.emplace(flags_.backend.thread_count());
    Record r;
    r.name = concat(flags_.model.label(), "/", phase, "/", backend_.name, "/", dsv2::name(options_.dtype), "/kv_",
                    dsv2::name(options_.kv_dtype), "/b", B, prompt ? concat("/p", *prompt) : concat("/d", depth));
    r.op = "decoder";
    r.phase = std::move(phase);
    r.backend = backend_.name;
    r.dtype = dsv2::name(options_.dtype);
    r.kv_dtype = dsv2::name(options_.kv_dtype);
    r.batch = B;
    r.prompt = prompt;
    r.depth = depth;
    r.seed = flags_.model.seed();
    return r;
  }

  Workload workload(std::int64_t B, std::int64_t S, std::int64_t T) const {
    return {.batch = B,
            .tokens = S,
            .context = T,
            .dtype = options_.dtype,
            .kv_dtype = options_.kv_dtype,
            .mla_form = options_.mla_form,
            .causal = true,
            .logits = Logits::last,
            .distinct_experts = distinct_};
  }

  /// All layers together: rounding has gone through L of them, one after the other.
  Comparison judge(std::string what, const TensorView& got, const TensorView& want, const Selection& rows) const {
    if (options_.dtype != DType::f32)
      return compare_relative_l2(std::move(what), got, want, 0.025, "relative L2 <= 0.025 from the double reference",
                                 rows);
    const DerivedBound layers{DType::f32,
                              config_.num_hidden_layers * (2 * config_.hidden_size + config_.intermediate_size)};
    return compare_relative_l2(std::move(what), got, want, kTensorFactor * layers.unit(),
                               concat("relative L2 <= ", kTensorFactor, " sqrt(", layers.reduction, ") u(f32)"), rows);
  }

  static Comparison finite(const Tensor& logits) {
    Comparison c;
    c.name = "timed logits are finite";
    c.count = logits.size();
    for (std::int64_t i = 0; i < logits.size(); ++i)
      if (!std::isfinite(logits.at(i))) {
        c.passed = false;
        c.reason = concat("found ", logits.at(i), " at element ", i);
        break;
      }
    return c;
  }

  /// Flags [B,tail]: from the first token on that chose other experts than the oracle, a row proves nothing.
  Selection same_routes(const RecordingSink& got, const RecordingSink& want, std::int64_t B, std::int64_t S,
                        std::int64_t tail) const {
    Selection same(static_cast<std::size_t>(B * tail), true);
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t s = 0; s < tail; ++s)
        if (route_change(got, b * S + S - tail + s, want, b * tail + s, config_)) {
          std::fill(same.begin() + b * tail + s, same.begin() + (b + 1) * tail, false);
          break;
        }
    return same;
  }

  void finish(Record& r, const Cost& c, double tokens) const {
    r.flops = c.flops;
    r.bytes = c.bytes;
    r.tokens = tokens;
    r.conditions = watch_->finish();
    r.resident_memory_bytes = resident_memory_bytes();
    r.peak_memory_bytes = peak_memory_bytes();
    if (r.samples_ns.empty()) return;
    const bool bf16 = options_.dtype == DType::bf16 && limits_.peak_bf16_gflop_s;
    const double peak = bf16 ? *limits_.peak_bf16_gflop_s : limits_.peak_f32_gflop_s;
    const double compute_ns = c.flops / peak, memory_ns = (c.bytes.weights + c.bytes.kv) / limits_.read_bandwidth_gb_s;
    r.share_of_roof = std::max(compute_ns, memory_ns) / r.median_ns();
    r.roof = memory_ns > compute_ns ? "read bandwidth (weights + KV)" : bf16 ? "bf16 peak" : "f32 peak";
  }

  const BenchFlags& flags_;
  const Config& config_;
  const Backend& backend_;
  Options options_;
  const MachineLimits& limits_;
  TokenSource tokens_;
  std::unique_ptr<Decoder> decoder_, oracle_;
  std::optional<Watch> watch_;  // over the record being made
  std::optional<double> distinct_;
  Tensor right_hidden_, right_logits_;
  Selection same_experts_;
};

void print_table(const Report& report, std::ostream& out) {
  Table table({"backend", "dtype", "kv", "phase", "batch", "prompt", "depth", "tokens/s", "ms", "GFLOP/s", "GB/s",
               "of roof", "KV", "peak mem", "status", "budget"});
  for (const Record& r : report.records) {
    const bool timed = r.status == Status::passed && !r.samples_ns.empty();
    const double ns = timed ? r.median_ns() : 0;
    table.add({r.backend, r.dtype, r.kv_dtype, r.phase, std::to_string(*r.batch),
               r.prompt ? std::to_string(*r.prompt) : "", std::to_string(*r.depth),
               timed ? fixed(*r.tokens / ns * 1e9, 2) : "", timed ? fixed(ns * 1e-6, 2) : "",
               timed ? fixed(*r.flops / ns, 1) : "", timed ? fixed(r.bytes->total() / ns, 1) : "",
               timed ? percent(*r.share_of_roof) : "", r.kv_bytes ? si(static_cast<double>(*r.kv_bytes), "B") : "",
               r.peak_memory_bytes ? si(static_cast<double>(*r.peak_memory_bytes), "B") : "",
               std::string(name(r.status)), percent(r.budget_used)});
  }
  table.print(out);
  for (const Record& r : report.records)
    if (r.status != Status::passed) out << '\n' << name(r.status) << ": " << r.name << "\n  " << r.reason << '\n';
}

int run(const BenchFlags& flags) {
  const Config config = flags.model.config();
  const auto prompts = parse_range(flags.prompt, "--prompt"), batches = parse_range(flags.batch, "--batch");
  const auto depths =
      flags.depth.empty() ? std::vector<std::int64_t>{prompts.back()} : parse_range(flags.depth, "--depth");
  for (const std::int64_t b : batches) DSV2_CHECK(b >= 1, "--batch: expected at least 1, found ", b);
  const auto chosen = flags.backend.backends();
  Report report;
  report.argv = command_line();
  report.seed = flags.model.seed();
  report.threads = flags.backend.thread_count();
  report.limits = measure_limits(report.threads);
  const ParameterCount parameters = count_parameters(config);
  report.model = {{"name", flags.model.label()},
                  {"config", Json::parse(config.to_json())},
                  {"weights", flags.model.random() ? concat("random, seed ", flags.model.seed()) : flags.model.model()},
                  {"parameters", {{"total", parameters.total}, {"active", parameters.active}}}};
  for (const std::string& dtype : flags.dtypes) {
    const Options options = flags.backend.options(dtype);
    std::shared_ptr<const Weights> weights;
    for (const Backend* backend : chosen) {
      if (const auto why = backend->unsupported(config, options)) {
        Record r;
        r.name = flags.model.label();
        r.op = "decoder";
        r.backend = backend->name;
        r.dtype = dtype;
        r.batch = batches.front();
        r.depth = 0;
        r.reason = *why;
        report.records.push_back(std::move(r));
        continue;
      }
      if (!weights) weights = flags.model.weights(config, options.dtype);
      Bench bench(flags, config, *backend, weights, options, report.limits);
      ProgressLine progress("bench");
      for (const std::int64_t b : batches) {
        for (const std::int64_t p : prompts) {
          if (p == 0) continue;
          progress.show(report.records.size(), report.records.size() + 1, concat(backend->name, " prefill ", p));
          report.records.push_back(bench.prefill(b, p));
        }
        for (const std::int64_t d : depths) {
          if (flags.generate == 0) continue;
          progress.show(report.records.size(), report.records.size() + 1, concat(backend->name, " decode at ", d));
          report.records.push_back(bench.decode(b, d));
        }
      }
    }
  }
  if (!flags.json.empty()) write_output(flags.json, report.to_json().dump(1) + "\n");
  std::ostream& out = flags.json == "-" ? std::cerr : std::cout;
  const MachineLimits& l = report.limits;
  out << flags.model.label() << ": " << si(static_cast<double>(parameters.total), "") << " parameters, "
      << si(static_cast<double>(parameters.active), "") << " active; " << machine().cpu << ", " << machine().isa << ", "
      << report.threads << " threads, reads " << fixed(l.read_bandwidth_gb_s, 1) << " GB/s, f32 peak "
      << fixed(l.peak_f32_gflop_s, 0) << " GFLOP/s\n\n";
  print_table(report, out);
  if (!flags.json.empty() && flags.json != "-") out << "\nreport: " << flags.json << '\n';
  const ExitCode code = report.exit_code();
  if (code == ExitCode::nothing_checked) std::cerr << "dsv2: nothing was measured\n";
  return static_cast<int>(code);
}

}  // namespace

void add_bench(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* sub = app.add_subcommand("bench", "Measure prefill and decode of a model, checked before and after");
  flags->model.add_to(*sub);
  flags->backend.add_to(*sub, "cpu");
  sub->add_option("--dtype", flags->dtypes, "Of matrices and their arithmetic: f32, bf16 (default bf16)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->default_str("bf16");
  sub->add_option("--prompt", flags->prompt,
                  "Tokens of a prefill; lists and ranges: 128,512 or 1-8*2 (default 512; 0: none)");
  sub->add_option("--generate", flags->generate, "Decode steps in one repetition (default 64; 0: none)")
      ->check(CLI::Range(0, 1 << 20));
  sub->add_option("--depth", flags->depth, "Tokens in the cache when decoding starts (default: the prompt)");
  sub->add_option("--batch", flags->batch, "Sequences at once (default 1)");
  sub->add_option("--repetitions", flags->repetitions, "Of prefill, and of the run of decode steps (default 3)")
      ->check(CLI::Range(1, 10000));
  sub->add_option("--json", flags->json, "Write the report here (-: stdout)");
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
