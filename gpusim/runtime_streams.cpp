// Streams and events of the CUDA runtime.
#include <algorithm>
#include <chrono>

#include "gpusim/runtime_state.h"

namespace gpusim::runtime {

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

namespace {

constexpr int kLeastPriority = 0, kGreatestPriority = -5;  // as devices from compute capability 7.0 on say

void invalidate(Capture& capture) { capture.invalid = true; }

void require(const void* pointer, const char* what) {
  if (pointer == nullptr) refuse(cudaErrorInvalidValue, what, " is null");
}

/// A stream that captures cannot be waited for: nothing of it has been submitted.
void forbid_capturing(CUstream_st& stream, const char* name) {
  if (stream.capture == nullptr) return;
  invalidate(*stream.capture);
  refuse(cudaErrorStreamCaptureUnsupported, name, " of a stream that is capturing; end the capture first");
}

void forbid_captured(const CUevent_st& event, const char* name) {
  if (event.capture != nullptr)
    refuse(cudaErrorCapturedEvent, name, " of an event that was recorded in a stream that is capturing");
}

void record(State& state, cudaEvent_t handle, cudaStream_t stream_handle) {
  CUevent_st& event = state.event(handle);
  CUstream_st& stream = state.stream(stream_handle);
  if (stream.capture != nullptr) {
    event.capture = stream.capture;
    event.frontier = stream.frontier;
    event.task = nullptr;
    event.stamp = nullptr;
    return;
  }
  event.capture = nullptr;
  event.stamp = std::make_shared<CUevent_st::Stamp>();
  Work work;
  work.make = [stamp = event.stamp]() {
    return Operation{.what = "cudaEventRecord", .run = [stamp](Accesses&) { stamp->ms = now_ms(); }, .accesses = {}};
  };
  event.task = state.enqueue(stream, std::move(work));
}

void join_capture(CUstream_st& stream, const CUevent_st& event) {
  if (stream.capture == nullptr) {
    stream.capture = event.capture;
    stream.frontier = event.frontier;
    event.capture->members.push_back(&stream);
    return;
  }
  if (stream.capture != event.capture) {
    invalidate(*stream.capture);
    refuse(cudaErrorStreamCaptureMerge, "the event belongs to another capture than the stream");
  }
  for (const cudaGraphNode_t node : event.frontier)
    if (std::find(stream.frontier.begin(), stream.frontier.end(), node) == stream.frontier.end())
      stream.frontier.push_back(node);
}

void wait_event(State& state, cudaStream_t stream_handle, cudaEvent_t handle) {
  CUstream_st& stream = state.stream(stream_handle);
  const CUevent_st& event = state.event(handle);
  if (event.capture != nullptr) return join_capture(stream, event);
  if (stream.capture != nullptr) {
    if (event.task == nullptr) return;
    invalidate(*stream.capture);
    refuse(cudaErrorStreamCaptureIsolation, "a stream that is capturing waits for an event that was recorded outside");
  }
  if (event.task == nullptr) return;  // never recorded: nothing to wait for
  const TaskPtr after = event.task;
  state.scheduler.submit(stream.id, Operation{.what = "cudaStreamWaitEvent", .run = {}, .accesses = {}},
                         std::span(&after, 1));
}

void add_callback(State& state, const char* name, cudaStream_t handle, std::function<void()> function) {
  CUstream_st& stream = state.stream(handle);
  Work work;
  work.type = cudaGraphNodeTypeHost;
  work.signature = "host";
  work.make = [&state, name, function = std::move(function)]() {
    return Operation{.what = name,
                     .run =
                         [&state, function](Accesses&) {
                           if (state.sticky != cudaSuccess) return;  // as the manual says of a device in error
                           state.in_callback = true;
                           function();
                           state.in_callback = false;
                         },
                     .accesses = {}};
  };
  state.enqueue(stream, std::move(work));
}

}  // namespace

CUstream_st& State::stream(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) return legacy_;
  if (handle == cudaStreamPerThread) {
    thread_local CUstream_st* mine = nullptr;
    thread_local std::uint64_t made_in = 0;
    if (mine == nullptr || made_in != generation) {
      mine = &add_stream(cudaStreamDefault, 0);
      made_in = generation;
    }
    return *mine;
  }
  if (const auto found = streams.find(handle); found != streams.end()) return *found->second;
  refuse(cudaErrorInvalidResourceHandle, "0x", std::hex, reinterpret_cast<std::uint64_t>(handle),
         " is no stream, or one that was destroyed");
}

