// cooperative_groups: tiles, coalesced and labelled groups, reductions and scans, the block, the grid, the cluster; and
// what they stand on: match, redux, elect, activemask, and a switch that jumps by a table.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>

#include <vector>

#include "check.h"

namespace cg = cooperative_groups;

template <int kTile>
__global__ void tiles(int* out) {
  const auto tile = cg::tiled_partition<kTile>(cg::this_thread_block());
  const int i = static_cast<int>(threadIdx.x);
  const int sum = cg::reduce(tile, i, cg::plus<int>());
  const int before = cg::exclusive_scan(tile, i);
  const int largest = cg::reduce(tile, i * 7 % 31, cg::greater<int>());
  out[i] = sum * 10000 + before * 10 + (tile.any(i % kTile == 1) ? 1 : 0) + (tile.shfl_xor(i, 1) == (i ^ 1) ? 2 : 0) +
           (tile.meta_group_rank() == threadIdx.x / kTile ? 4 : 0) + largest * 10000000;
}
int tile_reference(int i, int size) {
  const int first = i / size * size;
  int sum = 0, before = 0, largest = 0;
  for (int j = first; j < first + size; ++j) {
    sum += j;
    if (j < i) before += j;
    largest = largest < j * 7 % 31 ? j * 7 % 31 : largest;
  }
  return sum * 10000 + before * 10 + 1 + 2 + 4 + largest * 10000000;
}

__global__ void coalesced(int* out, unsigned* counter) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = -1;
  if (i % 3 == 0) {
    const cg::coalesced_group group = cg::coalesced_threads();
    unsigned base = 0;
    if (group.thread_rank() == 0) base = atomicAdd(counter, group.size());
    base = group.shfl(base, 0);
    out[i] = static_cast<int>(base + group.thread_rank());
  }
}

__global__ void labelled(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  const cg::coalesced_group active = cg::coalesced_threads();
  const auto group = cg::labeled_partition(active, i % 5);
  out[i] = cg::reduce(group, i, cg::plus<int>()) * 100 + static_cast<int>(group.size());
}

__global__ void warp_operations(unsigned* out) {
  const unsigned i = threadIdx.x;
  unsigned equal = 0;
  int all = 0;
  equal = __match_any_sync(0xffffffffu, i / 3);
  const unsigned same = __match_all_sync(0xffffffffu, 9ull << 40, &all);
  const unsigned sum = __reduce_add_sync(0xffffffffu, i);
  const int least = __reduce_min_sync(0xffffffffu, static_cast<int>(i) - 16);
  const unsigned bits = __reduce_or_sync(0xffffffffu, 1u << (i % 7));
  unsigned elected = 0;
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(elected));
  unsigned active = 0;
  if (i >= 20) active = __activemask();
  out[i] = (equal == (7u << (i / 3 * 3)) ? 1 : 0) + (all != 0 && same == 0xffffffffu ? 2 : 0) + (sum == 496 ? 4 : 0) +
           (least == -16 ? 8 : 0) + (bits == 0x7f ? 16 : 0) + (elected != 0 ? 32 : 0) +
           (active == 0xfff00000u ? 64 : 0);
}

__global__ void by_table(int* out, const int* which) {
  const int i = static_cast<int>(threadIdx.x);
  int x = i;
  switch (which[i]) {
    case 0:
      x = x * 3 + 1;
      break;
    case 1:
      x = x ^ 85;
      break;
    case 2:
      x = x << 3;
      break;
    case 3:
      x = -x;
      break;
    case 4:
      x = x * x;
      break;
    case 5:
      x = x / 3;
      break;
    case 6:
      x = x % 5;
      break;
    case 7:
      x = x + 1000;
      break;
    default:
      x = 7;
  }
  out[i] = x;
}
int table_reference(int x, int which) {
  const int results[] = {x * 3 + 1, x ^ 85, x << 3, -x, x * x, x / 3, x % 5, x + 1000};
  return which < 8 ? results[which] : 7;
}

