// What a DeepSeek-V2 model is: the keys of HF's config.json under their own names.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dsv2 {

enum class Head : std::uint8_t { none, causal_lm, sequence_classification };
enum class RopeType : std::uint8_t { plain, linear, dynamic, yarn };
enum class TopkMethod : std::uint8_t { greedy, group_limited_greedy, noaux_tc };
enum class ScoringFunc : std::uint8_t { softmax, sigmoid };
enum class Activation : std::uint8_t { silu, gelu, gelu_tanh, relu };

/// The upstream spelling: "causal_lm", "yarn", "noaux_tc", "sigmoid", "gelu_pytorch_tanh", ...
std::string_view name(Head);
std::string_view name(RopeType);
std::string_view name(TopkMethod);
std::string_view name(ScoringFunc);
std::string_view name(Activation);

/// `rope_scaling` of config.json. Keys that a type does not read keep their defaults.
struct RopeScaling {
  RopeType type = RopeType::plain;
  double factor = 1.0;                                ///< > 0; plain ignores it
  std::int64_t original_max_position_embeddings = 0;  ///< yarn: context the model was trained for
  double beta_fast = 32.0;                            ///< yarn: turns over that context above which a frequency stays
  double beta_slow = 1.0;                             ///< yarn: turns below which it is divided by factor
  double mscale = 1.0;                                ///< yarn: cos and sin times m(mscale) / m(mscale_all_dim), ...
  double mscale_all_dim = 0.0;               ///< ... and in MLA the softmax scale times m(mscale_all_dim)^2, any type
  std::optional<double> attention_factor{};  ///< yarn in MHA: replaces 0.1 ln(factor) + 1

  bool operator==(const RopeScaling&) const = default;
};

/// Field names are HF's. Values given here are the defaults of `configuration_deepseek_v2.py` (DeepSeek-OCR), except
/// where a comment says otherwise. The four sizes without a default must be in the file.
struct Config {
  std::int64_t vocab_size = 0;                ///< V; required
  std::int64_t hidden_size = 0;               ///< D; required
  std::int64_t num_hidden_layers = 0;         ///< L; required
  std::int64_t num_attention_heads = 0;       ///< H; required
  std::int64_t num_key_value_heads = 0;       ///< K; null or absent: num_attention_heads. MHA only; MLA has one latent
  std::int64_t intermediate_size = 11008;     ///< width of dense layers
  std::int64_t moe_intermediate_size = 1407;  ///< F, width of one expert
  std::int64_t max_position_embeddings = 2048;  ///< no limit (QUIRKS 12): only dynamic and MHA yarn RoPE read it

  bool use_mla = true;
  std::optional<std::int64_t> q_lora_rank = 1536;  ///< Q; null: q_proj without a low-rank step
  std::int64_t kv_lora_rank = 512;                 ///< R
  std::int64_t qk_nope_head_dim = 128;
  std::int64_t qk_rope_head_dim = 64;
  std::int64_t v_head_dim = 128;
  bool attention_bias = false;  ///< which projections it reaches: QUIRKS 4

  std::optional<std::int64_t> n_routed_experts;  ///< E; null: every layer is dense
  std::optional<std::int64_t> n_shared_experts;  ///< null or 0: none
  std::int64_t num_experts_per_tok = 0;          ///< k; required with n_routed_experts
  std::int64_t first_k_dense_replace = 0;
  std::int64_t moe_layer_freq = 1;
  TopkMethod topk_method =
      TopkMethod::greedy;       ///< upstream's default is the typo "gready", which cannot run (QUIRKS 6)
  std::int64_t n_group = 1;     ///< null: 1
  std::int64_t topk_group = 1;  ///< null: 1
  bool norm_topk_prob = false;
  ScoringFunc scoring_func = ScoringFunc::softmax;
  double routed_scaling_factor = 1.0;

  Activation hidden_act = Activation::silu;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;

  std::optional<std::int64_t> pad_token_id;
  std::optional<std::int64_t> bos_token_id;
  std::vector<std::int64_t> eos_token_id;  ///< a number or a list in the file; empty: generation never stops by itself

  Head head = Head::causal_lm;  ///< from `architectures`: *ForCausalLM, *ForSequenceClassification, *Model
  std::int64_t num_labels = 2;  ///< size of id2label; sequence classification only

  bool operator==(const Config&) const = default;

  /// Reads `config.json` at `path` (the file, or the folder that holds it); language keys at top level or, alone, under
  /// `language_config`. Validated. Throws Error naming file, key, expected and found.
  static Config load(const std::filesystem::path& path);
  /// The same from text; `source` names it in messages.
  static Config parse(std::string_view json, std::string_view source);
  /// One of preset_names(); throws Error listing them.
  static Config preset(std::string_view name);
  /// config.json with every key written out, readable by HF and by load().
  std::string to_json() const;

  /// Throws Error naming the first field whose value cannot be computed with, and `source`. Sizes have limits, so that
  /// no product of them overflows: vocab_size 2^24, widths and ranks 2^16 (intermediate_size 2^20), layers, heads, head
  /// dims and experts 2^12. Fields that the model does not use (MLA's in MHA, the gate's in a dense model) may be
  /// anything.
  void validate(std::string_view source = "config") const;

  bool is_moe_layer(std::int64_t layer) const;  ///< QUIRKS 10
  std::vector<std::int64_t> moe_layers() const;
  std::int64_t head_dim() const { return hidden_size / num_attention_heads; }  ///< MHA only
  std::int64_t qk_head_dim() const { return use_mla ? qk_nope_head_dim + qk_rope_head_dim : head_dim(); }
  std::int64_t value_head_dim() const { return use_mla ? v_head_dim : head_dim(); }
  std::int64_t rope_dim() const { return use_mla ? qk_rope_head_dim : head_dim(); }
  std::int64_t shared_intermediate_size() const { return n_shared_experts.value_or(0) * moe_intermediate_size; }
};

std::vector<std::string_view> preset_names();

}  // namespace dsv2
