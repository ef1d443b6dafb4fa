#include "harness/ocr_bench.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <string>

#include "harness/table.h"

namespace dsv2::harness {
namespace {

constexpr int kRounds = 3;

/// What followed the last earlier occurrence of the last two ids, else of the last one.
std::vector<std::int64_t> draft_of(const std::vector<std::int64_t>& ids, std::int64_t most) {
  for (std::ptrdiff_t n = 2; n >= 1; --n) {
    const std::ptrdiff_t count = std::ssize(ids);
    for (std::ptrdiff_t at = count - n - 1; at >= 0; --at) {
      if (!std::equal(ids.end() - n, ids.end(), ids.begin() + at)) continue;
      const auto begin = ids.begin() + at + n;
      return {begin, begin + std::min<std::ptrdiff_t>(most, ids.end() - begin)};
    }
  }
  return {};
}

std::int64_t largest(std::span<const float> row) { return std::max_element(row.begin(), row.end()) - row.begin(); }

/// Counts the choices of the gate, layer by layer.
struct GateSink final : TapSink {
  std::int64_t experts;
  std::map<std::int64_t, std::vector<std::int64_t>> counts;

  explicit GateSink(std::int64_t expert_count) : experts(expert_count) {}
  void tap(std::string_view name, const TensorView& view, void*) override {
    constexpr std::string_view kStart = "layers.", kEnd = ".mlp.gate.topk_idx";
    if (!name.starts_with(kStart) || !name.ends_with(kEnd)) return;
    std::int64_t layer = 0;
    std::from_chars(name.data() + kStart.size(), name.data() + name.size(), layer);
    std::vector<std::int64_t>& of_layer = counts[layer];
    of_layer.resize(static_cast<std::size_t>(experts));
    for (const std::int64_t expert : view.as<std::int64_t>()) ++of_layer.at(static_cast<std::size_t>(expert));
  }
};

Json experts_json(const std::map<std::int64_t, std::vector<std::int64_t>>& counts) {
  Json rows = Json::array();
  for (const auto& [layer, of_layer] : counts) {
    const auto all = static_cast<double>(std::accumulate(of_layer.begin(), of_layer.end(), std::int64_t{0}));
    std::vector<double> shares;
    for (const std::int64_t n : of_layer) shares.push_back(static_cast<double>(n) / all);
    const auto [least, most] = std::minmax_element(shares.begin(), shares.end());
    rows.push_back({{"layer", layer}, {"shares", shares}, {"least", *least}, {"most", *most}});
  }
  return rows;
}

}  // namespace

LookupReading read_with_lookup(Decoder& decoder, const OcrProcessor& processor, const Picture& picture,
                               std::int64_t max_new_tokens, std::int64_t draft) {
  const std::vector<std::int64_t>& ends = decoder.config().eos_token_id;
  const auto is_end = [&](std::int64_t id) { return std::find(ends.begin(), ends.end(), id) != ends.end(); };
  const std::int64_t prompt_tokens = processor.prompt_tokens();
  const auto cache = decoder.make_cache(1, prompt_tokens + max_new_tokens + draft);
  const Picture* one[] = {&picture};
  OwnedInput input;
  input.set("inputs_embeds", processor.prompt(one));
  input.input.cache = cache.get();
  input.input.logits = Logits::last;
  LookupReading reading;
  reading.ids = argmax_last(decoder.forward(input.input).logits.view());
  const auto full = [&] { return is_end(reading.ids.back()) || std::ssize(reading.ids) >= max_new_tokens; };
  while (!full()) {
    const std::vector<std::int64_t> guess = draft_of(reading.ids, draft);
    std::vector<std::int64_t> fed = {reading.ids.back()};
    fed.insert(fed.end(), guess.begin(), guess.end());
    const auto S = static_cast<std::int64_t>(fed.size());
    OwnedInput step;
    step.set("input_ids", Tensor::from<std::int64_t>(fed, {1, S}));
    step.input.cache = cache.get();
    step.input.logits = Logits::all;
    const std::vector<float> logits = widen<float>(decoder.forward(step.input).logits.view());
    const std::size_t V = logits.size() / fed.size();
    ++reading.forwards;
    reading.drafted += S - 1;
    for (std::size_t i = 0; i < fed.size(); ++i) {
      reading.ids.push_back(largest({logits.data() + i * V, V}));
      if (full() || i + 1 == fed.size() || reading.ids.back() != guess[i]) break;
      ++reading.accepted;
    }
    cache->truncate(prompt_tokens + std::ssize(reading.ids) - 1);  // the last id has not been fed yet
  }
  return reading;
}

std::map<std::int64_t, std::vector<std::int64_t>> expert_counts(Decoder& decoder, const OcrProcessor& processor,
                                                                const OcrSet& set) {
  GateSink sink(decoder.config().n_routed_experts.value_or(0));
  for (const Picture& picture : set.pictures) {
    const Picture* one[] = {&picture};
    OwnedInput input;
    input.set("inputs_embeds", processor.prompt(one));
    input.input.taps = &sink;
    decoder.forward(input.input);
  }
  return sink.counts;
}

std::vector<Record> bench_ocr(std::string_view model, const OcrSet& set, const OcrAnswers& answers,
                              const OcrProcessor& processor, Decoder& decoder, const Backend& backend) {
  Record decode = check_ocr(model, set, answers, processor, decoder, backend).front();
  decode.ocr.erase("read");
  Record prefill = decode;
  prefill.ocr = nullptr;
  prefill.phase = "prefill", decode.phase = "decode";
  prefill.name += "/prefill", decode.name += "/decode";
  prefill.batch = decode.batch = 1;
  prefill.prompt = processor.prompt_tokens();
  prefill.tokens = static_cast<double>(processor.prompt_tokens()), decode.tokens = 1;
  const std::int64_t most = processor.max_new_tokens();
  std::vector<std::vector<std::int64_t>> greedy;
  for (int round = 0; round < kRounds; ++round)
    for (const Picture& picture : set.pictures) {
      const Picture* one[] = {&picture};
      const ReadLine line = read_pictures(decoder, processor, one, most).front();
      prefill.samples_ns.push_back(line.prefill_ns);
      decode.samples_ns.insert(decode.samples_ns.end(), line.step_ns.begin(), line.step_ns.end());
      if (round > 0) continue;
      greedy.emplace_back();
      for (const ReadToken& token : line.tokens) greedy.back().push_back(token.id);
    }

  std::int64_t drafted = 0, accepted = 0, forwards = 0, tokens = 0, same = 0;
  for (std::size_t i = 0; i < set.pictures.size(); ++i) {
    const LookupReading reading = read_with_lookup(decoder, processor, set.pictures[i], most, kLookupDraft);
    drafted += reading.drafted, accepted += reading.accepted, forwards += reading.forwards;
    tokens += std::ssize(reading.ids) - 1;  // the first one is the prefill's
    same += reading.ids == greedy[i];
  }
  const auto ratio = [](std::int64_t a, std::int64_t b) {
    return b > 0 ? Json(static_cast<double>(a) / static_cast<double>(b)) : Json(nullptr);
  };
  decode.ocr["lookup"] = {{"draft", kLookupDraft},
                          {"accept_rate", ratio(accepted, drafted)},
                          {"tokens_per_forward", ratio(tokens, forwards)},
                          {"same_lines", same}};
  decode.ocr["experts"] = experts_json(expert_counts(decoder, processor, set));
  return {prefill, decode};
}

void print_ocr_speeds(std::span<const Record> records, std::ostream& out) {
  Table table({"model and set", "backend", "dtype", "threads", "status", "tokens/s", "wrong characters",
               "drafts accepted", "tokens a pass", "same lines", "experts of a layer, least - most"});
  for (const Record& r : records) {
    const bool timed = r.status == Status::passed && !r.samples_ns.empty();
    std::vector<std::string> row = {r.name,
                                    r.backend,
                                    r.dtype,
                                    r.threads ? concat(*r.threads) : "",
                                    std::string(name(r.status)),
                                    timed ? fixed(*r.tokens / r.median_ns() * 1e9, 0) : ""};
    if (!r.ocr.is_null() && r.ocr.contains("lookup")) {
      const Json& lookup = r.ocr.at("lookup");
      const auto number = [&](const char* key, double scale, int digits, const char* unit) {
        return lookup.at(key).is_null() ? "" : concat(fixed(scale * lookup.at(key).get<double>(), digits), unit);
      };
      std::string experts;
      for (const Json& layer : r.ocr.at("experts"))
        experts += concat(experts.empty() ? "" : ", ", layer.at("layer").dump(), ": ",
                          percent(layer.at("least").get<double>()), " - ", percent(layer.at("most").get<double>()));
      row.insert(row.end(), {concat(fixed(100 * r.ocr.at("cer").get<double>(), 2), " %"),
                             number("accept_rate", 100, 1, " %"), number("tokens_per_forward", 1, 2, ""),
                             concat(lookup.at("same_lines").dump(), " of ", r.ocr.at("lines").dump()), experts});
    }
    table.add(std::move(row));
  }
  table.print(out);
  for (const Record& r : records)
    if (r.status != Status::passed)
      out << '\n' << name(r.status) << ": " << r.name << " on " << r.backend << "\n  " << r.reason << '\n';
}

}  // namespace dsv2::harness
