// Kernels with one fault each, on the line that ends in "FAULT <name>", and correct twins beside them.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_pipeline.h>

extern "C" {

// ---- bounds, alignment, initialisation

__global__ void read_past_end(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x + 1];  // FAULT read_past_end
}
__global__ void write_past_end(float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) out[i] = 1.0f;  // FAULT write_past_end
}
__global__ void write_within(float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = 1.0f;
}
__global__ void shared_past_end(float* out, int n) {
  __shared__ float tile[32];
  for (int i = 0; i <= n; ++i) {
    tile[i] = static_cast<float>(i);  // FAULT shared_past_end
  }
  out[threadIdx.x] = tile[3];
}
__global__ void misaligned(const float* in, float4* out) {
  out[threadIdx.x] = *reinterpret_cast<const float4*>(in + 1 + 4 * threadIdx.x);  // FAULT misaligned
}
__global__ void uninitialised_global(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];  // FAULT uninitialised_global
}
__global__ void uninitialised_tail(float* out) {
  __shared__ float tile[64];
  if (threadIdx.x != 5) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];  // FAULT uninitialised_tail
}
__global__ void wild_pointer(float* out) {
  out[0] = *reinterpret_cast<const float*>(0x1234560ull);  // FAULT wild_pointer
}

// ---- races

