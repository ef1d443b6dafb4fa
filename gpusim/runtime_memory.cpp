// Memory of the CUDA runtime: allocation, copies, fills, what a pointer is.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "gpusim/runtime_state.h"

namespace gpusim::runtime {
namespace {

constexpr std::size_t kPitchAlignment = 512;

std::uint64_t as_number(const void* address) { return reinterpret_cast<std::uint64_t>(address); }
std::byte* as_bytes(std::uint64_t address) { return reinterpret_cast<std::byte*>(address); }

std::string hex(std::uint64_t address) { return dsv2::concat("0x", std::hex, address); }

/// Rows of bytes: a plain range is one row.
struct Rows {
  std::uint64_t address = 0;
  std::size_t pitch = 0;
  /// From the first byte of the first row to the last of the last.
  std::size_t span(std::size_t width, std::size_t height) const {
    return height == 0 ? 0 : (height - 1) * pitch + width;
  }
};

struct CopyShape {
  std::size_t width = 0;  // bytes
  std::size_t height = 1;
  std::size_t bytes() const { return width * height; }
};

/// Names as the user wrote them: "cudaMemcpyAsync".
struct CopyCall {
  std::string name;
  bool asynchronous = false;
};

std::vector<MemoryRange> ranges_of(const Rows& rows, const CopyShape& shape) {
  std::vector<MemoryRange> out;
  if (rows.pitch == shape.width) return {{rows.address, shape.bytes()}};
  for (std::size_t i = 0; i < shape.height; ++i) out.push_back({rows.address + i * rows.pitch, shape.width});
  return out;
}

/// FNV-1a by words: to see whether the host changed a buffer, not against an adversary.
std::uint64_t fingerprint(const Rows& rows, const CopyShape& shape) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (std::size_t row = 0; row < shape.height; ++row) {
    const std::byte* at = as_bytes(rows.address + row * rows.pitch);
    for (std::size_t i = 0; i < shape.width; i += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, at + i, std::min<std::size_t>(8, shape.width - i));
      hash = (hash ^ word) * 0x100000001b3;
      hash ^= hash >> 29;
    }
  }
  return hash;
}

const char* direction(const Location& to, const Location& from) {
  if (to.place == Place::device || to.place == Place::managed)
    return from.place == Place::device || from.place == Place::managed ? "within the device" : "to the device";
  return from.place == Place::device || from.place == Place::managed ? "to the host" : "within the host";
}

/// What `kind` says of an end, against what the end is.
void check_end(std::string_view what, const Location& end, std::uint64_t address, bool said_device) {
  if (said_device ? end.place != Place::pageable : end.on_host()) return;
  refuse(cudaErrorInvalidValue, "the kind says that the ", what, " is ", said_device ? "on the device" : "on the host",
         ", but ", hex(address), " is ", said_device ? "host" : "device",
         " memory; use cudaMemcpyDefault, or swap them");
}

void check_kind(cudaMemcpyKind kind, const Location& to, const Location& from, const Rows& to_rows,
                const Rows& from_rows) {
  if (kind == cudaMemcpyDefault) return;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault)
    refuse(cudaErrorInvalidMemcpyDirection, "the kind is ", static_cast<int>(kind), ", expected a cudaMemcpyKind");
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  check_end("destination", to, to_rows.address, to_device);
  check_end("source", from, from_rows.address, from_device);
}

void copy_now(State& state, const Rows& to, const Rows& from, const CopyShape& shape) {
  for (std::size_t row = 0; row < shape.height; ++row) {
    const std::uint64_t target = to.address + row * to.pitch;
    const std::uint64_t source = from.address + row * from.pitch;
    std::memmove(as_bytes(target), as_bytes(source), shape.width);
    if (!state.memory.contains(target)) continue;
    if (state.memory.contains(source))
      state.memory.copy_marks(target, source, shape.width);
    else
      state.memory.mark(target, shape.width, Byte::initialised);
  }
}

/// An end of a delayed copy that only the host can have freed or changed since it was submitted.
struct Watched {
  Rows rows;
  std::uint64_t fingerprint = 0;
  std::uint64_t stamp = 0;
};

