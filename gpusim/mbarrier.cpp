#include "gpusim/mbarrier.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "gpusim/bulk_copy.h"
#include "gpusim/interpreter.h"
#include "gpusim/race.h"
#include "model/error.h"

namespace gpusim {
namespace {

constexpr std::uint32_t kObjectBytes = 8;
/// Failed test_waits of a warp in a row after which it waits until somebody gets on: a loop around it may be endless.
constexpr std::uint32_t kPatientTests = 64;

// The object's 8 bytes: pending and expected arrivals, bytes, parity, a mark. They are what states (arrive's results)
// look like, and tell when the object was overwritten.
constexpr int kExpectedShift = 20;
constexpr int kBytesShift = 40;
constexpr int kParityShift = 61;
constexpr std::uint64_t kMark = std::uint64_t{2} << 62;
constexpr std::uint64_t kBytesMask = (std::uint64_t{1} << (kParityShift - kBytesShift)) - 1;

std::uint64_t word_of(const Mbarrier& barrier) {
  return kMark | std::uint64_t{barrier.phase & 1u} << kParityShift |
         (static_cast<std::uint64_t>(barrier.bytes) & kBytesMask) << kBytesShift |
         std::uint64_t{barrier.expected} << kExpectedShift | barrier.pending;
}

void store_word(Block& block, const Mbarrier& barrier) {
  const std::uint64_t word = word_of(barrier);
  std::memcpy(block.shared.data() + barrier.offset, &word, sizeof word);
}

bool is_intact(const Block& block, const Mbarrier& barrier) {
  std::uint64_t word = 0;
  std::memcpy(&word, block.shared.data() + barrier.offset, sizeof word);
  return word == word_of(barrier);
}

void misuse(Warp& warp, const Instruction& in, int lane, const std::string& what) {
  report(warp, warp.machine->index_of(in), FindingKind::mbarrier_misuse, 1u << lane, what);
}

std::string name_of(const Mbarrier& barrier) {
  return dsv2::concat("the mbarrier at offset ", barrier.offset - kSharedBase);
}

/// An object that cannot lie where `place` says.
void complain_of_place(Warp& warp, const Instruction& in, int lane, const SharedPlace& place, bool outside) {
  std::uint64_t offsets[kWarpLanes] = {};
  offsets[lane] = place.offset;
  if (outside) return bad_shared_access(warp, in, 1u << lane, offsets, kObjectBytes, Access::atomic);
  misaligned_access(warp, in, 1u << lane, offsets, kObjectBytes);
}

/// Whether the object may lie where `place` says; complains where not.
bool check_place(Warp& warp, const Instruction& in, int lane, const SharedPlace& place) {
  const bool outside =
      place.block == nullptr || place.offset < kSharedBase || place.offset + kObjectBytes > place.block->shared_end;
  if (outside || place.offset % kObjectBytes != 0) {
    complain_of_place(warp, in, lane, place, outside);
    return false;
  }
  if (place.block->live == 0 && warp.machine->checks.barriers) {
    misuse(warp, in, lane, "the mbarrier is one of a block of the cluster that has exited");
    return false;
  }
  return true;
}

/// For the race check: the object as a word that is written, or counted in as an atomic does.
void note_access(Warp& warp, const Instruction& in, int lane, const SharedPlace& place, Access access) {
  if (place.block != warp.block) return;
  Addresses at;
  at.mask = 1u << lane;
  at.at[lane] = place.offset;
  if (access == Access::write) {
    check_shared(warp, in, at, kObjectBytes, access);
  } else if (tracks_warps(*warp.block)) {
    check_shared_race(warp, in, at, kObjectBytes, access);
  }
}

void join(std::vector<std::uint32_t>& into, const std::vector<std::uint32_t>& from) {
  into.resize(std::max(into.size(), from.size()), 0);
  for (std::size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

/// What the warp has done so far is ordered before whoever sees the phase complete.
void release(Warp& warp, const Block& block, Mbarrier& barrier) {
  if (&block != warp.block || !tracks_warps(block)) return;
  join(barrier.clocks, warp.clocks);
  barrier.clocks[warp.index] = block.stamp;
}

/// And here it is seen.
void acquire(Warp& warp, const Mbarrier& barrier) {
  if (!tracks_warps(*warp.block) || barrier.released.empty()) return;
  join(warp.clocks, barrier.released);
  warp.ordered_stamp = std::max(warp.ordered_stamp, barrier.released[warp.index]);
}

void write_predicate(Warp& warp, std::int32_t slot, std::uint32_t mask, bool value) {
  if (slot < 0) return;
  std::uint32_t old = 0;
  std::memcpy(&old, warp.base + slot, sizeof old);
  old = (old & ~mask) | (value ? mask : 0);
  std::memcpy(warp.base + slot, &old, sizeof old);
}

/// Goes on to the next phase where this one waits for nothing more.
void advance(Machine& machine, Block& block, Mbarrier& barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    ++barrier.phase;
    barrier.pending = barrier.expected;
    barrier.released = barrier.clocks;
    ++machine.completions;
    for (Warp& warp : block.warps) {
      for (Group& group : warp.others) {
        if (group.wait != Wait::mbarrier || static_cast<std::uint32_t>(group.barrier) != barrier.offset) continue;
        if ((barrier.phase & 1u) == group.parity) continue;
        group.wait = Wait::none;
        write_predicate(warp, group.result, group.mask, true);
        if ((machine.code[group.at].mode & kMbarrierRelaxed) == 0) acquire(warp, barrier);
      }
    }
  }
  store_word(block, barrier);
}

void add_bytes(Warp& warp, const Instruction& in, int lane, Mbarrier& barrier, std::int64_t bytes) {
  barrier.bytes += bytes;
  if (std::abs(barrier.bytes) <= std::int64_t{kMostMbarrierCount}) return;
  misuse(warp, in, lane,
         dsv2::concat(name_of(barrier), " counts ", barrier.bytes, " bytes, beyond the ", kMostMbarrierCount,
                      " that it can"));
  barrier.bytes = 0;
}

/// `count` arrivals of one lane. False, with a complaint, where the phase does not wait for so many.
bool count_arrivals(Warp& warp, const Instruction& in, int lane, Block& block, Mbarrier& barrier, std::uint32_t count) {
  const bool incomplete = (in.mode & kMbarrierIncomplete) != 0;
  // The phase may only wait for copies that have not been looked for yet.
  if (count > barrier.pending) perform_bulk_copies(block, barrier);
  if (count == 0 || count > barrier.pending || (incomplete && count == barrier.pending)) {
    misuse(warp, in, lane,
           dsv2::concat(count, count == 1 ? " arrival at " : " arrivals at ", name_of(barrier),
                        ", whose phase waits for ", barrier.pending, " of ", barrier.expected,
                        count == barrier.pending ? ": .noComplete must not complete it" : ""));
    return false;
  }
  barrier.pending -= count;
  if ((in.mode & kMbarrierDrops) != 0) barrier.expected -= std::min(barrier.expected, count);
  return true;
}

void write_state(Warp& warp, const Instruction& in, int lane, std::uint64_t state) {
  if (in.d >= 0) std::memcpy(warp.base + in.d + 8 * lane, &state, sizeof state);
}

// ---- the instructions

void init(Warp& warp, const Instruction& in) {
  for_lanes(warp.exec, [&](int lane) {
    const SharedPlace place = locate_shared(warp, shared_address(warp, in, lane));
    if (!check_place(warp, in, lane, place)) return;
    if (place.block != warp.block) return misuse(warp, in, lane, "mbarrier.init of another block's shared memory");
    const auto count = static_cast<std::uint32_t>(read_slot(warp, in.b, lane, 4));
    if (count < 1 || count > kMostMbarrierCount) {
      return misuse(warp, in, lane, dsv2::concat("mbarrier.init with a count of ", count, ", not 1 to 2^20 - 1"));
    }
    Block& block = *place.block;
    Mbarrier* barrier = find_mbarrier(block, place.offset);
    if (barrier != nullptr && is_intact(block, *barrier)) {
      misuse(warp, in, lane, dsv2::concat("mbarrier.init of ", name_of(*barrier), " again, without mbarrier.inval"));
    }
    if (barrier == nullptr) barrier = &block.mbarriers.emplace_back();
    *barrier = Mbarrier{.offset = place.offset,
                        .expected = count,
                        .pending = count,
                        .at = warp.machine->index_of(in),
                        .clocks = {},
                        .released = {}};
    note_access(warp, in, lane, place, Access::write);
    store_word(block, *barrier);
  });
}

void invalidate(Warp& warp, const Instruction& in) {
  for_lanes(warp.exec, [&](int lane) {
    const SharedPlace place = locate_shared(warp, shared_address(warp, in, lane));
    const Mbarrier* const barrier = usable_mbarrier(warp, in, lane, place);
    if (barrier == nullptr) return;
    if (is_awaited(*place.block, *barrier)) {
      misuse(warp, in, lane, dsv2::concat("mbarrier.inval of ", name_of(*barrier), ", at which threads wait"));
    }
    note_access(warp, in, lane, place, Access::write);
    std::erase_if(place.block->mbarriers, [&](const Mbarrier& other) { return other.offset == place.offset; });
  });
}

/// arrive, arrive_drop, expect_tx, complete_tx.
void arrive(Warp& warp, const Instruction& in) {
  for_lanes(warp.exec, [&](int lane) {
    const SharedPlace place = locate_shared(warp, shared_address(warp, in, lane));
    Mbarrier* const barrier = usable_mbarrier(warp, in, lane, place);
    if (barrier == nullptr) return write_state(warp, in, lane, 0);
    note_access(warp, in, lane, place, Access::atomic);
    const std::uint64_t state = word_of(*barrier);
    const bool arrives = (in.mode & kMbarrierNoArrival) == 0;
    const std::uint32_t value = in.b >= 0 ? static_cast<std::uint32_t>(read_slot(warp, in.b, lane, 4)) : 1;
    if ((in.mode & kMbarrierExpects) != 0) add_bytes(warp, in, lane, *barrier, value);
    if (!arrives && (in.mode & kMbarrierExpects) == 0) add_bytes(warp, in, lane, *barrier, -std::int64_t{value});
    if (arrives) {
      if ((in.mode & kMbarrierRelaxed) == 0) release(warp, *place.block, *barrier);
      count_arrivals(warp, in, lane, *place.block, *barrier, (in.mode & kMbarrierExpects) != 0 ? 1 : value);
    }
    write_state(warp, in, lane, state);
    advance(*warp.machine, *place.block, *barrier);
  });
  if (tracks_warps(*warp.block)) order_block(*warp.block, true);
}

/// Lanes of the warp that wait for the same as the lowest of `left`.
struct SameWait {
  std::uint64_t address = 0;
  std::uint32_t parity = 0;
  std::uint32_t lanes = 0;
};
SameWait same_wait(const Warp& warp, const Instruction& in, std::uint32_t left) {
  const auto parity_of = [&](int lane) -> std::uint32_t {
    if ((in.mode & kMbarrierParity) != 0) return static_cast<std::uint32_t>(read_slot(warp, in.c, lane, 4)) & 1u;
    return static_cast<std::uint32_t>(read_slot(warp, in.c, lane, 8) >> kParityShift) & 1u;
  };
  const int first = std::countr_zero(left);
  SameWait same{.address = shared_address(warp, in, first), .parity = parity_of(first)};
  for_lanes(left, [&](int lane) {
    const bool is_same = shared_address(warp, in, lane) == same.address && parity_of(lane) == same.parity;
    same.lanes |= static_cast<std::uint32_t>(is_same) << lane;
  });
  return same;
}

/// try_wait suspends; test_wait comes back at once, unless it does nothing else any more.
template <bool kTries>
void wait(Warp& warp, const Instruction& in) {
  const std::uint32_t asking = warp.exec;
  std::uint32_t complete = 0;
  std::uint32_t failed = 0;
  for (std::uint32_t left = asking; left != 0;) {
    const SameWait same = same_wait(warp, in, left);
    left &= ~same.lanes;
    const int lane = std::countr_zero(same.lanes);
    const SharedPlace place = locate_shared(warp, same.address);
    Mbarrier* const barrier = usable_mbarrier(warp, in, lane, place);
    if (barrier != nullptr && place.block != warp.block) {
      misuse(warp, in, lane, "a wait at an mbarrier of another block");
    }
    if (barrier == nullptr || place.block != warp.block) {  // goes on, as waiting would lead nowhere
      complete |= same.lanes;
      continue;
    }
    note_access(warp, in, lane, place, Access::atomic);
    const auto is_complete = [&] { return (barrier->phase & 1u) != same.parity; };
    if (!is_complete()) perform_bulk_copies(*place.block, *barrier);
    if (is_complete()) {
      if ((in.mode & kMbarrierRelaxed) == 0) acquire(warp, *barrier);
      complete |= same.lanes;
    } else if (kTries || warp.failed_tests >= kPatientTests) {
      stop_lanes(warp, {.pc = warp.pc,
                        .mask = same.lanes,
                        .wait = Wait::mbarrier,
                        .barrier = static_cast<int>(barrier->offset),
                        .result = in.d,
                        .at = warp.machine->index_of(in),
                        .parity = same.parity});
    } else {
      failed |= same.lanes;
    }
  }
  warp.failed_tests = failed != 0 ? warp.failed_tests + 1 : 0;
  write_predicate(warp, in.d, asking & ~complete, false);
  write_predicate(warp, in.d, complete, true);
  if (failed != 0) {
    warp.yield = true;
    warp.event = true;
  }
}

void pending_count(Warp& warp, const Instruction& in) {
  for_lanes(warp.exec, [&](int lane) {
    const auto count = static_cast<std::uint32_t>(read_slot(warp, in.a, lane, 8)) & kMostMbarrierCount;
    std::memcpy(warp.base + in.d + 4 * lane, &count, sizeof count);
  });
}

/// The rank of the block whose shared memory an address lies in.
void block_rank(Warp& warp, const Instruction& in) {
  for_lanes(warp.exec, [&](int lane) {
    const std::uint64_t address = read_slot(warp, in.a, lane, in.address_bytes) & 0xffffffffu;
    const auto& cluster = warp.block->cluster;
    auto rank = static_cast<std::uint32_t>(address >> kClusterRankShift);
    if (rank == 0)
      rank = static_cast<std::uint32_t>(std::find(cluster.begin(), cluster.end(), warp.block) - cluster.begin()) + 1;
    rank = cluster.empty() ? 0 : rank - 1;
    std::memcpy(warp.base + in.d + 4 * lane, &rank, sizeof rank);
  });
}

}  // namespace

std::uint64_t read_slot(const Warp& warp, std::int32_t slot, int lane, int bytes) {
  std::uint64_t value = 0;
  std::memcpy(&value, warp.base + slot + bytes * lane, static_cast<std::size_t>(bytes));
  return value;
}

std::uint64_t shared_address(const Warp& warp, const Instruction& in, int lane) {
  const std::uint64_t base = read_slot(warp, in.a, lane, in.address_bytes);
  return (base + static_cast<std::uint64_t>(in.immediate)) & 0xffffffffu;
}

SharedPlace locate_shared(const Warp& warp, std::uint64_t address) {
  const std::uint64_t rank = (address & 0xffffffffu) >> kClusterRankShift;
  const auto offset = static_cast<std::uint32_t>(address & ((1u << kClusterRankShift) - 1));
  if (rank == 0) return {warp.block, offset};
  if (rank > warp.block->cluster.size()) return {nullptr, offset};
  return {warp.block->cluster[rank - 1], offset};
}

Mbarrier* find_mbarrier(Block& block, std::uint32_t offset) {
  for (Mbarrier& barrier : block.mbarriers) {
    if (barrier.offset == offset) return &barrier;
  }
  return nullptr;
}

Mbarrier* usable_mbarrier(Warp& warp, const Instruction& in, int lane, const SharedPlace& place) {
  if (!check_place(warp, in, lane, place)) return nullptr;
  Mbarrier* const barrier = find_mbarrier(*place.block, place.offset);
  if (barrier == nullptr) {
    misuse(warp, in, lane,
           dsv2::concat("no mbarrier has been initialised at offset ", place.offset - kSharedBase,
                        " of the block's shared memory"));
    return nullptr;
  }
  if (!is_intact(*place.block, *barrier)) {
    misuse(warp, in, lane, dsv2::concat(name_of(*barrier), " has been overwritten"));
    store_word(*place.block, *barrier);
  }
  return barrier;
}

void expect_arrivals(Block& block, Mbarrier& barrier, std::uint32_t count) {
  barrier.pending += count;
  store_word(block, barrier);
}

bool is_awaited(const Block& block, const Mbarrier& barrier) {
  return std::any_of(block.warps.begin(), block.warps.end(), [&](const Warp& warp) {
    return std::any_of(warp.others.begin(), warp.others.end(), [&](const Group& group) {
      return group.wait == Wait::mbarrier && static_cast<std::uint32_t>(group.barrier) == barrier.offset;
    });
  });
}

void complete_bytes(Warp& warp, std::uint32_t at, Block& block, Mbarrier& barrier, std::uint32_t bytes,
                    std::uint32_t stamp) {
  if (warp.block == &block && tracks_warps(block) && stamp != 0) {
    barrier.clocks.resize(block.warps.size(), 0);
    barrier.clocks[warp.index] = std::max(barrier.clocks[warp.index], stamp);
  }
  add_bytes(warp, warp.machine->code[at], 0, barrier, -std::int64_t{bytes});
  advance(*warp.machine, block, barrier);
}

void arrive_after_copies(Warp& warp, const Instruction& in, Block& block, Mbarrier& barrier, std::uint32_t lanes) {
  release(warp, block, barrier);
  for_lanes(lanes, [&](int lane) { count_arrivals(warp, in, lane, block, barrier, 1); });
  advance(*warp.machine, block, barrier);
  if (tracks_warps(block)) order_block(block, true);
}

std::string mbarrier_state(Block& block, const Group& group) {
  const Mbarrier* const barrier = find_mbarrier(block, static_cast<std::uint32_t>(group.barrier));
  if (barrier == nullptr) return {};
  std::string result =
      dsv2::concat(" for the phase of parity ", group.parity, " of ", name_of(*barrier), ": ", barrier->pending, " of ",
                   barrier->expected, " arrivals are missing, and ", std::abs(barrier->bytes), " bytes ");
  return result + (barrier->bytes >= 0 ? "of copies" : "more came than were expected");
}

bool expire_waits(std::span<Block* const> blocks) {
  bool any = false;
  for (Block* const block : blocks) {
    for (Warp& warp : block->warps) {
      for (Group& group : warp.others) {
        if (group.wait != Wait::mbarrier) continue;
        group.wait = Wait::none;
        any = true;
      }
    }
  }
  return any;
}

void register_mbarriers(HandlerRegistry& registry) {
  add_handler(registry, "mbarrier.init", "", init);
  add_handler(registry, "mbarrier.inval", "", invalidate);
  add_handler(registry, "mbarrier.arrive", "", arrive);
  add_handler(registry, "mbarrier.test_wait", "", wait<false>);
  add_handler(registry, "mbarrier.try_wait", "", wait<true>);
  add_handler(registry, "mbarrier.pending_count", "", pending_count);
  add_handler(registry, "getctarank", "", block_rank);
}

}  // namespace gpusim
