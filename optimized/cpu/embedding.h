#pragma once

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// y[i] = table[ids[i]], widened exactly. Items: rows i.
struct EmbeddingParams {
  const void* table;        // [V,D]
  Storage storage;          // of the table
  const std::int64_t* ids;  // [N]
  std::int64_t width;       // D
  float* y;                 // [N,D]
};

}  // namespace dsv2::cpu
