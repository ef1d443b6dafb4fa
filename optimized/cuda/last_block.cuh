// The last of several blocks to finish does what needs all of them.
#pragma once

namespace dsv2::cuda {

/// True in the threads of the block that is the last of `blocks` to come here; what the others wrote before is visible
/// to it. `arrived` is 0 before the first one, and again after the last. Ends with a barrier.
__device__ inline bool is_last_block(int* arrived, unsigned blocks) {
  __shared__ bool last;
  __threadfence();  // what this thread wrote comes before the block's arrival
  __syncthreads();  // all threads have written
  if (threadIdx.x == 0) {
    last = atomicAdd(arrived, 1) + 1 == static_cast<int>(blocks);
    if (last) *arrived = 0;
  }
  __syncthreads();  // the answer is there
  __threadfence();  // what is read next is what the others wrote
  return last;
}

}  // namespace dsv2::cuda
