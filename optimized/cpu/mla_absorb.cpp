#include "optimized/cpu/mla_absorb.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/panel_product.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

constexpr int kColumns = 4;  // of the latent space at a time: what one chunk of int8 holds

/// w[k][v]: columns column..column+3 of a panel, widened.
template <Arithmetic A>
void widen_columns(const char* panel, std::int64_t column, V (&w)[kColumns][kVectors]) {
  for (int v = 0; v < kVectors; ++v) {
    if constexpr (A == Arithmetic::f32) {
      for (int k = 0; k < kColumns; ++k)
        w[k][v] = load(reinterpret_cast<const float*>(panel) + (column + k) * kPanel + v * kWidth);
    } else if constexpr (A == Arithmetic::bf16 || A == Arithmetic::bf16_dot) {
      for (int k = 0; k < kColumns; k += 2) {
        const U pairs = get_as<U>(panel + (column + k) / 2 * 64 + v * static_cast<int>(sizeof(U)));
        w[k][v] = (V)(pairs << 16), w[k + 1][v] = (V)(pairs & 0xffff0000u);
      }
    } else {
      using Q = Quant<A>;
      const char* block = panel + column / kQuantBlock * Q::kBytes;
      const auto in_group = static_cast<int>(column % kQuantGroup);
      const int group = static_cast<int>(column % kQuantBlock / kQuantGroup), half = in_group % Q::kColumnsInChunk;
      const U u = get_as<U>(Q::chunk(block, group, in_group / Q::kColumnsInChunk) + v * static_cast<int>(sizeof(U)));
      const V scale = Q::scales(block, group, v);
      for (int k = 0; k < kColumns; ++k)
        w[k][v] =
            (to_float((I)(u >> (8 * k + half) & (Q::kInt4 ? 15u : 255u))) - static_cast<float>(Q::kOffset)) * scale;
    }
  }
}

template <Arithmetic A>
void absorb(const MlaAbsorbParams& p, std::int64_t h) {
  const auto* weight = static_cast<const char*>(p.weight[h]);
  const std::int64_t bytes = panel_bytes(A, p.width), panels = (p.nope + kPanel - 1) / kPanel;
  for (std::int64_t n = 0; n < p.tokens; ++n) {
    const float* x = p.x + n * p.token_stride + h * p.head_stride;
    float* y = p.y + (n * p.heads + h) * p.width;
    for (std::int64_t column = 0; column < p.width; column += kColumns) {
      // Rows run along the lanes, so the sum over them is left for the end. Columns beyond an odd width are in the
      // panel's filling, but for those of float panels.
      V acc[kColumns][kVectors] = {};
      const std::int64_t left = p.width - column < kColumns ? p.width - column : kColumns;
      for (std::int64_t i = 0; i < panels; ++i) {
        V w[kColumns][kVectors];
        if ((A == Arithmetic::f32 || A == Arithmetic::bf16 || A == Arithmetic::bf16_dot) && left < kColumns) {
          alignas(64) char some[kColumns * 64] = {};
          const std::int64_t begin = panel_bytes(A, column), end = bytes;
          __builtin_memcpy(some, weight + i * bytes + begin, static_cast<std::size_t>(end - begin));
          widen_columns<A>(some, 0, w);
        } else {
          widen_columns<A>(weight + i * bytes, column, w);
        }
        for (int v = 0; v < kVectors; ++v) {
          const std::int64_t row = i * kPanel + v * kWidth;
          const V xs = row + kWidth <= p.nope ? load(x + row) : row < p.nope ? load(x + row, p.nope - row) : V{};
          for (int k = 0; k < kColumns; ++k) acc[k][v] = fma(xs, w[k][v], acc[k][v]);
        }
      }
      V total[kColumns];
      for (int k = 0; k < kColumns; ++k) {
        total[k] = acc[k][0];
        for (int v = 1; v < kVectors; ++v) total[k] += acc[k][v];
      }
      float sums[kColumns];
      sum4(total[0], total[1], total[2], total[3], sums);
      __builtin_memcpy(y + column, sums, static_cast<std::size_t>(left) * sizeof *y);
    }
  }
}

}  // namespace

void mla_absorb(const MlaAbsorbParams& p, Range items) {
  with_arithmetic(p.arithmetic, [&]<Arithmetic A>() {
    for (std::int64_t h = items.begin; h < items.end; ++h) absorb<A>(p, h);
  });
}

}  // namespace dsv2::cpu::DSV2_ISA
