// Matrix products of warpgroups (wgmma): where their operands lie in shared memory, and what of them is under way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "gpusim/handlers.h"
#include "gpusim/machine.h"

namespace gpusim {

inline constexpr std::size_t kWarpgroupWarps = 4;
inline constexpr std::uint32_t kWgmmaDepthBytes = 32;  ///< of K, for elements of any type
inline constexpr int kWgmmaRows = 16;                  ///< of the 64 of a warpgroup, that each of its warps has

/// Instruction::mode of products.
enum WgmmaMode : std::uint8_t {
  kWgmmaTransposeA = 1,  ///< A lies with M, not K, side by side
  kWgmmaTransposeB = 2,  ///< the same of B and N
  kWgmmaNegate = 4,      ///< of A and B one is negated
  kWgmmaSaturate = 8,
  kWgmmaUnfenced = 16,  ///< no wgmma.fence can have come before
};

/// A matrix in shared memory, by PTX ISA's "matrix descriptor": chunks of 16 bytes, 8 of them a core matrix.
class MatrixLayout {
 public:
  MatrixLayout(std::uint64_t descriptor, bool transposed);
  /// The chunk of 16 bytes that holds, of row (of A; column of B) `row`, the K bytes from 16 `chunk` on; of a
  /// transposed matrix: of K `row`, the rows from 8 `chunk` on.
  std::uint32_t chunk(std::uint32_t row, std::uint32_t chunk) const {
    const std::uint32_t first = row % 8 * pitch_ + row / 8 * row_step_;
    const std::uint32_t side_by_side = chunk & ((1u << chunk_bits_) - 1);
    const std::uint32_t at = start_ + first + side_by_side * 16 + (chunk >> chunk_bits_) * far_step_;
    return at ^ (((at >> 7) - base_offset_) & phases_) << 4;
  }

  /// No chunk of the first `rows` and `chunks` lies outside [first, second).
  std::pair<std::uint32_t, std::uint32_t> bounds(std::uint32_t rows, std::uint32_t chunks) const {
    const std::uint32_t side_by_side = std::min(chunks, 1u << chunk_bits_) - 1;
    const std::uint32_t last = start_ + 7 * pitch_ + (rows - 1) / 8 * row_step_ + 16 * side_by_side +
                               ((chunks - 1) >> chunk_bits_) * far_step_;
    return {start_ & ~127u, (last | 127u) + 1};  // swizzles stay within 128 bytes
  }

 private:
  std::uint32_t start_ = 0;
  std::uint32_t pitch_ = 16;      ///< between the rows of a core matrix
  std::uint32_t row_step_ = 0;    ///< between core matrices along the rows
  std::uint32_t chunk_bits_ = 0;  ///< of how many chunks lie side by side in the swizzle's span
  std::uint32_t far_step_ = 0;    ///< from those to the next
  std::uint32_t phases_ = 0;
  std::uint32_t base_offset_ = 0;
};

/// Checks that a product may run, and of its operands in shared memory what can be checked; notes it as under way.
/// False where it must not run.
bool begin_product(Warp& warp, const Instruction& in);

/// Says so where an instruction touches registers of products under way; `lists`: a bit for each list of registers.
void check_product_registers(Warp& warp, const Instruction& in, std::uint64_t lists);
/// At a block's end: the warps of a warpgroup have all met the same products.
void check_warpgroups(Machine& machine, Block& block);
/// Nobody gets on: lets warps go that wait for others of their warpgroup, and says so. False where none do.
bool release_warpgroups(Machine& machine, std::span<Block* const> blocks);

/// Finds the instructions that may touch registers of a product under way, and products that no fence can precede.
void find_product_hazards(Program& program, const std::vector<RegisterUse>& uses,
                          const std::vector<std::vector<int>>& successors);

void register_warpgroups(HandlerRegistry& registry);

}  // namespace gpusim
