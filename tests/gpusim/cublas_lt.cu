// Products by cuBLASLt, which gpusim answers: right against plain loops, in stream order, in a graph; what is refused, and
// what is found when the stream comes to it.
#include <cublasLt.h>
#include <cuda_bf16.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"

#define SUCCEED_LT(call) require((call) == CUBLAS_STATUS_SUCCESS, #call, __LINE__)
#define REFUSE_LT(call, status) require((call) == (status), #call " is " #status, __LINE__)

__global__ void fill(float* x, float value, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) x[i] = value;
}

// op(A) is m x k, op(B) k x n; leading dimensions are larger than the matrices.
constexpr int m = 37, n = 19, k = 53, kPad = 3;
constexpr std::size_t kWorkspace = 1 << 16;

template <class T>
struct Matrix {
  int rows, columns, leading;
  std::vector<T> host;
  T* device = nullptr;
  cublasLtMatrixLayout_t layout = nullptr;

  Matrix(int rows_, int columns_, unsigned seed) : rows(rows_), columns(columns_), leading(rows_ + kPad) {
    for (int i = 0; i < leading * columns; ++i) {
      seed = seed * 1664525 + 1013904223;
      host.push_back(static_cast<T>(static_cast<float>(seed >> 16) / 65536.0f - 0.5f));
    }
    SUCCEED(cudaMalloc(&device, bytes()));
    SUCCEED(cudaMemcpy(device, host.data(), bytes(), cudaMemcpyHostToDevice));
    const cudaDataType type = sizeof(T) == 2 ? CUDA_R_16BF : CUDA_R_32F;
    SUCCEED_LT(cublasLtMatrixLayoutCreate(&layout, type, rows, columns, leading));
  }
  ~Matrix() {
    SUCCEED_LT(cublasLtMatrixLayoutDestroy(layout));
    SUCCEED(cudaFree(device));
  }
  std::size_t bytes() const { return host.size() * sizeof(T); }
  double at(int row, int column) const { return static_cast<float>(host[row + column * leading]); }
  std::vector<T> now(cudaStream_t stream) const {
    std::vector<T> out(host.size());
    SUCCEED(cudaMemcpyAsync(out.data(), device, bytes(), cudaMemcpyDeviceToHost, stream));
    SUCCEED(cudaStreamSynchronize(stream));
    return out;
  }
};

template <class T>
struct Product {
  bool transpose_a, transpose_b;
  Matrix<T> a, b;
  Matrix<float> d{m, n, 3};
  Matrix<float> bias{m, 1, 4};
  float alpha = 1, beta = 0;
  void* workspace;
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t how;
  cublasLtMatmulPreference_t preference;
  cublasLtMatmulHeuristicResult_t best{};
  cudaStream_t stream;

  explicit Product(bool ta = true, bool tb = false)
      : transpose_a(ta), transpose_b(tb), a(ta ? k : m, ta ? m : k, 1), b(tb ? n : k, tb ? k : n, 2) {
    SUCCEED(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    SUCCEED(cudaMalloc(&workspace, kWorkspace));
    SUCCEED_LT(cublasLtCreate(&handle));
    SUCCEED_LT(cublasLtMatmulDescCreate(&how, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(CUBLASLT_MATMUL_DESC_TRANSA, ta ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, tb ? CUBLAS_OP_T : CUBLAS_OP_N);
    SUCCEED_LT(cublasLtMatmulPreferenceCreate(&preference));
    const std::uint64_t most = kWorkspace;
    SUCCEED_LT(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most,
                                                    sizeof most));
    int found = 0;
    SUCCEED_LT(find(&best, &found));
    REQUIRE(found == 1);
    REQUIRE(best.workspaceSize <= kWorkspace);
  }
  ~Product() {
    SUCCEED_LT(cublasLtMatmulPreferenceDestroy(preference));
    SUCCEED_LT(cublasLtMatmulDescDestroy(how));
    SUCCEED_LT(cublasLtDestroy(handle));
    SUCCEED(cudaFree(workspace));
    SUCCEED(cudaStreamDestroy(stream));
  }
  template <class V>
  void set(cublasLtMatmulDescAttributes_t attribute, V value) {
    SUCCEED_LT(cublasLtMatmulDescSetAttribute(how, attribute, &value, sizeof value));
  }
  void add_bias() {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.device);
  }
  cublasStatus_t find(cublasLtMatmulHeuristicResult_t* results, int* found) {
    return cublasLtMatmulAlgoGetHeuristic(handle, how, a.layout, b.layout, d.layout, d.layout, preference, 1, results,
                                          found);
  }
  cublasStatus_t run() { return run_with(a.device, d.device, workspace, kWorkspace); }
  cublasStatus_t run_with(const void* from, void* into, void* scratch, std::size_t bytes) {
    return cublasLtMatmul(handle, how, &alpha, from, a.layout, b.device, b.layout, &beta, into, d.layout, into,
                          d.layout, &best.algo, scratch, bytes, stream);
  }
  /// Against sums in double, of `times` runs of d = alpha a b + beta d + bias; what lies between columns is as it was.
  void check(bool with_bias, int times = 1) {
    const std::vector<float> found = d.now(stream);
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < d.leading; ++i) {
        double expected = d.at(i, j);
        if (i < m) {
          double sum = 0;
          for (int l = 0; l < k; ++l)
            sum += (transpose_a ? a.at(l, i) : a.at(i, l)) * (transpose_b ? b.at(j, l) : b.at(l, j));
          for (int t = 0; t < times; ++t) expected = alpha * sum + beta * expected + (with_bias ? bias.at(i, 0) : 0);
        }
        require(std::abs(found[i + j * d.leading] - expected) <= 1e-5, "the product", __LINE__);
      }
  }
};

