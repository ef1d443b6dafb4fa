// The barriers and PTX wrappers of the toolkit's C++ library, as its documentation uses them.
#include <cuda/barrier>
#include <cuda/ptx>
#include <utility>

#include "check.h"

namespace ptx = cuda::ptx;
using Barrier = cuda::barrier<cuda::thread_scope_block>;

#pragma nv_diag_suppress static_var_with_dynamic_init

/// Adds one to 256 numbers a block: copied by memcpy_async with a barrier that counts its bytes, stored in bulk.
__global__ void add_one(int* data) {
  __shared__ alignas(16) int tile[256];
  __shared__ Barrier barrier;
  if (threadIdx.x == 0) {
    init(&barrier, blockDim.x);
    ptx::fence_proxy_async(ptx::space_shared);
  }
  __syncthreads();
  Barrier::arrival_token token;
  if (threadIdx.x == 0) {
    cuda::memcpy_async(tile, data + 256 * blockIdx.x, cuda::aligned_size_t<16>(sizeof tile), barrier);
    token = cuda::device::barrier_arrive_tx(barrier, 1, 0);
  } else {
    token = barrier.arrive();
  }
  barrier.wait(std::move(token));
  tile[threadIdx.x] += 1;
  ptx::fence_proxy_async(ptx::space_shared);
  __syncthreads();
  if (threadIdx.x != 0) return;
  ptx::cp_async_bulk(ptx::space_global, ptx::space_shared, data + 256 * blockIdx.x, tile, sizeof tile);
  ptx::cp_async_bulk_commit_group();
  ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>());
}

__global__ void reverse(const int* in, int* out) {
  __shared__ alignas(16) int tile[256];
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&barrier, 1);
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &barrier, sizeof tile);
    ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, tile, in, sizeof tile, &barrier);
  }
  __syncthreads();
  while (!ptx::mbarrier_try_wait_parity(&barrier, 0)) {
  }
  out[threadIdx.x] = tile[255 - threadIdx.x];
}

/// Numbers go round the block, a barrier at every turn.
__global__ void rotate(int* data, int turns) {
  __shared__ Barrier barrier;
  __shared__ int values[256];
  if (threadIdx.x == 0) init(&barrier, blockDim.x);
  __syncthreads();
  values[threadIdx.x] = data[threadIdx.x];
  for (int i = 0; i < turns; ++i) {
    barrier.arrive_and_wait();
    const int value = values[(threadIdx.x + 1) % 256];
    barrier.arrive_and_wait();
    values[threadIdx.x] = value;
  }
  data[threadIdx.x] = values[threadIdx.x];
}

int main() {
  int numbers[1024], results[256];
  for (int i = 0; i < 1024; ++i) numbers[i] = i * i;
  int *data, *out;
  SUCCEED(cudaMalloc(&data, sizeof numbers));
  SUCCEED(cudaMalloc(&out, sizeof results));
  SUCCEED(cudaMemcpy(data, numbers, sizeof numbers, cudaMemcpyHostToDevice));
  add_one<<<4, 256>>>(data);
  reverse<<<1, 256>>>(data, out);
  rotate<<<1, 256>>>(out, 5);
  SUCCEED(cudaMemcpy(results, out, sizeof results, cudaMemcpyDeviceToHost));
  SUCCEED(cudaMemcpy(numbers, data, sizeof numbers, cudaMemcpyDeviceToHost));
  for (int i = 0; i < 1024; ++i) REQUIRE(numbers[i] == i * i + 1);
  for (int i = 0; i < 256; ++i) REQUIRE(results[i] == numbers[255 - (i + 5) % 256]);
  SUCCEED(cudaFree(data));
  SUCCEED(cudaFree(out));
  std::puts("added, reversed, rotated");
}
