// A call's mask as attention takes it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "model/decoder.h"

namespace dsv2::optimized {

struct AttentionMask {
  const std::uint8_t* visible = nullptr;     ///< [B,T] or [B,S,T]; null: causal only
  std::int64_t batch_stride, token_stride;   ///< token_stride 0: [B,T]
  const std::uint8_t* all_masked = nullptr;  ///< [B,S], 1 where a query sees no key; null: nowhere
};

/// Looks into `call`. `flags` has room for B*S of them.
inline AttentionMask attention_mask(const Call& call, std::uint8_t* flags) {
  const std::int64_t B = call.batch, S = call.tokens, T = call.total;
  const bool own_row = call.mask_rank == 4;
  AttentionMask m{.batch_stride = own_row ? S * T : T, .token_stride = own_row ? T : 0};
  if (call.mask_rank == 0) return m;
  if (!own_row && std::find(call.mask.begin(), call.mask.end(), 0) == call.mask.end()) return m;
  m.visible = call.mask.data();
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t s = 0; s < S; ++s) {
      const std::uint8_t* row = m.visible + b * m.batch_stride + s * m.token_stride;
      const std::uint8_t* end = row + call.key_end(s);
      flags[b * S + s] = std::find(row, end, 1) == end;
      if (flags[b * S + s]) m.all_masked = flags;
    }
  }
  return m;
}

}  // namespace dsv2::optimized
