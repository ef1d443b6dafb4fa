// What is said of a machine that cannot run the CUDA kernels.
#include <gtest/gtest.h>

#include "optimized/cuda/availability.h"

namespace dsv2::cuda {

cudaError_t kernel_image() { return cudaSuccess; }  // the kernels are not linked

namespace {

constexpr const char* kBuiltFor = "machine code of sm_80 and PTX of compute_80";

/// A machine that runs everything.
RuntimeAnswer good() {
  return {.count_error = cudaSuccess,
          .count = 1,
          .driver_version = 13010,
          .runtime_version = 13000,
          .device = "NVIDIA H100",
          .major = 9,
          .minor = 0,
          .kernel_error = cudaSuccess};
}

std::string why(const RuntimeAnswer& answer) { return why_unavailable(answer, kBuiltFor).value_or("available"); }

TEST(CudaAvailability, NothingIsSaidWhereTheKernelsRun) { EXPECT_EQ(why(good()), "available"); }

TEST(CudaAvailability, NoDriverIsNoOldDriver) {
  RuntimeAnswer answer = good();
  answer.count_error = cudaErrorInsufficientDriver;
  answer.driver_version = 0;
  EXPECT_EQ(why(answer), "no CUDA driver on this machine; this build needs one of CUDA 13.0");
  answer.driver_version = 12040;
  EXPECT_EQ(why(answer), "the driver is too old: it is of CUDA 12.4, this build needs 13.0");
}

TEST(CudaAvailability, NoDevice) {
  RuntimeAnswer answer = good();
  answer.count_error = cudaErrorNoDevice;
  EXPECT_EQ(why(answer), "no CUDA device");
  answer.count_error = cudaSuccess;
  answer.count = 0;
  EXPECT_EQ(why(answer), "no CUDA device");
}

TEST(CudaAvailability, AnArchitectureThatTheBuildLacks) {
  RuntimeAnswer answer = good();
  answer.device = "Tesla V100";
  answer.major = 7;
  answer.kernel_error = cudaErrorNoKernelImageForDevice;
  EXPECT_EQ(
      why(answer),
      "Tesla V100 of compute capability 7.0 runs nothing of this build, which has machine code of sm_80 and PTX of "
      "compute_80; see DSV2_CUDA_ARCHITECTURES");
}

TEST(CudaAvailability, PtxThatTheDriverDoesNotKnow) {
  RuntimeAnswer answer = good();
  answer.driver_version = 13000;
  answer.kernel_error = cudaErrorUnsupportedPtxVersion;
  EXPECT_EQ(why(answer),
            "the driver of CUDA 13.0 is too old for the PTX of this build, and NVIDIA H100 of compute capability 9.0 "
            "needs it: there is machine code of sm_80 and PTX of compute_80");
}

TEST(CudaAvailability, AnyOtherErrorIsNamed) {
  RuntimeAnswer answer = good();
  answer.kernel_error = cudaErrorECCUncorrectable;
  EXPECT_NE(why(answer).find("cudaErrorECCUncorrectable"), std::string::npos) << why(answer);
  answer = good();
  answer.count_error = cudaErrorSystemNotReady;
  EXPECT_NE(why(answer).find("cudaErrorSystemNotReady"), std::string::npos) << why(answer);
}

}  // namespace
}  // namespace dsv2::cuda
