#include "optimized/cpu/cached_rows.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/simd.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

/// As quantise_row() of model/kv_cache.h does it, bit by bit.
void quantise(const float* x, std::int64_t width, std::int8_t* q, std::uint16_t* s) {
  constexpr std::uint32_t kInfinity = 0x7f800000, kSmallestNormal = 0x00800000, kQuietNan = 0x7fc0;
  std::uint32_t top = 0;  // of |x|: NaN lies above all others
  for (std::int64_t i = 0; i < width; ++i) {
    const std::uint32_t magnitude = __builtin_bit_cast(std::uint32_t, x[i]) & 0x7fffffff;
    top = magnitude > top ? magnitude : top;
  }
  const std::uint16_t rounded = narrow(__builtin_bit_cast(float, top) / 127.0f);
  const bool finite = top < kInfinity,
             empty = !finite || __builtin_bit_cast(std::uint32_t, widen(rounded)) < kSmallestNormal;
  *s = !finite ? static_cast<std::uint16_t>(kQuietNan) : empty ? std::uint16_t{0} : rounded;
  const float inverse = empty ? 0.0f : 1.0f / widen(rounded);
  if (empty) {
    for (std::int64_t i = 0; i < width; ++i) q[i] = 0;
    return;
  }
  for (std::int64_t i = 0; i < width; ++i) {  // 1.5 x 2^23 more rounds to an integer, kept in the low bits
    const float shifted = x[i] * inverse + 0x1.8p23f;
    q[i] = static_cast<std::int8_t>(static_cast<std::uint8_t>(__builtin_bit_cast(std::uint32_t, shifted)));
  }
}

}  // namespace

void kv_write(const KvWriteParams& p, Range items) {
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    for (std::int64_t h = 0; h < p.heads; ++h) {
      const float* x = p.x + i * p.x_stride + h * p.width;
      const std::int64_t to = i / p.tokens * p.batch_stride + h * p.head_stride + i % p.tokens * p.width;
      switch (p.storage) {
        case Storage::f32:
          __builtin_memcpy(static_cast<float*>(p.y) + to, x, static_cast<std::size_t>(p.width) * sizeof *x);
          break;
        case Storage::bf16:
          for (std::int64_t j = 0; j < p.width; ++j) static_cast<std::uint16_t*>(p.y)[to + j] = narrow(x[j]);
          break;
        case Storage::i8:
          quantise(x, p.width, static_cast<std::int8_t*>(p.y) + to, p.scales + to / p.width);
          break;
      }
    }
  }
}

void kv_widen(const KvWidenParams& p, Range items) {
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    float* y = p.y + i * p.width;
    const std::int64_t from = i * p.rows.row_stride;
    switch (p.rows.storage) {
      case Storage::f32:
        __builtin_memcpy(y, static_cast<const float*>(p.rows.data) + from,
                         static_cast<std::size_t>(p.width) * sizeof *y);
        break;
      case Storage::bf16:
        for (std::int64_t j = 0; j < p.width; ++j)
          y[j] = widen(static_cast<const std::uint16_t*>(p.rows.data)[from + j]);
        break;
      case Storage::i8:
        for (std::int64_t j = 0; j < p.width; ++j)
          y[j] = widen(p.rows.scales[i]) * static_cast<float>(static_cast<const std::int8_t*>(p.rows.data)[from + j]);
        break;
    }
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
