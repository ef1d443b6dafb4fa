#include "gpusim/async_copy.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "gpusim/interpreter.h"
#include "gpusim/machine.h"

namespace gpusim {
namespace {

template <class T>
T read_lane(const Warp& warp, std::int32_t slot, int lane) {
  T value{};
  std::memcpy(&value, warp.base + slot + sizeof(T) * static_cast<std::size_t>(lane), sizeof value);
  return value;
}

/// The lanes' offsets in shared memory; those out of bounds are dropped with a complaint.
Addresses destinations(Warp& warp, const Instruction& in) {
  Addresses result;
  result.mask = warp.exec;
  std::uint32_t bad = 0;
  std::uint32_t misaligned = 0;
  for (std::uint32_t mask = warp.exec; mask != 0; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    const std::uint64_t base =
        in.address_bytes == 8 ? read_lane<std::uint64_t>(warp, in.a, lane) : read_lane<std::uint32_t>(warp, in.a, lane);
    const std::uint64_t offset = (base + static_cast<std::uint64_t>(in.immediate)) & 0xffffffffu;
    result.at[lane] = offset;
    if (offset < kSharedBase || offset + in.bytes > warp.block->shared_end) bad |= 1u << lane;
    if ((offset & (in.bytes - 1u)) != 0) misaligned |= 1u << lane;
  }
  if (bad != 0) bad_shared_access(warp, in, bad, result.at, in.bytes, Access::write);
  misaligned &= ~bad;
  if (misaligned != 0) misaligned_access(warp, in, misaligned, result.at, in.bytes);
  result.mask &= ~(bad | misaligned);
  return result;
}

/// Bytes of the source that are read; the rest of the destination becomes zero.
std::uint8_t source_bytes(const Warp& warp, const Instruction& in, int lane) {
  if (in.mode == 1) {
    const bool ignores = (read_lane<std::uint32_t>(warp, in.d2, 0) >> lane & 1u) != 0;
    return ignores ? 0 : in.bytes;
  }
  if (in.b < 0) return in.bytes;
  return static_cast<std::uint8_t>(std::min<std::uint32_t>(in.bytes, read_lane<std::uint32_t>(warp, in.b, lane)));
}

Addresses sources(Warp& warp, const Instruction& in, std::uint32_t mask) {
  Addresses result;
  result.mask = mask;
  std::uint32_t bad = 0;
  std::uint32_t misaligned = 0;
  for (; mask != 0; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    result.at[lane] = read_lane<std::uint64_t>(warp, in.c, lane) + static_cast<std::uint64_t>(std::int64_t{in.target});
    if (source_bytes(warp, in, lane) == 0) {
      result.mask &= ~(1u << lane);
      continue;
    }
    const std::uint64_t offset = result.at[lane] - warp.machine->arena_base;
    if (offset > DeviceMemory::kArenaBytes - in.bytes) bad |= 1u << lane;
    if ((offset & (in.bytes - 1u)) != 0) misaligned |= 1u << lane;
  }
  if (bad != 0) bad_global_access(warp, in, bad, result.at, in.bytes, Access::read);
  misaligned &= ~bad;
  if (misaligned != 0) misaligned_access(warp, in, misaligned, result.at, in.bytes);
  result.mask &= ~(bad | misaligned);
  return result;
}

/// Whole copies of kBytes by the lanes of `mask`.
template <std::size_t kBytes>
void perform_whole(const PendingCopy& copy, std::uint32_t mask, std::byte* shared, std::uint8_t* states) {
  for_lanes(mask, [&](int lane) {
    const auto l = static_cast<std::size_t>(lane);
    std::memcpy(shared + copy.destination[l], reinterpret_cast<const void*>(copy.source[l]), kBytes);
  });
  if (states == nullptr) return;
  for_lanes(mask, [&](int lane) {
    std::memset(states + copy.destination[static_cast<std::size_t>(lane)], kSharedInitialised, kBytes);
  });
}

void perform(Warp& warp, const PendingCopy& copy, std::uint32_t mask) {
  std::byte* const shared = warp.block->shared.data();
  std::uint8_t* const states = warp.block->shared_state.empty() ? nullptr : warp.block->shared_state.data();
  if (copy.whole && copy.bytes == 16) return perform_whole<16>(copy, mask, shared, states);
  if (copy.whole && copy.bytes == 8) return perform_whole<8>(copy, mask, shared, states);
  if (copy.whole) return perform_whole<4>(copy, mask, shared, states);
  for_lanes(mask, [&](int lane) {
    const auto l = static_cast<std::size_t>(lane);
    std::byte* const to = shared + copy.destination[l];
    const std::size_t read = copy.source_bytes[l];
    if (read > 0) std::memcpy(to, reinterpret_cast<const void*>(copy.source[l]), read);
    std::memset(to + read, 0, copy.bytes - read);
    if (states != nullptr) std::memset(states + copy.destination[l], kSharedInitialised, copy.bytes);
  });
}

/// Leaves the copy to its wait: a record for each group that its lanes are in, mostly one.
void postpone(Warp& warp, PendingCopy copy) {
  std::uint8_t* const states = warp.block->shared_state.empty() ? nullptr : warp.block->shared_state.data();
  if (states != nullptr) {
    for_lanes(copy.mask, [&](int lane) {
      std::memset(states + copy.destination[static_cast<std::size_t>(lane)], kSharedPending, copy.bytes);
    });
  }
  for (std::uint32_t left = copy.mask; left != 0; left &= ~copy.mask) {
    copy.group = warp.copy_groups[static_cast<std::size_t>(std::countr_zero(left))];
    copy.mask = 0;
    for_lanes(left, [&](int lane) {
      copy.mask |= static_cast<std::uint32_t>(warp.copy_groups[static_cast<std::size_t>(lane)] == copy.group) << lane;
    });
    warp.copies.push_back(copy);
  }
}

void commit(Warp& warp, const Instruction&) {
  for (std::size_t l = 0; l < kWarpLanes; ++l) warp.copy_groups[l] += warp.exec >> l & 1u;
}

void wait_group(Warp& warp, const Instruction& in) {
  finish_copies(warp, warp.exec, static_cast<std::uint32_t>(in.immediate), true);
}

void wait_all(Warp& warp, const Instruction&) { finish_copies(warp, warp.exec, 0, false); }

}  // namespace

void copy_async(Warp& warp, const Instruction& in) {
  Machine& machine = *warp.machine;
  Addresses to = destinations(warp, in);
  Addresses from = sources(warp, in, to.mask);
  const std::uint32_t readers = from.mask;
  const bool instrumented = machine.counted || machine.observes;
  if (instrumented && from.mask != 0) observe_global(warp, in, from, in.bytes, Access::read);
  std::uint32_t zeros = 0;  // lanes that read nothing
  for (std::uint32_t mask = to.mask & ~readers; mask != 0; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    if (source_bytes(warp, in, lane) == 0) zeros |= 1u << lane;
  }
  to.mask &= from.mask | zeros;
  if (instrumented && to.mask != 0) observe_shared(warp, in, to, in.bytes, Access::write);
  if (to.mask == 0) return;
  PendingCopy copy;
  copy.mask = to.mask;
  copy.bytes = in.bytes;
  copy.whole = false;
  for_lanes(to.mask, [&](int lane) {
    const auto l = static_cast<std::size_t>(lane);
    copy.source[l] = from.at[lane];
    copy.destination[l] = static_cast<std::uint32_t>(to.at[lane]);
    copy.source_bytes[l] = source_bytes(warp, in, lane);
  });
  machine.checks.async_copies ? postpone(warp, copy) : perform(warp, copy, copy.mask);
}

void postpone_copy(Warp& warp, std::uint32_t mask, int bytes, const std::uint32_t* to, const std::uint64_t* from) {
  PendingCopy& copy = warp.copies.emplace_back();
  copy.mask = mask;
  copy.group = warp.copy_groups[static_cast<std::size_t>(std::countr_zero(mask))];
  copy.bytes = static_cast<std::uint8_t>(bytes);
  copy.whole = true;
  std::memcpy(copy.source.data(), from, sizeof copy.source);
  std::memcpy(copy.destination.data(), to, sizeof copy.destination);
}

void finish_copies(Warp& warp, std::uint32_t mask, std::uint32_t keep, bool committed_only) {
  if (warp.copies.empty()) return;
  std::erase_if(warp.copies, [&](PendingCopy& copy) {
    std::uint32_t due = copy.mask & mask;
    if (committed_only) {
      std::uint32_t closed = 0;
      for (std::size_t l = 0; l < kWarpLanes; ++l)
        closed |= static_cast<std::uint32_t>(copy.group + keep < warp.copy_groups[l]) << l;
      due &= closed;
    }
    perform(warp, copy, due);
    copy.mask &= ~due;
    return copy.mask == 0;
  });
}

void register_async_copies(HandlerRegistry& registry) {
  add_handler(registry, "cp.commit", "", commit);
  add_handler(registry, "cp.wait", "", wait_group);
  add_handler(registry, "cp.wait_all", "", wait_all);
}

}  // namespace gpusim
