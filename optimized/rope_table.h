// Angles of rotary position embedding.
#pragma once

#include <cstdint>

#include "model/decoder.h"

namespace dsv2::optimized {

/// cos and sin of every token's angles, [N, rope_dim / 2] each, computed in double; scaled by yarn's amplitude.
/// Scalings as in DeepseekV2*RotaryEmbedding (MLA) and transformers 4.46.3's LlamaRotaryEmbedding (MHA), whose yarn
/// reads max_position_embeddings and attention_factor instead of original_max_position_embeddings and mscale.
void rope_table(const Config& config, const Call& call, float* cos, float* sin);

/// qk_head_dim^-1/2, in MLA times m(mscale_all_dim)^2 (QUIRKS 11).
float softmax_scale(const Config& config);

}  // namespace dsv2::optimized
