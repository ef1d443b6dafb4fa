// For tests of the gate: a decoder with other kernels than its own.
#pragma once

#include <memory>

#include "model/decoder.h"
#include "optimized/cpu/kernels.h"

namespace dsv2::cpu {

/// As Backend::create, but every op runs the given kernels. Decoders hold their table of kernels anyway, so a decoder
/// made by Backend::create pays nothing for this.
std::unique_ptr<Decoder> create_with_kernels(const Config& config, std::shared_ptr<const Weights> weights,
                                             const Options& options, const Kernels& kernels);

}  // namespace dsv2::cpu
