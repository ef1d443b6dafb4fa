// Calls that are not inlined, and what threads allocate: on their stacks, and from the device's heap.
#pragma once

#include "gpusim/handlers.h"

namespace gpusim {

/// The same for every instruction set.
void register_subroutines(HandlerRegistry& registry);

}  // namespace gpusim
