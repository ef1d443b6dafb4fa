#include "optimized/cpu/linear.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/panel_product.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

/// Columns of a segment that a thread computes; none where `first` is not below `end`.
struct Share {
  const LinearSegment* segment;
  std::int64_t first, end;
};

/// Columns first..first+16P-1 of one matrix, for all rows; `then` is what its thread computes after them.
template <Arithmetic A, int P>
void columns(const LinearParams& p, const LinearSegment& s, std::int64_t first, const Share& then) {
  const std::int64_t bytes = panel_bytes(A, p.width);
  const char *w[P], *next[P];
  panels_of<P>(s.weight, bytes, s.out_width, first, w);
  if (then.first < then.end)
    panels_of<P>(then.segment->weight, bytes, then.segment->out_width, then.first, next);
  else
    panels_of<P>(s.weight, bytes, s.out_width, first, next);  // its own once more: nothing to wait for
  const std::int64_t count = s.out_width - first < P * kPanel ? s.out_width - first : P * kPanel;
  const Rows x{static_cast<const char*>(s.x), p.x_stride, nullptr};
  for_each_product<A, P>(x, p.rows, w, next, p.width, [&](std::int64_t row, float* sums) {
    if (s.bias)
      for (std::int64_t n = 0; n < count; ++n) sums[n] += s.bias[first + n];
    __builtin_memcpy(s.y + row * s.y_stride + first, sums, static_cast<std::size_t>(count) * sizeof *sums);
  });
}

}  // namespace

void linear(const LinearParams& p, Range items) {
  std::int64_t before = 0;
  const auto share = [&](std::int64_t i) {
    const LinearSegment& s = p.segments[i];
    const std::int64_t first = items.begin > before ? items.begin - before : 0;
    const std::int64_t end = items.end - before < s.out_width ? items.end - before : s.out_width;
    before += padded_to_item(s.out_width);
    return Share{&s, first, end};
  };
  Share now = share(0);
  for (std::int64_t i = 1; i <= p.segment_count; ++i) {
    const Share later = i < p.segment_count ? share(i) : Share{nullptr, 0, 0};
    with_arithmetic(p.arithmetic, [&]<Arithmetic A>() {
      const auto after = [&](std::int64_t first) {
        return first < now.end ? Share{now.segment, first, now.end} : later;
      };
      std::int64_t first = now.first;
      for (; now.end - first > kItem; first += 2 * kItem)
        columns<A, 4>(p, *now.segment, first, after(first + 2 * kItem));
      for (; first < now.end; first += kItem) columns<A, 2>(p, *now.segment, first, after(first + kItem));
    });
    now = later;
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
