// Launches: configuration, limits, parameters; attributes of kernels; occupancy.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "gpusim/occupancy.h"
#include "gpusim/runtime_state.h"

namespace gpusim::runtime {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr Dim3 kMaxBlock = {1024, 1024, 64};
constexpr Dim3 kMaxGrid = {std::numeric_limits<int>::max(), 65535, 65535};
constexpr unsigned kPortableCluster = 8, kLargestCluster = 16;
constexpr std::size_t kParameterLimit = 32764;  // bytes, from compute capability 7.0 on

struct LaunchRequest {
  Dim3 grid, block;
  Dim3 cluster = {0, 0, 0};  // zeros: what the kernel says
  std::size_t dynamic_shared = 0;
  bool cooperative = false;
};

struct PushedConfiguration {
  dim3 grid, block;
  std::size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<PushedConfiguration> pushed;

Dim3 as_dim3(dim3 d) { return {d.x, d.y, d.z}; }

std::string text(const Dim3& d) { return dsv2::concat('(', d.x, ',', d.y, ',', d.z, ')'); }

void check_block(const Dim3& block, const KernelInfo& info, const std::string& name) {
  if (block.count() == 0)
    refuse(cudaErrorInvalidConfiguration, name, ": a block of ", text(block), " threads is empty");
  if (block.x > kMaxBlock.x || block.y > kMaxBlock.y || block.z > kMaxBlock.z || block.count() > kMaxThreads)
    refuse(cudaErrorInvalidConfiguration, name, ": a block of ", text(block), " is ", block.count(),
           " threads; a block has at most 1024 in all and ", text(kMaxBlock), " by dimension");
  if (block.count() > static_cast<std::uint64_t>(info.max_threads))
    refuse(cudaErrorInvalidValue, name, ": a block of ", block.count(), " threads; its __launch_bounds__ allow ",
           info.max_threads);
}

void check_grid(const Dim3& grid, const std::string& name) {
  if (grid.count() == 0)
    refuse(cudaErrorInvalidConfiguration, name, ": a grid of ", text(grid), " blocks is empty; skip the launch");
  if (grid.x > kMaxGrid.x || grid.y > kMaxGrid.y || grid.z > kMaxGrid.z)
    refuse(cudaErrorInvalidConfiguration, name, ": a grid of ", text(grid), " blocks; at most ", text(kMaxGrid));
}

std::size_t dynamic_limit(const CUkern_st& kernel, const KernelInfo& info, const DeviceModel& device) {
  if (kernel.dynamic_shared_limit) return *kernel.dynamic_shared_limit;
  return device.shared_per_block - std::min(device.shared_per_block, info.static_shared_bytes);
}

void check_shared(const CUkern_st& kernel, const KernelInfo& info, const DeviceModel& device, std::size_t dynamic,
                  const std::string& name) {
  const std::size_t limit = dynamic_limit(kernel, info, device);
  if (dynamic <= limit) return;
  const std::size_t largest = device.shared_per_block_optin - info.static_shared_bytes;
  if (dynamic > largest)
    refuse(cudaErrorInvalidValue, name, ": ", dynamic, " bytes of dynamic and ", info.static_shared_bytes,
           " of static shared memory; a block on ", device.name, " has at most ", device.shared_per_block_optin);
  refuse(cudaErrorInvalidValue, name, ": ", dynamic, " bytes of dynamic shared memory, allowed are ", limit,
         "; set cudaFuncAttributeMaxDynamicSharedMemorySize first (up to ", largest, " on ", device.name, ')');
}

Dim3 checked_cluster(const CUkern_st& kernel, const KernelInfo& info, const DeviceModel& device,
                     const LaunchRequest& request, const std::string& name) {
  Dim3 cluster = info.cluster.count() != 0 ? info.cluster : kernel.required_cluster;
  if (request.cluster.count() != 0) {
    if (info.cluster.count() != 0 && !(info.cluster == request.cluster))
      refuse(cudaErrorInvalidValue, name, ": clusters of ", text(request.cluster),
             " are asked for, it was compiled for ", text(info.cluster));
    cluster = request.cluster;
  }
  if (cluster.count() <= 1) return {1, 1, 1};
  if (device.capability < 90)
    refuse(cudaErrorNotSupported, name, ": clusters need compute capability 9.0, ", device.name, " has ",
           device.capability / 10, '.', device.capability % 10);
  const unsigned largest = kernel.non_portable_cluster ? kLargestCluster : kPortableCluster;
  if (cluster.count() > largest)
    refuse(cudaErrorInvalidClusterSize, name, ": clusters of ", text(cluster), " are ", cluster.count(),
           " blocks, allowed are ", largest,
           kernel.non_portable_cluster ? "" : " (16 with cudaFuncAttributeNonPortableClusterSizeAllowed)");
  if (request.grid.x % cluster.x != 0 || request.grid.y % cluster.y != 0 || request.grid.z % cluster.z != 0)
    refuse(cudaErrorInvalidConfiguration, name, ": a grid of ", text(request.grid), " is no multiple of clusters of ",
           text(cluster));
  return cluster;
}

void check_cooperative(const KernelInfo& info, const DeviceModel& device, const LaunchRequest& request,
                       const std::string& name) {
  if (!request.cooperative) return;
  const auto threads = static_cast<int>(request.block.count());
  const auto resident = static_cast<std::uint64_t>(device.multiprocessors) *
                        static_cast<std::uint64_t>(resident_blocks(device, info, threads, request.dynamic_shared));
  if (request.grid.count() > resident)
    refuse(cudaErrorCooperativeLaunchTooLarge, name, ": a cooperative grid of ", request.grid.count(), " blocks; ",
           device.name, " holds ", resident, " of them at once");
}

std::vector<std::byte> collect_parameters(const KernelInfo& info, void** arguments, const std::string& name) {
  std::vector<std::byte> out(info.parameter_bytes);
  if (info.parameter_sizes.empty()) return out;
  if (arguments == nullptr) refuse(cudaErrorInvalidValue, name, ": the array of parameters is null");
  if (info.parameter_bytes > kParameterLimit)
    refuse(cudaErrorInvalidValue, name, ": ", info.parameter_bytes, " bytes of parameters, at most ", kParameterLimit);
  for (std::size_t i = 0; i < info.parameter_sizes.size(); ++i) {
    if (arguments[i] == nullptr) refuse(cudaErrorInvalidValue, name, ": parameter ", i, " is null");
    std::memcpy(out.data() + info.parameter_offsets[i], arguments[i], info.parameter_sizes[i]);
  }
  return out;
}

cudaError_t error_of(const LaunchResult& result) {
  switch (result.status) {
    case LaunchStatus::ok:
      return cudaSuccess;
    case LaunchStatus::illegal_address:
      return cudaErrorIllegalAddress;
    case LaunchStatus::misaligned_address:
      return cudaErrorMisalignedAddress;
    case LaunchStatus::illegal_instruction:
      return cudaErrorIllegalInstruction;
    case LaunchStatus::time_out:
      return cudaErrorLaunchTimeout;
    case LaunchStatus::trap:
      break;
  }
  // A failed assert and a trap differ to the program.
  for (const Finding& finding : result.findings)
    if (finding.kind == FindingKind::trap && finding.message.find("assert") != std::string::npos)
      return cudaErrorAssert;
  return cudaErrorLaunchFailure;
}

/// A launch that was checked, kept until its stream reaches it; a graph runs it many times.
struct PreparedLaunch {
  CUkern_st* kernel;
  LaunchConfig config;  // parameters point into `parameters`
  std::vector<std::byte> parameters;
};

/// A kernel that walks over memory in strides touches millions of ranges: as many are watched as cost little, the
/// others are left out, which can miss a race and never makes one up.
std::vector<MemoryRange> shortened(std::vector<MemoryRange> ranges) {
  constexpr std::size_t kMost = 1 << 16;
  if (ranges.size() > kMost) ranges.resize(kMost);
  return ranges;
}

/// Launches that nothing waits for run at the exit: while what kernels stand on, static objects, is still there.
void drain_at_exit() {
  std::atexit([] {
    State& state = State::get();
    const std::lock_guard lock(state.mutex);
    state.scheduler.wait_all();
  });
}

void run_launch(State& state, const PreparedLaunch& prepared, Accesses& accesses) {
  if (state.sticky != cudaSuccess) return;
  LaunchConfig config = prepared.config;
  config.parameters = prepared.parameters;
  config.launch_id = ++state.launches;
  config.stack_bytes = device_limit(cudaLimitStackSize);
  config.heap_bytes = device_limit(cudaLimitMallocHeapSize);
  const std::string& name = prepared.kernel->name;
  LaunchResult result;
  const KernelInfo* info = nullptr;
  try {
    Settings settings = state.environment.settings;
    // Of use only where something can race with it: another stream, or the host in pinned memory.
    settings.touched = settings.checks.streams && (state.scheduler.has_streams() || !state.pinned_flags.empty());
    Module& module = state.load(*prepared.kernel->image);
    info = module.kernel(name);
    result = launch(module, name, config, state.memory, state.device, settings);
  } catch (const dsv2::Error& error) {
    Finding finding;
    finding.kind = FindingKind::unsupported;
    finding.kernel = demangled(name);
    finding.message = error.what();
    state.report.add(finding);
    state.sticky = cudaErrorIllegalInstruction;
    return;
  }
  // What the first launch has made is destroyed before the handlers that were there before it run.
  static const bool registered = (drain_at_exit(), true);
  static_cast<void>(registered);
  state.report.add(*info, config, result);
  accesses.reads = shortened(std::move(result.loaded));
  accesses.writes = shortened(std::move(result.stored));
  accesses.atomics = shortened(std::move(result.atomics));
  state.sticky = error_of(result);
}

void submit_launch(State& state, const void* function, const LaunchRequest& request, void** arguments,
                   cudaStream_t stream_handle) {
  CUkern_st& kernel = state.kernel(function);
  CUstream_st& stream = state.stream(stream_handle);
  const KernelInfo& info = state.info(kernel);
  const std::string name = demangled(kernel.name);
  check_block(request.block, info, name);
  check_grid(request.grid, name);
  check_shared(kernel, info, state.device, request.dynamic_shared, name);
  auto prepared = std::make_shared<PreparedLaunch>();
  prepared->kernel = &kernel;
  prepared->config.grid = request.grid;
  prepared->config.block = request.block;
  prepared->config.cluster = checked_cluster(kernel, info, state.device, request, name);
  prepared->config.dynamic_shared_bytes = request.dynamic_shared;
  prepared->config.cooperative = request.cooperative;
  check_cooperative(info, state.device, request, name);
  prepared->parameters = collect_parameters(info, arguments, name);

  static const bool registered = (drain_at_exit(), true);
  static_cast<void>(registered);
  Work work;
  work.type = cudaGraphNodeTypeKernel;
  work.make = [&state, prepared, name]() {
    return Operation{.what = name,
                     .run = [&state, prepared](Accesses& accesses) { run_launch(state, *prepared, accesses); },
                     .accesses = {}};
  };
  state.enqueue(stream, std::move(work));
}

LaunchRequest request_of(const cudaLaunchConfig_t& config) {
  LaunchRequest out = {
      .grid = as_dim3(config.gridDim), .block = as_dim3(config.blockDim), .dynamic_shared = config.dynamicSmemBytes};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    switch (attribute.id) {
      case cudaLaunchAttributeCooperative:
        out.cooperative = attribute.val.cooperative != 0;
        break;
      case cudaLaunchAttributeClusterDimension:
        out.cluster = {attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z};
        if (out.cluster.count() == 0) refuse(cudaErrorInvalidValue, "a cluster of ", text(out.cluster), " is empty");
        break;
      // Hints, or freedoms that a launch need not use.
      case cudaLaunchAttributeIgnore:
      case cudaLaunchAttributeAccessPolicyWindow:
      case cudaLaunchAttributeClusterSchedulingPolicyPreference:
      case cudaLaunchAttributeProgrammaticStreamSerialization:
      case cudaLaunchAttributePriority:
      case cudaLaunchAttributeMemSyncDomainMap:
      case cudaLaunchAttributeMemSyncDomain:
      case cudaLaunchAttributePreferredSharedMemoryCarveout:
        break;
      default:
        refuse(cudaErrorNotSupported, "launch attribute ", static_cast<int>(attribute.id), " is not modelled");
    }
  }
  return out;
}

void require(const void* pointer, const char* what) {
  if (pointer == nullptr) refuse(cudaErrorInvalidValue, what, " is null");
}

void set_attribute(State& state, CUkern_st& kernel, cudaFuncAttribute attribute, int value) {
  const KernelInfo& info = state.info(kernel);
  const std::string name = demangled(kernel.name);
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize: {
      const std::size_t largest = state.device.shared_per_block_optin - info.static_shared_bytes;
      if (value < 0 || static_cast<std::size_t>(value) > largest)
        refuse(cudaErrorInvalidValue, name, ": ", value, " bytes of dynamic shared memory; with ",
               info.static_shared_bytes, " of static, ", state.device.name, " has at most ", largest);
      kernel.dynamic_shared_limit = static_cast<std::size_t>(value);
      return;
    }
    case cudaFuncAttributePreferredSharedMemoryCarveout:
      if (value < -1 || value > 100) refuse(cudaErrorInvalidValue, name, ": a carveout of ", value, " %");
      kernel.carveout = value;
      return;
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      kernel.non_portable_cluster = value != 0;
      return;
    case cudaFuncAttributeRequiredClusterWidth:
      kernel.required_cluster.x = static_cast<unsigned>(value);
      return;
    case cudaFuncAttributeRequiredClusterHeight:
      kernel.required_cluster.y = static_cast<unsigned>(value);
      return;
    case cudaFuncAttributeRequiredClusterDepth:
      kernel.required_cluster.z = static_cast<unsigned>(value);
      return;
    case cudaFuncAttributeClusterSchedulingPolicyPreference:
      return;
    default:
      refuse(cudaErrorInvalidValue, name, ": attribute ", static_cast<int>(attribute), " cannot be set");
  }
}

