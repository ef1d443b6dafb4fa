#include "model/quantised.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace dsv2 {
namespace {

constexpr std::int64_t kGroupsPerBlock = kQuantBlock / kQuantGroup;
constexpr std::int64_t kScaleBytes = kGroupsPerBlock * kQuantPanel * static_cast<std::int64_t>(sizeof(bf16_t));

// What the largest element of a group may be stored as. The first one to err least is taken.
constexpr float kTargets8[] = {-128, -126, -124, -122};
constexpr float kTargets4[] = {-8, -7.5f, -7, -6.5f, -8.5f, -9, 6.5f, 7, 7.5f, 8};

/// One group of 16 rows, column by column, so that the loops over rows become vectors.
using Lanes = float[kQuantPanel];

/// Where the integer of (row, column of the block) lies: a byte, and the nibble in it.
struct Place {
  std::int64_t byte;
  int shift;
};
constexpr Place place_of(DType dtype, std::int64_t row, std::int64_t col) {
  if (dtype == DType::i8) return {kScaleBytes + (col / 4 * kQuantPanel + row) * 4 + col % 4, 0};
  return {kScaleBytes + (col / 8 * kQuantPanel + row) * 4 + col % 4, static_cast<int>(col % 8 / 4 * 4)};
}

/// The integers of a group under `scale`; `error`: their squared distance in units of the scale, NaN where an element
/// would not be finite.
void round_group(const Lanes* x, const Lanes& scale, float lowest, float highest, Lanes* q, Lanes& error) {
  Lanes inverse;
  for (std::int64_t r = 0; r < kQuantPanel; ++r) inverse[r] = scale[r] != 0 ? 1 / scale[r] : 0, error[r] = 0;
  constexpr float kMagic = 0x1.8p23f;  // adding it rounds to an integer, ties to even
  for (std::int64_t k = 0; k < kQuantGroup; ++k) {
    for (std::int64_t r = 0; r < kQuantPanel; ++r) {
      const float exact = x[k][r] * inverse[r];
      float v = exact < lowest ? lowest : exact;
      v = v > highest ? highest : v;
      v = (v + kMagic) - kMagic;
      q[k][r] = v;
      const float off = v - exact, element = v * scale[r];
      error[r] += off * off + (element - element);
    }
  }
}

void quantise_group(const Lanes* x, DType dtype, std::int64_t group, std::byte* block) {
  const float lowest = dtype == DType::i8 ? -128 : -8, highest = -lowest - 1;
  Lanes largest = {}, best = {}, least;
  for (float& l : least) l = std::numeric_limits<float>::infinity();
  for (std::int64_t k = 0; k < kQuantGroup; ++k)
    for (std::int64_t r = 0; r < kQuantPanel; ++r)
      if (std::fabs(x[k][r]) > std::fabs(largest[r])) largest[r] = x[k][r];
  Lanes chosen[kQuantGroup] = {};
  const auto try_target = [&](float target) {
    Lanes scale, error, q[kQuantGroup];
    for (std::int64_t r = 0; r < kQuantPanel; ++r) {
      const float s = to_float(to_bf16(largest[r] / target));
      scale[r] = std::fabs(s) >= 0x1p-126f ? s : 0;  // of a denormal scale there is no inverse
    }
    round_group(x, scale, lowest, highest, q, error);
    for (std::int64_t r = 0; r < kQuantPanel; ++r) {
      const float unit = scale[r] != 0 ? scale[r] / largest[r] : 0;
      error[r] *= unit * unit;
      if (!(error[r] < least[r])) continue;
      least[r] = error[r], best[r] = scale[r];
      for (std::int64_t k = 0; k < kQuantGroup; ++k) chosen[k][r] = q[k][r];
    }
  };
  if (dtype == DType::i8)
    for (const float t : kTargets8) try_target(t);
  else
    for (const float t : kTargets4) try_target(t);

  for (std::int64_t r = 0; r < kQuantPanel; ++r) {
    const bf16_t s = to_bf16(best[r]);
    std::memcpy(block + (group * kQuantPanel + r) * static_cast<std::int64_t>(sizeof s), &s, sizeof s);
    for (std::int64_t k = 0; k < kQuantGroup; ++k) {
      const Place at = place_of(dtype, r, group * kQuantGroup + k);
      block[at.byte] |= static_cast<std::byte>(static_cast<unsigned>(chosen[k][r] - lowest) << at.shift);
    }
  }
}

void check_quantised(DType dtype) {
  DSV2_CHECK(is_quantised(dtype), "quantised matrix: expected dtype int8 or int4, found ", name(dtype));
}

}  // namespace

