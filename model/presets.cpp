#include <iterator>
#include <string>

#include "model/config.h"
#include "model/error.h"

namespace dsv2 {
namespace {

/// Yarn as all of DeepSeek's published files have it: 4,096 trained positions stretched 40 times.
RopeScaling yarn(double mscale) {
  return {.type = RopeType::yarn,
          .factor = 40,
          .original_max_position_embeddings = 4096,
          .mscale = mscale,
          .mscale_all_dim = mscale};
}

/// deepseek-ai/DeepSeek-OCR, config.json, language_config.
Config deepseek_ocr() {
  Config c;
  c.vocab_size = 129280;
  c.hidden_size = 1280;
  c.num_hidden_layers = 12;
  c.num_attention_heads = c.num_key_value_heads = 10;
  c.intermediate_size = 6848;
  c.moe_intermediate_size = 896;
  c.max_position_embeddings = 8192;
  c.use_mla = false;
  c.q_lora_rank.reset();
  c.kv_lora_rank = c.qk_nope_head_dim = c.qk_rope_head_dim = c.v_head_dim = 0;
  c.n_routed_experts = 64;
  c.n_shared_experts = 2;
  c.num_experts_per_tok = 6;
  c.first_k_dense_replace = 1;
  c.bos_token_id = 0;
  c.eos_token_id = {1};
  return c;
}

/// The 40-layer MLA model of the project's design notes; never published. What they leave open keeps its default.
Config ocr_mla_40l() {
  Config c;
  c.vocab_size = 32000;
  c.hidden_size = 1280;
  c.num_hidden_layers = 40;
  c.num_attention_heads = c.num_key_value_heads = 128;
  c.intermediate_size = 3584;
  c.moe_intermediate_size = 1408;
  c.max_position_embeddings = 32768;
  c.qk_nope_head_dim = 64;
  c.n_routed_experts = 160;
  c.n_shared_experts = 2;
  c.num_experts_per_tok = 2;
  c.first_k_dense_replace = 1;
  c.bos_token_id = 0;
  c.eos_token_id = {1};
  return c;
}

/// deepseek-ai/DeepSeek-V2-Lite, config.json.
Config deepseek_v2_lite() {
  Config c;
  c.vocab_size = 102400;
  c.hidden_size = 2048;
  c.num_hidden_layers = 27;
  c.num_attention_heads = c.num_key_value_heads = 16;
  c.intermediate_size = 10944;
  c.moe_intermediate_size = 1408;
  c.max_position_embeddings = 163840;
  c.q_lora_rank.reset();
  c.n_routed_experts = 64;
  c.n_shared_experts = 2;
  c.num_experts_per_tok = 6;
  c.first_k_dense_replace = 1;
  c.rope_scaling = yarn(0.707);
  c.bos_token_id = 100000;
  c.eos_token_id = {100001};
  return c;
}

/// deepseek-ai/DeepSeek-V2, config.json.
Config deepseek_v2() {
  Config c;
  c.vocab_size = 102400;
  c.hidden_size = 5120;
  c.num_hidden_layers = 60;
  c.num_attention_heads = c.num_key_value_heads = 128;
  c.intermediate_size = 12288;
  c.moe_intermediate_size = 1536;
  c.max_position_embeddings = 163840;
  c.n_routed_experts = 160;
  c.n_shared_experts = 2;
  c.num_experts_per_tok = 6;
  c.first_k_dense_replace = 1;
  c.topk_method = TopkMethod::group_limited_greedy;
  c.n_group = 8;
  c.topk_group = 3;
  c.routed_scaling_factor = 16.0;
  c.rope_scaling = yarn(1.0);
  c.bos_token_id = 100000;
  c.eos_token_id = {100001};
  return c;
}

/// deepseek-ai/DeepSeek-V3, config.json; without its next-token-prediction layer.
Config deepseek_v3() {
  Config c;
  c.vocab_size = 129280;
  c.hidden_size = 7168;
  c.num_hidden_layers = 61;
  c.num_attention_heads = c.num_key_value_heads = 128;
  c.intermediate_size = 18432;
  c.moe_intermediate_size = 2048;
  c.max_position_embeddings = 163840;
  c.n_routed_experts = 256;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 8;
  c.first_k_dense_replace = 3;
  c.topk_method = TopkMethod::noaux_tc;
  c.n_group = 8;
  c.topk_group = 4;
  c.norm_topk_prob = true;
  c.scoring_func = ScoringFunc::sigmoid;
  c.routed_scaling_factor = 2.5;
  c.rope_scaling = yarn(1.0);
  c.bos_token_id = 0;
  c.eos_token_id = {1};
  return c;
}

/// For tests: grouped-query attention with biases, dense and MoE layers, greedy softmax.
Config tiny_mha() {
  Config c;
  c.vocab_size = 128;
  c.hidden_size = 64;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.intermediate_size = 96;
  c.moe_intermediate_size = 24;
  c.max_position_embeddings = 128;
  c.use_mla = false;
  c.q_lora_rank.reset();
  c.kv_lora_rank = c.qk_nope_head_dim = c.qk_rope_head_dim = c.v_head_dim = 0;
  c.attention_bias = true;
  c.n_routed_experts = 8;
  c.n_shared_experts = 2;
  c.num_experts_per_tok = 3;
  c.first_k_dense_replace = 1;
  c.bos_token_id = 0;
  c.eos_token_id = {1};
  return c;
}

/// For tests: MLA with q_lora, yarn, dense and MoE layers, noaux_tc on sigmoid scores, normalised and scaled.
Config tiny_mla() {
  Config c = tiny_mha();
  c.num_key_value_heads = 4;
  c.use_mla = true;
  c.q_lora_rank = 40;
  c.kv_lora_rank = 32;
  c.qk_nope_head_dim = 16;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 24;
  c.topk_method = TopkMethod::noaux_tc;
  c.n_group = 4;
  c.topk_group = 2;
  c.norm_topk_prob = true;
  c.scoring_func = ScoringFunc::sigmoid;
  c.routed_scaling_factor = 2.5;
  c.rope_scaling = {.type = RopeType::yarn, .factor = 4, .original_max_position_embeddings = 32, .mscale_all_dim = 0.8};
  return c;
}

constexpr struct {
  std::string_view name;
  Config (*make)();
} kPresets[] = {
    {"deepseek-ocr", deepseek_ocr}, {"ocr-mla-40l", ocr_mla_40l}, {"deepseek-v2-lite", deepseek_v2_lite},
    {"deepseek-v2", deepseek_v2},   {"deepseek-v3", deepseek_v3}, {"tiny-mha", tiny_mha},
    {"tiny-mla", tiny_mla},
};

}  // namespace

std::vector<std::string_view> preset_names() {
  std::vector<std::string_view> names;
  for (const auto& preset : kPresets) names.push_back(preset.name);
  return names;
}

Config Config::preset(std::string_view name) {
  std::string known;
  for (const auto& preset : kPresets) {
    if (preset.name == name) return preset.make();
    known += (known.empty() ? "" : ", ") + std::string(preset.name);
  }
  fail("preset: expected one of ", known, ", found ", name);
}

}  // namespace dsv2
