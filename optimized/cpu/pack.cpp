#include "optimized/cpu/pack.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/pack_group.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

template <Arithmetic A, class X>
void pack_rows(const PackParams& p, Range items) {
  const std::int64_t padded = packed_width(p.width), bytes = packed_bytes(A, p.width);
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const X* x = static_cast<const X*>(p.x) + (p.rows ? p.rows[i] : i) * p.x_stride;
    char* y = static_cast<char*>(p.y) + i * bytes;
    for (std::int64_t first = 0; first < padded; first += kQuantGroup) {
      float group[kQuantGroup];
      const std::int64_t count = p.width - first;
      if (count >= kQuantGroup)
        for (std::int64_t j = 0; j < kQuantGroup; ++j) group[j] = get(x, first + j);
      else
        for (std::int64_t j = 0; j < kQuantGroup; ++j) group[j] = j < count ? get(x, first + j) : 0.0f;
      pack_group<A>(group, y, padded, first);
    }
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
    const std::int64_t padded = packed_width(p.width), bytes = packed_bytes(A, p.width);
    for (std::int64_t i = items.begin; i < items.end; ++i)
      for (std::int64_t j = 0; j < p.width; ++j)
        p.y[i * p.width + j] = unpack_column<A>(static_cast<const char*>(p.x) + i * bytes, padded, j);
  });
}

}  // namespace dsv2::cpu::DSV2_ISA
