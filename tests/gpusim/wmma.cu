// nvcuda::wmma in every type, shape and layout, from global and from shared memory, against sums on the host.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "check.h"

namespace wmma = nvcuda::wmma;

template <class T>
struct Memory {
  using Type = T;
};
template <>
struct Memory<wmma::precision::tf32> {
  using Type = float;
};

template <class T, class S, int M, int N, int K, class LayoutA, class LayoutB, bool kShared>
__global__ void multiply(const typename Memory<T>::Type* a, const typename Memory<T>::Type* b, const S* c, S* d,
                         bool column_major_d) {
  using Element = typename Memory<T>::Type;
  __shared__ alignas(128) Element staged[M * K];
  constexpr int kStrideA = std::is_same_v<LayoutA, wmma::row_major> ? K : M;
  constexpr int kStrideB = std::is_same_v<LayoutB, wmma::row_major> ? N : K;
  wmma::fragment<wmma::matrix_a, M, N, K, T, LayoutA> fragment_a;
  wmma::fragment<wmma::matrix_b, M, N, K, T, LayoutB> fragment_b;
  wmma::fragment<wmma::accumulator, M, N, K, S> sums;
  if constexpr (kShared) {
    for (int i = static_cast<int>(threadIdx.x); i < M * K; i += 32) staged[i] = a[i];
    __syncwarp();
    wmma::load_matrix_sync(fragment_a, staged, kStrideA);
  } else {
    wmma::load_matrix_sync(fragment_a, a, kStrideA);
  }
  wmma::load_matrix_sync(fragment_b, b, kStrideB);
  wmma::load_matrix_sync(sums, c, N, wmma::mem_row_major);
  if constexpr (std::is_same_v<T, wmma::precision::tf32>) {
    for (int i = 0; i < fragment_a.num_elements; ++i) fragment_a.x[i] = wmma::__float_to_tf32(fragment_a.x[i]);
    for (int i = 0; i < fragment_b.num_elements; ++i) fragment_b.x[i] = wmma::__float_to_tf32(fragment_b.x[i]);
  }
  wmma::mma_sync(sums, fragment_a, fragment_b, sums);
  for (int i = 0; i < sums.num_elements; ++i) sums.x[i] = sums.x[i] + sums.x[i];
  wmma::store_matrix_sync(d, sums, column_major_d ? M : N, column_major_d ? wmma::mem_col_major : wmma::mem_row_major);
}

int wrong = 0, cases = 0;
unsigned state = 1;
int random_number(int low, int high) {
  state = state * 1664525u + 1013904223u;
  return low + static_cast<int>(state >> 8) % (high - low + 1);
}

template <class T, class S, int M, int N, int K, class LayoutA, class LayoutB, bool kShared>
void test(bool column_major_d) {
  using Element = typename Memory<T>::Type;
  const bool is_unsigned = std::is_same_v<T, unsigned char>;
  std::vector<Element> a(M * K), b(K * N);
  std::vector<S> c(M * N), d(M * N);
  for (auto& x : a) x = static_cast<Element>(static_cast<float>(random_number(is_unsigned ? 0 : -7, 7)));
  for (auto& x : b) x = static_cast<Element>(static_cast<float>(random_number(is_unsigned ? 0 : -7, 7)));
  for (auto& x : c) x = static_cast<S>(static_cast<float>(random_number(-20, 20)));
  Element *device_a, *device_b;
  S *device_c, *device_d;
  SUCCEED(cudaMalloc(&device_a, a.size() * sizeof(Element)));
  SUCCEED(cudaMalloc(&device_b, b.size() * sizeof(Element)));
  SUCCEED(cudaMalloc(&device_c, c.size() * sizeof(S)));
  SUCCEED(cudaMalloc(&device_d, d.size() * sizeof(S)));
  SUCCEED(cudaMemcpy(device_a, a.data(), a.size() * sizeof(Element), cudaMemcpyHostToDevice));
  SUCCEED(cudaMemcpy(device_b, b.data(), b.size() * sizeof(Element), cudaMemcpyHostToDevice));
  SUCCEED(cudaMemcpy(device_c, c.data(), c.size() * sizeof(S), cudaMemcpyHostToDevice));
  multiply<T, S, M, N, K, LayoutA, LayoutB, kShared><<<1, 32>>>(device_a, device_b, device_c, device_d, column_major_d);
  SUCCEED(cudaMemcpy(d.data(), device_d, d.size() * sizeof(S), cudaMemcpyDeviceToHost));
  ++cases;
  const auto number = [](auto x) { return static_cast<double>(static_cast<float>(x)); };
  constexpr bool kRowA = std::is_same_v<LayoutA, wmma::row_major>, kRowB = std::is_same_v<LayoutB, wmma::row_major>;
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      double sum = number(c[m * N + n]);
      for (int k = 0; k < K; ++k)
        sum += number(a[kRowA ? m * K + k : k * M + m]) * number(b[kRowB ? k * N + n : n * K + k]);
      const double found = number(d[column_major_d ? n * M + m : m * N + n]);
      if (found == 2 * sum) continue;
      ++wrong;
      std::printf("case %d, %dx%dx%d: row %d column %d: %g, expected %g\n", cases, M, N, K, m, n, found, 2 * sum);
      m = M;
      break;
    }
  }
  SUCCEED(cudaFree(device_a));
  SUCCEED(cudaFree(device_b));
  SUCCEED(cudaFree(device_c));
  SUCCEED(cudaFree(device_d));
}