void tell_stream_race(State& state, std::string message) {
  Finding finding;
  finding.kind = FindingKind::stream_race;
  finding.message = std::move(message);
  state.report.add(finding);
}

void check_watched(State& state, const Watched& watched, const CopyShape& shape, const std::string& what,
                   const char* end) {
  const std::uint64_t bytes = watched.rows.span(shape.width, shape.height);
  if (state.scheduler.written_since({watched.rows.address, bytes}, watched.stamp)) return;
  if (fingerprint(watched.rows, shape) != watched.fingerprint)
    tell_stream_race(state, dsv2::concat("the host wrote to the ", end, " of ", what,
                                         " after the call and before a synchronisation that waits for the copy"));
}

/// A copy whose ends are both read and written when the stream reaches it.
Work direct_copy(State& state, const CopyCall& called, const Rows& to, const Rows& from, const CopyShape& shape,
                 const Location& to_place, const Location& from_place) {
  Work work;
  work.type = cudaGraphNodeTypeMemcpy;
  work.signature = direction(to_place, from_place);
  const std::string what = dsv2::concat(called.name, " of ", shape.bytes(), " bytes ", work.signature);
  const bool watch_source = from_place.place == Place::pinned || from_place.place == Place::registered;
  const bool watch_target = to_place.place == Place::pinned || to_place.place == Place::registered;
  work.make = [&state, to, from, shape, what, watch_source, watch_target]() {
    Operation operation;
    operation.what = what;
    operation.accesses.reads = ranges_of(from, shape);
    operation.accesses.writes = ranges_of(to, shape);
    const bool watch = state.scheduler.delayed();
    const auto watched = [&](const Rows& rows) {
      return Watched{rows, fingerprint(rows, shape), state.scheduler.operations_done()};
    };
    const std::optional<Watched> source = watch && watch_source ? std::optional(watched(from)) : std::nullopt;
    const std::optional<Watched> target = watch && watch_target ? std::optional(watched(to)) : std::nullopt;
    operation.run = [&state, to, from, shape, what, source, target](Accesses&) {
      state.run_operation(what, [&] {
        // Either may have been freed since it was submitted.
        state.checked_range(as_bytes(from.address), from.span(shape.width, shape.height), "source");
        state.checked_range(as_bytes(to.address), to.span(shape.width, shape.height), "destination");
        if (source) check_watched(state, *source, shape, what, "source");
        if (target) check_watched(state, *target, shape, what, "destination");
        copy_now(state, to, from, shape);
      });
    };
    return operation;
  };
  return work;
}

/// From pageable memory: its bytes are taken now, as the driver stages them before it returns.
Work staged_copy(State& state, const CopyCall& called, const Rows& to, const Rows& from, const CopyShape& shape) {
  auto staged = std::make_shared<std::vector<std::byte>>(shape.bytes());
  for (std::size_t row = 0; row < shape.height; ++row)
    std::memcpy(staged->data() + row * shape.width, as_bytes(from.address + row * from.pitch), shape.width);
  Work work;
  work.type = cudaGraphNodeTypeMemcpy;
  work.signature = "to the device";
  work.make = [&state, to, shape, staged,
               what = dsv2::concat(called.name, " of ", shape.bytes(), " bytes to the device")]() {
    Operation operation;
    operation.what = what;
    operation.accesses.writes = ranges_of(to, shape);
    operation.run = [&state, to, shape, staged, what](Accesses&) {
      state.run_operation(what, [&] {
        state.checked_range(as_bytes(to.address), to.span(shape.width, shape.height), "destination");
        copy_now(state, to, {reinterpret_cast<std::uint64_t>(staged->data()), shape.width}, shape);
      });
    };
    return operation;
  };
  return work;
}

