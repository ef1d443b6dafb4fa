// The CPU backend as a row of the backend table.
#pragma once

#include <span>
#include <string_view>

#include "model/decoder.h"
#include "model/op.h"

namespace dsv2::cpu {

/// Options::dtype f32 multiplies stored weights (f32, bf16; f16 widened once) exactly as they are. bf16 additionally
/// lets matrices stored in bf16 meet rows rounded to bf16 where the machine has instructions for that. int8 and int4
/// matrices meet few rows in 15-bit integers, many rows widened, as bf16 or f32. Norms, softmax, gate and all sums stay
/// f32. kv_dtype f32, bf16 or int8. A result does not depend on threads; in f32 neither on other sequences of the
/// batch.
Backend backend();

/// Every op of model/op.h on the kernels of options.isa, with options.threads threads.
std::span<const OpKernel> ops();

/// An instruction set that kernels are built for.
struct IsaInfo {
  std::string_view name;  ///< as in Options::isa
  bool runs_here;
};
/// From the plainest to the best.
std::span<const IsaInfo> isas();

}  // namespace dsv2::cpu