__global__ void whole_grid(int* data, int* out) {
  const cg::grid_group grid = cg::this_grid();
  const auto i = static_cast<int>(grid.thread_rank());
  data[i] = i;
  grid.sync();
  out[i] = data[static_cast<int>(grid.size()) - 1 - i];
  const cg::thread_block block = cg::this_thread_block();
  block.sync();
}

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)
__global__ void __cluster_dims__(4) clusters(int* out) {
  __shared__ int mine[32];
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank();
  mine[threadIdx.x] = static_cast<int>(blockIdx.x * 100 + threadIdx.x);
  cluster.sync();
  const int* const next = cluster.map_shared_rank(mine, (rank + 1) % cluster.num_blocks());
  out[blockIdx.x * 32 + threadIdx.x] = next[31 - threadIdx.x];
  cluster.sync();
}
#endif

int main(int count, char**) {
  const int threads = 128;
  int* device;
  SUCCEED(cudaMalloc(&device, 4 * threads * sizeof(int)));
  std::vector<int> out(4 * threads);
  const auto fetch = [&] { SUCCEED(cudaMemcpy(out.data(), device, out.size() * sizeof(int), cudaMemcpyDeviceToHost)); };
  SUCCEED(cudaMemset(device, 0, 4 * threads * sizeof(int)));
  tiles<8><<<1, threads>>>(device);
  fetch();
  for (int i = 0; i < threads; ++i) REQUIRE(out[i] == tile_reference(i, 8));
  tiles<32><<<1, threads>>>(device);
  fetch();
  for (int i = 0; i < threads; ++i) REQUIRE(out[i] == tile_reference(i, 32));

  unsigned* counter = reinterpret_cast<unsigned*>(device + threads);
  SUCCEED(cudaMemset(counter, 0, sizeof(unsigned)));
  coalesced<<<1, threads>>>(device, counter);
  fetch();
  std::vector<int> seen(threads, 0);
  for (int i = 0; i < threads; ++i) {
    REQUIRE((out[i] >= 0) == (i % 3 == 0));
    if (out[i] >= 0) ++seen[out[i]];
  }
  for (int i = 0; i < threads; ++i) REQUIRE(seen[i] == (i < 43 ? 1 : 0));

  labelled<<<1, 32>>>(device);
  fetch();
  for (int i = 0; i < 32; ++i) {
    int sum = 0, size = 0;
    for (int j = i % 5; j < 32; j += 5) sum += j, ++size;
    REQUIRE(out[i] == sum * 100 + size);
  }

  warp_operations<<<1, 32>>>(reinterpret_cast<unsigned*>(device));
  fetch();
  for (int i = 0; i < 32; ++i) REQUIRE(out[i] == 1 + 2 + 4 + 8 + 16 + (i == 0 ? 32 : 0) + (i >= 20 ? 64 : 0));

  std::vector<int> which(threads);
  for (int i = 0; i < threads; ++i) which[i] = i * 5 % 9;
  SUCCEED(cudaMemcpy(device + threads, which.data(), threads * sizeof(int), cudaMemcpyHostToDevice));
  by_table<<<1, threads>>>(device, device + threads);
  fetch();
  for (int i = 0; i < threads; ++i) REQUIRE(out[i] == table_reference(i, which[i]));

  int* data = device + 2 * threads;
  void* arguments[] = {&data, &device};
  SUCCEED(cudaLaunchCooperativeKernel(whole_grid, dim3(4), dim3(32), arguments, 0, nullptr));
  fetch();
  for (int i = 0; i < 128; ++i) REQUIRE(out[i] == 127 - i);

  if (count > 1) {
    clusters<<<8, 32>>>(device);
    fetch();
    for (int block = 0; block < 8; ++block)
      for (int i = 0; i < 32; ++i) REQUIRE(out[block * 32 + i] == (block / 4 * 4 + (block + 1) % 4) * 100 + 31 - i);
  }
  SUCCEED(cudaFree(device));
  std::puts("grouped");
}
