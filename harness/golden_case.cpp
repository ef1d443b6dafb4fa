#include "harness/golden_case.h"

#include <cmath>
#include <set>

#include "harness/json.h"
#include "model/kv_cache.h"

namespace dsv2::harness {
namespace {

namespace fs = std::filesystem;

const std::set<std::string> kInputs = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "labels"};
const std::set<std::string> kSingle = {"logits", "last_hidden_state", "loss"};
const std::map<std::string, Indexed> kIndexed = {{"hidden_states", Indexed::layers_and_embeddings},
                                                 {"attentions", Indexed::layers},
                                                 {"router_logits", Indexed::moe_layers},
                                                 {"router_weights", Indexed::moe_layers},
                                                 {"router_topk_idx", Indexed::moe_layers}};

std::map<std::string, std::string> patterns(const Json& json, std::string_view key, const std::string& source) {
  std::map<std::string, std::string> map;
  if (!json.contains(key) || json.at(std::string(key)).is_null()) return map;
  const auto object = require<Json>(json, key, source);
  DSV2_CHECK(object.is_object(), source, ": ", key, ": expected an object, found ", object.type_name());
  for (const auto& [kind, value] : object.items()) map[kind] = require<std::string>(object, kind, source);
  return map;
}

TensorRef tensor_ref(const Json& json, const std::string& source) {
  if (json.is_string()) return {json.get<std::string>(), std::nullopt};
  TensorRef ref{require<std::string>(json, "tensor", source), std::nullopt};
  ref.slice = {require<std::int64_t>(json, "from", source), require<std::int64_t>(json, "to", source)};
  return ref;
}

std::map<std::string, TensorRef> inputs(const Json& json, const std::string& source) {
  std::map<std::string, TensorRef> map;
  const auto object = require<Json>(json, "inputs", source);
  for (const auto& [kind, value] : object.items()) {
    DSV2_CHECK(kInputs.contains(kind), source, ": inputs: unknown input ", kind);
    map[kind] = tensor_ref(value, source + ": inputs." + kind);
  }
  return map;
}

void check_kinds(const std::map<std::string, std::string>& outputs, const std::string& source) {
  for (const auto& [kind, pattern] : outputs) {
    DSV2_CHECK(kSingle.contains(kind) || kIndexed.contains(kind), source, ": outputs: unknown kind ", kind);
    DSV2_CHECK((pattern.find("{i}") != std::string::npos) == kIndexed.contains(kind), source, ": outputs.", kind,
               ": expected a name ", kIndexed.contains(kind) ? "with" : "without", " {i}, found ", pattern);
  }
}

std::optional<TensorRef> optional_ref(const Json& json, const char* key, const std::string& source) {
  if (!json.contains(key) || json.at(key).is_null()) return std::nullopt;
  return tensor_ref(json.at(key), source + ": " + key);
}

/// `wanted` must hold what `found` names and nothing else, or be absent.
void check_parts(const std::map<std::string, std::string>& found, const Config& config, const std::string& source) {
  if (found.empty()) return;
  for (const CachePart& part : cache_parts(config))
    DSV2_CHECK(found.contains(std::string(part.name)), source, ": expected the cache part ", part.name, ", found none");
  DSV2_CHECK(found.size() == 2, source, ": expected 2 cache parts, found ", found.size());
}

std::string with_layer(std::string pattern, std::int64_t layer) {
  if (const auto at = pattern.find("{i}"); at != std::string::npos) pattern.replace(at, 3, std::to_string(layer));
  return pattern;
}

}  // namespace

Indexed indexed(const std::string& kind) {
  const auto it = kIndexed.find(kind);
  return it == kIndexed.end() ? Indexed::no : it->second;
}

