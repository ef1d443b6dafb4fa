// A thread's stack lies in its local memory, beyond what the kernel itself needs. Each call puts a frame on top: where
// to return to, the function's parameters, results and variables, and the registers that the caller wants back, since
// all activations of a function use the same ones. Lanes of different depths run together where they stand at one
// instruction: all that tells them apart lies on their stacks.
#include "gpusim/subroutines.h"

#include <bit>
#include <cstring>

#include "gpusim/interpreter.h"
#include "model/error.h"

namespace gpusim {
namespace {

std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

/// A lane's part of a slot and of local memory.
class Lane {
 public:
  Lane(Warp& warp, int lane) : warp_(warp), lane_(static_cast<std::size_t>(lane)) {}

  std::uint64_t read(std::int32_t slot, std::size_t bytes = 8) const {
    std::uint64_t value = 0;
    std::memcpy(&value, warp_.base + slot + bytes * lane_, bytes);
    return value;
  }
  void write(std::int32_t slot, std::uint64_t value, std::size_t bytes = 8) const {
    std::memcpy(warp_.base + slot + bytes * lane_, &value, bytes);
  }

  std::byte* local(std::uint64_t offset) const { return warp_.local + lane_ * warp_.local_bytes + offset; }
  std::uint64_t read_local(std::uint64_t offset) const {
    std::uint64_t value = 0;
    std::memcpy(&value, local(offset), sizeof value);
    return value;
  }
  void write_local(std::uint64_t offset, std::uint64_t value) const {
    std::memcpy(local(offset), &value, sizeof value);
  }

  /// A register to local memory and back; of a predicate the lane's bit.
  void save(const CallSite::Save& save, std::uint64_t offset) const {
    if (save.bytes != 0) {
      const auto width = static_cast<std::size_t>(save.bytes);
      std::memcpy(local(offset), warp_.base + save.slot + width * lane_, width);
    } else {
      write_local(offset, predicate(save.slot) >> lane_ & 1u);
    }
  }
  void restore(const CallSite::Save& save, std::uint64_t offset) const {
    if (save.bytes != 0) {
      const auto width = static_cast<std::size_t>(save.bytes);
      std::memcpy(warp_.base + save.slot + width * lane_, local(offset), width);
      return;
    }
    const std::uint32_t bit = 1u << lane_;
    const std::uint32_t mask = (predicate(save.slot) & ~bit) | (read_local(offset) != 0 ? bit : 0u);
    std::memcpy(warp_.base + save.slot, &mask, sizeof mask);
  }

 private:
  std::uint32_t predicate(std::int32_t slot) const {
    std::uint32_t mask = 0;
    std::memcpy(&mask, warp_.base + slot, sizeof mask);
    return mask;
  }

