// cuBLASLt on the CPU: products in f32, of f32 or bf16 matrices. What the library would refuse is refused with its
// status, and what it offers beyond this with CUBLAS_STATUS_NOT_SUPPORTED; a line says why.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <thread>
#include <unordered_set>

#include "gpusim/cublas/cublasLt.h"
#include "gpusim/runtime_library_call.h"

struct cublasLtContext {};
struct cublasLtMatmulDescription {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  cublasOperation_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const float* bias = nullptr;
};
struct cublasLtMatrixDescription {
  cudaDataType type;
  std::uint64_t rows, columns;
  std::int64_t leading;
  bool operator==(const cublasLtMatrixDescription&) const = default;
};
struct cublasLtMatmulPreferences {
  std::uint64_t workspace = 0;
  std::array<std::uint32_t, 4> alignment = {256, 256, 256, 256};  ///< of A, B, C and D, as the library takes it
};

namespace gpusim::runtime {
namespace {

constexpr const char* kName = "cublasLtMatmul (library, ideal traffic)";
constexpr std::uint64_t kWorkspaceAlignment = 16;
constexpr std::array kOperandNames = {"A", "B", "C", "D"};

struct Refused {
  cublasStatus_t status;
  std::string why;
};
template <class... Parts>
[[noreturn]] void refuse_with(cublasStatus_t status, const Parts&... why) {
  throw Refused{status, dsv2::concat(why...)};
}
void require(const void* pointer, const char* what) {
  if (pointer == nullptr) refuse_with(CUBLAS_STATUS_INVALID_VALUE, what, " is null");
}

/// The body of a call, under the runtime's lock; a refusal becomes its status and a line.
template <class Body>
cublasStatus_t answer(const char* name, Body&& body) {
  State& state = State::get();
  const std::lock_guard lock(state.mutex);
  try {
    state.raise_sticky();
    body(state);
    return CUBLAS_STATUS_SUCCESS;
  } catch (const Refused& refused) {
    state.tell(FindingKind::invalid_argument,
               dsv2::concat(name, ": ", refused.why, " (", cublasLtGetStatusName(refused.status), ')'));
    return refused.status;
  } catch (const Refusal& refusal) {
    state.tell(name, refusal);
    return CUBLAS_STATUS_EXECUTION_FAILED;
  }
}

/// Those that have been created and not destroyed.
std::unordered_set<const cublasLtContext*>& handles() {
  static auto* const all = new std::unordered_set<const cublasLtContext*>;  // programs' destructors may still ask
  return *all;
}
void check_handle(const cublasLtContext* handle) {
  if (!handles().contains(handle))
    refuse_with(CUBLAS_STATUS_NOT_INITIALIZED, "the handle is ", handle == nullptr ? "null" : "none that lives");
}

template <class T>
void read_attribute(T& into, const void* value, std::size_t bytes) {
  require(value, "the value");
  if (bytes != sizeof into)
    refuse_with(CUBLAS_STATUS_INVALID_VALUE, "the attribute has ", sizeof into, " bytes, given are ", bytes);
  std::memcpy(&into, value, bytes);
}

std::uint64_t bytes_of(cudaDataType type) { return type == CUDA_R_16BF ? 2 : 4; }

/// A product whose descriptors agree: D[m,n] = op(A)[m,k] op(B)[k,n].
struct Product {
  std::uint64_t m, n, k;
  cublasLtMatmulDescription how;
  std::array<cublasLtMatrixDescription, 4> of;  ///< A, B, C, D
};

Product checked_product(cublasLtMatmulDesc_t how, cublasLtMatrixLayout_t of_a, cublasLtMatrixLayout_t of_b,
                        cublasLtMatrixLayout_t of_c, cublasLtMatrixLayout_t of_d) {
  require(how, "the description");
  const std::array layouts = {of_a, of_b, of_c, of_d};
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    if (layouts[i] == nullptr) refuse_with(CUBLAS_STATUS_INVALID_VALUE, "the layout of ", kOperandNames[i], " is null");
    const cublasLtMatrixDescription& layout = *layouts[i];
    if (layout.rows == 0 || layout.columns == 0)
      refuse_with(CUBLAS_STATUS_INVALID_VALUE, kOperandNames[i], " is empty: ", layout.rows, " x ", layout.columns);
    if (layout.leading < 0 || static_cast<std::uint64_t>(layout.leading) < layout.rows)
      refuse_with(CUBLAS_STATUS_INVALID_VALUE, "the leading dimension of ", kOperandNames[i], ", ", layout.leading,
                  ", is less than its ", layout.rows, " rows");
  }
  const auto turned = [](const cublasLtMatrixDescription& layout, cublasOperation_t operation) {
    return operation == CUBLAS_OP_N ? std::pair(layout.rows, layout.columns) : std::pair(layout.columns, layout.rows);
  };
  const auto [m, k] = turned(*of_a, how->transpose_a);
  const auto [k_of_b, n] = turned(*of_b, how->transpose_b);
  if (k != k_of_b || of_d->rows != m || of_d->columns != n || of_c->rows != m || of_c->columns != n)
    refuse_with(CUBLAS_STATUS_INVALID_VALUE, "op(A) is ", m, " x ", k, ", op(B) ", k_of_b, " x ", n, ", C ", of_c->rows,
                " x ", of_c->columns, ", D ", of_d->rows, " x ", of_d->columns);
  if (how->epilogue == CUBLASLT_EPILOGUE_BIAS && how->bias == nullptr)
    refuse_with(CUBLAS_STATUS_INVALID_VALUE,
                "the epilogue adds a bias, and CUBLASLT_MATMUL_DESC_BIAS_POINTER is not set");
  const bool types_known = of_a->type == of_b->type && (of_a->type == CUDA_R_32F || of_a->type == CUDA_R_16BF) &&
                           of_c->type == CUDA_R_32F && of_d->type == CUDA_R_32F;
  if (!types_known || how->compute != CUBLAS_COMPUTE_32F || how->scale != CUDA_R_32F)
    refuse_with(CUBLAS_STATUS_NOT_SUPPORTED, "A of type ", static_cast<int>(of_a->type), ", B ",
                static_cast<int>(of_b->type), ", C ", static_cast<int>(of_c->type), ", D ",
                static_cast<int>(of_d->type), ", computed as ", static_cast<int>(how->compute), ", scaled as ",
                static_cast<int>(how->scale),
                ": modelled are A and B both CUDA_R_32F or CUDA_R_16BF, with C, D and scale CUDA_R_32F and "
                "CUBLAS_COMPUTE_32F");
  return {m, n, k, *how, {*of_a, *of_b, *of_c, *of_d}};
}

/// What an algorithm relies on, as it lies in cublasLtMatmulAlgo_t.
struct Algorithm {
  std::uint64_t known;
  std::uint64_t workspace;
  std::array<std::uint64_t, 4> alignment;
};
constexpr std::uint64_t kKnown = 0x6d69737570670001;

/// Sums over parts of k wait in the workspace, where it is large enough.
std::uint64_t workspace_of(const Product& p, std::uint64_t most) {
  const std::uint64_t bytes = p.m * p.n * sizeof(float);
  return bytes <= most ? bytes : 0;
}

/// Elements `row` and `column` apart.
struct Elements {
  const void* data;
  cudaDataType type;
  std::uint64_t row, column;
  float at(std::uint64_t i, std::uint64_t j) const {
    const std::uint64_t index = i * row + j * column;
    if (type == CUDA_R_32F) return static_cast<const float*>(data)[index];
    return std::bit_cast<float>(std::uint32_t{static_cast<const std::uint16_t*>(data)[index]} << 16);
  }
};

Elements elements_of(const cublasLtMatrixDescription& layout, const void* data, cublasOperation_t operation) {
  const auto leading = static_cast<std::uint64_t>(layout.leading);
  if (operation == CUBLAS_OP_N) return {data, layout.type, 1, leading};
  return {data, layout.type, leading, 1};
}

struct Operands {
  const void *a, *b;
  const float* c;
  float* d;
  float alpha, beta;
};

constexpr std::uint64_t kRows = 8, kColumns = 4;  // of D at once: their sums stay in registers

/// Rows [i0, i0 + kRows) of D. Each sum is one of f32 in ascending k, so that the number of threads does not show.
/// `b` is [n up to a multiple of kColumns][k].
void multiply_rows(const Product& p, const Operands& x, const std::vector<float>& b, std::uint64_t i0) {
  const std::uint64_t rows = std::min(kRows, p.m - i0);
  const Elements a = elements_of(p.of[0], x.a, p.how.transpose_a);
  std::vector<float> panel(p.k * kRows);
  for (std::uint64_t i = 0; i < rows; ++i)
    for (std::uint64_t k = 0; k < p.k; ++k) panel[k * kRows + i] = a.at(i0 + i, k);
  for (std::uint64_t j0 = 0; j0 < p.n; j0 += kColumns) {
    float sums[kColumns][kRows] = {};
    for (std::uint64_t k = 0; k < p.k; ++k)
      for (std::uint64_t j = 0; j < kColumns; ++j) {
        const float factor = b[(j0 + j) * p.k + k];
        for (std::uint64_t i = 0; i < kRows; ++i) sums[j][i] += panel[k * kRows + i] * factor;
      }
    for (std::uint64_t j = 0; j < std::min(kColumns, p.n - j0); ++j)
      for (std::uint64_t i = 0; i < rows; ++i) {
        float value = x.alpha * sums[j][i];
        if (x.beta != 0) value += x.beta * x.c[(j0 + j) * static_cast<std::uint64_t>(p.of[2].leading) + i0 + i];
        if (p.how.epilogue == CUBLASLT_EPILOGUE_BIAS) value += p.how.bias[i0 + i];
        x.d[(j0 + j) * static_cast<std::uint64_t>(p.of[3].leading) + i0 + i] = value;
      }
  }
}

void multiply(const Product& p, const Operands& x, int threads) {
  const Elements from = elements_of(p.of[1], x.b, p.how.transpose_b);
  std::vector<float> b((p.n + kColumns - 1) / kColumns * kColumns * p.k);
  for (std::uint64_t j = 0; j < p.n; ++j)
    for (std::uint64_t k = 0; k < p.k; ++k) b[j * p.k + k] = from.at(k, j);
  std::atomic<std::uint64_t> next = 0;
  const auto work = [&] {
    for (std::uint64_t i0; (i0 = next.fetch_add(kRows)) < p.m;) multiply_rows(p, x, b, i0);
  };
  constexpr std::uint64_t kSmall = 1 << 20;  // what takes less time than a thread to start
  const bool small = p.m * p.n * p.k < kSmall;
  const unsigned wanted = threads > 0 ? static_cast<unsigned>(threads) : std::thread::hardware_concurrency();
  std::vector<std::jthread> helpers;
  for (unsigned i = 1; !small && i < wanted; ++i) helpers.emplace_back(work);
  work();
}

Operand operand_of(const Product& p, std::size_t which, const void* data) {
  const cublasLtMatrixDescription& layout = p.of[which];
  const std::uint64_t element = bytes_of(layout.type);
  return {kOperandNames[which], data, layout.rows * element, layout.columns,
          static_cast<std::uint64_t>(layout.leading) * element};
}

void check_alignment(const void* pointer, std::uint64_t needed, const char* what, const char* why) {
  if (reinterpret_cast<std::uint64_t>(pointer) % needed != 0)
    refuse_with(CUBLAS_STATUS_INVALID_VALUE, what, " at ", pointer, " is no multiple of ", needed, " bytes", why);
}

}  // namespace
}  // namespace gpusim::runtime

