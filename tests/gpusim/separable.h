#pragma once

using Operation = int (*)(int, int);

extern __device__ int shared_counter;
extern __constant__ int factors[2];
extern __device__ Operation operations[2];
__device__ int other_file(int x);
__global__ void count();

/// In both files: one of them stays.
template <class T>
__device__ __noinline__ T common(T x) {
  return x + 1000;
}
