// As much of cuBLAS as try_llmc.py's programs call, as plain kernels: the library itself is machine code only.
// Column-major, f32 or bf16 matrices, f32 arithmetic; a call that asks for anything else ends the program and says so.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasComputeType_t { CUBLAS_COMPUTE_16F, CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32 };
enum cublasMath_t { CUBLAS_DEFAULT_MATH, CUBLAS_TF32_TENSOR_OP_MATH };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT };
struct cublasContext {};
using cublasHandle_t = cublasContext*;

namespace stand_in {

/// A matrix of a batch: element (row, column) lies at row + column * leading, transposed where `transpose` says so.
struct Matrix {
  void* data;
  cudaDataType type;
  long long leading, stride;
  bool transpose;
};

__device__ inline float load(const Matrix& matrix, long long batch, int row, int column) {
  if (matrix.transpose) {
    const int swap = row;
    row = column;
    column = swap;
  }
  const long long at = batch * matrix.stride + row + column * matrix.leading;
  return matrix.type == CUDA_R_16BF ? __bfloat162float(static_cast<const __nv_bfloat16*>(matrix.data)[at])
                                    : static_cast<const float*>(matrix.data)[at];
}

/// out = alpha a b + beta out (+ bias by row), a thread for each element.
static __global__ void gemm(int m, int n, int k, float alpha, Matrix a, Matrix b, float beta, Matrix out,
                            const float* bias) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  const int column = blockIdx.y;
  if (row >= m) return;
  float sum = 0;
  for (int i = 0; i < k; ++i) sum += load(a, blockIdx.z, row, i) * load(b, blockIdx.z, i, column);
  float value = alpha * sum;
  if (beta != 0) value += beta * load(out, blockIdx.z, row, column);
  if (bias != nullptr) value += bias[row];
  const long long at = blockIdx.z * out.stride + row + column * out.leading;
  if (out.type == CUDA_R_16BF)
    static_cast<__nv_bfloat16*>(out.data)[at] = __float2bfloat16(value);
  else
    static_cast<float*>(out.data)[at] = value;
}

inline void run(int m, int n, int k, float alpha, Matrix a, Matrix b, float beta, Matrix out, int batches,
                const float* bias = nullptr, cudaStream_t stream = nullptr) {
  for (const Matrix& matrix : {a, b, out})
    if (matrix.type != CUDA_R_32F && matrix.type != CUDA_R_16BF) {
      std::fprintf(stderr, "cuBLAS stand-in: data type %d is not modelled\n", static_cast<int>(matrix.type));
      std::exit(9);
    }
  gemm<<<dim3((m + 127) / 128, n, batches), 128, 0, stream>>>(m, n, k, alpha, a, b, beta, out, bias);
}

inline Matrix matrix(const void* data, cudaDataType type, long long leading, long long stride, bool transpose = false) {
  return {const_cast<void*>(data), type, leading, stride, transpose};
}

}  // namespace stand_in

inline cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  static cublasContext context;
  *handle = &context;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasDestroy(cublasHandle_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }

inline cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                                                 int n, int k, const void* alpha, const void* a, cudaDataType type_a,
                                                 int lda, long long stride_a, const void* b, cudaDataType type_b,
                                                 int ldb, long long stride_b, const void* beta, void* out,
                                                 cudaDataType type_out, int ldc, long long stride_out, int batches,
                                                 cublasComputeType_t compute, cublasGemmAlgo_t) {
  if (compute == CUBLAS_COMPUTE_16F) {
    std::fprintf(stderr, "cuBLAS stand-in: f16 accumulation is not modelled\n");
    std::exit(9);
  }
  stand_in::run(m, n, k, *static_cast<const float*>(alpha),
                stand_in::matrix(a, type_a, lda, stride_a, op_a == CUBLAS_OP_T),
                stand_in::matrix(b, type_b, ldb, stride_b, op_b == CUBLAS_OP_T), *static_cast<const float*>(beta),
                stand_in::matrix(out, type_out, ldc, stride_out), batches);
  return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                                int m, int n, int k, const float* alpha, const float* a, int lda,
                                                long long stride_a, const float* b, int ldb, long long stride_b,
                                                const float* beta, float* out, int ldc, long long stride_out,
                                                int batches) {
  return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, stride_a, b, CUDA_R_32F,
                                    ldb, stride_b, beta, out, CUDA_R_32F, ldc, stride_out, batches, CUBLAS_COMPUTE_32F,
                                    CUBLAS_GEMM_DEFAULT);
}

inline cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                  int k, const float* alpha, const float* a, int lda, const float* b, int ldb,
                                  const float* beta, float* out, int ldc) {
  return cublasSgemmStridedBatched(handle, op_a, op_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, out, ldc, 0, 1);
}
