// What looks on while memory is accessed: the checks and the counts. Out of the way when neither is on.
#include <algorithm>
#include <bit>
#include <cstring>

#include "gpusim/block_touches.h"
#include "gpusim/machine.h"
#include "gpusim/race.h"
#include "model/error.h"

namespace gpusim {
namespace {

std::string_view verb(Access access) {
  return access == Access::read ? "read" : access == Access::write ? "write" : "atomic";
}

/// Where an address lies, against the allocation that holds it or the nearest before it.
std::string where(const DeviceMemory& memory, std::uint64_t address) {
  const auto allocation = memory.find(address);
  if (!allocation) return "in no allocation";
  const std::uint64_t offset = address - allocation->address;
  const std::string what = dsv2::concat("the ", allocation->bytes, " bytes of ", allocation->what);
  if (offset < allocation->bytes)
    return dsv2::concat("at byte ", offset, " of ", what, allocation->alive ? "" : ", freed");
  return dsv2::concat(offset - allocation->bytes, " bytes after ", what, allocation->alive ? "" : ", freed");
}

// ---- global memory

/// Both bits of every byte's state: bit 1 allocated, bit 0 initialised (see Byte).
constexpr std::uint8_t kAllocatedBit = 2;
constexpr std::uint8_t kInitialisedBit = 1;
static_assert(static_cast<int>(Byte::uninitialised) == kAllocatedBit);
static_assert(static_cast<int>(Byte::initialised) == (kAllocatedBit | kInitialisedBit));

/// The bits that all of `bytes` shadow bytes have.
std::uint8_t common_state(const std::uint8_t* shadow, std::size_t bytes) {
  std::uint64_t all = ~std::uint64_t{0};
  std::size_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, shadow + i, sizeof word);
    all &= word;
  }
  all &= all >> 32;
  all &= all >> 16;
  all &= all >> 8;
  auto state = static_cast<std::uint8_t>(all);
  for (; i < bytes; ++i) state &= shadow[i];
  return state;
}

void report_unallocated(Warp& warp, std::uint32_t at, std::uint32_t lanes, const std::uint64_t* addresses, int bytes,
                        Access access) {
  const DeviceMemory& memory = *warp.machine->launch->memory;
  const std::uint64_t address = addresses[std::countr_zero(lanes)];
  std::uint64_t bad = address;  // the first byte that is no good
  for (int i = 0; i < bytes; ++i) {
    if ((*memory.shadow(address + static_cast<std::uint64_t>(i)) & kAllocatedBit) != 0) continue;
    bad = address + static_cast<std::uint64_t>(i);
    break;
  }
  const bool freed = *memory.shadow(bad) == static_cast<std::uint8_t>(Byte::freed);
  FindingRecord* const found =
      record(warp, at, freed ? FindingKind::use_after_free : FindingKind::out_of_bounds, lanes);
  if (found != nullptr) found->message = dsv2::concat(verb(access), " of ", bytes, " bytes ", where(memory, bad));
}

void report_uninitialised(Warp& warp, std::uint32_t at, std::uint32_t lanes, const std::uint64_t* addresses,
                          int bytes) {
  FindingRecord* const found = record(warp, at, FindingKind::uninitialised, lanes);
  if (found == nullptr) return;
  found->message = dsv2::concat("read of ", bytes, " bytes that nobody wrote, ",
                                where(*warp.machine->launch->memory, addresses[std::countr_zero(lanes)]));
}

/// Whether the lines that the lanes' bytes lie in are known to have the needed bits throughout.
bool lines_have(const DeviceMemory& memory, const Addresses& addresses, std::size_t bytes, std::uint8_t needed) {
  std::uint8_t common = needed;
  if (addresses.pattern != Pattern::scattered) {
    const std::uint64_t span = addresses.pattern == Pattern::unit ? bytes * kWarpLanes : bytes;
    const std::uint64_t end = addresses.at[0] + span;
    for (std::uint64_t at = addresses.at[0]; at < end; at = (at / DeviceMemory::kLine + 1) * DeviceMemory::kLine)
      common &= memory.line_state(at);
  } else if (addresses.mask == 0xffffffffu) {
    // An aligned access of at most 64 bytes lies within a line.
    for (int l = 0; l < kWarpLanes; ++l) common &= memory.line_state(addresses.at[l]);
  } else {
    for_lanes(addresses.mask, [&](int lane) { common &= memory.line_state(addresses.at[lane]); });
  }
  return common == needed;
}