CUstream_st& State::add_stream(unsigned flags, int priority) {
  auto added = std::make_unique<CUstream_st>();
  added->id = scheduler.add_stream((flags & cudaStreamNonBlocking) == 0, dsv2::concat("stream ", ++streams_made));
  added->flags = flags;
  added->priority = priority;
  CUstream_st& out = *added;
  streams[&out] = std::move(added);
  return out;
}

CUevent_st& State::event(cudaEvent_t handle) {
  if (const auto found = events.find(handle); found != events.end()) return *found->second;
  refuse(cudaErrorInvalidResourceHandle, "0x", std::hex, reinterpret_cast<std::uint64_t>(handle),
         " is no event, or one that was destroyed");
}

TaskPtr State::enqueue(CUstream_st& target, Work work) {
  if (target.capture != nullptr) {
    Capture& capture = *target.capture;
    if (capture.invalid)
      refuse(cudaErrorStreamCaptureInvalidated, "the capture was broken by a call that was refused before");
    auto node = std::make_unique<CUgraphNode_st>();
    node->type = work.type;
    node->make = std::move(work.make);
    node->signature = std::move(work.signature);
    node->after = target.frontier;
    target.frontier = {node.get()};
    capture.nodes.push_back(std::move(node));
    return nullptr;
  }
  if (is_legacy(target)) {
    for (const auto& capture : captures)
      for (const CUstream_st* member : capture->members)
        if ((member->flags & cudaStreamNonBlocking) == 0) {
          invalidate(*capture);
          refuse(cudaErrorStreamCaptureImplicit,
                 "the legacy default stream would wait for a blocking stream that is capturing; use a stream of its "
                 "own, or cudaStreamNonBlocking");
        }
  }
  return scheduler.submit(target.id, work.make());
}

void State::forbid_in_capture(const char* name) {
  for (const auto& capture : captures) {
    const bool forbids =
        capture->mode == cudaStreamCaptureModeGlobal ||
        (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread == std::this_thread::get_id());
    if (!forbids) continue;
    invalidate(*capture);
    refuse(cudaErrorStreamCaptureUnsupported, name, " while a stream is capturing breaks the capture; call it before");
  }
}

void State::wait(const TaskPtr& task) {
  scheduler.wait(task);
  raise_sticky();
}

void State::wait_stream(CUstream_st& target) {
  scheduler.wait_stream(target.id);
  raise_sticky();
}

void State::wait_all() {
  scheduler.wait_all();
  raise_sticky();
}

}  // namespace gpusim::runtime

