// Tensor maps as programs get them: the driver's call found by name, by name and version, and linked; a map as a
// kernel's parameter, in constant memory and in device memory. With an argument: calls that are refused.
#include <cuda.h>

#include <vector>

#include "check.h"
#include "hopper.h"

constexpr int kWidth = 100, kHeight = 37;  // of the tensor; rows are padded to 112
constexpr int kPitch = 112;
constexpr int kTile = 32;

__constant__ CUtensorMap constant_map;

/// Copies a tile of 32 x 32 numbers, negated.
template <class Map>
__device__ void negate_tile(const Map* from, const Map* to) {
  __shared__ alignas(128) float tile[kTile][kTile];
  __shared__ alignas(8) std::uint64_t barrier;
  const int x = blockIdx.x * kTile, y = blockIdx.y * kTile;
  if (threadIdx.x == 0) {
    MBARRIER_INIT(barrier, 1);
    FENCE_MBARRIER_INIT();
    MBARRIER_ARRIVE_EXPECT(barrier, static_cast<int>(sizeof tile));
    TENSOR_LOAD_2D(tile, *from, x, y, barrier);
  }
  __syncthreads();
  MBARRIER_WAIT(barrier, 0);
  for (int row = threadIdx.x / kTile; row < kTile; row += blockDim.x / kTile) tile[row][threadIdx.x % kTile] *= -1;
  FENCE_PROXY_ASYNC();
  __syncthreads();
  if (threadIdx.x == 0) {
    TENSOR_STORE_2D(*to, x, y, tile);
    BULK_COMMIT();
    BULK_WAIT_READ(0);
  }
}
__global__ void negate_by_parameter(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to) {
  negate_tile(&from, &to);
}
__global__ void negate_by_constant(const __grid_constant__ CUtensorMap to) { negate_tile(&constant_map, &to); }
__global__ void negate_by_pointer(const CUtensorMap* from, const __grid_constant__ CUtensorMap to) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(from) : "memory");
  negate_tile(from, &to);
}

using Encode = decltype(&cuTensorMapEncodeTiled);

CUtensorMap map_of(Encode encode, float* data) {
  CUtensorMap map;
  const cuuint64_t sizes[] = {kWidth, kHeight};
  const cuuint64_t strides[] = {kPitch * sizeof(float)};
  const cuuint32_t box[] = {kTile, kTile};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2, data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  REQUIRE(result == CUDA_SUCCESS);
  return map;
}

void try_refused(float* data) {
  CUtensorMap map;
  cuuint64_t sizes[] = {kWidth, kHeight};
  cuuint64_t strides[] = {kPitch * sizeof(float)};
  cuuint32_t box[] = {kTile, kTile};
  const cuuint32_t steps[] = {1, 1};
  const auto encode = [&](void* address, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle) {
    return cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2, address, sizes, strides, box, steps,
                                  interleave, swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  REQUIRE(encode(data, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_64B) == CUDA_ERROR_INVALID_VALUE);
  REQUIRE(encode(data, CU_TENSOR_MAP_INTERLEAVE_32B, CU_TENSOR_MAP_SWIZZLE_32B) == CUDA_ERROR_NOT_SUPPORTED);
  REQUIRE(encode(data + 1, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B) == CUDA_ERROR_INVALID_VALUE);
  strides[0] = kWidth * sizeof(float) + 4;
  REQUIRE(encode(data, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B) == CUDA_ERROR_INVALID_VALUE);
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  REQUIRE(cudaGetDriverEntryPointByVersion("cuMemAlloc", &function, 12000, cudaEnableDefault, &found) ==
          cudaErrorSymbolNotFound);
  REQUIRE(function == nullptr && found == cudaDriverEntryPointSymbolNotFound);
  std::puts("refused");
}

int main(int count, char**) {
  constexpr std::size_t kNumbers = static_cast<std::size_t>(kPitch) * kHeight;
  float *from, *to;
  SUCCEED(cudaMalloc(&from, kNumbers * sizeof(float)));
  SUCCEED(cudaMalloc(&to, kNumbers * sizeof(float)));
  if (count > 1) {
    try_refused(from);
    SUCCEED(cudaFree(from));
    SUCCEED(cudaFree(to));
    return 0;
  }
  std::vector<float> numbers(kNumbers), result(kNumbers);
  for (std::size_t i = 0; i < kNumbers; ++i) numbers[i] = static_cast<float>(i + 1);
  SUCCEED(cudaMemcpy(from, numbers.data(), kNumbers * sizeof(float), cudaMemcpyHostToDevice));

  void* found[2] = {};
  cudaDriverEntryPointQueryResult status;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  SUCCEED(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found[0], cudaEnableDefault, &status));
#pragma GCC diagnostic pop
  REQUIRE(status == cudaDriverEntryPointSuccess);
  SUCCEED(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found[1], 12000, cudaEnableDefault, &status));
  REQUIRE(status == cudaDriverEntryPointSuccess);
  CUtensorMap* device_map;
  SUCCEED(cudaMalloc(&device_map, sizeof(CUtensorMap)));
  for (int way = 0; way < 3; ++way) {
    SUCCEED(cudaMemset(to, 0, kNumbers * sizeof(float)));
    const Encode encode = way < 2 ? reinterpret_cast<Encode>(found[way]) : &cuTensorMapEncodeTiled;
    const CUtensorMap source = map_of(encode, from);
    CUtensorMap target = map_of(encode, from);
    REQUIRE(cuTensorMapReplaceAddress(&target, to) == CUDA_SUCCESS);
    const dim3 grid((kWidth + kTile - 1) / kTile, (kHeight + kTile - 1) / kTile);
    if (way == 0) negate_by_parameter<<<grid, 128>>>(source, target);
    if (way == 1) {
      SUCCEED(cudaMemcpyToSymbol(constant_map, &source, sizeof source));
      negate_by_constant<<<grid, 128>>>(target);
    }
    if (way == 2) {
      SUCCEED(cudaMemcpy(device_map, &source, sizeof source, cudaMemcpyHostToDevice));
      negate_by_pointer<<<grid, 128>>>(device_map, target);
    }
    SUCCEED(cudaMemcpy(result.data(), to, kNumbers * sizeof(float), cudaMemcpyDeviceToHost));
    int wrong = 0;
    for (std::size_t i = 0; i < kNumbers; ++i) wrong += result[i] != (i % kPitch < kWidth ? -numbers[i] : 0.0f);
    REQUIRE(wrong == 0);
  }
  SUCCEED(cudaFree(device_map));
  SUCCEED(cudaFree(from));
  SUCCEED(cudaFree(to));
  std::puts("three ways");
}
