#include "harness/ocr_task.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>

#include "harness/statistics.h"
#include "harness/table.h"
#include "model/file.h"
#include "model/safetensors.h"

namespace dsv2::harness {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kBatch = 50;
/// Lines whose text and picture a record keeps: those that differ, and a few that do not.
constexpr std::size_t kKeptDiffering = 8, kKeptEqual = 2;
/// Of two f32 computations of one logit (golden/FORMAT.md's rule, without a measured tolerance).
constexpr double kLogitBound = 8e-6;

std::string base64(std::string_view bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const auto byte = [&](std::size_t j) {
      return i + j < bytes.size() ? static_cast<unsigned>(static_cast<unsigned char>(bytes[i + j])) : 0u;
    };
    const unsigned bits = byte(0) << 16 | byte(1) << 8 | byte(2);
    for (std::size_t j = 0; j < 4; ++j) out += i + j <= bytes.size() ? kDigits[bits >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

/// Torch's ids fed to the decoder: KL and agreement at each position.
struct Agreement {
  std::vector<double> kl;
  std::int64_t same = 0;

  void add(const OcrAnswers& answers, std::size_t picture, std::size_t at, std::span<const float> got) {
    const auto V = got.size();
    const std::span<const float> want{answers.logits[picture].data() + at * V, V};
    const std::vector<double> p = log_softmax(want), q = log_softmax(got);
    double sum = 0;
    for (std::size_t v = 0; v < V; ++v) sum += std::exp(p[v]) * (p[v] - q[v]);
    kl.push_back(sum);
    same += std::max_element(want.begin(), want.end()) - want.begin() ==
            std::max_element(got.begin(), got.end()) - got.begin();
  }
};

void follow(Decoder& decoder, const OcrProcessor& processor, const OcrAnswers& answers,
            std::span<const Picture* const> pictures, std::size_t first, Agreement& agreement) {
  const auto B = static_cast<std::int64_t>(pictures.size());
  std::int64_t longest = 1;
  for (std::int64_t b = 0; b < B; ++b)
    longest = std::max(longest, static_cast<std::int64_t>(answers.ids[first + static_cast<std::size_t>(b)].size()));
  const auto cache = decoder.make_cache(B, processor.prompt_tokens() + longest);
  OwnedInput prompt;
  prompt.set("inputs_embeds", processor.prompt(pictures));
  prompt.input.cache = cache.get();
  prompt.input.logits = Logits::last;
  const std::vector<float> at_first = widen<float>(decoder.forward(prompt.input).logits.view());
  const std::size_t V = at_first.size() / pictures.size();
  std::vector<float> behind;
  if (longest > 1) {
    Tensor ids(DType::i64, {B, longest - 1});  // shorter lines are padded behind their end: nothing there is looked at
    for (std::int64_t b = 0; b < B; ++b) {
      const auto& line = answers.ids[first + static_cast<std::size_t>(b)];
      std::copy(line.begin(), line.end() - 1, ids.as<std::int64_t>().begin() + b * (longest - 1));
    }
    OwnedInput text;
    text.set("input_ids", std::move(ids));
    text.input.cache = cache.get();
    text.input.logits = Logits::all;
    behind = widen<float>(decoder.forward(text.input).logits.view());
  }
  for (std::size_t b = 0; b < pictures.size(); ++b)
    for (std::size_t i = 0; i < answers.ids[first + b].size(); ++i) {
      const float* row =
          i == 0 ? at_first.data() + b * V : behind.data() + (b * static_cast<std::size_t>(longest - 1) + i - 1) * V;
      agreement.add(answers, first + b, i, {row, V});
    }
}

/// Is the first token that differs from torch's one that rounding may choose instead?
bool is_tied(const OcrAnswers& answers, std::size_t picture, const std::vector<ReadToken>& got) {
  const std::vector<std::int64_t>& want = answers.ids[picture];
  std::size_t at = 0;
  while (at < want.size() && at < got.size() && want[at] == got[at].id) ++at;
  if (at == want.size() || at == got.size()) return false;
  const std::size_t V = answers.logits[picture].size() / want.size();
  const std::span<const float> row{answers.logits[picture].data() + at * V, V};
  double largest = 1;
  for (const float x : row) largest = std::max(largest, std::abs(static_cast<double>(x)));
  const double apart = row[static_cast<std::size_t>(want[at])] - row[static_cast<std::size_t>(got[at].id)];
  return std::abs(apart) <= 2 * kLogitBound * largest;
}

std::vector<std::string> torch_texts(const OcrAnswers& answers, const OcrProcessor& processor) {
  std::vector<std::string> out;
  for (const auto& ids : answers.ids) out.push_back(processor.text(ids));
  return out;
}

std::int64_t character_count(const std::vector<std::string>& texts) {
  std::int64_t sum = 0;
  for (const std::string& t : texts) sum += static_cast<std::int64_t>(t.size());
  return sum;
}

Comparison judge_rate(const OcrScore& score, const OcrScore& torch, DType dtype, std::int64_t lines) {
  Comparison c;
  c.name = "cer";
  c.rule = concat("character error rate at most ", fixed(100 * cer_bound(dtype), 1), " points above torch's in f32");
  c.count = lines;
  c.got = score.cer, c.want = torch.cer, c.bound = cer_bound(dtype);
  const double above = score.cer - torch.cer;
  c.passed = above <= c.bound;
  c.outside = c.passed ? 0 : 1;
  c.budget_used = std::max(0.0, above) / c.bound;
  if (!c.passed)
    c.reason = concat("character error rate ", percent(score.cer), ", torch's ", percent(torch.cer),
                      ": expected at most ", fixed(100 * c.bound, 1), " points more");
  return c;
}

Comparison judge_tokens(std::int64_t lines, std::int64_t different, const std::string& first) {
  Comparison c;
  c.name = "tokens";
  c.rule = "torch's tokens on every line, but where its own first two are within rounding of each other";
  c.count = lines;
  c.outside = different;
  c.passed = different == 0;
  c.budget_used = c.passed ? 0 : std::numeric_limits<double>::infinity();
  if (!c.passed) c.reason = concat(different, " of ", lines, " lines read otherwise than by torch, first ", first);
  return c;
}

}  // namespace

OcrSet OcrSet::load(const fs::path& folder, const OcrProcessor& processor) {
  OcrSet set;
  set.name = folder.filename().string();
  const fs::path list = folder / "lines.tsv";
  std::istringstream lines(read_text_file(list));
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    const std::size_t first = line.find('\t'), second = line.find('\t', first + 1);
    DSV2_CHECK(first != std::string::npos && second != std::string::npos, list.string(), ": line ", number,
               ": expected file, font and text between tabs, found ", line);
    set.files.push_back(folder / line.substr(0, first));
    set.fonts.push_back(line.substr(first + 1, second - first - 1));
    set.texts.push_back(line.substr(second + 1));
    const std::string file = set.files.back().string();
    set.pictures.push_back(processor.fitted(read_png(file), file));
  }
  DSV2_CHECK(!set.files.empty(), list.string(), ": expected at least one line, found none");
  return set;
}

OcrAnswers OcrAnswers::load(const fs::path& file, std::size_t pictures, std::int64_t vocabulary) {
  const SafetensorsFile stored(file);
  const auto begin = stored.view("begin"), ids = stored.view("ids"), logits = stored.view("logits");
  const auto N = static_cast<std::int64_t>(pictures);
  DSV2_CHECK(begin.shape == Shape{N + 1}, stored.source(), ": begin: expected shape ", to_string({N + 1}), ", found ",
             to_string(begin.shape));
  const Shape rows{ids.size(), vocabulary};
  DSV2_CHECK(ids.shape.size() == 1 && logits.shape == rows, stored.source(), ": logits: expected shape ",
             to_string(rows), ", found ", to_string(logits.shape));
  OcrAnswers answers;
  const auto at = begin.as<std::int64_t>();
  const auto id = ids.as<std::int64_t>();
  const auto value = logits.as<float>();
  for (std::size_t i = 0; i < pictures; ++i) {
    DSV2_CHECK(at[i] >= 0 && at[i] < at[i + 1] && at[i + 1] <= ids.size(), stored.source(),
               ": begin: expected ascending places in ids, found ", at[i], ", ", at[i + 1]);
    answers.ids.emplace_back(id.begin() + at[i], id.begin() + at[i + 1]);
    for (const std::int64_t token : answers.ids.back())
      DSV2_CHECK(token >= 0 && token < vocabulary, stored.source(), ": ids: expected 0 to ", vocabulary - 1, ", found ",
                 token);
    answers.logits.emplace_back(value.begin() + at[i] * vocabulary, value.begin() + at[i + 1] * vocabulary);
  }
  return answers;
}

OcrScore OcrScore::of(const std::vector<std::string>& texts, const std::vector<std::string>& found) {
  std::int64_t errors = 0, exact = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    errors += edit_distance(found[i], texts[i]);
    exact += found[i] == texts[i];
  }
  return {.cer = static_cast<double>(errors) / static_cast<double>(character_count(texts)),
          .exact = static_cast<double>(exact) / static_cast<double>(texts.size())};
}

