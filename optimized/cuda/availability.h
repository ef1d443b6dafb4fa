// Whether this machine can run the CUDA kernels, and in words why not.
#pragma once

#include <cuda_runtime_api.h>

#include <optional>
#include <string>

namespace dsv2::cuda {

/// What the CUDA runtime says of the machine. Versions are as the runtime has them: 13000 is CUDA 13.0.
struct RuntimeAnswer {
  cudaError_t count_error = cudaSuccess;  ///< of cudaGetDeviceCount
  int count = 0;
  int driver_version = 0;  ///< 0: there is no driver
  int runtime_version = 0;
  std::string device;                      ///< its name
  int major = 0, minor = 0;                ///< its compute capability
  cudaError_t kernel_error = cudaSuccess;  ///< of asking for a kernel of ours
};

RuntimeAnswer ask_runtime();
/// Whether the device has an image of this build's kernels (argmax.cu asks for its own).
cudaError_t kernel_image();

/// One line; nullopt where the kernels run. `built_for` is what this build has: "sm_80 and PTX of compute_80".
std::optional<std::string> why_unavailable(const RuntimeAnswer& answer, const std::string& built_for);

}  // namespace dsv2::cuda
