// What a program may ask gpusim about itself while it runs.
#pragma once

#include <string>
#include <vector>

namespace gpusim {

/// The report so far, as GPUSIM_JSON has it at the exit but for the counts by line: of all launches that have run.
/// Waits for nothing.
std::string report_so_far();

/// What was found (warnings not) that an earlier call has not told, one line each.
std::vector<std::string> new_findings();

}  // namespace gpusim
