// What a run of a program is asked for, read once from the environment: GPUSIM_DEVICE, GPUSIM_CHECKS, ...
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "gpusim/launch.h"

namespace gpusim {

struct Environment {
  std::string device = "h100";  ///< GPUSIM_DEVICE
  Settings settings;            ///< GPUSIM_CHECKS, _COUNTS, _THREADS, _BUDGET, _ISA
  bool lines = false;           ///< GPUSIM_LINES: counts per source line in the text report; turns counts on
  std::string json;             ///< GPUSIM_JSON: file of the JSON report, empty: none
  bool quiet = false;           ///< GPUSIM_QUIET: no text report at the exit, but for findings
};

/// The names that GPUSIM_CHECKS takes, and the member of Checks that each turns on.
struct CheckName {
  std::string_view name;
  bool Checks::*flag;
  std::string_view what;  ///< for help
};
std::span<const CheckName> check_names();

/// "all", "none", or a list with commas. Throws dsv2::Error that lists the names.
Checks parse_checks(std::string_view text);
/// Whether any check is on.
bool any(const Checks& checks);

/// `get` is std::getenv, or a test's. All checks are on by default, counts off. Throws dsv2::Error of one line that
/// names the variable, what it takes and what it holds.
Environment read_environment(const std::function<const char*(const char*)>& get);

}  // namespace gpusim
