// What the host loads: the same objects are linked with the CUDA runtime (backend cuda) and with gpusim (cuda-sim).
#include <algorithm>

#include "optimized/cuda/backend.h"
#include "optimized/cuda/device.h"
#include "optimized/cuda/ops.h"

namespace dsv2::cuda {
namespace {

std::optional<std::string> unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string(cudaGetErrorString(error));
  if (count == 0) return "no device";
  return std::nullopt;
}

}  // namespace
}  // namespace dsv2::cuda

extern "C" void dsv2_cuda_backend(dsv2::Backend* row) {
  row->unavailable = dsv2::cuda::unavailable;
  row->unsupported = dsv2::cuda::unsupported;
  row->create = dsv2::cuda::create;
  row->ops = dsv2::cuda::ops;
}
