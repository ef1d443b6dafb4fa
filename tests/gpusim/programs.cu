// Correct kernels whose results and counts are compared with plain C++ and with hand calculation.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include <cstdint>
#include <cstdio>

extern "C" {

/// One thread an element of C: 2 n FLOPs each.
__global__ void gemm_plain(const float* a, const float* b, float* c, int n) {
  const int row = blockIdx.y * blockDim.y + threadIdx.y;
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0;
  for (int k = 0; k < n; ++k) sum += a[row * n + k] * b[k * n + column];
  c[row * n + column] = sum;
}

/// Tiles of 16 x 16 in shared memory.
__global__ void gemm_tiled(const float* a, const float* b, float* c, int n) {
  __shared__ float tile_a[16][16];
  __shared__ float tile_b[16][17];
  const int row = blockIdx.y * 16 + threadIdx.y;
  const int column = blockIdx.x * 16 + threadIdx.x;
  float sum = 0;
  for (int k = 0; k < n; k += 16) {
    tile_a[threadIdx.y][threadIdx.x] = a[row * n + k + threadIdx.x];
    tile_b[threadIdx.y][threadIdx.x] = b[(k + threadIdx.y) * n + column];
    __syncthreads();
    for (int i = 0; i < 16; ++i) sum += tile_a[threadIdx.y][i] * tile_b[i][threadIdx.x];
    __syncthreads();
  }
  c[row * n + column] = sum;
}

__global__ void copy_strided(const float* in, float* out, int stride) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i * stride];
}
__global__ void copy_vectors(const float4* in, float4* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i];
}
__global__ void transpose(const float* in, float* out) {
  __shared__ float tile[32][32];
  tile[threadIdx.y][threadIdx.x] = in[threadIdx.y * 32 + threadIdx.x];
  __syncthreads();
  out[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}

/// Paths of different length that meet again, nested, with loops and early exits.
__global__ void divergence(int* out, int n) {
  const int i = threadIdx.x;
  int value = i;
  if (i % 2 == 0) {
    for (int j = 0; j < i; ++j) {
      if (j == 7) continue;
      if (j == 13) break;
      value += j * (i % 3 == 0 ? 2 : 1);
    }
  } else if (i % 3 == 0) {
    int steps = 0;
    for (unsigned x = static_cast<unsigned>(i); x != 1; ++steps) x = x % 2 == 0 ? x / 2 : 3 * x + 1;
    value = steps;
  } else {
    if (i > n) {
      out[i] = -1;
      return;
    }
    switch (i % 5) {
      case 0: value = 100; break;
      case 1: value += 200; break;
      case 2: value *= 3; break;
      case 3: value ^= 0x55; break;
      default: value = ~value;
    }
  }
  value += __popc(__activemask());
  out[i] = value;
}

/// Every lane in turn takes a lock that another lane of its warp may hold.
__global__ void spin_lock(int* lock, int* counter) {
  bool done = false;
  while (!done) {
    if (atomicCAS(lock, 0, 1) == 0) {
      *static_cast<volatile int*>(counter) = *static_cast<volatile int*>(counter) + 1;
      __threadfence();
      atomicExch(lock, 0);
      done = true;
    }
  }
}

__device__ __noinline__ float scale(float x, float by) { return x * by; }
__device__ __noinline__ float shift(float x, float by) { return x + by; }
using Function = float (*)(float, float);
__device__ Function functions[2] = {scale, shift};
__device__ int initialised_table[4] = {3, 1, 4, 1};
__constant__ float constants[2] = {0.5f, 0.25f};

__global__ void calls(const float* in, float* out, int which) {
  const int i = threadIdx.x;
  out[i] = functions[which ^ (i & 1)](in[i], 3.0f) + scale(constants[i & 1], static_cast<float>(initialised_table[i & 3]));
}

__global__ void prints(int n) {
  if (static_cast<int>(threadIdx.x) < n) printf("thread %d of %s: %.2f %lld %%\n", threadIdx.x, "block", 0.5 * threadIdx.x, 1ll << 40);
}

__global__ void local_array(int* out, int n) {
  int values[16];
  for (int i = 0; i < 16; ++i) values[(i * n) % 16] = i * static_cast<int>(threadIdx.x);
  int sum = 0;
  for (int i = 0; i < n; ++i) sum += values[(i + threadIdx.x) % 16];
  out[threadIdx.x] = sum;
}

__global__ void warp_functions(const int* in, int* out) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x;
  const int v = in[lane];
  int* row = out + lane * 12;
  row[0] = __shfl_sync(all, v, (lane * 5) % 32);
  row[1] = __shfl_up_sync(all, v, 3);
  row[2] = __shfl_down_sync(all, v, 3, 8);
  row[3] = __shfl_xor_sync(all, v, 21);
  row[4] = static_cast<int>(__ballot_sync(all, v & 1));
  row[5] = __any_sync(all, v == 12345);
  row[6] = __all_sync(all, v >= 0);
  row[7] = static_cast<int>(__match_any_sync(all, v & 7));
  row[8] = static_cast<int>(__reduce_add_sync(all, static_cast<unsigned>(v)));
  row[9] = __reduce_max_sync(all, v - 50);
  row[10] = __syncthreads_count(v & 1);
  row[11] = __syncthreads_and(v >= 0) + 2 * __syncthreads_or(v == 12345);
}

