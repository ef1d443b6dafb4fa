// Calls and launches that CUDA refuses, each with the error that it gives.
#include "check.h"

__global__ void plain(int* out) { *out = 1; }
__global__ void __launch_bounds__(128) bounded(int* out) { *out = 1; }
__global__ void wants_shared(int* out) {
  extern __shared__ int scratch[];
  scratch[threadIdx.x] = 1;
  *out = scratch[threadIdx.x];
}
__device__ int variable;

cudaError_t launched() { return cudaPeekAtLastError(); }

int main() {
  int* out;
  int host[4] = {};
  SUCCEED(cudaMalloc(&out, sizeof host));
  plain<<<1, 1025>>>(out);
  REFUSE(launched(), cudaErrorInvalidConfiguration);
  plain<<<1, dim3(1, 1, 65)>>>(out);
  REFUSE(launched(), cudaErrorInvalidConfiguration);
  plain<<<0, 32>>>(out);
  REFUSE(launched(), cudaErrorInvalidConfiguration);
  plain<<<dim3(1, 65536), 32>>>(out);
  REFUSE(launched(), cudaErrorInvalidConfiguration);
  bounded<<<1, 256>>>(out);
  REFUSE(launched(), cudaErrorInvalidValue);

  wants_shared<<<1, 32, 64 * 1024>>>(out);  // more than 48 KiB, not asked for
  REFUSE(launched(), cudaErrorInvalidValue);
  REFUSE(cudaFuncSetAttribute(wants_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20),
         cudaErrorInvalidValue);
  SUCCEED(cudaFuncSetAttribute(wants_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024));
  wants_shared<<<1, 32, 64 * 1024>>>(out);
  SUCCEED(cudaDeviceSynchronize());

  void* arguments[] = {&out};
  REFUSE(cudaLaunchCooperativeKernel(plain, dim3(1 << 20), dim3(32), arguments, 0, nullptr),
         cudaErrorCooperativeLaunchTooLarge);
  REFUSE(cudaLaunchKernel(host, dim3(1), dim3(1), arguments, 0, nullptr), cudaErrorInvalidDeviceFunction);

  int* never = reinterpret_cast<int*>(0x1234);
  REFUSE(cudaMemcpy(host, out, sizeof host + 4, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  REFUSE(cudaMemcpy(host, out, sizeof host, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  REFUSE(cudaMemcpy(nullptr, out, sizeof host, cudaMemcpyDefault), cudaErrorInvalidValue);
  REFUSE(cudaMemset(never, 0, 4), cudaErrorInvalidValue);
  REFUSE(cudaMemcpyToSymbol(variable, host, 8), cudaErrorInvalidValue);
  REFUSE(cudaMemcpyToSymbol("variable", host, 4), cudaErrorInvalidSymbol);
  REFUSE(cudaMemcpy2D(out, 4, host, 8, 8, 1, cudaMemcpyHostToDevice), cudaErrorInvalidPitchValue);
  REFUSE(cudaFree(out + 1), cudaErrorInvalidValue);
  REFUSE(cudaFree(host), cudaErrorInvalidValue);
  REFUSE(cudaFreeHost(out), cudaErrorInvalidValue);
  void* huge;
  REFUSE(cudaMalloc(&huge, std::size_t{1} << 45), cudaErrorMemoryAllocation);
  REFUSE(cudaSetDevice(1), cudaErrorInvalidDevice);
  REFUSE(cudaEventQuery(reinterpret_cast<cudaEvent_t>(host)), cudaErrorInvalidResourceHandle);
  REFUSE(cudaHostUnregister(host), cudaErrorHostMemoryNotRegistered);
  SUCCEED(cudaFree(out));
  SUCCEED(cudaGetLastError());
  std::puts("refused");
}
