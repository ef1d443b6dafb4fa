#include "optimized/cpu/rms_norm.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/simd.h"

namespace dsv2::cpu::DSV2_ISA {

void rms_norm(const RmsNormParams& p, Range items) {
  const std::int64_t D = p.width, whole = D - D % kWidth;
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const float* x = p.x + i * p.x_stride;
    float* y = p.y + i * D;
    V squares{};
    for (std::int64_t j = 0; j < whole; j += kWidth) squares = fma(load(x + j), load(x + j), squares);
    const V rest = load(x + whole, D - whole);
    const float mean = sum(fma(rest, rest, squares)) / static_cast<float>(D);
    const V scale = broadcast(1.0f / __builtin_sqrtf(mean + p.eps));
    for (std::int64_t j = 0; j < whole; j += kWidth) store(y + j, load(x + j) * scale * load(p.weight + j));
    store(y + whole, rest * scale * load(p.weight + whole, D - whole), D - whole);
  }
}

void add(const AddParams& p, Range items) {
  for (std::int64_t i = items.begin; i < items.end; ++i) p.x[i] += p.y[i];
}

}  // namespace dsv2::cpu::DSV2_ISA
