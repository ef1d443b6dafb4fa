// The smallest whole program: three vectors, one kernel, a tail that does not fill its block.
#include <vector>

#include "check.h"

__global__ void add(const float* a, const float* b, float* sum, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) sum[i] = a[i] + b[i];
}

int main(int argc, char** argv) {
  const int n = 1000;
  std::vector<float> a(n), b(n), sum(n);
  for (int i = 0; i < n; ++i) {
    a[i] = static_cast<float>(i);
    b[i] = 0.5f * static_cast<float>(i);
  }
  float *device_a, *device_b, *device_sum;
  SUCCEED(cudaMalloc(&device_a, n * sizeof(float)));
  SUCCEED(cudaMalloc(&device_b, n * sizeof(float)));
  SUCCEED(cudaMalloc(&device_sum, n * sizeof(float)));
  SUCCEED(cudaMemcpy(device_a, a.data(), n * sizeof(float), cudaMemcpyHostToDevice));
  SUCCEED(cudaMemcpy(device_b, b.data(), n * sizeof(float), cudaMemcpyHostToDevice));
  add<<<(n + 255) / 256, 256>>>(device_a, device_b, device_sum, n);
  SUCCEED(cudaGetLastError());
  SUCCEED(cudaMemcpy(sum.data(), device_sum, n * sizeof(float), cudaMemcpyDeviceToHost));
  for (int i = 0; i < n; ++i) REQUIRE(sum[i] == 1.5f * static_cast<float>(i));
  SUCCEED(cudaFree(device_a));
  SUCCEED(cudaFree(device_b));
  SUCCEED(cudaFree(device_sum));
  std::printf("%d sums, %d arguments\n", n, argc - 1);
  for (int i = 1; i < argc; ++i) std::printf("argument %s\n", argv[i]);
  return argc > 2 ? 7 : 0;  // a code of the program's own
}
