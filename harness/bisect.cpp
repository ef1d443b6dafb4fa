#include "harness/bisect.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <random>
#include <utility>

#include "harness/backend_fault.h"
#include "harness/backends.h"
#include "harness/table.h"
#include "harness/taps.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

/// Compares each tap with the recording and lets the decoder go on with what it has; only ties are settled.
class FreeSink final : public TapSink {
 public:
  FreeSink(const RecordingSink& right, const AccumulatedBound& bounds, const Config& config, const Weights& weights)
      : right_(right), bounds_(bounds), config_(config), weights_(weights) {}

  void tap(std::string_view name, const TensorView& view, void* data) override {
    const Tensor* right = right_.find(name);
    if (!right) return;
    if (view.dtype == DType::i64) {
      const std::string logits = concat(name.substr(0, name.rfind('.')), ".logits");
      RoutingComparison routing = compare_routing(name, view, right_, bounds_.unit(logits), config_, &weights_);
      tied_ = std::move(routing.tied);
      ties_ += std::count(tied_.begin(), tied_.end(), true);
      settle(view, *right, data);
      comparisons_.push_back(std::move(routing.comparison));
      return;
    }
    if (name.ends_with(".gate.topk_weight")) settle(view, *right, data);
    comparisons_.push_back(
        compare_derived(std::string(name), view, right->view(), bounds_.unit(name), bounds_.words(name)));
  }
  const std::vector<Comparison>& comparisons() const { return comparisons_; }
  std::int64_t ties() const { return ties_; }

 private:
  void settle(const TensorView& view, const Tensor& right, void* data) const {
    const Tensor settled = replace_rows(view, right.view(), tied_);
    std::memcpy(data, settled.data(), static_cast<std::size_t>(view.bytes()));
  }

  const RecordingSink& right_;
  const AccumulatedBound& bounds_;
  const Config& config_;
  const Weights& weights_;
  std::vector<bool> tied_;  // tokens of the layer at hand
  std::int64_t ties_ = 0;
  std::vector<Comparison> comparisons_;
};

/// The state of one named cache on each side.
struct Caches {
  std::unique_ptr<KvCache> right, free;
};

class Bisector {
 public:
  Bisector(const BisectWork& work, const MakeDecoder& make, const Options& options)
      : work_(work),
        stored_(precision_of(options)),
        weights_(options.dtype == DType::f32 ? work.weights
                                             : Weights::rounded(work.weights, work.config, options.dtype)),
        oracle_(reference::backend().create(work.config, weights_, Options{})),
        tested_(make(work.config, weights_, options)) {}

  Bisection run() {
    for (const BisectWork::Call& call : work_.calls) {
      if (call.cache.empty()) {
        Caches own = caches_for(call);
        run_call(call, own);
      } else {
        auto it = caches_.find(call.cache);
        if (it == caches_.end()) it = caches_.emplace(call.cache, caches_for(call)).first;
        run_call(call, it->second);
      }
      if (result_.stopped) break;
    }
    return std::move(result_);
  }

 private:
  Caches caches_for(const BisectWork::Call& call) const {
    const std::int64_t B = call.input.batch(), S = call.input.tokens();
    if (call.given.empty()) return {oracle_->make_cache(B, S), tested_->make_cache(B, S)};
    return {oracle_->make_cache(call.given), tested_->make_cache(call.given)};
  }

  void run_call(const BisectWork::Call& call, Caches& caches) {
    const std::int64_t past = caches.right->length(), total = past + call.input.tokens();
    const std::unique_ptr<KvCache> forced =
        past > 0 ? tested_->make_cache(caches.right->to_legacy()) : tested_->make_cache(caches.right->batch(), total);
    RecordingSink right;
    forward(*oracle_, call, *caches.right, right);
    const std::vector<std::string> order = with_cached_rows(right, work_.config);
    const LegacyCache right_rows = caches.right->to_legacy();

    std::map<std::string, BisectOp, std::less<>> ops;
    ForcingSink alone(right, work_.config, stored_, total, weights_.get());
    const bool whole = ran(call, *forced, alone);
    for (const Comparison& c : alone.comparisons()) ops[c.name].local = c;
    if (whole)
      compare_rows(*forced, right_rows, [&](const std::string& tap, const TensorView& got, const TensorView& want) {
        ops[tap].local = compare_derived(tap, got, want, bound_at(tap, work_.config, stored_, total));
      });
    for (const std::string& tap : whole ? alone.missing() : std::vector<std::string>()) {
      Comparison& c = ops[tap].local.emplace();
      c.name = tap, c.passed = false, c.budget_used = INFINITY;
      c.reason = "not reported: every backend must tap it";
    }

    const AccumulatedBound bounds(order, right, work_.config, stored_, total);
    FreeSink free(right, bounds, work_.config, *weights_);
    const bool whole_too = ran(call, *caches.free, free);
    for (const Comparison& c : free.comparisons()) ops[c.name].accumulated = c;
    if (whole_too)
      compare_rows(*caches.free, right_rows,
                   [&](const std::string& tap, const TensorView& got, const TensorView& want) {
                     ops[tap].accumulated = compare_derived(tap, got, want, bounds.unit(tap), bounds.words(tap));
                   });
    result_.ties += alone.ties() + free.ties();

    // A tap stands for the ops since the tap before it that the decoder reported.
    std::vector<std::string_view> since;
    for (const std::string& tap : order) {
      for (const std::string_view op : ops_at(tap, work_.config))
        if (std::find(since.begin(), since.end(), op) == since.end()) since.push_back(op);
      const auto it = ops.find(tap);
      if (it == ops.end()) continue;
      BisectOp& op = result_.ops.emplace_back(std::move(it->second));
      op.call = call.id;
      op.tap = tap;
      op.ops = std::exchange(since, {});
    }
  }

