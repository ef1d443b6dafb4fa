// Kernels of compute_90a: correct ones, whose results and counts are compared with plain C++, and ones with a fault
// each on the line that ends in "FAULT <name>".
#include "hopper.h"

namespace {

constexpr int kStages = 2;
constexpr int kTileM = 64, kTileN = 128, kTileK = 64;

__device__ unsigned rank_in_cluster() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ std::uint32_t in_block(const void* pointer, unsigned rank) {
  std::uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(rank));
  return address;
}
#define CLUSTER_SYNC()                                                  \
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); \
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory")

__device__ std::uint32_t packed(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

}  // namespace

extern "C" {

// ---- mbarriers

/// Each thread passes its value to the next through an mbarrier, twice: by parity, and by the state of its arrival.
__global__ void mbarrier_pass(const int* in, int* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  __shared__ int values[64];
  const int i = threadIdx.x;
  if (i == 0) MBARRIER_INIT(barrier, 64);
  __syncthreads();
  values[i] = in[i];
  MBARRIER_ARRIVE(barrier);
  MBARRIER_WAIT(barrier, 0);
  const int next = values[(i + 33) % 64];
  std::uint64_t state;
  MBARRIER_ARRIVE_STATE(state, barrier);
  for (std::uint32_t done = 0; done == 0;) MBARRIER_TEST_WAIT_STATE(done, barrier, state);
  values[i] = next;
  MBARRIER_ARRIVE(barrier);
  MBARRIER_WAIT(barrier, 0);
  out[i] = values[(i + 1) % 64];
  __syncthreads();
  if (i == 0) MBARRIER_INVAL(barrier);
}

/// A warp fills stages that another empties, as often as there are rounds.
__global__ void mbarrier_ring(const float* in, float* out, int rounds) {
  __shared__ alignas(8) std::uint64_t full[kStages], empty[kStages];
  __shared__ float stage[kStages][32];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      MBARRIER_INIT(full[s], 32);
      MBARRIER_INIT(empty[s], 1);
    }
  }
  __syncthreads();
  float sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const int s = round % kStages;
    const int turn = round / kStages % 2;
    if (threadIdx.x >= 32) {
      MBARRIER_WAIT(empty[s], turn ^ 1);
      stage[s][lane] = in[32 * round + lane];
      MBARRIER_ARRIVE(full[s]);
    } else {
      MBARRIER_WAIT(full[s], turn);
      sum += stage[s][31 - lane];
      __syncwarp();
      if (lane == 0) MBARRIER_ARRIVE(empty[s]);
    }
  }
  if (threadIdx.x < 32) out[lane] = sum;
}
/// The same, but a stage is given back before it has been read.
__global__ void ring_given_back(const float* in, float* out, int rounds) {
  __shared__ alignas(8) std::uint64_t full[kStages], empty[kStages];
  __shared__ float stage[kStages][32];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      MBARRIER_INIT(full[s], 32);
      MBARRIER_INIT(empty[s], 1);
    }
  }
  __syncthreads();
  float sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const int s = round % kStages;
    const int turn = round / kStages % 2;
    if (threadIdx.x >= 32) {
      MBARRIER_WAIT(empty[s], turn ^ 1);
      stage[s][lane] = in[32 * round + lane];  // FAULT ring_given_back
      MBARRIER_ARRIVE(full[s]);
    } else {
      MBARRIER_WAIT(full[s], turn);
      __syncwarp();
      if (lane == 0) MBARRIER_ARRIVE(empty[s]);
      sum += stage[s][31 - lane];
    }
  }
  if (threadIdx.x < 32) out[lane] = sum;
}

/// One lane waits for the other warp; its warp waits for it, at a __syncwarp and in a shuffle.
__global__ void one_lane_waits(const int* in, int* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  __shared__ int value;
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) MBARRIER_INIT(barrier, 1);
  __syncthreads();
  if (threadIdx.x >= 32) {
    if (lane == 7) {
      value = in[0];
      MBARRIER_ARRIVE(barrier);
    }
    return;
  }
  int found = 0;
  if (lane == 5) {
    MBARRIER_WAIT(barrier, 0);
    found = value;
  }
  __syncwarp();
  out[lane] = __shfl_sync(~0u, found, 5) + lane;
}
/// The same before a barrier of the block.
__global__ void one_lane_waits_before_barrier(const int* in, int* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  __shared__ int values[2];
  if (threadIdx.x == 0) MBARRIER_INIT(barrier, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    MBARRIER_WAIT(barrier, 0);
    values[1] = values[0] + 1;
  }
  if (threadIdx.x == 40) {
    values[0] = in[0];
    MBARRIER_ARRIVE(barrier);
  }
  __syncthreads();
  out[threadIdx.x] = values[1];
}

