#include "model/config.h"

#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "model/error.h"
#include "model/file.h"
#include "model/json.h"

namespace dsv2 {
namespace {

using nlohmann::json;

/// Upstream's spellings, in the order of the enumerators.
constexpr std::array<std::string_view, 3> kHeads = {"none", "causal_lm", "sequence_classification"};
constexpr std::array<std::string_view, 3> kArchitectures = {"DeepseekV2Model", "DeepseekV2ForCausalLM",
                                                            "DeepseekV2ForSequenceClassification"};
constexpr std::array<std::string_view, 4> kRopeTypes = {"default", "linear", "dynamic", "yarn"};
constexpr std::array<std::string_view, 3> kTopkMethods = {"greedy", "group_limited_greedy", "noaux_tc"};
constexpr std::array<std::string_view, 2> kScoringFuncs = {"softmax", "sigmoid"};
constexpr std::array<std::string_view, 4> kActivations = {"silu", "gelu", "gelu_pytorch_tanh", "relu"};

template <class Enum>
std::size_t index(Enum value) {
  return static_cast<std::size_t>(value);
}

/// Reads the keys of one JSON object strictly. Absent keys leave the default.
class Keys {
 public:
  Keys(const json& object, std::string source, std::string prefix = "")
      : object_(object), source_(std::move(source)), prefix_(std::move(prefix)) {}

