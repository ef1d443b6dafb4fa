// malloc, free, new and delete of the device: lists that outlive their kernel, a heap that runs out, and what is wrong.
#include <cstring>
#include <vector>

#include "check.h"

struct Node {
  int value;
  Node* next;
};

__global__ void build(Node** heads, int length) {
  Node* head = nullptr;
  for (int i = 0; i < length; ++i) {
    Node* const node = static_cast<Node*>(malloc(sizeof(Node)));
    node->value = static_cast<int>(threadIdx.x) + i;
    node->next = head;
    head = node;
  }
  heads[threadIdx.x] = head;
}
__global__ void sum_and_free(Node** heads, int* out) {
  int sum = 0;
  for (Node* node = heads[threadIdx.x]; node != nullptr;) {
    Node* const next = node->next;
    sum += node->value;
    free(node);
    node = next;
  }
  out[threadIdx.x] = sum;
}
__global__ void objects(int* out) {
  int* const values = new int[4];
  for (int i = 0; i < 4; ++i) values[i] = i + static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[1] * values[3];
  delete[] values;
}
__global__ void exhaust(int* out) {
  void* const large = malloc(1 << 20);
  void* const too_much = malloc(std::size_t{1} << 40);
  out[0] = large != nullptr;
  out[1] = too_much != nullptr;
  free(large);
  free(nullptr);
}

__global__ void leak(int* out) {
  out[0] = malloc(24) != nullptr;  // FAULT leak
}
__global__ void twice() {
  void* const p = malloc(8);
  free(p);
  free(p);  // FAULT twice
}
__global__ void beyond(int* out) {
  int* const p = static_cast<int*>(malloc(4 * sizeof(int)));
  for (int i = 0; i < 4; ++i) p[i] = i;
  out[0] = p[static_cast<int>(threadIdx.x) + 4];  // FAULT beyond
  free(p);
}

int main(int count, char** arguments) {
  const int threads = 40;
  int* out;
  Node** heads;
  SUCCEED(cudaMalloc(&out, threads * sizeof(int)));
  SUCCEED(cudaMalloc(&heads, threads * sizeof(Node*)));
  std::vector<int> found(threads);
  const auto fetch = [&](int n) { SUCCEED(cudaMemcpy(found.data(), out, n * sizeof(int), cudaMemcpyDeviceToHost)); };
  SUCCEED(cudaMemset(out, 0, threads * sizeof(int)));
  if (count > 1) {
    if (std::strcmp(arguments[1], "leak") == 0) leak<<<1, 1>>>(out);
    if (std::strcmp(arguments[1], "twice") == 0) twice<<<1, 1>>>();
    if (std::strcmp(arguments[1], "beyond") == 0) beyond<<<1, 1>>>(out);
    std::puts(cudaGetErrorName(cudaDeviceSynchronize()));
    cudaFree(out);
    cudaFree(heads);
    return 0;
  }
  build<<<1, threads>>>(heads, 5);
  sum_and_free<<<1, threads>>>(heads, out);
  fetch(threads);
  for (int i = 0; i < threads; ++i) REQUIRE(found[i] == 5 * i + 10);
  objects<<<1, threads>>>(out);
  fetch(threads);
  for (int i = 0; i < threads; ++i) REQUIRE(found[i] == (i + 1) * (i + 3));
  exhaust<<<1, 1>>>(out);
  fetch(2);
  REQUIRE(found[0] == 1 && found[1] == 0);
  SUCCEED(cudaFree(out));
  SUCCEED(cudaFree(heads));
  SUCCEED(cudaDeviceReset());
  SUCCEED(cudaDeviceSetLimit(cudaLimitMallocHeapSize, 1 << 19));
  SUCCEED(cudaMalloc(&out, threads * sizeof(int)));
  exhaust<<<1, 1>>>(out);
  fetch(2);
  REQUIRE(found[0] == 0 && found[1] == 0);
  SUCCEED(cudaFree(out));
  std::puts("allocated");
}
