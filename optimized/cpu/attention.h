#pragma once

#include "optimized/cpu/cached_rows.h"

namespace dsv2::cpu {

/// softmax(scale (q1 k1^T + q2 k2^T) + mask) v, for MHA, GQA and both forms of MLA:
///
///                 q1, k1                       q2, k2             v
///   MHA           rotated q, k (d1 = h)        none               v
///   MLA expanded  q_nope, k_nope               q_rope, k_pe       v
///   MLA absorbed  q_nope W_uk [R], latent [R]  q_rope, k_pe       latent; the caller applies W_uv
///
/// Query head h reads key head h / (H/K). A query whose keys are all masked attends to all T alike (QUIRKS 17).
struct AttentionParams {
  std::int64_t batch, tokens, total, past;  // B, S, T, P
  std::int64_t heads, key_heads;            // H, K
  const float* q1;                          // [B,S,H,d1]
  std::int64_t q1_token_stride, q1_head_stride;
  const float* q2;  // [B,S,H,d2], contiguous; null when d2 = 0
  KeyRows k1, k2, v;
  std::int64_t d1, d2, dv;
  float scale;
  const std::uint8_t* mask;             // 1: visible; null: causal only. Rank 2 [B,T]; rank 4 [B,S,T]
  std::int64_t mask_batch, mask_token;  // strides of mask; mask_token 0: rank 2, on top of causality
  const std::uint8_t* all_masked;       // [B,S]: 1 where no key is visible; null: nowhere
  bool rounds;               // q, and what it is multiplied with, may be rounded to bf16 where that is faster
  std::int64_t query_block;  // queries of an item, 1..kQueryBlock
  float* out;                // attention: [B,S,H,dv]. attention_probabilities: [B,H,S,T]
};

/// Items of attention: (sequence, key head, block of queries), attention_items(p) of them. Online softmax over blocks
/// of keys that start at 0, so a query's numbers depend on nothing but its own keys, unless it `rounds`: then also on
/// whether it is alone with its key head. Items of attention_probabilities: (sequence, head, query), B*H*S of them.
inline constexpr std::int64_t kQueryBlock = 64;
/// d1 and d2 may be this much together.
inline constexpr std::int64_t kMaxAttentionWidth = 8192;

static constexpr std::int64_t attention_items(const AttentionParams& p) {
  const std::int64_t queries = p.tokens * (p.heads / p.key_heads);
  return p.batch * p.key_heads * ((queries + p.query_block - 1) / p.query_block);
}

}  // namespace dsv2::cpu
