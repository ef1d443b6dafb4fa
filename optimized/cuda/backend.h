// The CUDA backend, as the library that is loaded on demand has it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "model/decoder.h"

namespace dsv2::cuda {

std::optional<std::string> unsupported(const Config& config, const Options& options);
std::unique_ptr<Decoder> create(const Config& config, std::shared_ptr<const Weights> weights, const Options& options);

}  // namespace dsv2::cuda

/// What the library exports: the backend's row, but for its name and description. Both sides are built from one tree.
extern "C" void dsv2_cuda_backend(dsv2::Backend* row);
