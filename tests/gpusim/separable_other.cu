#include "separable.h"

__device__ int shared_counter = 5;
__constant__ int factors[2];

static __device__ int offset = 7;
static __device__ __noinline__ int twisted(int x) { return 2 * x; }

__device__ int other_file(int x) { return (x + offset) * 3 + twisted(x) + common(x) - x - 1000; }

static __device__ int add(int a, int b) { return a + b; }
static __device__ int multiply(int a, int b) { return a * b; }
__device__ Operation operations[2] = {add, multiply};

__global__ void count() { ++shared_counter; }