GoldenCase GoldenCase::load(const fs::path& folder) {
  const std::string source = (folder / "case.json").string();
  const Json json = read_json(source);
  const auto format = require<std::string>(json, "format", source);
  DSV2_CHECK(format == "dsv2-golden/1", source, ": format: expected dsv2-golden/1, found ", format);
  GoldenCase c;
  c.folder = folder;
  c.name = require<std::string>(json, "name", source);
  if (json.contains("description")) c.description = require<std::string>(json, "description", source);
  c.config = Config::load(folder / require<std::string>(json, "config", source));
  const auto head = require<std::string>(json, "head", source);
  if (head == dsv2::name(Head::sequence_classification))
    c.config.head = Head::sequence_classification;
  else
    DSV2_CHECK(head == dsv2::name(Head::causal_lm), source,
               ": head: expected causal_lm or sequence_classification, found ", head);
  if (head == dsv2::name(Head::causal_lm)) c.config.head = Head::causal_lm;

  const auto weights = require<Json>(json, "weights", source);
  c.weights_path =
      folder / require<std::string>(weights, weights.contains("index") ? "index" : "file", source + ": weights");
  const auto moe_layers = require<std::vector<std::int64_t>>(json, "moe_layers", source);
  DSV2_CHECK(moe_layers == c.config.moe_layers(), source, ": moe_layers: expected ", to_string(c.config.moe_layers()),
             " as the configuration has it, found ", to_string(moe_layers));
  c.tensors_ = std::make_shared<const SafetensorsFile>(folder / require<std::string>(json, "tensors", source));
  const auto tolerances = require<Json>(json, "tolerance", source);
  for (const auto& [tensor_name, value] : tolerances.items()) {
    DSV2_CHECK(value.is_number() && value.get<double>() >= 0, source, ": tolerance.", tensor_name,
               ": expected a number of at least 0, found ", value.dump());
    c.tolerance[tensor_name] = value.get<double>();
  }

  const auto names_exist = [&](const std::map<std::string, std::string>& outputs, const std::string& where) {
    for (const auto& [kind, pattern] : outputs)
      for (const auto& [layer, tensor_name] : c.expand(kind, pattern))
        DSV2_CHECK(c.tensors_->find(tensor_name), where, ": outputs.", kind, ": no tensor ", tensor_name, " in ",
                   c.tensors_->source());
  };
  std::set<std::string> seen, used_caches;
  for (const Json& j : require<std::vector<Json>>(json, "calls", source)) {
    GoldenCall call;
    call.id = require<std::string>(j, "id", source);
    const std::string where = source + ": call " + call.id;
    DSV2_CHECK(seen.insert(call.id).second, where, ": id is not unique");
    if (j.contains("cache") && !j.at("cache").is_null()) call.cache = require<std::string>(j, "cache", where);
    call.cache_from = patterns(j, "cache_from", where);
    call.inputs = harness::inputs(j, where);
    call.outputs = patterns(j, "outputs", where);
    call.outputs_bf16 = patterns(j, "outputs_bf16", where);
    call.cache_after = patterns(j, "cache_after", where);
    call.valid = optional_ref(j, "valid", where);
    call.cache_valid = optional_ref(j, "cache_valid", where);
    check_kinds(call.outputs, where);
    check_kinds(call.outputs_bf16, where);
    check_parts(call.cache_from, c.config, where + ": cache_from");
    check_parts(call.cache_after, c.config, where + ": cache_after");
    DSV2_CHECK(call.cache || (call.cache_from.empty() && call.cache_after.empty()), where,
               ": cache: expected a name for cache_from or cache_after, found null");
    if (call.cache) {
      const bool first = used_caches.insert(*call.cache).second;
      DSV2_CHECK(first || call.cache_from.empty(), where, ": cache_from: cache ", *call.cache, " is in use already");
    }
    names_exist(call.outputs, where);
    names_exist(call.outputs_bf16, where);
    for (const auto& [kind, pattern] : call.outputs_bf16)
      DSV2_CHECK(call.outputs.contains(kind), where, ": outputs_bf16.", kind, ": no such kind in outputs");
    c.has_bf16_outputs = c.has_bf16_outputs || !call.outputs_bf16.empty();
    c.calls.push_back(std::move(call));
  }
  for (const Json& j : require<std::vector<Json>>(json, "generate", source)) {
    GoldenGeneration g;
    g.id = require<std::string>(j, "id", source);
    const std::string where = source + ": generate " + g.id;
    g.inputs = harness::inputs(j, where);
    g.max_new_tokens = require<std::int64_t>(j, "max_new_tokens", where);
    if (j.contains("eos_token_id") && !j.at("eos_token_id").is_null())
      g.eos_token_id = require<std::int64_t>(j, "eos_token_id", where);
    g.ids = require<std::string>(j, "ids", where);
    if (j.contains("logits") && !j.at("logits").is_null()) g.logits = require<std::string>(j, "logits", where);
    g.cache_after = patterns(j, "cache_after", where);
    check_parts(g.cache_after, c.config, where + ": cache_after");
    c.expected(g.ids);
    c.generate.push_back(std::move(g));
  }
  return c;
}