void copy(State& state, const CopyCall& called, const Rows& to, const Rows& from, const CopyShape& shape,
          cudaMemcpyKind kind, CUstream_st& stream) {
  if (shape.bytes() == 0) return;
  if (to.pitch < shape.width || from.pitch < shape.width)
    refuse(cudaErrorInvalidPitchValue, "rows of ", shape.width, " bytes do not fit a pitch of ",
           std::min(to.pitch, from.pitch));
  const Location to_place =
      state.checked_range(as_bytes(to.address), to.span(shape.width, shape.height), "destination");
  const Location from_place =
      state.checked_range(as_bytes(from.address), from.span(shape.width, shape.height), "source");
  check_kind(kind, to_place, from_place, to, from);

  if (!called.asynchronous) state.forbid_in_capture(called.name.c_str());
  if (stream.capture != nullptr) {
    state.enqueue(stream, direct_copy(state, called, to, from, shape, to_place, from_place));
    return;
  }
  const bool staged = from_place.place == Place::pageable && to_place.on_device();
  const TaskPtr task =
      state.enqueue(stream, staged ? staged_copy(state, called, to, from, shape)
                                   : direct_copy(state, called, to, from, shape, to_place, from_place));
  // "API synchronization behavior" of the runtime's manual: what a copy waits for depends on its ends.
  const bool within_device = to_place.on_device() && from_place.on_device();
  const bool waits = called.asynchronous ? to_place.place == Place::pageable : !within_device;
  if (waits) state.wait(task);
}

void fill(State& state, const char* name, const Rows& to, const CopyShape& shape, int value, CUstream_st& stream,
          bool asynchronous) {
  if (shape.bytes() == 0) return;
  if (to.pitch < shape.width)
    refuse(cudaErrorInvalidPitchValue, "rows of ", shape.width, " bytes do not fit a pitch of ", to.pitch);
  const Location place = state.checked_range(as_bytes(to.address), to.span(shape.width, shape.height), "destination");
  if (place.place == Place::pageable)
    refuse(cudaErrorInvalidValue, hex(to.address), " is host memory, which cudaMemset does not fill");
  if (!asynchronous) state.forbid_in_capture(name);
  Work work;
  work.type = cudaGraphNodeTypeMemset;
  work.signature = "memset";
  work.make = [&state, to, shape, value, what = dsv2::concat(name, " of ", shape.bytes(), " bytes")]() {
    Operation operation;
    operation.what = what;
    operation.accesses.writes = ranges_of(to, shape);
    operation.run = [&state, to, shape, value, what](Accesses&) {
      state.run_operation(what, [&] {
        state.checked_range(as_bytes(to.address), to.span(shape.width, shape.height), "destination");
        for (std::size_t row = 0; row < shape.height; ++row) {
          const std::uint64_t at = to.address + row * to.pitch;
          std::memset(as_bytes(at), value, shape.width);
          if (state.memory.contains(at)) state.memory.mark(at, shape.width, Byte::initialised);
        }
      });
    };
    return operation;
  };
  const TaskPtr task = state.enqueue(stream, std::move(work));
  // Device memory is filled without the host waiting, pinned memory is not.
  if (!asynchronous && place.place == Place::pinned) state.wait(task);
}

std::uint64_t symbol_range(State& state, const void* symbol, std::size_t bytes, std::size_t offset) {
  const ModuleVariable variable = state.module_variable(symbol);
  if (offset > variable.bytes || bytes > variable.bytes - offset)
    refuse(cudaErrorInvalidValue, bytes, " bytes at offset ", offset, " do not fit variable ", variable.name, " of ",
           variable.bytes, " bytes");
  return variable.address + offset;
}

void copy_to_symbol(State& state, const CopyCall& called, const void* symbol, const void* from, std::size_t bytes,
                    std::size_t offset, cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyHostToHost)
    refuse(cudaErrorInvalidMemcpyDirection, "a symbol is on the device; the kind says that the destination is not");
  copy(state, called, {symbol_range(state, symbol, bytes, offset), bytes}, {as_number(from), bytes}, {bytes, 1}, kind,
       state.stream(stream));
}