std::int64_t quantised_block_bytes(DType dtype) { return kScaleBytes + kQuantPanel * kQuantBlock * bits(dtype) / 8; }

std::int64_t quantised_panel_bytes(DType dtype, std::int64_t cols) {
  return (cols + kQuantBlock - 1) / kQuantBlock * quantised_block_bytes(dtype);
}

void quantise_panel(const float* from, std::int64_t rows, std::int64_t cols, DType dtype, std::byte* panel) {
  check_quantised(dtype);
  for (std::int64_t begin = 0; begin < cols; begin += kQuantBlock, panel += quantised_block_bytes(dtype)) {
    std::fill_n(panel, quantised_block_bytes(dtype), std::byte{0});
    for (std::int64_t g = 0; g < kGroupsPerBlock; ++g) {
      Lanes x[kQuantGroup] = {};
      const std::int64_t first = begin + g * kQuantGroup,
                         count = std::clamp<std::int64_t>(cols - first, 0, kQuantGroup);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t k = 0; k < count; ++k) x[k][r] = from[r * cols + first + k];
      quantise_group(x, dtype, g, panel);
    }
  }
}

Tensor quantise(const TensorView& matrix, DType dtype) {
  check_quantised(dtype);
  DSV2_CHECK(matrix.shape.size() >= 2, "quantise: expected a matrix, found shape ", to_string(matrix.shape));
  Tensor to(dtype, matrix.shape);
  const std::int64_t rows = matrix.dim(-2), cols = matrix.dim(-1);
  if (matrix.size() == 0) return to;
  const std::int64_t matrices = matrix.size() / (rows * cols), panels = (rows + kQuantPanel - 1) / kQuantPanel;
  const std::int64_t bytes = quantised_panel_bytes(dtype, cols);
  auto* const panel = static_cast<std::byte*>(to.data());
  const TensorView all{matrix.dtype, {matrices * rows, cols}, matrix.data};
  DSV2_CHECK(!is_quantised(all.dtype) && all.dtype != DType::i64, "quantise: expected floats, found ", name(all.dtype));
#pragma omp parallel
  {
    std::vector<float> wide(static_cast<std::size_t>(kQuantPanel * cols));
#pragma omp for
    for (std::int64_t i = 0; i < matrices * panels; ++i) {
      const std::int64_t first = i % panels * kQuantPanel, count = std::min(kQuantPanel, rows - first);
      widen_rows_into(all, i / panels * rows + first, count, wide.data());
      quantise_panel(wide.data(), count, cols, dtype, panel + i * bytes);
    }
  }
  return to;
}

template <class T>
void widen_rows_into(const TensorView& m, std::int64_t first, std::int64_t count, T* to) {
  const std::int64_t cols = m.dim(-1);
  if (!is_quantised(m.dtype)) {
    const auto* bytes = static_cast<const char*>(m.data) + first * cols * bits(m.dtype) / 8;
    return widen_into<T>({m.dtype, {count, cols}, bytes}, to);
  }
  const std::int64_t block_bytes = quantised_block_bytes(m.dtype);
  const int offset = 1 << (bits(m.dtype) - 1), mask = 2 * offset - 1;
  for (std::int64_t row = first; row < first + count; ++row) {
    const auto* panel =
        static_cast<const std::byte*>(m.data) + row / kQuantPanel * quantised_panel_bytes(m.dtype, cols);
    for (std::int64_t col = 0; col < cols; ++col, ++to) {
      const std::byte* const block = panel + col / kQuantBlock * block_bytes;
      const std::int64_t in_block = col % kQuantBlock, r = row % kQuantPanel;
      bf16_t scale;
      std::memcpy(&scale, block + (in_block / kQuantGroup * kQuantPanel + r) * 2, sizeof scale);
      const Place at = place_of(m.dtype, r, in_block);
      const int u = std::to_integer<int>(block[at.byte]) >> at.shift & mask;
      *to = static_cast<T>(to_float(scale) * static_cast<float>(u - offset));  // 8 x 8 bits: exact
    }
  }
}
template void widen_rows_into<float>(const TensorView&, std::int64_t, std::int64_t, float*);
template void widen_rows_into<double>(const TensorView&, std::int64_t, std::int64_t, double*);

}  // namespace dsv2