  /// Runs the tested decoder to its end; false when it throws, which ends the bisection with what was compared so far.
  bool ran(const BisectWork::Call& call, KvCache& cache, TapSink& sink) {
    try {
      forward(*tested_, call, cache, sink);
      return true;
    } catch (const Error& e) {
      if (!result_.stopped) result_.stopped = e, result_.broke = dynamic_cast<const BackendFault*>(&e) != nullptr;
      return false;
    }
  }

  static void forward(Decoder& decoder, const BisectWork::Call& call, KvCache& cache, TapSink& sink) {
    ForwardInput in = call.input.input;
    in.cache = &cache;
    in.logits = Logits::all;
    in.taps = &sink;
    decoder.forward(in);
  }

  template <class F>
  void compare_rows(const KvCache& cache, const LegacyCache& right, F&& compare) const {
    const LegacyCache got = cache.to_legacy();
    const auto parts = cache_parts(work_.config);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const auto layer = static_cast<std::int64_t>(i);
      compare(cache_tap(layer, parts[0].name), got[i].first.view(), right[i].first.view());
      compare(cache_tap(layer, parts[1].name), got[i].second.view(), right[i].second.view());
    }
  }

  const BisectWork& work_;
  Precision stored_;
  std::shared_ptr<const Weights> weights_;
  std::unique_ptr<Decoder> oracle_, tested_;
  std::map<std::string, Caches> caches_;
  Bisection result_;
};

std::string share(const std::optional<Comparison>& c) {
  if (!c) return "";
  return std::isfinite(c->budget_used) ? percent(c->budget_used) : "not finite";
}

/// "got 1.25, expected 1.5, 310 x the bound"
std::string in_short(const Comparison& c) {
  if (!c.reason.empty()) return c.reason;
  char text[128];
  std::snprintf(text, sizeof text, "got %.9g, expected %.9g, ", c.got, c.want);
  if (!std::isfinite(c.budget_used)) return concat(text, c.bound > 0 ? "not finite" : "must be equal");
  return concat(text, fixed(c.budget_used, c.budget_used < 100 ? 1 : 0), " x the bound");
}

std::string list(const std::vector<std::string_view>& words) {
  std::string all;
  for (const std::string_view word : words) all += concat(all.empty() ? "" : ", ", word);
  return all;
}

std::string without_layer(const std::string& tap) {
  const std::string layer = concat("layers.", layer_of(tap));
  if (!tap.starts_with(layer)) return tap;
  return tap == layer ? "(residual stream)" : tap.substr(layer.size() + 1);
}

template <class Which>
const BisectOp* worst(const std::vector<BisectOp>& ops, Which&& which) {
  const BisectOp* worst = nullptr;
  for (const BisectOp& op : ops)
    if (which(op) && (!worst || which(op)->budget_used > which(*worst)->budget_used)) worst = &op;
  return worst;
}
const std::optional<Comparison>& local_of(const BisectOp& op) { return op.local; }
const std::optional<Comparison>& accumulated_of(const BisectOp& op) { return op.accumulated; }

}  // namespace

