// From a program's instructions to the handlers of an instruction set.
#pragma once

#include <string_view>

#include "gpusim/machine.h"

namespace gpusim {

/// Turns instructions for which there is no handler into ones that say so when they are reached.
void refuse_unknown(Program& program);

/// The program's code with handlers for `isa` ("avx512", "avx2", "portable"; empty: the best that the host has).
/// `instrumented`: checks or counts of memory look on. Throws dsv2::Error when the host lacks the instruction set.
BoundProgram bind_handlers(const Program& program, std::string_view isa, bool instrumented);

}  // namespace gpusim