double cer_bound(DType dtype) {
  switch (dtype) {
    case DType::i8:
      return 0.002;
    case DType::i4:
      return 0.01;
    default:
      return 0.001;
  }
}

Record ocr_record(std::string_view model, const OcrSet& set, const Backend& backend, const Options& options) {
  Record r;
  r.name = concat("ocr/", model, "/", set.name);
  r.op = "ocr";
  r.backend = backend.name;
  r.dtype = name(options.dtype);
  r.kv_dtype = name(options.kv_dtype);
  r.threads = options.threads;
  return r;
}

std::vector<Record> check_ocr(std::string_view model, const OcrSet& set, const OcrAnswers& answers,
                              const OcrProcessor& processor, Decoder& decoder, const Backend& backend) {
  const Options& options = decoder.options();
  Record r = ocr_record(model, set, backend, options);
  std::vector<ReadLine> read;
  Agreement agreement;
  for (std::size_t at = 0; at < set.pictures.size(); at += kBatch) {
    std::vector<const Picture*> pictures;
    for (std::size_t i = at; i < std::min(at + kBatch, set.pictures.size()); ++i) pictures.push_back(&set.pictures[i]);
    for (ReadLine& line : read_pictures(decoder, processor, pictures, processor.max_new_tokens()))
      read.push_back(std::move(line));
    follow(decoder, processor, answers, pictures, at, agreement);
  }

  const std::vector<std::string> torch = torch_texts(answers, processor);
  std::vector<std::string> found;
  std::vector<std::size_t> order;  // of the lines that are kept: what differs first
  std::int64_t different = 0;
  std::string first;
  for (std::size_t i = 0; i < read.size(); ++i) {
    found.push_back(read[i].text);
    const bool same = std::ranges::equal(read[i].tokens, answers.ids[i], {}, &ReadToken::id);
    if (same) continue;
    if (is_tied(answers, i, read[i].tokens)) {
      ++r.ties;
      continue;
    }
    if (different++ == 0)
      first = concat(set.files[i].filename().string(), ": \"", found[i], "\" where torch has \"", torch[i], "\"");
  }
  const auto differs = [&](std::size_t i) { return found[i] != set.texts[i] || found[i] != torch[i]; };
  for (const bool wanted : {true, false}) {
    std::size_t left = wanted ? kKeptDiffering : kKeptEqual;
    for (std::size_t i = 0; i < found.size() && left > 0; ++i)
      if (differs(i) == wanted) order.push_back(i), --left;
  }

  const OcrScore score = OcrScore::of(set.texts, found), as_torch = OcrScore::of(set.texts, torch);
  const auto lines = static_cast<std::int64_t>(read.size());
  r.add(judge_rate(score, as_torch, options.dtype, lines));
  if (options.dtype == DType::f32) r.add(judge_tokens(lines, different, first));
  // NaN last: it is the maximum then.
  std::sort(agreement.kl.begin(), agreement.kl.end(),
            [](double a, double b) { return std::isnan(b) ? !std::isnan(a) : a < b; });
  const std::size_t count = agreement.kl.size();
  r.coverage =
      concat(lines, " lines of ", character_count(set.texts), " characters; the next token at ", count, " places");
  r.ocr = {{"lines", lines},
           {"characters", character_count(set.texts)},
           {"cer", score.cer},
           {"exact", score.exact},
           {"torch_cer", as_torch.cer},
           {"torch_exact", as_torch.exact},
           {"kl_mean", finite_or_null(std::accumulate(agreement.kl.begin(), agreement.kl.end(), 0.0) /
                                      static_cast<double>(count))},
           {"kl_p99", finite_or_null(agreement.kl[(count - 1) * 99 / 100])},
           {"kl_max", finite_or_null(agreement.kl.back())},
           {"top1", static_cast<double>(agreement.same) / static_cast<double>(count)},
           {"otherwise_than_torch", different},
           {"tied_lines", r.ties}};
  r.ocr["read"] = Json::array();
  for (const std::size_t i : order)
    r.ocr["read"].push_back({{"file", set.files[i].filename().string()},
                             {"font", set.fonts[i]},
                             {"text", set.texts[i]},
                             {"found", found[i]},
                             {"torch", torch[i]},
                             {"picture", "data:image/png;base64," + base64(read_text_file(set.files[i]))}});
  return {r};
}

