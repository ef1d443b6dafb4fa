#include "optimized/cpu/embedding.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/simd.h"

namespace dsv2::cpu::DSV2_ISA {

void embedding(const EmbeddingParams& p, Range items) {
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const std::int64_t from = p.ids[i] * p.width;
    float* y = p.y + i * p.width;
    if (p.storage == Storage::f32)
      __builtin_memcpy(y, static_cast<const float*>(p.table) + from, static_cast<std::size_t>(p.width) * sizeof *y);
    else
      for (std::int64_t j = 0; j < p.width; ++j) y[j] = widen(static_cast<const std::uint16_t*>(p.table)[from + j]);
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