/// Counts, dropped arrivals, arrivals that must not complete, and what states tell.
__global__ void mbarrier_counts(unsigned* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x != 0) return;
  MBARRIER_INIT(barrier, 10);
  std::uint64_t state;
  unsigned count;
  asm volatile("mbarrier.arrive.noComplete.shared::cta.b64 %0, [%1], 3;" : "=l"(state) : "r"(shared_address(&barrier)));
  asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(count) : "l"(state));
  out[0] = count;
  asm volatile("mbarrier.arrive_drop.shared::cta.b64 %0, [%1], 2;" : "=l"(state) : "r"(shared_address(&barrier)));
  MBARRIER_ARRIVE_COUNT(barrier, 5);  // 10 - 3 - 2 - 5
  std::uint32_t done;
  MBARRIER_TRY_WAIT(done, barrier, 0);
  out[1] = done;
  asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], 8;" : "=l"(state) : "r"(shared_address(&barrier)));  // 10 - 2
  asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(count) : "l"(state));
  out[2] = count;
  MBARRIER_TEST_WAIT_STATE(done, barrier, state);
  out[3] = done;
  MBARRIER_TEST_WAIT(done, barrier, 0);  // the phase that runs now
  out[4] = done;
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], 48;" ::"r"(shared_address(&barrier)) : "memory");
  MBARRIER_ARRIVE_COUNT(barrier, 8);
  MBARRIER_TEST_WAIT(done, barrier, 0);
  out[5] = done;
  asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], 48;" ::"r"(shared_address(&barrier)) : "memory");
  MBARRIER_TRY_WAIT(done, barrier, 0);
  out[6] = done;
}

__global__ void mbarrier_not_initialised(int* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  MBARRIER_ARRIVE(barrier);  // FAULT mbarrier_not_initialised
  out[threadIdx.x] = 1;
}
__global__ void mbarrier_initialised_twice(int* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) MBARRIER_INIT(barrier, 1);
  __syncthreads();
  if (threadIdx.x == 1) MBARRIER_INIT(barrier, 2);  // FAULT mbarrier_initialised_twice
  out[threadIdx.x] = 1;
}
__global__ void mbarrier_bad_count(int* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) MBARRIER_INIT(barrier, 0);  // FAULT mbarrier_bad_count
  out[threadIdx.x] = 1;
}
__global__ void mbarrier_overrun(int* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) MBARRIER_INIT(barrier, 8);
  __syncthreads();
  MBARRIER_ARRIVE_COUNT(barrier, 9);  // FAULT mbarrier_overrun
  out[threadIdx.x] = 1;
}
__global__ void mbarrier_misaligned(int* out) {
  __shared__ alignas(8) std::uint64_t barrier[2];
  MBARRIER_INIT(reinterpret_cast<unsigned*>(barrier)[1], 1);  // FAULT mbarrier_misaligned
  out[threadIdx.x] = 1;
}
__global__ void mbarrier_overwritten(int* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) {
    MBARRIER_INIT(barrier, 2);
    *static_cast<volatile std::uint64_t*>(&barrier) = 5;
    MBARRIER_ARRIVE(barrier);  // FAULT mbarrier_overwritten
  }
  out[threadIdx.x] = 1;
}
/// Nobody else arrives: the wait never ends.
__global__ void mbarrier_forgotten(int* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) MBARRIER_INIT(barrier, 33);
  __syncthreads();
  MBARRIER_ARRIVE(barrier);
  MBARRIER_WAIT(barrier, 0);  // FAULT mbarrier_forgotten
  out[threadIdx.x] = 1;
}
/// The initialisation is not ordered before its use.
__global__ void mbarrier_init_race(int* out) {
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) MBARRIER_INIT(barrier, 1);
  if (threadIdx.x == 32) MBARRIER_ARRIVE(barrier);  // FAULT mbarrier_init_race
  out[threadIdx.x] = 1;
}

// ---- bulk copies

/// out = in + 1: loaded, changed by the threads, stored.
__global__ void bulk_round_trip(const int* in, int* out) {
  __shared__ alignas(128) int tile[256];
  __shared__ alignas(8) std::uint64_t barrier;
  const int i = threadIdx.x;
  if (i == 0) {
    MBARRIER_INIT(barrier, 1);
    FENCE_MBARRIER_INIT();
  }
  __syncthreads();
  if (i == 0) {
    MBARRIER_ARRIVE_EXPECT(barrier, 1024);
    BULK_LOAD(tile, in + 256 * blockIdx.x, 1024, barrier);
  }
  MBARRIER_WAIT(barrier, 0);
  tile[i] += 1;
  tile[i + 128] += 1;
  FENCE_PROXY_ASYNC();
  __syncthreads();
  if (i == 0) {
    BULK_STORE(out + 256 * blockIdx.x, tile, 1024);
    BULK_COMMIT();
    BULK_WAIT_READ(0);
  }
}

