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
  std::memcpy(&value, warp.base[slot & 1] + (slot & ~1) + sizeof(T) * static_cast<std::size_t>(lane), sizeof value);
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

void perform(Warp& warp, const PendingCopy& copy) {
  std::byte* const to = warp.block->shared.data() + copy.destination;
  if (copy.source_bytes > 0) std::memcpy(to, reinterpret_cast<const void*>(copy.source), copy.source_bytes);
  std::memset(to + copy.source_bytes, 0, static_cast<std::size_t>(copy.bytes - copy.source_bytes));
  if (!warp.block->shared_state.empty()) {
    std::memset(&warp.block->shared_state[copy.destination], kSharedInitialised, copy.bytes);
  }
}

/// Whole copies that nobody looks at, all within bounds: performed at once. False where any of that does not hold.
template <std::size_t kBytes>
bool copy_at_once(Warp& warp, const Instruction& in) {
  const auto* to = reinterpret_cast<const std::uint32_t*>(warp.base[in.a & 1] + (in.a & ~1));
  const auto* from = reinterpret_cast<const std::uint64_t*>(warp.base[in.c & 1] + (in.c & ~1));
  const std::uint64_t arena = warp.machine->arena_base;
  const std::uint64_t shared_last = warp.block->shared_end - kSharedBase - kBytes;
  std::uint64_t bad = 0;
  std::uint32_t offsets[kWarpLanes];
  std::uint64_t sources[kWarpLanes];
  for (int l = 0; l < kWarpLanes; ++l) {
    offsets[l] = to[l] + static_cast<std::uint32_t>(in.immediate);
    sources[l] = from[l] + static_cast<std::uint64_t>(std::int64_t{in.target});
    const bool outside = std::uint64_t{offsets[l] - kSharedBase} > shared_last ||
                         sources[l] - arena > DeviceMemory::kArenaBytes - kBytes;
    const bool misaligned = ((offsets[l] | sources[l]) & (kBytes - 1)) != 0;
    bad |= (warp.exec >> l & 1u) & static_cast<std::uint64_t>(outside || misaligned);
  }
  if (bad != 0) return false;
  std::byte* const base = warp.block->shared.data();
  for (std::uint32_t mask = warp.exec; mask != 0; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    std::memcpy(base + offsets[lane], reinterpret_cast<const void*>(sources[lane]), kBytes);
  }
  return true;
}

bool copy_at_once(Warp& warp, const Instruction& in) {
  const Machine& machine = *warp.machine;
  if (machine.observes || in.b >= 0 || in.mode != 0 || in.address_bytes != 4) return false;
  if (warp.block->shared_end < kSharedBase + 16) return false;
  if (in.bytes == 16) return copy_at_once<16>(warp, in);
  return in.bytes == 8 ? copy_at_once<8>(warp, in) : copy_at_once<4>(warp, in);
}

void copy_async(Warp& warp, const Instruction& in) {
  if (copy_at_once(warp, in)) return;
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
  for (std::uint32_t mask = to.mask; mask != 0; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    const PendingCopy copy{.source = from.at[lane],
                           .destination = static_cast<std::uint32_t>(to.at[lane]),
                           .bytes = in.bytes,
                           .source_bytes = source_bytes(warp, in, lane),
                           .lane = static_cast<std::uint8_t>(lane),
                           .group = warp.copy_groups[static_cast<std::size_t>(lane)],
                           .at = machine.index_of(in),
                           .sequence = ++warp.copies_issued};
    if (!machine.checks.async_copies) {
      perform(warp, copy);
      continue;
    }
    if (!warp.block->shared_state.empty())
      std::memset(&warp.block->shared_state[copy.destination], kSharedPending, copy.bytes);
    warp.copies.push_back(copy);
  }
}

void commit(Warp& warp, const Instruction&) {
  for (std::uint32_t mask = warp.exec; mask != 0; mask &= mask - 1)
    ++warp.copy_groups[static_cast<std::size_t>(std::countr_zero(mask))];
}

void wait_group(Warp& warp, const Instruction& in) {
  finish_copies(warp, warp.exec, static_cast<std::uint32_t>(in.immediate), true);
}

void wait_all(Warp& warp, const Instruction&) { finish_copies(warp, warp.exec, 0, false); }

}  // namespace

void finish_copies(Warp& warp, std::uint32_t mask, std::uint32_t keep, bool committed_only) {
  if (warp.copies.empty()) return;
  std::erase_if(warp.copies, [&](const PendingCopy& copy) {
    if ((mask >> copy.lane & 1u) == 0) return false;
    const std::uint32_t closed = warp.copy_groups[copy.lane];
    if (committed_only && copy.group + keep >= closed) return false;
    perform(warp, copy);
    return true;
  });
}

void finish_copies_until(Warp& warp, std::uint32_t mask, std::uint32_t sequence) {
  std::erase_if(warp.copies, [&](const PendingCopy& copy) {
    if ((mask >> copy.lane & 1u) == 0 || copy.sequence > sequence) return false;
    perform(warp, copy);
    return true;
  });
}

void register_async_copies(HandlerRegistry& registry) {
  add_handler(registry, "cp.async", "", copy_async);
  add_handler(registry, "cp.commit", "", commit);
  add_handler(registry, "cp.wait", "", wait_group);
  add_handler(registry, "cp.wait_all", "", wait_all);
}

}  // namespace gpusim
