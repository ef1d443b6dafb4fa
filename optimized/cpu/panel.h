// Matrices as the kernels read them: panels of 16 rows, so that one load serves 16 sums and nothing is left to add up.
// Whatever the arithmetic, the columns of a panel follow one another:
//
//     f32                 [K][16]
//     bf16, bf16_dot      [K/2][16][2], a pair of columns of each row
//     i8, i4 (and _wide)  model/quantised.h
//
// The last panel is filled up with rows of zeros, an odd K with a column of zeros.
#pragma once

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

inline constexpr std::int64_t kPanel = 16;       ///< rows
inline constexpr std::int64_t kItem = 32;        ///< rows that a thread takes at least: two panels
inline constexpr std::int64_t kQuantGroup = 32;  ///< columns with one scale
inline constexpr std::int64_t kQuantBlock = 64;  ///< columns with their scales in one place
inline constexpr std::int64_t kScaleBytes = kQuantBlock / kQuantGroup * kPanel * 2;

static constexpr std::int64_t panel_bytes(Arithmetic arithmetic, std::int64_t width) {
  const std::int64_t blocks = (width + kQuantBlock - 1) / kQuantBlock;
  switch (arithmetic) {
    case Arithmetic::f32:
      return width * kPanel * 4;
    case Arithmetic::bf16:
    case Arithmetic::bf16_dot:
      return (width + 1) / 2 * kPanel * 4;
    case Arithmetic::i8:
    case Arithmetic::i8_wide:
      return blocks * (kScaleBytes + kPanel * kQuantBlock);
    case Arithmetic::i4:
    case Arithmetic::i4_wide:
      return blocks * (kScaleBytes + kPanel * kQuantBlock / 2);
  }
  return 0;
}

/// Rows of a matrix as items of an op: each matrix of a sweep begins at a multiple of kItem.
static constexpr std::int64_t padded_to_item(std::int64_t rows) { return (rows + kItem - 1) / kItem * kItem; }

}  // namespace dsv2::cpu