std::vector<Record> run_ocr_task(const std::vector<fs::path>& models, const fs::path& sets,
                                 const std::vector<const Backend*>& backends, const std::vector<Options>& every,
                                 const LoadWeights& load, const OcrWork& work) {
  DSV2_CHECK(fs::is_directory(sets), sets.string(), ": expected a folder of held-out sets, found none");
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(sets))
    if (fs::exists(entry.path() / "lines.tsv")) folders.push_back(entry.path());
  std::sort(folders.begin(), folders.end());
  std::vector<Record> records;
  ProgressLine progress("read");
  std::size_t done = 0;
  const std::size_t all = models.size() * folders.size() * backends.size() * every.size();
  for (const fs::path& model : models) {
    const std::string label = fs::absolute(model).lexically_normal().filename().string();
    const Config config = Config::load(model);
    const OcrProcessor processor(model, config);
    std::vector<OcrSet> loaded;
    for (const fs::path& folder : folders) loaded.push_back(OcrSet::load(folder, processor));
    for (const Options& options : every)
      for (const Backend* backend : backends) {
        std::optional<std::string> why = backend->unavailable();
        if (!why) why = backend->unsupported(config, options);
        std::unique_ptr<Decoder> decoder;
        if (!why) decoder = backend->create(config, load(model.string(), config, options.dtype), options);
        for (const OcrSet& set : loaded) {
          progress.show(done++, all, concat(label, " ", set.name, " ", backend->name, " ", name(options.dtype)));
          const fs::path file = sets / concat(set.name, ".", label, ".safetensors");
          std::optional<std::string> missing = why;
          if (!why && !fs::exists(file)) missing = concat("no answers of torch's: ", file.string(), ": no such file");
          if (!missing) {
            const OcrAnswers answers = OcrAnswers::load(file, set.pictures.size(), config.vocab_size);
            for (Record& r : work(label, set, answers, processor, *decoder, *backend)) records.push_back(std::move(r));
            continue;
          }
          records.push_back(ocr_record(label, set, *backend, options));
          records.back().reason = *missing;
        }
      }
  }
  return records;
}