template <class T, class S, int M, int N, int K>
void layouts() {
  test<T, S, M, N, K, wmma::row_major, wmma::row_major, false>(false);
  test<T, S, M, N, K, wmma::row_major, wmma::col_major, true>(true);
  test<T, S, M, N, K, wmma::col_major, wmma::row_major, false>(true);
  test<T, S, M, N, K, wmma::col_major, wmma::col_major, true>(false);
}
template <class T, class S>
void shapes() {
  layouts<T, S, 16, 16, 16>();
  layouts<T, S, 32, 8, 16>();
  layouts<T, S, 8, 32, 16>();
}

// ---- saturation, and numbers narrower than a byte

__global__ void saturate(const signed char* a, const signed char* b, const int* c, int* d) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, signed char, wmma::row_major> fragment_a;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, signed char, wmma::row_major> fragment_b;
  wmma::fragment<wmma::accumulator, 16, 16, 16, int> sums;
  wmma::load_matrix_sync(fragment_a, a, 16);
  wmma::load_matrix_sync(fragment_b, b, 16);
  wmma::load_matrix_sync(sums, c, 16, wmma::mem_row_major);
  wmma::mma_sync(sums, fragment_a, fragment_b, sums, true);
  wmma::store_matrix_sync(d, sums, 16, wmma::mem_row_major);
}

template <class T, int K>
__global__ void narrow(const unsigned* a, const unsigned* b, int* d) {
  wmma::fragment<wmma::matrix_a, 8, 8, K, T, wmma::row_major> fragment_a;
  wmma::fragment<wmma::matrix_b, 8, 8, K, T, wmma::col_major> fragment_b;
  wmma::fragment<wmma::accumulator, 8, 8, K, int> sums;
  wmma::fill_fragment(sums, 3);
  wmma::load_matrix_sync(fragment_a, a, K);
  wmma::load_matrix_sync(fragment_b, b, K);
  if constexpr (K == 128) {
    wmma::bmma_sync(sums, fragment_a, fragment_b, sums, wmma::experimental::bmmaBitOpXOR);
  } else {
    wmma::mma_sync(sums, fragment_a, fragment_b, sums);
  }
  wmma::store_matrix_sync(d, sums, 8, wmma::mem_row_major);
}

template <class T, int K, class Value>
void test_narrow(Value value) {
  std::vector<unsigned> a(32), b(32);
  for (auto& x : a) x = static_cast<unsigned>(random_number(0, 1 << 20)) * 4099u;
  for (auto& x : b) x = static_cast<unsigned>(random_number(0, 1 << 20)) * 5003u;
  unsigned *device_a, *device_b;
  int* device_d;
  SUCCEED(cudaMalloc(&device_a, sizeof(unsigned) * 32));
  SUCCEED(cudaMalloc(&device_b, sizeof(unsigned) * 32));
  SUCCEED(cudaMalloc(&device_d, sizeof(int) * 64));
  SUCCEED(cudaMemcpy(device_a, a.data(), 128, cudaMemcpyHostToDevice));
  SUCCEED(cudaMemcpy(device_b, b.data(), 128, cudaMemcpyHostToDevice));
  narrow<T, K><<<1, 32>>>(device_a, device_b, device_d);
  int d[64];
  SUCCEED(cudaMemcpy(d, device_d, sizeof d, cudaMemcpyDeviceToHost));
  constexpr int kBits = 128 / K;
  const auto at = [&](const std::vector<unsigned>& words, int row, int k) {
    const int bit = (row * K + k) * kBits;
    return static_cast<int>(words[bit / 32] >> (bit % 32) & ((1u << kBits) - 1));
  };
  ++cases;
  for (int m = 0; m < 8; ++m) {
    for (int n = 0; n < 8; ++n) {
      int sum = 3;
      for (int k = 0; k < K; ++k) sum += value(at(a, m, k), at(b, n, k));
      if (d[m * 8 + n] == sum) continue;
      ++wrong;
      std::printf("narrow, %d: row %d column %d: %d, expected %d\n", K, m, n, d[m * 8 + n], sum);
    }
  }
  SUCCEED(cudaFree(device_a));
  SUCCEED(cudaFree(device_b));
  SUCCEED(cudaFree(device_d));
}

int main() {
  shapes<__half, float>();
  shapes<__half, __half>();
  shapes<__nv_bfloat16, float>();
  shapes<signed char, int>();
  shapes<unsigned char, int>();
  layouts<wmma::precision::tf32, float, 16, 16, 8>();
  layouts<double, double, 8, 8, 4>();
  test_narrow<wmma::experimental::precision::s4, 32>(
      [](int x, int y) { return (x ^ 8) * 1 - 8 == 0 ? 0 : ((x ^ 8) - 8) * ((y ^ 8) - 8); });
  test_narrow<wmma::experimental::precision::u4, 32>([](int x, int y) { return x * y; });
  test_narrow<wmma::experimental::precision::b1, 128>([](int x, int y) { return x != y ? 1 : 0; });

  signed char* bytes;
  int* words;
  SUCCEED(cudaMalloc(&bytes, 512));
  SUCCEED(cudaMalloc(&words, 2 * 256 * sizeof(int)));
  SUCCEED(cudaMemset(bytes, 100, 512));
  std::vector<int> c(256, 2147480000), d(256);
  SUCCEED(cudaMemcpy(words, c.data(), 1024, cudaMemcpyHostToDevice));
  saturate<<<1, 32>>>(bytes, bytes + 256, words, words + 256);
  SUCCEED(cudaMemcpy(d.data(), words + 256, 1024, cudaMemcpyDeviceToHost));
  REQUIRE(std::all_of(d.begin(), d.end(), [](int x) { return x == 2147483647; }));
  SUCCEED(cudaFree(bytes));
  SUCCEED(cudaFree(words));
  std::printf("%d products, %d wrong\n", cases, wrong);
  return wrong == 0 ? 0 : 5;
}
