// cp.async: copies from global to shared memory that the program waits for.
#pragma once

#include "gpusim/handlers.h"

namespace gpusim {

/// Those that wait. The copies themselves are handled by each instruction set.
void register_async_copies(HandlerRegistry& registry);

/// Issues a copy, lane by lane, with complaints about what is wrong with it.
void copy_async(Warp& warp, const Instruction& in);
/// Leaves a copy to its wait: to[l] from from[l], kBytes of each lane in `mask`, which are in one commit group.
void postpone_copy(Warp& warp, std::uint32_t mask, int bytes, const std::uint32_t* to, const std::uint64_t* from);

}  // namespace gpusim
