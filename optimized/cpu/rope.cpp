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

void kv_write(const KvWriteParams& p, Range items) {
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    for (std::int64_t h = 0; h < p.heads; ++h) {
      const float* x = p.x + i * p.x_stride + h * p.width;
      const std::int64_t to = i / p.tokens * p.batch_stride + h * p.head_stride + i % p.tokens * p.width;
      if (p.storage == Storage::f32)
        __builtin_memcpy(static_cast<float*>(p.y) + to, x, static_cast<std::size_t>(p.width) * sizeof *x);
      else
        for (std::int64_t j = 0; j < p.width; ++j) static_cast<std::uint16_t*>(p.y)[to + j] = narrow(x[j]);
    }
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
