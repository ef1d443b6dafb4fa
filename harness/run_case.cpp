#include "harness/run_case.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>

#include "harness/backend_fault.h"
#include "harness/backends.h"
#include "harness/generate.h"
#include "harness/taps.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kLowPrecisionFactor = 2.0;  // times the framework's own bf16 error, where the case carries it

/// Rounding of the arithmetic and of an int8 cache is independent, so that errors add up in squares: each has the bound
/// to itself. The reference cannot keep such rows, and in a prefill all of them are new.
double bound_of(const Options& o) {
  const double arithmetic = low_precision_bound(o.dtype), cache = low_precision_bound(DType::bf16);
  if (o.kv_dtype != DType::i8) return arithmetic;
  return o.dtype == DType::f32 ? cache : std::hypot(arithmetic, cache);
}

bool low_precision(const Options& o) { return o.dtype != DType::f32 || o.kv_dtype != DType::f32; }

std::string layer_name(std::string pattern, std::int64_t layer) {
  if (const auto at = pattern.find("{i}"); at != std::string::npos) pattern.replace(at, 3, std::to_string(layer));
  return pattern;
}

OwnedInput make_input(const GoldenCase& golden, const std::map<std::string, TensorRef>& refs) {
  OwnedInput input;
  for (const auto& [kind, ref] : refs) input.set(kind, golden.tensor(ref));
  return input;
}

/// What a call gave, addressed by the kinds of FORMAT.md.
struct Result {
  ForwardOutput out;
  RecordingSink router{is_router_tap};

  /// Empty when this call did not produce the kind.
  Tensor fetch(const std::string& kind, std::int64_t layer, const Config& config) const {
    const auto copy = [](const Tensor* t) { return t ? t->clone() : Tensor(); };
    const auto tap = [&](const char* what) { return router.find(concat("layers.", layer, ".mlp.gate.", what)); };
    if (kind == "logits") return out.logits.clone();
    if (kind == "last_hidden_state") return out.last_hidden_state.clone();
    if (kind == "loss") {
      if (!out.loss) return {};
      return Tensor::from<double>(std::vector<double>{*out.loss}, {});
    }
    const auto at = static_cast<std::size_t>(std::max<std::int64_t>(layer, 0));
    if (kind == "hidden_states") return at < out.hidden_states.size() ? out.hidden_states[at].clone() : Tensor();
    if (kind == "attentions") return at < out.attentions.size() ? out.attentions[at].clone() : Tensor();
    if (kind == "router_logits") return copy(tap("logits"));
    if (kind == "router_topk_idx") return copy(tap("topk_idx"));
    const Tensor *idx = tap("topk_idx"), *weight = tap("topk_weight");
    if (!idx || !weight) return {};
    const std::int64_t N = idx->dim(0), k = idx->dim(1), E = *config.n_routed_experts;
    Tensor dense(DType::f64, {N, E});
    for (std::int64_t i = 0; i < N * k; ++i)
      dense.as<double>()[static_cast<std::size_t>(i / k * E + idx->as<std::int64_t>()[static_cast<std::size_t>(i)])] =
          weight->at(i);
    return dense;
  }
};

bool by_everything(const std::string& kind) { return indexed(kind) != Indexed::no; }

/// Position-wise flags [B,S] spread over the leading dimensions of a tensor of this kind and shape.
Selection spread(const std::vector<bool>& flags, const std::string& kind, const Shape& shape, std::int64_t B,
                 std::int64_t S) {
  if (flags.empty()) return {};
  if (kind == "attentions") {
    Selection rows;
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t h = 0; h < shape[1]; ++h)
        for (std::int64_t s = 0; s < S; ++s) rows.push_back(flags[static_cast<std::size_t>(b * S + s)]);
    return rows;
  }
  if (kind == "loss" || (kind == "logits" && shape.size() == 2)) return {};  // pooled: always compared
  return flags;
}

class CaseRun {
 public:
  CaseRun(const GoldenCase& golden, const Backend& backend, const CaseOptions& options)
      : golden_(golden),
        config_(golden.config),
        options_(options),
        bound_(bound_of(options.decoder)),
        is_reference_(backend.name == reference::backend().name) {
    const auto stored = Weights::load(golden.weights_path, config_);
    weights_ = options.decoder.dtype != DType::f32 ? Weights::rounded(stored, config_, options.decoder.dtype) : stored;
    decoder_ = backend.create(config_, weights_, options.decoder);
    if (!is_reference_ && (options.taps || low_precision(options.decoder)))
      oracle_ = reference::backend().create(config_, weights_, Options{});
  }