template <class T>
void multiply() {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true}) {
      Product<T> p(ta, tb);
      SUCCEED_LT(p.run());
      p.check(false);
    }
  Product<T> p;
  p.alpha = 0.5f, p.beta = 2;
  p.add_bias();
  SUCCEED_LT(p.run());
  p.check(true);
  SUCCEED_LT(cublasLtMatmul(p.handle, p.how, &p.alpha, p.a.device, p.a.layout, p.b.device, p.b.layout, &p.beta,
                            p.d.device, p.d.layout, p.d.device, p.d.layout, nullptr, nullptr, 0, p.stream));
  p.check(true, 2);
}

/// After what the stream had before, and not earlier.
void in_stream_order() {
  Product<float> p;
  const int count = static_cast<int>(p.a.host.size());
  for (float& x : p.a.host) x = 3;
  fill<<<1, 128, 0, p.stream>>>(p.a.device, 3, count);
  SUCCEED_LT(p.run());
  fill<<<1, 128, 0, p.stream>>>(p.a.device, 0, count);
  for (const float x : p.d.host) REQUIRE(x != 0);
  p.check(false);
}

void in_a_graph() {
  Product<__nv_bfloat16> p;
  p.beta = 1;
  cudaGraph_t graph;
  cudaGraphExec_t instance;
  SUCCEED(cudaStreamBeginCapture(p.stream, cudaStreamCaptureModeThreadLocal));
  SUCCEED_LT(p.run());
  SUCCEED(cudaStreamEndCapture(p.stream, &graph));
  SUCCEED(cudaGraphInstantiate(&instance, graph, 0));
  REQUIRE(p.d.now(p.stream) == p.d.host);  // nothing has run
  for (int i = 0; i < 3; ++i) SUCCEED(cudaGraphLaunch(instance, p.stream));
  p.check(false, 3);
  SUCCEED(cudaGraphExecDestroy(instance));
  SUCCEED(cudaGraphDestroy(graph));
}

