// A grid whose blocks wait for each other, as large as the occupancy calculator says that the device holds.
#include <cooperative_groups.h>

#include "check.h"

__global__ void __launch_bounds__(1024) count_twice(unsigned* counter, unsigned* seen) {
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  if (threadIdx.x == 0) atomicAdd(counter, 1);
  grid.sync();
  if (threadIdx.x == 0 && *static_cast<volatile unsigned*>(counter) == gridDim.x) atomicAdd(seen, 1);
}

int main() {
  cudaDeviceProp device;
  SUCCEED(cudaGetDeviceProperties(&device, 0));
  int resident = 0;
  SUCCEED(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, count_twice, 1024, 0));
  REQUIRE(resident >= 1);
  unsigned* counters;
  SUCCEED(cudaMalloc(&counters, 2 * sizeof(unsigned)));
  SUCCEED(cudaMemset(counters, 0, 2 * sizeof(unsigned)));
  unsigned* seen = counters + 1;
  void* arguments[] = {&counters, &seen};
  const unsigned blocks = 8;  // fewer than fit, to be quick
  SUCCEED(cudaLaunchCooperativeKernel(count_twice, dim3(blocks), dim3(64), arguments, 0, nullptr));
  unsigned result[2];
  SUCCEED(cudaMemcpy(result, counters, sizeof result, cudaMemcpyDeviceToHost));
  REQUIRE(result[0] == blocks && result[1] == blocks);
  const unsigned most = static_cast<unsigned>(resident * device.multiProcessorCount);
  REQUIRE(cudaLaunchCooperativeKernel(count_twice, dim3(most + 1), dim3(1024), arguments, 0, nullptr) ==
          cudaErrorCooperativeLaunchTooLarge);
  SUCCEED(cudaGetLastError() == cudaErrorCooperativeLaunchTooLarge ? cudaSuccess : cudaErrorUnknown);
  SUCCEED(cudaFree(counters));
  std::puts("together");
}
