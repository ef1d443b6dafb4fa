#include "harness/error_sets.h"

#include <cmath>
#include <map>
#include <memory>
#include <string>

#include "harness/backend_fault.h"
#include "harness/backends.h"
#include "harness/generate.h"
#include "harness/json.h"
#include "model/file.h"

namespace dsv2::harness {
namespace {

namespace fs = std::filesystem;

/// A literal of expectations.json: nested lists of integers, or {shape, fill, dtype}.
Tensor literal(const Json& json, const std::string& source) {
  if (json.is_object()) {
    const auto dtype = require<std::string>(json, "dtype", source);
    const auto shape = require<Shape>(json, "shape", source);
    if (dtype == "int64") {
      Tensor t(DType::i64, shape);
      for (auto& x : t.as<std::int64_t>()) x = require<std::int64_t>(json, "fill", source);
      return t;
    }
    DSV2_CHECK(dtype == "float32", source, ": dtype: expected int64 or float32, found ", dtype);
    Tensor t(DType::f32, shape);
    for (auto& x : t.as<float>()) x = require<float>(json, "fill", source);
    return t;
  }
  Shape shape;
  std::vector<std::int64_t> values;
  const std::function<void(const Json&, std::size_t)> walk = [&](const Json& j, std::size_t depth) {
    if (!j.is_array()) {
      DSV2_CHECK(j.is_number_integer() && depth == shape.size(), source,
                 ": expected a regular nested list of integers");
      values.push_back(j.get<std::int64_t>());
      return;
    }
    if (depth == shape.size()) shape.push_back(static_cast<std::int64_t>(j.size()));
    DSV2_CHECK(shape[depth] == static_cast<std::int64_t>(j.size()), source,
               ": expected a regular nested list of integers");
    for (const Json& item : j) walk(item, depth + 1);
  };
  walk(json, 0);
  return Tensor::from<std::int64_t>(values, shape);
}

OwnedInput read_inputs(const Json& json, const std::string& source) {
  OwnedInput inputs;
  for (const auto& [kind, value] : json.items()) inputs.set(kind, literal(value, source + ": " + kind));
  return inputs;
}

/// Executes one call; the logits, or an empty tensor for a generation.
Tensor execute(Decoder& decoder, const Json& call, const std::string& source) {
  const Config& config = decoder.config();
  OwnedInput inputs = read_inputs(require<Json>(call, "inputs", source), source + ": inputs");
  if (call.contains("max_new_tokens")) {
    generate(decoder, std::move(inputs), {.max_new_tokens = require<std::int64_t>(call, "max_new_tokens", source)});
    return {};
  }
  std::unique_ptr<KvCache> cache;
  LegacyCache legacy;
  if (call.contains("cache")) {
    for (const Json& layer : call.at("cache")) {
      const auto part = [&](std::size_t p) {
        const std::string key(cache_parts(config)[p].name);
        return literal(require<Json>(layer, key, source), source + ": cache." + key);
      };
      legacy.push_back({part(0), part(1)});
    }
    cache = decoder.make_cache(legacy);
  }
  if (call.contains("prefill")) {
    OwnedInput before = read_inputs(call.at("prefill"), source + ": prefill");
    cache = decoder.make_cache(before.batch(), before.tokens());
    before.input.cache = cache.get();
    decoder.forward(before.input);
  }
  const std::int64_t held = cache ? cache->length() : 0;
  inputs.input.cache = cache.get();
  inputs.input.logits = Logits::all;
  try {
    return std::move(decoder.forward(inputs.input).logits);
  } catch (const Error&) {
    DSV2_CHECK(!cache || cache->length() == held, source, ": the refused call changed its cache");
    throw;
  }
}

bool all_finite(const Tensor& t) {
  for (std::int64_t i = 0; i < t.size(); ++i)
    if (!std::isfinite(t.at(i))) return false;
  return true;
}

Record blank(std::string name, std::string_view backend, const Options& options) {
  Record r;
  r.name = std::move(name);
  r.op = "bad_input";
  r.backend = backend;
  r.dtype = dsv2::name(options.dtype);
  r.status = Status::passed;
  r.compared = 1;
  return r;
}

void reject(Record& r, std::string reason) {
  r.status = Status::failed;
  r.reason = std::move(reason);
}

/// A message for people: one line that says something.
bool clear(const std::string& message) { return message.size() > 10 && message.find('\n') == std::string::npos; }

void judge_call(Record& r, Decoder& decoder, const Json& entry, const std::string& source) {
  const auto expect = require<std::string>(entry, "expect", source);
  DSV2_CHECK(expect == "ok" || expect == "error" || expect == "either", source,
             ": expect: expected ok, error or either, found ", expect);
  r.coverage = "expect " + expect;
  try {
    const Tensor logits = execute(decoder, require<Json>(entry, "call", source), source);
    if (expect == "error") return reject(r, "expected an error, the call was accepted");
    if (logits && !all_finite(logits)) return reject(r, "logits are not finite");
    if (expect != "ok") return;
    const Json ok = require<Json>(entry, "ok", source);
    const auto shape = require<Shape>(ok, "logits_shape", source);
    if (logits.shape() != shape)
      return reject(r, concat("expected logits of shape ", to_string(shape), ", got ", to_string(logits.shape())));
    if (!ok.contains("same_as")) return;
    constexpr double kSame = 1e-5;  // golden/bad_input's policy
    const Tensor same = execute(decoder, ok.at("same_as"), source);
    Comparison c = compare_absolute("logits against same_as", logits.view(), same.view(), kSame);
    r.budget_used = c.budget_used;
    if (!c.passed) reject(r, describe(c));
  } catch (const BackendFault& e) {
    book_error(r, e);  // no refusal
  } catch (const Error& e) {
    if (expect == "ok") return reject(r, concat("expected logits, got the error: ", e.what()));
    if (!clear(e.what())) return reject(r, concat("the message is not one clear line: ", e.what()));
    r.coverage += concat("; refused: ", e.what());
  }
}

std::vector<Record> run_calls(const fs::path& folder, const Json& json, std::span<const Backend* const> backends,
                              const Options& options, const std::function<bool(std::string_view)>& wanted) {
  const std::string source = (folder / "expectations.json").string();
  std::vector<Record> records;
  const auto models = require<Json>(json, "models", source);
  for (const Backend* backend : backends) {
    std::map<std::string, std::unique_ptr<Decoder>> decoders;
    for (const Json& entry : require<Json>(json, "cases", source)) {
      const auto id = require<std::string>(entry, "id", source);
      Record r = blank(folder.filename().string() + "/" + id, backend->name, options);
      if (!wanted(r.name)) continue;
      if (const auto why = why_not(*backend)) {
        r.status = Status::skipped;
        r.reason = *why;
        records.push_back(std::move(r));
        continue;
      }
      const auto model = require<std::string>(entry, "model", source);
      auto& decoder = decoders[model];
      if (!decoder) {
        const auto spec = require<Json>(models, model, source);
        const fs::path dir = folder / require<std::string>(spec, "folder", source);
        Config config = Config::load(dir);
        decoder = backend->create(config, Weights::load(dir, config), options);
      }
      judge_call(r, *decoder, entry, source + ": " + id);
      book_findings(r, backend->findings);
      records.push_back(std::move(r));
    }
  }
  return records;
}

/// Does the message hold one of the words of "a|b|c"?
bool names_one_of(const std::string& message, const std::string& alternatives) {
  for (std::size_t from = 0; from <= alternatives.size();) {
    const std::size_t to = std::min(alternatives.find('|', from), alternatives.size());
    if (message.find(alternatives.substr(from, to - from)) != std::string::npos) return true;
    from = to + 1;
  }
  return false;
}

void judge_file(Record& r, const fs::path& folder, const fs::path& base, const Json& entry, const std::string& source) {
  const auto file = require<std::string>(entry, "file", source),
             replaces = require<std::string>(entry, "replaces", source);
  const auto must = require<std::string>(entry, "must", source);
  DSV2_CHECK(must == "error" || must == "ok", source, ": must: expected error or ok, found ", must);
  const TemporaryPath copy(make_temporary_folder());
  fs::copy(base, copy.path(), fs::copy_options::recursive);
  if (replaces.ends_with(".index.json"))
    fs::rename(copy.path() / "model.safetensors", copy.path() / "model-00001-of-00002.safetensors");
  else
    fs::remove_all(copy.path() / replaces);
  fs::copy(folder / file, copy.path() / replaces, fs::copy_options::recursive);
  r.coverage = "must " + must;
  try {
    const Config config = Config::load(copy.path());
    Weights::load(copy.path(), config);
    if (must == "error") reject(r, "expected an error, the checkpoint was accepted");
  } catch (const Error& e) {
    const std::string message = e.what();
    if (must == "ok") return reject(r, "expected it to load, got the error: " + message);
    if (!clear(message)) return reject(r, "the message is not one clear line: " + message);
    std::vector<std::string> words = require<std::vector<std::string>>(entry, "names", source);
    words.push_back(fs::path(replaces).filename().string());
    for (const std::string& alternatives : words)
      if (!names_one_of(message, alternatives) && alternatives != words.back())
        return reject(r, concat("the message does not name ", alternatives, ": ", message));
    if (!names_one_of(message, words.back() + "|.safetensors|config.json|index.json"))
      return reject(r, "the message does not name the file: " + message);
    r.coverage +=
        "; refused: " + message.substr(message.find(copy.path().string()) == 0 ? copy.path().string().size() + 1 : 0);
  }
}

std::vector<Record> run_files(const fs::path& folder, const Json& json, const Options& options,
                              const std::function<bool(std::string_view)>& wanted) {
  const std::string source = (folder / "expectations.json").string();
  const fs::path base = folder / require<std::string>(json, "base", source);
  DSV2_CHECK(fs::is_directory(base), source, ": base: expected a folder, found ", base.string());
  std::vector<Record> records;
  for (const Json& entry : require<Json>(json, "cases", source)) {
    const auto id = require<std::string>(entry, "id", source);
    Record r = blank(folder.filename().string() + "/" + id, "model", options);
    r.op = "bad_file";
    if (!wanted(r.name)) continue;
    judge_file(r, folder, base, entry, source + ": " + id);
    records.push_back(std::move(r));
  }
  return records;
}

}  // namespace

std::vector<Record> run_error_set(const fs::path& folder, std::span<const Backend* const> backends,
                                  const Options& options, const std::function<bool(std::string_view)>& wanted) {
  const fs::path file = folder / "expectations.json";
  const Json json = read_json(file);
  const auto format = require<std::string>(json, "format", file.string());
  if (format == "dsv2-golden-errors/1") return run_calls(folder, json, backends, options, wanted);
  DSV2_CHECK(format == "dsv2-golden-files/1", file.string(),
             ": format: expected dsv2-golden-errors/1 or dsv2-golden-files/1, found ", format);
  return run_files(folder, json, options, wanted);
}

}  // namespace dsv2::harness