void refusals() {
  Product<__nv_bfloat16> p;
  SUCCEED_LT(p.run());
  p.check(false);
  const auto with_layout = [&](cudaDataType type, int rows, int columns, int leading, cublasStatus_t expected) {
    const auto kept = p.a.layout;
    SUCCEED_LT(cublasLtMatrixLayoutCreate(&p.a.layout, type, rows, columns, leading));
    REFUSE_LT(p.run(), expected);
    int found = 0;
    cublasLtMatmulHeuristicResult_t result;
    REFUSE_LT(p.find(&result, &found), expected);
    SUCCEED_LT(cublasLtMatrixLayoutDestroy(p.a.layout));
    p.a.layout = kept;
  };
  with_layout(CUDA_R_16BF, k, m, k - 1, CUBLAS_STATUS_INVALID_VALUE);
  with_layout(CUDA_R_16BF, k + 1, m, k + 1, CUBLAS_STATUS_INVALID_VALUE);
  with_layout(CUDA_R_16BF, 0, m, k, CUBLAS_STATUS_INVALID_VALUE);
  with_layout(CUDA_R_32F, k, m, k, CUBLAS_STATUS_NOT_SUPPORTED);
  with_layout(CUDA_R_16F, k, m, k, CUBLAS_STATUS_NOT_SUPPORTED);

  REFUSE_LT(p.run_with(nullptr, p.d.device, p.workspace, kWorkspace), CUBLAS_STATUS_INVALID_VALUE);
  REFUSE_LT(p.run_with(p.a.device, nullptr, p.workspace, kWorkspace), CUBLAS_STATUS_INVALID_VALUE);
  REFUSE_LT(p.run_with(p.a.device + 1, p.d.device, p.workspace, kWorkspace), CUBLAS_STATUS_INVALID_VALUE);
  REFUSE_LT(p.run_with(p.a.device, p.d.device, p.workspace, p.best.workspaceSize - 1), CUBLAS_STATUS_INVALID_VALUE);
  REFUSE_LT(p.run_with(p.a.device, p.d.device, nullptr, kWorkspace), CUBLAS_STATUS_INVALID_VALUE);
  REFUSE_LT(p.run_with(p.a.device, p.d.device, static_cast<char*>(p.workspace) + 8, kWorkspace),
            CUBLAS_STATUS_INVALID_VALUE);
  REFUSE_LT(cublasLtMatmulDescSetAttribute(p.how, CUBLASLT_MATMUL_DESC_TRANSA, &p.alpha, 2),
            CUBLAS_STATUS_INVALID_VALUE);
  const int epilogue = 32;  // GELU
  REFUSE_LT(cublasLtMatmulDescSetAttribute(p.how, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue),
            CUBLAS_STATUS_NOT_SUPPORTED);
  p.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  REFUSE_LT(p.run(), CUBLAS_STATUS_INVALID_VALUE);
  p.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DEFAULT);

  const auto kept = p.handle;
  p.handle = nullptr;
  REFUSE_LT(p.run(), CUBLAS_STATUS_NOT_INITIALIZED);
  p.handle = kept;
  std::memset(&p.best.algo, 0, sizeof p.best.algo);
  REFUSE_LT(p.run(), CUBLAS_STATUS_INVALID_VALUE);
  p.check(false);  // none of these has written
  std::puts("refused");
}

int main(int count, char** arguments) {
  const std::string what = count > 1 ? arguments[1] : "";
  if (what == "refused") {
    refusals();
    return 0;
  }
  if (what == "beyond") {  // the last row of D
    Product<float> p;
    SUCCEED_LT(p.run_with(p.a.device, p.d.device + 64, p.workspace, kWorkspace));
    REQUIRE(cudaStreamSynchronize(p.stream) == cudaErrorIllegalAddress);
    std::exit(0);
  }
  if (what == "freed") {
    Product<float> p;
    float* freed;
    SUCCEED(cudaMalloc(&freed, p.a.bytes()));
    SUCCEED(cudaFree(freed));
    SUCCEED_LT(p.run_with(freed, p.d.device, p.workspace, kWorkspace));
    REQUIRE(cudaStreamSynchronize(p.stream) == cudaErrorIllegalAddress);
    std::exit(0);
  }
  if (what == "unwritten") {
    Product<float> p;
    float* fresh;
    SUCCEED(cudaMalloc(&fresh, p.a.bytes()));
    SUCCEED(cudaMemsetAsync(fresh, 0, 64, p.stream));
    SUCCEED_LT(p.run_with(fresh, p.d.device, p.workspace, kWorkspace));
    SUCCEED(cudaStreamSynchronize(p.stream));
    SUCCEED(cudaFree(fresh));
    return 0;
  }
  if (what == "shared_workspace") {  // of two streams
    Product<float> p, other;
    SUCCEED_LT(p.run());
    SUCCEED_LT(other.run_with(other.a.device, other.d.device, p.workspace, kWorkspace));
    SUCCEED(cudaDeviceSynchronize());
    return 0;
  }
  if (what == "once") {
    Product<__nv_bfloat16> p;
    p.beta = 1;
    SUCCEED_LT(p.run());
    p.check(false);
    return 0;
  }
  multiply<float>();
  multiply<__nv_bfloat16>();
  in_stream_order();
  in_a_graph();
  std::puts("multiplied");
}