__global__ void bulk_not_waited(const int* in, int* out) {
  __shared__ alignas(128) int tile[256];
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) {
    MBARRIER_INIT(barrier, 1);
    MBARRIER_ARRIVE_EXPECT(barrier, 1024);
    BULK_LOAD(tile, in, 1024, barrier);
  }
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];  // FAULT bulk_not_waited
}
__global__ void bulk_wrong_parity(const int* in, int* out) {
  __shared__ alignas(128) int tile[256];
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) {
    MBARRIER_INIT(barrier, 1);
    MBARRIER_ARRIVE_EXPECT(barrier, 1024);
    BULK_LOAD(tile, in, 1024, barrier);
  }
  __syncthreads();
  MBARRIER_WAIT(barrier, 1);
  out[threadIdx.x] = tile[threadIdx.x];  // FAULT bulk_wrong_parity
}
__global__ void bulk_wrong_bytes(const int* in, int* out) {
  __shared__ alignas(128) int tile[256];
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) {
    MBARRIER_INIT(barrier, 1);
    MBARRIER_ARRIVE_EXPECT(barrier, 1024 + 512);
    BULK_LOAD(tile, in, 1024, barrier);
  }
  __syncthreads();
  MBARRIER_WAIT(barrier, 0);  // FAULT bulk_wrong_bytes
  out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void bulk_odd_size(const int* in, int* out) {
  __shared__ alignas(128) int tile[256];
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) {
    MBARRIER_INIT(barrier, 1);
    BULK_LOAD(tile, in, 1000, barrier);  // FAULT bulk_odd_size
  }
  out[threadIdx.x] = 0;
}
__global__ void bulk_past_end(const int* in, int* out) {
  __shared__ alignas(128) int tile[512];
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) {
    MBARRIER_INIT(barrier, 1);
    MBARRIER_ARRIVE_EXPECT(barrier, 1040);
    BULK_LOAD(tile, in, 1040, barrier);  // FAULT bulk_past_end
  }
  out[threadIdx.x] = 0;
}
__global__ void bulk_no_fence(const int* in, int* out) {
  __shared__ alignas(128) int tile[128];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    BULK_STORE(out, tile, 512);  // FAULT bulk_no_fence
    BULK_COMMIT();
    BULK_WAIT(0);
  }
}
/// One fence after the barrier is enough: what came before it is ordered before it.
__global__ void bulk_fence_after_barrier(const int* in, int* out) {
  __shared__ alignas(128) int tile[128];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    FENCE_PROXY_ASYNC();
    BULK_STORE(out, tile, 512);
    BULK_COMMIT();
    BULK_WAIT(0);
  }
}
__global__ void bulk_source_overwritten(const int* in, int* out) {
  __shared__ alignas(128) int tile[128];
  tile[threadIdx.x] = in[threadIdx.x];
  FENCE_PROXY_ASYNC();
  __syncthreads();
  if (threadIdx.x == 0) {
    BULK_STORE(out, tile, 512);
    BULK_COMMIT();
    tile[5] = 0;  // FAULT bulk_source_overwritten
    BULK_WAIT_READ(0);
  }
}
__global__ void bulk_never_waited(const int* in, int* out) {
  __shared__ alignas(128) int tile[128];
  tile[threadIdx.x] = in[threadIdx.x];
  FENCE_PROXY_ASYNC();
  __syncthreads();
  if (threadIdx.x == 0) {
    BULK_STORE(out, tile, 512);  // FAULT bulk_never_waited
    BULK_COMMIT();
  }
}

/// Each block adds its tile to the same place; other operations beside.
__global__ void bulk_reductions(const float* values, float* sums, unsigned* least, unsigned long long* bits,
                                __nv_bfloat16* halves) {
  __shared__ alignas(128) float tile[64];
  __shared__ alignas(128) unsigned numbers[64];
  __shared__ alignas(128) unsigned long long words[64];
  __shared__ alignas(128) __nv_bfloat16 small[64];
  const int i = threadIdx.x;
  tile[i] = values[64 * blockIdx.x + i];
  numbers[i] = static_cast<unsigned>(values[64 * blockIdx.x + i]);
  words[i] = 1ull << (blockIdx.x + i % 8);
  small[i] = __float2bfloat16(values[64 * blockIdx.x + i]);
  FENCE_PROXY_ASYNC();
  __syncthreads();
  if (i != 0) return;
  BULK_REDUCE("add.f32", sums, tile, 256);
  BULK_REDUCE("min.u32", least, numbers, 256);
  BULK_REDUCE("or.b64", bits, words, 512);
  BULK_REDUCE("add.noftz.bf16", halves, small, 128);
  BULK_COMMIT();
  BULK_WAIT(0);
}

