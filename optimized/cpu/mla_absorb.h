#pragma once

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// q_nope through W_uk into the latent space: y[n,h,:] = sum over j of x[n,h,j] weight[h][j,:]. Items: heads.
struct MlaAbsorbParams {
  const float* x;  // [N,H,nope]
  std::int64_t token_stride, head_stride;
  const void* const* weight;   // [H]: the nope rows of kv_b_proj [nope,R] of each head, in panels
  Arithmetic arithmetic;       // of the panels
  std::int64_t tokens, heads;  // N, H
  std::int64_t nope, width;    // nope, R
  float* y;                    // [N,H,R]
};

}  // namespace dsv2::cpu