BisectWork bisect_work(const GoldenCase& golden) {
  BisectWork work{.name = golden.name,
                  .config = golden.config,
                  .weights = Weights::load(golden.weights_path, golden.config),
                  .seed = {},
                  .calls = {}};
  const auto inputs = [&](const std::map<std::string, TensorRef>& refs) {
    OwnedInput input;
    for (const auto& [kind, ref] : refs) input.set(kind, golden.tensor(ref));
    return input;
  };
  for (const GoldenCall& c : golden.calls) {
    BisectWork::Call& call = work.calls.emplace_back();
    call.id = c.id;
    call.input = inputs(c.inputs);
    call.cache = c.cache.value_or("");
    if (c.cache_from.empty()) continue;
    for (std::int64_t i = 0; i < golden.config.num_hidden_layers; ++i) {
      const auto part = [&](std::size_t p) {
        std::string tensor = c.cache_from.at(std::string(cache_parts(golden.config)[p].name));
        if (const auto at = tensor.find("{i}"); at != std::string::npos) tensor.replace(at, 3, std::to_string(i));
        return golden.tensor({tensor, std::nullopt});
      };
      call.given.push_back({part(0), part(1)});
    }
  }
  for (const GoldenGeneration& g : golden.generate) {
    const TensorView ids = golden.expected(g.ids);
    const std::int64_t B = ids.dim(0), n = ids.dim(1);
    for (std::int64_t step = 0; step < n; ++step) {
      std::vector<std::int64_t> fed;
      for (std::int64_t b = 0; step > 0 && b < B; ++b)
        fed.push_back(ids.as<std::int64_t>()[static_cast<std::size_t>(b * n + step - 1)]);
      OwnedInput input = step == 0 ? inputs(g.inputs) : next_input(work.calls.back().input, fed);
      work.calls.push_back({concat(g.id, step ? concat(" step ", step) : ""), std::move(input), g.id + " ids", {}});
    }
  }
  return work;
}

BisectWork bisect_work(std::string name, const Config& config, std::shared_ptr<const Weights> weights,
                       std::uint64_t seed) {
  constexpr std::int64_t kBatch = 2, kTokens = 7, kPadding = 2;
  std::mt19937_64 engine(seed);
  std::uniform_int_distribution<std::int64_t> ids(0, config.vocab_size - 1);
  BisectWork work{.name = std::move(name), .config = config, .weights = std::move(weights), .seed = seed, .calls = {}};
  for (const std::int64_t S : {kTokens, std::int64_t{1}}) {
    const std::int64_t T = S == 1 ? kTokens + 1 : kTokens;
    Tensor drawn(DType::i64, {kBatch, S}), mask(DType::i64, {kBatch, T});
    for (auto& id : drawn.as<std::int64_t>()) id = ids(engine);
    for (std::int64_t i = 0; i < kBatch * T; ++i)
      mask.as<std::int64_t>()[static_cast<std::size_t>(i)] = !(i >= T && i < T + kPadding);
    BisectWork::Call& call = work.calls.emplace_back();
    call.id = S == 1 ? "decode" : "prefill";
    call.cache = "cache";
    call.input.set("input_ids", std::move(drawn));
    call.input.set("attention_mask", std::move(mask));
  }
  return work;
}

const BisectOp* Bisection::first_out() const {
  for (const BisectOp& op : ops)
    if (op.local && !op.local->passed) return &op;
  for (const BisectOp& op : ops)
    if (op.accumulated && !op.accumulated->passed) return &op;
  return nullptr;
}
const BisectOp* Bisection::worst_local() const { return worst(ops, local_of); }
const BisectOp* Bisection::worst_accumulated() const { return worst(ops, accumulated_of); }

Bisection bisect(const BisectWork& work, const MakeDecoder& make, const Options& options) {
  return Bisector(work, make, options).run();
}

Record bisect_record(const BisectWork& work, std::string_view backend, const Options& options,
                     const Bisection& bisection) {
  Record r;
  r.name = "bisect/" + work.name;
  r.op = "decoder";
  r.backend = backend;
  r.dtype = name(options.dtype);
  r.kv_dtype = name(options.kv_dtype);
  r.seed = work.seed;
  r.ties = bisection.ties;
  r.coverage = "every op against the double reference, teacher-forced and free-running";
  for (const BisectOp& op : bisection.ops)
    if (op.local) {
      Comparison c = *op.local;
      c.name = concat(op.call, ": ", op.tap, " (teacher-forced)");
      r.add(c);
    }
  for (const BisectOp& op : bisection.ops)
    if (op.accumulated) {
      Comparison c = *op.accumulated;
      c.name = concat(op.call, ": ", op.tap, " (free-running)");
      r.add(c);
    }
  if (bisection.broke)
    book_error(r, BackendFault(bisection.stopped->what()));
  else if (bisection.stopped && r.status != Status::failed)
    book_error(r, *bisection.stopped);
  if (r.compared == 0) r.reason = "the case has no call to run";
  for (const BisectOp& op : bisection.ops) {
    OpShare& s = r.bisect.emplace_back();
    s.call = op.call;
    s.layer = layer_of(op.tap);
    s.op = op.tap;
    s.passed = (!op.local || op.local->passed) && (!op.accumulated || op.accumulated->passed);
    s.kernels.assign(op.ops.begin(), op.ops.end());
    if (op.local) s.local = op.local->budget_used;
    if (op.accumulated) s.accumulated = op.accumulated->budget_used;
  }
  return r;
}