/// Bounds, use after free, initialisation: by the shadow.
void check_global(Warp& warp, std::uint32_t at, Addresses& addresses, int bytes, Access access) {
  Machine& machine = *warp.machine;
  DeviceMemory& memory = *machine.launch->memory;
  const auto width = static_cast<std::size_t>(bytes);
  constexpr std::uint8_t kBoth = kAllocatedBit | kInitialisedBit;
  const std::uint8_t needed = access == Access::write || !machine.checks.initialised ? kAllocatedBit : kBoth;
  // A write that leaves nothing to be marked has been seen before: both bits are there.
  if (lines_have(memory, addresses, width, access == Access::read ? needed : kBoth)) return;
  if (addresses.pattern != Pattern::scattered) {
    const std::size_t span = addresses.pattern == Pattern::unit ? width * kWarpLanes : width;
    std::uint8_t* const shadow = memory.shadow(addresses.at[0]);
    if ((common_state(shadow, span) & needed) == needed) {
      if (access != Access::read) memory.initialise(addresses.at[0], span);
      return;
    }
  }
  std::uint32_t unallocated = 0;
  std::uint32_t uninitialised = 0;
  for_lanes(addresses.mask, [&](int lane) {
    const std::uint8_t state = common_state(memory.shadow(addresses.at[lane]), width);
    unallocated |= static_cast<std::uint32_t>((state & kAllocatedBit) == 0) << lane;
    uninitialised |= static_cast<std::uint32_t>((state & needed) != needed) << lane;
  });
  uninitialised &= ~unallocated;
  if (unallocated != 0 && machine.checks.memory) {
    report_unallocated(warp, at, unallocated, addresses.at, bytes, access);
    machine.status = LaunchStatus::illegal_address;
    addresses.mask &= ~unallocated;
    addresses.pattern = Pattern::scattered;
  }
  if (uninitialised != 0) report_uninitialised(warp, at, uninitialised, addresses.at, bytes);
  if (access != Access::read) {
    for_lanes(addresses.mask & ~unallocated, [&](int lane) { memory.initialise(addresses.at[lane], width); });
  }
}

/// Sorted, without repetition; the end of them.
std::uint64_t* distinct(std::uint64_t* begin, std::uint64_t* end) {
  if (!std::is_sorted(begin, end)) std::sort(begin, end);
  return std::unique(begin, end);
}

void mark_bits(std::uint64_t* bits, std::uint64_t first, std::uint64_t last, bool parallel) {
  for (std::uint64_t at = first; at <= last; ++at) {
    std::uint64_t& word = bits[at / 64];
    const std::uint64_t bit = std::uint64_t{1} << (at % 64);
    if ((__atomic_load_n(&word, __ATOMIC_RELAXED) & bit) != 0) continue;
    if (parallel) {
      __atomic_fetch_or(&word, bit, __ATOMIC_RELAXED);
    } else {
      word |= bit;
    }
  }
}

