// Runs blocks: which warp, which of its lanes, where they meet again; barriers, exits, calls of the system.
#pragma once

#include <memory>
#include <span>

#include "gpusim/handlers.h"
#include "gpusim/machine.h"

namespace gpusim {

/// Control flow, barriers and the system's functions: the same for every instruction set.
void register_control(HandlerRegistry& registry);

/// Runs the inner handler for the lanes whose guard holds.
void run_guarded(Warp& warp, const Instruction& in);

/// Makes `block` ready to run as the launch's block number `linear`; its storage is reused.
void start_block(Machine& machine, Block& block, std::uint64_t linear);

/// Runs blocks that are resident together to their end, or until the launch stops.
void run_blocks(Machine& machine, std::span<Block* const> blocks);

/// Whether the lanes that `in`, a warp-level sync, names in `e` are all here. Where they are not, the running group
/// waits for them (false), or, if they cannot come, a finding is recorded and it goes on.
bool lanes_gathered(Warp& warp, const Instruction& in);

/// Performs the asynchronous copies of the lanes in `mask` that have been committed, but for the newest `keep` groups.
void finish_copies(Warp& warp, std::uint32_t mask, std::uint32_t keep, bool committed_only);
/// The same for copies of these lanes up to number `sequence` of the warp.
void finish_copies_until(Warp& warp, std::uint32_t mask, std::uint32_t sequence);

/// Takes the lanes of `group` out of the running group, to wait as it says.
void stop_lanes(Warp& warp, const Group& group);

/// Runs the handler of an instruction that may touch registers of a matrix product under way; says so where it does.
void run_watched(Warp& warp, const Instruction& in);

}  // namespace gpusim
