// Tokens by the expert that they chose, by one block of whole warps.
#pragma once

#include "optimized/cuda/kernels.h"
#include "optimized/cuda/load.cuh"

namespace dsv2::cuda {

/// Sum over the lanes before this one; `total` becomes that of all.
__device__ inline int exclusive_sum(int x, int& total) {
  const int lane = threadIdx.x % kWarp;
  int sum = x;
  for (int by = 1; by < kWarp; by *= 2) {
    const int other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(by));
    if (lane >= by) sum += other;
  }
  total = __shfl_sync(kAllLanes, sum, kWarp - 1);
  return sum - x;
}

/// A warp counts the choices of an expert, 32 at a time; one warp adds up; then each writes its expert's tokens. What
/// others wrote into topk_idx is visible to the whole block. `begins` is shared memory, [E].
__device__ inline void group_tokens(const ExpertGroupsParams& p, int* begins) {
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp,
            places = p.rows * p.top_k;
  const ExpertGroups& g = p.groups;
  for (int e = warp; e < p.experts; e += warps) {
    int count = 0;
    for (int i = lane; i - lane < places; i += kWarp)
      count += __popc(__ballot_sync(kAllLanes, i < places && p.topk_idx[i] == e));
    if (lane == 0) begins[e] = count;
  }
  __syncthreads();  // all have been counted
  if (warp == 0) {
    int begin = 0, touched = 0, tiles = 0;
    for (int first = 0; first < p.experts; first += kWarp) {
      const int e = first + lane, count = e < p.experts ? begins[e] : 0;
      const int its_tiles = (count + kTileRows - 1) / kTileRows;
      int all, all_touched, all_tiles;
      const int at = begin + exclusive_sum(count, all);
      const int touched_at = touched + exclusive_sum(count > 0 ? 1 : 0, all_touched);
      const int tile = tiles + exclusive_sum(its_tiles, all_tiles);
      if (e < p.experts) {
        begins[e] = g.begin[e] = at;
        if (count > 0) g.touched[touched_at] = e;
        for (int t = 0; t < its_tiles; ++t) {
          g.tiles[2 * (tile + t)] = e;
          g.tiles[2 * (tile + t) + 1] = at + t * kTileRows;
        }
      }
      begin += all, touched += all_touched, tiles += all_tiles;
    }
    if (lane == 0) g.begin[p.experts] = begin, g.counts[0] = touched, g.counts[1] = tiles;
  }
  __syncthreads();  // each expert's first place is known
  for (int e = warp; e < p.experts; e += warps) {
    int at = begins[e];
    for (int i = lane; i - lane < places; i += kWarp) {
      const bool mine = i < places && p.topk_idx[i] == e;
      const unsigned all = __ballot_sync(kAllLanes, mine);
      if (mine) {
        const int place = at + __popc(all & ((1u << lane) - 1));
        g.tokens[place] = i / p.top_k;
        g.place[i] = place;
      }
      at += __popc(all);
    }
  }
}

}  // namespace dsv2::cuda
