// Named access to every intermediate of a forward pass.
#pragma once

#include <string_view>

#include "model/tensor.h"

namespace dsv2 {

/// Receives intermediates as they are produced; the key to golden comparison and to finding the first divergence. A
/// decoder without a sink (the null pointer, as when timing) spends nothing on it.
///
/// Names are HF's module paths without "model.". A backend that fuses modules reports those outputs that it really
/// materialises; `*` marks the ones that every backend must report. B, S, ... as in golden/FORMAT.md, N = B*S tokens.
///
///     embed_tokens*                                        [B,S,D]
///     layers.I.input_layernorm                             [B,S,D]
///     layers.I.self_attn.q_proj, k_proj, v_proj            [B,S,heads*dim]    (MHA; q_proj also MLA without q_lora)
///     layers.I.self_attn.q_a_proj, q_a_layernorm, q_b_proj [B,S,.]            (MLA)
///     layers.I.self_attn.kv_a_proj_with_mqa                [B,S,R+rope]       (MLA)
///     layers.I.self_attn.kv_a_layernorm                    [B,S,R]            (MLA)
///     layers.I.self_attn.q_rope                            [B,S,H,rope]       after RoPE, as cached: QUIRKS 2
///     layers.I.self_attn.k_rope                            [B,S,K,rope]       (K = 1 in MLA)
///     layers.I.self_attn.attn_output                       [B,S,H*v]          before o_proj
///     layers.I.self_attn.o_proj                            [B,S,D]
///     layers.I.self_attn.residual                          [B,S,D]            layer input + o_proj
///     layers.I.post_attention_layernorm                    [B,S,D]
///     layers.I.mlp.act                                     [B,S,I]            act(gate_proj) * up_proj (dense)
///     layers.I.mlp.gate.logits*                            [N,E]              before softmax / sigmoid
///     layers.I.mlp.gate.topk_idx*                          [N,k] i64          chosen experts, ascending
///     layers.I.mlp.gate.topk_weight*                       [N,k]              of topk_idx, normalised and scaled
///     layers.I.mlp.experts                                 [B,S,D]            weighted sum of the routed experts
///     layers.I.mlp.shared_experts                          [B,S,D]
///     layers.I.mlp                                         [B,S,D]            the block's output
///     layers.I*                                            [B,S,D]            residual stream after the layer
///     norm*                                                [B,S,D]
///     lm_head* or score*                                   [B,S or 1,V] or [B,labels]
///
/// The view is the decoder's own buffer at that moment and may be **overwritten** through `data`: what follows then
/// uses the new values. So a sink can compare and put the reference's value in its place (teacher forcing: each op is
/// judged alone), or force a routing decision (`topk_idx` is reported before the weights are taken from the scores).
struct TapSink {
  virtual ~TapSink() = default;
  /// `data` points at view.size() writable elements of view.dtype, valid during the call only.
  virtual void tap(std::string_view name, const TensorView& view, void* data) = 0;
};

}  // namespace dsv2