void copy_from_symbol(State& state, const CopyCall& called, void* to, const void* symbol, std::size_t bytes,
                      std::size_t offset, cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyHostToHost)
    refuse(cudaErrorInvalidMemcpyDirection, "a symbol is on the device; the kind says that the source is not");
  copy(state, called, {as_number(to), bytes}, {symbol_range(state, symbol, bytes, offset), bytes}, {bytes, 1}, kind,
       state.stream(stream));
}

void allocate_async(State& state, void** out, std::size_t bytes, cudaStream_t handle, cudaMemPool_t pool) {
  CUstream_st& stream = state.stream(handle);
  if (stream.capture != nullptr)
    refuse(cudaErrorNotSupported, "allocation nodes of graphs are not modelled; allocate before the capture");
  if (out == nullptr) refuse(cudaErrorInvalidValue, "the pointer to set is null");
  check_pool(pool, bytes);
  *out = bytes == 0 ? nullptr : state.allocate(bytes, "cudaMallocAsync", Place::device);
  if (bytes == 0) return;
  note_pool_allocation(pool, as_number(*out), bytes);
  Work work;
  work.make = [range = MemoryRange{as_number(*out), bytes}]() {
    // Whoever uses it has to come after the allocation: as after a write.
    return Operation{.what = dsv2::concat("cudaMallocAsync of ", range.bytes, " bytes"),
                     .run = {},
                     .accesses = {.reads = {}, .writes = {range}}};
  };
  state.enqueue(stream, std::move(work));
}

void free_async(State& state, void* address, cudaStream_t handle) {
  CUstream_st& stream = state.stream(handle);
  if (address == nullptr) return;
  if (stream.capture != nullptr)
    refuse(cudaErrorNotSupported, "free nodes of graphs are not modelled; free after the capture");
  const Location location = state.checked_range(address, 1, "pointer");
  if (location.begin != as_number(address) || location.place == Place::pageable)
    refuse(cudaErrorInvalidValue, hex(as_number(address)), " does not begin an allocation");
  Work work;
  work.make = [&state, address, bytes = location.bytes]() {
    return Operation{.what = dsv2::concat("cudaFreeAsync of ", bytes, " bytes"),
                     .run =
                         [&state, address](Accesses&) {
                           state.run_operation("cudaFreeAsync", [&] {
                             state.release(address, false);
                             note_pool_release(as_number(address));
                           });
                         },
                     .accesses = {.reads = {}, .writes = {{as_number(address), bytes}}}};
  };
  state.enqueue(stream, std::move(work));
}

}  // namespace

void* State::allocate(std::size_t bytes, const char* what, Place place) {
  const bool counts = place != Place::pinned;
  const std::uint64_t at =
      counts && bytes > device.memory_bytes - device_bytes_
          ? 0
          : memory.allocate(bytes, what, place == Place::device ? Byte::uninitialised : Byte::initialised);
  if (at == 0)
    refuse(cudaErrorMemoryAllocation, bytes, " bytes are asked for, ", device.memory_bytes - device_bytes_, " of ",
           device.memory_bytes, " are free on ", device.name);
  if (counts) {
    device_bytes_ += bytes;
    sizes_[at] = bytes;
  }
  if (place != Place::device) host_visible[at] = place;
  return as_bytes(at);
}

void State::release(void* address, bool host) {
  const std::uint64_t at = as_number(address);
  const auto visible = host_visible.find(at);
  const bool pinned = visible != host_visible.end() && visible->second == Place::pinned;
  const std::optional<Allocation> allocation = memory.contains(at) ? memory.find(at) : std::nullopt;
  if (!allocation || at >= allocation->address + std::max<std::size_t>(allocation->bytes, 1))
    refuse(cudaErrorInvalidValue, hex(at), " is no allocation of CUDA's");
  if (!allocation->alive)
    throw Refusal{cudaErrorInvalidValue, hex(at) + " was freed before (" + allocation->what + ")",
                  FindingKind::use_after_free};
  if (allocation->address != at || !allocation->counted_as_leak)
    refuse(cudaErrorInvalidValue, hex(at), " does not begin an allocation; it lies ", at - allocation->address,
           " bytes into ", allocation->what, " of ", allocation->bytes, " bytes");
  if (pinned != host)
    refuse(cudaErrorInvalidValue, hex(at), " is ", allocation->what, " memory; free it with ",
           pinned ? "cudaFreeHost" : "cudaFree");
  memory.release(at);
  scheduler.forget({at, allocation->bytes});
  host_visible.erase(at);
  pinned_flags.erase(at);
  if (const auto size = sizes_.find(at); size != sizes_.end()) {
    device_bytes_ -= size->second;
    sizes_.erase(size);
  }
}

