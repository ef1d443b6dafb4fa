// Calls of every kind: recursion by one function, by several and through pointers, with arrays on the stack; virtual
// functions, tables of functions, long lists of parameters, structs returned, alloca.
#include <algorithm>
#include <vector>

#include "check.h"

__device__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

__device__ bool is_odd(unsigned n);
__device__ __noinline__ bool is_even(unsigned n) { return n == 0 ? true : is_odd(n - 1); }
__device__ __noinline__ bool is_odd(unsigned n) { return n == 0 ? false : is_even(n - 1); }

__global__ void numbers(int* out, int depth) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = fibonacci(i % depth) * 2 + (is_even(static_cast<unsigned>(i)) ? 1 : 0);
}

__device__ void sort(int* values, int low, int high) {
  if (low >= high) return;
  const int pivot = values[(low + high) / 2];
  int i = low, j = high;
  while (i <= j) {
    while (values[i] < pivot) ++i;
    while (values[j] > pivot) --j;
    if (i <= j) {
      const int held = values[i];
      values[i++] = values[j];
      values[j--] = held;
    }
  }
  sort(values, low, j);
  sort(values, i, high);
}

__global__ void sort_rows(int* values, int columns) { sort(values + threadIdx.x * columns, 0, columns - 1); }

/// Each depth keeps an array of its own, and hands its address down.
__device__ __noinline__ int weave(const int* above, int depth, int seed) {
  int mine[5];
  for (int i = 0; i < 5; ++i) mine[i] = seed * 7 + i * depth + (above != nullptr ? above[(i + 1) % 5] : 1);
  if (depth == 0) return mine[seed % 5];
  const int below = weave(mine, depth - 1, (seed * 3 + 1) % 11);
  int sum = below;
  for (int i = 0; i < 5; ++i) sum += mine[i] % 13;  // still what they were
  return sum;
}
int weave_on_host(const int* above, int depth, int seed) {
  int mine[5];
  for (int i = 0; i < 5; ++i) mine[i] = seed * 7 + i * depth + (above != nullptr ? above[(i + 1) % 5] : 1);
  if (depth == 0) return mine[seed % 5];
  int sum = weave_on_host(mine, depth - 1, (seed * 3 + 1) % 11);
  for (int i = 0; i < 5; ++i) sum += mine[i] % 13;
  return sum;
}
__global__ void weave_all(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = weave(nullptr, i % 6, i);
}

// ---- virtual functions, one of which calls others of its kind

struct Shape {
  __device__ virtual int area() const = 0;
  __device__ virtual ~Shape() {}
};
struct Box : Shape {
  int width, height;
  __device__ Box(int w, int h) : width(w), height(h) {}
  __device__ int area() const override { return width * height; }
};
struct Group : Shape {
  const Shape* first;
  const Shape* second;
  __device__ Group(const Shape* a, const Shape* b) : first(a), second(b) {}
  __device__ int area() const override { return first->area() + second->area(); }
};
__global__ void areas(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  const Box small(i, 2), large(3, i + 1);
  const Group inner(&small, &large);
  const Group outer(&inner, &small);
  const Shape* const shapes[] = {&small, &large, &inner, &outer};
  out[i] = shapes[i % 4]->area();
}

// ---- tables, many parameters, structs

using Binary = int (*)(int, int);
__device__ int add(int a, int b) { return a + b; }
__device__ int subtract(int a, int b) { return a - b; }
__device__ int multiply(int a, int b) { return a * b; }
__device__ Binary table[] = {add, subtract, multiply};

struct Wide {
  double first;
  int second[3];
  char third;
};
__device__ __noinline__ Wide many(int a, double b, char c, short d, long long e, float f, Wide g, int h, int i, int j) {
  return {b + f + g.first, {a + h, i - j, static_cast<int>(e)}, static_cast<char>(c + d + g.third)};
}
__global__ void through_table(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  const Wide wide = many(i, 0.5, 'a', 2, 1ll << 20, 1.5f, {2.0, {1, 2, 3}, 1}, i, 7, 3);
  const bool right = wide.first == 4.0 && wide.second[0] == 2 * i && wide.second[1] == 4 && wide.second[2] == 1 << 20 &&
                     wide.third == 'd';
  out[i] = right ? table[i % 3](i, 5) : -1000;
}

