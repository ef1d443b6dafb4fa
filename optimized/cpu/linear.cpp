#include "optimized/cpu/linear.h"

#include "optimized/cpu/dot_tile.h"
#include "optimized/cpu/isa.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

template <Arithmetic A, int M, bool Prefetch>
void linear_tile(const LinearParams& p, const LinearSegment& s, std::int64_t row, Range cols, std::int64_t ahead) {
  using Matrix = typename Dot<A>::Matrix;
  const auto* weight = static_cast<const Matrix*>(s.weight);
  const typename Dot<A>::Row* x[M];
  for (int m = 0; m < M; ++m) x[m] = static_cast<const typename Dot<A>::Row*>(s.x) + (row + m) * p.x_stride;
  const auto bytes = static_cast<std::ptrdiff_t>(ahead * p.width) * static_cast<std::ptrdiff_t>(sizeof(Matrix));
  for (std::int64_t c = cols.begin; c < cols.end; c += kTileCols) {
    const Matrix* w[kTileCols];
    for (int n = 0; n < kTileCols; ++n) w[n] = weight + (c + n < cols.end ? c + n : c) * p.width;
    float out[M][kTileCols];
    dot_tile<A, M, kTileCols, Prefetch>(x, w, p.width, bytes, out);
    const int count = static_cast<int>(cols.end - c < kTileCols ? cols.end - c : kTileCols);
    for (int m = 0; m < M; ++m) {
      float* y = s.y + (row + m) * s.y_stride + c;
      if (s.bias)
        for (int n = 0; n < count; ++n) out[m][n] += s.bias[c + n];
      if (count == kTileCols)
        __builtin_memcpy(y, out[m], sizeof out[m]);
      else
        for (int n = 0; n < count; ++n) y[n] = out[m][n];
    }
  }
}

}  // namespace

void linear(const LinearParams& p, Range items) {
  std::int64_t first = 0;
  for (std::int64_t i = 0; i < p.segment_count; ++i) {
    const LinearSegment& s = p.segments[i];
    const std::int64_t begin = items.begin > first ? items.begin - first : 0;
    const std::int64_t end = items.end - first < s.out_width ? items.end - first : s.out_width;
    first += s.out_width;
    if (begin >= end) continue;
    with_arithmetic(p.arithmetic, [&]<Arithmetic A>() {
      for_each_tile(p.rows, {begin, end}, kTileCols,
                    [&]<int M, bool Prefetch>(std::int64_t row, Range cols, std::int64_t ahead) {
                      linear_tile<A, M, Prefetch>(p, s, row, cols, ahead);
                    });
    });
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
