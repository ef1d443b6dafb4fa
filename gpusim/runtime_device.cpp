// The device of the CUDA runtime: properties, attributes, limits, versions, and what switches nothing here.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <limits>

#include "gpusim/occupancy.h"
#include "gpusim/runtime_state.h"

namespace gpusim::runtime {
namespace {

void require(const void* pointer, const char* what) {
  if (pointer == nullptr) refuse(cudaErrorInvalidValue, what, " is null");
}

void require_device(int device) {
  if (device != 0) refuse(cudaErrorInvalidDevice, "device ", device, "; there is one, 0");
}

/// Of the memory's interface: programs multiply it with the memory clock, which is made to fit the bandwidth.
int bus_width_bits(const DeviceModel& model) {
  if (model.capability == 89) return 384;
  return model.capability == 120 ? 512 : 5120;
}

cudaDeviceProp properties_of(const DeviceModel& model) {
  cudaDeviceProp out;
  std::memset(&out, 0, sizeof out);
  std::snprintf(out.name, sizeof out.name, "%s", std::string(model.marketing).c_str());
  out.totalGlobalMem = model.memory_bytes;
  out.sharedMemPerBlock = model.shared_per_block;
  out.sharedMemPerBlockOptin = model.shared_per_block_optin;
  out.sharedMemPerMultiprocessor = model.shared_per_multiprocessor;
  out.reservedSharedMemPerBlock = kReservedSharedBytes;
  out.regsPerBlock = 65536;
  out.regsPerMultiprocessor = model.registers_per_multiprocessor;
  out.warpSize = 32;
  out.memPitch = std::numeric_limits<int>::max();
  out.maxThreadsPerBlock = 1024;
  out.maxThreadsDim[0] = out.maxThreadsDim[1] = 1024;
  out.maxThreadsDim[2] = 64;
  out.maxGridSize[0] = std::numeric_limits<int>::max();
  out.maxGridSize[1] = out.maxGridSize[2] = 65535;
  out.totalConstMem = 65536;
  out.major = model.capability / 10;
  out.minor = model.capability % 10;
  out.textureAlignment = 512;
  out.texturePitchAlignment = 32;
  out.multiProcessorCount = model.multiprocessors;
  out.canMapHostMemory = 1;
  out.concurrentKernels = 1;
  out.asyncEngineCount = 3;
  out.unifiedAddressing = 1;
  out.memoryBusWidth = bus_width_bits(model);
  out.l2CacheSize = static_cast<int>(model.l2_bytes);
  out.persistingL2CacheMaxSize = static_cast<int>(model.l2_bytes / 4 * 3);
  out.accessPolicyMaxWindowSize = static_cast<int>(std::min<std::size_t>(model.l2_bytes * 4, 128 << 20));
  out.maxThreadsPerMultiProcessor = model.threads_per_multiprocessor;
  out.maxBlocksPerMultiProcessor = model.blocks_per_multiprocessor;
  out.streamPrioritiesSupported = 1;
  out.globalL1CacheSupported = out.localL1CacheSupported = 1;
  out.managedMemory = out.concurrentManagedAccess = 1;
  out.computePreemptionSupported = 1;
  out.cooperativeLaunch = 1;
  out.hostRegisterSupported = 1;
  out.memoryPoolsSupported = 1;
  out.clusterLaunch = model.capability >= 90 ? 1 : 0;
  out.hostNumaId = -1;
  return out;
}

/// Attributes that are a field of the properties; the others have a value of their own below, or are 0.
struct PropertyAttribute {
  cudaDeviceAttr attribute;
  int cudaDeviceProp::*field;
};
constexpr std::array kPropertyAttributes = {
    PropertyAttribute{cudaDevAttrMaxThreadsPerBlock, &cudaDeviceProp::maxThreadsPerBlock},
    PropertyAttribute{cudaDevAttrWarpSize, &cudaDeviceProp::warpSize},
    PropertyAttribute{cudaDevAttrMaxRegistersPerBlock, &cudaDeviceProp::regsPerBlock},
    PropertyAttribute{cudaDevAttrMultiProcessorCount, &cudaDeviceProp::multiProcessorCount},
    PropertyAttribute{cudaDevAttrCanMapHostMemory, &cudaDeviceProp::canMapHostMemory},
    PropertyAttribute{cudaDevAttrConcurrentKernels, &cudaDeviceProp::concurrentKernels},
    PropertyAttribute{cudaDevAttrGlobalMemoryBusWidth, &cudaDeviceProp::memoryBusWidth},
    PropertyAttribute{cudaDevAttrL2CacheSize, &cudaDeviceProp::l2CacheSize},
    PropertyAttribute{cudaDevAttrMaxThreadsPerMultiProcessor, &cudaDeviceProp::maxThreadsPerMultiProcessor},
    PropertyAttribute{cudaDevAttrAsyncEngineCount, &cudaDeviceProp::asyncEngineCount},
    PropertyAttribute{cudaDevAttrUnifiedAddressing, &cudaDeviceProp::unifiedAddressing},
    PropertyAttribute{cudaDevAttrComputeCapabilityMajor, &cudaDeviceProp::major},
    PropertyAttribute{cudaDevAttrComputeCapabilityMinor, &cudaDeviceProp::minor},
    PropertyAttribute{cudaDevAttrStreamPrioritiesSupported, &cudaDeviceProp::streamPrioritiesSupported},
    PropertyAttribute{cudaDevAttrGlobalL1CacheSupported, &cudaDeviceProp::globalL1CacheSupported},
    PropertyAttribute{cudaDevAttrLocalL1CacheSupported, &cudaDeviceProp::localL1CacheSupported},
    PropertyAttribute{cudaDevAttrMaxRegistersPerMultiprocessor, &cudaDeviceProp::regsPerMultiprocessor},
    PropertyAttribute{cudaDevAttrManagedMemory, &cudaDeviceProp::managedMemory},
    PropertyAttribute{cudaDevAttrConcurrentManagedAccess, &cudaDeviceProp::concurrentManagedAccess},
    PropertyAttribute{cudaDevAttrComputePreemptionSupported, &cudaDeviceProp::computePreemptionSupported},
    PropertyAttribute{cudaDevAttrCooperativeLaunch, &cudaDeviceProp::cooperativeLaunch},
    PropertyAttribute{cudaDevAttrHostRegisterSupported, &cudaDeviceProp::hostRegisterSupported},
    PropertyAttribute{cudaDevAttrMaxBlocksPerMultiprocessor, &cudaDeviceProp::maxBlocksPerMultiProcessor},
    PropertyAttribute{cudaDevAttrMaxPersistingL2CacheSize, &cudaDeviceProp::persistingL2CacheMaxSize},
    PropertyAttribute{cudaDevAttrMaxAccessPolicyWindowSize, &cudaDeviceProp::accessPolicyMaxWindowSize},
    PropertyAttribute{cudaDevAttrMemoryPoolsSupported, &cudaDeviceProp::memoryPoolsSupported},
    PropertyAttribute{cudaDevAttrClusterLaunch, &cudaDeviceProp::clusterLaunch},
    PropertyAttribute{cudaDevAttrHostNumaId, &cudaDeviceProp::hostNumaId},
};

int attribute_of(const DeviceModel& model, cudaDeviceAttr attribute) {
  const cudaDeviceProp properties = properties_of(model);
  for (const PropertyAttribute& known : kPropertyAttributes)
    if (known.attribute == attribute) return properties.*(known.field);
  switch (attribute) {
    case cudaDevAttrMaxBlockDimX:
      return properties.maxThreadsDim[0];
    case cudaDevAttrMaxBlockDimY:
      return properties.maxThreadsDim[1];
    case cudaDevAttrMaxBlockDimZ:
      return properties.maxThreadsDim[2];
    case cudaDevAttrMaxGridDimX:
      return properties.maxGridSize[0];
    case cudaDevAttrMaxGridDimY:
      return properties.maxGridSize[1];
    case cudaDevAttrMaxGridDimZ:
      return properties.maxGridSize[2];
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return static_cast<int>(properties.sharedMemPerBlock);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return static_cast<int>(properties.sharedMemPerBlockOptin);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return static_cast<int>(properties.sharedMemPerMultiprocessor);
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return static_cast<int>(properties.reservedSharedMemPerBlock);
    case cudaDevAttrTotalConstantMemory:
      return static_cast<int>(properties.totalConstMem);
    case cudaDevAttrMaxPitch:
      return static_cast<int>(properties.memPitch);
    case cudaDevAttrTextureAlignment:
      return static_cast<int>(properties.textureAlignment);
    case cudaDevAttrTexturePitchAlignment:
      return static_cast<int>(properties.texturePitchAlignment);
    case cudaDevAttrClockRate:
      return model.clock_khz;
    case cudaDevAttrMemoryClockRate:  // such that twice it by the width of the bus is the bandwidth
      return static_cast<int>(model.bandwidth_gb_s * 1e9 * 8 / properties.memoryBusWidth / 2 / 1000);
    case cudaDevAttrGpuOverlap:
      return 1;
    case cudaDevAttrSingleToDoublePrecisionPerfRatio:
      return model.capability == 80 || model.capability == 90 ? 2 : 64;
    default:
      return 0;
  }
}

/// What cudaDeviceSetLimit holds; launches ask for those of the stack and the heap.
std::array<std::size_t, 7> limits = {1024, 1 << 20, 8 << 20, 2, 2048, 64, 0};

std::size_t& limit_of(cudaLimit limit) {
  if (limit < 0 || static_cast<std::size_t>(limit) >= limits.size())
    refuse(cudaErrorUnsupportedLimit, "limit ", static_cast<int>(limit), " is not known");
  return limits[static_cast<std::size_t>(limit)];
}

}  // namespace

std::size_t device_limit(cudaLimit limit) { return limit_of(limit); }

}  // namespace gpusim::runtime

