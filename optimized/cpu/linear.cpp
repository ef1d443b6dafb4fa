#include "optimized/cpu/linear.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/panel_product.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

// Rows whose sums are kept on the stack at a time.
constexpr std::int64_t kRowChunk = 192;

/// Columns first..first+16P-1 of one matrix, for all rows.
template <Arithmetic A, int P>
void columns(const LinearParams& p, const LinearSegment& s, std::int64_t first) {
  const std::int64_t bytes = panel_bytes(A, p.width);
  const char *w[P], *next[P];
  panels_of<P>(s.weight, bytes, s.out_width, first, w);
  panels_of<P>(s.weight, bytes, s.out_width, first + P * kPanel, next);
  const std::int64_t count = s.out_width - first < P * kPanel ? s.out_width - first : P * kPanel;
  alignas(64) float c[kRowChunk * P * kPanel];
  for (std::int64_t r = 0; r < p.rows; r += kRowChunk) {
    const std::int64_t rows = p.rows - r < kRowChunk ? p.rows - r : kRowChunk;
    products<A, P>(Rows{static_cast<const char*>(s.x) + r * p.x_stride, p.x_stride, nullptr}, rows, w, next, p.width,
                   c);
    for (std::int64_t m = 0; m < rows; ++m) {
      float *y = s.y + (r + m) * s.y_stride + first, *sums = c + m * P * kPanel;
      if (s.bias)
        for (std::int64_t n = 0; n < count; ++n) sums[n] += s.bias[first + n];
      __builtin_memcpy(y, sums, static_cast<std::size_t>(count) * sizeof *y);
    }
  }
}

}  // namespace

void linear(const LinearParams& p, Range items) {
  std::int64_t before = 0;
  for (std::int64_t i = 0; i < p.segment_count; ++i) {
    const LinearSegment& s = p.segments[i];
    std::int64_t first = items.begin > before ? items.begin - before : 0;
    const std::int64_t end = items.end - before < s.out_width ? items.end - before : s.out_width;
    before += padded_to_item(s.out_width);
    if (first >= end) continue;
    with_arithmetic(p.arithmetic, [&]<Arithmetic A>() {
      for (; end - first > kItem; first += 2 * kItem) columns<A, 4>(p, s, first);
      for (; first < end; first += kItem) columns<A, 2>(p, s, first);
    });
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
