// Memory pools, and the calls that take many ranges at once. A pool is a limit and a count here: freed memory is not
// handed out again anyway, so that its use is seen.
#include <algorithm>
#include <cstring>

#include "gpusim/runtime_state.h"

struct CUmemPoolHandle_st {
  std::size_t most = 0;  // 0: as much as the device has
  std::size_t used = 0;
  std::size_t used_high = 0;
  std::uint64_t release_threshold = 0;
  int reuse[3] = {1, 1, 1};
};

namespace gpusim::runtime {
namespace {

using Pool = CUmemPoolHandle_st;

/// Never destroyed, as the State.
struct Pools {
  Pool fallback;
  std::vector<std::unique_ptr<Pool>> made;
  cudaMemPool_t current = &fallback;
  std::unordered_map<std::uint64_t, std::pair<cudaMemPool_t, std::size_t>> allocations;
};
Pools& pools() {
  static auto* const all = new Pools;
  return *all;
}

void require(const void* pointer, const char* what) {
  if (pointer == nullptr) refuse(cudaErrorInvalidValue, what, " is null");
}
void require_device(int device) {
  if (device != 0) refuse(cudaErrorInvalidDevice, "there is device 0 alone, not ", device);
}
void require_location(const cudaMemLocation* location) {
  require(location, "the location");
  if (location->type != cudaMemLocationTypeDevice)
    refuse(cudaErrorNotSupported, "pools of host memory are not modelled");
  require_device(location->id);
}

Pool& pool_of(cudaMemPool_t handle) {
  Pools& all = pools();
  if (handle == &all.fallback) return all.fallback;
  for (const auto& pool : all.made) {
    if (pool.get() == handle) return *pool;
  }
  refuse(cudaErrorInvalidValue, "this is no memory pool, or one that was destroyed");
}

bool is_reuse(cudaMemPoolAttr attribute) {
  return attribute >= cudaMemPoolReuseFollowEventDependencies && attribute <= cudaMemPoolReuseAllowInternalDependencies;
}

void discard(State& state, CUstream_st& stream, void* address, std::size_t bytes) {
  if (state.checked_range(address, bytes, "range").place != Place::managed)
    refuse(cudaErrorInvalidValue, "only managed memory can be discarded");
  const MemoryRange range = {reinterpret_cast<std::uint64_t>(address), bytes};
  Work work;
  work.make = [&state, range]() {
    return Operation{
        .what = dsv2::concat("cudaMemDiscardBatchAsync of ", range.bytes, " bytes"),
        .run = [&state, range](Accesses&) { state.memory.mark(range.address, range.bytes, Byte::uninitialised); },
        .accesses = {.reads = {}, .writes = {range}}};
  };
  state.enqueue(stream, std::move(work));
}

/// A call of the runtime within another: it has told its own refusal.
void require(cudaError_t error) {
  if (error != cudaSuccess) throw Refusal{error, ""};
}

}  // namespace

cudaMemPool_t current_pool() { return pools().current; }

void check_pool(cudaMemPool_t handle, std::size_t bytes) {
  const Pool& pool = pool_of(handle);
  if (pool.most != 0 && bytes > pool.most - std::min(pool.most, pool.used))
    refuse(cudaErrorMemoryAllocation, bytes, " bytes are asked for of a pool of ", pool.most, ", of which ", pool.used,
           " are in use");
}

void note_pool_allocation(cudaMemPool_t handle, std::uint64_t address, std::size_t bytes) {
  Pool& pool = pool_of(handle);
  pool.used += bytes;
  pool.used_high = std::max(pool.used_high, pool.used);
  pools().allocations[address] = {handle, bytes};
}

void note_pool_release(std::uint64_t address) {
  Pools& all = pools();
  const auto found = all.allocations.find(address);
  if (found == all.allocations.end()) return;
  const auto [handle, bytes] = found->second;
  all.allocations.erase(found);
  const bool lives = handle == &all.fallback || std::any_of(all.made.begin(), all.made.end(),
                                                            [h = handle](const auto& pool) { return pool.get() == h; });
  if (lives) handle->used -= bytes;
}

void forget_pools() {
  Pools& all = pools();
  all.fallback = Pool();
  all.made.clear();
  all.current = &all.fallback;
  all.allocations.clear();
}

}  // namespace gpusim::runtime

