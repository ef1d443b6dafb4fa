// cp.async: copies from global to shared memory that the program waits for.
#pragma once

#include "gpusim/handlers.h"

namespace gpusim {

void register_async_copies(HandlerRegistry& registry);

}  // namespace gpusim
