// Variables of a program on the device: constant, global, managed; copies to and from symbols, with offsets.
#include "check.h"

__constant__ int factors[4] = {1, 2, 3, 4};
__device__ int total = 5;
__managed__ int shared_with_host = 7;

__global__ void use(int* managed) {
  for (const int factor : factors) total += factor * shared_with_host;
  managed[0] = total;
  shared_with_host += 1;
}

int main() {
  REQUIRE(shared_with_host == 7);
  shared_with_host = 2;
  const int middle[2] = {20, 30};
  SUCCEED(cudaMemcpyToSymbol(factors, middle, sizeof middle, sizeof(int)));
  int* managed;
  SUCCEED(cudaMallocManaged(&managed, sizeof(int)));
  managed[0] = -1;
  use<<<1, 1>>>(managed);
  SUCCEED(cudaDeviceSynchronize());
  REQUIRE(shared_with_host == 3);
  REQUIRE(managed[0] == 5 + 2 * (1 + 20 + 30 + 4));
  int read_back = 0;
  SUCCEED(cudaMemcpyFromSymbol(&read_back, total, sizeof(int)));
  REQUIRE(read_back == managed[0]);
  void* address;
  std::size_t bytes;
  SUCCEED(cudaGetSymbolAddress(&address, factors));
  SUCCEED(cudaGetSymbolSize(&bytes, factors));
  REQUIRE(bytes == sizeof factors);
  SUCCEED(cudaMemcpy(&read_back, static_cast<int*>(address) + 2, sizeof(int), cudaMemcpyDeviceToHost));
  REQUIRE(read_back == 30);

  cudaPointerAttributes attributes;
  SUCCEED(cudaPointerGetAttributes(&attributes, managed));
  REQUIRE(attributes.type == cudaMemoryTypeManaged && attributes.hostPointer == managed);
  SUCCEED(cudaPointerGetAttributes(&attributes, &read_back));
  REQUIRE(attributes.type == cudaMemoryTypeUnregistered);
  SUCCEED(cudaFree(managed));

  // A reset gives variables their first values again.
  SUCCEED(cudaDeviceReset());
  SUCCEED(cudaMemcpyFromSymbol(&read_back, total, sizeof(int)));
  REQUIRE(read_back == 5);
  std::puts("variables");
}