/// cp.async, whose completion an mbarrier is told of.
__global__ void copies_arrive(const float4* in, float4* out) {
  __shared__ float4 tile[64];
  __shared__ alignas(8) std::uint64_t barrier;
  const int i = threadIdx.x;
  if (i == 0) MBARRIER_INIT(barrier, 64);
  __syncthreads();
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(tile + i)), "l"(in + i) : "memory");
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
  MBARRIER_WAIT(barrier, 0);
  out[i] = tile[63 - i];
}

// ---- tensors

/// The tile as it lies in shared memory.
__global__ void tile_dump_2d(const __grid_constant__ TensorMapBytes map, unsigned char* out, int x, int y, int bytes,
                             int transactions) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
    MBARRIER_INIT(barrier, 1);
    MBARRIER_ARRIVE_EXPECT(barrier, transactions);
    TENSOR_LOAD_2D(tile, map, x, y, barrier);
  }
  __syncthreads();
  MBARRIER_WAIT(barrier, 0);
  for (int i = threadIdx.x; i < bytes; i += blockDim.x) out[i] = tile[i];
}
#define TILE_DUMP(n, coordinates, ...)                                                                        \
  __global__ void tile_dump_##n##d(const TensorMapBytes* map, unsigned char* out, const int* at, int bytes) { \
    extern __shared__ __align__(1024) unsigned char tile[];                                                   \
    __shared__ alignas(8) std::uint64_t barrier;                                                              \
    if (threadIdx.x == 0) {                                                                                   \
      MBARRIER_INIT(barrier, 1);                                                                              \
      MBARRIER_ARRIVE_EXPECT(barrier, bytes);                                                                 \
      asm volatile("cp.async.bulk.tensor." #n                                                                 \
                   "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" coordinates      \
                   "}], [%2];" ::"r"(shared_address(tile)),                                                   \
                   "l"(map), "r"(shared_address(&barrier)), __VA_ARGS__                                       \
                   : "memory");                                                                               \
    }                                                                                                         \
    __syncthreads();                                                                                          \
    MBARRIER_WAIT(barrier, 0);                                                                                \
    for (int i = threadIdx.x; i < bytes; i += blockDim.x) out[i] = tile[i];                                   \
  }
TILE_DUMP(1, "%3", "r"(at[0]))
TILE_DUMP(3, "%3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]))
TILE_DUMP(4, "%3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]))
TILE_DUMP(5, "%3, %4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]))

/// Moves a tile from one place to another, of the same or another tensor; or adds it there.
__global__ void tile_move(const __grid_constant__ TensorMapBytes from, const __grid_constant__ TensorMapBytes to, int x,
                          int y, int to_x, int to_y, int bytes, int adds) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x != 0) return;
  MBARRIER_INIT(barrier, 1);
  MBARRIER_ARRIVE_EXPECT(barrier, bytes);
  TENSOR_LOAD_2D(tile, from, x, y, barrier);
  MBARRIER_WAIT(barrier, 0);
  if (adds != 0) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&to),
        "r"(to_x), "r"(to_y), "r"(shared_address(tile))
        : "memory");
  } else {
    TENSOR_STORE_2D(to, to_x, to_y, tile);
  }
  BULK_COMMIT();
  BULK_WAIT(0);
}
__global__ void tile_misaligned(const __grid_constant__ TensorMapBytes map, int* out) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) {
    MBARRIER_INIT(barrier, 1);
    TENSOR_LOAD_2D(tile + 16, map, 0, 0, barrier);  // FAULT tile_misaligned
  }
  out[threadIdx.x] = 0;
}
__global__ void tile_no_map(const __grid_constant__ TensorMapBytes map, int* out) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ alignas(8) std::uint64_t barrier;
  if (threadIdx.x == 0) {
    MBARRIER_INIT(barrier, 1);
    TENSOR_LOAD_2D(tile, map, 0, 0, barrier);  // FAULT tile_no_map
  }
  out[threadIdx.x] = 0;
}

// ---- products of warpgroups

#define LOAD_IMAGE()                                                           \
  extern __shared__ __align__(1024) uint4 shared[];                            \
  for (int i = threadIdx.x; i < chunks; i += blockDim.x) shared[i] = image[i]; \
  FENCE_PROXY_ASYNC();                                                         \
  __syncthreads();                                                             \
  a += shared_address(shared) >> 4;                                            \
  b += shared_address(shared) >> 4

/// D (+)= A B of an image of shared memory, by descriptors that count from its begin; N is 64.
#define WGMMA_BF16(name, transpose_a, transpose_b)                                                               \
  __global__ void name(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, int adds, float* out) { \
    LOAD_IMAGE();                                                                                                \
    float d[32];                                                                                                 \
    for (int i = 0; i < 32; ++i) d[i] = out[threadIdx.x * 32 + i];                                               \
    WGMMA_FENCE();                                                                                               \
    WGMMA_N64(d, a, b, adds, transpose_a, transpose_b);                                                          \
    WGMMA_COMMIT();                                                                                              \
    WGMMA_WAIT(0);                                                                                               \
    for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];                                               \
  }