using namespace gpusim::runtime;

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return call("cudaStreamCreate", [&](State& state) {
    require(stream, "the stream to set");
    if ((flags & ~cudaStreamNonBlocking) != 0)
      refuse(cudaErrorInvalidValue, "flags ", flags, ", expected cudaStreamDefault or cudaStreamNonBlocking");
    // A priority outside of the range is moved into it, as the manual says.
    *stream = &state.add_stream(flags, std::clamp(priority, kGreatestPriority, kLeastPriority));
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return call("cudaStreamDestroy", [&](State& state) {
    if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread)
      refuse(cudaErrorInvalidResourceHandle, "the default streams cannot be destroyed");
    CUstream_st& stream = state.stream(handle);
    if (stream.capture != nullptr) invalidate(*stream.capture);
    for (const auto& capture : state.captures) std::erase(capture->members, &stream);
    state.scheduler.remove_stream(stream.id);  // what is in it still runs
    state.streams.erase(handle);
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return call("cudaStreamSynchronize", [&](State& state) {
    CUstream_st& stream = state.stream(handle);
    forbid_capturing(stream, "cudaStreamSynchronize");
    state.wait_stream(stream);
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return call("cudaStreamQuery", [&](State& state) {
    CUstream_st& stream = state.stream(handle);
    forbid_capturing(stream, "cudaStreamQuery");
    const bool done = state.scheduler.poll_stream(stream.id);
    state.raise_sticky();
    if (!done) throw Refusal{cudaErrorNotReady, ""};
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return call("cudaStreamWaitEvent", [&](State& state) {
    if ((flags & ~cudaEventWaitExternal) != 0) refuse(cudaErrorInvalidValue, "flags ", flags, ", expected 0");
    wait_event(state, stream, event);
  });
}

cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  return call("cudaStreamGetPriority", [&](State& state) {
    require(priority, "the priority to set");
    *priority = state.stream(handle).priority;
  });
}

cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  return call("cudaStreamGetFlags", [&](State& state) {
    require(flags, "the flags to set");
    *flags = state.stream(handle).flags;
  });
}

cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
  return call("cudaStreamGetId", [&](State& state) {
    require(id, "the id to set");
    *id = static_cast<unsigned long long>(state.stream(handle).id);
  });
}

cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  return call("cudaStreamGetDevice", [&](State& state) {
    require(device, "the device to set");
    state.stream(handle);
    *device = 0;
  });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call("cudaDeviceGetStreamPriorityRange", [&](State&) {
    if (least != nullptr) *least = kLeastPriority;
    if (greatest != nullptr) *greatest = kGreatestPriority;
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return call("cudaLaunchHostFunc", [&](State& state) {
    if (function == nullptr) refuse(cudaErrorInvalidValue, "the function is null");
    add_callback(state, "cudaLaunchHostFunc", stream, [function, data] { function(data); });
  });
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void* data, unsigned flags) {
  return call("cudaStreamAddCallback", [&](State& state) {
    if (function == nullptr) refuse(cudaErrorInvalidValue, "the function is null");
    if (flags != 0) refuse(cudaErrorInvalidValue, "flags ", flags, ", expected 0");
    forbid_capturing(state.stream(stream), "cudaStreamAddCallback");
    add_callback(state, "cudaStreamAddCallback", stream,
                 [function, data, stream] { function(stream, cudaSuccess, data); });
  });
}

cudaError_t cudaStreamAttachMemAsync(cudaStream_t stream, void* address, std::size_t, unsigned) {
  return call("cudaStreamAttachMemAsync", [&](State& state) {
    state.stream(stream);
    if (state.checked_range(address, 1, "memory").place != Place::managed)
      refuse(cudaErrorInvalidValue, "it is no managed memory");
  });
}

cudaError_t cudaDeviceSynchronize() {
  return call("cudaDeviceSynchronize", [](State& state) {
    state.forbid_in_capture("cudaDeviceSynchronize");
    state.wait_all();
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call("cudaEventCreate", [&](State& state) {
    require(event, "the event to set");
    constexpr unsigned kKnown = cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;
    if ((flags & ~kKnown) != 0) refuse(cudaErrorInvalidValue, "flags ", flags, " hold unknown ones");
    if ((flags & cudaEventInterprocess) != 0)
      refuse(cudaErrorNotSupported, "events between processes are not modelled");
    auto added = std::make_unique<CUevent_st>();
    added->flags = flags;
    *event = added.get();
    state.events[*event] = std::move(added);
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  return call("cudaEventDestroy", [&](State& state) {
    state.event(handle);
    state.events.erase(handle);
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call("cudaEventRecord", [&](State& state) { record(state, event, stream); });
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return call("cudaEventRecordWithFlags", [&](State& state) {
    if (flags != 0) refuse(cudaErrorNotSupported, "external events of graphs are not modelled");
    record(state, event, stream);
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  return call("cudaEventSynchronize", [&](State& state) {
    const CUevent_st& event = state.event(handle);
    forbid_captured(event, "cudaEventSynchronize");
    state.wait(event.task);
  });
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  return call("cudaEventQuery", [&](State& state) {
    const CUevent_st& event = state.event(handle);
    forbid_captured(event, "cudaEventQuery");
    const bool done = state.scheduler.poll(event.task);
    state.raise_sticky();
    if (!done) throw Refusal{cudaErrorNotReady, ""};
  });
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  return call("cudaEventElapsedTime", [&](State& state) {
    require(ms, "the time to set");
    const CUevent_st& begin = state.event(from);
    const CUevent_st& end = state.event(to);
    for (const CUevent_st* event : {&begin, &end}) {
      forbid_captured(*event, "cudaEventElapsedTime");
      if ((event->flags & cudaEventDisableTiming) != 0)
        refuse(cudaErrorInvalidResourceHandle, "an event that was created with cudaEventDisableTiming has no time");
      if (event->task == nullptr)
        refuse(cudaErrorInvalidResourceHandle, "an event that was never recorded has no time");
      // Both may be done while the host does not know: asking for the time is no synchronisation.
      if (event->stamp->ms == 0) throw Refusal{cudaErrorNotReady, ""};
    }
    *ms = static_cast<float>(end.stamp->ms - begin.stamp->ms);
  });
}

}  // extern "C"
