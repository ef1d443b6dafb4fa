// What stands behind the CUDA runtime calls: one device, its memory, streams, modules and errors. Internal to
// runtime_*.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "gpusim/environment.h"
#include "gpusim/fatbin.h"
#include "gpusim/launch.h"
#include "gpusim/report.h"
#include "gpusim/streams.h"
#include "model/error.h"

namespace gpusim::runtime {

/// Thrown by the body of a runtime call: what the call returns, and the line that says why and what would help.
/// An empty `why` is an outcome that needs no telling (not ready, a sticky error that was told before).
struct Refusal {
  cudaError_t error = cudaErrorUnknown;
  std::string why;
  FindingKind kind = FindingKind::invalid_argument;
};

template <class... Parts>
[[noreturn]] void refuse(cudaError_t error, const Parts&... why) {
  throw Refusal{error, dsv2::concat(why...)};
}

struct Capture;
struct NodeParameters;

/// A fat binary that the program registered; its PTX is read when something of it is first used.
struct Image {
  std::vector<const std::byte*> containers;  ///< several where nvlink joined objects
  std::unique_ptr<Module> module;
  std::optional<Refusal> broken;  ///< why it could not be loaded
};

}  // namespace gpusim::runtime

/// A node of a graph: what is submitted for it at every launch of the graph.
struct CUgraphNode_st {
  cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
  std::function<gpusim::Operation()> make;
  std::string signature;  ///< what an update must leave as it is: the direction of a copy
  std::vector<CUgraphNode_st*> after;
  std::shared_ptr<gpusim::runtime::NodeParameters> parameters = nullptr;  ///< of one that was made by hand
  cudaEvent_t event = nullptr;                                            ///< that it records or waits for
  std::shared_ptr<CUgraph_st> child = nullptr;                            ///< that stands in its place
  const CUgraphNode_st* original = nullptr;                               ///< whose copy it is
};

/// A kernel as the program knows it: the address of its host stub, or this structure's own (cudaKernel_t).
struct CUkern_st {
  gpusim::runtime::Image* image = nullptr;
  std::string name;                                 ///< mangled
  std::optional<std::size_t> dynamic_shared_limit;  ///< cudaFuncAttributeMaxDynamicSharedMemorySize, once set
  int carveout = -1;
  bool non_portable_cluster = false;
  gpusim::Dim3 required_cluster = {0, 0, 0};
};

struct CUstream_st {
  gpusim::Scheduler::Stream id = 0;
  unsigned flags = 0;
  int priority = 0;
  gpusim::runtime::Capture* capture = nullptr;  ///< while capturing
  std::vector<cudaGraphNode_t> frontier;        ///< of the capture: what the next node depends on
};

struct CUevent_st {
  /// When the record was reached, in ms; shared with the operation that sets it.
  struct Stamp {
    double ms = 0;
  };
  unsigned flags = 0;
  gpusim::TaskPtr task;
  std::shared_ptr<Stamp> stamp;                 ///< null: never recorded
  gpusim::runtime::Capture* capture = nullptr;  ///< recorded last in a stream that was capturing
  std::vector<cudaGraphNode_t> frontier;        ///< what it stands for there
};

namespace gpusim::runtime {

/// What is enqueued: into a stream, or, while that one captures, into a graph.
struct Work {
  cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
  std::function<Operation()> make;  ///< called once for a stream, at each launch for a graph
  std::string signature;
};

/// A capture under way, from cudaStreamBeginCapture to cudaStreamEndCapture.
struct Capture {
  CUstream_st* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  unsigned long long id = 0;
  bool invalid = false;               ///< a call was refused: the capture cannot end well any more
  std::vector<CUstream_st*> members;  ///< the origin, and streams that joined it by waiting for its events
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
};

/// A variable of the program's that lives on the device.
struct HostVariable {
  Image* image = nullptr;
  std::string name;
  std::size_t bytes = 0;
  void** managed = nullptr;  ///< where the program reads a __managed__ variable's address
};

/// What an address is to the runtime.
enum class Place : std::uint8_t { pageable, registered, pinned, managed, device };

struct Location {
  Place place = Place::pageable;
  std::uint64_t begin = 0;  ///< of the allocation or the registered range; 0 for pageable memory
  std::size_t bytes = 0;
  bool on_device() const { return place == Place::device || place == Place::managed; }
  bool on_host() const { return place != Place::device; }
  /// Copies from or to it go without staging, so that they run when the stream reaches them.
  bool asynchronous() const { return place != Place::pageable; }
};

class State {
 public:
  /// Made at the first call, from the environment; lives to the end of the process.
  static State& get();

  std::recursive_mutex mutex;
  const Environment environment;
  const DeviceModel& device;
  Report report;
  DeviceMemory memory;
  Scheduler scheduler;

  // --- errors ---
  /// Set by a kernel that ended badly; every call returns it from then on, until cudaDeviceReset.
  cudaError_t sticky = cudaSuccess;
  bool in_callback = false;  ///< a host function runs: runtime calls are not permitted
  void raise_sticky() const {
    if (sticky != cudaSuccess) throw Refusal{sticky, ""};
  }
  void tell(const std::string& call, const Refusal& refusal);
  void tell(FindingKind kind, std::string message);
  /// For operations when their stream reaches them: nothing on a broken device; a refusal breaks it.
  template <class Body>
  void run_operation(const std::string& what, Body&& body) {
    if (sticky != cudaSuccess) return;
    try {
      body();
    } catch (const Refusal& refusal) {
      tell(what, refusal);
      sticky = cudaErrorIllegalAddress;
    }
  }