WGMMA_BF16(wgmma_bf16, 0, 0)
WGMMA_BF16(wgmma_bf16_ta, 1, 0)
WGMMA_BF16(wgmma_bf16_tb, 0, 1)
WGMMA_BF16(wgmma_bf16_ta_tb, 1, 1)

/// A from registers: 4 each thread.
__global__ void wgmma_registers(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, const uint4* rows,
                                float* out) {
  LOAD_IMAGE();
  const uint4 row = rows[threadIdx.x];
  const std::uint32_t registers[4] = {row.x, row.y, row.z, row.w};
  float d[32] = {};
  for (int i = 0; i < 32; ++i) d[i] = -1;
  WGMMA_FENCE();
  WGMMA_N64_REGISTERS(d, registers, b, 0, 0);
  WGMMA_COMMIT();
  WGMMA_WAIT(0);
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
}

/// N is 8: 4 results a thread. `tail`: what follows scale-d.
#define WGMMA_SMALL(name, T, constraint, type, tail)                                                         \
  __global__ void name(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, int adds, T* out) { \
    LOAD_IMAGE();                                                                                            \
    T d[4];                                                                                                  \
    for (int i = 0; i < 4; ++i) d[i] = out[threadIdx.x * 4 + i];                                             \
    WGMMA_FENCE();                                                                                           \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %6, 0;\n wgmma.mma_async.sync.aligned.m64n8" type       \
                 " {%0,%1,%2,%3}, %4, %5, p" tail ";\n}"                                                     \
                 : constraint(d[0]), constraint(d[1]), constraint(d[2]), constraint(d[3])                    \
                 : "l"(a), "l"(b), "r"(adds));                                                               \
    WGMMA_COMMIT();                                                                                          \
    WGMMA_WAIT(0);                                                                                           \
    for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];                                             \
  }
WGMMA_SMALL(wgmma_f16, float, "+f", "k16.f32.f16.f16", ", 1, 1, 0, 0")
WGMMA_SMALL(wgmma_f16_negated, float, "+f", "k16.f32.f16.f16", ", -1, 1, 0, 0")
WGMMA_SMALL(wgmma_tf32, float, "+f", "k8.f32.tf32.tf32", ", 1, 1")
WGMMA_SMALL(wgmma_e4m3, float, "+f", "k32.f32.e4m3.e4m3", ", 1, 1")
WGMMA_SMALL(wgmma_e5m2_e4m3, float, "+f", "k32.f32.e5m2.e4m3", ", 1, 1")
WGMMA_SMALL(wgmma_s8, int, "+r", "k32.s32.s8.s8", "")
WGMMA_SMALL(wgmma_u8_s8, int, "+r", "k32.s32.u8.s8", "")
WGMMA_SMALL(wgmma_s8_saturated, int, "+r", "k32.s32.s8.s8.satfinite", "")

/// Sums in f16, two packed.
__global__ void wgmma_f16_sums(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, int adds,
                               std::uint32_t* out) {
  LOAD_IMAGE();
  std::uint32_t d[2] = {out[threadIdx.x * 2], out[threadIdx.x * 2 + 1]};
  WGMMA_FENCE();
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %4, 0;\n"
      " wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {%0,%1}, %2, %3, p, 1, 1, 0, 0;\n}"
      : "+r"(d[0]), "+r"(d[1])
      : "l"(a), "l"(b), "r"(adds));
  WGMMA_COMMIT();
  WGMMA_WAIT(0);
  out[threadIdx.x * 2] = d[0];
  out[threadIdx.x * 2 + 1] = d[1];
}