  void run(Record& prefill, Record& decode) {
    for (const GoldenCall& call : golden_.calls) run_call(call, prefill, decode);
    for (const GoldenGeneration& g : golden_.generate) run_generation(g, prefill, decode);
  }

 private:
  /// The state that one named cache of the case has on each side.
  struct Caches {
    std::unique_ptr<KvCache> tested, oracle;
    std::vector<bool> diverged;  // low precision: sequences in which a token chose other experts
  };

  Record& record_of(const OwnedInput& inputs, std::int64_t past, Record& prefill, Record& decode) const {
    return past > 0 && inputs.tokens() == 1 ? decode : prefill;
  }

  Caches make_caches(const OwnedInput& inputs, const GoldenCall& call) {
    Caches caches;
    if (call.cache_from.empty()) {
      const std::int64_t capacity = inputs.tokens();
      caches.tested = decoder_->make_cache(inputs.batch(), capacity);
      if (oracle_) caches.oracle = oracle_->make_cache(inputs.batch(), capacity);
    } else {
      LegacyCache given;
      for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
        const auto part = [&](std::size_t p) {
          const auto& pattern = call.cache_from.at(std::string(cache_parts(config_)[p].name));
          return golden_.tensor({layer_name(pattern, i), std::nullopt});
        };
        given.push_back({part(0), part(1)});
      }
      caches.tested = decoder_->make_cache(given);
      if (oracle_) caches.oracle = oracle_->make_cache(given);
    }
    caches.diverged.assign(static_cast<std::size_t>(inputs.batch()), false);
    return caches;
  }

  /// Runs the production path on the real cache and books what it took.
  ForwardOutput timed(const ForwardInput& input, std::int64_t past, std::int64_t B, std::int64_t S, Record& record) {
    const auto start = Clock::now();
    ForwardOutput out = decoder_->forward(input);
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
    const Cost c = cost(config_, {.batch = B,
                                  .tokens = S,
                                  .context = past + S,
                                  .dtype = options_.decoder.dtype,
                                  .kv_dtype = options_.decoder.kv_dtype,
                                  .logits = input.logits});
    if (record.samples_ns.empty()) record.samples_ns.push_back(0);
    record.samples_ns.front() += ns;
    record.flops = record.flops.value_or(0) + c.flops;
    Bytes bytes = record.bytes.value_or(Bytes{});
    bytes += c.bytes;
    record.bytes = bytes;
    record.tokens = record.tokens.value_or(0) + static_cast<double>(B * S);
    record.kv_bytes = std::max(record.kv_bytes.value_or(0), static_cast<std::int64_t>(c.kv_bytes));
    return out;
  }

  /// With every op judged alone. Caches start from the oracle's, so that nothing has accumulated.
  void judge_taps(const ForwardInput& input, const KvCache* oracle_cache, std::int64_t total, const std::string& id,
                  Record& record) {
    RecordingSink right;
    ForwardInput probe = input;
    probe.hidden_states = probe.attentions = false;
    std::unique_ptr<KvCache> oracle_probe, tested_probe;
    if (oracle_cache) {
      oracle_probe = oracle_cache->clone();
      tested_probe = oracle_cache->length() > 0 ? decoder_->make_cache(oracle_cache->to_legacy())
                                                : decoder_->make_cache(oracle_cache->batch(), oracle_cache->capacity());
      if (oracle_cache->length() > 0 && low_precision(options_.decoder))
        oracle_probe = oracle_->make_cache(tested_probe->to_legacy());  // the rows as they are stored
    }
    probe.cache = oracle_probe.get();
    probe.taps = &right;
    oracle_->forward(probe);
    const Precision stored = precision_of(options_.decoder);
    ForcingSink alone(right, config_, stored, total, weights_.get());
    probe.cache = tested_probe.get();
    probe.taps = &alone;
    decoder_->forward(probe);
    record.ties += alone.ties();
    for (Comparison c : alone.comparisons()) {
      c.name = concat(id, ": ", c.name, " (alone)");
      record.add(c);
    }
    for (const std::string& tap_name : alone.missing()) {
      Comparison c;
      c.name = concat(id, ": ", tap_name);
      c.passed = false;
      c.reason = "not reported: every backend must tap it";
      record.add(c);
    }
  }

  /// Other experts are excused where the gate's logits are as near as low precision gets them, and counted.
  Comparison judge_change(const RouteChange& change, std::int64_t row) const {
    Comparison c;
    c.name = concat("layers.", change.layer, ".mlp.gate.topk_idx");
    c.worst = {row};
    c.rule = concat("other experts only where the gate's logits are within ", 2 * bound_, " (relative L2)");
    c.relative_l2 = change.logits_distance;
    c.bound = 2 * bound_;
    c.budget_used = c.relative_l2 / c.bound;
    c.passed = c.relative_l2 <= c.bound;
    c.zeros = true;
    if (!c.passed)
      c.reason =
          concat("token ", row, " chose other experts, and its logits are off by ", c.relative_l2, " (relative L2)");
    return c;
  }

  /// Flags [B,S] that count: `valid`, less the rows from a token on that chose other experts than the oracle.
  std::vector<bool> flags_of(const std::optional<Tensor>& valid, const Result& tested, const Result* oracle,
                             Caches& caches, std::int64_t B, std::int64_t S, Record& record) {
    std::vector<bool> flags;
    if (valid) {
      DSV2_CHECK((valid->shape() == Shape{B, S}), golden_.folder.string(), ": valid: expected shape ",
                 to_string(Shape{B, S}), ", found ", to_string(valid->shape()));
      for (std::int64_t i = 0; i < B * S; ++i) flags.push_back(valid->at(i) != 0);
    }
    if (!oracle || !low_precision(options_.decoder)) return flags;
    if (flags.empty()) flags.assign(static_cast<std::size_t>(B * S), true);
    for (std::int64_t b = 0; b < B; ++b) {
      bool gone = caches.diverged[static_cast<std::size_t>(b)];
      for (std::int64_t s = 0; s < S; ++s) {
        const auto row = static_cast<std::size_t>(b * S + s);
        if (!gone && flags[row]) {
          const auto at = static_cast<std::int64_t>(row);
          if (const auto change = route_change(tested.router, at, oracle->router, at, config_)) {
            gone = true;
            record.add(judge_change(*change, at));
          }
        }
        if (gone && flags[row]) {
          flags[row] = false;
          ++record.rows_left_out;
        }
      }
      caches.diverged[static_cast<std::size_t>(b)] = gone;
    }
    return flags;
  }

  void run_call(const GoldenCall& call, Record& prefill, Record& decode) {
    OwnedInput inputs = make_input(golden_, call.inputs);
    DSV2_CHECK(inputs.input.input_ids || inputs.input.inputs_embeds, golden_.folder.string(), ": call ", call.id,
               ": inputs: expected input_ids or inputs_embeds, found neither");
    const TensorView first = inputs.input.input_ids ? *inputs.input.input_ids : *inputs.input.inputs_embeds;
    DSV2_CHECK(first.shape.size() >= 2, golden_.folder.string(), ": call ", call.id,
               ": inputs: expected [B, S] or [B, S, D], found ", to_string(first.shape));
    Caches alone;
    Caches* caches = &alone;
    if (call.cache) {
      auto it = caches_.find(*call.cache);
      if (it == caches_.end()) it = caches_.emplace(*call.cache, make_caches(inputs, call)).first;
      caches = &it->second;
    } else {
      alone.diverged.assign(static_cast<std::size_t>(inputs.batch()), false);
    }
    const std::int64_t B = inputs.batch(), S = inputs.tokens(), past = caches->tested ? caches->tested->length() : 0;
    Record& record = record_of(inputs, past, prefill, decode);
    ForwardInput input = inputs.input;
    if (call.outputs.contains("logits") || call.outputs.contains("loss")) input.logits = Logits::all;

    if (oracle_ && options_.taps) judge_taps(input, caches->oracle.get(), past + S, call.id, record);

    Result everything, oracle;
    ForwardInput full = input;
    for (const auto& [kind, pattern] : call.outputs) {
      full.hidden_states = full.hidden_states || kind == "hidden_states";
      full.attentions = full.attentions || kind == "attentions";
    }
    const auto run_full = [&](Decoder& decoder, KvCache* cache, Result& result) {
      ForwardInput f = full;
      f.cache = cache;
      f.taps = &result.router;
      result.out = decoder.forward(f);
    };
    {
      const std::unique_ptr<KvCache> probe = caches->tested ? caches->tested->clone() : nullptr;
      run_full(*decoder_, probe.get(), everything);
    }
    if (oracle_) run_full(*oracle_, caches->oracle.get(), oracle);
    const std::optional<Tensor> valid = call.valid ? std::optional(golden_.tensor(*call.valid)) : std::nullopt;
    const std::vector<bool> flags = flags_of(valid, everything, oracle_ ? &oracle : nullptr, *caches, B, S, record);

    input.cache = caches->tested.get();
    Result production;
    production.out = timed(input, past, B, S, record);
    if (caches->tested) record.kv_bytes = caches->tested->bytes();

    for (const char* kind : {"hidden_states", "router_logits", "router_topk_idx", "router_weights", "attentions",
                             "last_hidden_state", "logits", "loss"}) {
      const auto it = call.outputs.find(kind);
      if (it == call.outputs.end()) continue;
      const auto bf16 = call.outputs_bf16.find(kind);
      const auto bf16_names = bf16 == call.outputs_bf16.end() ? std::vector<std::pair<std::int64_t, std::string>>{}
                                                              : golden_.expand(kind, bf16->second);
      const auto names = golden_.expand(kind, it->second);
      for (std::size_t n = 0; n < names.size(); ++n) {
        const auto& [layer, tensor_name] = names[n];
        const Tensor got = (by_everything(kind) ? everything : production).fetch(kind, layer, config_);
        const TensorView want = golden_.expected(tensor_name);
        const Selection rows = spread(flags, kind, want.shape, B, S);
        const TensorView framework = bf16_names.empty() ? TensorView{} : golden_.expected(bf16_names[n].second);
        record.add(judge(kind, tensor_name, got.view(), want, framework, oracle, layer, rows, *caches));
        if (is_quantised(options_.decoder.dtype) && kind == std::string("logits") && got.shape() == want.shape)
          record.loss_to_f32 = std::max(record.loss_to_f32.value_or(0), relative_l2(got.view(), want, rows));
      }
    }
    if (!call.cache_after.empty()) {
      std::vector<bool> cache_flags;
      if (call.cache_valid) {
        const Tensor v = golden_.tensor(*call.cache_valid);
        for (std::int64_t i = 0; i < v.size(); ++i) cache_flags.push_back(v.at(i) != 0);
      }
      compare_cache(call.cache_after, *caches, cache_flags, record);
    }
  }

  /// One output tensor by the rule that the precision asks for.
  Comparison judge(const std::string& kind, const std::string& tensor_name, const TensorView& got,
                   const TensorView& want, const TensorView& framework, const Result& oracle, std::int64_t layer,
                   const Selection& rows, const Caches& caches) const {
    if (!got) {
      Comparison c;
      c.name = tensor_name;
      c.passed = false;
      c.reason = "the backend did not produce it";
      return c;
    }
    if (!low_precision(options_.decoder)) {
      if (want.dtype == DType::i64) return compare_exact(tensor_name, got, want, rows);
      return compare_float32(tensor_name, got, want, golden_.tolerance_of(tensor_name), rows);
    }
    const bool pooled = kind == "loss" || (kind == "logits" && want.shape.size() == 2);
    const bool any_diverged = std::find(caches.diverged.begin(), caches.diverged.end(), true) != caches.diverged.end();
    if (pooled && any_diverged) {  // a changed expert reaches the pooled number: the logits of the other rows judge
      Comparison c;
      c.name = tensor_name;
      c.rule = "left out: experts changed";
      c.zeros = true;
      return c;
    }
    if (want.dtype == DType::i64) {
      // The oracle's, too: its weights are rounded, so that it may choose otherwise than what is stored.
      const Tensor right = is_reference_ ? Tensor() : oracle.fetch(kind, layer, config_);
      return compare_exact(tensor_name, got, right ? right.view() : want, rows);
    }
    // The framework quantises nothing.
    if (framework && !is_quantised(options_.decoder.dtype) && options_.decoder.kv_dtype != DType::i8) {
      const double own = relative_l2(framework, want, rows);
      return compare_relative_l2(tensor_name, got, want, kLowPrecisionFactor * own,
                                 concat("relative L2 <= ", kLowPrecisionFactor, " x the framework's own ", own), rows);
    }
    const Tensor right = is_reference_ ? convert(got, DType::f64) : oracle.fetch(kind, layer, config_);
    return compare_relative_l2(tensor_name, got, right.view(), bound_,
                               concat("relative L2 <= ", bound_, " from the double reference"), rows);
  }

  void compare_cache(const std::map<std::string, std::string>& pattern, const Caches& caches,
                     const std::vector<bool>& valid, Record& record) {
    const LegacyCache got = caches.tested->to_legacy();
    const LegacyCache right =
        low_precision(options_.decoder) && caches.oracle ? caches.oracle->to_legacy() : LegacyCache{};
    const std::int64_t B = caches.tested->batch(), T = caches.tested->length();
    DSV2_CHECK(valid.empty() || static_cast<std::int64_t>(valid.size()) == B * T, golden_.folder.string(),
               ": cache_valid: expected ", B * T, " flags, found ", valid.size());
    for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
      for (std::size_t p = 0; p < 2; ++p) {
        const std::string tensor_name = layer_name(pattern.at(std::string(cache_parts(config_)[p].name)), i);
        const auto& layer = got[static_cast<std::size_t>(i)];
        const TensorView view = (p == 0 ? layer.first : layer.second).view();
        const std::int64_t heads = cache_parts(config_)[p].heads;
        Selection rows;
        for (std::int64_t b = 0; !valid.empty() && b < B; ++b)
          for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t t = 0; t < T; ++t) rows.push_back(valid[static_cast<std::size_t>(b * T + t)]);
        if (!low_precision(options_.decoder)) {
          record.add(compare_float32(tensor_name, view, golden_.expected(tensor_name),
                                     golden_.tolerance_of(tensor_name), rows));
          continue;
        }
        if (right.empty() || std::find(caches.diverged.begin(), caches.diverged.end(), true) != caches.diverged.end())
          continue;
        const auto& want = right[static_cast<std::size_t>(i)];
        record.add(compare_relative_l2(tensor_name, view, (p == 0 ? want.first : want.second).view(), bound_,
                                       concat("relative L2 <= ", bound_, " from the double reference"), rows));
      }
    }
  }

  /// Greedy generation. float32 runs freely and must find the same ids. Low precision is fed the oracle's ids and
  /// judged by its logits: an id can only change where they are within the bound of each other.
  void run_generation(const GoldenGeneration& g, Record& prefill, Record& decode) {
    const TensorView want_ids = golden_.expected(g.ids);
    OwnedInput inputs = make_input(golden_, g.inputs);
    const std::int64_t B = inputs.batch(), S = inputs.tokens(), V = config_.vocab_size;
    Caches caches;
    caches.tested = decoder_->make_cache(B, S + g.max_new_tokens);
    const bool forced = low_precision(options_.decoder);
    if (forced && oracle_) caches.oracle = oracle_->make_cache(B, S + g.max_new_tokens);
    caches.diverged.assign(static_cast<std::size_t>(B), false);
    std::vector<std::vector<std::int64_t>> ids;  // per step
    std::vector<Tensor> step_logits;
    std::int64_t flips = 0;
    for (std::int64_t step = 0; step < g.max_new_tokens; ++step) {
      Record& record = step == 0 ? prefill : decode;
      ForwardInput input = inputs.input;
      input.logits = Logits::last;
      input.cache = caches.tested.get();
      Result tested, oracle;
      if (forced) input.taps = &tested.router;
      tested.out = timed(input, caches.tested->length(), B, inputs.tokens(), record);
      const std::vector<double> logits = widen<double>(tested.out.logits.view());
      if (!std::all_of(logits.begin(), logits.end(), [](double x) { return std::isfinite(x); })) {
        Comparison c;
        c.name = concat(g.id, ".logits step ", step);
        c.passed = false;
        c.reason = concat(c.name, ": expected finite values");
        return record.add(c);
      }
      std::vector<std::int64_t> chosen = argmax_last(tested.out.logits.view());
      if (forced && oracle_) {
        input.cache = caches.oracle.get();
        input.taps = &oracle.router;
        oracle.out = oracle_->forward(input);
        const std::vector<bool> all_flags = flags_of(std::nullopt, tested, &oracle, caches, B, inputs.tokens(), record);
        std::vector<bool> flags;
        for (std::int64_t b = 0; b < B; ++b)
          flags.push_back(all_flags[static_cast<std::size_t>((b + 1) * inputs.tokens() - 1)]);
        if (std::find(flags.begin(), flags.end(), true) != flags.end())
          record.add(compare_relative_l2(concat(g.id, ".logits step ", step), tested.out.logits.view(),
                                         oracle.out.logits.view(), bound_,
                                         concat("relative L2 <= ", bound_, " from the double reference"), flags));
        const std::vector<std::int64_t> right = argmax_last(oracle.out.logits.view());
        for (std::size_t b = 0; b < right.size(); ++b) flips += right[b] != chosen[b];
        chosen = right;
      }
      step_logits.push_back(std::move(tested.out.logits));
      ids.push_back(chosen);
      if (g.eos_token_id && B == 1 && chosen[0] == *g.eos_token_id) break;
      inputs = next_input(inputs, chosen);
    }
    Record& record = decode.samples_ns.empty() ? prefill : decode;
    record.kv_bytes = caches.tested->bytes();
    record.ties += flips;
    if (forced) return;
    const auto n = static_cast<std::int64_t>(ids.size());
    Tensor got_ids(DType::i64, {B, n}), got_logits(DType::f64, {B, n, V});
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t j = 0; j < n; ++j) {
        got_ids.as<std::int64_t>()[static_cast<std::size_t>(b * n + j)] =
            ids[static_cast<std::size_t>(j)][static_cast<std::size_t>(b)];
        for (std::int64_t v = 0; v < V; ++v)
          got_logits.as<double>()[static_cast<std::size_t>((b * n + j) * V + v)] =
              step_logits[static_cast<std::size_t>(j)].at(b * V + v);
      }
    record.add(compare_exact(g.ids, got_ids.view(), want_ids));
    if (g.logits)
      record.add(
          compare_float32(*g.logits, got_logits.view(), golden_.expected(*g.logits), golden_.tolerance_of(*g.logits)));
    if (!g.cache_after.empty()) compare_cache(g.cache_after, caches, {}, record);
  }

  const GoldenCase& golden_;
  const Config& config_;
  const CaseOptions& options_;
  const double bound_;  // of low precision
  const bool is_reference_;
  std::shared_ptr<const Weights> weights_;
  std::unique_ptr<Decoder> decoder_, oracle_;
  std::map<std::string, Caches> caches_;
};

}  // namespace