OcrPlaces ocr_places(const fs::path& golden, const std::string& model, const std::vector<std::string>& sets) {
  const fs::path home = golden / "tiny_ocr";
  OcrPlaces places;
  if (model.empty())
    places.models = {home / "mha", home / "mla"};
  else
    places.models = {model};
  if (sets.empty())
    places.sets = {home / "heldout"};
  else
    places.sets.assign(sets.begin(), sets.end());
  return places;
}

void print_ocr(std::span<const Record> records, bool verbose, std::ostream& out) {
  Table table({"model and set", "backend", "dtype", "status", "lines", "wrong characters", "torch", "exact lines",
               "torch", "KL mean", "p99", "max", "top-1", "as torch"});
  for (const Record& r : records) {
    if (r.ocr.is_null()) {
      table.add({r.name, r.backend, r.dtype, std::string(name(r.status))});
      continue;
    }
    const auto share = [&](const char* key) { return concat(fixed(100 * r.ocr.at(key).get<double>(), 2), " %"); };
    const auto small = [&](const char* key) {
      std::ostringstream text;
      text.precision(2);
      if (r.ocr.at(key).is_null()) return std::string("nan");
      text << r.ocr.at(key).get<double>();
      return text.str();
    };
    const auto lines = r.ocr.at("lines").get<std::int64_t>();
    const auto other = r.ocr.at("otherwise_than_torch").get<std::int64_t>() + r.ties;
    table.add({r.name, r.backend, r.dtype, std::string(name(r.status)), concat(lines), share("cer"), share("torch_cer"),
               share("exact"), share("torch_exact"), small("kl_mean"), small("kl_p99"), small("kl_max"), share("top1"),
               concat(lines - other)});
  }
  table.print(out);
  for (const Record& r : records) {
    if (r.status != Status::passed)
      out << '\n'
          << name(r.status) << ": " << r.name << " on " << r.backend << " in " << r.dtype << "\n  " << r.reason << '\n';
    if (!verbose || r.ocr.is_null()) continue;
    out << '\n' << r.name << " on " << r.backend << " in " << r.dtype << '\n';
    for (const Json& line : r.ocr.at("read"))
      out << "  " << line.at("file").get<std::string>() << "  text  " << line.at("text").get<std::string>()
          << "\n           found " << line.at("found").get<std::string>() << '\n';
  }
}

}  // namespace dsv2::harness