Location State::locate(const void* address) const {
  const std::uint64_t at = as_number(address);
  if (memory.contains(at)) {
    const std::optional<Allocation> allocation = memory.find(at);
    if (allocation && allocation->alive && at < allocation->address + std::max<std::size_t>(allocation->bytes, 1)) {
      const auto visible = host_visible.find(allocation->address);
      return {visible == host_visible.end() ? Place::device : visible->second, allocation->address, allocation->bytes};
    }
  }
  auto next = registered.upper_bound(at);
  if (next != registered.begin()) {
    --next;
    if (at < next->first + next->second.first) return {Place::registered, next->first, next->second.first};
  }
  return {};
}

Location State::checked_range(const void* address, std::size_t bytes, const char* what) const {
  const std::uint64_t at = as_number(address);
  if (at == 0) refuse(cudaErrorInvalidValue, "the ", what, " is null");
  if (!memory.contains(at)) {
    const Location location = locate(address);
    // A copy over the end of registered memory is one of pageable memory.
    return location.place == Place::registered && bytes <= location.begin + location.bytes - at ? location : Location{};
  }
  const std::optional<Allocation> allocation = memory.find(at);
  if (!allocation)
    refuse(cudaErrorInvalidValue, "the ", what, " ", hex(at), " lies before all allocations of device memory");
  const std::uint64_t offset = at - allocation->address;
  const std::string name =
      dsv2::concat(allocation->what, " of ", allocation->bytes, " bytes at ", hex(allocation->address));
  if (offset >= allocation->bytes)
    refuse(cudaErrorInvalidValue, "the ", what, " ", hex(at), " is in no allocation; the nearest before it is ", name);
  if (!allocation->alive)
    throw Refusal{cudaErrorInvalidValue,
                  dsv2::concat("the ", what, " ", hex(at), " lies ", offset, " bytes into freed memory, once ", name),
                  FindingKind::use_after_free};
  if (bytes > allocation->bytes - offset)
    throw Refusal{cudaErrorInvalidValue,
                  dsv2::concat("the ", what, " ", hex(at), " + ", bytes, " bytes ends ",
                               bytes - (allocation->bytes - offset), " bytes after ", name),
                  FindingKind::out_of_bounds};
  return locate(address);
}

}  // namespace gpusim::runtime

using namespace gpusim::runtime;

