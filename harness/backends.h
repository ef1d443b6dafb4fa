// The one table of backends.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "model/decoder.h"
#include "model/error.h"

namespace dsv2::harness {

/// reference, cpu, ...: in the order in which reports list them.
std::span<const Backend> backends();
/// Throws Error listing the known names.
const Backend& find_backend(std::string_view name);

/// Why `backend` cannot run here: what the machine lacks, or that it broke before; nullopt: it can.
std::optional<std::string> why_not(const Backend& backend);
/// The same of this model: or what the backend lacks.
std::optional<std::string> why_not(const Backend& backend, const Config& config, const Options& options);

/// A known backend that this machine cannot run: `dsv2` exits with 4.
class Unavailable : public Error {
 public:
  using Error::Error;
};
/// Throws Unavailable, or Error where the backend lacks what is asked for.
void require_runs(const Backend& backend, const Config& config, const Options& options);

}  // namespace dsv2::harness
