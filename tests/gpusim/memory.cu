// Pitched rows, copies of rectangles, registered and pinned host memory, what is free.
#include <cstring>
#include <vector>

#include "check.h"

__global__ void negate(float* rows, std::size_t pitch, int width) {
  float* const row = reinterpret_cast<float*>(reinterpret_cast<char*>(rows) + blockIdx.x * pitch);
  for (int i = threadIdx.x; i < width; i += blockDim.x) row[i] = -row[i];
}

__global__ void set(int* pinned) { *pinned = 42; }

int main() {
  std::size_t free_before, free_now, total;
  SUCCEED(cudaMemGetInfo(&free_before, &total));
  const int width = 100, height = 7;
  float* rows;
  std::size_t pitch;
  SUCCEED(cudaMallocPitch(&rows, &pitch, width * sizeof(float), height));
  REQUIRE(pitch >= width * sizeof(float) && pitch % 256 == 0);
  SUCCEED(cudaMemGetInfo(&free_now, &total));
  REQUIRE(free_before - free_now == pitch * height);

  std::vector<float> host(width * height);
  for (int i = 0; i < width * height; ++i) host[i] = static_cast<float>(i);
  SUCCEED(cudaMemcpy2D(rows, pitch, host.data(), width * sizeof(float), width * sizeof(float), height,
                       cudaMemcpyHostToDevice));
  negate<<<height, 32>>>(rows, pitch, width);
  std::vector<float> back(width * height, 0);
  SUCCEED(cudaMemcpy2D(back.data(), width * sizeof(float), rows, pitch, width * sizeof(float), height,
                       cudaMemcpyDeviceToHost));
  for (int i = 0; i < width * height; ++i) REQUIRE(back[i] == -host[i]);
  SUCCEED(cudaMemset2D(rows, pitch, 0, width * sizeof(float), 2));
  SUCCEED(cudaMemcpy2D(back.data(), width * sizeof(float), rows, pitch, width * sizeof(float), height,
                       cudaMemcpyDeviceToHost));
  REQUIRE(back[2 * width - 1] == 0 && back[2 * width + 1] == -host[2 * width + 1]);
  SUCCEED(cudaFree(rows));

  int *pinned, *on_device;
  SUCCEED(cudaHostAlloc(&pinned, sizeof(int), cudaHostAllocMapped));
  SUCCEED(cudaHostGetDevicePointer(&on_device, pinned, 0));
  *pinned = 1;
  set<<<1, 1>>>(on_device);
  SUCCEED(cudaDeviceSynchronize());
  REQUIRE(*pinned == 42);
  cudaPointerAttributes attributes;
  SUCCEED(cudaPointerGetAttributes(&attributes, pinned));
  REQUIRE(attributes.type == cudaMemoryTypeHost);
  SUCCEED(cudaFreeHost(pinned));

  // Registered memory takes part in asynchronous copies.
  int* device;
  SUCCEED(cudaMalloc(&device, 400));
  std::vector<int> registered(100, 5);
  SUCCEED(cudaHostRegister(registered.data(), 400, cudaHostRegisterDefault));
  cudaStream_t stream;
  SUCCEED(cudaStreamCreate(&stream));
  SUCCEED(cudaMemcpyAsync(device, registered.data(), 400, cudaMemcpyHostToDevice, stream));
  SUCCEED(cudaStreamSynchronize(stream));
  std::memset(registered.data(), 0, 400);
  SUCCEED(cudaMemcpyAsync(registered.data(), device, 400, cudaMemcpyDeviceToHost, stream));
  SUCCEED(cudaStreamSynchronize(stream));
  REQUIRE(registered[99] == 5);
  SUCCEED(cudaHostUnregister(registered.data()));
  SUCCEED(cudaStreamDestroy(stream));
  SUCCEED(cudaFree(device));
  SUCCEED(cudaMemGetInfo(&free_now, &total));
  REQUIRE(free_now == free_before);
  std::puts("memory");
}
