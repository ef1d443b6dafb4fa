// For tests of the gate: a decoder, or one op, with other kernels than its own.
#pragma once

#include <functional>
#include <memory>

#include "model/decoder.h"
#include "model/op.h"
#include "optimized/cpu/kernels.h"

namespace dsv2::cpu {

/// As Backend::create, but every op runs the given kernels. Decoders hold their table of kernels anyway, so a decoder
/// made by Backend::create pays nothing for this.
std::unique_ptr<Decoder> create_with_kernels(const Config& config, std::shared_ptr<const Weights> weights,
                                             const Options& options, const Kernels& kernels);

/// As OpKernel::prepare, on the given kernels.
std::function<void()> prepare_with_kernels(const OpProblem& problem, const Options& options, OpMemory& memory,
                                           const Kernels& kernels);

}  // namespace dsv2::cpu