/// Sets the bits of [first, first + bytes), and of its pages.
void mark_touched(Launch& launch, int kind, std::uint64_t first, std::uint64_t bytes, bool parallel) {
  const std::uint64_t end = first + bytes;
  mark_bits(launch.page_bits[kind], first / kTouchedPage, (end - 1) / kTouchedPage, parallel);
  for (std::uint64_t at = first; at < end;) {
    const std::uint64_t count = std::min(end - at, 64 - at % 64);
    const std::uint64_t mask = (count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << (at % 64);
    std::uint64_t& word = launch.byte_bits[kind][at / 64];
    if ((__atomic_load_n(&word, __ATOMIC_RELAXED) & mask) != mask) {
      if (parallel) {
        __atomic_fetch_or(&word, mask, __ATOMIC_RELAXED);
      } else {
        word |= mask;
      }
    }
    at += count;
  }
}

/// The bytes, for who wants to know what a launch touched.
void touch_global(Warp& warp, const Addresses& addresses, int bytes, Access access) {
  const Machine& machine = *warp.machine;
  const int kind = static_cast<int>(access);
  const auto width = static_cast<std::uint64_t>(bytes);
  if (addresses.pattern != Pattern::scattered) {
    const std::uint64_t span = addresses.pattern == Pattern::unit ? width * kWarpLanes : width;
    mark_touched(*machine.launch, kind, addresses.at[0] - machine.arena_base, span, machine.parallel);
    return;
  }
  for_lanes(addresses.mask, [&](int lane) {
    mark_touched(*machine.launch, kind, addresses.at[lane] - machine.arena_base, width, machine.parallel);
  });
}

void count_global(Warp& warp, std::uint32_t at, const Addresses& addresses, int bytes, Access access) {
  constexpr std::uint64_t kSectorBytes = 32;
  Machine& machine = *warp.machine;
  Launch& launch = *machine.launch;
  MemoryCounts& counts = machine.memory_counts[at];
  const auto width = static_cast<std::uint64_t>(bytes);
  const auto lanes = static_cast<std::uint64_t>(std::popcount(addresses.mask));
  std::uint64_t* const bits = launch.sector_bits[access == Access::read ? 0 : 1];
  ++counts.global_requests;
  counts.global_bytes += lanes * width;
  if (access == Access::atomic) counts.atomics += lanes;
  if (addresses.pattern != Pattern::scattered) {
    const std::uint64_t span = addresses.pattern == Pattern::unit ? width * kWarpLanes : width;
    const std::uint64_t first = (addresses.at[0] - machine.arena_base) / kSectorBytes;
    const std::uint64_t last = (addresses.at[0] + span - 1 - machine.arena_base) / kSectorBytes;
    counts.global_sectors += last - first + 1;
    counts.global_ideal += (span + kSectorBytes - 1) / kSectorBytes;
    mark_bits(bits, first, last, machine.parallel);
    return;
  }
  std::uint64_t offsets[kWarpLanes];
  std::uint64_t* end = offsets;
  for_lanes(addresses.mask, [&](int lane) { *end++ = addresses.at[lane] - machine.arena_base; });
  end = distinct(offsets, end);
  counts.global_ideal += (static_cast<std::uint64_t>(end - offsets) * width + kSectorBytes - 1) / kSectorBytes;
  // Aligned accesses of at most 32 bytes lie within a sector each.
  std::uint64_t previous = ~std::uint64_t{0};
  for (const std::uint64_t* offset = offsets; offset != end; ++offset) {
    const std::uint64_t sector = *offset / kSectorBytes;
    if (sector == previous) continue;
    previous = sector;
    ++counts.global_sectors;
    mark_bits(bits, sector, sector, machine.parallel);
  }
}

/// What blocks touch that cannot order themselves.
void note_touches(Warp& warp, const Addresses& addresses, int bytes, Access access) {
  const auto width = static_cast<std::uint64_t>(bytes);
  if (addresses.pattern != Pattern::scattered)
    return note_touch(warp, addresses.at[0], addresses.pattern == Pattern::unit ? width * kWarpLanes : width, access);
  // Lanes that follow each other in memory are one.
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  for_lanes(addresses.mask, [&](int lane) {
    const std::uint64_t address = addresses.at[lane];
    if (address != end) {
      if (end != begin) note_touch(warp, begin, end - begin, access);
      begin = address;
    }
    end = address + width;
  });
  if (end != begin) note_touch(warp, begin, end - begin, access);
}

// ---- shared memory

/// Passes that 32 banks of 4 bytes need for `count` words: the most distinct words in one bank.
struct Passes {
  int most = 0;
  int distinct = 0;
};
Passes passes_of(std::uint32_t* words, int count) {
  constexpr std::uint32_t kBanks = 32;
  constexpr std::uint32_t kNone = 0xffffffffu;
  std::uint32_t in_bank[kBanks];
  std::fill(std::begin(in_bank), std::end(in_bank), kNone);
  int distinct = 0;
  bool conflict = false;
  for (int i = 0; i < count; ++i) {
    std::uint32_t& bank = in_bank[words[i] % kBanks];
    if (bank == kNone) ++distinct;
    conflict |= bank != kNone && bank != words[i];
    bank = words[i];
  }
  if (!conflict) return {1, distinct};
  std::sort(words, words + count);
  const auto end = std::unique(words, words + count);
  int in_each[kBanks] = {};
  Passes passes{0, static_cast<int>(end - words)};
  for (const std::uint32_t* word = words; word != end; ++word)
    passes.most = std::max(passes.most, ++in_each[*word % kBanks]);
  return passes;
}

/// Lanes are served in groups of as many as 128 bytes hold.
void count_shared(MemoryCounts& counts, const Addresses& offsets, int bytes) {
  constexpr int kBanks = 32;
  ++counts.shared_requests;
  const int words_each = std::max(1, bytes / 4);
  if (offsets.pattern == Pattern::unit && bytes >= 4) {
    counts.shared_wavefronts += static_cast<std::uint64_t>(words_each);
    counts.shared_ideal += static_cast<std::uint64_t>(words_each);
    return;
  }
  const int group_lanes = kWarpLanes / words_each;
  for (int first = 0; first < kWarpLanes; first += group_lanes) {
    const std::uint32_t group = group_lanes == kWarpLanes ? ~0u : ((1u << group_lanes) - 1) << first;
    std::uint32_t words[kWarpLanes];
    int count = 0;
    for_lanes(offsets.mask & group, [&](int lane) {
      const auto word = static_cast<std::uint32_t>(offsets.at[lane] / 4);
      if (count >= words_each && words[count - words_each] == word) return;
      for (int i = 0; i < words_each; ++i) words[count++] = word + static_cast<std::uint32_t>(i);
    });
    if (count == 0) continue;
    const Passes passes = passes_of(words, count);
    counts.shared_wavefronts += static_cast<std::uint64_t>(passes.most);
    counts.shared_ideal += static_cast<std::uint64_t>((passes.distinct + kBanks - 1) / kBanks);
  }
}

/// All of `bytes` states, where they are initialised.
std::uint64_t initialised_word(std::size_t bytes) {
  return 0x0101010101010101u * kSharedInitialised &
         (bytes >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * bytes)) - 1);
}