using namespace gpusim::runtime;

extern "C" {

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* out, int device) {
  return call("cudaDeviceGetDefaultMemPool", [&](State&) {
    require(out, "the pool to set");
    require_device(device);
    *out = &pools().fallback;
  });
}

cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* out, int device) {
  return call("cudaDeviceGetMemPool", [&](State&) {
    require(out, "the pool to set");
    require_device(device);
    *out = current_pool();
  });
}

cudaError_t cudaDeviceSetMemPool(int device, cudaMemPool_t handle) {
  return call("cudaDeviceSetMemPool", [&](State&) {
    require_device(device);
    pools().current = &pool_of(handle);
  });
}

cudaError_t cudaMemGetDefaultMemPool(cudaMemPool_t* out, cudaMemLocation* location, cudaMemAllocationType) {
  return call("cudaMemGetDefaultMemPool", [&](State&) {
    require(out, "the pool to set");
    require_location(location);
    *out = &pools().fallback;
  });
}

cudaError_t cudaMemGetMemPool(cudaMemPool_t* out, cudaMemLocation* location, cudaMemAllocationType) {
  return call("cudaMemGetMemPool", [&](State&) {
    require(out, "the pool to set");
    require_location(location);
    *out = current_pool();
  });
}

cudaError_t cudaMemSetMemPool(cudaMemLocation* location, cudaMemAllocationType, cudaMemPool_t handle) {
  return call("cudaMemSetMemPool", [&](State&) {
    require_location(location);
    pools().current = &pool_of(handle);
  });
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* out, const cudaMemPoolProps* told) {
  return call("cudaMemPoolCreate", [&](State&) {
    require(out, "the pool to set");
    require(told, "the properties");
    if (told->allocType != cudaMemAllocationTypePinned)
      refuse(cudaErrorInvalidValue, "allocType ", static_cast<int>(told->allocType),
             ", expected cudaMemAllocationTypePinned");
    if (told->handleTypes != cudaMemHandleTypeNone)
      refuse(cudaErrorNotSupported, "pools that are shared between processes are not modelled");
    require_location(&told->location);
    auto made = std::make_unique<Pool>();
    made->most = told->maxSize;
    *out = made.get();
    pools().made.push_back(std::move(made));
  });
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t handle) {
  return call("cudaMemPoolDestroy", [&](State&) {
    Pools& all = pools();
    if (&pool_of(handle) == &all.fallback)
      refuse(cudaErrorInvalidValue, "the default pool of a device cannot be destroyed");
    if (all.current == handle) all.current = &all.fallback;
    std::erase_if(all.made, [handle](const auto& pool) { return pool.get() == handle; });
  });
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t handle, std::size_t) {
  return call("cudaMemPoolTrimTo", [&](State&) { pool_of(handle); });
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t handle, cudaMemPoolAttr attribute, void* value) {
  return call("cudaMemPoolSetAttribute", [&](State&) {
    Pool& pool = pool_of(handle);
    require(value, "the value");
    std::uint64_t number = 0;
    std::memcpy(&number, value, is_reuse(attribute) ? sizeof(int) : sizeof number);
    if (attribute == cudaMemPoolAttrReleaseThreshold) {
      pool.release_threshold = number;
    } else if (is_reuse(attribute)) {
      pool.reuse[attribute - cudaMemPoolReuseFollowEventDependencies] = static_cast<int>(number);
    } else if (attribute == cudaMemPoolAttrUsedMemHigh || attribute == cudaMemPoolAttrReservedMemHigh) {
      if (number != 0) refuse(cudaErrorInvalidValue, "a high watermark can be reset to 0 alone");
      pool.used_high = pool.used;
    } else {
      refuse(cudaErrorInvalidValue, "attribute ", static_cast<int>(attribute), " cannot be set");
    }
  });
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t handle, cudaMemPoolAttr attribute, void* value) {
  return call("cudaMemPoolGetAttribute", [&](State&) {
    const Pool& pool = pool_of(handle);
    require(value, "the value");
    const auto set = [value](std::uint64_t number) { std::memcpy(value, &number, sizeof number); };
    if (is_reuse(attribute)) {
      std::memcpy(value, &pool.reuse[attribute - cudaMemPoolReuseFollowEventDependencies], sizeof(int));
      return;
    }
    switch (attribute) {
      case cudaMemPoolAttrReleaseThreshold:
        return set(pool.release_threshold);
      case cudaMemPoolAttrReservedMemCurrent:
      case cudaMemPoolAttrUsedMemCurrent:
        return set(pool.used);
      case cudaMemPoolAttrReservedMemHigh:
      case cudaMemPoolAttrUsedMemHigh:
        return set(pool.used_high);
      default:
        refuse(cudaErrorInvalidValue, "attribute ", static_cast<int>(attribute), " is not known");
    }
  });
}