__global__ void float_atomics(float* sum, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(sum, 1.0f / static_cast<float>(i + 1));
}

/// One warp a 16 x 8 tile of C = A * B^T, A [M, K], B [N, K].
__global__ void gemm_mma(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int n, int k) {
  __shared__ __align__(16) __nv_bfloat16 tile_a[16][24];
  __shared__ __align__(16) __nv_bfloat16 tile_b[8][24];
  const int lane = threadIdx.x;
  const int row = blockIdx.y * 16;
  const int column = blockIdx.x * 8;
  float d[4] = {0, 0, 0, 0};
  for (int at = 0; at < k; at += 16) {
    const auto to_a = static_cast<unsigned>(__cvta_generic_to_shared(&tile_a[lane / 2][lane % 2 * 8]));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to_a), "l"(&a[(row + lane / 2) * k + at + lane % 2 * 8]));
    if (lane < 16) {
      const auto to_b = static_cast<unsigned>(__cvta_generic_to_shared(&tile_b[lane / 2][lane % 2 * 8]));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to_b), "l"(&b[(column + lane / 2) * k + at + lane % 2 * 8]));
    }
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    unsigned fa[4], fb[2];
    const auto from_a = static_cast<unsigned>(__cvta_generic_to_shared(&tile_a[lane % 16][lane / 16 * 8]));
    const auto from_b = static_cast<unsigned>(__cvta_generic_to_shared(&tile_b[lane % 8][lane / 8 % 2 * 8]));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                 : "r"(from_a));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(fb[0]), "=r"(fb[1]) : "r"(from_b));
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) c[(row + lane / 4 + 8 * (i / 2)) * n + column + lane % 4 * 2 + i % 2] = d[i];
}
}  // extern "C"

namespace wmma = nvcuda::wmma;

/// D = A * B + C of one fragment; A row by row, B column by column.
template <class T, class Memory, class Sum, int kM, int kN, int kK>
__device__ void wmma_one(const Memory* a, const Memory* b, const Sum* c, Sum* d) {
  wmma::fragment<wmma::matrix_a, kM, kN, kK, T, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, kM, kN, kK, T, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, kM, kN, kK, Sum> fc;
  wmma::load_matrix_sync(fa, a, kK);
  wmma::load_matrix_sync(fb, b, kK);
  wmma::load_matrix_sync(fc, c, kN, wmma::mem_row_major);
  wmma::mma_sync(fc, fa, fb, fc);
  wmma::store_matrix_sync(d, fc, kN, wmma::mem_row_major);
}
extern "C" {
#define WMMA_KERNEL(name, T, Memory, Sum, m, n, k)                                              \
  __global__ void name(const Memory* a, const Memory* b, const Sum* c, Sum* d) {               \
    wmma_one<T, Memory, Sum, m, n, k>(a, b, c, d);                                             \
  }
WMMA_KERNEL(wmma_bf16_16_16, __nv_bfloat16, __nv_bfloat16, float, 16, 16, 16)
WMMA_KERNEL(wmma_bf16_32_8, __nv_bfloat16, __nv_bfloat16, float, 32, 8, 16)
WMMA_KERNEL(wmma_bf16_8_32, __nv_bfloat16, __nv_bfloat16, float, 8, 32, 16)
WMMA_KERNEL(wmma_f16_16_16, __half, __half, float, 16, 16, 16)
WMMA_KERNEL(wmma_s8_16_16, signed char, signed char, int, 16, 16, 16)
WMMA_KERNEL(wmma_u8_32_8, unsigned char, unsigned char, int, 32, 8, 16)
WMMA_KERNEL(wmma_tf32, wmma::precision::tf32, float, float, 16, 16, 8)
}