Bisected bisect_on(const Backend& backend, const BisectWork& work, const Options& options) {
  Bisected bisected;
  std::optional<std::string> why = why_not(backend, work.config, options);
  if (backend.name == reference::backend().name) why = "the double reference is what the others are held against";
  if (!why) {
    try {
      bisected.bisection = bisect(work, backend.create, options);
    } catch (const Error& e) {
      bisected.bisection.stopped = e;
      bisected.bisection.broke = dynamic_cast<const BackendFault*>(&e) != nullptr;
    }
  }
  bisected.record = bisect_record(work, backend.name, options, bisected.bisection);
  if (why) bisected.record.reason = *why;
  book_findings(bisected.record, backend.findings);
  return bisected;
}

std::string verdict(std::span<const Bisected> all) {
  const auto place = [&](const Bisected& b, const BisectOp& op) {
    return concat(" in ", b.record.name.substr(b.record.name.find('/') + 1), " ", op.call, " on ", b.record.backend,
                  " ", b.record.dtype);
  };
  const BisectOp *local = nullptr, *accumulated = nullptr;
  for (const Bisected& b : all) {
    if (const BisectOp* op = b.bisection.first_out()) {
      const bool forced = op->local && !op->local->passed;
      const Comparison& c = forced ? *op->local : *op->accumulated;
      return concat("first out of budget: ", op->tap, c.worst.empty() ? "" : to_string(c.worst), " (", list(op->ops),
                    ")", place(b, *op), ": ", in_short(c), forced ? " (teacher-forced)" : " (free-running)");
    }
    const BisectOp *l = b.bisection.worst_local(), *a = b.bisection.worst_accumulated();
    if (l && (!local || l->local->budget_used > local->local->budget_used)) local = l;
    if (a && (!accumulated || a->accumulated->budget_used > accumulated->accumulated->budget_used)) accumulated = a;
  }
  for (const Bisected& b : all)
    if (b.bisection.stopped) return concat("stopped in ", b.record.name, ": ", b.bisection.stopped->what());
  if (!local || !accumulated) return "nothing was compared";
  return concat("no op out of budget: worst ", local->tap, " ", share(local->local), " (teacher-forced), ",
                accumulated->tap, " ", share(accumulated->accumulated), " (free-running)");
}

void print_bisection(const Bisected& bisected, bool verbose, std::ostream& out) {
  const auto& [record, bisection] = bisected;
  out << record.name << " on " << record.backend << ' ' << record.dtype;
  if (record.seed) out << ", seed " << *record.seed;
  if (record.ties) out << ", " << record.ties << " ties";
  out << '\n';
  if (record.status == Status::skipped || record.status == Status::error) {
    out << "  " << name(record.status) << ": " << record.reason << '\n';
    return;
  }
  if (bisection.stopped) out << "stopped: " << bisection.stopped->what() << '\n';
  if (verbose) {
    Table table({"call", "op", "kernels", "local", "accumulated"});
    for (const BisectOp& op : bisection.ops)
      table.add({op.call, op.tap, list(op.ops), share(op.local), share(op.accumulated)});
    table.print(out);
    return;
  }
  // The embeddings before the layers, the final norm and the head behind them.
  std::map<std::int64_t, std::vector<BisectOp>> layers;
  constexpr std::int64_t kBehind = std::numeric_limits<std::int64_t>::max();
  for (const BisectOp& op : bisection.ops) {
    const std::int64_t layer = layer_of(op.tap);
    layers[layer < 0 && op.tap != "embed_tokens" ? kBehind : layer].push_back(op);
  }
  Table table({"layer", "local", "op", "accumulated", "op"});
  const auto where = [](const BisectOp* op) { return op ? concat(without_layer(op->tap), " in ", op->call) : ""; };
  for (const auto& [layer, ops] : layers) {
    const BisectOp *local = worst(ops, local_of), *accumulated = worst(ops, accumulated_of);
    table.add({layer < 0          ? "before"
               : layer == kBehind ? "behind"
                                  : std::to_string(layer),
               local ? share(local->local) : "", where(local), accumulated ? share(accumulated->accumulated) : "",
               where(accumulated)});
  }
  table.print(out);
}

}  // namespace dsv2::harness
