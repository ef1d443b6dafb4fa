#pragma once

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// y[i] = table[ids[i]], widened exactly. Items: rows i.
struct EmbeddingParams {
  const void* table;        // [V,D]: f32 and bf16 in rows, i8 and i4 in panels
  Arithmetic stored;        // one of these four
  const std::int64_t* ids;  // [N]
  std::int64_t width;       // D
  float* y;                 // [N,D]
};

}  // namespace dsv2::cpu
