// As much of cuBLASLt as try_llmc.py's programs call: see cublas_v2.h beside it.
#pragma once

#include <cstdint>
#include <cstring>

#include "cublas_v2.h"

enum cublasLtEpilogue_t {
  CUBLASLT_EPILOGUE_DEFAULT,
  CUBLASLT_EPILOGUE_BIAS,
  CUBLASLT_EPILOGUE_GELU,
  CUBLASLT_EPILOGUE_GELU_BIAS
};
enum cublasLtMatmulDescAttributes_t {
  CUBLASLT_MATMUL_DESC_TRANSA,
  CUBLASLT_MATMUL_DESC_TRANSB,
  CUBLASLT_MATMUL_DESC_EPILOGUE,
  CUBLASLT_MATMUL_DESC_BIAS_POINTER
};
enum cublasLtMatmulPreferenceAttributes_t { CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES };

struct cublasLtMatmulDescription {
  cublasOperation_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const float* bias = nullptr;
};
struct cublasLtMatrixDescription {
  cudaDataType type;
  std::uint64_t rows, columns;
  std::int64_t leading;
};
struct cublasLtMatmulAlgo_t {};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
};
using cublasLtHandle_t = cublasContext*;
using cublasLtMatmulDesc_t = cublasLtMatmulDescription*;
using cublasLtMatrixLayout_t = cublasLtMatrixDescription*;
using cublasLtMatmulPreference_t = int*;

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { return cublasCreate(handle); }
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }

inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* out, cublasComputeType_t, cudaDataType) {
  *out = new cublasLtMatmulDescription;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t which) {
  delete which;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t which, cublasLtMatmulDescAttributes_t what,
                                                     const void* value, std::size_t bytes) {
  void* const fields[] = {&which->transpose_a, &which->transpose_b, &which->epilogue, &which->bias};
  std::memcpy(fields[what], value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* out, cudaDataType type, std::uint64_t rows,
                                                 std::uint64_t columns, std::int64_t leading) {
  *out = new cublasLtMatrixDescription{type, rows, columns, leading};
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t which) {
  delete which;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* out) {
  *out = nullptr;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                           cublasLtMatmulPreferenceAttributes_t, const void*,
                                                           std::size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                                     cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                     cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
                                                     cublasLtMatmulHeuristicResult_t*, int* found) {
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t how, const void* alpha, const void* a,
                                     cublasLtMatrixLayout_t of_a, const void* b, cublasLtMatrixLayout_t of_b,
                                     const void* beta, const void*, cublasLtMatrixLayout_t, void* out,
                                     cublasLtMatrixLayout_t of_out, const cublasLtMatmulAlgo_t*, void*, std::size_t,
                                     cudaStream_t stream) {
  if (how->epilogue == CUBLASLT_EPILOGUE_GELU || how->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS) {
    std::fprintf(stderr, "cuBLASLt stand-in: GELU is not modelled\n");
    std::exit(9);
  }
  const bool transpose = how->transpose_a == CUBLAS_OP_T;
  const auto inner = static_cast<int>(transpose ? of_a->rows : of_a->columns);
  stand_in::run(static_cast<int>(of_out->rows), static_cast<int>(of_out->columns), inner,
                *static_cast<const float*>(alpha), stand_in::matrix(a, of_a->type, of_a->leading, 0, transpose),
                stand_in::matrix(b, of_b->type, of_b->leading, 0, how->transpose_b == CUBLAS_OP_T),
                *static_cast<const float*>(beta), stand_in::matrix(out, of_out->type, of_out->leading, 0), 1,
                how->epilogue == CUBLASLT_EPILOGUE_BIAS ? how->bias : nullptr, stream);
  return CUBLAS_STATUS_SUCCESS;
}