using namespace gpusim::runtime;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  return call(
      "cudaGetDeviceCount",
      [&](State&) {
        require(count, "the number to set");
        *count = 1;
      },
      Needs::nothing);
}

cudaError_t cudaGetDevice(int* device) {
  return call(
      "cudaGetDevice",
      [&](State&) {
        require(device, "the device to set");
        *device = 0;
      },
      Needs::nothing);
}

cudaError_t cudaSetDevice(int device) {
  return call("cudaSetDevice", [&](State&) { require_device(device); });
}

cudaError_t cudaInitDevice(int device, unsigned, unsigned) { return cudaSetDevice(device); }

cudaError_t cudaChooseDevice(int* device, const cudaDeviceProp*) { return cudaGetDevice(device); }

cudaError_t cudaSetDeviceFlags(unsigned flags) {
  return call("cudaSetDeviceFlags", [&](State& state) { state.device_flags = flags; });
}

cudaError_t cudaGetDeviceFlags(unsigned* flags) {
  return call("cudaGetDeviceFlags", [&](State& state) {
    require(flags, "the flags to set");
    *flags = state.device_flags;
  });
}

cudaError_t cudaDeviceReset() {
  return call(
      "cudaDeviceReset", [](State& state) { state.reset(); }, Needs::nothing);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call("cudaGetDeviceProperties", [&](State& state) {
    require(properties, "the structure to fill");
    require_device(device);
    *properties = properties_of(state.device);
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call("cudaDeviceGetAttribute", [&](State& state) {
    require(value, "the value to set");
    require_device(device);
    if (attribute < 1 || attribute >= cudaDevAttrMax)
      refuse(cudaErrorInvalidValue, "attribute ", static_cast<int>(attribute), " is not known");
    *value = attribute_of(state.device, attribute);
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  return call("cudaDeviceGetPCIBusId", [&](State&) {
    require(text, "the text to set");
    require_device(device);
    if (std::snprintf(text, static_cast<std::size_t>(std::max(bytes, 0)), "0000:00:00.0") >= bytes)
      refuse(cudaErrorInvalidValue, bytes, " characters are too few; 13 are needed");
  });
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return call("cudaDeviceCanAccessPeer", [&](State&) {
    require(can, "the answer to set");
    require_device(device);
    require_device(peer);
    *can = 0;
  });
}

cudaError_t cudaDeviceSetLimit(cudaLimit limit, std::size_t value) {
  return call("cudaDeviceSetLimit", [&](State&) { limit_of(limit) = value; });
}

cudaError_t cudaDeviceGetLimit(std::size_t* value, cudaLimit limit) {
  return call("cudaDeviceGetLimit", [&](State&) {
    require(value, "the value to set");
    *value = limit_of(limit);
  });
}

cudaError_t cudaDeviceSetCacheConfig(cudaFuncCache) {
  return call("cudaDeviceSetCacheConfig", [](State&) {});
}

cudaError_t cudaDeviceGetCacheConfig(cudaFuncCache* config) {
  return call("cudaDeviceGetCacheConfig", [&](State&) {
    require(config, "the configuration to set");
    *config = cudaFuncCachePreferNone;
  });
}

cudaError_t cudaCtxResetPersistingL2Cache() {
  return call("cudaCtxResetPersistingL2Cache", [](State&) {});
}

cudaError_t cudaDriverGetVersion(int* version) {
  return call(
      "cudaDriverGetVersion",
      [&](State&) {
        require(version, "the version to set");
        *version = CUDART_VERSION;
      },
      Needs::nothing);
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  return call(
      "cudaRuntimeGetVersion",
      [&](State&) {
        require(version, "the version to set");
        *version = CUDART_VERSION;
      },
      Needs::nothing);
}

cudaError_t cudaProfilerStart() {
  return call("cudaProfilerStart", [](State&) {});
}

cudaError_t cudaProfilerStop() {
  return call("cudaProfilerStop", [](State&) {});
}

}  // extern "C"
