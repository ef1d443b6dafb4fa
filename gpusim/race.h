// Races: within a block's shared memory between barriers, and in global memory between the blocks of a launch.
#pragma once

#include "gpusim/machine.h"

namespace gpusim {

/// What is known of a cell of global memory, Program::global_cell_bytes wide. Every block of every launch has a number
/// of its own, so that what earlier launches left needs no clearing: numbers below GlobalOrder::base are nobody.
struct GlobalCell {
  std::uint32_t writer = 0;    ///< the top bit: by an ordered access
  std::uint32_t reader = 0;    ///< GlobalOrder::base: several of this launch
  std::uint16_t write_at = 0;  ///< instruction, kFarInstruction: further on
  std::uint16_t read_at = 0;
  std::uint16_t write_epoch = 0;  ///< fences that the writer's block had done by then
  std::uint16_t read_epoch = 0;
};
inline constexpr std::uint16_t kFarInstruction = 0xffff;

/// Releases and acquisitions of the blocks of a launch, by a common clock. What a block did before a fence
/// (__threadfence) is published by its next ordered write: an atomic, or a store that is volatile, relaxed or release.
/// A release is a fence itself. An ordered read, or an atomic, acquires; the fence that belongs behind it is not asked
/// for, as the block's barrier mostly stands there.
struct GlobalOrder {
  std::uint32_t base = 0;  ///< block `linear` of the launch is number base + 1 + linear
  std::uint64_t clock = 0;
  std::vector<std::uint32_t> epochs;                  ///< of each block: its fences
  std::vector<std::vector<std::uint64_t>> published;  ///< of each block, by epoch: when it was published
  std::vector<std::uint64_t> acquired;                ///< of each block: the time of its last acquisition
};

/// How the 32 offsets of a logged access are written down.
enum SharedForm : std::uint32_t {
  kScattered = 0,
  kHalves = 1,      ///< the first offset of each half warp; its lanes are at one place ...
  kFirstSteps = 2,  ///< ... or side by side
  kSecondSteps = 4,
};

/// An access in SharedLog's words.
struct LoggedAccess {
  std::uint32_t at = 0;  ///< instruction
  std::uint32_t stamp = 0;
  std::uint32_t mask = 0;
  std::uint8_t warp = 0;
  std::uint8_t access = 0;
  std::uint8_t bytes = 0;
  std::uint8_t form = 0;
};
static_assert(sizeof(LoggedAccess) == SharedLog::kHeader * sizeof(std::uint32_t));

/// Tells the cells what was logged.
void replay_log(Block& block);

/// A new block begins: what is known of another before it does not matter.
void start_race_check(Block& block, const Program& program);

/// Offsets in shared memory; the access follows.
void check_shared_race(Warp& warp, const Instruction& in, const Addresses& offsets, int bytes, Access access);
/// Host addresses.
void check_global_race(Warp& warp, const Instruction& in, const Addresses& addresses, int bytes, Access access);

/// What an asynchronous reader of shared memory looks for: ordinary writes that no fence.proxy.async has followed.
void check_proxy_fence(Warp& warp, const Instruction& in, std::uint32_t lanes, std::uint32_t offset,
                       std::uint32_t bytes);
/// fence.proxy.async: the writes that are ordered before it are there for asynchronous readers.
void fence_proxy(Warp& warp);
/// Whether shared memory that a copy or product reads, issued at `stamp` by the instruction `copy_at`, was written
/// since (`by_itself`: by this warp); told at the writing instruction.
bool check_overwritten(Warp& warp, std::uint32_t copy_at, std::uint32_t stamp, std::uint32_t offset,
                       std::uint32_t bytes, bool by_itself = false);
/// __threadfence, and wider.
void order_globally(Warp& warp);

/// A block barrier has been completed, or (`warp`) a warp-level one: what came before is ordered.
void order_block(Block& block, bool named);
void order_warp(Warp& warp);

}  // namespace gpusim