  bool has(const char* key) const { return object_.contains(key); }
  /// nullptr when the key is absent or null.
  const json* value(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  template <class T>
  void read(const char* key, T& field) const {
    if (has(key)) field = as<T>(key, object_.at(key));
  }
  template <class T>
  void read(const char* key, std::optional<T>& field) const {
    if (has(key)) field = value(key) ? std::optional<T>(as<T>(key, object_.at(key))) : std::nullopt;
  }
  /// Null, too, leaves the default.
  template <class T>
  void read_unless_null(const char* key, T& field) const {
    if (value(key)) read(key, field);
  }
  template <class T>
  void require(const char* key, T& field) const {
    if (!has(key)) mismatch(key, "a value", "no such key");
    read(key, field);
  }
  template <class Enum, std::size_t N>
  void read_name(const char* key, const std::array<std::string_view, N>& names, Enum& field) const {
    std::string text;
    read(key, text);
    if (has(key)) field = static_cast<Enum>(find(key, text, names));
  }
  template <std::size_t N>
  std::size_t find(const char* key, std::string_view text, const std::array<std::string_view, N>& names) const {
    std::string known;
    for (std::size_t i = 0; i < N; ++i) {
      if (names[i] == text) return i;
      known += (i ? ", " : "") + std::string(names[i]);
    }
    mismatch(key, "one of " + known, quote(text));
  }
  template <class T>
  T as(const char* key, const json& v) const {
    if constexpr (std::is_same_v<T, bool>) {
      if (!v.is_boolean()) mismatch(key, "true or false", describe(v));
    } else if constexpr (std::is_same_v<T, std::int64_t>) {
      constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
      if (!v.is_number_integer() || (v.is_number_unsigned() && v.get<std::uint64_t>() > kMax))
        mismatch(key, "an integer", describe(v));
    } else if constexpr (std::is_same_v<T, double>) {
      if (!v.is_number()) mismatch(key, "a number", describe(v));
    } else {
      static_assert(std::is_same_v<T, std::string>);
      if (!v.is_string()) mismatch(key, "text", describe(v));
    }
    return v.get<T>();
  }
  const json& object(const char* key) const {
    const json& v = object_.at(key);
    if (!v.is_object()) mismatch(key, "an object", describe(v));
    return v;
  }
  [[noreturn]] void mismatch(std::string_view key, std::string_view expected, std::string_view found) const {
    fail(source_, ": ", prefix_, key, ": expected ", expected, ", found ", found);
  }

 private:
  const json& object_;
  std::string source_, prefix_;
};

RopeScaling read_rope_scaling(const Keys& keys, bool use_mla, const std::string& source) {
  RopeScaling r;
  if (!keys.value("rope_scaling")) return r;
  const Keys k(keys.object("rope_scaling"), source, "rope_scaling.");
  // QUIRKS 14: MLA reads "type"; MHA "rope_type", then "type". Newer files have only "rope_type".
  std::pair names("type", "rope_type");
  if (!use_mla) std::swap(names.first, names.second);
  const char* const type = k.value(names.first) ? names.first : names.second;
  if (!k.value(type)) k.mismatch("type", "a value", "no such key");
  k.read_name(type, kRopeTypes, r.type);
  if (r.type == RopeType::plain) return r;
  k.require("factor", r.factor);
  // The default of DeepseekV2YarnRotaryEmbedding.
  if (r.type == RopeType::yarn) r.original_max_position_embeddings = 4096;
  k.read_unless_null("original_max_position_embeddings", r.original_max_position_embeddings);
  k.read_unless_null("beta_fast", r.beta_fast);
  k.read_unless_null("beta_slow", r.beta_slow);
  k.read_unless_null("mscale", r.mscale);
  k.read_unless_null("mscale_all_dim", r.mscale_all_dim);
  k.read("attention_factor", r.attention_factor);
  return r;
}

Head read_head(const Keys& keys) {
  const json* const list = keys.value("architectures");
  if (!list) return Head::causal_lm;
  if (!list->is_array()) keys.mismatch("architectures", "an array", describe(*list));
  if (list->empty()) return Head::causal_lm;
  const auto name = keys.as<std::string>("architectures", list->front());
  if (name.ends_with("ForCausalLM")) return Head::causal_lm;
  if (name.ends_with("ForSequenceClassification")) return Head::sequence_classification;
  if (name.ends_with("Model")) return Head::none;
  keys.mismatch("architectures", "*ForCausalLM, *ForSequenceClassification or *Model", quote(name));
}

}  // namespace

std::string_view name(Head h) { return kHeads[index(h)]; }
std::string_view name(RopeType t) { return t == RopeType::plain ? "plain" : kRopeTypes[index(t)]; }
std::string_view name(TopkMethod m) { return kTopkMethods[index(m)]; }
std::string_view name(ScoringFunc f) { return kScoringFuncs[index(f)]; }
std::string_view name(Activation a) { return kActivations[index(a)]; }

Config Config::load(const std::filesystem::path& path) {
  std::error_code ignored;
  const auto file = std::filesystem::is_directory(path, ignored) ? path / "config.json" : path;
  return parse(read_text_file(file), file.string());
}

Config Config::parse(std::string_view text, std::string_view source_view) {
  const std::string source(source_view);
  const json root = parse_json(text, source);
  DSV2_CHECK(root.is_object(), source, ": expected an object, found ", describe(root));
  const Keys top(root, source);
  const bool nested = top.has("language_config") && root["language_config"].is_object();
  const Keys keys = nested ? Keys(root["language_config"], source, "language_config.") : top;
  const auto either = [&](const char* key) { return keys.value(key) ? keys : top; };

  Config c;
  keys.require("vocab_size", c.vocab_size);
  keys.require("hidden_size", c.hidden_size);
  keys.require("num_hidden_layers", c.num_hidden_layers);
  keys.require("num_attention_heads", c.num_attention_heads);
  c.num_key_value_heads = c.num_attention_heads;
  keys.read_unless_null("num_key_value_heads", c.num_key_value_heads);
  keys.read("intermediate_size", c.intermediate_size);
  keys.read("moe_intermediate_size", c.moe_intermediate_size);
  keys.read("max_position_embeddings", c.max_position_embeddings);

  keys.read("use_mla", c.use_mla);
  keys.read("q_lora_rank", c.q_lora_rank);
  const auto mla_size = [&](const char* key, std::int64_t& field) {
    if (c.use_mla || keys.value(key) || !keys.has(key))
      keys.read(key, field);
    else
      field = 0;
  };
  mla_size("kv_lora_rank", c.kv_lora_rank);
  mla_size("qk_nope_head_dim", c.qk_nope_head_dim);
  mla_size("qk_rope_head_dim", c.qk_rope_head_dim);
  mla_size("v_head_dim", c.v_head_dim);
  keys.read("attention_bias", c.attention_bias);

  keys.read("n_routed_experts", c.n_routed_experts);
  if (c.n_routed_experts == 0) c.n_routed_experts.reset();
  keys.read("n_shared_experts", c.n_shared_experts);
  keys.read_unless_null("num_experts_per_tok", c.num_experts_per_tok);
  keys.read("first_k_dense_replace", c.first_k_dense_replace);
  keys.read("moe_layer_freq", c.moe_layer_freq);
  keys.read_name("topk_method", kTopkMethods, c.topk_method);
  keys.read_unless_null("n_group", c.n_group);
  keys.read_unless_null("topk_group", c.topk_group);
  keys.read("norm_topk_prob", c.norm_topk_prob);
  keys.read_name("scoring_func", kScoringFuncs, c.scoring_func);
  keys.read("routed_scaling_factor", c.routed_scaling_factor);

  std::string act(name(c.hidden_act));
  keys.read("hidden_act", act);
  c.hidden_act =
      static_cast<Activation>(keys.find("hidden_act", act == "gelu_new" ? "gelu_pytorch_tanh" : act, kActivations));
  keys.read("rms_norm_eps", c.rms_norm_eps);
  keys.read("rope_theta", c.rope_theta);
  c.rope_scaling = read_rope_scaling(keys, c.use_mla, source);
  keys.read("tie_word_embeddings", c.tie_word_embeddings);

  keys.read("pad_token_id", c.pad_token_id);
  keys.read("bos_token_id", c.bos_token_id);
  if (const json* const eos = keys.value("eos_token_id")) {
    const json list = eos->is_array() ? *eos : json::array({*eos});
    for (const json& id : list) c.eos_token_id.push_back(keys.as<std::int64_t>("eos_token_id", id));
  }

  c.head = read_head(either("architectures"));
  if (const Keys labels = either("id2label"); labels.value("id2label"))
    c.num_labels = static_cast<std::int64_t>(labels.object("id2label").size());
  else
    either("num_labels").read_unless_null("num_labels", c.num_labels);
  c.validate(source);
  return c;
}

std::string Config::to_json() const {
  nlohmann::ordered_json j;
  const auto or_null = [](const auto& optional) {
    return optional ? nlohmann::ordered_json(*optional) : nlohmann::ordered_json(nullptr);
  };
  j["architectures"] = {kArchitectures[index(head)]};
  j["model_type"] = "deepseek_v2";
  j["vocab_size"] = vocab_size;
  j["hidden_size"] = hidden_size;
  j["intermediate_size"] = intermediate_size;
  j["moe_intermediate_size"] = moe_intermediate_size;
  j["num_hidden_layers"] = num_hidden_layers;
  j["num_attention_heads"] = num_attention_heads;
  j["num_key_value_heads"] = num_key_value_heads;
  j["use_mla"] = use_mla;
  j["q_lora_rank"] = or_null(q_lora_rank);
  j["kv_lora_rank"] = kv_lora_rank;
  j["qk_nope_head_dim"] = qk_nope_head_dim;
  j["qk_rope_head_dim"] = qk_rope_head_dim;
  j["v_head_dim"] = v_head_dim;
  j["attention_bias"] = attention_bias;
  j["n_routed_experts"] = or_null(n_routed_experts);
  j["n_shared_experts"] = or_null(n_shared_experts);
  j["num_experts_per_tok"] = num_experts_per_tok;
  j["first_k_dense_replace"] = first_k_dense_replace;
  j["moe_layer_freq"] = moe_layer_freq;
  j["topk_method"] = name(topk_method);
  j["n_group"] = n_group;
  j["topk_group"] = topk_group;
  j["norm_topk_prob"] = norm_topk_prob;
  j["scoring_func"] = name(scoring_func);
  j["routed_scaling_factor"] = routed_scaling_factor;
  j["hidden_act"] = name(hidden_act);
  j["max_position_embeddings"] = max_position_embeddings;
  j["rms_norm_eps"] = rms_norm_eps;
  j["rope_theta"] = rope_theta;
  j["rope_scaling"] = nullptr;
  if (rope_scaling.type != RopeType::plain) {
    auto& r = j["rope_scaling"];
    r["type"] = name(rope_scaling.type);
    r["factor"] = rope_scaling.factor;
    r["original_max_position_embeddings"] = rope_scaling.original_max_position_embeddings;
    r["beta_fast"] = rope_scaling.beta_fast;
    r["beta_slow"] = rope_scaling.beta_slow;
    r["mscale"] = rope_scaling.mscale;
    r["mscale_all_dim"] = rope_scaling.mscale_all_dim;
    if (rope_scaling.attention_factor) r["attention_factor"] = *rope_scaling.attention_factor;
  }
  j["tie_word_embeddings"] = tie_word_embeddings;
  j["pad_token_id"] = or_null(pad_token_id);
  j["bos_token_id"] = or_null(bos_token_id);
  if (eos_token_id.empty())
    j["eos_token_id"] = nullptr;
  else if (eos_token_id.size() == 1)
    j["eos_token_id"] = eos_token_id.front();
  else
    j["eos_token_id"] = eos_token_id;
  if (head == Head::sequence_classification)
    for (std::int64_t i = 0; i < num_labels; ++i) j["id2label"][std::to_string(i)] = concat("LABEL_", i);
  return j.dump(2) + "\n";
}

void Config::validate(std::string_view source) const {
  const auto mismatch = [&](std::string_view key, const auto& expected, const auto& found) {
    fail(source, ": ", key, ": expected ", expected, ", found ", found);
  };
  const auto in = [&](std::string_view key, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value < low || value > high) mismatch(key, concat(low, "..", high), value);
  };
  const auto number = [&](std::string_view key, double value, double low, double high, bool open = true) {
    if (!(value <= high && (open ? value > low : value >= low)))
      mismatch(key, concat("a number ", open ? "above " : "from ", low, " to ", high), value);
  };
  // The limits leave every product of sizes that the model implies, in bytes, below 2^63.
  constexpr std::int64_t kMaxVocab = 1 << 24, kMaxWidth = 1 << 16, kMaxCount = 1 << 12;
  in("vocab_size", vocab_size, 1, kMaxVocab);
  in("hidden_size", hidden_size, 1, kMaxWidth);
  in("num_hidden_layers", num_hidden_layers, 1, kMaxCount);
  in("num_attention_heads", num_attention_heads, 1, kMaxCount);
  in("max_position_embeddings", max_position_embeddings, 1, std::numeric_limits<std::int32_t>::max());
  if (use_mla) {
    if (q_lora_rank) in("q_lora_rank", *q_lora_rank, 1, kMaxWidth);
    in("kv_lora_rank", kv_lora_rank, 1, kMaxWidth);
    in("qk_nope_head_dim", qk_nope_head_dim, 1, kMaxCount);
    in("qk_rope_head_dim", qk_rope_head_dim, 1, kMaxCount);
    in("v_head_dim", v_head_dim, 1, kMaxCount);
    if (qk_rope_head_dim % 2) mismatch("qk_rope_head_dim", "an even number", qk_rope_head_dim);
  } else {
    if (hidden_size % num_attention_heads)
      mismatch("num_attention_heads", concat("a divisor of hidden_size ", hidden_size), num_attention_heads);
    in("num_key_value_heads", num_key_value_heads, 1, kMaxCount);
    if (num_attention_heads % num_key_value_heads)
      mismatch("num_key_value_heads", concat("a divisor of num_attention_heads ", num_attention_heads),
               num_key_value_heads);
    if (head_dim() % 2)
      mismatch("hidden_size", "an even hidden_size / num_attention_heads",
               concat(head_dim(), " = ", hidden_size, " / ", num_attention_heads));
  }