void fill_attributes(State& state, CUkern_st& kernel, cudaFuncAttributes& out) {
  const KernelInfo& info = state.info(kernel);
  out = {};
  out.sharedSizeBytes = info.static_shared_bytes;
  out.localSizeBytes = info.local_bytes;
  out.maxThreadsPerBlock = info.max_threads;
  out.numRegs = info.registers;
  out.ptxVersion = state.device.ptx_capability;
  out.binaryVersion = state.device.capability;
  out.maxDynamicSharedSizeBytes = static_cast<int>(dynamic_limit(kernel, info, state.device));
  out.preferredShmemCarveout = kernel.carveout;
  out.clusterDimMustBeSet = 0;
  out.requiredClusterWidth = static_cast<int>(info.cluster.x);
  out.requiredClusterHeight = static_cast<int>(info.cluster.y);
  out.requiredClusterDepth = static_cast<int>(info.cluster.z);
  out.nonPortableClusterSizeAllowed = kernel.non_portable_cluster ? 1 : 0;
}

int resident(State& state, const void* function, int threads, std::size_t dynamic_shared) {
  CUkern_st& kernel = state.kernel(function);
  const KernelInfo& info = state.info(kernel);
  if (threads <= 0) refuse(cudaErrorInvalidValue, "a block of ", threads, " threads");
  // Only what the kernel may ask for: the real calculator also answers 0 beyond it.
  if (dynamic_shared > dynamic_limit(kernel, info, state.device)) return 0;
  return resident_blocks(state.device, info, threads, dynamic_shared);
}

}  // namespace
}  // namespace gpusim::runtime

