// Two streams and an event between them. WAIT_EVENT and WAIT_HOST are the two synchronisations that it needs; a test
// leaves one out and expects to be told.
#include <cstring>

#include "check.h"

#ifndef WAIT_EVENT
#define WAIT_EVENT 1
#endif
#ifndef WAIT_HOST
#define WAIT_HOST 1
#endif
#ifndef KEEP_SOURCE
#define KEEP_SOURCE 1
#endif

__global__ void twice(const float* from, float* to, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) to[i] = 2 * from[i];
}

int main() {
  const int n = 4096;
  const std::size_t bytes = n * sizeof(float);
  float *host, *back, *a, *b;
  SUCCEED(cudaMallocHost(&host, bytes));
  SUCCEED(cudaMallocHost(&back, bytes));
  SUCCEED(cudaMalloc(&a, bytes));
  SUCCEED(cudaMalloc(&b, bytes));
  for (int i = 0; i < n; ++i) host[i] = static_cast<float>(i);
  std::memset(back, 0, bytes);

  cudaStream_t copies, kernels;
  cudaEvent_t copied, done;
  SUCCEED(cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking));
  SUCCEED(cudaStreamCreateWithFlags(&kernels, cudaStreamNonBlocking));
  SUCCEED(cudaEventCreate(&copied));
  SUCCEED(cudaEventCreate(&done));
  SUCCEED(cudaMemsetAsync(a, 0, bytes, copies));
  SUCCEED(cudaMemcpyAsync(a, host, bytes, cudaMemcpyHostToDevice, copies));
#if !KEEP_SOURCE
  host[1] = -1;
#endif
  SUCCEED(cudaEventRecord(copied, copies));
#if WAIT_EVENT
  SUCCEED(cudaStreamWaitEvent(kernels, copied, 0));
#endif
  twice<<<n / 256, 256, 0, kernels>>>(a, b, n);
  SUCCEED(cudaGetLastError());
  SUCCEED(cudaMemcpyAsync(back, b, bytes, cudaMemcpyDeviceToHost, kernels));
  SUCCEED(cudaEventRecord(done, kernels));
#if WAIT_HOST
  SUCCEED(cudaEventSynchronize(done));
#if WAIT_EVENT
  float ms = -1;
  SUCCEED(cudaEventElapsedTime(&ms, copied, done));
  REQUIRE(ms >= 0);
#endif
#endif
  int wrong = 0;
  for (int i = 0; i < n; ++i) wrong += back[i] != 2 * static_cast<float>(i);
  std::printf("%d wrong\n", wrong);

  SUCCEED(cudaDeviceSynchronize());
  SUCCEED(cudaStreamQuery(kernels));
  SUCCEED(cudaEventDestroy(copied));
  SUCCEED(cudaEventDestroy(done));
  SUCCEED(cudaStreamDestroy(copies));
  SUCCEED(cudaStreamDestroy(kernels));
  SUCCEED(cudaFreeHost(host));
  SUCCEED(cudaFreeHost(back));
  SUCCEED(cudaFree(a));
  SUCCEED(cudaFree(b));
  return wrong == 0 ? 0 : 5;
}