  // --- programs (runtime_registration.cpp) ---
  Image& add_image(std::vector<const std::byte*> containers);
  void add_kernel(const void* host, Image& image, std::string name);
  void add_variable(const void* host, HostVariable variable);
  /// By the address of the stub or by the cudaKernel_t itself. Refuses with cudaErrorInvalidDeviceFunction.
  CUkern_st& kernel(const void* function);
  const KernelInfo& info(CUkern_st& kernel);
  const HostVariable& variable(const void* symbol);
  ModuleVariable module_variable(const void* symbol);
  Module& load(Image& image);
  void unload_all();

  // --- memory (runtime_memory.cpp) ---
  void* allocate(std::size_t bytes, const char* what, Place place);
  void release(void* address, bool host);
  Location locate(const void* address) const;
  /// Refuses unless all `bytes` from `address` lie within one live allocation, or in host memory that is not ours.
  Location checked_range(const void* address, std::size_t bytes, const char* what) const;
  std::size_t device_bytes_used() const { return device_bytes_; }
  std::unordered_map<std::uint64_t, Place> host_visible;                 ///< pinned and managed allocations
  std::map<std::uint64_t, std::pair<std::size_t, unsigned>> registered;  ///< cudaHostRegister: bytes, flags
  std::map<std::uint64_t, unsigned> pinned_flags;                        ///< of cudaHostAlloc

  // --- streams, events, graphs ---
  CUstream_st& stream(cudaStream_t handle);
  CUstream_st& add_stream(unsigned flags, int priority);
  CUevent_st& event(cudaEvent_t handle);
  /// Enqueues, or adds a node to the graph that the stream captures.
  TaskPtr enqueue(CUstream_st& stream, Work work);
  /// Waiting calls: what they need runs, and an error that it met is raised.
  void wait(const TaskPtr& task);
  void wait_stream(CUstream_st& stream);
  void wait_all();
  /// Refuses, and breaks the capture, where one in the global mode, or in this thread's, forbids calls that wait or
  /// allocate.
  void forbid_in_capture(const char* call);
  bool is_legacy(const CUstream_st& stream) const { return &stream == &legacy_; }
  std::vector<std::unique_ptr<Capture>> captures;
  std::unordered_map<cudaStream_t, std::unique_ptr<CUstream_st>> streams;
  std::unordered_map<cudaEvent_t, std::unique_ptr<CUevent_st>> events;

  // --- launches ---
  std::uint64_t launches = 0;
  unsigned device_flags = 0;
  std::uint64_t generation = 1;    ///< raised by cudaDeviceReset
  std::uint64_t streams_made = 0;  ///< to number them in messages

  void report_leaks();
  /// cudaDeviceReset: everything goes, variables get their first values again.
  void reset();
  /// The end of the process: runs what is pending, reports; leaves with 1 where a check fired and `status` is 0.
  void finish(int status);
  /// A signal ends the process: says what is known, without running what is pending.
  void finish_by_signal(int signal);

 private:
  explicit State(Environment from);

  std::unordered_map<std::uint64_t, std::size_t> sizes_;  // of live allocations that count against the device
  std::size_t device_bytes_ = 0;
  std::vector<std::unique_ptr<Image>> images_;
  std::unordered_map<const void*, std::unique_ptr<CUkern_st>> kernels_;
  std::unordered_map<const void*, HostVariable> variables_;
  CUstream_st legacy_;
  bool finished_ = false;
  void write_report();
};

/// cudaDeviceReset: graphs go, too (runtime_graphs.cpp).
void forget_graphs();

/// What events are stamped with (runtime_streams.cpp).
double now_ms();

/// Memory pools (runtime_pools.cpp): what cudaMallocAsync takes from; refuses where the pool has no room for `bytes`;
/// an allocation that was made, and one that has gone.
cudaMemPool_t current_pool();
void check_pool(cudaMemPool_t pool, std::size_t bytes);
void note_pool_allocation(cudaMemPool_t pool, std::uint64_t address, std::size_t bytes);
void note_pool_release(std::uint64_t address);
/// cudaDeviceReset: all pools but the default one go.
void forget_pools();

/// What cudaDeviceSetLimit has set (runtime_device.cpp).
std::size_t device_limit(cudaLimit limit);

/// The thread's last error.
cudaError_t& last_error();

/// What must hold of a call for its body to run.
enum class Needs : std::uint8_t {
  working_device,  ///< returns the sticky error of a kernel that ended badly
  nothing,         ///< works on a broken device too
};

/// Every runtime call: takes the lock, returns a sticky error, runs `body`, turns a Refusal into the call's result and
/// a line for the user.
template <class Body>
cudaError_t call(const char* name, Body&& body, Needs needs = Needs::working_device) {
  State& state = State::get();
  const std::lock_guard lock(state.mutex);
  try {
    if (state.in_callback) refuse(cudaErrorNotPermitted, "called from a host function, where CUDA permits no calls");
    if (needs == Needs::working_device) state.raise_sticky();
    body(state);
    return cudaSuccess;
  } catch (const Refusal& refusal) {
    state.tell(name, refusal);
    return last_error() = refusal.error;
  } catch (const dsv2::Error& error) {
    state.tell(name, {cudaErrorUnknown, error.what()});
    return last_error() = cudaErrorUnknown;
  } catch (const std::bad_alloc&) {
    state.tell(name, {cudaErrorMemoryAllocation, "the host has no memory left"});
    return last_error() = cudaErrorMemoryAllocation;
  }
}

}  // namespace gpusim::runtime
