#include "harness/bench_decoder.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <set>
#include <utility>

#include "harness/generate.h"
#include "harness/modelled.h"
#include "harness/output_watch.h"
#include "harness/taps.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

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

/// Decoders that compute in f32 may still keep bf16 matrices as they are stored: half the bytes to read.
DType stored_dtype(const Config& config, const Weights& weights, DType dtype) {
  if (dtype != DType::f32) return dtype;
  bool bf16 = false;
  for_each_tensor(config, weights, [&](const std::string&, const Shape&, const TensorView& view) {
    bf16 = bf16 || view.dtype == DType::bf16;
  });
  return bf16 ? DType::bf16 : DType::f32;
}

Comparison failed(std::string name, std::string reason) {
  Comparison c;
  c.name = std::move(name);
  c.passed = false;
  c.reason = std::move(reason);
  return c;
}

/// Tokens of a sequence by which a cache of `batch` is filled.
std::int64_t fill_tokens(std::int64_t batch) { return std::max<std::int64_t>(1, 1024 / batch); }

}  // namespace

std::int64_t longest_pass(const DecoderRow& row) {
  return row.prompt ? *row.prompt : std::clamp<std::int64_t>(row.depth, 1, fill_tokens(row.batch));
}

std::int64_t checking_bytes(const Config& config, const DecoderRow& row, std::int64_t context) {
  const Cost in_f32 = cost(config, {.batch = row.batch, .context = context, .kv_dtype = DType::f32});
  return static_cast<std::int64_t>(in_f32.kv_bytes) * 3;
}

std::int64_t context_of(const DecoderRow& row, std::int64_t generate) {
  return row.prompt ? *row.prompt : row.depth + generate + 1;
}

std::string decoder_row_name(const std::string& model, const DecoderRow& row, bool name_threads, bool cold) {
  return concat(model, row.prompt ? "/prefill/" : "/decode/", row.backend->name, "/", dsv2::name(row.options.dtype),
                "/kv_", dsv2::name(row.options.kv_dtype), "/b", row.batch,
                row.prompt ? concat("/p", *row.prompt) : concat("/d", row.depth),
                name_threads ? concat("/t", row.options.threads) : "", cold ? "/cold" : "");
}

Record skipped_row(const DecoderRow& row, std::string reason) {
  Record r;
  r.name = row.name;
  r.op = "decoder";
  r.phase = row.prompt ? "prefill" : "decode";
  r.backend = row.backend->name;
  r.dtype = dsv2::name(row.options.dtype);
  r.kv_dtype = dsv2::name(row.options.kv_dtype);
  r.batch = row.batch;
  r.prompt = row.prompt;
  r.depth = row.depth;
  r.reason = std::move(reason);
  return r;
}

/// The state of one row's measurement.
class DecoderBench::Work {
 public:
  Work(DecoderBench& bench, const DecoderRow& row, int block)
      : bench_(bench),
        decoder_(*bench.decoder_),
        row_(row),
        tokens_(bench.bench_.seed + 1 + static_cast<std::uint64_t>(block), bench.config_.vocab_size),
        record_(skipped_row(row, "")),
        beside_(threads_of(bench)) {
    record_.seed = bench.bench_.seed;
    record_.threads = threads_of(bench);
  }

  Record prefill() {
    const std::int64_t B = row_.batch, S = *row_.prompt, tail = std::min<std::int64_t>(S, kCheckedTokens);
    OwnedInput input = tokens_.next(B, S);
    for (int draw = 0; !check_prefill(input, tail, draw < kRedraws); ++draw) input = tokens_.next(B, S);
    std::unique_ptr<KvCache> cache;
    OwnedInput fresh;
    ForwardOutput out;
    const auto prepare = [&](std::int64_t) {
      out = {};
      fresh = tokens_.next(B, S);
      cache = decoder_.make_cache(B, S);
      fresh.input.cache = cache.get();
      fresh.input.logits = Logits::last;
    };
    time({.prepare = prepare,
          .run = [&] { out = decoder_.forward(fresh.input); },
          .inspect = [&](std::int64_t) { return believe(fresh, out); }},
         1);
    check_prefill_as_timed(input, tail);
    if (record_.status == Status::passed) {
      prepare(0);
      profile(fresh.input, S, S, concat("prefill, batch ", B, ", ", S, " tokens"));
    }
    record_.coverage =
        concat("last ", tail, " of ", S, " tokens through all layers from the tested cache, before and after timing");
    finish(S, S);
    return std::move(record_);
  }

