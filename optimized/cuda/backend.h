// The CUDA backend, as the library that is loaded on demand has it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "model/decoder.h"

namespace dsv2::cuda {

std::optional<std::string> unsupported(const Config& config, const Options& options);
std::unique_ptr<Decoder> create(const Config& config, std::shared_ptr<const Weights> weights, const Options& options);

/// As Backend has them: of device memory.
std::int64_t copied_bytes(const Config& config, DType stored, const Options& options);
std::int64_t buffer_bytes(const Config& config, const Options& options, std::int64_t batch, std::int64_t tokens,
                          std::int64_t total);

}  // namespace dsv2::cuda

/// What the library exports: the backend's row, but for its name and description. Both sides are built from one tree.
extern "C" void dsv2_cuda_backend(dsv2::Backend* row);
/// In the simulated library alone: gpusim's report so far, as JSON.
extern "C" void dsv2_cuda_profile(std::string* json);
/// In the simulated library alone: what gpusim found since the last call.
extern "C" void dsv2_cuda_findings(std::vector<std::string>* lines);
