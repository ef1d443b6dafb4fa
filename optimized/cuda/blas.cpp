// The one file that includes cuBLAS: NVIDIA's header for GPUs, gpusim's for the simulator.
#include "optimized/cuda/blas.h"

#include <cublasLt.h>

#include <algorithm>
#include <type_traits>

namespace dsv2::cuda {
namespace {

void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]]
    fail("cuBLAS: ", call, ": ", cublasLtGetStatusName(status));
}
#define DSV2_CUBLAS(call) check((call), #call)

/// What the library makes and destroys.
template <class Handle, auto destroy>
struct Owned {
  struct Destroy {
    void operator()(Handle handle) const { destroy(handle); }
  };
  std::unique_ptr<std::remove_pointer_t<Handle>, Destroy> handle;
  operator Handle() const { return handle.get(); }
};

using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
Layout layout(cudaDataType type, std::int64_t rows, std::int64_t columns, std::int64_t leading) {
  cublasLtMatrixLayout_t made = nullptr;
  DSV2_CUBLAS(cublasLtMatrixLayoutCreate(&made, type, static_cast<std::uint64_t>(rows),
                                         static_cast<std::uint64_t>(columns), leading));
  return {decltype(Layout::handle)(made)};
}

using Description = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
Description description(const float* bias) {
  cublasLtMatmulDesc_t made = nullptr;
  DSV2_CUBLAS(cublasLtMatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Description out{decltype(Description::handle)(made)};
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
    DSV2_CUBLAS(cublasLtMatmulDescSetAttribute(out, attribute, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (bias != nullptr) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  return out;
}

/// Of a pointer, in bytes, as far as any algorithm cares.
std::uint32_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p) | 256;
  return static_cast<std::uint32_t>(address & -address);
}

using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;
Preference preference(const MatmulParams& p, std::int64_t workspace) {
  cublasLtMatmulPreference_t made = nullptr;
  DSV2_CUBLAS(cublasLtMatmulPreferenceCreate(&made));
  Preference out{decltype(Preference::handle)(made)};
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    DSV2_CUBLAS(cublasLtMatmulPreferenceSetAttribute(out, attribute, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(workspace));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.weight.data));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.x));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.y));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.y));
  return out;
}

}  // namespace

void Blas::Destroy::operator()(cublasLtContext* handle) const { cublasLtDestroy(handle); }

Blas::Blas() {
  cublasLtHandle_t handle = nullptr;
  DSV2_CUBLAS(cublasLtCreate(&handle));
  handle_.reset(handle);
}

void Blas::make_room(int rows, std::int64_t in, std::int64_t hidden) {
  if (rows < kManyRows) return;
  workspace_.get(workspace_for(rows, in, hidden));
  rounded_.get(rows * rounded_stride(in));
  up_.get(rows * hidden);
}

void Blas::matmul(const MatmulParams& p, cudaStream_t stream) const {
  const Matrix& w = p.weight;
  const cudaDataType type = w.storage == Storage::bf16 ? CUDA_R_16BF : CUDA_R_32F;
  // The library's matrices are column-major, in which ours are their transposes: y^T = W x^T.
  const Layout of_w = layout(type, w.in, w.out, w.stride), of_x = layout(type, w.in, p.rows, p.x_stride);
  const Layout of_y = layout(CUDA_R_32F, w.out, p.rows, p.y_stride);
  const Description how = description(w.bias);
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  DSV2_CUBLAS(cublasLtMatmulAlgoGetHeuristic(handle_.get(), how, of_w, of_x, of_y, of_y,
                                             preference(p, workspace_.bytes()), 1, &best, &found));
  DSV2_CHECK(found == 1, "cuBLAS: no algorithm for ", p.rows, " rows and a matrix of ", w.out, " x ", w.in);
  const float alpha = 1, beta = p.adds ? 1 : 0;
  DSV2_CUBLAS(cublasLtMatmul(handle_.get(), how, &alpha, w.data, of_w, p.x, of_x, &beta, p.y, of_y, p.y, of_y,
                             &best.algo, workspace_.data(), static_cast<std::size_t>(workspace_.bytes()), stream));
}

}  // namespace dsv2::cuda