  Warp& warp_;
  std::size_t lane_;
};

template <class Visit>
void for_saves(const CallSite& site, std::uint64_t frame, Visit visit) {
  std::uint64_t offset = frame + site.save_offset;
  for (const CallSite::Save& save : site.saves) {
    visit(save, offset);
    offset += std::max<std::uint64_t>(8, static_cast<std::uint64_t>(save.bytes));
  }
}

/// False, with a finding, where a lane's stack has no room for `bytes` more.
bool has_room(Warp& warp, const Instruction& in, int lane, std::uint64_t top, std::uint64_t bytes) {
  if (top <= warp.local_bytes && bytes <= warp.local_bytes - top) return true;
  report(warp, warp.machine->index_of(in), FindingKind::out_of_bounds, 1u << lane,
         dsv2::concat("stack overflow: ", bytes, " bytes more than the ",
                      warp.local_bytes - std::min(top, warp.local_bytes),
                      " that are left; cudaDeviceSetLimit(cudaLimitStackSize) makes it larger"));
  abort_launch(warp, LaunchStatus::illegal_address);
  return false;
}

void call(Warp& warp, const Instruction& in) {
  const CallSite& site = warp.machine->program->calls[static_cast<std::size_t>(in.immediate)];
  bool fits = true;
  for_lanes(warp.exec, [&](int l) {
    const Lane lane(warp, l);
    const std::uint64_t top = lane.read(in.a);
    const std::uint64_t frame = align_up(top, kFrameAlignment);
    fits = fits && has_room(warp, in, l, frame, site.frame_bytes);
    if (!fits) return;
    const std::uint64_t old = lane.read(in.d);
    const std::uint64_t caller = site.in_subroutine ? old : 0;
    for (const CallSite::Copy& copy : site.arguments)
      std::memcpy(lane.local(frame + copy.to), lane.local(caller + copy.from), copy.bytes);
    for_saves(site, caller, [&](const CallSite::Save& save, std::uint64_t offset) { lane.save(save, offset); });
    lane.write_local(frame + kFrameReturn, warp.machine->index_of(in) + 1);
    lane.write_local(frame + kFrameCaller, old);
    lane.write_local(frame + kFrameTop, top);
    lane.write(in.d, frame);
    lane.write(in.a, frame + site.frame_bytes);
  });
  warp.pc = static_cast<std::uint32_t>(in.target);
  warp.event = true;  // others may stand between here and there
  if (--warp.patience < 0) warp.yield = true;
}

/// Each lane to where its own call came from.
void return_lanes(Warp& warp, const Instruction& in) {
  std::uint64_t target[kWarpLanes];
  for_lanes(warp.exec, [&](int l) {
    const Lane lane(warp, l);
    const std::uint64_t frame = lane.read(in.d);
    target[l] = lane.read_local(frame + kFrameReturn);
    lane.write(in.d, lane.read_local(frame + kFrameCaller));
    lane.write(in.a, lane.read_local(frame + kFrameTop));
  });
  std::uint32_t left = warp.exec;
  std::uint32_t ways = 0;
  while (left != 0) {
    const std::uint64_t to = target[std::countr_zero(left)];
    std::uint32_t same = 0;
    for_lanes(left, [&](int l) { same |= static_cast<std::uint32_t>(target[l] == to) << l; });
    left &= ~same;
    warp.others.push_back({.pc = static_cast<std::uint32_t>(to), .mask = same});
    ++ways;
  }
  if (ways > 1 && warp.machine->counted) ++warp.machine->divergences[warp.machine->index_of(in)];
  warp.mask = 0;
  warp.exec = 0;
  warp.full = false;
  warp.event = true;
  if (--warp.patience < 0) warp.yield = true;
}

/// Behind a call: results and saved registers. The callee's frame is where the stack's top is again.
void call_back(Warp& warp, const Instruction& in) {
  const CallSite& site = warp.machine->program->calls[static_cast<std::size_t>(in.immediate)];
  for_lanes(warp.exec, [&](int l) {
    const Lane lane(warp, l);
    const std::uint64_t caller = site.in_subroutine ? lane.read(in.a) : 0;
    const std::uint64_t callee = align_up(lane.read(in.b), kFrameAlignment);
    for (const CallSite::Copy& copy : site.results)
      std::memcpy(lane.local(caller + copy.to), lane.local(callee + copy.from), copy.bytes);
    for_saves(site, caller, [&](const CallSite::Save& save, std::uint64_t offset) { lane.restore(save, offset); });
  });
}

void allocate_on_stack(Warp& warp, const Instruction& in) {
  const auto alignment = static_cast<std::uint64_t>(std::max<std::int64_t>(in.immediate, 8));
  for_lanes(warp.exec, [&](int l) {
    const Lane lane(warp, l);
    const std::uint64_t bytes = lane.read(in.b, in.bytes);
    const std::uint64_t address = align_up(lane.read(in.a), alignment);
    if (warp.machine->stop || !has_room(warp, in, l, address, bytes)) return;
    lane.write(in.a, address + bytes);
    lane.write(in.d, address, in.bytes);
  });
}

// ---- the device's heap

/// The lane's frame, which the argument's offset is within.
std::uint64_t frame_of(const Lane& lane, const Instruction& in) { return in.a >= 0 ? lane.read(in.a) : 0; }

void allocate_on_heap(Warp& warp, const Instruction& in) {
  Launch& launch = *warp.machine->launch;
  for_lanes(warp.exec, [&](int l) {
    const Lane lane(warp, l);
    const std::uint64_t frame = frame_of(lane, in);
    const std::uint64_t bytes = lane.read_local(frame + static_cast<std::uint64_t>(in.immediate));
    // Zero bytes, or more than the heap has left: null, as on the device.
    const std::uint64_t address = launch.memory->allocate_on_heap(bytes, launch.config.heap_bytes);
    lane.write_local(frame + static_cast<std::uint64_t>(in.target), address);
  });
}

void free_on_heap(Warp& warp, const Instruction& in) {
  Launch& launch = *warp.machine->launch;
  for_lanes(warp.exec, [&](int l) {
    const Lane lane(warp, l);
    const std::uint64_t address = lane.read_local(frame_of(lane, in) + static_cast<std::uint64_t>(in.immediate));
    if (address == 0 || launch.memory->release_on_heap(address)) return;
    const auto allocation = launch.memory->find(address);
    const bool freed = allocation && allocation->address == address && !allocation->alive;
    report(warp, warp.machine->index_of(in), freed ? FindingKind::use_after_free : FindingKind::out_of_bounds, 1u << l,
           freed ? "free of what has been freed" : "free of an address that the device's malloc did not return");
    if (!warp.machine->checks.memory) return abort_launch(warp, LaunchStatus::trap);
    if (warp.machine->status == LaunchStatus::ok) warp.machine->status = LaunchStatus::trap;
  });
}

}  // namespace

void register_subroutines(HandlerRegistry& registry) {
  add_handler(registry, "call", "", call);
  add_handler(registry, "call.back", "", call_back);
  add_handler(registry, "return", "", return_lanes);
  add_handler(registry, "alloca", "", allocate_on_stack);
  add_handler(registry, "malloc", "", allocate_on_heap);
  add_handler(registry, "free", "", free_on_heap);
}

}  // namespace gpusim