  Record decode() {
    const std::int64_t B = row_.batch, depth = row_.depth, generate = bench_.bench_.generate;
    const auto cache = decoder_.make_cache(B, context_of(row_, generate));
    for (std::int64_t done = 0; done < depth;) {
      OwnedInput fill = tokens_.next(B, std::min(depth - done, fill_tokens(B)));
      fill.input.cache = cache.get();
      decoder_.forward(fill.input);
      done = cache->length();
    }
    record_.kv_bytes = cache->bytes();
    OwnedInput step;
    Tensor right;
    for (int draw = 0; !right; ++draw) {
      step = tokens_.next(B, 1);
      step.input.cache = cache.get();
      step.input.logits = Logits::last;
      right = check_step(step, draw < kRedraws);
    }
    OwnedInput fresh;
    ForwardOutput out;
    const auto prepare = [&](std::int64_t iteration) {
      out = {};
      if (iteration % generate == 0) cache->truncate(depth);
      fresh = tokens_.next(B, 1);
      fresh.input.cache = cache.get();
      fresh.input.logits = Logits::last;
    };
    time({.prepare = prepare,
          .run = [&] { out = decoder_.forward(fresh.input); },
          .inspect = [&](std::int64_t) { return believe(fresh, out); }},
         generate);
    cache->truncate(depth);
    check_step_as_timed(step, right);
    for (int i = 0; i < kProfiledSteps && record_.status == Status::passed; ++i) {
      cache->truncate(depth);
      profile(step.input, 1, depth + 1, concat("decode, batch ", B, ", depth ", depth));
    }
    record_.coverage =
        concat("one step at depth ", depth, ": every op alone and all layers together, before and after timing");
    finish(1, depth + (generate + 1) / 2);
    return std::move(record_);
  }

 private:
  static int threads_of(const DecoderBench& bench) {
    return bench.backend_.name == reference::backend().name ? 1 : bench.options_.threads;
  }

  static constexpr std::int64_t kCheckedTokens = 4;
  /// Relative L2 from the double reference on the rounded weights.
  double bound() const { return low_precision_bound(bench_.options_.dtype); }
  static constexpr int kRedraws = 8;  // of tokens that rounding sends to other experts (tiny models: one step in 200)
  // A decode step is over before the threads that slept while the oracle ran are awake: the quickest of a few counts.
  static constexpr int kProfiledSteps = 3;

  /// One more step, by op; of several of one record the quickest is kept. Never among the samples: being watched makes
  /// it slower.
  void profile(const ForwardInput& input, std::int64_t S, std::int64_t T, std::string what) {
    StepProfile step = profile_step(decoder_, input, workload(S, T, distinct_));
    step.name = record_.name;
    step.backend = record_.backend;
    step.dtype = record_.dtype;
    step.what = std::move(what);
    auto& kept = bench_.profiles_;
    const bool again = !record_.ops.empty();
    if (again && kept.back().total_ns <= step.total_ns) return;
    record_.ops = step.by_op();
    if (again) kept.pop_back();
    kept.push_back(std::move(step));
  }

