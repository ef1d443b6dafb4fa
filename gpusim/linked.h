// Whether a program is one that the simulator runs: told from its file, without running it.
#pragma once

#include <string>

namespace gpusim {

/// The section that marks what is linked with the simulator.
inline constexpr const char* kMarkerSection = ".gpusim";

/// Returns when `path` is an executable file that is linked with gpusim: it holds the marker, or it asks for a shared
/// library of the name libgpusim*. Throws dsv2::Error that says what it is instead.
void require_linked_program(const std::string& path);

}  // namespace gpusim
