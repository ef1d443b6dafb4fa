#include "optimized/cpu/experts.h"

#include "optimized/cpu/dot_tile.h"
#include "optimized/cpu/isa.h"
#include "optimized/cpu/pack.h"
#include "optimized/cpu/packed_order.h"

namespace dsv2::cpu::DSV2_ISA {
namespace {

// A tile computes kPairs hidden units: their gate rows, then their up rows.
constexpr int kPairs = kTileCols > 4 ? kTileCols / 2 : kTileCols;

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

template <Arithmetic A, int M, bool Prefetch>
void act_tile(const ExpertsParams& p, const ExpertSegment& s, std::int64_t row, Range units, std::int64_t ahead) {
  using Matrix = typename Dot<A>::Matrix;
  const auto *gate_proj = static_cast<const Matrix*>(s.gate_proj), *up_proj = static_cast<const Matrix*>(s.up_proj);
  const typename Dot<A>::Row* x[M];
  for (int m = 0; m < M; ++m)
    x[m] = static_cast<const typename Dot<A>::Row*>(p.x) +
           (s.tokens ? s.tokens[row + m] : row + m) * packed_width(p.hidden);
  const auto bytes = static_cast<std::ptrdiff_t>(ahead * p.hidden) * static_cast<std::ptrdiff_t>(sizeof(Matrix));
  float gate[M][kGroup], up[M][kGroup];
  for (std::int64_t u = units.begin; u < units.end; u += kPairs) {
    const Matrix* w[2 * kPairs];
    for (int n = 0; n < kPairs; ++n) {
      const std::int64_t unit = u + n < units.end ? u + n : u;
      w[n] = gate_proj + unit * p.hidden;
      w[kPairs + n] = up_proj + unit * p.hidden;
    }
    const std::int64_t at = u - units.begin;
    if constexpr (kTileCols == 2 * kPairs) {
      float out[M][kTileCols];
      dot_tile<A, M, kTileCols, Prefetch>(x, w, p.hidden, bytes, out);
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < kPairs; ++n) gate[m][at + n] = out[m][n], up[m][at + n] = out[m][kPairs + n];
    } else {
      float out[2][M][kTileCols];
      for (int i = 0; i < 2; ++i) dot_tile<A, M, kTileCols, Prefetch>(x, w + i * kPairs, p.hidden, bytes, out[i]);
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < kPairs; ++n) gate[m][at + n] = out[0][m][n], up[m][at + n] = out[1][m][n];
    }
  }
  const std::int64_t count = units.end - units.begin, padded = packed_width(s.width);
  for (int m = 0; m < M; ++m) {
    for (std::int64_t i = count; i < kGroup; ++i) gate[m][i] = up[m][i] = 0;
    for (int i = 0; i < kGroup; i += kWidth)
      store(gate[m] + i, activate(p.activation, load(gate[m] + i)) * load(up[m] + i));
    with_arithmetic(p.down_arithmetic, [&]<Arithmetic Down>() {
      auto* act = static_cast<typename Dot<Down>::Row*>(s.act) + (row + m) * padded;
      for (std::int64_t i = 0; i < count; ++i) put(act, packed_index<Down>(units.begin + i), gate[m][i]);
      if (units.end == s.width)
        for (std::int64_t i = s.width; i < padded; ++i) put(act, packed_index<Down>(i), 0.0f);
    });
  }
}

template <Arithmetic A, int M, bool Prefetch>
void down_tile(const ExpertsParams& p, const ExpertSegment& s, std::int64_t row, Range cols, std::int64_t ahead) {
  using Matrix = typename Dot<A>::Matrix;
  const auto* down_proj = static_cast<const Matrix*>(s.down_proj);
  const typename Dot<A>::Row* x[M];
  float* y[M];
  float share[M];
  for (int m = 0; m < M; ++m) {
    x[m] = static_cast<const typename Dot<A>::Row*>(s.act) + (row + m) * packed_width(s.width);
    y[m] = p.y + (s.tokens ? s.tokens[row + m] : row + m) * p.hidden;
    share[m] = s.weight ? s.weight[row + m] : 1.0f;
  }
  const auto bytes = static_cast<std::ptrdiff_t>(ahead * s.width) * static_cast<std::ptrdiff_t>(sizeof(Matrix));
  for (std::int64_t c = cols.begin; c < cols.end; c += kTileCols) {
    const Matrix* w[kTileCols];
    for (int n = 0; n < kTileCols; ++n) w[n] = down_proj + (c + n < cols.end ? c + n : c) * s.width;
    float out[M][kTileCols];
    dot_tile<A, M, kTileCols, Prefetch>(x, w, s.width, bytes, out);
    const int count = static_cast<int>(cols.end - c < kTileCols ? cols.end - c : kTileCols);
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < count; ++n) y[m][c + n] += share[m] * out[m][n];
  }
}

}  // namespace

void experts_act(const ExpertsParams& p, Range items) {
  std::int64_t first = 0;
  for (std::int64_t i = 0; i < p.segment_count; ++i) {
    const ExpertSegment& s = p.segments[i];
    const std::int64_t begin = items.begin > first ? items.begin - first : 0;
    const std::int64_t end = items.end - first < s.width ? items.end - first : s.width;
    first += s.width;
    if (begin >= end) continue;
    with_arithmetic(p.up_arithmetic, [&]<Arithmetic A>() {
      for_each_tile(s.rows, {begin, end}, kPairs,
                    [&]<int M, bool Prefetch>(std::int64_t row, Range units, std::int64_t ahead) {
                      act_tile<A, M, Prefetch>(p, s, row, units, ahead);
                    });
    });
  }
}

void experts_down(const ExpertsParams& p, Range items) {
  for (std::int64_t t = 0; t < p.tokens; ++t)
    for (std::int64_t c = items.begin; c < items.end; ++c) p.y[t * p.hidden + c] = 0;
  for (std::int64_t i = 0; i < p.segment_count; ++i) {
    const ExpertSegment& s = p.segments[i];
    with_arithmetic(p.down_arithmetic, [&]<Arithmetic A>() {
      for_each_tile(s.rows, items, kTileCols,
                    [&]<int M, bool Prefetch>(std::int64_t row, Range cols, std::int64_t ahead) {
                      down_tile<A, M, Prefetch>(p, s, row, cols, ahead);
                    });
    });
  }
}

}  // namespace dsv2::cpu::DSV2_ISA
