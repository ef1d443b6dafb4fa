#include "model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "model/error.h"
#include "model/file.h"
#include "model/weights.h"
#include "tests/temporary_folder.h"

namespace dsv2 {
namespace {

using nlohmann::json;
using testing::message_of;

const std::filesystem::path kGolden = std::filesystem::path(DSV2_SOURCE_DIR) / "golden";

json minimal() {
  return {{"vocab_size", 11}, {"hidden_size", 8}, {"num_hidden_layers", 2}, {"num_attention_heads", 2}};
}
Config parse(const json& j) { return Config::parse(j.dump(), "the_file.json"); }

std::int64_t parameters(const Config& config) {
  Weights weights;
  std::int64_t sum = 0;
  for_each_tensor(config, weights,
                  [&](const std::string&, const Shape& shape, TensorView&) { sum += element_count(shape); });
  return sum;
}

TEST(Preset, DeepseekOcr) {
  const Config c = Config::preset("deepseek-ocr");
  EXPECT_EQ(c.num_hidden_layers, 12);
  EXPECT_EQ(c.hidden_size, 1280);
  EXPECT_FALSE(c.use_mla);
  EXPECT_EQ(c.num_attention_heads, 10);
  EXPECT_EQ(c.num_key_value_heads, 10);
  EXPECT_EQ(c.head_dim(), 128);
  EXPECT_EQ(c.rope_scaling.type, RopeType::plain);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_EQ(c.intermediate_size, 6848);
  EXPECT_FALSE(c.is_moe_layer(0));
  EXPECT_EQ(c.moe_layers().size(), 11u);
  EXPECT_EQ(c.n_routed_experts, 64);
  EXPECT_EQ(c.num_experts_per_tok, 6);
  EXPECT_EQ(c.topk_method, TopkMethod::greedy);
  EXPECT_EQ(c.scoring_func, ScoringFunc::softmax);
  EXPECT_FALSE(c.norm_topk_prob);
  EXPECT_EQ(c.moe_intermediate_size, 896);
  EXPECT_EQ(c.n_shared_experts, 2);
  EXPECT_EQ(c.shared_intermediate_size(), 1792);
  EXPECT_EQ(c.vocab_size, 129280);
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_EQ(c.max_position_embeddings, 8192);
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  EXPECT_EQ(std::llround(static_cast<double>(parameters(c)) / 1e6), 2935);
}

TEST(Preset, OcrMla40l) {
  Config c = Config::preset("ocr-mla-40l");
  EXPECT_EQ(c.num_hidden_layers, 40);
  EXPECT_EQ(c.vocab_size, 32000);
  EXPECT_EQ(c.hidden_size, 1280);
  EXPECT_EQ(c.num_attention_heads, 128);
  EXPECT_TRUE(c.use_mla);
  EXPECT_EQ(c.q_lora_rank, 1536);
  EXPECT_EQ(c.kv_lora_rank, 512);
  EXPECT_EQ(c.qk_nope_head_dim, 64);
  EXPECT_EQ(c.qk_rope_head_dim, 64);
  EXPECT_EQ(c.qk_head_dim(), 128);
  EXPECT_EQ(c.v_head_dim, 128);
  EXPECT_EQ(c.value_head_dim(), 128);
  EXPECT_EQ(c.intermediate_size, 3584);
  EXPECT_EQ(c.moe_layers().size(), 39u);
  EXPECT_EQ(c.n_routed_experts, 160);
  EXPECT_EQ(c.num_experts_per_tok, 2);
  EXPECT_EQ(c.moe_intermediate_size, 1408);
  EXPECT_EQ(c.n_shared_experts, 2);
  EXPECT_EQ(std::llround(static_cast<double>(parameters(c)) / 1e7), 3672);
  c.head = Head::none;
  EXPECT_EQ(std::llround(static_cast<double>(parameters(c)) / 1e7), 3668);
}

/// The published totals: 15.7 B, 236 B, 671 B.
TEST(Preset, PublishedModels) {
  const auto billions = [](const char* preset) {
    return static_cast<double>(parameters(Config::preset(preset))) / 1e9;
  };
  EXPECT_NEAR(billions("deepseek-v2-lite"), 15.7, 0.05);
  EXPECT_NEAR(billions("deepseek-v2"), 235.7, 0.1);
  EXPECT_NEAR(billions("deepseek-v3"), 671.0, 0.1);
  EXPECT_FALSE(Config::preset("deepseek-v2-lite").q_lora_rank);
  EXPECT_EQ(Config::preset("deepseek-v2").topk_method, TopkMethod::group_limited_greedy);
  EXPECT_EQ(Config::preset("deepseek-v3").topk_method, TopkMethod::noaux_tc);
  EXPECT_EQ(Config::preset("deepseek-v3").scoring_func, ScoringFunc::sigmoid);
  for (const char* preset : {"deepseek-v2-lite", "deepseek-v2", "deepseek-v3"})
    EXPECT_EQ(Config::preset(preset).rope_scaling.type, RopeType::yarn) << preset;
}

TEST(Preset, TinyModelsHaveEveryKindOfLayer) {
  const Config mha = Config::preset("tiny-mha"), mla = Config::preset("tiny-mla");
  EXPECT_FALSE(mha.use_mla);
  EXPECT_LT(mha.num_key_value_heads, mha.num_attention_heads);
  EXPECT_TRUE(mla.use_mla);
  EXPECT_TRUE(mla.q_lora_rank);
  for (const Config& c : {mha, mla}) {
    EXPECT_FALSE(c.moe_layers().empty());
    EXPECT_LT(static_cast<std::int64_t>(c.moe_layers().size()), c.num_hidden_layers);
    EXPECT_GT(c.shared_intermediate_size(), 0);
    EXPECT_LT(parameters(c), 1'000'000);
  }
}

TEST(Preset, AllAreValidAndSurviveTheRoundTrip) {
  for (const auto preset : preset_names()) {
    const Config c = Config::preset(preset);
    EXPECT_NO_THROW(c.validate()) << preset;
    EXPECT_EQ(Config::parse(c.to_json(), "round trip"), c) << preset;
  }
}

TEST(Preset, UnknownNameListsTheKnown) {
  const auto message = message_of<Error>([] { Config::preset("deepseek-v9"); });
  for (const auto preset : preset_names()) EXPECT_NE(message.find(preset), std::string::npos) << message;
  EXPECT_NE(message.find("deepseek-v9"), std::string::npos) << message;
}

TEST(Config, RoundTripOfWhatPresetsLack) {
  Config c = Config::preset("tiny-mha");
  c.head = Head::sequence_classification;
  c.num_labels = 5;
  c.hidden_act = Activation::gelu_tanh;
  c.rope_scaling = {.type = RopeType::yarn, .factor = 2.5, .attention_factor = 1.25};
  c.rope_scaling.original_max_position_embeddings = 77;
  c.rope_theta = 12345.678;
  c.rms_norm_eps = 3e-7;
  c.tie_word_embeddings = true;
  c.pad_token_id = 2;
  c.bos_token_id.reset();
  c.eos_token_id = {1, 5, 9};
  c.n_shared_experts.reset();
  EXPECT_EQ(Config::parse(c.to_json(), "round trip"), c);
  c.head = Head::none;
  c.num_labels = 2;
  c.hidden_act = Activation::relu;
  c.rope_scaling = {.type = RopeType::dynamic, .factor = 2, .attention_factor = {}};
  c.eos_token_id.clear();
  c.n_routed_experts.reset();
  EXPECT_EQ(Config::parse(c.to_json(), "round trip"), c);
  c.hidden_act = Activation::gelu;
  c.rope_scaling = {.type = RopeType::linear, .factor = 2, .attention_factor = {}};
  EXPECT_EQ(Config::parse(c.to_json(), "round trip"), c);
}

TEST(Config, DefaultsAreUpstreams) {
  json j = minimal();
  j["hidden_size"] = 512;
  const Config c = parse(j);
  EXPECT_EQ(c.intermediate_size, 11008);
  EXPECT_EQ(c.moe_intermediate_size, 1407);
  EXPECT_EQ(c.num_key_value_heads, 2);
  EXPECT_EQ(c.max_position_embeddings, 2048);
  EXPECT_TRUE(c.use_mla);
  EXPECT_EQ(c.q_lora_rank, 1536);
  EXPECT_EQ(c.kv_lora_rank, 512);
  EXPECT_EQ(c.qk_nope_head_dim, 128);
  EXPECT_EQ(c.qk_rope_head_dim, 64);
  EXPECT_EQ(c.v_head_dim, 128);
  EXPECT_FALSE(c.n_routed_experts);
  EXPECT_TRUE(c.moe_layers().empty());
  EXPECT_EQ(c.topk_method, TopkMethod::greedy);
  EXPECT_EQ(c.hidden_act, Activation::silu);
  EXPECT_EQ(c.head, Head::causal_lm);
  EXPECT_EQ(c.num_labels, 2);
  EXPECT_TRUE(c.eos_token_id.empty());
}

TEST(Config, OnlyTheNestedLanguageKeysCount) {
  json j = {{"language_config", minimal()}, {"vocab_size", 99}, {"rms_norm_eps", 0.5}, {"hidden_size", "junk"}};
  const Config c = parse(j);
  EXPECT_EQ(c.vocab_size, 11);
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  j["language_config"].erase("vocab_size");
  const auto message = message_of<Error>([&] { parse(j); });
  EXPECT_NE(message.find("language_config.vocab_size"), std::string::npos) << message;
}

TEST(Config, HeadAndLabelsComeFromEitherLevel) {
  json j = {{"language_config", minimal()}, {"architectures", {"DeepseekV2ForSequenceClassification"}}};
  j["id2label"] = {{"0", "a"}, {"1", "b"}, {"2", "c"}};
  EXPECT_EQ(parse(j).head, Head::sequence_classification);
  EXPECT_EQ(parse(j).num_labels, 3);
  j["language_config"]["num_labels"] = 7;
  EXPECT_EQ(parse(j).num_labels, 3) << "id2label is what upstream sizes the head by";
  j.erase("id2label");
  EXPECT_EQ(parse(j).num_labels, 7);
  j["architectures"] = {"DeepseekOCRForCausalLM"};
  EXPECT_EQ(parse(j).head, Head::causal_lm);
  j["language_config"]["architectures"] = {"DeepseekV2Model"};
  EXPECT_EQ(parse(j).head, Head::none);
}

TEST(Config, MlaKeysDoNotMatterInMha) {
  json j = minimal();
  j["use_mla"] = false;
  for (const char* key : {"q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}) {
    for (const json& value : {json(nullptr), json(0), json(3)}) {
      j[key] = value;
      EXPECT_NO_THROW(parse(j)) << key << " = " << value;
    }
  }
}

TEST(Config, RopeScaling) {
  json j = minimal();
  j["rope_scaling"] = nullptr;
  EXPECT_EQ(parse(j).rope_scaling.type, RopeType::plain);
  j["rope_scaling"] = {{"rope_type", "default"}};
  EXPECT_EQ(parse(j).rope_scaling, RopeScaling{});
  j["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 4}};
  EXPECT_EQ(parse(j).rope_scaling.type, RopeType::linear);
  j["rope_scaling"] = {{"type", "dynamic"}, {"rope_type", "linear"}, {"factor", 4}};
  EXPECT_EQ(parse(j).rope_scaling.type, RopeType::dynamic) << "MLA reads type";
  j["use_mla"] = false;
  EXPECT_EQ(parse(j).rope_scaling.type, RopeType::linear) << "MHA prefers rope_type";
  j["use_mla"] = true;
  j["rope_scaling"] = {{"type", "yarn"}, {"factor", 4}};
  EXPECT_EQ(parse(j).rope_scaling.original_max_position_embeddings, 4096) << "upstream's default";
}

TEST(Config, SpellingsOfValues) {
  json j = minimal();
  for (const auto& [text, act] : std::map<std::string, Activation>{{"silu", Activation::silu},
                                                                   {"gelu", Activation::gelu},
                                                                   {"gelu_new", Activation::gelu_tanh},
                                                                   {"gelu_pytorch_tanh", Activation::gelu_tanh},
                                                                   {"relu", Activation::relu}}) {
    j["hidden_act"] = text;
    EXPECT_EQ(parse(j).hidden_act, act) << text;
  }
  j["eos_token_id"] = {3, 4};
  EXPECT_EQ(parse(j).eos_token_id, (std::vector<std::int64_t>{3, 4}));
  j["eos_token_id"] = 3;
  EXPECT_EQ(parse(j).eos_token_id, (std::vector<std::int64_t>{3}));
  j["eos_token_id"] = nullptr;
  EXPECT_TRUE(parse(j).eos_token_id.empty());
  j["n_group"] = j["topk_group"] = nullptr;
  EXPECT_EQ(parse(j).n_group, 1);
  EXPECT_EQ(parse(j).topk_group, 1);
  j["n_routed_experts"] = 0;
  EXPECT_TRUE(parse(j).moe_layers().empty());
  j["n_routed_experts"] = 4;
  j["first_k_dense_replace"] = 2;
  EXPECT_NO_THROW(parse(j)) << "no MoE layer, so no num_experts_per_tok is needed";
}

TEST(Config, MoeLayersOfTheGoldenCases) {
  int cases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kGolden / "cases")) {
    if (!std::filesystem::exists(entry.path() / "case.json")) continue;
    const json expected = json::parse(read_text_file(entry.path() / "case.json"));
    const Config c = Config::load(entry.path());
    EXPECT_EQ(c.moe_layers(), expected["moe_layers"].get<std::vector<std::int64_t>>()) << entry.path();
    EXPECT_EQ(name(c.head), expected["head"].get<std::string>()) << entry.path();
    ++cases;
  }
  EXPECT_GE(cases, 30);
}

TEST(Config, LoadsAFileOrItsFolder) {
  EXPECT_EQ(Config::load(kGolden / "cases/mla_tiny"), Config::load(kGolden / "cases/mla_tiny/config.json"));
  const auto message = message_of<Error>([] { Config::load("/nonexistent/config.json"); });
  EXPECT_NE(message.find("/nonexistent/config.json"), std::string::npos) << message;
}

struct Bad {
  std::string key;    ///< a JSON pointer into moe_model()
  std::string value;  ///< JSON; "" removes the key
  std::string names;  ///< that the message must hold
};

/// MHA with a MoE layer, in groups, with yarn: every check has something to look at.
json moe_model() {
  json j = minimal();
  j.update({{"use_mla", false},
            {"n_routed_experts", 8},
            {"num_experts_per_tok", 2},
            {"n_group", 4},
            {"topk_method", "noaux_tc"},
            {"topk_group", 2}});
  j["rope_scaling"] = {{"type", "yarn"}, {"factor", 2.0}, {"original_max_position_embeddings", 16}};
  return j;
}

class Refuses : public ::testing::TestWithParam<Bad> {};

TEST_P(Refuses, NamingFileAndKey) {
  json j = moe_model();
  ASSERT_NO_THROW(parse(j));
  const json::json_pointer at(GetParam().key);
  std::string text;
  if (GetParam().value.empty()) {
    j.at(at.parent_pointer()).erase(at.back());
    text = j.dump();
  } else {
    j[at] = "VALUE";  // put in as text, since some of the values are no JSON
    text = j.dump();
    text.replace(text.find("\"VALUE\""), 7, GetParam().value);
  }
  const auto message = message_of<Error>([&] { Config::parse(text, "the_file.json"); });
  EXPECT_NE(message.find("the_file.json"), std::string::npos) << message;
  EXPECT_NE(message.find(GetParam().names), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    Values, Refuses,
    ::testing::Values(
        Bad{"/vocab_size", "", "vocab_size"}, Bad{"/vocab_size", "0", "vocab_size"},
        Bad{"/vocab_size", "-1", "vocab_size"}, Bad{"/vocab_size", "null", "vocab_size"},
        Bad{"/vocab_size", "11.0", "vocab_size"}, Bad{"/vocab_size", "true", "vocab_size"},
        Bad{"/vocab_size", "[11]", "vocab_size"}, Bad{"/vocab_size", "1099511627776", "vocab_size"},
        Bad{"/vocab_size", "18446744073709551615", "vocab_size"},
        Bad{"/vocab_size", "18446744073709551616", "vocab_size"}, Bad{"/hidden_size", "", "hidden_size"},
        Bad{"/hidden_size", "\"8\"", "\"8\""}, Bad{"/hidden_size", "1099511627776", "hidden_size"},
        Bad{"/hidden_size", "6", "hidden_size"}, Bad{"/num_hidden_layers", "", "num_hidden_layers"},
        Bad{"/num_hidden_layers", "0", "num_hidden_layers"},
        Bad{"/num_hidden_layers", "1099511627776", "num_hidden_layers"},
        Bad{"/num_attention_heads", "3", "num_attention_heads"},
        Bad{"/num_attention_heads", "0", "num_attention_heads"},
        Bad{"/num_key_value_heads", "0", "num_key_value_heads"},
        Bad{"/num_key_value_heads", "4", "num_key_value_heads"},
        Bad{"/intermediate_size", "\"6\"", "intermediate_size"},
        Bad{"/moe_intermediate_size", "0", "moe_intermediate_size"},
        Bad{"/max_position_embeddings", "0", "max_position_embeddings"}, Bad{"/use_mla", "1", "use_mla"},
        Bad{"/n_routed_experts", "-8", "n_routed_experts"},
        Bad{"/n_routed_experts", "1099511627776", "n_routed_experts"},
        Bad{"/n_shared_experts", "-1", "n_shared_experts"}, Bad{"/num_experts_per_tok", "", "num_experts_per_tok"},
        Bad{"/num_experts_per_tok", "9", "num_experts_per_tok"}, Bad{"/moe_layer_freq", "0", "moe_layer_freq"},
        Bad{"/first_k_dense_replace", "-1", "first_k_dense_replace"}, Bad{"/topk_method", "\"gready\"", "gready"},
        Bad{"/topk_method", "null", "topk_method"}, Bad{"/n_group", "3", "n_group"}, Bad{"/n_group", "0", "n_group"},
        Bad{"/n_group", "8", "n_group"}, Bad{"/topk_group", "5", "topk_group"}, Bad{"/topk_group", "0", "topk_group"},
        Bad{"/norm_topk_prob", "\"no\"", "norm_topk_prob"}, Bad{"/scoring_func", "\"relu\"", "scoring_func"},
        Bad{"/routed_scaling_factor", "\"1\"", "routed_scaling_factor"}, Bad{"/hidden_act", "\"mish\"", "mish"},
        Bad{"/rms_norm_eps", "0", "rms_norm_eps"}, Bad{"/rms_norm_eps", "-1e-6", "rms_norm_eps"},
        Bad{"/rms_norm_eps", "1e999", "the_file.json"}, Bad{"/rope_theta", "0", "rope_theta"},
        Bad{"/rope_theta", "NaN", "the_file.json"}, Bad{"/rope_theta", "-Infinity", "the_file.json"},
        Bad{"/rope_theta", "1", "rope_theta"}, Bad{"/rope_scaling", "3", "rope_scaling"},
        Bad{"/rope_scaling/type", "", "rope_scaling.type"}, Bad{"/rope_scaling/type", "\"longrope\"", "longrope"},
        Bad{"/rope_scaling/factor", "", "rope_scaling.factor"}, Bad{"/rope_scaling/factor", "0", "rope_scaling.factor"},
        Bad{"/rope_scaling/factor", "-2", "rope_scaling.factor"},
        Bad{"/rope_scaling/factor", "1e300", "rope_scaling.factor"},
        Bad{"/rope_scaling/beta_fast", "0", "rope_scaling.beta_fast"},
        Bad{"/rope_scaling/beta_slow", "-1", "rope_scaling.beta_slow"},
        Bad{"/rope_scaling/mscale", "-1", "rope_scaling.mscale"},
        Bad{"/rope_scaling/attention_factor", "0", "rope_scaling.attention_factor"},
        Bad{"/tie_word_embeddings", "null", "tie_word_embeddings"}, Bad{"/eos_token_id", "\"</s>\"", "eos_token_id"},
        Bad{"/eos_token_id", "[1, null]", "eos_token_id"}, Bad{"/pad_token_id", "0.5", "pad_token_id"},
        Bad{"/architectures", "\"DeepseekV2ForCausalLM\"", "architectures"},
        Bad{"/architectures", "[\"DeepseekV2ForTokenClassification\"]", "DeepseekV2ForTokenClassification"},
        Bad{"/id2label", "[\"a\"]", "id2label"}));

/// Changes of a model that uses MLA.
INSTANTIATE_TEST_SUITE_P(Mla, Refuses,
                         ::testing::Values(Bad{"/use_mla", "true, \"q_lora_rank\": 0", "q_lora_rank"},
                                           Bad{"/use_mla", "true, \"kv_lora_rank\": null", "kv_lora_rank"},
                                           Bad{"/use_mla", "true, \"qk_rope_head_dim\": 7", "qk_rope_head_dim"},
                                           Bad{"/use_mla", "true, \"qk_nope_head_dim\": 0", "qk_nope_head_dim"},
                                           Bad{"/use_mla", "true, \"v_head_dim\": -1", "v_head_dim"}));

TEST(Config, DynamicRopeNeedsMoreThanOnePair) {
  json j = minimal();
  j["qk_rope_head_dim"] = 2;
  EXPECT_NO_THROW(parse(j));
  j["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2}};
  const auto message = message_of<Error>([&] { parse(j); });
  EXPECT_NE(message.find("qk_rope_head_dim"), std::string::npos) << message;
}

TEST(Config, RefusesTextThatIsNoConfig) {
  for (const std::string text :
       {"", "{", "[]", "3", "null", "{\"vocab_size\": 1,}", "{\"a\": 1, \"a\": 2}", "{\"a\": \"\xff\"}", "{}}"}) {
    const auto message = message_of<Error>([&] { Config::parse(text, "the_file.json"); });
    EXPECT_EQ(message.find("the_file.json: "), 0u) << text << " -> " << message;
  }
  for (const char* open : {"[", "{\"a\":"}) {
    std::string deep = "{\"x\":";
    for (int i = 0; i < 200000; ++i) deep += open;
    const auto message = message_of<Error>([&] { Config::parse(deep, "the_file.json"); });
    EXPECT_NE(message.find("nested"), std::string::npos) << message;
  }
}

TEST(Config, ValidateNamesItsSource) {
  Config c = Config::preset("tiny-mla");
  c.rope_scaling.factor = std::nan("");
  const auto message = message_of<Error>([&] { c.validate("elsewhere"); });
  EXPECT_NE(message.find("elsewhere: rope_scaling.factor"), std::string::npos) << message;
  c = Config::preset("tiny-mla");
  c.routed_scaling_factor = INFINITY;
  EXPECT_THROW(c.validate(), Error);
}

}  // namespace
}  // namespace dsv2