  /// Runs the tested decoder on all of `input` and the oracle on its last tokens, from the tested cache. False, and
  /// nothing judged, with `may_redraw`, when rounding sent every one of them to other experts.
  bool check_prefill(OwnedInput& input, std::int64_t tail, bool may_redraw) {
    const std::int64_t B = row_.batch, S = *row_.prompt;
    const auto cache = decoder_.make_cache(B, S);
    RecordingSink routes(is_router_tap), right_routes(is_router_tap);
    input.input.cache = cache.get();
    input.input.logits = Logits::last;
    input.input.taps = &routes;
    const ForwardOutput got = decoder_.forward(input.input);
    input.input.taps = nullptr;
    distinct_ = distinct_experts(routes);
    record_.kv_bytes = cache->bytes();
    cache->truncate(S - tail);
    const auto before = S > tail ? bench_.oracle_->make_cache(cache->to_legacy()) : bench_.oracle_->make_cache(B, tail);
    OwnedInput last;
    last.set("input_ids", last_ids(*input.input.input_ids, tail));
    last.input.cache = before.get();
    last.input.logits = Logits::last;
    last.input.taps = &right_routes;
    right_ = bench_.oracle_->forward(last.input);
    same_experts_ = same_routes(routes, right_routes, B, S, tail);
    const bool any = std::find(same_experts_.begin(), same_experts_.end(), true) != same_experts_.end();
    if (!any && may_redraw && low_precision()) return false;
    judge_prefill(got, tail);
    return true;
  }

  /// The same input without taps, the way it was timed.
  void check_prefill_as_timed(OwnedInput& input, std::int64_t tail) {
    const auto cache = decoder_.make_cache(row_.batch, *row_.prompt);
    input.input.cache = cache.get();
    judge_prefill(decoder_.forward(input.input), tail);
  }

  void judge_prefill(const ForwardOutput& got, std::int64_t tail) {
    const Selection& rows = same_experts_;
    record_.rows_left_out = std::count(rows.begin(), rows.end(), false);
    record_.add(judge("last_hidden_state", last_rows(got.last_hidden_state, tail).view(),
                      right_.last_hidden_state.view(), rows));
    Selection final_rows;
    for (std::int64_t b = 0; b < row_.batch; ++b)
      final_rows.push_back(rows[static_cast<std::size_t>((b + 1) * tail - 1)]);
    record_.add(judge("logits", got.logits.view(), right_.logits.view(), final_rows));
  }

  /// Every op of one step alone, then all layers together. Returns the oracle's logits; nothing, with `may_redraw`,
  /// when rounding sent every token to other experts, so that the layers together prove nothing.
  Tensor check_step(OwnedInput& step, bool may_redraw) {
    KvCache& cache = *step.input.cache;
    const auto right_cache =
        row_.depth > 0 ? bench_.oracle_->make_cache(cache.to_legacy()) : bench_.oracle_->make_cache(row_.batch, 1);
    RecordingSink everything;
    ForwardInput in = step.input;
    in.cache = right_cache.get();
    in.taps = &everything;
    Tensor right = std::move(bench_.oracle_->forward(in).logits);
    ForcingSink alone(everything, bench_.config_, precision_of(bench_.options_), row_.depth + 1, bench_.weights_.get());
    in.cache = &cache;
    in.taps = &alone;
    decoder_.forward(in);
    cache.truncate(row_.depth);
    for (const Comparison& c : alone.comparisons()) record_.add(c);
    record_.ties += alone.ties();

    RecordingSink routes(is_router_tap);
    step.input.taps = &routes;
    const ForwardOutput got = decoder_.forward(step.input);
    step.input.taps = nullptr;
    cache.truncate(row_.depth);
    distinct_ = distinct_experts(routes);
    Comparison together = judge("logits", got.logits.view(), right.view(), {});
    if (!together.passed && low_precision()) {
      same_experts_ = near_routes(routes, everything);
      const std::int64_t left_out = std::count(same_experts_.begin(), same_experts_.end(), false);
      if (left_out == row_.batch && may_redraw) return {};
      record_.rows_left_out += left_out < row_.batch ? left_out : 0;
      if (left_out == row_.batch) same_experts_.clear();  // what is left to judge is what failed
      together = judge("logits", got.logits.view(), right.view(), same_experts_);
    }
    record_.add(together);
    return right;
  }