  in("first_k_dense_replace", first_k_dense_replace, 0, std::numeric_limits<std::int32_t>::max());
  in("moe_layer_freq", moe_layer_freq, 1, std::numeric_limits<std::int32_t>::max());
  if (n_routed_experts) in("n_routed_experts", *n_routed_experts, 0, kMaxCount);
  if (n_shared_experts) in("n_shared_experts", *n_shared_experts, 0, kMaxCount);
  const auto moe = static_cast<std::int64_t>(moe_layers().size());
  if (moe < num_hidden_layers) in("intermediate_size", intermediate_size, 1, kMaxWidth * 16);
  if (moe > 0) {
    const std::int64_t E = *n_routed_experts;
    in("moe_intermediate_size", moe_intermediate_size, 1, kMaxWidth);
    in("num_experts_per_tok", num_experts_per_tok, 1, E);
    if (topk_method != TopkMethod::greedy) {
      in("n_group", n_group, 1, E);
      if (E % n_group) mismatch("n_group", concat("a divisor of n_routed_experts ", E), n_group);
      in("topk_group", topk_group, 1, n_group);
      // A group's score is the sum of its two best (QUIRKS 9).
      if (topk_method == TopkMethod::noaux_tc && E / n_group < 2)
        mismatch("n_group", concat("groups of at least 2 of the ", E, " experts"), n_group);
    }
    number("routed_scaling_factor", routed_scaling_factor, -1e6, 1e6, false);
  }