TensorView GoldenCase::expected(const std::string& tensor_name) const {
  DSV2_CHECK(tensors_->find(tensor_name), (folder / "case.json").string(), ": no tensor ", tensor_name, " in ",
             tensors_->source());
  TensorView view = tensors_->view(tensor_name);
  if (view.dtype != DType::i64)
    for (std::int64_t i = 0, n = view.size(); i < n; ++i)
      DSV2_CHECK(std::isfinite(view.at(i)), tensors_->source(), ": ", tensor_name, ": expected finite values, found ",
                 view.at(i), " at element ", i);
  return view;
}

Tensor GoldenCase::tensor(const TensorRef& ref) const {
  const TensorView whole = expected(ref.tensor);
  Shape shape = whole.shape;
  std::int64_t from = 0, to = shape.size() > 1 ? shape[1] : 1;
  if (ref.slice) {
    const std::int64_t length = shape.size() > 1 ? shape[1] : 0;
    std::tie(from, to) = *ref.slice;
    DSV2_CHECK(0 <= from && from < to && to <= length, (folder / "case.json").string(), ": ", ref.tensor,
               ": expected from < to within 0..", length, ", found ", from, "..", to);
  }
  if (shape.size() > 1) shape[1] = to - from;
  Tensor copy(whole.dtype, shape);
  const std::int64_t rows = shape.empty() ? 1 : (shape.size() > 1 ? shape[0] : 1);
  const std::int64_t bytes = whole.bytes();
  if (bytes == 0) return copy;
  const std::int64_t stride = bytes / std::max<std::int64_t>(rows, 1);
  const std::int64_t item = shape.size() > 1 ? stride / whole.shape[1] : stride;
  const std::int64_t part = shape.size() > 1 ? item * (to - from) : stride;
  for (std::int64_t r = 0; r < rows; ++r)
    std::memcpy(static_cast<char*>(copy.data()) + r * part,
                static_cast<const char*>(whole.data) + r * stride + from * item, static_cast<std::size_t>(part));
  return copy;
}

double GoldenCase::tolerance_of(const std::string& tensor_name) const {
  const auto it = tolerance.find(tensor_name);
  return it == tolerance.end() ? 0.0 : it->second;
}

std::vector<std::pair<std::int64_t, std::string>> GoldenCase::expand(const std::string& kind,
                                                                     const std::string& pattern) const {
  const std::int64_t L = config.num_hidden_layers;
  std::vector<std::pair<std::int64_t, std::string>> names;
  switch (indexed(kind)) {
    case Indexed::no:
      return {{-1, pattern}};
    case Indexed::moe_layers:
      for (const std::int64_t i : config.moe_layers()) names.emplace_back(i, with_layer(pattern, i));
      break;
    case Indexed::layers:
    case Indexed::layers_and_embeddings:
      for (std::int64_t i = 0; i < L + (indexed(kind) == Indexed::layers ? 0 : 1); ++i)
        names.emplace_back(i, with_layer(pattern, i));
  }
  return names;
}

std::int64_t GoldenCase::expected_count() const {
  std::int64_t count = 0;
  for (const GoldenCall& call : calls) {
    for (const auto& [kind, pattern] : call.outputs) count += static_cast<std::int64_t>(expand(kind, pattern).size());
    count += static_cast<std::int64_t>(call.cache_after.size()) * config.num_hidden_layers;
  }
  for (const GoldenGeneration& g : generate)
    count += 1 + (g.logits ? 1 : 0) + static_cast<std::int64_t>(g.cache_after.size()) * config.num_hidden_layers;
  return count;
}

}  // namespace dsv2::harness
