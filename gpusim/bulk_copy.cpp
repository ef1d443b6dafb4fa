#include "gpusim/bulk_copy.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>

#include "gpusim/interpreter.h"
#include "gpusim/mbarrier.h"
#include "gpusim/race.h"
#include "model/error.h"

namespace gpusim {
namespace {

constexpr std::uint32_t kBulkAlignment = 16;
constexpr std::uint32_t kTensorAlignment = 128;  ///< of a tile in shared memory
constexpr std::uint32_t kTensorMapAlignment = 64;

// Instruction::list of these instructions: the mbarrier's address, the mask of blocks, then coordinates or values.
constexpr int kMbarrierSlot = 0;
constexpr int kMaskSlot = 1;
constexpr int kCoordinateSlot = 2;

std::int32_t slot_of(const Warp& warp, const Instruction& in, int index) { return warp.lists[in.list + index]; }

void misuse(Warp& warp, const Instruction& in, int lane, const std::string& what) {
  report(warp, warp.machine->index_of(in), FindingKind::bulk_copy_misuse, 1u << lane, what);
}

bool is_watched(const Machine& machine) { return machine.observes || machine.counted; }

// ---- checks and counts of ranges

/// Calls `visit` with the addresses of a range, 32 lanes at a time, and each lane's bytes. Lane `lane` is whose access
/// it is; findings name it where it is in the mask.
template <class Visit>
void for_pieces(std::uint64_t address, std::uint64_t bytes, Visit visit) {
  std::uint64_t width = 16;
  while (((address | bytes) & (width - 1)) != 0) width /= 2;
  for (std::uint64_t at = 0; at < bytes; at += width * kWarpLanes) {
    const std::uint64_t lanes = std::min<std::uint64_t>(kWarpLanes, (bytes - at) / width);
    Addresses addresses;
    addresses.mask = lanes == kWarpLanes ? ~0u : (1u << lanes) - 1;
    addresses.pattern = lanes == kWarpLanes ? Pattern::unit : Pattern::scattered;
    for (std::uint64_t l = 0; l < kWarpLanes; ++l) addresses.at[l] = address + at + l * width;
    visit(addresses, static_cast<int>(width));
  }
}

/// Global memory that a copy reads or writes: a request for each row. False where it must not.
bool observe_global_range(Warp& warp, const Instruction& in, int lane, std::uint64_t address, std::uint64_t bytes,
                          Access access) {
  if (bytes == 0) return true;
  Machine& machine = *warp.machine;
  const std::uint64_t offset = address - machine.arena_base;
  if (offset >= DeviceMemory::kArenaBytes || bytes > DeviceMemory::kArenaBytes - offset) {
    std::uint64_t addresses[kWarpLanes] = {};
    addresses[lane] = address;
    bad_global_access(warp, in, 1u << lane, addresses, static_cast<int>(bytes), access);
    return false;
  }
  if (!is_watched(machine)) return true;
  const std::uint32_t at = machine.index_of(in);
  const std::uint64_t requests = machine.counted ? machine.memory_counts[at].global_requests : 0;
  bool whole = true;
  for_pieces(address, bytes, [&](Addresses& addresses, int width) {
    const std::uint32_t wanted = addresses.mask;
    observe_global(warp, in, addresses, width, access);
    whole &= addresses.mask == wanted;
  });
  if (machine.counted) machine.memory_counts[at].global_requests = requests + 1;
  return whole;
}

/// Shared memory of `block` that a copy reads or writes.
void check_shared_range(Warp& warp, const Instruction& in, Block& block, std::uint32_t offset, std::uint32_t bytes,
                        Access access) {
  Machine& machine = *warp.machine;
  if (!machine.observes) return;
  std::uint64_t rank = 0;
  if (&block != warp.block) {
    const auto& cluster = warp.block->cluster;
    rank = static_cast<std::uint64_t>(std::find(cluster.begin(), cluster.end(), &block) - cluster.begin()) + 1;
  }
  for_pieces(offset | rank << kClusterRankShift, bytes,
             [&](Addresses& addresses, int width) { check_shared(warp, in, addresses, width, access); });
}

/// A wavefront moves 128 bytes: bulk copies meet no conflicts.
void count_shared_range(Machine& machine, std::uint32_t at, std::uint32_t bytes) {
  if (!machine.counted) return;
  MemoryCounts& counts = machine.memory_counts[at];
  const std::uint64_t wavefronts = (bytes + 127) / 128;
  ++counts.shared_requests;
  counts.shared_wavefronts += wavefronts;
  counts.shared_ideal += wavefronts;
}

bool is_inside(Warp& warp, const Instruction& in, int lane, const SharedPlace& place, std::uint32_t bytes,
               Access access) {
  if (place.block != nullptr && place.offset >= kSharedBase &&
      std::uint64_t{place.offset} + bytes <= place.block->shared_end) {
    return true;
  }
  std::uint64_t offsets[kWarpLanes] = {};
  offsets[lane] = place.offset;
  bad_shared_access(warp, in, 1u << lane, offsets, static_cast<int>(bytes), access);
  return false;
}

bool is_aligned(Warp& warp, const Instruction& in, int lane, std::uint64_t address, std::uint32_t alignment,
                const char* what) {
  if (address % alignment == 0) return true;
  misuse(warp, in, lane, dsv2::concat(what, " is ", address % alignment, " bytes beyond a multiple of ", alignment));
  return false;
}

void set_state(Block& block, std::uint32_t offset, std::uint32_t bytes, SharedByte state) {
  if (!block.shared_state.empty()) std::memset(&block.shared_state[offset], state, bytes);
}

// ---- reductions

template <class T>
T reduce(Reduction reduction, T old, T value) {
  using Unsigned = std::conditional_t<std::is_integral_v<T>, std::make_unsigned<T>, std::type_identity<T>>::type;
  switch (reduction) {
    case Reduction::add:
      return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(value));
    case Reduction::min:
      return value < old ? value : old;
    case Reduction::max:
      return value > old ? value : old;
    default:
      break;
  }
  if constexpr (std::is_integral_v<T>) {
    switch (reduction) {
      case Reduction::inc:
        return old >= value ? T{0} : static_cast<T>(old + 1);
      case Reduction::dec:
        return old == 0 || old > value ? value : static_cast<T>(old - 1);
      case Reduction::and_bits:
        return old & value;
      case Reduction::or_bits:
        return old | value;
      case Reduction::xor_bits:
        return old ^ value;
      default:
        break;
    }
  }
  return value;
}

float from_half(std::uint16_t bits) {
  const std::uint32_t magnitude = bits & 0x7fffu;
  float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  if (magnitude >= 0x7c00u) value = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | 0x7f800000u);
  return (bits & 0x8000u) != 0 ? -value : value;
}
std::uint16_t to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x47800000u) return sign | 0x7c00u;
  if (magnitude < 113u << 23) {  // subnormal: an addition does the rounding
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign |
                                      (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0.5f)));
  }
  return static_cast<std::uint16_t>(sign | (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}
float from_bfloat(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }
std::uint16_t to_bfloat(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

template <class T, class Combine>
void combine_each(std::byte* to, const std::byte* from, std::size_t bytes, bool parallel, Combine combine) {
  for (std::size_t at = 0; at + sizeof(T) <= bytes; at += sizeof(T)) {
    T value;
    std::memcpy(&value, from + at, sizeof value);
    T* const target = reinterpret_cast<T*>(to + at);
    if (!parallel) {
      T old;
      std::memcpy(&old, target, sizeof old);
      old = combine(old, value);
      std::memcpy(target, &old, sizeof old);
      continue;
    }
    T old = __atomic_load_n(target, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(target, &old, combine(old, value), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
}

template <class T>
void reduce_each(Reduction reduction, std::byte* to, const std::byte* from, std::size_t bytes, bool parallel) {
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  combine_each<Bits>(to, from, bytes, parallel, [reduction](Bits old, Bits value) {
    return std::bit_cast<Bits>(reduce(reduction, std::bit_cast<T>(old), std::bit_cast<T>(value)));
  });
}

/// Copies, or combines element by element.
void put(Reduction reduction, ReductionType type, std::byte* to, const std::byte* from, std::size_t bytes,
         bool parallel) {
  if (reduction == Reduction::none) {
    std::memcpy(to, from, bytes);
    return;
  }
  const auto narrow = [&](auto load, auto store) {
    combine_each<std::uint16_t>(to, from, bytes, parallel, [=](std::uint16_t old, std::uint16_t value) {
      return store(reduce(reduction, load(old), load(value)));
    });
  };
  switch (type) {
    case ReductionType::u32:
      return reduce_each<std::uint32_t>(reduction, to, from, bytes, parallel);
    case ReductionType::s32:
      return reduce_each<std::int32_t>(reduction, to, from, bytes, parallel);
    case ReductionType::u64:
      return reduce_each<std::uint64_t>(reduction, to, from, bytes, parallel);
    case ReductionType::s64:
      return reduce_each<std::int64_t>(reduction, to, from, bytes, parallel);
    case ReductionType::f32:
      return reduce_each<float>(reduction, to, from, bytes, parallel);
    case ReductionType::f64:
      return reduce_each<double>(reduction, to, from, bytes, parallel);
    case ReductionType::f16:
      return narrow(from_half, to_half);
    case ReductionType::bf16:
      return narrow(from_bfloat, to_bfloat);
  }
}

// ---- moving bytes

/// A row of a tile lies in chunks of 16 bytes, each at its swizzled address.
template <class Visit>
void for_chunks(const TensorTile& tile, std::uint32_t base, const TileRow& row, Visit visit) {
  for (std::uint32_t at = 0; at < tile.row_bytes(); at += 16) {
    visit(at, swizzled(tile.map.swizzle, base + row.offset + at));
  }
}

constexpr std::size_t kMostRowBytes = 256 * 8;

void load_tile(const TensorTile& tile, Block& block, std::uint32_t destination) {
  visit_rows(tile, [&](const TileRow& row) {
    std::byte bytes[kMostRowBytes];
    if (row.end > row.first) {
      std::memcpy(bytes + row.first, reinterpret_cast<const void*>(row.address), row.end - row.first);
    }
    finish_row(tile, row, bytes);
    for_chunks(tile, destination, row, [&](std::uint32_t at, std::uint32_t offset) {
      std::memcpy(block.shared.data() + offset, bytes + at, 16);
    });
  });
}

void store_tile(const Machine& machine, const BulkStore& store, const Block& block) {
  const TensorTile& tile = *store.tile;
  visit_rows(tile, [&](const TileRow& row) {
    if (row.end <= row.first) return;
    std::byte bytes[kMostRowBytes];
    for_chunks(tile, store.source, row, [&](std::uint32_t at, std::uint32_t offset) {
      std::memcpy(bytes + at, block.shared.data() + offset, 16);
    });
    put(store.reduction, store.type, reinterpret_cast<std::byte*>(row.address), bytes + row.first, row.end - row.first,
        machine.parallel);
  });
}

/// The bytes of shared memory that a copy into `block` fills.
std::uint32_t filled_bytes(const BulkCopy& copy) {
  return copy.tile != nullptr ? copy.tile->shared_bytes() : copy.bytes;
}

void perform(Block& block, Mbarrier& barrier, const BulkCopy& copy) {
  Warp& warp = *copy.warp;
  if (copy.arrivals != 0) {
    finish_copies_until(warp, copy.arrivals, copy.sequence);
    return arrive_after_copies(warp, warp.machine->code[copy.at], block, barrier, copy.arrivals);
  }
  std::byte* const to = block.shared.data() + copy.destination;
  if (copy.tile != nullptr) {
    load_tile(*copy.tile, block, copy.destination);
  } else {
    const std::byte* from = copy.has_value         ? copy.value.data()
                            : copy.from != nullptr ? copy.from->shared.data() + copy.source
                                                   : reinterpret_cast<const std::byte*>(copy.source);
    put(copy.reduction, copy.type, to, from, copy.bytes, false);
  }
  set_state(block, copy.destination, filled_bytes(copy), kSharedInitialised);
  complete_bytes(warp, copy.at, block, barrier, copy.bytes, copy.stamp);
}

/// Puts a copy under way to `block`, or performs it where nobody is to see that it takes time.
void submit(Warp& warp, Block& block, Mbarrier& barrier, BulkCopy copy) {
  copy.mbarrier = barrier.offset;
  if (!warp.machine->checks.async_copies) return perform(block, barrier, copy);
  if (copy.reduction == Reduction::none && copy.arrivals == 0)
    set_state(block, copy.destination, filled_bytes(copy), kSharedPending);
  block.bulk_copies.push_back(std::move(copy));
  if (is_awaited(block, barrier)) perform_bulk_copies(block, barrier);
}

/// Calls `visit` with the ranges of shared memory that a store reads: of a tile, what lies within the tensor.
template <class Visit>
void for_source_ranges(const BulkStore& store, Visit visit) {
  if (store.tile == nullptr) return visit(store.source, store.bytes);
  visit_rows(*store.tile, [&](const TileRow& row) {
    if (row.end <= row.first) return;
    if (store.tile->map.swizzle == Swizzle::none) {
      return visit(store.source + row.offset + row.first, row.end - row.first);
    }
    for_chunks(*store.tile, store.source, row, [&](std::uint32_t at, std::uint32_t offset) {
      const std::uint32_t first = std::max(at, row.first);
      const std::uint32_t end = std::min(at + 16, row.end);
      if (first < end) visit(offset + first - at, end - first);
    });
  });
}

// ---- into shared memory

struct Target {
  Block* block = nullptr;
  Mbarrier* barrier = nullptr;
};

/// The blocks that a copy goes to, with their mbarriers: of those in the mask, at the same offsets.
std::vector<Target> targets_of(Warp& warp, const Instruction& in, int lane, const SharedPlace& to,
                               std::uint32_t bytes) {
  const std::uint64_t address = read_slot(warp, slot_of(warp, in, kMbarrierSlot), lane, (in.flags & 1) != 0 ? 8 : 4);
  SharedPlace barrier = locate_shared(warp, address);
  std::vector<Block*> blocks = {to.block};
  if (const std::int32_t slot = slot_of(warp, in, kMaskSlot); slot >= 0) {
    const auto mask = static_cast<std::uint32_t>(read_slot(warp, slot, lane, 4)) & 0xffffu;
    const auto& cluster = warp.block->cluster;
    const std::size_t ranks = std::max<std::size_t>(1, cluster.size());
    if (mask == 0 || mask >> ranks != 0) {
      misuse(warp, in, lane, dsv2::concat("mask ", mask, " of a multicast in a cluster of ", ranks, " blocks"));
      return {};
    }
    blocks.clear();
    for_lanes(mask, [&](int rank) {
      blocks.push_back(cluster.empty() ? warp.block : cluster[static_cast<std::size_t>(rank)]);
    });
  } else if (barrier.block != to.block) {
    misuse(warp, in, lane, "the mbarrier lies in another block than the copy's destination");
    return {};
  }
  std::vector<Target> targets;
  for (Block* const block : blocks) {
    if (!is_inside(warp, in, lane, {block, to.offset}, bytes, Access::write)) return {};
    Mbarrier* const found = usable_mbarrier(warp, in, lane, {block, barrier.offset});
    if (found == nullptr) return {};
    targets.push_back({block, found});
  }
  return targets;
}

/// Checks the destinations and submits the copy to each.
void submit_to(Warp& warp, const Instruction& in, const std::vector<Target>& targets, BulkCopy copy) {
  const std::uint32_t bytes = filled_bytes(copy);
  const bool tracked = tracks_warps(*warp.block);
  copy.warp = &warp;
  copy.at = warp.machine->index_of(in);
  copy.stamp = tracked ? warp.block->stamp : 0;
  for (const Target& target : targets) {
    check_shared_range(warp, in, *target.block, copy.destination, bytes,
                       copy.reduction == Reduction::none ? Access::write : Access::atomic);
    count_shared_range(*warp.machine, copy.at, bytes);
  }
  // What its thread does next is not part of it.
  if (tracked) order_block(*warp.block, true);
  for (const Target& target : targets) submit(warp, *target.block, *target.barrier, copy);
}

std::uint64_t global_operand(const Warp& warp, const Instruction& in, int lane) {
  return read_slot(warp, in.c, lane, (in.flags & 2) != 0 ? 8 : 4) + static_cast<std::uint64_t>(std::int64_t{in.target});
}

std::uint32_t size_operand(const Warp& warp, const Instruction& in, int lane) {
  return static_cast<std::uint32_t>(read_slot(warp, in.b, lane, 4));
}

bool is_bulk_size(Warp& warp, const Instruction& in, int lane, std::uint32_t bytes) {
  if (bytes % kBulkAlignment == 0) return true;
  misuse(warp, in, lane, dsv2::concat("a bulk copy of ", bytes, " bytes, no multiple of 16"));
  return false;
}

/// cp.async.bulk from global memory.
void load_lane(Warp& warp, const Instruction& in, int lane) {
  const SharedPlace to = locate_shared(warp, shared_address(warp, in, lane));
  const std::uint64_t from = global_operand(warp, in, lane);
  const std::uint32_t bytes = size_operand(warp, in, lane);
  if (!is_bulk_size(warp, in, lane, bytes) || !is_aligned(warp, in, lane, from, kBulkAlignment, "the source") ||
      !is_aligned(warp, in, lane, to.offset, kBulkAlignment, "the destination") ||
      !is_inside(warp, in, lane, to, bytes, Access::write)) {
    return;
  }
  const std::vector<Target> targets = targets_of(warp, in, lane, to, bytes);
  if (targets.empty() || !observe_global_range(warp, in, lane, from, bytes, Access::read)) return;
  submit_to(warp, in, targets, {.destination = to.offset, .bytes = bytes, .source = from, .tile = nullptr});
}

/// An asynchronous reader of the block's own shared memory.
void check_source(Warp& warp, const Instruction& in, int lane, std::uint32_t offset, std::uint32_t bytes) {
  check_shared_range(warp, in, *warp.block, offset, bytes, Access::read);
  if (tracks_warps(*warp.block)) check_proxy_fence(warp, in, 1u << lane, offset, bytes);
}

/// cp.async.bulk, and cp.reduce.async.bulk, from the block's shared memory to that of a block of the cluster.
void shared_lane(Warp& warp, const Instruction& in, int lane) {
  const SharedPlace to = locate_shared(warp, shared_address(warp, in, lane));
  const SharedPlace from = locate_shared(warp, global_operand(warp, in, lane));
  const std::uint32_t bytes = size_operand(warp, in, lane);
  if (!is_bulk_size(warp, in, lane, bytes) || !is_aligned(warp, in, lane, from.offset, kBulkAlignment, "the source") ||
      !is_aligned(warp, in, lane, to.offset, kBulkAlignment, "the destination") ||
      !is_inside(warp, in, lane, from, bytes, Access::read) || !is_inside(warp, in, lane, to, bytes, Access::write)) {
    return;
  }
  if (from.block != warp.block) return misuse(warp, in, lane, "the source lies in another block's shared memory");
  const std::vector<Target> targets = targets_of(warp, in, lane, to, bytes);
  if (targets.empty()) return;
  check_source(warp, in, lane, from.offset, bytes);
  count_shared_range(*warp.machine, warp.machine->index_of(in), bytes);
  submit_to(warp, in, targets,
            {.destination = to.offset,
             .bytes = bytes,
             .from = from.block,
             .source = from.offset,
             .tile = nullptr,
             .reduction = static_cast<Reduction>(in.mode),
             .type = static_cast<ReductionType>(in.bytes)});
}

/// st.async and red.async: values from registers.
void value_lane(Warp& warp, const Instruction& in, int lane) {
  const SharedPlace to = locate_shared(warp, shared_address(warp, in, lane));
  const std::uint32_t bytes = std::uint32_t{in.register_bytes} * in.elements;
  if (!is_aligned(warp, in, lane, to.offset, bytes, "the destination") ||
      !is_inside(warp, in, lane, to, bytes, Access::write)) {
    return;
  }
  const std::vector<Target> targets = targets_of(warp, in, lane, to, bytes);
  if (targets.empty()) return;
  BulkCopy copy{.destination = to.offset,
                .bytes = bytes,
                .tile = nullptr,
                .reduction = static_cast<Reduction>(in.mode),
                .type = static_cast<ReductionType>(in.bytes),
                .has_value = true};
  for (int i = 0; i < in.elements; ++i) {
    const std::uint64_t value = read_slot(warp, slot_of(warp, in, kCoordinateSlot + i), lane, in.register_bytes);
    std::memcpy(copy.value.data() + i * in.register_bytes, &value, in.register_bytes);
  }
  submit_to(warp, in, targets, copy);
}

// ---- tensors

/// The 128 bytes of a tensor map: a kernel's parameter, or device memory.
std::optional<TensorMap> read_tensor_map(Warp& warp, const Instruction& in, int lane) {
  const std::uint64_t address = global_operand(warp, in, lane);
  const Machine& machine = *warp.machine;
  std::span<const std::byte> bytes;
  if (address >> kWindowShift == kParamWindow >> kWindowShift) {
    const auto& parameters = machine.launch->parameters;
    const std::uint64_t offset = address & 0xffffffffu;
    if (offset + kTensorMapBytes <= parameters.size()) bytes = {parameters.data() + offset, kTensorMapBytes};
  } else if (observe_global_range(warp, in, lane, address, kTensorMapBytes, Access::read)) {
    bytes = {reinterpret_cast<const std::byte*>(address), kTensorMapBytes};
  } else {
    return std::nullopt;
  }
  if (!is_aligned(warp, in, lane, address, kTensorMapAlignment, "the tensor map")) return std::nullopt;
  std::optional<TensorMap> map = decode_tensor_map(bytes);
  if (!map) misuse(warp, in, lane, "the address is not that of a tensor map made by cuTensorMapEncodeTiled");
  return map;
}

std::shared_ptr<const TensorTile> tile_of(Warp& warp, const Instruction& in, int lane) {
  const std::optional<TensorMap> map = read_tensor_map(warp, in, lane);
  if (!map) return nullptr;
  if (map->rank != in.elements) {
    misuse(warp, in, lane,
           dsv2::concat("a copy of ", int{in.elements}, " dimensions of a tensor that has ", int{map->rank}));
    return nullptr;
  }
  auto tile = std::make_shared<TensorTile>(TensorTile{.map = *map});
  for (std::size_t i = 0; i < in.elements; ++i) {
    tile->at[i] =
        static_cast<std::int32_t>(read_slot(warp, slot_of(warp, in, kCoordinateSlot + static_cast<int>(i)), lane, 4));
  }
  return tile;
}

/// Where a swizzled tile begins, its pattern does.
bool is_tile_aligned(Warp& warp, const Instruction& in, int lane, std::uint32_t offset) {
  return is_aligned(warp, in, lane, offset, kTensorAlignment, "the tile in shared memory");
}

bool observe_tile(Warp& warp, const Instruction& in, int lane, const TensorTile& tile, Access access) {
  bool whole = true;
  visit_rows(tile, [&](const TileRow& row) {
    whole &= observe_global_range(warp, in, lane, row.address, row.end - row.first, access);
  });
  return whole;
}

void load_tile_lane(Warp& warp, const Instruction& in, int lane) {
  const auto tile = tile_of(warp, in, lane);
  if (tile == nullptr) return;
  const SharedPlace to = locate_shared(warp, shared_address(warp, in, lane));
  if (!is_tile_aligned(warp, in, lane, to.offset) ||
      !is_inside(warp, in, lane, to, tile->shared_bytes(), Access::write)) {
    return;
  }
  const std::vector<Target> targets = targets_of(warp, in, lane, to, tile->shared_bytes());
  if (targets.empty() || !observe_tile(warp, in, lane, *tile, Access::read)) return;
  submit_to(warp, in, targets, {.destination = to.offset, .bytes = tile->bytes(), .tile = tile});
}

// ---- out of shared memory

void perform_store(Warp& warp, const BulkStore& store) {
  Machine& machine = *warp.machine;
  if (store.tile != nullptr) {
    store_tile(machine, store, *warp.block);
  } else {
    put(store.reduction, store.type, reinterpret_cast<std::byte*>(store.destination),
        warp.block->shared.data() + store.source, store.bytes, machine.parallel);
  }
  if (!machine.checks.async_copies || !tracks_warps(*warp.block)) return;
  // It has been reading up to now.
  for_source_ranges(store, [&](std::uint32_t offset, std::uint32_t bytes) {
    if (check_overwritten(warp, store.at, store.stamp, offset, bytes)) return;
    for_pieces(offset, bytes, [&](Addresses& addresses, int width) {
      check_shared_race(warp, machine.code[store.at], addresses, width, Access::read);
    });
  });
}

void submit_store(Warp& warp, const Instruction& in, int lane, BulkStore store) {
  store.lane = static_cast<std::uint8_t>(lane);
  store.group = warp.bulk_groups[static_cast<std::size_t>(lane)];
  store.at = warp.machine->index_of(in);
  store.reduction = static_cast<Reduction>(in.mode);
  if (is_watched(*warp.machine)) {
    std::uint32_t total = 0;
    for_source_ranges(store, [&](std::uint32_t offset, std::uint32_t bytes) {
      check_source(warp, in, lane, offset, bytes);
      total += bytes;
    });
    count_shared_range(*warp.machine, store.at, total);
  }
  if (tracks_warps(*warp.block)) {
    store.stamp = warp.block->stamp;
    order_block(*warp.block, true);
  }
  if (!warp.machine->checks.async_copies) return perform_store(warp, store);
  warp.bulk_stores.push_back(std::move(store));
}

Access access_of(const Instruction& in) {
  return static_cast<Reduction>(in.mode) == Reduction::none ? Access::write : Access::atomic;
}

/// The source of a store; false where it cannot be.
bool source_place(Warp& warp, const Instruction& in, int lane, std::uint32_t bytes, SharedPlace& place) {
  place = locate_shared(warp, shared_address(warp, in, lane));
  if (!is_inside(warp, in, lane, place, bytes, Access::read)) return false;
  if (place.block == warp.block) return true;
  misuse(warp, in, lane, "the source lies in another block's shared memory");
  return false;
}

void store_lane(Warp& warp, const Instruction& in, int lane) {
  const std::uint64_t to = global_operand(warp, in, lane);
  const std::uint32_t bytes = size_operand(warp, in, lane);
  SharedPlace from;
  if (!is_bulk_size(warp, in, lane, bytes) || !source_place(warp, in, lane, bytes, from) ||
      !is_aligned(warp, in, lane, from.offset, kBulkAlignment, "the source") ||
      !is_aligned(warp, in, lane, to, kBulkAlignment, "the destination") ||
      !observe_global_range(warp, in, lane, to, bytes, access_of(in))) {
    return;
  }
  submit_store(warp, in, lane,
               {.source = from.offset,
                .bytes = bytes,
                .destination = to,
                .tile = nullptr,
                .type = static_cast<ReductionType>(in.bytes)});
}

std::optional<ReductionType> reduction_type(TensorType type) {
  constexpr std::pair<TensorType, ReductionType> kTypes[] = {
      {TensorType::u32, ReductionType::u32}, {TensorType::s32, ReductionType::s32},
      {TensorType::u64, ReductionType::u64}, {TensorType::s64, ReductionType::s64},
      {TensorType::f16, ReductionType::f16}, {TensorType::bf16, ReductionType::bf16},
      {TensorType::f32, ReductionType::f32}, {TensorType::f32_ftz, ReductionType::f32},
  };
  for (const auto& [tensor, reduction] : kTypes) {
    if (tensor == type) return reduction;
  }
  return std::nullopt;
}

void store_tile_lane(Warp& warp, const Instruction& in, int lane) {
  const auto tile = tile_of(warp, in, lane);
  SharedPlace from;
  if (tile == nullptr || !source_place(warp, in, lane, tile->shared_bytes(), from) ||
      !is_tile_aligned(warp, in, lane, from.offset) || !observe_tile(warp, in, lane, *tile, access_of(in))) {
    return;
  }
  BulkStore store{.source = from.offset, .bytes = tile->bytes(), .tile = tile};
  if (access_of(in) == Access::atomic) {
    const std::optional<ReductionType> type = reduction_type(tile->map.type);
    if (!type) return misuse(warp, in, lane, "a reduction into a tensor of a type that has none");
    store.type = *type;
  }
  submit_store(warp, in, lane, std::move(store));
}

// ---- prefetches: nothing moves, but an address that is none is told of

void prefetch_lane(Warp& warp, const Instruction& in, int lane) {
  const std::uint64_t offset = global_operand(warp, in, lane) - warp.machine->arena_base;
  if (!is_bulk_size(warp, in, lane, size_operand(warp, in, lane))) return;
  if (offset >= DeviceMemory::kArenaBytes) misuse(warp, in, lane, "a prefetch of what is no device memory");
}

void prefetch_tile_lane(Warp& warp, const Instruction& in, int lane) { tile_of(warp, in, lane); }

template <void (*kLane)(Warp&, const Instruction&, int)>
void each_lane(Warp& warp, const Instruction& in) {
  for_lanes(warp.exec, [&](int lane) { kLane(warp, in, lane); });
}

// ---- groups

void commit(Warp& warp, const Instruction&) {
  for_lanes(warp.exec, [&](int lane) { ++warp.bulk_groups[static_cast<std::size_t>(lane)]; });
}

void wait_group(Warp& warp, const Instruction& in) {
  const auto keep = static_cast<std::uint32_t>(in.immediate);
  const std::uint32_t mask = warp.exec;
  std::erase_if(warp.bulk_stores, [&](const BulkStore& store) {
    if ((mask >> store.lane & 1u) == 0 || store.group + keep >= warp.bulk_groups[store.lane]) return false;
    perform_store(warp, store);
    return true;
  });
}

/// cp.async.mbarrier.arrive: an arrival that comes when the thread's copies so far are done.
void copies_arrive(Warp& warp, const Instruction& in) {
  for (std::uint32_t left = warp.exec; left != 0;) {
    const int first = std::countr_zero(left);
    const std::uint64_t address = shared_address(warp, in, first);
    std::uint32_t same = 0;
    for_lanes(left,
              [&](int lane) { same |= static_cast<std::uint32_t>(shared_address(warp, in, lane) == address) << lane; });
    left &= ~same;
    const SharedPlace place = locate_shared(warp, address);
    Mbarrier* const barrier = usable_mbarrier(warp, in, first, place);
    if (barrier == nullptr) continue;
    // Without .noinc the count has not allowed for these arrivals.
    if ((in.mode & kMbarrierNoIncrement) == 0)
      expect_arrivals(*place.block, *barrier, static_cast<std::uint32_t>(std::popcount(same)));
    submit(warp, *place.block, *barrier,
           {.warp = &warp,
            .at = warp.machine->index_of(in),
            .tile = nullptr,
            .arrivals = same,
            .sequence = warp.copies_issued});
  }
}

void fence(Warp& warp, const Instruction&) {
  if (tracks_warps(*warp.block)) fence_proxy(warp);
}

}  // namespace

void perform_bulk_copies(Block& block, Mbarrier& barrier) {
  if (block.bulk_copies.empty()) return;
  std::vector<BulkCopy> ready;
  std::erase_if(block.bulk_copies, [&](BulkCopy& copy) {
    if (copy.mbarrier != barrier.offset) return false;
    ready.push_back(std::move(copy));
    return true;
  });
  for (const BulkCopy& copy : ready) perform(block, barrier, copy);
}

void abandon_bulk_stores(Warp& warp, std::uint32_t mask) {
  std::erase_if(warp.bulk_stores, [&](const BulkStore& store) {
    if ((mask >> store.lane & 1u) == 0) return false;
    FindingRecord* const found = record(warp, store.at, FindingKind::async_copy_not_waited, 1u << store.lane);
    if (found != nullptr) {
      found->message = "the thread exits while a copy may still be reading the block's shared memory";
      found->warning = true;
    }
    perform_store(warp, store);
    return true;
  });
}

void register_bulk_copies(HandlerRegistry& registry) {
  add_handler(registry, "bulk.load", "", each_lane<load_lane>);
  add_handler(registry, "bulk.shared", "", each_lane<shared_lane>);
  add_handler(registry, "bulk.store", "", each_lane<store_lane>);
  add_handler(registry, "bulk.prefetch", "", each_lane<prefetch_lane>);
  add_handler(registry, "st.async", "", each_lane<value_lane>);
  add_handler(registry, "tensor.load", "", each_lane<load_tile_lane>);
  add_handler(registry, "tensor.store", "", each_lane<store_tile_lane>);
  add_handler(registry, "tensor.prefetch", "", each_lane<prefetch_tile_lane>);
  add_handler(registry, "bulk.commit", "", commit);
  add_handler(registry, "bulk.wait", "", wait_group);
  add_handler(registry, "cp.async.mbarrier", "", copies_arrive);
  add_handler(registry, "fence.proxy", "", fence);
}

}  // namespace gpusim
