#include "harness/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace dsv2::harness {

void OwnedInput::set(const std::string& kind, Tensor tensor) {
  Tensor& kept = tensors[kind] = std::move(tensor);
  const TensorView view = kept.view();
  if (kind == "input_ids")
    input.input_ids = view;
  else if (kind == "inputs_embeds")
    input.inputs_embeds = view;
  else if (kind == "attention_mask")
    input.attention_mask = view;
  else if (kind == "position_ids")
    input.position_ids = view;
  else if (kind == "labels")
    input.labels = view;
  else
    fail("inputs: unknown input ", kind);
}

namespace {

const TensorView& prompt_of(const ForwardInput& in) {
  DSV2_CHECK(in.input_ids || in.inputs_embeds, "input_ids, inputs_embeds: expected exactly one of them, found neither");
  return in.input_ids ? *in.input_ids : *in.inputs_embeds;
}

}  // namespace

std::int64_t OwnedInput::batch() const { return prompt_of(input).shape.empty() ? 0 : prompt_of(input).shape[0]; }
std::int64_t OwnedInput::tokens() const { return prompt_of(input).shape.size() < 2 ? 0 : prompt_of(input).shape[1]; }

OwnedInput next_input(const OwnedInput& before, const std::vector<std::int64_t>& ids) {
  OwnedInput next;
  const auto B = static_cast<std::int64_t>(ids.size());
  next.set("input_ids", Tensor::from<std::int64_t>(ids, {B, 1}));
  if (before.input.attention_mask) {
    const TensorView& mask = *before.input.attention_mask;
    DSV2_CHECK(mask.shape.size() == 2, "attention_mask: expected shape [B, T] to generate from, found ",
               to_string(mask.shape));
    const std::int64_t T = mask.dim(1);
    const auto old = mask.as<std::int64_t>();
    Tensor grown(DType::i64, {B, T + 1});
    const auto flags = grown.as<std::int64_t>();
    for (std::int64_t b = 0; b < B; ++b) {
      std::copy_n(old.begin() + b * T, T, flags.begin() + b * (T + 1));
      flags[static_cast<std::size_t>((b + 1) * (T + 1) - 1)] = 1;
    }
    next.set("attention_mask", std::move(grown));
  }
  if (before.input.position_ids) {
    const TensorView& positions = *before.input.position_ids;
    const std::int64_t rows = positions.dim(0), S = positions.dim(1);
    Tensor last(DType::i64, {rows, 1});
    for (std::int64_t b = 0; b < rows; ++b)
      last.as<std::int64_t>()[static_cast<std::size_t>(b)] =
          positions.as<std::int64_t>()[static_cast<std::size_t>((b + 1) * S - 1)] + 1;
    next.set("position_ids", std::move(last));
  }
  return next;
}

namespace {

std::int64_t argmax(const TensorView& logits, std::int64_t row, const std::vector<std::int64_t>& banned) {
  const std::int64_t V = logits.dim(-1);
  std::int64_t best = -1;
  double top = 0;
  for (std::int64_t v = 0; v < V; ++v) {
    const double x = logits.at(row * V + v);
    if ((best >= 0 && !(x > top)) || std::find(banned.begin(), banned.end(), v) != banned.end()) continue;
    best = v;
    top = x;
  }
  DSV2_CHECK(best >= 0, "no_repeat_ngram: every id is banned");
  DSV2_CHECK(std::isfinite(top), "logits: expected finite values, found ", top);
  return best;
}

}  // namespace

std::vector<std::int64_t> argmax_last(const TensorView& logits) {
  const std::int64_t B = logits.dim(0), S = logits.dim(1);
  std::vector<std::int64_t> ids;
  for (std::int64_t b = 0; b < B; ++b) ids.push_back(argmax(logits, b * S + S - 1, {}));
  return ids;
}

std::vector<std::int64_t> repeated_ngram_ids(const std::vector<std::int64_t>& tokens, std::int64_t n,
                                             std::int64_t window) {
  std::vector<std::int64_t> banned;
  const auto length = static_cast<std::int64_t>(tokens.size());
  if (n <= 0 || length < n) return banned;
  const auto prefix = tokens.end() - (n - 1);
  for (std::int64_t i = window > 0 ? std::max<std::int64_t>(0, length - window) : 0; i + n <= length; ++i)
    if (std::equal(prefix, tokens.end(), tokens.begin() + i))
      banned.push_back(tokens[static_cast<std::size_t>(i + n - 1)]);
  return banned;
}

Generation generate(Decoder& decoder, OwnedInput prompt, const GenerateOptions& options) {
  DSV2_CHECK(options.max_new_tokens >= 1, "max_new_tokens: expected at least 1, found ", options.max_new_tokens);
  DSV2_CHECK(options.no_repeat_ngram >= 0 && options.window >= 0,
             "no_repeat_ngram, window: expected at least 0, found ", options.no_repeat_ngram, ", ", options.window);
  DSV2_CHECK(decoder.config().head == Head::causal_lm, "head: expected causal_lm to generate, found ",
             name(decoder.config().head));
  using Clock = std::chrono::steady_clock;
  const std::int64_t B = prompt.batch();
  DSV2_CHECK(B >= 1 && prompt.tokens() >= 1, "input_ids: expected at least one sequence of one token");
  const auto cache = decoder.make_cache(B, prompt.tokens() + options.max_new_tokens);
  Generation result;
  result.ids.resize(static_cast<std::size_t>(B));
  std::vector<std::vector<std::int64_t>> seen(static_cast<std::size_t>(B));
  if (prompt.input.input_ids)
    for (std::int64_t i = 0; i < B * prompt.tokens(); ++i)
      seen[static_cast<std::size_t>(i / prompt.tokens())].push_back(
          prompt.input.input_ids->as<std::int64_t>()[static_cast<std::size_t>(i)]);
  std::vector<bool> finished(static_cast<std::size_t>(B), false);
  for (std::int64_t step = 0; step < options.max_new_tokens; ++step) {
    prompt.input.cache = cache.get();
    prompt.input.logits = Logits::last;
    const auto start = Clock::now();
    const ForwardOutput out = decoder.forward(prompt.input);
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
    if (step == 0)
      result.prefill_ns = ns;
    else
      result.step_ns.push_back(ns);
    if (options.on_logits) options.on_logits(out.logits.view());
    std::vector<std::int64_t> ids;
    for (std::int64_t b = 0; b < B; ++b) {
      const auto row = static_cast<std::size_t>(b);
      const auto banned = repeated_ngram_ids(seen[row], options.no_repeat_ngram, options.window);
      ids.push_back(finished[row] ? result.ids[row].back() : argmax(out.logits.view(), b, banned));
      if (finished[row]) continue;
      result.ids[row].push_back(ids.back());
      seen[row].push_back(ids.back());
      finished[row] =
          std::find(options.eos_token_id.begin(), options.eos_token_id.end(), ids.back()) != options.eos_token_id.end();
    }
    if (options.on_step) options.on_step(step, ids);
    if (std::find(finished.begin(), finished.end(), false) == finished.end()) break;
    if (step + 1 < options.max_new_tokens) prompt = next_input(prompt, ids);
  }
  return result;
}

}  // namespace dsv2::harness