__global__ void missing_barrier(float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = tile[(threadIdx.x + 33) % 64];  // FAULT missing_barrier
}
__global__ void with_barrier(float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = tile[(threadIdx.x + 33) % 64];
}
/// Two bytes wide, and with a barrier before what is read, so that only the last write can race.
__global__ void narrow_missing_barrier(float* out) {
  __shared__ unsigned short tile[64];
  tile[63 - threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = static_cast<unsigned short>(threadIdx.x);
  out[threadIdx.x] = tile[(threadIdx.x + 33) % 64];  // FAULT narrow_missing_barrier
}
/// Lanes and warps in different bytes of one word.
__global__ void narrow_neighbours(float* out) {
  __shared__ unsigned char tile[64];
  const unsigned own = 2 * (threadIdx.x % 32) + threadIdx.x / 32;
  tile[own] = static_cast<unsigned char>(threadIdx.x);
  out[threadIdx.x] = tile[own];
}
/// A warp fills two buffers in turn while another reads: full and empty barriers, arrived at in different places.
__global__ void producer_consumer(const float* in, float* out, int rounds) {
  __shared__ float tile[2][32];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x >= 32) {
    for (int round = 0; round < rounds; ++round) {
      asm volatile("bar.sync %0, 64;" ::"r"(1 + round % 2) : "memory");
      tile[round % 2][lane] = in[32 * round + lane];
      asm volatile("bar.arrive %0, 64;" ::"r"(3 + round % 2) : "memory");
    }
  } else {
    asm volatile("bar.arrive 1, 64;" ::: "memory");
    asm volatile("bar.arrive 2, 64;" ::: "memory");
    float sum = 0;
    for (int round = 0; round < rounds; ++round) {
      asm volatile("bar.sync %0, 64;" ::"r"(3 + round % 2) : "memory");
      sum += tile[round % 2][31 - lane];
      if (round + 2 < rounds) asm volatile("bar.arrive %0, 64;" ::"r"(1 + round % 2) : "memory");
    }
    out[lane] = sum;
  }
}
/// The second barrier of a double-buffered loop is missing: the next write meets this round's reads.
__global__ void missing_second_barrier(const float* in, float* out, int rounds) {
  __shared__ float tile[64];
  float sum = 0;
  for (int i = 0; i < rounds; ++i) {
    tile[threadIdx.x] = in[i * 64 + threadIdx.x];  // FAULT missing_second_barrier
    __syncthreads();
    sum += tile[63 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}
__global__ void within_warp(float* out) {
  __shared__ float tile[32];
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = tile[31 - threadIdx.x];  // FAULT within_warp
}
__global__ void within_warp_synced(float* out) {
  __shared__ float tile[32];
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncwarp();
  out[threadIdx.x] = tile[31 - threadIdx.x];
}
/// Producer and consumer warps that meet at a named barrier of their own.
__global__ void named_barrier(float* out, int planted) {
  __shared__ float tile[2][32];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int pair = warp / 2;
  if (warp % 2 == 0) tile[pair][lane] = static_cast<float>(lane);
  const int barrier = 1 + pair;
  asm volatile("bar.sync %0, 64;" ::"r"(barrier) : "memory");
  const int from = planted ? 1 - pair : pair;
  if (warp % 2 == 1) out[pair * 32 + lane] = tile[from][31 - lane];  // FAULT named_barrier
}
__global__ void blocks_collide(float* out) {
  out[threadIdx.x] = static_cast<float>(blockIdx.x);  // FAULT blocks_collide
}
__global__ void block_reads_neighbour(float* data, float* out) {
  data[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;
  out[blockIdx.x * blockDim.x + threadIdx.x] = data[(blockIdx.x * blockDim.x + threadIdx.x + 40) % (gridDim.x * blockDim.x)];  // FAULT block_reads_neighbour
}
/// The last block to arrive sums up what all have written: ordered by a fence and an atomic.
__global__ void last_block_sums(float* partial, unsigned* arrived, float* out) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
    __threadfence();
    last = atomicAdd(arrived, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
    *out = sum;
  }
}
__global__ void histogram(const unsigned* in, unsigned* bins, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&bins[in[i] % 16], 1u);
}
__global__ void grid_sync(float* data, float* out) {
  const auto i = blockIdx.x * blockDim.x + threadIdx.x;
  const auto n = gridDim.x * blockDim.x;
  data[i] = static_cast<float>(i);
  cooperative_groups::this_grid().sync();
  out[i] = data[(i + 40) % n];
}

// ---- barriers and shuffles

/// One lane goes by a path that stands behind the loop: the others, back at its top, wait for it at the barrier.
__global__ void straggler_before_barrier(float* out, int rounds) {
  __shared__ int sum;
  if (threadIdx.x == 0) sum = 0;
  asm volatile(
      "{\n"
      ".reg .pred %more, %straggler;\n"
      ".reg .b32 %i, %x;\n"
      "mov.b32 %i, 0;\n"
      "setp.eq.u32 %straggler, %0, 7;\n"
      "ROUND:\n"
      "bar.sync 0;\n"
      "@%straggler bra APART;\n"
      "BACK:\n"
      "add.s32 %i, %i, 1;\n"
      "setp.lt.s32 %more, %i, %1;\n"
      "@%more bra ROUND;\n"
      "bra DONE;\n"
      "APART:\n"
      "ld.shared.s32 %x, [%2];\n"
      "add.s32 %x, %x, 1;\n"
      "st.shared.s32 [%2], %x;\n"
      "bra BACK;\n"
      "DONE:\n"
      "}\n" ::"r"(threadIdx.x),
      "r"(rounds), "r"(static_cast<unsigned>(__cvta_generic_to_shared(&sum)))
      : "memory");
  __syncthreads();
  if (threadIdx.x == 0) out[0] = static_cast<float>(sum);
}
__global__ void divergent_barrier(float* out) {
  if (threadIdx.x < 10) {
    __syncthreads();  // FAULT divergent_barrier
    out[threadIdx.x] = 1.0f;
  } else {
    out[threadIdx.x] = 2.0f;
    __syncthreads();
  }
}
__global__ void barrier_after_exit(float* out, int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  __syncthreads();  // FAULT barrier_after_exit
  out[threadIdx.x] = 1.0f;
}
__global__ void bad_shuffle(float* out) {
  float value = static_cast<float>(threadIdx.x);
  if (threadIdx.x < 16) {
    value = __shfl_down_sync(0xffffffffu, value, 8);  // FAULT bad_shuffle
  }
  out[threadIdx.x] = value;
}
__global__ void half_warp_shuffle(float* out) {
  float value = static_cast<float>(threadIdx.x);
  if (threadIdx.x < 16) value = __shfl_xor_sync(0x0000ffffu, value, 8);
  out[threadIdx.x] = value;
}
__global__ void barrier_never_met(float* out) {
  if (threadIdx.x < 32) {
    asm volatile("bar.sync 1, 96;" ::: "memory");  // FAULT barrier_never_met
  }
  out[threadIdx.x] = 1.0f;
}
__global__ void endless(volatile int* flag, float* out) {
  while (*flag == 0) {  // FAULT endless
  }
  out[0] = 1.0f;
}

// ---- asynchronous copies

__global__ void missing_wait(const float4* in, float4* out) {
  __shared__ float4 tile[32];
  __pipeline_memcpy_async(&tile[threadIdx.x], &in[threadIdx.x], 16);
  __pipeline_commit();
  __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x];  // FAULT missing_wait
}
__global__ void with_wait(const float4* in, float4* out) {
  __shared__ float4 tile[2][32];
  __pipeline_memcpy_async(&tile[0][threadIdx.x], &in[threadIdx.x], 16);
  __pipeline_commit();
  __pipeline_memcpy_async(&tile[1][threadIdx.x], &in[32 + threadIdx.x], 16);
  __pipeline_commit();
  __pipeline_wait_prior(1);
  out[threadIdx.x] = tile[0][threadIdx.x];
  __pipeline_wait_prior(0);
  out[32 + threadIdx.x] = tile[1][threadIdx.x];
}

// ---- what the runtime would be told

__global__ void traps(float* out, int n) {
  if (n > 3) __trap();  // FAULT traps
  out[0] = 1.0f;
}
}  // extern "C"
