#include "optimized/cuda/availability.h"

#include "model/error.h"

namespace dsv2::cuda {
namespace {

std::string version(int of) { return concat(of / 1000, '.', of % 1000 / 10); }

std::string named(cudaError_t error) { return concat(cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"); }

}  // namespace

RuntimeAnswer ask_runtime() {
  RuntimeAnswer answer;
  answer.count_error = cudaGetDeviceCount(&answer.count);
  cudaDriverGetVersion(&answer.driver_version);
  cudaRuntimeGetVersion(&answer.runtime_version);
  if (answer.count_error == cudaSuccess && answer.count > 0) {
    cudaDeviceProp properties{};
    answer.kernel_error = cudaGetDeviceProperties(&properties, 0);
    answer.device = properties.name;
    answer.major = properties.major, answer.minor = properties.minor;
    if (answer.kernel_error == cudaSuccess) answer.kernel_error = kernel_image();
  }
  cudaGetLastError();  // none of it is an error of what comes next
  return answer;
}

std::optional<std::string> why_unavailable(const RuntimeAnswer& a, const std::string& built_for) {
  if (a.count_error == cudaErrorInsufficientDriver && a.driver_version == 0)
    return concat("no CUDA driver on this machine; this build needs one of CUDA ", version(a.runtime_version));
  if (a.count_error == cudaErrorInsufficientDriver)
    return concat("the driver is too old: it is of CUDA ", version(a.driver_version), ", this build needs ",
                  version(a.runtime_version));
  if (a.count_error == cudaErrorNoDevice || (a.count_error == cudaSuccess && a.count == 0)) return "no CUDA device";
  if (a.count_error != cudaSuccess) return named(a.count_error);
  switch (a.kernel_error) {
    case cudaSuccess:
      return std::nullopt;
    case cudaErrorUnsupportedPtxVersion:  // no machine code for the device, and a driver that is older than the PTX
      return concat("the driver of CUDA ", version(a.driver_version), " is too old for the PTX of this build, and ",
                    a.device, " of compute capability ", a.major, '.', a.minor, " needs it: there is ", built_for);
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      return concat(a.device, " of compute capability ", a.major, '.', a.minor,
                    " runs nothing of this build, which has ", built_for, "; see DSV2_CUDA_ARCHITECTURES");
    default:
      return concat(a.device, ": ", named(a.kernel_error));
  }
}

}  // namespace dsv2::cuda
