// Body of for_each_tensor: the one list of a decoder's tensors. Included by weights.h alone.
#pragma once

#include <type_traits>

namespace dsv2 {

template <class W, class Visit>
void for_each_tensor(const Config& c, W& w, Visit&& visit) {
  const auto n = [](const auto&... parts) { return concat(parts...); };
  const std::int64_t D = c.hidden_size, H = c.num_attention_heads;
  const auto linear = [&](const std::string& module, auto& l, std::int64_t out, std::int64_t in, bool bias = false) {
    visit(n(module, ".weight"), Shape{out, in}, l.weight);
    if (bias) visit(n(module, ".bias"), Shape{out}, l.bias);
  };
  const auto mlp = [&](const std::string& module, auto& m, std::int64_t width) {
    linear(n(module, ".gate_proj"), m.gate_proj, width, D);
    linear(n(module, ".up_proj"), m.up_proj, width, D);
    linear(n(module, ".down_proj"), m.down_proj, D, width);
  };
  if constexpr (!std::is_const_v<W>) w.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));

  visit(std::string("model.embed_tokens.weight"), Shape{c.vocab_size, D}, w.embed_tokens);
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    auto& layer = w.layers[static_cast<std::size_t>(i)];
    auto& a = layer.self_attn;
    const std::string prefix = n("model.layers.", i), attn = prefix + ".self_attn", ffn = prefix + ".mlp";
    visit(prefix + ".input_layernorm.weight", Shape{D}, layer.input_layernorm);
    if (c.use_mla) {
      const std::int64_t q = H * c.qk_head_dim(), R = c.kv_lora_rank;
      if (c.q_lora_rank) {
        linear(attn + ".q_a_proj", a.q_a_proj, *c.q_lora_rank, D, c.attention_bias);
        visit(attn + ".q_a_layernorm.weight", Shape{*c.q_lora_rank}, a.q_a_layernorm);
        linear(attn + ".q_b_proj", a.q_b_proj, q, *c.q_lora_rank);
      } else {
        linear(attn + ".q_proj", a.q_proj, q, D);
      }
      linear(attn + ".kv_a_proj_with_mqa", a.kv_a_proj_with_mqa, R + c.qk_rope_head_dim, D, c.attention_bias);
      visit(attn + ".kv_a_layernorm.weight", Shape{R}, a.kv_a_layernorm);
      linear(attn + ".kv_b_proj", a.kv_b_proj, H * (c.qk_nope_head_dim + c.v_head_dim), R);
    } else {
      const std::int64_t kv = c.num_key_value_heads * c.head_dim();
      linear(attn + ".q_proj", a.q_proj, H * c.head_dim(), D, c.attention_bias);
      linear(attn + ".k_proj", a.k_proj, kv, D, c.attention_bias);
      linear(attn + ".v_proj", a.v_proj, kv, D, c.attention_bias);
    }
    linear(attn + ".o_proj", a.o_proj, D, H * c.value_head_dim(), c.attention_bias);
    visit(prefix + ".post_attention_layernorm.weight", Shape{D}, layer.post_attention_layernorm);
    if (!c.is_moe_layer(i)) {
      mlp(ffn, layer.mlp, c.intermediate_size);
      continue;
    }
    const std::int64_t E = *c.n_routed_experts;
    visit(ffn + ".gate.weight", Shape{E, D}, layer.gate);
    if (c.topk_method == TopkMethod::noaux_tc)
      visit(ffn + ".gate.e_score_correction_bias", Shape{E}, layer.e_score_correction_bias);
    if constexpr (!std::is_const_v<W>) layer.experts.resize(static_cast<std::size_t>(E));
    for (std::int64_t e = 0; e < E; ++e)
      mlp(n(ffn, ".experts.", e), layer.experts[static_cast<std::size_t>(e)], c.moe_intermediate_size);
    if (c.n_shared_experts.value_or(0) > 0)
      mlp(ffn + ".shared_experts", layer.shared_experts, c.shared_intermediate_size());
  }
  visit(std::string("model.norm.weight"), Shape{D}, w.norm);
  if (c.head == Head::causal_lm && !c.tie_word_embeddings)
    visit(std::string("lm_head.weight"), Shape{c.vocab_size, D}, w.lm_head);
  if (c.head == Head::sequence_classification) visit(std::string("score.weight"), Shape{c.num_labels, D}, w.score);
}

}  // namespace dsv2
