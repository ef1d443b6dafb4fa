// Which keys a query sees.
#pragma once

#include "optimized/cuda/kernels.h"

namespace dsv2::cuda {

struct Sight {
  const std::uint8_t* mask;  // of its keys; null: all
  int end;                   // keys from here on are hidden

  __device__ bool sees(int t) const { return t < end && (mask == nullptr || mask[t] != 0); }
};
__device__ inline bool all_masked(const AttentionParams& p, int b, int s) {
  return p.all_masked != nullptr && p.all_masked[b * p.tokens + s] != 0;
}
__device__ inline Sight sight_of(const AttentionParams& p, int b, int s) {
  const int past = *p.past, total = past + p.tokens;
  if (all_masked(p, b, s)) return {nullptr, total};
  Sight sight = {p.mask, past + s + 1};
  if (p.mask != nullptr) sight.mask += b * p.mask_batch + s * p.mask_token;
  if (p.mask != nullptr && p.mask_token != 0) sight.end = total;
  return sight;
}

}  // namespace dsv2::cuda