/// Whether each lane's bytes are initialised, by one comparison a lane: the common case.
template <class Word>
bool all_initialised(const Block& block, const Addresses& offsets, int words) {
  const auto wanted = static_cast<Word>(initialised_word(sizeof(Word)));
  std::uint64_t wrong = 0;
  for_lanes(offsets.mask, [&](int lane) {
    for (int i = 0; i < words; ++i) {
      Word word;
      std::memcpy(&word, &block.shared_state[offsets.at[lane] + static_cast<std::size_t>(i) * sizeof word],
                  sizeof word);
      wrong |= static_cast<std::uint64_t>(word ^ wanted);
    }
  });
  return wrong == 0;
}

bool all_initialised(const Block& block, const Addresses& offsets, int bytes) {
  if (bytes == 4) return all_initialised<std::uint32_t>(block, offsets, 1);
  if (bytes >= 8) return all_initialised<std::uint64_t>(block, offsets, bytes / 8);
  return bytes == 2 ? all_initialised<std::uint16_t>(block, offsets, 1)
                    : all_initialised<std::uint8_t>(block, offsets, 1);
}

/// Initialisation, and copies that have not arrived. `block`: whose shared memory it is. True: some have not.
bool check_shared_state(Warp& warp, Block& block, std::uint32_t at, const Addresses& offsets, int bytes,
                        Access access) {
  const Checks& checks = warp.machine->checks;
  if (all_initialised(block, offsets, bytes)) return false;
  std::uint32_t uninitialised = 0;
  std::uint32_t pending = 0;
  for_lanes(offsets.mask, [&](int lane) {
    std::uint8_t* const state = &block.shared_state[offsets.at[lane]];
    bool is_unwritten = false;
    bool is_pending = false;
    for (int i = 0; i < bytes; ++i) {
      is_unwritten |= state[i] == kSharedUninitialised;
      is_pending |= state[i] == kSharedPending;
    }
    uninitialised |= static_cast<std::uint32_t>(is_unwritten && access != Access::write) << lane;
    pending |= static_cast<std::uint32_t>(is_pending) << lane;
    if (access != Access::read) std::memset(state, kSharedInitialised, static_cast<std::size_t>(bytes));
  });
  if (uninitialised != 0 && checks.initialised) {
    FindingRecord* const found = record(warp, at, FindingKind::uninitialised, uninitialised);
    if (found != nullptr) {
      found->message =
          dsv2::concat(verb(access), " of ", bytes, " bytes of shared memory that nobody wrote, at offset ",
                       offsets.at[std::countr_zero(uninitialised)] - kSharedBase);
    }
  }
  if (pending != 0 && checks.async_copies) {
    FindingRecord* const found = record(warp, at, FindingKind::async_copy_not_waited, pending);
    if (found != nullptr) {
      found->message =
          dsv2::concat(verb(access), " of shared memory that an asynchronous copy is still to fill, at offset ",
                       offsets.at[std::countr_zero(pending)] - kSharedBase);
    }
  }
  return pending != 0 && checks.async_copies;
}

