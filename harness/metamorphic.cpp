#include "harness/metamorphic.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <utility>

#include "harness/backend_fault.h"
#include "harness/backends.h"
#include "harness/generate.h"
#include "harness/table.h"
#include "harness/taps.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

constexpr std::int64_t kBatch = 3;
constexpr std::int64_t kTokens = 21;  // more than one block of queries, and no multiple of one
constexpr std::int64_t kMorePadding = 3;

using Rows = std::vector<std::int64_t>;  // per token: the row that stands for it elsewhere; -1: padding
constexpr std::int64_t kPadding = -1;

/// Those rows of `t`, which has `all_rows` of them, as [n, width]; padding is left out.
Tensor gather(const TensorView& t, const Rows& rows, std::int64_t all_rows) {
  const std::int64_t width = t.size() / all_rows;
  const auto n = std::count_if(rows.begin(), rows.end(), [](std::int64_t r) { return r != kPadding; });
  Tensor out(t.dtype, {n, width});
  const auto size = static_cast<std::size_t>(t.bytes() / all_rows);
  char* to = static_cast<char*>(out.data());
  for (const std::int64_t r : rows) {
    if (r == kPadding) continue;
    std::memcpy(to, static_cast<const char*>(t.data) + static_cast<std::size_t>(r) * size, size);
    to += size;
  }
  return out;
}

/// Columns from, from + 1, ... of [B,T].
Tensor columns(const Tensor& t, std::int64_t from, std::int64_t count) {
  const std::int64_t B = t.dim(0), T = t.dim(1);
  Tensor out(DType::i64, {B, count});
  for (std::int64_t b = 0; b < B; ++b)
    std::copy_n(t.as<std::int64_t>().begin() + b * T + from, count, out.as<std::int64_t>().begin() + b * count);
  return out;
}

Tensor rows_of(const Tensor& t, const Rows& rows) { return gather(t.view(), rows, t.dim(0)); }

/// A call: ids [B,S], and what may come with them.
OwnedInput call_of(Tensor ids, Tensor mask = {}, Tensor positions = {}) {
  OwnedInput input;
  input.set("input_ids", std::move(ids));
  if (mask) input.set("attention_mask", std::move(mask));
  if (positions) input.set("position_ids", std::move(positions));
  return input;
}

