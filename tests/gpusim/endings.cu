// Kernels that do not end well, by argument: a loop without end, a trap, a failed assert.
#include <cassert>
#include <cstring>

#include "check.h"

__global__ void forever(volatile int* flag) {
  while (*flag == 0) {
  }
}
__global__ void trap() { asm volatile("trap;"); }
__global__ void claim(int value) { assert(value == 1); }

int main(int argc, char** argv) {
  const char* how = argc > 1 ? argv[1] : "";
  int* flag;
  SUCCEED(cudaMalloc(&flag, sizeof(int)));
  SUCCEED(cudaMemset(flag, 0, sizeof(int)));
  cudaError_t expected = cudaSuccess;
  if (std::strcmp(how, "forever") == 0) {
    forever<<<1, 32>>>(flag);
    expected = cudaErrorLaunchTimeout;
  } else if (std::strcmp(how, "trap") == 0) {
    trap<<<1, 1>>>();
    expected = cudaErrorLaunchFailure;
  } else if (std::strcmp(how, "assert") == 0) {
    claim<<<1, 1>>>(2);
    expected = cudaErrorAssert;
  }
  SUCCEED(cudaPeekAtLastError());
  const cudaError_t error = cudaDeviceSynchronize();
  std::printf("%s\n", cudaGetErrorName(error));
  REQUIRE(error == expected);
  SUCCEED(cudaDeviceReset());
}
