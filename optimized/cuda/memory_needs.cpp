// What a decoder takes of device memory, told before there is one.
#include <algorithm>

#include "optimized/cuda/backend.h"
#include "optimized/cuda/device_array.h"
#include "optimized/cuda/device_weights.h"
#include "optimized/cuda/kernels.h"

namespace dsv2::cuda {

std::int64_t copied_bytes(const Config& config, DType stored, const Options&) {
  return DeviceWeights::bytes_for(config, stored);
}

/// The sum of what CudaDecoder asks of its buffers, and the logits that it computes.
std::int64_t buffer_bytes(const Config& c, const Options&, std::int64_t B, std::int64_t S, std::int64_t T) {
  // attention_splits() gives every processor a few blocks, each of a few heads; most splits have 32 keys or more.
  constexpr std::int64_t kMostBlocks = 1024, kHeadsOfBlock = 8, kLeastKeys = 32;
  const std::int64_t N = B * S, D = c.hidden_size, H = c.num_attention_heads;
  std::int64_t token = 3 * D + 1 + c.rope_dim() + H * (c.qk_head_dim() + c.rope_dim() + c.value_head_dim());
  if (c.use_mla)
    token += 2 * c.q_lora_rank.value_or(0) + 2 * (c.kv_lora_rank + c.qk_rope_head_dim) + 2 * H * c.kv_lora_rank;
  else
    token += 3 * c.num_key_value_heads * c.head_dim();
  std::int64_t act = c.intermediate_size;
  if (c.n_routed_experts) {
    const std::int64_t k = c.num_experts_per_tok;
    token += 4 * *c.n_routed_experts + 6 * k + k * D;
    act = std::max(act, k * c.moe_intermediate_size + c.shared_intermediate_size());
  }
  const std::int64_t value = (c.use_mla ? c.kv_lora_rank : c.head_dim()) + 2;
  std::int64_t partial = value * std::min(kMostBlocks * kHeadsOfBlock + N * H, N * H * (T / kLeastKeys));
  if (N <= kFewRows) {
    const auto size = [](std::int64_t of) { return static_cast<int>(of); };
    if (c.n_routed_experts)
      partial = std::max(partial, o_proj_route_partial_size(size(N), size(D), size(*c.n_routed_experts)));
    if (c.use_mla)
      partial = std::max(partial,
                         mla_qkv_rope_partial_size(size(N), size(H), size(c.qk_nope_head_dim), size(c.kv_lora_rank)));
  }
  const std::int64_t hidden = std::max(c.intermediate_size, c.n_routed_experts ? c.shared_intermediate_size() : 0);
  const std::int64_t blas =
      Blas::bytes_for(N, std::max({D, H * c.value_head_dim(), c.q_lora_rank.value_or(0), hidden}), hidden);
  const std::int64_t logits = B * std::max<std::int64_t>(c.vocab_size, 1);
  return 4 * (N * (token + act) + partial + logits) + blas;
}

}  // namespace dsv2::cuda