__global__ void wgmma_not_waited(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, float* out) {
  LOAD_IMAGE();
  float d[32] = {};
  WGMMA_FENCE();
  WGMMA_N64(d, a, b, 0, 0, 0);
  WGMMA_COMMIT();
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];  // FAULT wgmma_not_waited
}
__global__ void wgmma_not_committed(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, float* out) {
  LOAD_IMAGE();
  float d[32] = {};
  WGMMA_FENCE();
  WGMMA_N64(d, a, b, 0, 0, 0);
  WGMMA_WAIT(0);
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];  // FAULT wgmma_not_committed
}
/// The first of two groups has been waited for, not the second.
__global__ void wgmma_waited_for_one(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, float* out,
                                     int second) {
  LOAD_IMAGE();
  float d[32] = {}, e[32] = {};
  WGMMA_FENCE();
  WGMMA_N64(d, a, b, 0, 0, 0);
  WGMMA_COMMIT();
  WGMMA_N64(e, a, b, 0, 0, 0);
  WGMMA_COMMIT();
  WGMMA_WAIT(1);
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
  if (second == 0) WGMMA_WAIT(0);
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] += e[i];  // FAULT wgmma_waited_for_one
}
__global__ void wgmma_no_fence(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, float* out) {
  LOAD_IMAGE();
  float d[32] = {};
  WGMMA_N64(d, a, b, 0, 0, 0);  // FAULT wgmma_no_fence
  WGMMA_COMMIT();
  WGMMA_WAIT(0);
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
}
__global__ void wgmma_past_end(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, float* out) {
  LOAD_IMAGE();
  float d[32] = {};
  WGMMA_FENCE();
  WGMMA_N64(d, a, b, 0, 0, 0);  // FAULT wgmma_past_end
  WGMMA_COMMIT();
  WGMMA_WAIT(0);
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
}
__global__ void wgmma_no_proxy_fence(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, float* out) {
  extern __shared__ __align__(1024) uint4 shared[];
  for (int i = threadIdx.x; i < chunks; i += blockDim.x) shared[i] = image[i];
  __syncthreads();
  a += shared_address(shared) >> 4;
  b += shared_address(shared) >> 4;
  float d[32] = {};
  WGMMA_FENCE();
  WGMMA_N64(d, a, b, 0, 0, 0);  // FAULT wgmma_no_proxy_fence
  WGMMA_COMMIT();
  WGMMA_WAIT(0);
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
}
__global__ void wgmma_without_a_warp(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b, float* out) {
  LOAD_IMAGE();
  float d[32] = {};
  if (threadIdx.x < 96) {
    WGMMA_FENCE();
    WGMMA_N64(d, a, b, 0, 0, 0);  // FAULT wgmma_without_a_warp
    WGMMA_COMMIT();
    WGMMA_WAIT(0);
  }
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
}
/// Operands are overwritten before the product has been waited for.
__global__ void wgmma_operands_overwritten(const uint4* image, int chunks, std::uint64_t a, std::uint64_t b,
                                           float* out) {
  LOAD_IMAGE();
  float d[32] = {};
  WGMMA_FENCE();
  WGMMA_N64(d, a, b, 0, 0, 0);
  WGMMA_COMMIT();
  __syncthreads();
  if (threadIdx.x == 0) shared[0] = uint4{};  // FAULT wgmma_operands_overwritten
  WGMMA_WAIT(0);
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
}

// ---- whole kernels