std::vector<Record> run_case(const GoldenCase& golden, const Backend& backend, const CaseOptions& options) {
  Record blank;
  blank.name = golden.name;
  blank.op = "decoder";
  blank.backend = backend.name;
  blank.dtype = dsv2::name(options.decoder.dtype);
  blank.kv_dtype = dsv2::name(options.decoder.kv_dtype);
  Record prefill = blank, decode = blank;
  prefill.phase = "prefill";
  decode.phase = "decode";
  const bool judged_by_itself =
      backend.name == reference::backend().name &&
      (is_quantised(options.decoder.dtype) || (low_precision(options.decoder) && !golden.has_bf16_outputs));
  if (golden.expected_count() == 0) {
    blank.reason = "the case has no tensor to compare";
    return {blank};
  }
  if (judged_by_itself) {
    blank.reason = "the double reference is what low precision is judged by here";
    return {blank};
  }
  if (const auto why = why_not(backend, golden.config, options.decoder)) {
    blank.reason = *why;
    return {blank};
  }
  try {
    CaseRun run(golden, backend, options);
    run.run(prefill, decode);
  } catch (const Error& e) {
    book_error(blank, e);
    book_findings(blank, backend.findings);
    return {blank};
  }
  book_findings(prefill.compared ? prefill : decode, backend.findings);
  std::vector<Record> records;
  for (Record* r : {&prefill, &decode}) {
    if (r->samples_ns.empty() && r->compared == 0) continue;
    r->coverage = is_quantised(options.decoder.dtype)
                      ? "outputs within 2 % of the double reference on the dequantised weights, and ops alone"
                  : low_precision(options.decoder)
                      ? "golden outputs within bf16 bounds, ops alone against the double reference"
                      : "every golden tensor; ops alone against the double reference";
    if (r->compared == 0) r->reason = "no tensor to compare in this phase";
    r->peak_memory_bytes = peak_memory_bytes();
    records.push_back(std::move(*r));
  }
  return records;
}

}  // namespace dsv2::harness