Rows iota_rows(std::int64_t count) {
  Rows rows(static_cast<std::size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

/// The first way: a call, what it gave, and how far another way may be from it.
struct Answer {
  OwnedInput input;
  ForwardOutput out;
  RecordingSink recorded;
  std::optional<AccumulatedBound> bounds;
  std::int64_t rows = 0;  ///< B*S
};

/// The second way's choices of experts against the first's, row by row: ties are counted and settled.
class RouteSink final : public TapSink {
 public:
  /// `order`: expert i of this decoder is order[i] of the answer's; empty: the same order.
  RouteSink(const Answer& answer, const Rows& rows, const Config& config, const Weights& weights, double factor,
            const std::vector<std::int64_t>& order)
      : answer_(answer), rows_(rows), config_(config), weights_(weights), factor_(factor), order_(order) {}

  void tap(std::string_view name, const TensorView& view, void* data) override {
    if (!is_router_tap(name)) return;
    const Tensor right = expected(name, view);
    right_.tap(name, right.view(), nullptr);
    if (name.ends_with(".logits")) return;
    if (name.ends_with(".topk_idx")) {
      const std::string logits = concat(name.substr(0, name.rfind('.')), ".logits");
      RoutingComparison routing =
          compare_routing(name, view, right_, factor_ * answer_.bounds->unit(logits), config_, &weights_);
      tied_ = std::move(routing.tied);
      ties += std::count(tied_.begin(), tied_.end(), true);
      if (!routing.comparison.passed) failures.push_back(std::move(routing.comparison));
    }
    const Tensor settled = replace_rows(view, right.view(), tied_);
    std::memcpy(data, settled.data(), static_cast<std::size_t>(view.bytes()));
  }
  std::vector<Comparison> failures;
  std::int64_t ties = 0;

 private:
  /// The answer's tap for the rows of this call, in this decoder's order of experts; padding has what it has.
  Tensor expected(std::string_view name, const TensorView& view) const {
    const Tensor* all = answer_.recorded.find(name);
    DSV2_CHECK(all, name, ": not recorded");
    const std::int64_t width = view.dim(1);
    Tensor right = replace_rows(view, view, {});
    for (std::size_t n = 0; n < rows_.size(); ++n) {
      if (rows_[n] == kPadding) continue;
      const std::vector<std::int64_t> from = sources(name, rows_[n], width);
      for (std::int64_t j = 0; j < width; ++j) {
        const std::int64_t to = static_cast<std::int64_t>(n) * width + j;
        const auto i = static_cast<std::size_t>(rows_[n] * width + from[static_cast<std::size_t>(j)]);
        copy_element(*all, i, right, static_cast<std::size_t>(to), name.ends_with(".topk_idx"));
      }
    }
    return right;
  }
  /// Which columns of the answer's row make this decoder's.
  std::vector<std::int64_t> sources(std::string_view name, std::int64_t row, std::int64_t width) const {
    std::vector<std::int64_t> from = iota_rows(width);
    if (order_.empty()) return from;
    if (name.ends_with(".logits")) return order_;
    // The chosen are listed by their new ids.
    const Tensor* idx = answer_.recorded.find(concat(name.substr(0, name.rfind('.')), ".topk_idx"));
    const auto id = [&](std::int64_t j) {
      return new_id(idx->as<std::int64_t>()[static_cast<std::size_t>(row * width + j)]);
    };
    std::sort(from.begin(), from.end(), [&](std::int64_t a, std::int64_t b) { return id(a) < id(b); });
    return from;
  }
  std::int64_t new_id(std::int64_t old) const {
    return order_.empty() ? old : std::find(order_.begin(), order_.end(), old) - order_.begin();
  }
  void copy_element(const Tensor& from, std::size_t i, Tensor& to, std::size_t at, bool is_id) const {
    if (is_id)
      to.as<std::int64_t>()[at] = new_id(from.as<std::int64_t>()[i]);
    else if (to.dtype() == DType::f64)
      to.as<double>()[at] = from.at(static_cast<std::int64_t>(i));
    else
      to.as<float>()[at] = static_cast<float>(from.at(static_cast<std::int64_t>(i)));
  }

  const Answer& answer_;
  const Rows& rows_;
  const Config& config_;
  const Weights& weights_;
  double factor_;
  const std::vector<std::int64_t>& order_;
  RecordingSink right_;
  std::vector<bool> tied_;  // tokens of the layer at hand
};

/// How two ways must agree.
enum class Agreement : std::uint8_t { bits, bound };

/// One property at work: draws, runs, and books what it compares.
class Experiment {
 public:
  Experiment(const Subject& subject, Record& record) : s(subject), record_(record), engine_(subject.seed) {}

  const Subject& s;

  std::unique_ptr<Decoder> make() const { return s.make(s.config, s.weights, s.options); }
  std::unique_ptr<Decoder> make(const Options& options) const { return s.make(s.config, s.weights, options); }
  std::unique_ptr<Decoder> make(std::shared_ptr<const Weights> weights) const {
    return s.make(s.config, std::move(weights), s.options);
  }
  std::int64_t draw(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  Tensor draw_ids(std::int64_t B, std::int64_t S) {
    Tensor ids(DType::i64, {B, S});
    for (auto& id : ids.as<std::int64_t>()) id = draw(0, s.config.vocab_size - 1);
    return ids;
  }
  template <class T>
  void shuffle(std::vector<T>& values) {
    std::shuffle(values.begin(), values.end(), engine_);
  }
  /// What the backend's promise says of ways that differ in batch or threads alone.
  Agreement promised() const { return s.independent ? Agreement::bits : Agreement::bound; }

  ForwardOutput forward(Decoder& decoder, const OwnedInput& input, KvCache* cache, TapSink* taps = nullptr) const {
    ForwardInput in = input.input;
    in.cache = cache;
    in.taps = taps;
    in.attentions = true;
    if (s.config.head == Head::causal_lm) in.logits = Logits::all;
    return decoder.forward(in);
  }

  /// The first way.
  Answer ask(Decoder& decoder, OwnedInput input, KvCache& cache) const {
    Answer a;
    a.input = std::move(input);
    a.rows = a.input.batch() * a.input.tokens();
    a.out = forward(decoder, a.input, &cache, &a.recorded);
    a.bounds.emplace(with_cached_rows(a.recorded, s.config), a.recorded, s.config, stored(decoder), cache.length());
    return a;
  }

  /// The second way: a call whose token i (b * S + s) must get what row rows[i] of the answer got. `weights` are those
  /// of the decoder when its experts are in another `order`.
  ForwardOutput expect_same(const std::string& what, Decoder& decoder, const OwnedInput& input, KvCache& cache,
                            const Rows& rows, const Answer& answer, Agreement agreement,
                            const std::vector<std::int64_t>& order = {}, const Weights* weights = nullptr) {
    RouteSink sink(answer, rows, s.config, weights ? *weights : *s.weights, std::sqrt(2.0), order);
    ForwardOutput out = forward(decoder, input, &cache, agreement == Agreement::bound ? &sink : nullptr);
    for (Comparison& c : sink.failures) {
      c.name = concat(what, ": ", c.name);
      record_.add(c);
    }
    record_.ties += sink.ties;
    Rows here;
    for (std::size_t i = 0; i < rows.size(); ++i)
      here.push_back(rows[i] == kPadding ? kPadding : static_cast<std::int64_t>(i));
    const auto n = static_cast<std::int64_t>(rows.size());
    compare(concat(what, ": last_hidden_state"), gather(out.last_hidden_state.view(), here, n).view(),
            gather(answer.out.last_hidden_state.view(), rows, answer.rows).view(), agreement, answer, "norm");
    if (out.logits)
      compare(concat(what, ": logits"), gather(out.logits.view(), here, n).view(),
              gather(answer.out.logits.view(), rows, answer.rows).view(), agreement, answer, "lm_head");
    return out;
  }
  /// The same call in every token and key: probabilities, too, which have a column per key.
  void expect_same_attentions(const std::string& what, const ForwardOutput& got, const Answer& answer,
                              Agreement agreement) {
    for (std::size_t i = 0; i < answer.out.attentions.size(); ++i)
      compare(concat(what, ": attentions ", i), got.attentions.at(i).view(), answer.out.attentions[i].view(), agreement,
              answer, concat("layers.", i, ".self_attn.attn_output"));
  }

  /// Every row of two caches of one shape.
  void expect_same_cache(const std::string& what, const KvCache& got, const KvCache& want, Agreement agreement,
                         const Answer* answer = nullptr) {
    const LegacyCache g = got.to_legacy(), w = want.to_legacy();
    const auto parts = cache_parts(s.config);
    for (std::size_t i = 0; i < w.size(); ++i)
      for (std::size_t p = 0; p < 2; ++p) {
        const std::string tap = cache_tap(static_cast<std::int64_t>(i), parts[p].name);
        const Tensor &a = p == 0 ? g[i].first : g[i].second, &b = p == 0 ? w[i].first : w[i].second;
        if (agreement == Agreement::bits)
          expect_equal(concat(what, ": ", tap), a.view(), b.view());
        else
          compare(concat(what, ": ", tap), a.view(), b.view(), agreement, *answer, tap);
      }
  }
  void expect_equal(const std::string& what, const TensorView& got, const TensorView& want) {
    Comparison c = compare_exact(what, got, want);
    if (c.passed && std::memcmp(got.data, want.data, static_cast<std::size_t>(want.bytes())) != 0) {
      c.passed = false;
      c.reason = "equal, but not in every bit: zeros of another sign";
    }
    record_.add(c);
  }
  void expect_equal(const std::string& what, const ForwardOutput& got, const ForwardOutput& want) {
    expect_equal(what + ": last_hidden_state", got.last_hidden_state.view(), want.last_hidden_state.view());
    if (want.logits) expect_equal(what + ": logits", got.logits.view(), want.logits.view());
  }
  void expect(const std::string& what, bool holds) {
    Comparison c;
    c.name = what;
    c.rule = "holds";
    c.count = 1;
    c.passed = holds;
    if (!holds) c.reason = "does not hold", c.budget_used = INFINITY;
    record_.add(c);
  }
  void compare(std::string what, const TensorView& got, const TensorView& want, Agreement agreement,
               const Answer& answer, std::string_view tap) {
    if (agreement == Agreement::bits) return expect_equal(what, got, want);
    record_.add(compare_derived(std::move(what), got, want, std::sqrt(2.0) * answer.bounds->unit(tap),
                                concat("sqrt(2) ", answer.bounds->words(tap))));
  }

 private:
  Precision stored(const Decoder& decoder) const {
    if (decoder.make_cache(1, 1)->to_legacy().front().first.dtype() == DType::f64) return DType::f64;
    return precision_of(s.options);
  }

  Record& record_;
  std::mt19937_64 engine_;
};

// ---------------------------------------------------------------------------------------------- reasons to skip

using Reason = std::optional<std::string>;

/// Longest call of any property.
constexpr std::int64_t kLongest = kTokens + kMorePadding + 2;

Reason always(const Subject&) { return std::nullopt; }
/// Dynamic RoPE turns by the length of each call (QUIRKS 12): the same tokens in other calls are other numbers.
Reason unless_dynamic(const Subject& s) {
  if (s.config.rope_scaling.type != RopeType::dynamic || s.config.max_position_embeddings >= kLongest)
    return std::nullopt;
  return concat("dynamic RoPE: the base follows the length of each call beyond max_position_embeddings ",
                s.config.max_position_embeddings);
}
Reason if_moe(const Subject& s) {
  return s.config.moe_layers().empty() ? Reason("the model has no experts") : std::nullopt;
}
Reason if_both_forms(const Subject& s) {
  return s.config.use_mla ? s.no_expanded : Reason("the model has no latent to absorb into");
}
Reason if_causal_lm(const Subject& s) {
  return s.config.head == Head::causal_lm ? std::nullopt : Reason("the model has no head with logits of each token");
}
Reason if_threads(const Subject& s) {
  return s.backend == reference::backend().name ? Reason("it runs on one thread") : std::nullopt;
}

// ---------------------------------------------------------------------------------------------- the properties

/// One call, then the same tokens in pieces of these sizes.
void in_pieces(Experiment& x, const std::vector<std::int64_t>& sizes) {
  const auto decoder = x.make();
  const Tensor ids = x.draw_ids(kBatch, kTokens);
  const auto whole = decoder->make_cache(kBatch, kTokens), pieces = decoder->make_cache(kBatch, 1);
  const Answer answer = x.ask(*decoder, call_of(ids.clone()), *whole);
  std::int64_t from = 0;
  for (const std::int64_t size : sizes) {
    Rows rows;
    for (std::int64_t b = 0; b < kBatch; ++b)
      for (std::int64_t t = from; t < from + size; ++t) rows.push_back(b * kTokens + t);
    x.expect_same(concat("tokens ", from, "..", from + size - 1), *decoder, call_of(columns(ids, from, size)), *pieces,
                  rows, answer, Agreement::bound);
    from += size;
  }
  x.expect_same_cache("cache", *pieces, *whole, Agreement::bound, &answer);
}
void chunked(Experiment& x) {
  const std::int64_t first = x.draw(2, kTokens - 4), second = x.draw(1, kTokens - first - 1);
  in_pieces(x, {first, second, kTokens - first - second});
}
void token_by_token(Experiment& x) { in_pieces(x, std::vector<std::int64_t>(kTokens, 1)); }

/// Masks [B, T] in which row 1 is padded on the left by `padding`.
Tensor second_row_padded(std::int64_t T, std::int64_t padding) {
  Tensor mask(DType::i64, {kBatch, T});
  for (std::int64_t i = 0; i < kBatch * T; ++i)
    mask.as<std::int64_t>()[static_cast<std::size_t>(i)] = !(i >= T && i < T + padding);
  return mask;
}

/// A prefill and a decode step of a batch, then those of its rows in another batch: `picks[i]` is row i of it.
void as_batches(Experiment& x, const std::vector<Rows>& batches, const std::vector<std::string>& names) {
  const auto decoder = x.make();
  const std::int64_t S = kTokens, padding = x.draw(1, 4);
  const Tensor ids = x.draw_ids(kBatch, S), next = x.draw_ids(kBatch, 1);
  const Tensor mask = second_row_padded(S, padding), grown = second_row_padded(S + 1, padding);
  const auto whole = decoder->make_cache(kBatch, S + 1);
  const Answer prefill = x.ask(*decoder, call_of(ids.clone(), mask.clone()), *whole);
  const Answer step = x.ask(*decoder, call_of(next.clone(), grown.clone()), *whole);
  for (std::size_t i = 0; i < batches.size(); ++i) {
    const Rows& picks = batches[i];
    const auto cache = decoder->make_cache(static_cast<std::int64_t>(picks.size()), S + 1);
    Rows tokens;
    for (const std::int64_t b : picks)
      for (std::int64_t t = 0; t < S; ++t) tokens.push_back(b * S + t);
    x.expect_same(names[i] + " prefill", *decoder, call_of(rows_of(ids, picks), rows_of(mask, picks)), *cache, tokens,
                  prefill, x.promised());
    x.expect_same(names[i] + " decode", *decoder, call_of(rows_of(next, picks), rows_of(grown, picks)), *cache, picks,
                  step, x.promised());
  }
}
void row_alone(Experiment& x) { as_batches(x, {{0}, {1}, {2}}, {"row 0", "row 1", "row 2"}); }
void permuted_batch(Experiment& x) { as_batches(x, {{1, 2, 0}, {2, 1, 0}}, {"rows 1, 2, 0", "rows 2, 1, 0"}); }

/// Sequences of other lengths in one batch, with what the padding needs: mask and positions.
struct Padded {
  OwnedInput prefill, step;
  Rows rows, step_rows;  ///< of the answer, whose padding is on the left and least
};
void padding(Experiment& x) {
  const auto decoder = x.make();
  const std::int64_t S = kTokens;
  const std::int64_t lengths[kBatch] = {S, x.draw(2, S - 2), x.draw(2, S - 2)};
  const Tensor ids = x.draw_ids(kBatch, S), next = x.draw_ids(kBatch, 1);
  // Row b holds the last lengths[b] of its ids, behind `before` masked ones.
  const auto padded = [&](const Rows& picks, std::int64_t total, bool left) {
    const auto B = static_cast<std::int64_t>(picks.size());
    Tensor tokens(DType::i64, {B, total}), mask(DType::i64, {B, total}), positions(DType::i64, {B, total});
    Tensor step_mask(DType::i64, {B, total + 1}), step_positions(DType::i64, {B, 1});
    Padded p;
    for (std::int64_t i = 0; i < B; ++i) {
      const std::int64_t b = picks[static_cast<std::size_t>(i)], length = lengths[b];
      const std::int64_t before = left ? total - length : 0;
      for (std::int64_t t = 0; t < total; ++t) {
        const auto at = static_cast<std::size_t>(i * total + t);
        const bool real = t >= before && t < before + length;
        const std::int64_t column = S - length + t - before;
        mask.as<std::int64_t>()[at] = real;
        positions.as<std::int64_t>()[at] = real ? t - before : 1;  // as HF derives them
        tokens.as<std::int64_t>()[at] = real ? ids.as<std::int64_t>()[static_cast<std::size_t>(b * S + column)]
                                             : x.draw(0, x.s.config.vocab_size - 1);
        p.rows.push_back(real ? b * S + column : kPadding);
        step_mask.as<std::int64_t>()[static_cast<std::size_t>(i * (total + 1) + t)] = real;
      }
      step_mask.as<std::int64_t>()[static_cast<std::size_t>(i * (total + 1) + total)] = 1;
      step_positions.as<std::int64_t>()[static_cast<std::size_t>(i)] = length;
      p.step_rows.push_back(b);
    }
    p.prefill = call_of(std::move(tokens), std::move(mask), std::move(positions));
    p.step = call_of(rows_of(next, picks), std::move(step_mask), std::move(step_positions));
    return p;
  };
  Padded least = padded({0, 1, 2}, S, true);
  const auto whole = decoder->make_cache(kBatch, S + 1);
  const Answer prefill = x.ask(*decoder, std::move(least.prefill), *whole);
  const Answer step = x.ask(*decoder, std::move(least.step), *whole);
  const auto same = [&](const std::string& what, const Padded& p) {
    const auto cache = decoder->make_cache(p.prefill.batch(), p.prefill.tokens() + 1);
    x.expect_same(what + " prefill", *decoder, p.prefill, *cache, p.rows, prefill, Agreement::bound);
    x.expect_same(what + " decode", *decoder, p.step, *cache, p.step_rows, step, Agreement::bound);
  };
  same("left, more", padded({0, 1, 2}, S + kMorePadding, true));
  same("right", padded({0, 1, 2}, S, false));
  same("right, more", padded({0, 1, 2}, S + kMorePadding, false));
  for (std::int64_t b = 0; b < kBatch; ++b) {
    Padded alone = padded({b}, lengths[b], true);
    for (OwnedInput* call : {&alone.prefill, &alone.step})  // nothing to mask: positions follow
      call->input.attention_mask.reset(), call->input.position_ids.reset();
    same(concat("row ", b, " without"), alone);
  }
}

/// An order of the experts in which groups, where the gate knows any, stay together.
std::vector<std::int64_t> new_order(Experiment& x) {
  const Config& c = x.s.config;
  const std::int64_t groups = c.topk_method == TopkMethod::greedy ? 1 : c.n_group, size = *c.n_routed_experts / groups;
  std::vector<std::int64_t> group_order = iota_rows(groups), order;
  x.shuffle(group_order);
  for (const std::int64_t g : group_order) {
    std::vector<std::int64_t> members(static_cast<std::size_t>(size));
    std::iota(members.begin(), members.end(), g * size);
    x.shuffle(members);
    order.insert(order.end(), members.begin(), members.end());
  }
  return order;
}
void permuted_experts(Experiment& x) {
  const auto decoder = x.make();
  const Tensor ids = x.draw_ids(kBatch, kTokens);
  const auto whole = decoder->make_cache(kBatch, kTokens);
  const Answer answer = x.ask(*decoder, call_of(ids.clone()), *whole);
  const std::vector<std::int64_t> order = new_order(x);
  const auto weights = with_experts_in_order(x.s.weights, order);
  const auto other = x.make(weights);
  const auto cache = other->make_cache(kBatch, kTokens);
  x.expect_same("experts in another order", *other, call_of(ids.clone()), *cache, iota_rows(answer.rows), answer,
                Agreement::bound, order, weights.get());
  x.expect_same_cache("cache", *cache, *whole, Agreement::bound, &answer);
}

void truncated(Experiment& x) {
  const auto decoder = x.make();
  const std::int64_t kept = x.draw(1, kTokens - 2), rest = kTokens - kept;
  const Tensor ids = x.draw_ids(kBatch, kTokens), other = x.draw_ids(kBatch, rest + 1);
  const OwnedInput first = call_of(columns(ids, 0, kept)), second = call_of(columns(ids, kept, rest));
  const auto plain = decoder->make_cache(kBatch, kTokens), replayed = decoder->make_cache(kBatch, kTokens);
  const ForwardOutput begin = x.forward(*decoder, first, plain.get()), end = x.forward(*decoder, second, plain.get());

  x.forward(*decoder, first, replayed.get());
  x.forward(*decoder, call_of(other.clone()), replayed.get());
  replayed->truncate(kept);
  x.expect("the length is what was kept", replayed->length() == kept);
  x.expect_equal(concat("after the first ", kept), x.forward(*decoder, second, replayed.get()), end);
  x.expect_same_cache("cache", *replayed, *plain, Agreement::bits);

  replayed->truncate(0);
  x.expect_equal("from nothing", x.forward(*decoder, first, replayed.get()), begin);
  x.expect_equal("from nothing, on", x.forward(*decoder, second, replayed.get()), end);
}

void cloned(Experiment& x) {
  const auto decoder = x.make();
  const Tensor ids = x.draw_ids(kBatch, kTokens);
  const OwnedInput prefix = call_of(columns(ids, 0, kTokens - 2)), a = call_of(columns(ids, kTokens - 2, 1)),
                   b = call_of(columns(ids, kTokens - 1, 1));
  const auto start = [&] {
    auto cache = decoder->make_cache(kBatch, kTokens + 2);
    x.forward(*decoder, prefix, cache.get());
    return cache;
  };
  const auto only_a = start(), only_b = start();
  const ForwardOutput after_a = x.forward(*decoder, a, only_a.get()), after_b = x.forward(*decoder, b, only_b.get());
  const ForwardOutput after_ab = x.forward(*decoder, b, only_a.get());

  const auto original = start();
  const auto copy = original->clone();
  x.expect_same_cache("the copy", *copy, *original, Agreement::bits);
  x.expect_equal("original, a", x.forward(*decoder, a, original.get()), after_a);
  x.expect("the copy keeps its length", copy->length() == kTokens - 2);
  x.expect_equal("copy, b", x.forward(*decoder, b, copy.get()), after_b);
  x.expect_equal("original, a b", x.forward(*decoder, b, original.get()), after_ab);
}

void repeated(Experiment& x) {
  const auto decoder = x.make();
  const OwnedInput call = call_of(x.draw_ids(kBatch, kTokens)), other = call_of(x.draw_ids(1, 2 * kTokens));
  const ForwardOutput first = x.forward(*decoder, call, nullptr);
  for (int run = 2; run <= 4; ++run) x.expect_equal(concat("run ", run), x.forward(*decoder, call, nullptr), first);
  x.forward(*decoder, other, nullptr);
  x.expect_equal("after another call", x.forward(*decoder, call, nullptr), first);
  x.expect_equal("a new decoder", x.forward(*x.make(), call, nullptr), first);
}

void threads(Experiment& x) {
  constexpr std::int64_t kFew = 8;  // rows that are shared among threads in another way than many, and worth it
  const OwnedInput call = call_of(x.draw_ids(kBatch, kTokens)), next = call_of(x.draw_ids(kBatch, 1)),
                   few = call_of(x.draw_ids(1, kFew));
  Options options = x.s.options;
  options.threads = 1;
  const auto one = x.make(options);
  const auto whole = one->make_cache(kBatch, kTokens + 1), short_one = one->make_cache(1, kFew);
  const Answer prefill = x.ask(*one, call_of(columns(call.tensors.at("input_ids"), 0, kTokens)), *whole);
  const Answer step = x.ask(*one, call_of(columns(next.tensors.at("input_ids"), 0, 1)), *whole);
  const Answer rows = x.ask(*one, call_of(columns(few.tensors.at("input_ids"), 0, kFew)), *short_one);
  for (const int count : {2, 3}) {
    options.threads = count;
    const auto many = x.make(options);
    const auto cache = many->make_cache(kBatch, kTokens + 1), short_cache = many->make_cache(1, kFew);
    x.expect_same(concat(count, " threads prefill"), *many, call, *cache, iota_rows(prefill.rows), prefill,
                  x.promised());
    x.expect_same(concat(count, " threads decode"), *many, next, *cache, iota_rows(step.rows), step, x.promised());
    x.expect_same(concat(count, " threads few rows"), *many, few, *short_cache, iota_rows(rows.rows), rows,
                  x.promised());
  }
}

void last_logits(Experiment& x) {
  constexpr std::int64_t kMany = 67;  // more than one block of keys
  const auto decoder = x.make();
  const auto cache = decoder->make_cache(kBatch, kMany);
  const Answer all = x.ask(*decoder, call_of(x.draw_ids(kBatch, kMany)), *cache);
  ForwardInput in = all.input.input;
  in.logits = Logits::last;
  const ForwardOutput last = decoder->forward(in);
  Rows rows;
  for (std::int64_t b = 0; b < kBatch; ++b) rows.push_back((b + 1) * kMany - 1);
  x.compare("logits", gather(last.logits.view(), iota_rows(kBatch), kBatch).view(),
            gather(all.out.logits.view(), rows, all.rows).view(), x.promised(), all, "lm_head");
  in.logits = Logits::none;
  const ForwardOutput none = decoder->forward(in);
  x.expect("no logits where none are asked for", !none.logits);
  x.expect_equal("last_hidden_state", none.last_hidden_state.view(), last.last_hidden_state.view());
}

void legacy(Experiment& x) {
  const auto decoder = x.make();
  const Tensor ids = x.draw_ids(kBatch, kTokens);
  OwnedInput prefix = call_of(columns(ids, 0, kTokens - 2)), next = call_of(columns(ids, kTokens - 2, 2));
  const auto cache = decoder->make_cache(kBatch, kTokens);
  x.forward(*decoder, prefix, cache.get());
  const LegacyCache tuple = cache->to_legacy();
  const auto back = decoder->make_cache(tuple);
  x.expect_same_cache("there and back", *back, *cache, Agreement::bits);

  prefix.input.use_cache = true;
  const ForwardOutput returned = x.forward(*decoder, prefix, nullptr);
  x.expect("a call without a cache returns its tuple", returned.past_key_values.has_value());
  if (!returned.past_key_values) return;
  x.expect_same_cache("the tuple returned", *decoder->make_cache(*returned.past_key_values), *cache, Agreement::bits);

  const ForwardOutput want = x.forward(*decoder, next, cache.get());
  x.expect_equal("on the cache that came back", x.forward(*decoder, next, back.get()), want);
  next.input.past_key_values = &tuple;
  x.expect_equal("on the tuple itself", x.forward(*decoder, next, nullptr), want);
}

void absorbed(Experiment& x) {
  Options options = x.s.options;
  options.mla_form = MlaForm::absorbed;
  const auto one = x.make(options);
  options.mla_form = MlaForm::expanded;
  const auto other = x.make(options);
  const std::int64_t S = kTokens, before = x.draw(1, 4);
  const Tensor ids = x.draw_ids(kBatch, S), next = x.draw_ids(kBatch, 1);
  const auto a = one->make_cache(kBatch, S + 1), b = other->make_cache(kBatch, S + 1);
  for (const std::int64_t T : {S, S + 1}) {
    const Tensor& tokens = T == S ? ids : next;
    const Answer answer = x.ask(*one, call_of(tokens.clone(), second_row_padded(T, before)), *a);
    const char* what = T == S ? "prefill" : "decode";
    const ForwardOutput out = x.expect_same(what, *other, call_of(tokens.clone(), second_row_padded(T, before)), *b,
                                            iota_rows(answer.rows), answer, Agreement::bound);
    x.expect_same_attentions(what, out, answer, Agreement::bound);
    x.expect_same_cache("cache", *b, *a, Agreement::bound, &answer);
  }
}

struct Property {
  std::string_view name;
  Reason (*skip)(const Subject&);
  void (*check)(Experiment&);
  std::string_view coverage;
  bool promised = false;  ///< bit by bit where the backend is independent
};

constexpr Property kProperties[] = {
    {"prefill = chunked prefill", unless_dynamic, chunked, "outputs and cache, within what other sums may differ by"},
    {"prefill = token by token", unless_dynamic, token_by_token,
     "outputs and cache, within what other sums may differ by"},
    {"row alone = row in a batch", unless_dynamic, row_alone, "prefill and decode step, one row padded", true},
    {"permuted batch = permuted result", always, permuted_batch, "prefill and decode step, one row padded", true},
    {"padding does not matter", unless_dynamic, padding,
     "left, right, more, none: real tokens of a prefill and a decode step"},
    {"permuted experts = the same", if_moe, permuted_experts,
     "gate rows and biases permuted along, groups kept together"},
    {"truncate and replay = the same", always, truncated, "bit by bit"},
    {"a cache's clone is its own", always, cloned, "bit by bit"},
    {"repeated = the same", always, repeated, "bit by bit: four runs, after another call, a new decoder"},
    {"threads do not matter", if_threads, threads, "1, 2 and 3 threads; prefill, decode step, few rows", true},
    {"last logits = all logits, last", if_causal_lm, last_logits, "of each row", true},
    {"legacy cache there and back", always, legacy, "bit by bit"},
    {"absorbed = expanded", if_both_forms, absorbed,
     "prefill and decode step, one row padded, probabilities and the cache"},
};

}  // namespace

Subject subject_of(const Backend& backend, std::string name, const Config& config,
                   std::shared_ptr<const Weights> weights, std::uint64_t seed, const Options& options) {
  Subject s{.name = std::move(name),
            .config = config,
            .weights = std::move(weights),
            .seed = seed,
            .backend = std::string(backend.name),
            .options = options,
            .make = backend.create,
            .findings = backend.findings,
            .independent = backend.name == "cpu",  // optimized/cpu/backend.h
            .no_expanded = std::nullopt,
            .unable = why_not(backend, config, options)};
  Options expanded = options;
  expanded.mla_form = MlaForm::expanded;
  if (!s.unable) s.no_expanded = backend.unsupported(config, expanded);
  return s;
}

std::vector<std::string_view> metamorphic_properties() {
  std::vector<std::string_view> names;
  for (const Property& p : kProperties) names.push_back(p.name);
  return names;
}

std::vector<Record> check_metamorphic(const Subject& subject, const std::function<bool(std::string_view)>& wanted) {
  std::vector<Record> records;
  for (const Property& p : kProperties) {
    Record r;
    r.name = concat(subject.name, "/", p.name);
    if (!wanted(r.name)) continue;
    r.op = "metamorphic";
    r.backend = subject.backend;
    r.dtype = name(subject.options.dtype);
    r.kv_dtype = name(subject.options.kv_dtype);
    r.seed = subject.seed;
    r.coverage = p.coverage;
    if (p.promised) r.coverage += subject.independent ? ", bit by bit" : ", within what other sums may differ by";
    Reason why = lost(subject.backend);
    if (!why) why = subject.unable ? subject.unable : p.skip(subject);
    if (why) {
      r.reason = *why;
    } else {
      try {
        Experiment experiment(subject, r);
        p.check(experiment);
      } catch (const Error& e) {
        book_error(r, e);
      }
      book_findings(r, subject.findings);
    }
    records.push_back(std::move(r));
  }
  return records;
}

void print_metamorphic(std::span<const Record> records, bool verbose, std::ostream& out) {
  if (verbose) {
    Table table({"property", "backend", "dtype", "status", "tensors", "budget", "ties", "worst"});
    for (const Record& r : records)
      table.add({r.name, r.backend, r.dtype, std::string(name(r.status)), std::to_string(r.compared),
                 r.compared ? percent(r.budget_used) : "", r.ties ? std::to_string(r.ties) : "",
                 !r.compared         ? r.reason
                 : r.budget_used > 0 ? r.worst
                                     : ""});
    table.print(out);
  } else {
    struct Sum {
      std::int64_t passed = 0, skipped = 0, all = 0, ties = 0;
      double budget = 0;
      std::string worst;
    };
    std::map<std::array<std::string, 3>, Sum> sums;
    for (const Record& r : records) {
      Sum& s = sums[{r.name.substr(0, r.name.find('/')), r.backend, r.dtype}];
      ++s.all;
      s.passed += r.status == Status::passed;
      s.skipped += r.status == Status::skipped;
      s.ties += r.ties;
      if (r.budget_used > s.budget) s.budget = r.budget_used, s.worst = r.name.substr(r.name.find('/') + 1);
    }
    Table table({"model", "backend", "dtype", "properties", "budget", "worst"});
    for (const auto& [key, s] : sums)
      table.add(
          {key[0], key[1], key[2],
           concat(s.passed, " of ", s.all - s.skipped, " hold", s.skipped ? concat(", ", s.skipped, " skipped") : "",
                  s.ties ? concat(", ", s.ties, " ties") : ""),
           percent(s.budget), s.worst});
    table.print(out);
  }
  for (const Record& r : records)
    if (r.status == Status::failed || r.status == Status::error)
      out << '\n'
          << name(r.status) << ": " << r.name << " on " << r.backend << ' ' << r.dtype << ", seed " << *r.seed << "\n  "
          << r.reason << '\n';
}

std::shared_ptr<const Weights> with_experts_in_order(std::shared_ptr<const Weights> weights,
                                                     const std::vector<std::int64_t>& order) {
  struct Reordered {
    std::shared_ptr<const Weights> from;
    std::vector<Tensor> moved;
    Weights weights;
  };
  auto reordered = std::make_shared<Reordered>();
  Weights& to = reordered->weights;
  to.embed_tokens = weights->embed_tokens;
  to.layers = weights->layers;
  to.norm = weights->norm;
  to.lm_head = weights->lm_head;
  to.score = weights->score;
  const auto E = static_cast<std::int64_t>(order.size());
  const auto move_rows = [&](TensorView& view) {
    if (!view) return;
    Tensor rows(view.dtype, view.shape);
    const auto size = static_cast<std::size_t>(view.bytes() / E);
    for (std::int64_t e = 0; e < E; ++e)
      std::memcpy(
          static_cast<char*>(rows.data()) + static_cast<std::size_t>(e) * size,
          static_cast<const char*>(view.data) + static_cast<std::size_t>(order[static_cast<std::size_t>(e)]) * size,
          size);
    view = rows.view();
    reordered->moved.push_back(std::move(rows));
  };
  for (std::size_t i = 0; i < to.layers.size(); ++i) {
    LayerWeights& layer = to.layers[i];
    if (layer.experts.empty()) continue;
    for (std::int64_t e = 0; e < E; ++e)
      layer.experts[static_cast<std::size_t>(e)] =
          weights->layers[i].experts[static_cast<std::size_t>(order[static_cast<std::size_t>(e)])];
    move_rows(layer.gate);
    move_rows(layer.e_score_correction_bias);
  }
  reordered->from = std::move(weights);
  return {reordered, &reordered->weights};
}

}  // namespace dsv2::harness
