// Blocks that hand data to each other: right, and with what orders them left out; and narrow neighbours.
#include <cuda/atomic>

extern "C" {

/// The last block to arrive sums up what all have written. `volatile` keeps the reads out of registers.
#define LAST_BLOCK(name, FENCE, LINE)                                                        \
  __global__ void name(float* partial, unsigned* count, float* out) {                        \
    __shared__ bool is_last;                                                                 \
    partial[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<float>(threadIdx.x);        \
    FENCE;                                                                                   \
    __syncthreads();                                                                         \
    if (threadIdx.x == 0) is_last = atomicAdd(count, 1u) == gridDim.x - 1;                   \
    __syncthreads();                                                                         \
    if (!is_last) return;                                                                    \
    float sum = 0;                                                                           \
    for (unsigned i = threadIdx.x; i < gridDim.x * blockDim.x; i += blockDim.x) sum += partial[i]; LINE \
    out[threadIdx.x] = sum;                                                                  \
  }

LAST_BLOCK(last_block, __threadfence(), )
// clang-format off
LAST_BLOCK(last_block_without_fence, , )  // FAULT last_block_without_fence
LAST_BLOCK(last_block_with_block_fence, __threadfence_block(), )  // FAULT last_block_with_block_fence
// clang-format on

/// One block fills, the next ones wait for its flag.
__global__ void flag(int* data, volatile int* ready, int* out) {
  if (blockIdx.x == 0) {
    data[threadIdx.x] = static_cast<int>(threadIdx.x);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *ready = 1;
  } else {
    if (threadIdx.x == 0) {
      while (*ready == 0) {
      }
      __threadfence();
    }
    __syncthreads();
    out[threadIdx.x] = data[threadIdx.x];
  }
}
__global__ void flag_without_fence(int* data, volatile int* ready, int* out) {
  if (blockIdx.x == 0) {
    data[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) *ready = 1;
  } else {
    if (threadIdx.x == 0) {
      while (*ready == 0) {
      }
    }
    __syncthreads();
    out[threadIdx.x] = data[threadIdx.x];  // FAULT flag_without_fence
  }
}

/// The same by the orders of cuda::atomic_ref.
__global__ void released(int* data, int* ready, int* out) {
  const cuda::atomic_ref<int, cuda::thread_scope_device> flag_(*ready);
  if (blockIdx.x == 0) {
    data[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) flag_.store(1, cuda::memory_order_release);
  } else {
    if (threadIdx.x == 0) {
      while (flag_.load(cuda::memory_order_acquire) == 0) {
      }
    }
    __syncthreads();
    out[threadIdx.x] = data[threadIdx.x];
  }
}
__global__ void relaxed(int* data, int* ready, int* out) {
  const cuda::atomic_ref<int, cuda::thread_scope_device> flag_(*ready);
  if (blockIdx.x == 0) {
    data[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) flag_.store(1, cuda::memory_order_relaxed);
  } else {
    if (threadIdx.x == 0) {
      while (flag_.load(cuda::memory_order_relaxed) == 0) {
      }
    }
    __syncthreads();
    out[threadIdx.x] = data[threadIdx.x];  // FAULT relaxed
  }
}

/// A lock, with the fence that publishes before it is given back, and without.
__global__ void locked(int* lock, int* sum) {
  if (threadIdx.x != 0) return;
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  __threadfence();
  *sum += 1;
  __threadfence();
  atomicExch(lock, 0);
}
__global__ void locked_without_fence(int* lock, int* sum) {
  if (threadIdx.x != 0) return;
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  *sum += 1;  // FAULT locked_without_fence
  atomicExch(lock, 0);
}

/// Blocks at bytes of one word: their own ones, and one that they share.
__global__ void own_bytes(unsigned char* out) { out[blockIdx.x] = static_cast<unsigned char>(blockIdx.x); }
__global__ void same_byte(unsigned char* out) {
  out[blockIdx.x / 2] = static_cast<unsigned char>(blockIdx.x);  // FAULT same_byte
}
__global__ void own_halves(unsigned short* out) { out[blockIdx.x] = static_cast<unsigned short>(blockIdx.x); }
__global__ void half_in_word(unsigned short* out) {
  if (blockIdx.x == 0) {
    *reinterpret_cast<unsigned*>(out) = 7;
  } else {
    out[blockIdx.x] = 1;  // FAULT half_in_word
  }
}

}  // extern "C"