namespace {

// The host cannot be seen when it frees memory that a stream still uses; CUDA does not wait for all streams either.
void warn_of_pending(State& state, const void* address, const char* name) {
  const Location location = state.locate(address);
  for (const std::string& pending :
       state.scheduler.pending_on({reinterpret_cast<std::uint64_t>(address), location.bytes})) {
    gpusim::Finding finding;
    finding.kind = gpusim::FindingKind::stream_race;
    finding.message =
        dsv2::concat(name, " of memory that ", pending, " still uses: no synchronisation waits for it before");
    state.report.add(finding);
  }
}

void require(const void* pointer, const char* what) {
  if (pointer == nullptr) refuse(cudaErrorInvalidValue, what, " is null");
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  return call("cudaMalloc", [&](State& state) {
    require(address, "the pointer to set");
    state.forbid_in_capture("cudaMalloc");
    *address = bytes == 0 ? nullptr : state.allocate(bytes, "cudaMalloc", Place::device);
  });
}

cudaError_t cudaMallocPitch(void** address, std::size_t* pitch, std::size_t width, std::size_t height) {
  return call("cudaMallocPitch", [&](State& state) {
    require(address, "the pointer to set");
    require(pitch, "the pitch to set");
    state.forbid_in_capture("cudaMallocPitch");
    *pitch = (width + kPitchAlignment - 1) / kPitchAlignment * kPitchAlignment;
    const std::size_t bytes = *pitch * height;
    *address = bytes == 0 ? nullptr : state.allocate(bytes, "cudaMallocPitch", Place::device);
  });
}

cudaError_t cudaMallocManaged(void** address, std::size_t bytes, unsigned flags) {
  return call("cudaMallocManaged", [&](State& state) {
    require(address, "the pointer to set");
    if (bytes == 0) refuse(cudaErrorInvalidValue, "0 bytes of managed memory are asked for");
    if (flags != cudaMemAttachGlobal && flags != cudaMemAttachHost)
      refuse(cudaErrorInvalidValue, "flags ", flags, ", expected cudaMemAttachGlobal or cudaMemAttachHost");
    state.forbid_in_capture("cudaMallocManaged");
    *address = state.allocate(bytes, "cudaMallocManaged", Place::managed);
  });
}

cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned flags) {
  return call("cudaHostAlloc", [&](State& state) {
    require(address, "the pointer to set");
    constexpr unsigned kKnown = cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
    if ((flags & ~kKnown) != 0) refuse(cudaErrorInvalidValue, "flags ", flags, " hold unknown ones");
    state.forbid_in_capture("cudaHostAlloc");
    *address = bytes == 0 ? nullptr : state.allocate(bytes, "pinned host", Place::pinned);
    if (*address != nullptr) state.pinned_flags[reinterpret_cast<std::uint64_t>(*address)] = flags;
  });
}

cudaError_t cudaMallocHost(void** address, std::size_t bytes) { return cudaHostAlloc(address, bytes, 0); }

cudaError_t cudaFree(void* address) {
  return call("cudaFree", [&](State& state) {
    if (address == nullptr) return;
    state.forbid_in_capture("cudaFree");
    state.wait_all();  // it does, of all streams
    state.release(address, false);
  });
}

cudaError_t cudaFreeHost(void* address) {
  return call("cudaFreeHost", [&](State& state) {
    if (address == nullptr) return;
    warn_of_pending(state, address, "cudaFreeHost");
    state.wait_all();
    state.release(address, true);
  });
}

cudaError_t cudaMallocAsync(void** address, std::size_t bytes, cudaStream_t stream) {
  return call("cudaMallocAsync", [&](State& state) { allocate_async(state, address, bytes, stream, current_pool()); });
}

cudaError_t cudaMallocFromPoolAsync(void** address, std::size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  return call("cudaMallocFromPoolAsync", [&](State& state) { allocate_async(state, address, bytes, stream, pool); });
}

cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
  return call("cudaFreeAsync", [&](State& state) { free_async(state, address, stream); });
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return call("cudaMemcpy", [&](State& state) {
    copy(state, {"cudaMemcpy", false}, {as_number(to), bytes}, {as_number(from), bytes}, {bytes, 1}, kind,
         state.stream(nullptr));
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return call("cudaMemcpyAsync", [&](State& state) {
    copy(state, {"cudaMemcpyAsync", true}, {as_number(to), bytes}, {as_number(from), bytes}, {bytes, 1}, kind,
         state.stream(stream));
  });
}

cudaError_t cudaMemcpyPeer(void* to, int to_device, const void* from, int from_device, std::size_t bytes) {
  return call("cudaMemcpyPeer", [&](State& state) {
    if (to_device != 0 || from_device != 0) refuse(cudaErrorInvalidDevice, "there is one device, 0");
    copy(state, {"cudaMemcpyPeer", false}, {as_number(to), bytes}, {as_number(from), bytes}, {bytes, 1},
         cudaMemcpyDeviceToDevice, state.stream(nullptr));
  });
}

cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, std::size_t bytes,
                                cudaStream_t stream) {
  return call("cudaMemcpyPeerAsync", [&](State& state) {
    if (to_device != 0 || from_device != 0) refuse(cudaErrorInvalidDevice, "there is one device, 0");
    copy(state, {"cudaMemcpyPeerAsync", true}, {as_number(to), bytes}, {as_number(from), bytes}, {bytes, 1},
         cudaMemcpyDeviceToDevice, state.stream(stream));
  });
}

cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                         std::size_t height, cudaMemcpyKind kind) {
  return call("cudaMemcpy2D", [&](State& state) {
    copy(state, {"cudaMemcpy2D", false}, {as_number(to), to_pitch}, {as_number(from), from_pitch}, {width, height},
         kind, state.stream(nullptr));
  });
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return call("cudaMemcpy2DAsync", [&](State& state) {
    copy(state, {"cudaMemcpy2DAsync", true}, {as_number(to), to_pitch}, {as_number(from), from_pitch}, {width, height},
         kind, state.stream(stream));
  });
}

cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, std::size_t bytes, std::size_t offset,
                               cudaMemcpyKind kind) {
  return call("cudaMemcpyToSymbol", [&](State& state) {
    copy_to_symbol(state, {"cudaMemcpyToSymbol", false}, symbol, from, bytes, offset, kind, nullptr);
  });
}

cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, std::size_t bytes, std::size_t offset,
                                    cudaMemcpyKind kind, cudaStream_t stream) {
  return call("cudaMemcpyToSymbolAsync", [&](State& state) {
    copy_to_symbol(state, {"cudaMemcpyToSymbolAsync", true}, symbol, from, bytes, offset, kind, stream);
  });
}

cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, std::size_t bytes, std::size_t offset,
                                 cudaMemcpyKind kind) {
  return call("cudaMemcpyFromSymbol", [&](State& state) {
    copy_from_symbol(state, {"cudaMemcpyFromSymbol", false}, to, symbol, bytes, offset, kind, nullptr);
  });
}

cudaError_t cudaMemcpyFromSymbolAsync(void* to, const void* symbol, std::size_t bytes, std::size_t offset,
                                      cudaMemcpyKind kind, cudaStream_t stream) {
  return call("cudaMemcpyFromSymbolAsync", [&](State& state) {
    copy_from_symbol(state, {"cudaMemcpyFromSymbolAsync", true}, to, symbol, bytes, offset, kind, stream);
  });
}

cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
  return call("cudaGetSymbolAddress", [&](State& state) {
    require(address, "the pointer to set");
    *address = as_bytes(state.module_variable(symbol).address);
  });
}

cudaError_t cudaGetSymbolSize(std::size_t* bytes, const void* symbol) {
  return call("cudaGetSymbolSize", [&](State& state) {
    require(bytes, "the size to set");
    *bytes = state.module_variable(symbol).bytes;
  });
}

cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  return call("cudaMemset", [&](State& state) {
    fill(state, "cudaMemset", {as_number(to), bytes}, {bytes, 1}, value, state.stream(nullptr), false);
  });
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return call("cudaMemsetAsync", [&](State& state) {
    fill(state, "cudaMemsetAsync", {as_number(to), bytes}, {bytes, 1}, value, state.stream(stream), true);
  });
}

cudaError_t cudaMemset2D(void* to, std::size_t pitch, int value, std::size_t width, std::size_t height) {
  return call("cudaMemset2D", [&](State& state) {
    fill(state, "cudaMemset2D", {as_number(to), pitch}, {width, height}, value, state.stream(nullptr), false);
  });
}

