// What is under way beside a block's threads: mbarriers, bulk copies, matrix products of warpgroups.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "gpusim/tensor_map.h"

namespace gpusim {

struct Block;
struct Warp;

/// An mbarrier object, beside the 8 bytes of shared memory that stand for it.
struct Mbarrier {
  std::uint32_t offset = 0;    ///< in its block's shared memory
  std::uint32_t expected = 0;  ///< arrivals of a phase
  std::uint32_t pending = 0;   ///< arrivals that this phase still waits for
  std::int64_t bytes = 0;      ///< of asynchronous copies that it still waits for; negative: more came than announced
  std::uint32_t phase = 0;     ///< phases completed
  std::uint32_t at = 0;        ///< instruction that initialised it
  std::vector<std::uint32_t> clocks;    ///< of each warp: the latest stamp that arrivals have brought
  std::vector<std::uint32_t> released;  ///< the same when the last phase was completed
};

/// What a bulk copy does to the bytes at its destination.
enum class Reduction : std::uint8_t { none, add, min, max, inc, dec, and_bits, or_bits, xor_bits };
/// Types of cp.reduce.async.bulk.
enum class ReductionType : std::uint8_t { u32, s32, u64, s64, f16, bf16, f32, f64 };

/// A copy into a block's shared memory that an mbarrier of the block is told of.
struct BulkCopy {
  Warp* warp = nullptr;                    ///< who issued it
  std::uint32_t at = 0;                    ///< instruction
  std::uint32_t stamp = 0;                 ///< of the issuing block, then
  std::uint32_t mbarrier = 0;              ///< offset
  std::uint32_t destination = 0;           ///< offset
  std::uint32_t bytes = 0;                 ///< that the mbarrier is told of
  Block* from = nullptr;                   ///< whose shared memory it comes from; null: global memory
  std::uint64_t source = 0;                ///< address, or offset in `from`
  std::shared_ptr<const TensorTile> tile;  ///< null: bytes side by side
  Reduction reduction = Reduction::none;
  ReductionType type = ReductionType::u32;
  bool has_value = false;  ///< st.async, red.async: the bytes themselves
  std::array<std::byte, 16> value = {};
  std::uint32_t arrivals = 0;  ///< cp.async.mbarrier.arrive: lanes whose copies up to `sequence` are meant
  std::uint32_t sequence = 0;
};

/// A copy from a block's shared memory to global memory, by bulk groups of its thread.
struct BulkStore {
  std::uint8_t lane = 0;
  std::uint32_t group = 0;
  std::uint32_t at = 0;
  std::uint32_t stamp = 0;
  std::uint32_t source = 0;  ///< offset
  std::uint32_t bytes = 0;
  std::uint64_t destination = 0;
  std::shared_ptr<const TensorTile> tile;
  Reduction reduction = Reduction::none;
  ReductionType type = ReductionType::u32;
};

/// A matrix product of a warpgroup that has been issued and not yet been waited for.
struct WgmmaInFlight {
  std::uint32_t at = 0;
  std::uint32_t group = 0;
  std::uint32_t stamp = 0;  ///< of the block when its group was closed
  bool read = false;        ///< its operands: a warp of the warpgroup has waited for it
  std::uint64_t a = 0;      ///< descriptor; 0: A is in registers
  std::uint64_t b = 0;
};

/// The order in which the warps of a warpgroup have met its products.
struct Warpgroup {
  std::vector<std::uint32_t> order;  ///< instructions, those that not all warps have passed
  std::uint32_t passed = 0;          ///< how many come before them
};

}  // namespace gpusim
