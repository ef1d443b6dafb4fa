// Which build this is, for `dsv2 --version` and for reports.
#pragma once

#include <string>
#include <string_view>

namespace dsv2::harness {

/// "dsv2 0.1.0 (git abcdef1-dirty, g++ 12.2.0, Release)"
std::string version_line();

std::string_view version();        ///< of the project: "0.1.0"
std::string_view git_sha();        ///< of the checkout, as of the build: 40 hex digits; "unknown" without git
bool git_dirty();                  ///< tracked files differed from that commit; false where the commit is unknown
std::string_view compiler();       ///< "g++ 12.2.0"
std::string_view compile_flags();  ///< of every source file; single files may add an instruction set
std::string_view build_type();     ///< "Release", ...

}  // namespace dsv2::harness
