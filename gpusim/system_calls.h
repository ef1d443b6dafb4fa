// What device code asks of the system: printf and the text of a failed assert.
#pragma once

#include <string>

#include "gpusim/machine.h"

namespace gpusim {

/// vprintf(format, arguments): writes to stdout, a lane after the other.
void print_lanes(Warp& warp, const Instruction& in);

/// __assertfail(message, file, line, function, size): what assert prints, without the thread.
std::string assertion_text(const Warp& warp, const Instruction& in);

}  // namespace gpusim