using namespace gpusim::runtime;

// The names are those that nvcc's code calls.
// NOLINTBEGIN(bugprone-reserved-identifier)
extern "C" {

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, CUstream_st* stream) {
  pushed.push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  if (pushed.empty()) return last_error() = cudaErrorMissingConfiguration;
  const PushedConfiguration top = pushed.back();
  pushed.pop_back();
  *grid = top.grid;
  *block = top.block;
  *shared = top.shared;
  std::memcpy(stream, &top.stream, sizeof(cudaStream_t));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                             cudaStream_t stream) {
  return call("launch", [&](State& state) {
    submit_launch(state, function, {.grid = as_dim3(grid), .block = as_dim3(block), .dynamic_shared = shared},
                  arguments, stream);
  });
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                               cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                        std::size_t shared, cudaStream_t stream) {
  return call("cooperative launch", [&](State& state) {
    submit_launch(state, function,
                  {.grid = as_dim3(grid), .block = as_dim3(block), .dynamic_shared = shared, .cooperative = true},
                  arguments, stream);
  });
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  return call("cudaLaunchKernelEx", [&](State& state) {
    require(config, "the configuration");
    submit_launch(state, function, request_of(*config), arguments, config->stream);
  });
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  return call("cudaFuncSetAttribute",
              [&](State& state) { set_attribute(state, state.kernel(function), attribute, value); });
}

