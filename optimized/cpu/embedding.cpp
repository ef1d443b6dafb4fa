#include "optimized/cpu/embedding.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/panel_product.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

/// One lane of a panel.
template <Arithmetic A>
void quantised_row(const EmbeddingParams& p, std::int64_t id, float* y) {
  using Q = Quant<A>;
  const std::int64_t lane = id % kPanel;
  const char* panel = static_cast<const char*>(p.table) + id / kPanel * panel_bytes(A, p.width);
  for (std::int64_t j = 0; j < p.width; ++j) {
    const char* block = panel + j / kQuantBlock * Q::kBytes;
    const auto group = static_cast<int>(j % kQuantBlock / kQuantGroup), in = static_cast<int>(j % kQuantGroup);
    const float scale = widen(get_as<std::uint16_t>(block + (group * kPanel + lane) * 2));
    const int half = in % Q::kColumnsInChunk / 4 * 4;  // the high nibble, of int4
    const auto u = static_cast<unsigned char>(Q::chunk(block, group, in / Q::kColumnsInChunk)[lane * 4 + in % 4]);
    y[j] = static_cast<float>((u >> half & (Q::kInt4 ? 15 : 255)) - Q::kOffset) * scale;
  }
}

}  // namespace

void embedding(const EmbeddingParams& p, Range items) {
  for (std::int64_t i = items.begin; i < items.end; ++i) {
    const std::int64_t from = p.ids[i] * p.width;
    float* y = p.y + i * p.width;
    if (p.stored == Arithmetic::f32)
      __builtin_memcpy(y, static_cast<const float*>(p.table) + from, static_cast<std::size_t>(p.width) * sizeof *y);
    else if (p.stored == Arithmetic::i8)
      quantised_row<Arithmetic::i8>(p, p.ids[i], y);
    else if (p.stored == Arithmetic::i4)
      quantised_row<Arithmetic::i4>(p, p.ids[i], y);
    else
      for (std::int64_t j = 0; j < p.width; ++j) y[j] = widen(static_cast<const std::uint16_t*>(p.table)[from + j]);
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
