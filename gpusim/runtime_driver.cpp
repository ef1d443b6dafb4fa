// The calls of the driver that programs reach through the runtime: tensor maps, and what goes with them.
#include <cuda.h>

#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "gpusim/runtime_state.h"
#include "gpusim/tensor_map.h"

namespace gpusim::runtime {
namespace {

static_assert(sizeof(CUtensorMap) == kTensorMapBytes);
constexpr std::size_t kTensorMapAlignment = 64;

CUresult refused(const char* name, CUresult error, const std::string& why) {
  State& state = State::get();
  const std::lock_guard lock(state.mutex);
  state.tell(name, {error == CUDA_ERROR_NOT_SUPPORTED ? cudaErrorNotSupported : cudaErrorInvalidValue, why});
  return error;
}

void write_map(CUtensorMap& to, const TensorMap& map) {
  std::memset(&to, 0, sizeof to);
  std::memcpy(&to, &map, sizeof map);
}

CUresult encode_tiled(CUtensorMap* out, const TensorMapRequest& request) {
  constexpr const char* kName = "cuTensorMapEncodeTiled";
  if (out == nullptr) return refused(kName, CUDA_ERROR_INVALID_VALUE, "tensorMap is null");
  if (reinterpret_cast<std::uintptr_t>(out) % kTensorMapAlignment != 0) {
    return refused(kName, CUDA_ERROR_INVALID_VALUE, "tensorMap is no multiple of 64 bytes");
  }
  if (State::get().device.capability < 90) {
    return refused(kName, CUDA_ERROR_NOT_SUPPORTED, "tensor maps are of compute capability 9.0 and up");
  }
  TensorMap map;
  if (const auto refusal = encode(request, map)) {
    if (refusal->modelled) return refused(kName, CUDA_ERROR_INVALID_VALUE, refusal->why);
    return refused(kName, CUDA_ERROR_NOT_SUPPORTED, "not modelled: " + refusal->why);
  }
  write_map(*out, map);
  return CUDA_SUCCESS;
}

struct EntryPoint {
  std::string_view name;
  void* function;
};
template <class Function>
EntryPoint entry_point(std::string_view name, Function* function) {
  return {name, reinterpret_cast<void*>(function)};
}

std::span<const EntryPoint> entry_points() {
  static const EntryPoint kEntryPoints[] = {
      entry_point("cuInit", cuInit),
      entry_point("cuDriverGetVersion", cuDriverGetVersion),
      entry_point("cuGetErrorName", cuGetErrorName),
      entry_point("cuGetErrorString", cuGetErrorString),
      entry_point("cuTensorMapEncodeTiled", cuTensorMapEncodeTiled),
      entry_point("cuTensorMapEncodeIm2col", cuTensorMapEncodeIm2col),
      entry_point("cuTensorMapReplaceAddress", cuTensorMapReplaceAddress),
  };
  return kEntryPoints;
}

cudaError_t find_entry_point(const char* call_name, const char* symbol, void** function,
                             cudaDriverEntryPointQueryResult* status) {
  return call(call_name, [&](State&) {
    if (symbol == nullptr || function == nullptr) refuse(cudaErrorInvalidValue, "a pointer is null");
    *function = nullptr;
    for (const EntryPoint& known : entry_points()) {
      if (known.name == symbol) *function = known.function;
    }
    if (status != nullptr) {
      *status = *function != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    }
    if (*function != nullptr) return;
    std::string all;
    for (const EntryPoint& known : entry_points()) all.append(all.empty() ? "" : ", ").append(known.name);
    refuse(cudaErrorSymbolNotFound, symbol, " is not modelled; of the driver there are ", all);
  });
}

}  // namespace
}  // namespace gpusim::runtime

using namespace gpusim::runtime;

extern "C" {

CUresult cuInit(unsigned flags) { return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }

CUresult cuDriverGetVersion(int* version) {
  return cudaDriverGetVersion(version) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// The codes of errors that both have are the same.
CUresult cuGetErrorName(CUresult error, const char** name) {
  if (name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *name = cudaGetErrorName(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  if (text == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *text = cudaGetErrorString(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion l2_promotion, CUtensorMapFloatOOBfill fill) {
  return encode_tiled(map, {.type = static_cast<int>(type),
                            .rank = rank,
                            .address = reinterpret_cast<std::uint64_t>(address),
                            .sizes = sizes,
                            .strides = strides,
                            .box = box,
                            .steps = steps,
                            .interleave = static_cast<int>(interleave),
                            .swizzle = static_cast<int>(swizzle),
                            .l2_promotion = static_cast<int>(l2_promotion),
                            .fill = static_cast<int>(fill)});
}

CUresult cuTensorMapEncodeIm2col(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const int*, const int*, cuuint32_t, cuuint32_t, const cuuint32_t*,
                                 CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill) {
  return refused("cuTensorMapEncodeIm2col", CUDA_ERROR_NOT_SUPPORTED, "not modelled: tensor maps in mode im2col");
}

CUresult cuTensorMapReplaceAddress(CUtensorMap* map, void* address) {
  constexpr const char* kName = "cuTensorMapReplaceAddress";
  if (map == nullptr) return refused(kName, CUDA_ERROR_INVALID_VALUE, "tensorMap is null");
  auto decoded = gpusim::decode_tensor_map({reinterpret_cast<const std::byte*>(map), gpusim::kTensorMapBytes});
  if (!decoded) return refused(kName, CUDA_ERROR_INVALID_VALUE, "cuTensorMapEncodeTiled has not made this tensor map");
  decoded->address = reinterpret_cast<std::uint64_t>(address);
  if (decoded->address % 16 != 0)
    return refused(kName, CUDA_ERROR_INVALID_VALUE, "globalAddress is no multiple of 16 bytes");
  write_map(*map, *decoded);
  return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* status) {
  return find_entry_point("cudaGetDriverEntryPoint", symbol, function, status);
}
cudaError_t cudaGetDriverEntryPoint_ptsz(const char* symbol, void** function, unsigned long long,
                                         cudaDriverEntryPointQueryResult* status) {
  return find_entry_point("cudaGetDriverEntryPoint", symbol, function, status);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  return find_entry_point("cudaGetDriverEntryPointByVersion", symbol, function, status);
}
cudaError_t cudaGetDriverEntryPointByVersion_ptsz(const char* symbol, void** function, unsigned, unsigned long long,
                                                  cudaDriverEntryPointQueryResult* status) {
  return find_entry_point("cudaGetDriverEntryPointByVersion", symbol, function, status);
}

}  // extern "C"
