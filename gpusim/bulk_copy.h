// cp.async.bulk and its kind: copies that run beside the threads, told of to mbarriers or waited for by bulk groups.
#pragma once

#include "gpusim/handlers.h"
#include "gpusim/machine.h"

namespace gpusim {

/// Performs the copies under way to `block` that `barrier` is to be told of, in the order in which they were issued.
void perform_bulk_copies(Block& block, Mbarrier& barrier);

/// Lanes exit with stores under way: these are performed, with a warning, as their shared memory goes.
void abandon_bulk_stores(Warp& warp, std::uint32_t mask);

void register_bulk_copies(HandlerRegistry& registry);

}  // namespace gpusim