using namespace gpusim::runtime;

extern "C" {

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "unknown";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return answer("cublasLtCreate", [&](State&) {
    require(handle, "the handle to set");
    *handle = new cublasLtContext;
    handles().insert(*handle);
  });
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return answer("cublasLtDestroy", [&](State&) {
    check_handle(handle);
    handles().erase(handle);
    delete handle;
  });
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t scale) {
  return answer("cublasLtMatmulDescCreate", [&](State&) {
    require(desc, "the description to set");
    *desc = new cublasLtMatmulDescription{compute, scale};
  });
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  return answer("cublasLtMatmulDescSetAttribute", [&](State&) {
    require(desc, "the description");
    const auto transpose = [&](cublasOperation_t& into) {
      int operation = 0;
      read_attribute(operation, value, bytes);
      if (operation != CUBLAS_OP_N && operation != CUBLAS_OP_T)
        refuse_with(CUBLAS_STATUS_NOT_SUPPORTED, "operation ", operation, ": modelled are CUBLAS_OP_N and CUBLAS_OP_T");
      into = static_cast<cublasOperation_t>(operation);
    };
    switch (attribute) {
      case CUBLASLT_MATMUL_DESC_TRANSA:
        return transpose(desc->transpose_a);
      case CUBLASLT_MATMUL_DESC_TRANSB:
        return transpose(desc->transpose_b);
      case CUBLASLT_MATMUL_DESC_EPILOGUE: {
        int epilogue = 0;
        read_attribute(epilogue, value, bytes);
        if (epilogue != CUBLASLT_EPILOGUE_DEFAULT && epilogue != CUBLASLT_EPILOGUE_BIAS)
          refuse_with(CUBLAS_STATUS_NOT_SUPPORTED, "epilogue ", epilogue,
                      ": modelled are CUBLASLT_EPILOGUE_DEFAULT and CUBLASLT_EPILOGUE_BIAS");
        desc->epilogue = static_cast<cublasLtEpilogue_t>(epilogue);
        return;
      }
      case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return read_attribute(desc->bias, value, bytes);
    }
    refuse_with(CUBLAS_STATUS_NOT_SUPPORTED, "attribute ", static_cast<int>(attribute), " is not modelled");
  });
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, std::uint64_t rows,
                                          std::uint64_t columns, std::int64_t leading) {
  return answer("cublasLtMatrixLayoutCreate", [&](State&) {
    require(layout, "the layout to set");
    *layout = new cublasLtMatrixDescription{type, rows, columns, leading};
  });
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return answer("cublasLtMatmulPreferenceCreate", [&](State&) {
    require(preference, "the preferences to set");
    *preference = new cublasLtMatmulPreferences;
  });
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  return answer("cublasLtMatmulPreferenceSetAttribute", [&](State&) {
    require(preference, "the preferences");
    switch (attribute) {
      case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return read_attribute(preference->workspace, value, bytes);
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: {
        std::uint32_t alignment = 0;
        read_attribute(alignment, value, bytes);
        if (!std::has_single_bit(alignment))
          refuse_with(CUBLAS_STATUS_INVALID_VALUE, "an alignment of ", alignment, " bytes, no power of two");
        preference->alignment[static_cast<std::size_t>(attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES)] =
            alignment;
        return;
      }
    }
    refuse_with(CUBLAS_STATUS_NOT_SUPPORTED, "attribute ", static_cast<int>(attribute), " is not modelled");
  });
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t of_a, cublasLtMatrixLayout_t of_b,
                                              cublasLtMatrixLayout_t of_c, cublasLtMatrixLayout_t of_d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  return answer("cublasLtMatmulAlgoGetHeuristic", [&](State&) {
    check_handle(handle);
    require(preference, "the preferences");
    require(results, "the array of results");
    require(found, "the number to set");
    if (wanted < 1) refuse_with(CUBLAS_STATUS_INVALID_VALUE, wanted, " results are asked for");
    *found = 0;
    const Product p = checked_product(desc, of_a, of_b, of_c, of_d);
    const Algorithm algorithm = {
        kKnown,
        workspace_of(p, preference->workspace),
        {preference->alignment[0], preference->alignment[1], preference->alignment[2], preference->alignment[3]}};
    static_assert(sizeof algorithm <= sizeof results->algo);
    *results = {};
    std::memcpy(&results->algo, &algorithm, sizeof algorithm);
    results->workspaceSize = algorithm.workspace;
    results->wavesCount = 1;
    *found = 1;
  });
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t of_a, const void* b, cublasLtMatrixLayout_t of_b, const void* beta,
                              const void* c, cublasLtMatrixLayout_t of_c, void* d, cublasLtMatrixLayout_t of_d,
                              const cublasLtMatmulAlgo_t* algo, void* workspace, std::size_t workspace_bytes,
                              cudaStream_t stream) {
  return answer("cublasLtMatmul", [&](State& state) {
    check_handle(handle);
    const Product p = checked_product(desc, of_a, of_b, of_c, of_d);
    require(alpha, "alpha");
    require(beta, "beta");
    Operands x{a, b, static_cast<const float*>(c), static_cast<float*>(d), 0, 0};
    std::memcpy(&x.alpha, alpha, sizeof x.alpha);
    std::memcpy(&x.beta, beta, sizeof x.beta);
    const std::array<const void*, 4> pointers = {a, b, c, d};
    for (std::size_t i = 0; i < pointers.size(); ++i)
      if (i != 2 || x.beta != 0) require(pointers[i], kOperandNames[i]);
    if (c == d && p.of[2] != p.of[3]) refuse_with(CUBLAS_STATUS_INVALID_VALUE, "C and D are one matrix in two layouts");
    // Without an algorithm the library looks for one that needs no workspace.
    Algorithm algorithm = {kKnown, 0, {}};
    for (std::size_t i = 0; i < pointers.size(); ++i) algorithm.alignment[i] = bytes_of(p.of[i].type);
    if (algo != nullptr) std::memcpy(&algorithm, algo, sizeof algorithm);
    if (algorithm.known != kKnown)
      refuse_with(CUBLAS_STATUS_INVALID_VALUE, "the algorithm is none that cublasLtMatmulAlgoGetHeuristic gave");
    for (std::size_t i = 0; i < pointers.size(); ++i)
      check_alignment(pointers[i], algorithm.alignment[i], kOperandNames[i],
                      ", which CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT promised to the algorithm");
    if (algorithm.workspace > workspace_bytes)
      refuse_with(CUBLAS_STATUS_INVALID_VALUE, "the algorithm needs ", algorithm.workspace,
                  " bytes of workspace, given are ", workspace_bytes);
    if (algorithm.workspace > 0) require(workspace, "the workspace");
    check_alignment(workspace, kWorkspaceAlignment, "the workspace", "");

    const bool is_bf16 = p.of[0].type == CUDA_R_16BF;
    LibraryCall call{
        .name = kName,
        .what = dsv2::concat("cublasLtMatmul ", is_bf16 ? "bf16" : "f32", " [", p.m, ',', p.n, ',', p.k, ']'),
        .reads = {operand_of(p, 0, a), operand_of(p, 1, b)},
        .writes = {operand_of(p, 3, d)},
        .run = [p, x, threads = state.environment.settings.threads] { multiply(p, x, threads); }};
    if (x.beta != 0) call.reads.push_back(operand_of(p, 2, c));
    if (p.how.epilogue == CUBLASLT_EPILOGUE_BIAS)
      call.reads.push_back({"bias", p.how.bias, p.m * sizeof(float), 1, p.m * sizeof(float)});
    if (algorithm.workspace > 0)
      call.scratch.push_back({"workspace", workspace, algorithm.workspace, 1, algorithm.workspace});
    call.flops = 2 * p.m * p.n * p.k;
    call.flop_type = is_bf16 ? gpusim::FlopType::tensor_bf16 : gpusim::FlopType::f32;
    submit(state, stream, std::move(call));
  });
}

}  // extern "C"
