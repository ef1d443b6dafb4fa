#include "optimized/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "model/quantised.h"
#include "optimized/cpu/panel.h"

namespace dsv2::cpu {

static_assert(kPanel == dsv2::kQuantPanel && kQuantGroup == dsv2::kQuantGroup && kQuantBlock == dsv2::kQuantBlock);

namespace {

/// Four bytes of each row of a panel: an element of f32, a pair of bf16, a chunk's share of i8 and i4.
using Lane = std::uint32_t;

void pack_f32(const TensorView& m, std::int64_t first, std::int64_t count, std::byte* to) {
  const std::int64_t cols = m.dim(-1);
  std::vector<float> wide(static_cast<std::size_t>(kPanel * cols));
  widen_rows_into(m, first, count, wide.data());
  auto* y = reinterpret_cast<float*>(to);
  for (std::int64_t k = 0; k < cols; ++k)
    for (std::int64_t r = 0; r < kPanel; ++r) y[k * kPanel + r] = wide[static_cast<std::size_t>(r * cols + k)];
}

void pack_bf16(const TensorView& m, std::int64_t first, std::int64_t count, std::byte* to) {
  const std::int64_t cols = m.dim(-1), pairs = cols / 2;
  const auto* from = static_cast<const std::byte*>(m.data) + first * cols * 2;
  auto* y = reinterpret_cast<Lane*>(to);
  if (count < kPanel) std::fill_n(y, (cols + 1) / 2 * kPanel, 0u);
  for (std::int64_t k = 0; k < pairs; ++k)
    for (std::int64_t r = 0; r < count; ++r) std::memcpy(y + k * kPanel + r, from + (r * cols + 2 * k) * 2, sizeof *y);
  if (cols % 2 == 0) return;
  std::fill_n(y + pairs * kPanel, kPanel, 0u);
  for (std::int64_t r = 0; r < count; ++r) std::memcpy(y + pairs * kPanel + r, from + (r * cols + cols - 1) * 2, 2);
}

void pack_quantised(const TensorView& m, std::int64_t first, std::int64_t count, std::byte* to) {
  const std::int64_t cols = m.dim(-1), bytes = quantised_panel_bytes(m.dtype, cols);
  const auto* from = static_cast<const std::byte*>(m.data);
  if (first % kPanel == 0) {  // whatever rows follow the last one: nobody looks at their sums
    std::memcpy(to, from + first / kPanel * bytes, static_cast<std::size_t>(bytes));
    return;
  }
  const std::int64_t block_bytes = quantised_block_bytes(m.dtype);
  const auto copy = [&](std::int64_t at, std::int64_t size) {  // `size` bytes of each row, the first row's at `at`
    for (std::int64_t r = 0; r < kPanel; ++r) {
      const std::int64_t row = first + std::min(r, count - 1);
      std::memcpy(to + at + r * size, from + row / kPanel * bytes + at + row % kPanel * size,
                  static_cast<std::size_t>(size));
    }
  };
  for (std::int64_t block = 0; block < bytes; block += block_bytes) {
    copy(block, 2), copy(block + kPanel * 2, 2);
    for (std::int64_t at = kScaleBytes; at < block_bytes; at += kPanel * 4) copy(block + at, 4);
  }
}

}  // namespace

Arithmetic for_rows(Arithmetic arithmetic, std::int64_t rows) {
  if (rows <= kFewIntegerRows) return arithmetic;
  if (arithmetic == Arithmetic::i8) return Arithmetic::i8_wide;
  return arithmetic == Arithmetic::i4 ? Arithmetic::i4_wide : arithmetic;
}

std::int64_t packed_matrix_bytes(Arithmetic arithmetic, std::int64_t rows, std::int64_t cols) {
  return (rows + kPanel - 1) / kPanel * panel_bytes(arithmetic, cols);
}

void pack_panel(const TensorView& matrix, std::int64_t first, std::int64_t count, Arithmetic arithmetic,
                std::byte* to) {
  if (arithmetic == Arithmetic::f32) return pack_f32(matrix, first, count, to);
  const bool bf16 = arithmetic == Arithmetic::bf16 || arithmetic == Arithmetic::bf16_dot;
  DSV2_CHECK(bf16 ? matrix.dtype == DType::bf16 : is_quantised(matrix.dtype),
             "panel: expected a matrix of its dtype, found ", name(matrix.dtype));
  if (bf16)
    pack_bf16(matrix, first, count, to);
  else
    pack_quantised(matrix, first, count, to);
}

void pack_matrix(const TensorView& matrix, Arithmetic arithmetic, std::byte* to) {
  const std::int64_t rows = matrix.dim(-2), cols = matrix.dim(-1), panel = panel_bytes(arithmetic, cols);
  const std::int64_t stacked = rows * cols == 0 ? 0 : matrix.size() / (rows * cols);
  const std::int64_t each = array_bytes(matrix.dtype, {rows, cols});
  for (std::int64_t i = 0; i < stacked; ++i) {
    const TensorView one{matrix.dtype, {rows, cols}, static_cast<const std::byte*>(matrix.data) + i * each};
    for (std::int64_t first = 0; first < rows; first += kPanel, to += panel)
      pack_panel(one, first, std::min(kPanel, rows - first), arithmetic, to);
  }
}

}  // namespace dsv2::cpu
