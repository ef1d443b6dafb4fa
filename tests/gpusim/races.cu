// Races that the quick ways of the checks must not lose, and neighbours that they must not take for races.
#include <cuda_pipeline.h>

extern "C" {

/// Warps read for a long time, side by side (0), one place (1), by half warps (2) or scattered (3); then one thread
/// writes what the last round has read, with a barrier in between or without.
__global__ void late_write(float* out, int rounds, int form, int ordered) {
  __shared__ float tile[512];
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < 512; i += blockDim.x) tile[i] = static_cast<float>(i);
  __syncthreads();
  float sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const int base = round % 2 * 256;
    const int at[] = {lane, 5, lane / 16 * 40 + lane % 16, lane * 37 % 256};
    sum += tile[base + at[form]];
  }
  if (ordered != 0) __syncthreads();
  const int last[] = {3, 5, 43, 3 * 37};
  if (threadIdx.x == 8) {
    tile[(rounds - 1) % 2 * 256 + last[form]] = 0.0f;  // FAULT late_write
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

/// Each thread its own cell, blocks side by side in lines of memory.
__global__ void in_place(float* data) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  data[i] = 2.0f * data[i] + 1.0f;
}

/// The same, but block 7 writes block 0's first cell too; and block 3 reads what nobody wrote.
__global__ void in_place_and_one_more(float* data, float* fresh) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  data[i] += 1.0f;
  if (blockIdx.x == 3 && threadIdx.x == 0) {
    fresh[1] = fresh[0];
    fresh[0] = 1.0f;
  }
  if (blockIdx.x == 7 && threadIdx.x == 0) {
    data[0] = 100.0f;  // FAULT in_place_and_one_more
  }
}

/// All blocks read a line, `writer` writes a cell of it: of what is read or beside.
__global__ void all_read(float* line, float* out, int writer, int cell) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = line[threadIdx.x % 8];
  if (static_cast<int>(blockIdx.x) == writer && threadIdx.x == 0) {
    line[cell] = 1.0f;  // FAULT all_read
  }
}

__device__ unsigned mixed(unsigned x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

/// Accesses to shared memory as a seed has them: in all forms, by all lanes or some, with barriers between some.
__global__ void random_accesses(unsigned seed, int steps, int barrier_in, const float4* in, unsigned* out) {
  __shared__ alignas(16) unsigned tile[1024];
  const unsigned warp = threadIdx.x / 32;
  const unsigned lane = threadIdx.x % 32;
  unsigned sum = 0;
  for (int step = 0; step < steps; ++step) {
    const unsigned ours = mixed(seed * 7919 + blockIdx.x * 31 + step);
    const unsigned own = mixed(ours + warp * 977);
    const unsigned base = own >> 8;
    const unsigned at[] = {base + lane, base, base + lane % 16, base + lane / 16 * 17, mixed(own + lane),
                           base + lane * (own >> 20 & 3), warp * 128 + lane};
    unsigned& place = tile[at[(own >> 4) % 7] % 1024];
    const unsigned mask = (own & 8) != 0 ? 0xffffffffu : mixed(own + 1);
    if ((mask >> lane & 1) != 0) {
      const unsigned kind = own % 16;
      if (kind < 9) sum += place;
      else if (kind < 14) place = lane + step;
      else if (kind < 15) atomicAdd(&place, 1u);
      else __pipeline_memcpy_async(&tile[mixed(own + lane) % 256 * 4], in + lane, 16);
    }
    if (own % 64 == 15) __pipeline_commit();
    if (own % 32 == 15) __pipeline_wait_prior(0);
    if ((own >> 16) % 8 == 0) __syncwarp();
    if (ours % barrier_in == 0) __syncthreads();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

}  // extern "C"
