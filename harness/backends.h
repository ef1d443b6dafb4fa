// The one table of backends.
#pragma once

#include <span>
#include <string_view>

#include "model/decoder.h"

namespace dsv2::harness {

/// reference, cpu, ...: in the order in which reports list them.
std::span<const Backend> backends();
/// Throws Error listing the known names.
const Backend& find_backend(std::string_view name);

}  // namespace dsv2::harness
