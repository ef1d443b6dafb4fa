// Memory pools of the program's own, and copies in batches.
#include <cstdint>
#include <vector>

#include "check.h"

std::uint64_t attribute_of(cudaMemPool_t pool, cudaMemPoolAttr attribute) {
  std::uint64_t value = 0;
  SUCCEED(cudaMemPoolGetAttribute(pool, attribute, &value));
  return value;
}

int main() {
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location = {cudaMemLocationTypeDevice, 0};
  properties.maxSize = 1 << 20;
  cudaMemPool_t pool, found;
  SUCCEED(cudaMemPoolCreate(&pool, &properties));
  std::uint64_t threshold = 12345;
  SUCCEED(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
  REQUIRE(attribute_of(pool, cudaMemPoolAttrReleaseThreshold) == 12345);
  cudaStream_t stream;
  SUCCEED(cudaStreamCreate(&stream));
  int *first, *second, *third;
  SUCCEED(cudaMallocFromPoolAsync(reinterpret_cast<void**>(&first), 1000, pool, stream));
  SUCCEED(cudaDeviceSetMemPool(0, pool));
  SUCCEED(cudaDeviceGetMemPool(&found, 0));
  REQUIRE(found == pool);
  SUCCEED(cudaMallocAsync(reinterpret_cast<void**>(&second), 2000, stream));
  REQUIRE(attribute_of(pool, cudaMemPoolAttrUsedMemCurrent) == 3000);
  REFUSE(cudaMallocAsync(reinterpret_cast<void**>(&third), 1 << 20, stream), cudaErrorMemoryAllocation);

  std::vector<int> host(250), back(250, 0);
  for (int i = 0; i < 250; ++i) host[i] = i * i;
  void* to[] = {first, second};
  const void* from[] = {host.data(), host.data()};
  const std::size_t bytes[] = {1000, 400};
  cudaMemcpyAttributes attributes = {};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  std::size_t first_of[] = {0};
  SUCCEED(cudaMemcpyBatchAsync(to, from, bytes, 2, &attributes, first_of, 1, stream));
  SUCCEED(cudaMemcpyAsync(back.data(), first, 1000, cudaMemcpyDeviceToHost, stream));
  SUCCEED(cudaStreamSynchronize(stream));
  REQUIRE(back == host);

  SUCCEED(cudaFreeAsync(first, stream));
  SUCCEED(cudaFreeAsync(second, stream));
  SUCCEED(cudaStreamSynchronize(stream));
  REQUIRE(attribute_of(pool, cudaMemPoolAttrUsedMemCurrent) == 0 &&
          attribute_of(pool, cudaMemPoolAttrUsedMemHigh) == 3000);
  SUCCEED(cudaMemPoolDestroy(pool));
  SUCCEED(cudaDeviceGetMemPool(&found, 0));
  REQUIRE(found != pool);
  REFUSE(cudaMemPoolTrimTo(pool, 0), cudaErrorInvalidValue);
  SUCCEED(cudaStreamDestroy(stream));
  std::puts("pooled");
}