/// Each lane's block of the cluster in turn.
void check_cluster_state(Warp& warp, std::uint32_t at, const Addresses& offsets, int bytes, Access access) {
  for (std::uint32_t left = offsets.mask; left != 0;) {
    const std::uint64_t rank = offsets.at[std::countr_zero(left)] >> kClusterRankShift;
    Addresses some;
    for_lanes(left, [&](int lane) {
      if (offsets.at[lane] >> kClusterRankShift != rank) return;
      some.mask |= 1u << lane;
      some.at[lane] = offsets.at[lane] & ((1u << kClusterRankShift) - 1);
    });
    left &= ~some.mask;
    Block& block = rank == 0 ? *warp.block : *warp.block->cluster[rank - 1];
    check_shared_state(warp, block, at, some, bytes, access);
  }
}

}  // namespace

FindingRecord* record(Warp& warp, std::uint32_t at, FindingKind kind, std::uint32_t lanes) {
  Machine& machine = *warp.machine;
  const auto [entry, fresh] = machine.findings.try_emplace({kind, at});
  FindingRecord& found = entry->second;
  found.times += static_cast<std::uint64_t>(std::max(1, std::popcount(lanes)));
  const std::uint64_t block = warp.block->linear;
  if (!fresh && found.block <= block) return nullptr;
  found.block = block;
  found.block_index = warp.block->index;
  found.thread = warp.index * kWarpLanes + static_cast<std::uint32_t>(lanes == 0 ? 0 : std::countr_zero(lanes));
  return &found;
}

void report(Warp& warp, std::uint32_t at, FindingKind kind, std::uint32_t lanes, const std::string& message) {
  FindingRecord* const found = record(warp, at, kind, lanes);
  if (found != nullptr) found->message = message;
}

void abort_launch(Warp& warp, LaunchStatus status) {
  Machine& machine = *warp.machine;
  if (machine.status == LaunchStatus::ok) machine.status = status;
  machine.stop = true;
  machine.launch->stop.store(true, std::memory_order_relaxed);
  warp.event = true;
}

namespace {

/// Goes on without the lanes where checks collect findings; the hardware would have stopped.
void refuse_access(Warp& warp, LaunchStatus status) {
  if (!warp.machine->checks.memory) return abort_launch(warp, status);
  if (warp.machine->status == LaunchStatus::ok) warp.machine->status = status;
}

}  // namespace

void bad_global_access(Warp& warp, const Instruction& in, std::uint32_t lanes, const std::uint64_t* addresses,
                       int bytes, Access access) {
  char address[32];
  std::snprintf(address, sizeof address, "0x%llx", static_cast<unsigned long long>(addresses[std::countr_zero(lanes)]));
  report(warp, warp.machine->index_of(in), FindingKind::out_of_bounds, lanes,
         dsv2::concat(verb(access), " of ", bytes, " bytes at ", address, ", which is no address of device memory"));
  refuse_access(warp, LaunchStatus::illegal_address);
}

