#include "optimized/cpu/pack.h"

#include "optimized/cpu/dot_tile.h"
#include "optimized/cpu/isa.h"
#include "optimized/cpu/packed_order.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

template <Arithmetic A, class X>
void pack_rows(const PackParams& p, Range items) {
  const std::int64_t padded = packed_width(p.width);
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const X* x = static_cast<const X*>(p.x) + (p.rows ? p.rows[i] : i) * p.x_stride;
    auto* y = static_cast<typename Dot<A>::Row*>(p.y) + i * padded;
    // Blocks of the permutation's size, so that the inner loops have constant bounds and become shuffles.
    constexpr std::int64_t kBlock = 2 * kWidth;
    std::int64_t j = 0;
    for (; j + kBlock <= p.width; j += kBlock)
      for (int l = 0; l < kBlock; ++l) put(y + j, packed_index<A>(l), get(x + j, l));
    for (; j < padded; ++j) put(y, packed_index<A>(j), j < p.width ? get(x, j) : 0.0f);
  }
}

}  // namespace

void pack(const PackParams& p, Range items) {
  with_arithmetic(p.arithmetic, [&]<Arithmetic A>() {
    if (p.storage == Storage::f32)
      pack_rows<A, float>(p, items);
    else
      pack_rows<A, std::uint16_t>(p, items);
  });
}

void unpack(const UnpackParams& p, Range items) {
  with_arithmetic(p.arithmetic, [&]<Arithmetic A>() {
    for (std::int64_t i = items.begin; i < items.end; ++i) {
      const auto* x = static_cast<const typename Dot<A>::Row*>(p.x) + i * packed_width(p.width);
      for (std::int64_t j = 0; j < p.width; ++j) p.y[i * p.width + j] = get(x, packed_index<A>(j));
    }
  });
}

}  // namespace dsv2::cpu::DSV2_ISA