  number("rms_norm_eps", rms_norm_eps, 0, 1);
  number("rope_theta", rope_theta, 0, 1e15);
  const RopeScaling& r = rope_scaling;
  if (r.type != RopeType::plain) {
    number("rope_scaling.factor", r.factor, 0, 1e6);
    number("rope_scaling.mscale_all_dim", r.mscale_all_dim, 0, 1e3, false);
  }
  if (r.type == RopeType::dynamic && rope_dim() <= 2)
    mismatch(use_mla ? "qk_rope_head_dim" : "hidden_size", "more than 2 rotated dimensions for dynamic RoPE",
             rope_dim());
  if (r.type == RopeType::yarn) {
    if (rope_theta == 1.0) mismatch("rope_theta", "another number than 1 for yarn", rope_theta);
    if (use_mla)
      in("rope_scaling.original_max_position_embeddings", r.original_max_position_embeddings, 1,
         std::numeric_limits<std::int32_t>::max());
    number("rope_scaling.beta_fast", r.beta_fast, 0, 1e6);
    number("rope_scaling.beta_slow", r.beta_slow, 0, 1e6);
    number("rope_scaling.mscale", r.mscale, 0, 1e3, false);
    if (r.attention_factor) number("rope_scaling.attention_factor", *r.attention_factor, 0, 1e6);
  }
  if (head == Head::sequence_classification) in("num_labels", num_labels, 1, kMaxVocab);
}

bool Config::is_moe_layer(std::int64_t layer) const {
  return n_routed_experts.value_or(0) > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
}

std::vector<std::int64_t> Config::moe_layers() const {
  std::vector<std::int64_t> layers;
  for (std::int64_t i = 0; i < num_hidden_layers; ++i)
    if (is_moe_layer(i)) layers.push_back(i);
  return layers;
}

}  // namespace dsv2
