// Each op of model/op.h alone, on the kernels.
#pragma once

#include <span>

#include "model/op.h"

namespace dsv2::cuda {

std::span<const OpKernel> ops();

}  // namespace dsv2::cuda
