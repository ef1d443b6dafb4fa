// The sets of bad input (golden/bad_input) and broken files (golden/bad_files): what must be refused, and how.
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "harness/report.h"
#include "model/decoder.h"

namespace dsv2::harness {

/// Runs a folder with an expectations.json of format dsv2-golden-errors/1 (calls, on every backend given) or
/// dsv2-golden-files/1 (checkpoints, loaded from a temporary copy of the good base). One record per entry (and backend)
/// whose name `wanted` accepts. Throws Error for a set of another format.
std::vector<Record> run_error_set(const std::filesystem::path& folder, std::span<const Backend* const> backends,
                                  const Options& options, const std::function<bool(std::string_view)>& wanted);

}  // namespace dsv2::harness
