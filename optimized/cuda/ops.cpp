#include "optimized/cuda/ops.h"
namespace dsv2::cuda {
std::span<const OpKernel> ops() { return {}; }
}  // namespace dsv2::cuda
