#include "optimized/cpu/experts.h"

#include "optimized/cpu/isa.h"
#include "optimized/cpu/pack_group.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

V activate(Activation activation, V x) {
  switch (activation) {
    case Activation::silu:
      return x / (exp(-x) + 1.0f);
    case Activation::relu:
      return max(x, V{});
    case Activation::gelu:
      for (int i = 0; i < kWidth; ++i) x[i] = 0.5f * x[i] * (1.0f + __builtin_erff(x[i] * 0.70710678118654752f));
      return x;
    case Activation::gelu_tanh:
      for (int i = 0; i < kWidth; ++i)
        x[i] = 0.5f * x[i] * (1.0f + __builtin_tanhf(0.79788456080286536f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
      return x;
  }
  return x;
}

/// Hidden units, or columns of y, of a segment that a thread computes; none where `first` is not below `end`.
struct Share {
  const ExpertSegment* segment;
  std::int64_t first, end;
};

/// Hidden units first..first+31 of one MLP, for all of its rows; `then` is what its thread computes after them.
template <Arithmetic A>
void units(const ExpertsParams& p, const ExpertSegment& s, std::int64_t first, const Share& then) {
  const std::int64_t bytes = panel_bytes(A, p.hidden);
  const char *w[4], *next[4];
  panels_of<2>(s.gate_proj, bytes, s.width, first, w);
  panels_of<2>(s.up_proj, bytes, s.width, first, w + 2);
  const bool ends = then.first >= then.end;  // its own once more, then: nothing to wait for
  const ExpertSegment& after = ends ? s : *then.segment;
  panels_of<2>(after.gate_proj, bytes, after.width, ends ? first : then.first, next);
  panels_of<2>(after.up_proj, bytes, after.width, ends ? first : then.first, next + 2);
  const std::int64_t count = s.width - first < kItem ? s.width - first : kItem, padded = packed_width(s.width);
  const Rows x{static_cast<const char*>(p.x), packed_bytes(A, p.hidden), s.tokens};
  for_each_product<A, 4>(x, s.rows, w, next, p.hidden, [&](std::int64_t row, float* gate) {
    float* up = gate + kItem;
    for (int i = 0; i < kItem; i += kWidth) store(gate + i, activate(p.activation, load(gate + i)) * load(up + i));
    for (std::int64_t i = count; i < kItem; ++i) gate[i] = 0;
    with_arithmetic(p.down_arithmetic, [&]<Arithmetic Down>() {
      char* act = static_cast<char*>(s.act) + row * packed_bytes(Down, s.width);
      pack_group<Down>(gate, act, padded, first);
      if (first + kItem < s.width) return;
      const float zeros[kQuantGroup] = {};
      for (std::int64_t i = first + kItem; i < padded; i += kItem) pack_group<Down>(zeros, act, padded, i);
    });
  });
}

/// Columns first..first+16P-1 of y: what one MLP adds to them. `then` as above.
template <Arithmetic A, int P>
void columns(const ExpertsParams& p, const ExpertSegment& s, std::int64_t first, const Share& then) {
  const std::int64_t bytes = panel_bytes(A, s.width);
  const char *w[P], *next[P];
  panels_of<P>(s.down_proj, bytes, p.hidden, first, w);
  const bool ends = then.first >= then.end;
  const ExpertSegment& after = ends ? s : *then.segment;
  panels_of<P>(after.down_proj, panel_bytes(A, after.width), p.hidden, ends ? first : then.first, next);
  const std::int64_t count = p.hidden - first < P * kPanel ? p.hidden - first : P * kPanel;
  const Rows x{static_cast<const char*>(s.act), packed_bytes(A, s.width), nullptr};
  for_each_product<A, P>(x, s.rows, w, next, s.width, [&](std::int64_t row, const float* sums) {
    float* y = p.y + (s.tokens ? s.tokens[row] : row) * p.hidden + first;
    const float share = s.weight ? s.weight[row] : 1.0f;
    for (std::int64_t n = 0; n < count; ++n) y[n] += share * sums[n];
  });
}

}  // namespace

void experts_act(const ExpertsParams& p, Range items) {
  std::int64_t before = 0;
  const auto share = [&](std::int64_t i) {
    const ExpertSegment& s = p.segments[i];
    const std::int64_t first = items.begin > before ? items.begin - before : 0;
    const std::int64_t end = items.end - before < s.width ? items.end - before : s.width;
    before += padded_to_item(s.width);
    return Share{&s, first, end};
  };
  Share now = p.segment_count > 0 ? share(0) : Share{nullptr, 0, 0};
  for (std::int64_t i = 1; i <= p.segment_count; ++i) {
    const Share later = i < p.segment_count ? share(i) : Share{nullptr, 0, 0};
    with_arithmetic(p.up_arithmetic, [&]<Arithmetic A>() {
      for (std::int64_t first = now.first; first < now.end; first += kItem)
        units<A>(p, *now.segment, first, first + kItem < now.end ? Share{now.segment, first + kItem, now.end} : later);
    });
    now = later;
  }
}

void experts_down(const ExpertsParams& p, Range items) {
  const std::int64_t end = items.end < p.hidden ? items.end : p.hidden;
  for (std::int64_t t = 0; t < p.tokens; ++t)
    for (std::int64_t c = items.begin; c < end; ++c) p.y[t * p.hidden + c] = 0;
  for (std::int64_t i = 0; i < p.segment_count; ++i) {
    const ExpertSegment& s = p.segments[i];
    with_arithmetic(p.down_arithmetic, [&]<Arithmetic A>() {
      const auto after = [&](std::int64_t first) {
        if (first < end) return Share{&s, first, end};
        return i + 1 < p.segment_count ? Share{&p.segments[i + 1], items.begin, end} : Share{nullptr, 0, 0};
      };
      std::int64_t first = items.begin;
      for (; end - first > kItem; first += 2 * kItem) columns<A, 4>(p, s, first, after(first + 2 * kItem));
      for (; first < end; first += kItem) columns<A, 2>(p, s, first, after(first + kItem));
    });
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