cudaError_t cudaMemset2DAsync(void* to, std::size_t pitch, int value, std::size_t width, std::size_t height,
                              cudaStream_t stream) {
  return call("cudaMemset2DAsync", [&](State& state) {
    fill(state, "cudaMemset2DAsync", {as_number(to), pitch}, {width, height}, value, state.stream(stream), true);
  });
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return call("cudaMemGetInfo", [&](State& state) {
    if (free != nullptr) *free = state.device.memory_bytes - state.device_bytes_used();
    if (total != nullptr) *total = state.device.memory_bytes;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  return call("cudaPointerGetAttributes", [&](State& state) {
    require(attributes, "the structure to fill");
    *attributes = {};
    attributes->device = -2;  // what the runtime says of memory that it does not know
    attributes->type = cudaMemoryTypeUnregistered;
    const Location location = state.locate(address);
    void* const pointer = const_cast<void*>(address);
    if (location.place == Place::pageable) {
      attributes->hostPointer = pointer;
      return;
    }
    attributes->device = 0;
    attributes->type = location.place == Place::device    ? cudaMemoryTypeDevice
                       : location.place == Place::managed ? cudaMemoryTypeManaged
                                                          : cudaMemoryTypeHost;
    attributes->devicePointer = location.place == Place::registered ? nullptr : pointer;
    attributes->hostPointer = location.on_host() ? pointer : nullptr;
  });
}

cudaError_t cudaHostRegister(void* address, std::size_t bytes, unsigned flags) {
  return call("cudaHostRegister", [&](State& state) {
    require(address, "the memory");
    if (bytes == 0) refuse(cudaErrorInvalidValue, "0 bytes");
    const std::uint64_t at = as_number(address);
    for (const auto& [begin, entry] : state.registered)
      if (begin < at + bytes && at < begin + entry.first)
        refuse(cudaErrorHostMemoryAlreadyRegistered, hex(at), " overlaps memory that is registered from ", hex(begin));
    if (state.locate(address).place != Place::pageable)
      refuse(cudaErrorHostMemoryAlreadyRegistered, hex(at), " is memory of CUDA's already");
    state.registered[at] = {bytes, flags};
  });
}

cudaError_t cudaHostUnregister(void* address) {
  return call("cudaHostUnregister", [&](State& state) {
    if (state.registered.count(as_number(address)) == 0)
      refuse(cudaErrorHostMemoryNotRegistered, hex(as_number(address)), " begins no registered memory");
    warn_of_pending(state, address, "cudaHostUnregister");
    state.wait_all();
    state.registered.erase(as_number(address));
  });
}

cudaError_t cudaHostGetDevicePointer(void** on_device, void* on_host, unsigned flags) {
  return call("cudaHostGetDevicePointer", [&](State& state) {
    require(on_device, "the pointer to set");
    if (flags != 0) refuse(cudaErrorInvalidValue, "flags ", flags, ", expected 0");
    const Location location = state.locate(on_host);
    if (location.place == Place::registered)
      refuse(cudaErrorNotSupported, "kernels do not reach memory of cudaHostRegister here; use cudaHostAlloc");
    if (location.place != Place::pinned)
      refuse(cudaErrorInvalidValue, hex(as_number(on_host)), " is no memory of cudaHostAlloc");
    *on_device = on_host;
  });
}

cudaError_t cudaHostGetFlags(unsigned* flags, void* address) {
  return call("cudaHostGetFlags", [&](State& state) {
    require(flags, "the flags to set");
    const auto found = state.pinned_flags.find(as_number(address));
    if (found == state.pinned_flags.end())
      refuse(cudaErrorInvalidValue, hex(as_number(address)), " begins no memory of cudaHostAlloc");
    // Mapped is what all pinned memory is with unified addressing.
    *flags = found->second | cudaHostAllocMapped;
  });
}

cudaError_t cudaMemPrefetchAsync(const void* address, std::size_t bytes, cudaMemLocation, unsigned,
                                 cudaStream_t handle) {
  return call("cudaMemPrefetchAsync", [&](State& state) {
    state.stream(handle);
    if (state.checked_range(address, bytes, "memory").place != Place::managed)
      refuse(cudaErrorInvalidValue, hex(as_number(address)), " is no managed memory");
  });
}

cudaError_t cudaMemAdvise(const void* address, std::size_t bytes, cudaMemoryAdvise, cudaMemLocation) {
  return call("cudaMemAdvise", [&](State& state) {
    if (state.checked_range(address, bytes, "memory").place != Place::managed)
      refuse(cudaErrorInvalidValue, hex(as_number(address)), " is no managed memory");
  });
}

}  // extern "C"