/// Dynamic stack memory; with an odd size, so that the next one has to be aligned.
__device__ __noinline__ int reversed_sum(int count) {
  char* odd = static_cast<char*>(__builtin_alloca(static_cast<size_t>(count) | 1));
  int* values = static_cast<int*>(__builtin_alloca(static_cast<size_t>(count) * sizeof(int)));
  for (int i = 0; i < count; ++i) odd[i] = static_cast<char>(i), values[i] = count - i;
  int sum = 0;
  for (int i = 0; i < count; ++i) sum += values[i] * odd[i];
  return sum;
}
__global__ void on_stack(int* out) {
  int sum = 0;
  for (int round = 0; round < 50; ++round)
    sum += reversed_sum(static_cast<int>(threadIdx.x) % 7 + 1);  // freed each time
  out[threadIdx.x] = sum;
}

__device__ __noinline__ int endless(int n) { return n < 0 ? n : endless(n + 1) + 1; }
__global__ void overflow(int* out) { out[0] = endless(0); }

int fibonacci_on_host(int n) { return n < 2 ? n : fibonacci_on_host(n - 1) + fibonacci_on_host(n - 2); }

int main(int count, char**) {
  int* device;
  const int threads = 64;
  SUCCEED(cudaMalloc(&device, threads * 16 * sizeof(int)));
  std::vector<int> out(threads * 16);
  const auto fetch = [&] { SUCCEED(cudaMemcpy(out.data(), device, out.size() * sizeof(int), cudaMemcpyDeviceToHost)); };
  SUCCEED(cudaMemset(device, 0, out.size() * sizeof(int)));
  if (count > 1) {
    overflow<<<1, 1>>>(device);
    std::puts(cudaGetErrorName(cudaDeviceSynchronize()));
    return 0;
  }

  numbers<<<1, threads>>>(device, 11);
  fetch();
  for (int i = 0; i < threads; ++i) REQUIRE(out[i] == fibonacci_on_host(i % 11) * 2 + (i % 2 == 0 ? 1 : 0));

  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<int>((i * 7919) % 1009);
  std::vector<int> sorted = out;
  SUCCEED(cudaMemcpy(device, out.data(), out.size() * sizeof(int), cudaMemcpyHostToDevice));
  sort_rows<<<1, threads>>>(device, 16);
  fetch();
  for (int row = 0; row < threads; ++row) std::sort(sorted.begin() + row * 16, sorted.begin() + (row + 1) * 16);
  REQUIRE(out == sorted);

  weave_all<<<1, threads>>>(device);
  fetch();
  for (int i = 0; i < threads; ++i) REQUIRE(out[i] == weave_on_host(nullptr, i % 6, i));

  areas<<<1, threads>>>(device);
  fetch();
  for (int i = 0; i < threads; ++i) {
    const int small = 2 * i, large = 3 * (i + 1);
    const int expected[] = {small, large, small + large, small + large + small};
    REQUIRE(out[i] == expected[i % 4]);
  }

  through_table<<<1, threads>>>(device);
  fetch();
  for (int i = 0; i < threads; ++i) REQUIRE(out[i] == (i % 3 == 0 ? i + 5 : i % 3 == 1 ? i - 5 : i * 5));

  on_stack<<<1, threads>>>(device);
  fetch();
  for (int i = 0; i < threads; ++i) {
    int sum = 0;
    const int size = i % 7 + 1;
    for (int at = 0; at < size; ++at) sum += (size - at) * at;
    REQUIRE(out[i] == 50 * sum);
  }
  SUCCEED(cudaFree(device));
  std::puts("called");
}
