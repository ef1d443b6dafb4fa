// What the host loads: the same objects are linked with the CUDA runtime (backend cuda) and with gpusim (cuda-sim).
#include "optimized/cuda/availability.h"
#include "optimized/cuda/backend.h"
#include "optimized/cuda/device.h"
#include "optimized/cuda/ops.h"

namespace dsv2::cuda {
namespace {

std::optional<std::string> unavailable() {
  static const std::optional<std::string> why = why_unavailable(ask_runtime(), DSV2_CUDA_BUILT_FOR);
  return why;
}

std::int64_t free_device_bytes() {
  std::size_t free = 0, all = 0;
  DSV2_CUDA(cudaMemGetInfo(&free, &all));
  return static_cast<std::int64_t>(free);
}

}  // namespace
}  // namespace dsv2::cuda

extern "C" void dsv2_cuda_backend(dsv2::Backend* row) {
  row->unavailable = dsv2::cuda::unavailable;
  row->unsupported = dsv2::cuda::unsupported;
  row->create = dsv2::cuda::create;
  row->ops = dsv2::cuda::ops;
  row->copied_bytes = dsv2::cuda::copied_bytes;
  row->buffer_bytes = dsv2::cuda::buffer_bytes;
  row->free_device_bytes = dsv2::cuda::free_device_bytes;
}
