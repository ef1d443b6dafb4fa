// A kernel that writes memory which was freed; then the device is broken until it is reset.
#include "check.h"

__global__ void write(int* out) { out[threadIdx.x] = 1; }

int main() {
  int *out, *other;
  SUCCEED(cudaMalloc(&out, 128));
  SUCCEED(cudaMalloc(&other, 128));
  SUCCEED(cudaFree(out));
  write<<<1, 32>>>(out);
  SUCCEED(cudaGetLastError());
  REQUIRE(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
  REQUIRE(cudaMemset(other, 0, 128) == cudaErrorIllegalAddress);
  REQUIRE(cudaGetLastError() == cudaErrorIllegalAddress);
  REQUIRE(cudaGetLastError() == cudaErrorIllegalAddress);
  SUCCEED(cudaDeviceReset());
  SUCCEED(cudaMalloc(&other, 128));
  SUCCEED(cudaFree(other));
  std::puts("broken and reset");
}