  /// The same step without taps, the way it was timed.
  void check_step_as_timed(OwnedInput& step, const Tensor& right) {
    const ForwardOutput got = decoder_.forward(step.input);
    step.input.cache->truncate(row_.depth);
    record_.add(judge("logits", got.logits.view(), right.view(), same_experts_));
  }

  /// Samples in rounds of `round` runs, if what was checked so far is right.
  void time(const Measured& work, std::int64_t round) {
    if (record_.status != Status::passed) return;
    if (bench_.backend_.simulated) {
      record_.coverage += "; simulated: not timed";
      if (work.prepare) work.prepare(0);
      before_ = bench_.backend_.profile();
      work.run();
      after_ = bench_.backend_.profile();
      return;
    }
    finite_.name = "timed logits are finite";
    TimingOptions options = bench_.bench_.timing;
    options.round = round;
    options.fixed_samples *= round;
    options.max_samples = std::max(options.max_samples, options.min_samples);
    Timing timing = harness::measure(work, options, system_timer(*record_.threads));
    record_.samples_ns = std::move(timing.samples_ns);
    record_.sampling = timing.sampling;
    record_.add(finite_);
  }

  /// After each timed run; false when its output is not to be believed.
  bool believe(const OwnedInput& input, const ForwardOutput& out) {
    record_.allocator_peak_bytes = std::max(record_.allocator_peak_bytes, allocator_bytes());
    finite_.count += out.logits.size();
    for (std::int64_t i = 0; i < out.logits.size(); ++i)
      if (!std::isfinite(out.logits.at(i))) {
        finite_.passed = false;
        finite_.reason = concat("found ", out.logits.at(i), " at element ", i);
        return false;
      }
    if (auto why = watch_.see(*input.input.input_ids, out.logits.view())) {
      record_.add(failed("timed logits", std::move(*why)));
      return false;
    }
    return true;
  }

  Workload workload(std::int64_t S, std::int64_t T, std::optional<double> distinct) const {
    const Options& o = bench_.options_;
    return {.batch = row_.batch,
            .tokens = S,
            .context = T,
            .dtype = bench_.stored_,
            .kv_dtype = o.kv_dtype,
            .mla_form = o.mla_form,
            .causal = true,
            .logits = Logits::last,
            .distinct_experts = distinct};
  }

  /// What a run of S new tokens that end at T costs, and whether the clock is to be believed.
  void finish(std::int64_t S, std::int64_t T) {
    const Cost c = cost(bench_.config_, workload(S, T, distinct_));
    record_.flops = c.flops;
    record_.bytes = c.bytes;
    record_.tokens = static_cast<double>(row_.batch * S);
    record_.conditions = beside_.finish();
    record_.predicted_memory = memory_needs(bench_.config_, bench_.backend_, bench_.stored_, bench_.options_,
                                            row_.batch, context_of(row_, bench_.bench_.generate), longest_pass(row_));
    record_.resident_memory_bytes = resident_memory_bytes();
    record_.peak_memory_bytes = peak_memory_bytes();
    if (!after_.empty()) {
      record_.modelled = modelled(before_, after_, c.bytes);
      record_.modelled["bars"] = bars(record_.modelled, {.decode = !row_.prompt,
                                                         .tensor_cores = bench_.options_.dtype == DType::bf16,
                                                         .layers = bench_.config_.num_hidden_layers});
    }
    if (record_.samples_ns.empty()) return;
    // Timed runs route their own tokens: to be sure, the fewest experts that they can have read.
    std::optional<double> fewest;
    if (distinct_) fewest = static_cast<double>(bench_.config_.num_experts_per_tok);
    const Bytes least = cost(bench_.config_, workload(S, T, fewest)).bytes;
    const int threads = bench_.options_.threads;
    auto why = faster_than_roof(record_.median_ns(), c.flops, least, bench_.options_.dtype, bench_.limits_, threads,
                                machine().cache_bytes);
    if (why) record_.add(failed("time", std::move(*why)));
    const Roof roof = roof_above(record_.median_ns(), c.flops, c.bytes, bench_.options_.dtype, bench_.limits_, threads);
    record_.share_of_roof = roof.ns / record_.median_ns();
    record_.roof = roof.what;
  }

