// What a program may ask gpusim about itself while it runs.
#pragma once

#include <string>

namespace gpusim {

/// The report so far, as GPUSIM_JSON has it at the exit but for the counts by line: of all launches that have run.
/// Waits for nothing.
std::string report_so_far();

}  // namespace gpusim