/// C = A B^T: A is m x k, B n x k, both bf16 and swizzled by 128 bytes; C f32. Blocks have a tile of 64 x 128 each. Of
/// two warpgroups the second loads, with one thread, the first multiplies; kStages tiles of 64 along k are under way.
/// `fault`: 1: a stage is given back before the product is done with it; 2: the loader does not wait for that.
struct GemmShared {
  alignas(1024) __nv_bfloat16 a[kStages][kTileM * kTileK];
  alignas(1024) __nv_bfloat16 b[kStages][kTileN * kTileK];
  std::uint64_t full[kStages];
  std::uint64_t empty[kStages];
};
__global__ void __launch_bounds__(256)
    gemm_ring(const __grid_constant__ TensorMapBytes a_map, const __grid_constant__ TensorMapBytes b_map, float* c,
              int n, int k, int fault) {
  extern __shared__ __align__(1024) unsigned char memory[];
  GemmShared& shared = *reinterpret_cast<GemmShared*>(memory);
  const int thread = threadIdx.x % 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      MBARRIER_INIT(shared.full[s], 1);
      MBARRIER_INIT(shared.empty[s], 4);
    }
    FENCE_MBARRIER_INIT();
  }
  __syncthreads();
  const int steps = k / kTileK;
  if (threadIdx.x >= 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (thread != 0) return;
    for (int step = 0; step < steps; ++step) {
      const int s = step % kStages;
      if (fault != 2) MBARRIER_WAIT(shared.empty[s], (step / kStages + 1) % 2);
      MBARRIER_ARRIVE_EXPECT(shared.full[s], static_cast<int>(sizeof shared.a[0] + sizeof shared.b[0]));
      TENSOR_LOAD_2D(shared.a[s], a_map, step * kTileK, static_cast<int>(blockIdx.y) * kTileM, shared.full[s]);
      TENSOR_LOAD_2D(shared.b[s], b_map, step * kTileK, static_cast<int>(blockIdx.x) * kTileN, shared.full[s]);
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  float d[64];
  for (int i = 0; i < 64; ++i) d[i] = 0;
  for (int step = 0; step < steps; ++step) {
    const int s = step % kStages;
    MBARRIER_WAIT(shared.full[s], step / kStages % 2);
    WGMMA_FENCE();
#pragma unroll
    for (int i = 0; i < kTileK / 16; ++i) {
      WGMMA_N128(d, descriptor(shared.a[s] + 16 * i, 16, 1024, 1), descriptor(shared.b[s] + 16 * i, 16, 1024, 1), 1, 0,
                 0);
    }
    WGMMA_COMMIT();
    if (fault == 1 && thread % 32 == 0) MBARRIER_ARRIVE(shared.empty[s]);
    WGMMA_WAIT(0);
    if (fault != 1 && thread % 32 == 0) MBARRIER_ARRIVE(shared.empty[s]);
  }
  const int row = blockIdx.y * kTileM + thread / 32 * 16 + thread % 32 / 4;
  const int column = blockIdx.x * kTileN + thread % 4 * 2;
  for (int i = 0; i < 64; ++i) c[(row + i / 2 % 2 * 8) * n + column + i / 4 * 8 + i % 2] = d[i];
}

/// Attention of one head and 64 queries a block, 64 wide: Q, K, V are bf16 [heads][tokens][64]; out f32. The first warp
/// of the second warpgroup loads K and V by turns, the first warpgroup multiplies and keeps the running maxima and
/// sums.
struct AttentionShared {
  alignas(1024) __nv_bfloat16 q[64 * 64];
  alignas(1024) __nv_bfloat16 k[kStages][64 * 64];
  alignas(1024) __nv_bfloat16 v[kStages][64 * 64];
  std::uint64_t q_full;
  std::uint64_t full[kStages];
  std::uint64_t empty[kStages];
};
__global__ void __launch_bounds__(256)
    attention(const __grid_constant__ TensorMapBytes q_map, const __grid_constant__ TensorMapBytes k_map,
              const __grid_constant__ TensorMapBytes v_map, float* out, int queries, int keys, float scale) {
  extern __shared__ __align__(1024) unsigned char memory[];
  AttentionShared& shared = *reinterpret_cast<AttentionShared*>(memory);
  const int thread = threadIdx.x % 128;
  const int first = blockIdx.x * 64;
  const int head = blockIdx.y;
  constexpr int kTileBytes = sizeof shared.q;
  if (threadIdx.x == 0) {
    MBARRIER_INIT(shared.q_full, 1);
    for (int s = 0; s < kStages; ++s) {
      MBARRIER_INIT(shared.full[s], 1);
      MBARRIER_INIT(shared.empty[s], 128);
    }
    FENCE_MBARRIER_INIT();
  }
  __syncthreads();
  const int tiles = (keys + 63) / 64;
  if (threadIdx.x >= 128) {
    if (thread != 0) return;
    MBARRIER_ARRIVE_EXPECT(shared.q_full, kTileBytes);
    TENSOR_LOAD_3D(shared.q, q_map, 0, first, head, shared.q_full);
    for (int tile = 0; tile < tiles; ++tile) {
      const int s = tile % kStages;
      MBARRIER_WAIT(shared.empty[s], (tile / kStages + 1) % 2);
      MBARRIER_ARRIVE_EXPECT(shared.full[s], 2 * kTileBytes);
      TENSOR_LOAD_3D(shared.k[s], k_map, 0, 64 * tile, head, shared.full[s]);
      TENSOR_LOAD_3D(shared.v[s], v_map, 0, 64 * tile, head, shared.full[s]);
    }
    return;
  }
  float o[32];
  float most[2] = {-INFINITY, -INFINITY};
  float total[2] = {0, 0};
  for (int i = 0; i < 32; ++i) o[i] = 0;
  MBARRIER_WAIT(shared.q_full, 0);
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages;
    MBARRIER_WAIT(shared.full[stage], tile / kStages % 2);
    float s[32] = {};
    WGMMA_FENCE();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      WGMMA_N64(s, descriptor(shared.q + 16 * i, 16, 1024, 1), descriptor(shared.k[stage] + 16 * i, 16, 1024, 1),
                i != 0, 0, 0);
    }
    WGMMA_COMMIT();
    WGMMA_WAIT(0);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float now = most[h];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        for (int p = 0; p < 2; ++p) {
          float& value = s[4 * j + 2 * h + p];
          const bool is_key = 64 * tile + 8 * j + thread % 4 * 2 + p < keys;
          value = is_key ? value * scale : -INFINITY;
          now = fmaxf(now, value);
        }
      }
      now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
      now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
      const float factor = exp2f(most[h] - now);
      most[h] = now;
      total[h] *= factor;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        for (int p = 0; p < 2; ++p) {
          float& value = s[4 * j + 2 * h + p];
          value = exp2f(value - now);
          total[h] += value;
          o[4 * j + 2 * h + p] *= factor;
        }
      }
    }
    WGMMA_FENCE();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t p[4];
      for (int r = 0; r < 4; ++r) p[r] = packed(s[8 * i + 2 * r], s[8 * i + 2 * r + 1]);
      WGMMA_N64_REGISTERS(o, p, descriptor(shared.v[stage] + 16 * 64 * i, 16, 1024, 1), 1, 1);
    }
    WGMMA_COMMIT();
    WGMMA_WAIT(0);
    MBARRIER_ARRIVE(shared.empty[stage]);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(~0u, total[h], 1);
    total[h] += __shfl_xor_sync(~0u, total[h], 2);
    const int row = first + thread / 32 * 16 + thread % 32 / 4 + 8 * h;
    if (row >= queries) continue;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int column = i / 2 * 8 + thread % 4 * 2 + i % 2;
      out[(static_cast<long>(head) * queries + row) * 64 + column] = o[i / 2 * 4 + 2 * h + i % 2] / total[h];
    }
  }
}

