// mbarrier objects: arrivals and bytes of asynchronous copies that a phase waits for. PTX ISA, "mbarrier".
#pragma once

#include <optional>
#include <span>
#include <string>

#include "gpusim/handlers.h"
#include "gpusim/machine.h"

namespace gpusim {

/// Instruction::mode of the instructions on mbarriers.
enum MbarrierMode : std::uint8_t {
  kMbarrierParity = 1,        ///< waits for a parity, not for the phase of a state
  kMbarrierRelaxed = 2,       ///< orders nothing
  kMbarrierExpects = 4,       ///< announces bytes, given in `b`
  kMbarrierDrops = 8,         ///< later phases expect as many arrivals less
  kMbarrierIncomplete = 16,   ///< must not complete the phase
  kMbarrierNoArrival = 32,    ///< expect_tx, complete_tx by themselves
  kMbarrierNoIncrement = 64,  ///< cp.async.mbarrier.arrive.noinc
};

/// Most arrivals, and most bytes, that an mbarrier counts.
inline constexpr std::uint32_t kMostMbarrierCount = (1u << 20) - 1;

/// An address of shared memory: the block of the cluster that has it, and the offset there.
struct SharedPlace {
  Block* block = nullptr;
  std::uint32_t offset = 0;
};
/// Null where the cluster has no such block.
SharedPlace locate_shared(const Warp& warp, std::uint64_t address);
/// Lane's value of a slot of 4 or 8 bytes.
std::uint64_t read_slot(const Warp& warp, std::int32_t slot, int lane, int bytes);
/// The address that [a + immediate] is.
std::uint64_t shared_address(const Warp& warp, const Instruction& in, int lane);

/// Whether races in the block's shared memory are tracked warp by warp.
inline bool tracks_warps(const Block& block) { return !block.proxy_fences.empty() && block.cluster.empty(); }

/// The object at an offset, or null.
Mbarrier* find_mbarrier(Block& block, std::uint32_t offset);
/// The object that lane `lane` of `warp` means; says why there is none, and gives null.
Mbarrier* usable_mbarrier(Warp& warp, const Instruction& in, int lane, const SharedPlace& place);

/// Tells an mbarrier that `bytes` of a copy have arrived, which `warp` issued at `stamp` (0: no order).
void complete_bytes(Warp& warp, std::uint32_t at, Block& block, Mbarrier& barrier, std::uint32_t bytes,
                    std::uint32_t stamp);
/// The arrivals that cp.async.mbarrier.arrive makes once its copies are done.
void arrive_after_copies(Warp& warp, const Instruction& in, Block& block, Mbarrier& barrier, std::uint32_t lanes);
/// The phase waits for `count` arrivals more.
void expect_arrivals(Block& block, Mbarrier& barrier, std::uint32_t count);
/// Whether anybody waits at this object.
bool is_awaited(const Block& block, const Mbarrier& barrier);

/// For the message of a deadlock.
std::string mbarrier_state(Block& block, const Group& group);
/// Ends all waits at mbarriers without success; false where there are none.
bool expire_waits(std::span<Block* const> blocks);

void register_mbarriers(HandlerRegistry& registry);

}  // namespace gpusim