cudaError_t cudaMemPoolSetAccess(cudaMemPool_t handle, const cudaMemAccessDesc* told, std::size_t count) {
  return call("cudaMemPoolSetAccess", [&](State&) {
    pool_of(handle);
    for (std::size_t i = 0; i < count; ++i) require_location(&told[i].location);
  });
}

cudaError_t cudaMemPoolGetAccess(cudaMemAccessFlags* flags, cudaMemPool_t handle, cudaMemLocation* location) {
  return call("cudaMemPoolGetAccess", [&](State&) {
    require(flags, "the flags to set");
    pool_of(handle);
    require_location(location);
    *flags = cudaMemAccessFlagsProtReadWrite;
  });
}

// ---- many ranges at once

/// One copy after the other: an order that a batch, which promises none, allows.
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const std::size_t* bytes, std::size_t count,
                                 cudaMemcpyAttributes* attributes, std::size_t* first, std::size_t attribute_count,
                                 cudaStream_t stream) {
  return call("cudaMemcpyBatchAsync", [&](State&) {
    require(to, "the destinations");
    require(from, "the sources");
    require(bytes, "the sizes");
    if (attribute_count == 0 || attributes == nullptr || first == nullptr || first[0] != 0)
      refuse(cudaErrorInvalidValue, "a batch needs attributes, the first of them from copy 0 on");
    if (stream == nullptr || stream == cudaStreamLegacy)
      refuse(cudaErrorInvalidValue, "a batch cannot go into the legacy default stream");
    for (std::size_t i = 0; i < count; ++i)
      require(cudaMemcpyAsync(to[i], from[i], bytes[i], cudaMemcpyDefault, stream));
  });
}

cudaError_t cudaMemPrefetchBatchAsync(void** addresses, std::size_t* bytes, std::size_t count, cudaMemLocation*,
                                      std::size_t*, std::size_t, unsigned long long, cudaStream_t stream) {
  return call("cudaMemPrefetchBatchAsync", [&](State& state) {
    state.stream(stream);
    for (std::size_t i = 0; i < count; ++i) state.checked_range(addresses[i], bytes[i], "range");
  });
}

/// What was there is gone: reads of it are of what nobody wrote.
cudaError_t cudaMemDiscardBatchAsync(void** addresses, std::size_t* bytes, std::size_t count, unsigned long long,
                                     cudaStream_t stream) {
  return call("cudaMemDiscardBatchAsync", [&](State& state) {
    CUstream_st& into = state.stream(stream);
    for (std::size_t i = 0; i < count; ++i) {
      discard(state, into, addresses[i], bytes[i]);
    }
  });
}

}  // extern "C"