// ---- clusters of two blocks

/// One block loads a tile for both; each dumps its own.
__global__ void __cluster_dims__(2)
    cluster_multicast(const __grid_constant__ TensorMapBytes map, unsigned char* out, int bytes) {
  extern __shared__ __align__(1024) unsigned char tile[];
  __shared__ alignas(8) std::uint64_t barrier;
  const unsigned rank = rank_in_cluster();
  if (threadIdx.x == 0) {
    MBARRIER_INIT(barrier, 1);
    FENCE_MBARRIER_INIT();
    MBARRIER_ARRIVE_EXPECT(barrier, bytes);
  }
  CLUSTER_SYNC();
  if (rank == 0 && threadIdx.x == 0) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(tile)),
        "l"(&map), "r"(0), "r"(0), "r"(shared_address(&barrier)), "h"(static_cast<unsigned short>(3))
        : "memory");
  }
  MBARRIER_WAIT(barrier, 0);
  for (int i = threadIdx.x; i < bytes; i += blockDim.x) out[bytes * blockIdx.x + i] = tile[i];
  CLUSTER_SYNC();
}

/// Each block gives the other 64 values: by st.async, by a bulk copy, and by ordinary stores with a remote arrival.
__global__ void __cluster_dims__(2) cluster_exchange(const int* in, int* out) {
  __shared__ alignas(128) int mine[64], by_copy[64], by_value[64], by_store[64];
  __shared__ alignas(8) std::uint64_t barrier;
  const int i = threadIdx.x;
  const unsigned other = rank_in_cluster() ^ 1;
  if (i == 0) {
    MBARRIER_INIT(barrier, 65);
    FENCE_MBARRIER_INIT();
    MBARRIER_ARRIVE_EXPECT(barrier, 2 * 256);
  }
  mine[i] = in[64 * blockIdx.x + i];
  FENCE_PROXY_ASYNC();
  CLUSTER_SYNC();
  const std::uint32_t remote = in_block(&barrier, other);
  unsigned remote_rank;
  asm("getctarank.shared::cluster.u32 %0, %1;" : "=r"(remote_rank) : "r"(remote));
  if (i == 0) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], 256, [%2];" ::"r"(
                     in_block(by_copy, other)),
                 "r"(shared_address(mine)), "r"(remote)
                 : "memory");
  }
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                   in_block(by_value + i, other)),
               "r"(mine[i] + 1), "r"(remote)
               : "memory");
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(in_block(by_store + i, other)), "r"(mine[i] + 2) : "memory");
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(remote) : "memory");
  MBARRIER_WAIT(barrier, 0);
  int* const to = out + 256 * blockIdx.x + i;
  to[0] = by_copy[i];
  to[64] = by_value[i];
  to[128] = by_store[i];
  to[192] = static_cast<int>(remote_rank);
  CLUSTER_SYNC();
}
/// The other block's arrival is read for without waiting.
__global__ void __cluster_dims__(2) cluster_not_waited(const int* in, int* out) {
  __shared__ alignas(128) int mine[64], theirs[64];
  __shared__ alignas(8) std::uint64_t barrier;
  const int i = threadIdx.x;
  if (i == 0) {
    MBARRIER_INIT(barrier, 1);
    FENCE_MBARRIER_INIT();
    MBARRIER_ARRIVE_EXPECT(barrier, 256);
  }
  mine[i] = in[i];
  FENCE_PROXY_ASYNC();
  CLUSTER_SYNC();
  if (i == 0) {
    const unsigned other = rank_in_cluster() ^ 1;
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], 256, [%2];" ::"r"(
                     in_block(theirs, other)),
                 "r"(shared_address(mine)), "r"(in_block(&barrier, other))
                 : "memory");
  }
  CLUSTER_SYNC();
  out[64 * blockIdx.x + i] = theirs[i];  // FAULT cluster_not_waited
  CLUSTER_SYNC();
}

}  // extern "C"
