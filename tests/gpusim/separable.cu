// Device code of two files: functions, variables, constants and inline functions that the one declares and the other
// defines, and private names that both have.
#include "separable.h"

#include "check.h"

static __device__ int offset = 100;                                  // the other file has one, too
static __device__ __noinline__ int twisted(int x) { return x ^ 1; }  // and this

__global__ void together(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = other_file(i) + offset + twisted(i) + shared_counter + factors[i % 2] + common(i) + operations[i % 2](i, 3);
}

int main() {
  const int threads = 32;
  int* device;
  SUCCEED(cudaMalloc(&device, threads * sizeof(int)));
  const int values[2] = {10, 20};
  SUCCEED(cudaMemcpyToSymbol(factors, values, sizeof values));
  int found[threads];
  together<<<1, threads>>>(device);
  SUCCEED(cudaMemcpy(found, device, sizeof found, cudaMemcpyDeviceToHost));
  for (int i = 0; i < threads; ++i) {
    const int other = (i + 7) * 3 + 2 * i;
    const int operation = i % 2 == 0 ? i + 3 : i * 3;
    REQUIRE(found[i] == other + 100 + (i ^ 1) + 5 + values[i % 2] + (i + 1000) + operation);
  }
  count<<<1, 1>>>();
  int counter = 0;
  SUCCEED(cudaMemcpyFromSymbol(&counter, shared_counter, sizeof counter));
  REQUIRE(counter == 6);
  SUCCEED(cudaFree(device));
  std::puts("linked");
}
