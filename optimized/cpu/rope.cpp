#include "optimized/cpu/rope.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/simd.h"

namespace dsv2::cpu::DSV2_ISA {

void rope(const RopeParams& p, Range items) {
  const std::int64_t half = p.width / 2;
  const std::int64_t step = p.interleaved ? 2 : 1, partner = p.interleaved ? 1 : half;
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const float *cos = p.cos + i * half, *sin = p.sin + i * half;
    for (std::int64_t h = 0; h < p.heads; ++h) {
      const float* x = p.x + i * p.token_stride + h * p.head_stride;
      float* y = p.y + (i * p.heads + h) * p.width;
      for (std::int64_t j = 0; j < half; ++j) {
        const float a = x[j * step], b = x[j * step + partner];
        y[j] = a * cos[j] - b * sin[j];
        y[j + half] = b * cos[j] + a * sin[j];
      }
    }
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