cudaError_t cudaFuncSetCacheConfig(const void* function, cudaFuncCache) {
  return call("cudaFuncSetCacheConfig", [&](State& state) { state.kernel(function); });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  return call("cudaFuncGetAttributes", [&](State& state) {
    require(attributes, "the structure to fill");
    fill_attributes(state, state.kernel(function), *attributes);
  });
}

cudaError_t cudaFuncGetName(const char** name, const void* function) {
  return call("cudaFuncGetName", [&](State& state) {
    require(name, "the name to set");
    *name = state.kernel(function).name.c_str();
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function, int threads,
                                                                   std::size_t dynamic_shared, unsigned) {
  return call("cudaOccupancyMaxActiveBlocksPerMultiprocessor", [&](State& state) {
    require(blocks, "the number to set");
    *blocks = resident(state, function, threads, dynamic_shared);
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                          std::size_t dynamic_shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, dynamic_shared, 0);
}

cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(std::size_t* bytes, const void* function, int blocks,
                                                      int threads) {
  return call("cudaOccupancyAvailableDynamicSMemPerBlock", [&](State& state) {
    require(bytes, "the size to set");
    const gpusim::KernelInfo& info = state.info(state.kernel(function));
    *bytes = gpusim::dynamic_shared_for(state.device, info, threads, blocks);
  });
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function, const cudaLaunchConfig_t* config) {
  return call("cudaOccupancyMaxActiveClusters", [&](State& state) {
    require(clusters, "the number to set");
    require(config, "the configuration");
    LaunchRequest request = request_of(*config);
    CUkern_st& kernel = state.kernel(function);
    const gpusim::Dim3 cluster =
        checked_cluster(kernel, state.info(kernel), state.device, request, gpusim::demangled(kernel.name));
    const int blocks = resident(state, function, static_cast<int>(request.block.count()), request.dynamic_shared);
    *clusters = blocks * state.device.multiprocessors / static_cast<int>(cluster.count());
  });
}

cudaError_t cudaOccupancyMaxPotentialClusterSize(int* size, const void* function, const cudaLaunchConfig_t*) {
  return call("cudaOccupancyMaxPotentialClusterSize", [&](State& state) {
    require(size, "the size to set");
    const CUkern_st& kernel = state.kernel(function);
    if (state.device.capability < 90)
      refuse(cudaErrorNotSupported, "clusters need compute capability 9.0, ", state.device.name, " has less");
    *size = static_cast<int>(kernel.non_portable_cluster ? kLargestCluster : kPortableCluster);
  });
}

}  // extern "C"
// NOLINTEND(bugprone-reserved-identifier)