void bad_shared_access(Warp& warp, const Instruction& in, std::uint32_t lanes, const std::uint64_t* offsets, int bytes,
                       Access access) {
  const auto offset = static_cast<std::int64_t>(offsets[std::countr_zero(lanes)]) - kSharedBase;
  report(warp, warp.machine->index_of(in), FindingKind::out_of_bounds, lanes,
         dsv2::concat(verb(access), " of ", bytes, " bytes at offset ", offset, " of the block's ",
                      warp.block->shared_end - kSharedBase, " bytes of shared memory"));
  refuse_access(warp, LaunchStatus::illegal_address);
}

void bad_local_access(Warp& warp, const Instruction& in, std::uint32_t lanes) {
  report(warp, warp.machine->index_of(in), FindingKind::out_of_bounds, lanes,
         dsv2::concat("access outside the thread's ", warp.local_bytes,
                      " bytes of local memory or the kernel's parameters"));
  refuse_access(warp, LaunchStatus::illegal_address);
}

void misaligned_access(Warp& warp, const Instruction& in, std::uint32_t lanes, const std::uint64_t* addresses,
                       int bytes) {
  const std::uint64_t address = addresses[std::countr_zero(lanes)];
  report(warp, warp.machine->index_of(in), FindingKind::misaligned, lanes,
         dsv2::concat("access of ", bytes, " bytes at an address that is ", address % static_cast<std::uint64_t>(bytes),
                      " beyond a multiple of ", bytes));
  refuse_access(warp, LaunchStatus::misaligned_address);
}

void note_touch(Warp& warp, std::uint64_t address, std::uint64_t bytes, Access access) {
  Machine& machine = *warp.machine;
  Launch& launch = *machine.launch;
  if (access != Access::read) launch.saved->save(address, bytes);
  // Narrow neighbours share a cell: where blocks meet in one, the run in order tells their bytes apart.
  const std::uint64_t offset = (address - machine.arena_base) & ~std::uint64_t{3};
  const std::uint64_t end = address - machine.arena_base + bytes;
  if (!machine.touches->touch(warp.block->linear, offset, (end - offset + 3) & ~std::uint64_t{3},
                              access != Access::read))
    return;
  // The launch ends here: it will run again, with its blocks in order.
  launch.blocks_met.store(true, std::memory_order_relaxed);
  abort_launch(warp, LaunchStatus::ok);
}

void observe_global(Warp& warp, const Instruction& in, Addresses& addresses, int bytes, Access access) {
  Machine& machine = *warp.machine;
  const std::uint32_t at = machine.index_of(in);
  if (machine.checks.any_global() && machine.launch->memory->has_shadow()) {
    check_global(warp, at, addresses, bytes, access);
    if (addresses.mask == 0) return;
  }
  if (machine.touches != nullptr) {
    note_touches(warp, addresses, bytes, access);
  } else if (machine.checks.global_races) {
    check_global_race(warp, in, addresses, bytes, access);
  }
  if (machine.counted) count_global(warp, at, addresses, bytes, access);
  if (machine.touched) touch_global(warp, addresses, bytes, access);
}

void observe_shared(Warp& warp, const Instruction& in, Addresses& offsets, int bytes, Access access) {
  Machine& machine = *warp.machine;
  const std::uint32_t at = machine.index_of(in);
  if (machine.counted) {
    count_shared(machine.memory_counts[at], offsets, bytes);
    if (access == Access::atomic)
      machine.memory_counts[at].atomics += static_cast<std::uint64_t>(std::popcount(offsets.mask));
  }
  check_shared(warp, in, offsets, bytes, access);
}

void check_shared(Warp& warp, const Instruction& in, const Addresses& offsets, int bytes, Access access) {
  const Machine& machine = *warp.machine;
  const std::uint32_t at = machine.index_of(in);
  Block& block = *warp.block;
  if (!block.cluster.empty()) {  // whose accesses cluster barriers order, which the race check does not know
    if (!block.shared_state.empty()) check_cluster_state(warp, at, offsets, bytes, access);
    return;
  }
  const bool pending = !block.shared_state.empty() && check_shared_state(warp, block, at, offsets, bytes, access);
  // What is not there yet has been told of.
  if (machine.checks.shared_races && !pending) check_shared_race(warp, in, offsets, bytes, access);
}

}  // namespace gpusim