  /// All layers together: rounding has gone through L of them, one after the other.
  Comparison judge(std::string what, const TensorView& got, const TensorView& want, const Selection& rows) const {
    if (low_precision())
      return compare_relative_l2(std::move(what), got, want, bound(),
                                 concat("relative L2 <= ", bound(), " from the double reference"), rows);
    const Config& c = bench_.config_;
    const DerivedBound layers{DType::f32, c.num_hidden_layers * (2 * c.hidden_size + c.intermediate_size)};
    return compare_relative_l2(std::move(what), got, want, kTensorFactor * layers.unit(),
                               concat("relative L2 <= ", kTensorFactor, " sqrt(", layers.reduction, ") u(f32)"), rows);
  }

  bool low_precision() const { return bench_.options_.dtype != DType::f32 || bench_.options_.kv_dtype != DType::f32; }

  /// Flags [B] of a step: false where a token went to other experts, by gate logits no further off than rounding takes
  /// them (twice what the logits may differ by, as in dsv2 check).
  Selection near_routes(const RecordingSink& got, const RecordingSink& want) const {
    Selection same(static_cast<std::size_t>(row_.batch), true);
    for (std::int64_t b = 0; b < row_.batch; ++b) {
      const auto change = route_change(got, b, want, b, bench_.config_);
      same[static_cast<std::size_t>(b)] = !(change && change->logits_distance <= 2 * bound());
    }
    return same;
  }

  /// Flags [B,tail]: from the first token on that chose other experts than the oracle, a row proves nothing.
  Selection same_routes(const RecordingSink& got, const RecordingSink& want, std::int64_t B, std::int64_t S,
                        std::int64_t tail) const {
    Selection same(static_cast<std::size_t>(B * tail), true);
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t s = 0; s < tail; ++s)
        if (route_change(got, b * S + S - tail + s, want, b * tail + s, bench_.config_)) {
          std::fill(same.begin() + b * tail + s, same.begin() + (b + 1) * tail, false);
          break;
        }
    return same;
  }

  DecoderBench& bench_;
  Decoder& decoder_;
  const DecoderRow& row_;
  TokenSource tokens_;
  Record record_;
  std::optional<double> distinct_;
  ForwardOutput right_;     ///< prefill: the oracle's, of the last tokens
  Selection same_experts_;  ///< rows that can be compared with the oracle
  Comparison finite_;       ///< over all timed runs
  OutputWatch watch_;
  std::string before_, after_;  ///< simulated: its reports around one run
  Watch beside_;                ///< over the record being made
};

DecoderBench::DecoderBench(const Config& config, const Backend& backend, std::shared_ptr<const Weights> weights,
                           const Options& options, const DecoderBenchOptions& bench, MeasuredLimits& limits)
    : config_(config),
      backend_(backend),
      options_(options),
      bench_(bench),
      limits_(limits),
      weights_(std::move(weights)),
      stored_(stored_dtype(config, *weights_, options.dtype)) {
  reset_peak_memory();
  decoder_ = backend.create(config, weights_, options);
  Options judge;
  const bool itself = backend.name == reference::backend().name;
  if (itself) judge.accumulate = options.accumulate == DType::f64 ? DType::f32 : DType::f64;
  oracle_ = reference::backend().create(config, weights_, judge);
}

Record DecoderBench::measure(const DecoderRow& row, int block) {
  Work work(*this, row, block);
  return row.prompt ? work.prefill() : work.decode();
}

}  // namespace dsv2::harness
