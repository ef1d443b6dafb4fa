// Lanes that leave nested loops at different times and go round the outer one again, while others still hold 64-bit
// pointers of the inner: a register of one lane must not be where another lane's, of another width, still is.
#include <cmath>
#include <vector>

#include "check.h"

/// out[m][t][c] = sum over i <= t of a[m][t][i] ((i == c) - a[m][t][c]) b[m][t][i], for c <= t: a thread for each c.
__global__ void triangle(float* out, const float* a, const float* b, int matrices, int size) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= size) return;
  for (int m = 0; m < matrices; ++m) {
    for (int row = column; row < size; ++row) {
      const float* const a_row = a + m * size * size + row * size;
      const float* const b_row = b + m * size * size + row * size;
      float sum = 0;
      for (int i = 0; i <= row; ++i) sum += a_row[i] * ((i == column ? 1.0f : 0.0f) - a_row[column]) * b_row[i];
      out[m * size * size + row * size + column] = sum;
    }
  }
}

int main() {
  const int matrices = 3, size = 256, count = matrices * size * size;
  std::vector<float> a(count), b(count), out(count);
  for (int i = 0; i < count; ++i) {
    a[i] = std::sin(static_cast<float>(i));
    b[i] = std::cos(3.0f * static_cast<float>(i));
  }
  float *device_a, *device_b, *device_out;
  SUCCEED(cudaMalloc(&device_a, count * sizeof(float)));
  SUCCEED(cudaMalloc(&device_b, count * sizeof(float)));
  SUCCEED(cudaMalloc(&device_out, count * sizeof(float)));
  SUCCEED(cudaMemcpy(device_a, a.data(), count * sizeof(float), cudaMemcpyHostToDevice));
  SUCCEED(cudaMemcpy(device_b, b.data(), count * sizeof(float), cudaMemcpyHostToDevice));
  SUCCEED(cudaMemset(device_out, 0, count * sizeof(float)));
  triangle<<<4, 64>>>(device_out, device_a, device_b, matrices, size);
  SUCCEED(cudaMemcpy(out.data(), device_out, count * sizeof(float), cudaMemcpyDeviceToHost));
  int wrong = 0;
  for (int m = 0; m < matrices; ++m) {
    for (int row = 0; row < size; ++row) {
      const float* const a_row = a.data() + (m * size + row) * size;
      const float* const b_row = b.data() + (m * size + row) * size;
      for (int column = 0; column <= row; ++column) {
        double sum = 0;
        for (int i = 0; i <= row; ++i) sum += a_row[i] * ((i == column ? 1.0 : 0.0) - a_row[column]) * b_row[i];
        wrong += !(std::fabs(out[(m * size + row) * size + column] - sum) < 1e-4);
      }
    }
  }
  std::printf("%d wrong\n", wrong);
  SUCCEED(cudaFree(device_a));
  SUCCEED(cudaFree(device_b));
  SUCCEED(cudaFree(device_out));
  return wrong == 0 ? 0 : 5;
}
