#include "gpusim/race.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "model/error.h"

namespace gpusim {
namespace {

// ---- shared memory
//
// A cell's last write and last read are tags: stamp, a bit, warp, lane. Stamps grow with every barrier of the block and
// every warp-level one, so that "before the last barrier" is one comparison, and a warp's cells are looked at in loops
// that vectorise: mostly all of them are older than the last barrier, and nothing else has to be asked.

constexpr std::uint32_t kLaneBits = 5;
constexpr std::uint32_t kWarpShift = kLaneBits;
constexpr std::uint32_t kFlagBit = 1u << 10;  ///< of a write: atomic; of a read: by several lanes of the warp
constexpr std::uint32_t kStampShift = 11;
constexpr std::uint32_t kLastStamp = (1u << (32 - kStampShift)) - 1;

std::uint32_t stamp_of(std::uint32_t tag) { return tag >> kStampShift; }
std::uint32_t warp_of(std::uint32_t tag) { return tag >> kWarpShift & 31u; }
std::uint32_t lane_of(std::uint32_t tag) { return tag & 31u; }

constexpr int kMostCells = 16;  ///< of a lane: 16 bytes one by one

/// The cells of one access, in the order of the lanes; neighbouring lanes at one cell are one entry.
struct Touched {
  bool contiguous = false;  ///< cell[i] is cell[0] + i
  std::uint32_t cell[kMostCells * kWarpLanes];
  std::uint32_t lane[kMostCells * kWarpLanes];  ///< with kFlagBit where several lanes touch it
  int count = 0;
};

/// The common patterns of single cells by all lanes: side by side, one cell, or the same twice in both half warps.
/// False where it is none of these.
bool touch_pattern(const Addresses& offsets, std::uint32_t cell_bytes, Touched& touched) {
  constexpr int kHalf = kWarpLanes / 2;
  alignas(64) std::uint32_t words[kWarpLanes];
  for (int l = 0; l < kWarpLanes; ++l) words[l] = static_cast<std::uint32_t>(offsets.at[l]) / cell_bytes;
  std::uint32_t not_repeated = 0;
  for (int l = 0; l < kHalf; ++l) not_repeated |= words[l] ^ words[l + kHalf];
  std::uint32_t not_uniform = 0;
  for (int l = 0; l < kHalf; ++l) not_uniform |= (words[l] ^ words[0]) | (words[l + kHalf] ^ words[kHalf]);
  if (not_uniform == 0) {
    touched.count = not_repeated == 0 ? 1 : 2;
    for (int half = 0; half < touched.count; ++half) {
      touched.cell[half] = words[half * kHalf];
      touched.lane[half] = static_cast<std::uint32_t>(half * kHalf) | kFlagBit;
    }
    return true;
  }
  const int count = not_repeated == 0 ? kHalf : kWarpLanes;
  std::uint32_t not_contiguous = 0;
  for (int l = 0; l < count; ++l) not_contiguous |= (words[l] - words[0]) ^ static_cast<std::uint32_t>(l);
  if (not_contiguous != 0) return false;
  touched.contiguous = true;
  touched.count = count;
  for (int l = 0; l < count; ++l) {
    touched.cell[l] = words[l];
    touched.lane[l] = static_cast<std::uint32_t>(l) | (not_repeated == 0 ? kFlagBit : 0u);
  }
  return true;
}

Touched touched_cells(const Addresses& offsets, int bytes, std::uint32_t cell_bytes) {
  Touched touched;
  const int cells = bytes / static_cast<int>(cell_bytes);
  if (cells == 1 && offsets.mask == 0xffffffffu && touch_pattern(offsets, cell_bytes, touched)) return touched;
  if (offsets.pattern == Pattern::unit) {
    const auto first = static_cast<std::uint32_t>(offsets.at[0]) / cell_bytes;
    touched.contiguous = true;
    touched.count = cells * kWarpLanes;
    for (int i = 0; i < touched.count; ++i) {
      touched.cell[i] = first + static_cast<std::uint32_t>(i);
      touched.lane[i] = static_cast<std::uint32_t>(i / cells);
    }
    return touched;
  }
  for_lanes(offsets.mask, [&](int lane) {
    const auto first = static_cast<std::uint32_t>(offsets.at[lane]) / cell_bytes;
    if (touched.count >= cells && touched.cell[touched.count - cells] == first) {
      for (int i = touched.count - cells; i < touched.count; ++i) touched.lane[i] |= kFlagBit;
      return;
    }
    for (int i = 0; i < cells; ++i) {
      touched.cell[touched.count] = first + static_cast<std::uint32_t>(i);
      touched.lane[touched.count++] = static_cast<std::uint32_t>(lane);
    }
  });
  return touched;
}

class SharedRace {
 public:
  SharedRace(Warp& warp, std::uint32_t at, std::uint32_t stamp, Access access)
      : warp_(warp),
        block_(*warp.block),
        at_(at),
        stamp_(stamp),
        access_(access),
        named_(warp.machine->program->named_barriers) {
    own_ordered_ = std::max(block_.ordered_stamp, warp.ordered_stamp);
  }

  void note(const Touched& touched) { access_ == Access::read ? note_reads(touched) : note_writes(touched); }

  void run(const Touched& touched) {
    if (access_ == Access::read) {
      if (named_ || any_recent_write(touched)) look_at_each(touched);
    } else {
      if (named_ || any_recent_write(touched) || any_recent_read(touched)) look_at_each(touched);
    }
    note(touched);
    report_lanes(FindingKind::shared_race, between_, other_, "with no barrier between");
    report_lanes(FindingKind::shared_race_in_warp, within_, other_within_,
                 "by another lane of the warp, with no __syncwarp between");
  }

 private:
  bool any_recent_write(const Touched& touched) const { return any_recent(block_.write_tags, touched); }
  bool any_recent_read(const Touched& touched) const { return any_recent(block_.read_tags, touched); }
  bool any_recent(const std::vector<std::uint32_t>& tags, const Touched& touched) const {
    const std::uint32_t oldest = (block_.ordered_stamp + 1) << kStampShift;
    std::uint32_t most = 0;
    if (touched.contiguous) {
      const std::uint32_t* const first = &tags[touched.cell[0]];
      for (int i = 0; i < touched.count; ++i) most = std::max(most, first[i]);
    } else {
      for (int i = 0; i < touched.count; ++i) most = std::max(most, tags[touched.cell[i]]);
    }
    return most >= oldest;
  }

  void look_at_each(const Touched& touched) {
    for (int i = 0; i < touched.count; ++i) {
      const std::uint32_t cell = touched.cell[i];
      const int lane = static_cast<int>(lane_of(touched.lane[i]));
      meet_write(lane, cell);
      if (access_ != Access::read) meet_reads(lane, cell);
    }
  }

  /// Whether what warp `other` did at `stamp` is ordered before this point.
  bool is_ordered(std::uint32_t other, std::uint32_t stamp) const {
    // Where barriers are named, ordered_stamp is the block's begin: what lies before may be of warps that it has not.
    return stamp <= block_.ordered_stamp || (named_ && stamp <= warp_.clocks[other]);
  }

  void between(int lane, std::uint32_t other_at) {
    if (between_ == 0) other_ = other_at;
    between_ |= 1u << lane;
  }
  void within(int lane, std::uint32_t other_at) {
    if (other_at == at_) return;  // one instruction: lanes in lockstep
    if (within_ == 0) other_within_ = other_at;
    within_ |= 1u << lane;
  }

  void meet_write(int lane, std::uint32_t cell) {
    const std::uint32_t tag = block_.write_tags[cell];
    if (tag == 0 || (access_ == Access::atomic && (tag & kFlagBit) != 0)) return;
    if (warp_of(tag) != warp_.index) {
      if (!is_ordered(warp_of(tag), stamp_of(tag))) between(lane, block_.write_at[cell]);
    } else if (lane_of(tag) != static_cast<std::uint32_t>(lane) && stamp_of(tag) > own_ordered_) {
      within(lane, block_.write_at[cell]);
    }
  }

  void meet_reads(int lane, std::uint32_t cell) {
    const std::uint32_t tag = block_.read_tags[cell];
    if (tag == 0) return;
    const std::uint32_t others = block_.readers[cell] & ~(1u << warp_.index);
    if (named_) {
      for_lanes(others, [&](int other) {
        const std::uint32_t stamp = block_.cell_reads[cell * block_.warps.size() + static_cast<std::size_t>(other)];
        if (!is_ordered(static_cast<std::uint32_t>(other), stamp)) between(lane, block_.read_at[cell]);
      });
    } else if (others != 0 && stamp_of(tag) > block_.ordered_stamp) {
      between(lane, block_.read_at[cell]);
    }
    const bool by_another_lane = (tag & kFlagBit) != 0 || lane_of(tag) != static_cast<std::uint32_t>(lane);
    if (warp_of(tag) == warp_.index && stamp_of(tag) > own_ordered_ && by_another_lane)
      within(lane, block_.read_at[cell]);
  }

  void note_writes(const Touched& touched) {
    const std::uint32_t tag =
        stamp_ << kStampShift | (access_ == Access::atomic ? kFlagBit : 0u) | warp_.index << kWarpShift;
    for (int i = 0; i < touched.count; ++i) {
      block_.write_tags[touched.cell[i]] = tag | lane_of(touched.lane[i]);
      block_.write_at[touched.cell[i]] = at_;
    }
  }

  void note_reads(const Touched& touched) {
    const std::uint32_t mine = stamp_ << kStampShift | warp_.index << kWarpShift;
    const std::uint32_t oldest = (block_.ordered_stamp + 1) << kStampShift;
    const std::uint32_t own_oldest = (own_ordered_ + 1) << kStampShift;
    const std::uint32_t bit = 1u << warp_.index;
    // Readers since the last barrier; in named mode all of them, with their own stamps beside.
    const std::uint32_t keep_all = named_ ? ~0u : 0u;
    const std::uint32_t own = warp_.index;
    const std::uint32_t at = at_;
    const auto note = [=](std::uint32_t lane, std::uint32_t& tag, std::uint32_t& readers, std::uint32_t& read_at) {
      const std::uint32_t old = tag;
      readers = (old >= oldest ? readers : readers & keep_all) | bit;
      const bool again = (old >= own_oldest) & (warp_of(old) == own);
      const bool several = again & (((old & kFlagBit) != 0) | (lane_of(old) != lane_of(lane)));
      tag = mine | lane | (several ? kFlagBit : 0u);
      read_at = at;
    };
    std::uint32_t* const tags = block_.read_tags.data();
    std::uint32_t* const readers = block_.readers.data();
    std::uint32_t* const read_at = block_.read_at.data();
    if (touched.contiguous) {
      const std::uint32_t first = touched.cell[0];
#pragma GCC ivdep
      for (int i = 0; i < touched.count; ++i)
        note(touched.lane[i], tags[first + i], readers[first + i], read_at[first + i]);
    } else {
      for (int i = 0; i < touched.count; ++i) {
        const std::uint32_t cell = touched.cell[i];
        note(touched.lane[i], tags[cell], readers[cell], read_at[cell]);
      }
    }
    if (!named_) return;
    for (int i = 0; i < touched.count; ++i) {
      block_.cell_reads[touched.cell[i] * block_.warps.size() + warp_.index] = stamp_;
    }
  }

  void report_lanes(FindingKind kind, std::uint32_t lanes, std::uint32_t other, std::string_view how) {
    if (lanes == 0) return;
    FindingRecord* const found = record(warp_, at_, kind, lanes);
    if (found == nullptr) return;
    found->other = other;
    found->warning = kind == FindingKind::shared_race_in_warp;
    found->message =
        dsv2::concat(access_ == Access::read ? "read" : "write", " of shared memory that is also touched ", how);
  }

  Warp& warp_;
  Block& block_;
  std::uint32_t at_;
  std::uint32_t stamp_;
  Access access_;
  bool named_;
  std::uint32_t own_ordered_ = 0;  ///< this warp's own accesses up to this stamp are ordered
  std::uint32_t between_ = 0;
  std::uint32_t within_ = 0;
  std::uint32_t other_ = 0;
  std::uint32_t other_within_ = 0;
};

}  // namespace

void replay_log(Block& block) {
  SharedLog& log = block.log;
  const std::size_t used = std::exchange(log.used, 0);
  Addresses offsets;
  for (std::size_t next = 0; next < used;) {
    LoggedAccess entry;
    std::memcpy(static_cast<void*>(&entry), &log.words[next], sizeof entry);
    const std::uint32_t* const from = &log.words[next + SharedLog::kHeader];
    const bool halves = (entry.form & kHalves) != 0;
    next += SharedLog::kHeader + (halves ? 2 : kWarpLanes);
    for (std::uint32_t l = 0; l < kWarpLanes; ++l) {
      const std::uint32_t half = l / 16;
      const bool steps = (entry.form & (half == 0 ? kFirstSteps : kSecondSteps)) != 0;
      offsets.at[l] = halves ? from[half] + (steps ? l % 16 * entry.bytes : 0) : from[l];
    }
    offsets.mask = entry.mask;
    Warp& warp = block.warps[entry.warp];
    SharedRace(warp, entry.at, entry.stamp, static_cast<Access>(entry.access))
        .note(touched_cells(offsets, entry.bytes, warp.machine->program->shared_cell_bytes));
  }
}

void start_race_check(Block& block, const Program& program) {
  const std::size_t cells = block.shared_end / program.shared_cell_bytes + 1;
  const std::size_t granules = (block.shared_end >> SharedLog::kGranuleShift) + 1;
  for (auto* const of_cells : {&block.write_tags, &block.read_tags, &block.write_at, &block.read_at, &block.readers}) {
    if (of_cells->size() < cells) of_cells->resize(cells);
  }
  const std::size_t reads = program.named_barriers ? cells * block.warps.size() : 0;
  if (block.cell_reads.size() < reads) block.cell_reads.resize(reads);
  for (auto* const of_granules : {&block.log.writes, &block.log.accesses}) {
    if (of_granules->size() < granules) of_granules->resize(granules);
  }
  block.log.words.resize(SharedLog::kMostWords);
  if (program.named_barriers) std::fill(block.readers.begin(), block.readers.end(), 0);
  // Half of the stamps are left for the block.
  if (block.stamp > kLastStamp / 2) block.stamp = kLastStamp;
  order_block(block, false);
}

void check_shared_race(Warp& warp, const Instruction& in, const Addresses& offsets, int bytes, Access access) {
  Block& block = *warp.block;
  const Machine& machine = *warp.machine;
  if (block.log.used != 0) replay_log(block);
  SharedRace(warp, machine.index_of(in), block.stamp, access)
      .run(touched_cells(offsets, bytes, machine.program->shared_cell_bytes));
  if (!machine.logs) return;
  for_lanes(offsets.mask, [&](int lane) {  // aligned: all of it lies in one granule
    const std::uint64_t granule = offsets.at[lane] >> SharedLog::kGranuleShift;
    block.log.accesses[granule] = block.stamp;
    if (access != Access::read) block.log.writes[granule] = block.stamp;
  });
}

void order_block(Block& block, bool named) {
  if (!named) {
    block.ordered_stamp = block.stamp;
    block.log.used = 0;
  }
  if (block.stamp < kLastStamp) {
    ++block.stamp;
    return;
  }
  // The stamps are used up. Where the whole block has met, nothing from before matters any more; else later accesses
  // share the last stamp, which can only hide a race.
  if (named) return;
  for (auto* const stamps : {&block.write_tags, &block.read_tags, &block.log.writes, &block.log.accesses})
    std::fill(stamps->begin(), stamps->end(), 0);
  std::fill(block.cell_reads.begin(), block.cell_reads.end(), 0);
  block.ordered_stamp = 0;
  block.stamp = 1;
  for (Warp& warp : block.warps) warp.ordered_stamp = 0;
}

void order_warp(Warp& warp) {
  warp.ordered_stamp = warp.block->stamp;
  if (warp.block->stamp < kLastStamp) ++warp.block->stamp;
}

namespace {

/// Writes that are asynchronous themselves need no fence towards asynchronous readers.
bool writes_asynchronously(const Program& program, std::uint32_t at) {
  const std::string_view key = program.facts[at].key;
  constexpr std::string_view kKinds[] = {"cp.async", "bulk.", "tensor.", "st.async"};
  return std::any_of(std::begin(kKinds), std::end(kKinds), [key](auto kind) { return key.starts_with(kind); });
}

/// Calls `visit` with each cell of a range of shared memory.
template <class Visit>
void for_cells(const Program& program, std::uint32_t offset, std::uint32_t bytes, Visit visit) {
  if (bytes == 0) return;
  const std::uint32_t each = program.shared_cell_bytes;
  for (std::uint32_t cell = offset / each; cell <= (offset + bytes - 1) / each; ++cell) visit(cell);
}

}  // namespace

void check_proxy_fence(Warp& warp, const Instruction& in, std::uint32_t lanes, std::uint32_t offset,
                       std::uint32_t bytes) {
  const Block& block = *warp.block;
  const Program& program = *warp.machine->program;
  std::int64_t writer = -1;
  std::int64_t asynchronous = -1;
  for_cells(program, offset, bytes, [&](std::uint32_t cell) {
    const std::uint32_t tag = block.write_tags[cell];
    if (stamp_of(tag) <= block.ordered_stamp || writer >= 0) return;  // another block's, or none
    if (stamp_of(tag) <= block.proxy_fences[warp_of(tag)]) return;
    const std::uint32_t at = block.write_at[cell];
    if (asynchronous == at) return;
    (writes_asynchronously(program, at) ? asynchronous : writer) = at;
  });
  if (writer < 0) return;
  FindingRecord* const found = record(warp, warp.machine->index_of(in), FindingKind::missing_fence, lanes);
  if (found == nullptr) return;
  found->other = writer;
  found->message =
      dsv2::concat("asynchronous read of shared memory that was written with no fence.proxy.async since, at offset ",
                   offset - kSharedBase);
}

void fence_proxy(Warp& warp) {
  Block& block = *warp.block;
  for (std::size_t i = 0; i < block.proxy_fences.size(); ++i) {
    block.proxy_fences[i] = std::max(block.proxy_fences[i], warp.clocks[i]);
  }
  block.proxy_fences[warp.index] = block.stamp;
  order_block(block, true);
}

bool check_overwritten(Warp& warp, std::uint32_t copy_at, std::uint32_t stamp, std::uint32_t offset,
                       std::uint32_t bytes, bool by_itself) {
  Block& block = *warp.block;
  std::int64_t last = -1;
  for_cells(*warp.machine->program, offset, bytes, [&](std::uint32_t cell) {
    const std::uint32_t tag = block.write_tags[cell];
    if (stamp_of(tag) <= std::max(stamp, block.ordered_stamp) || last == block.write_at[cell]) return;
    if (by_itself && warp_of(tag) != warp.index) return;
    last = block.write_at[cell];
    Warp& writer = block.warps[warp_of(tag)];
    FindingRecord* const found =
        record(writer, block.write_at[cell], FindingKind::async_copy_not_waited, 1u << lane_of(tag));
    if (found == nullptr) return;
    found->other = copy_at;
    found->message = "write of shared memory that an asynchronous copy or product is still to read";
  });
  return last >= 0;
}

namespace {

constexpr std::uint32_t kOrderedBit = 0x80000000u;

std::uint16_t saturated(std::size_t value) { return static_cast<std::uint16_t>(std::min<std::size_t>(value, 0xffff)); }

class GlobalRace {
 public:
  GlobalRace(Warp& warp, const Instruction& in, Access access)
      : warp_(warp),
        order_(*warp.machine->launch->order),
        at_(warp.machine->index_of(in)),
        base_(order_.base),
        block_(base_ + 1 + static_cast<std::uint32_t>(warp.block->linear)),
        writes_(access != Access::read),
        ordered_(access == Access::atomic || (in.flags & kOrdered) != 0) {
    if (ordered_) acquired() = ++order_.clock;
    epoch_ = saturated(epoch());
    releases_ = ordered_ && writes_ && (in.flags & kReleases) != 0;
  }

  void touch(int lane, GlobalCell& cell) {
    const std::uint32_t writer = cell.writer & ~kOrderedBit;
    if (writer > base_ && writer != block_) {
      const bool both_ordered = ordered_ && (cell.writer & kOrderedBit) != 0;
      if (!both_ordered && !is_ordered(writer, cell.write_epoch)) meet(lane, cell.write_at, writer);
    }
    if (writes_) {
      const bool read_by_others = cell.reader >= base_ && cell.reader != block_;
      if (read_by_others && !ordered_ && !readers_ordered(cell)) meet(lane, cell.read_at, cell.reader);
      cell.writer = block_ | (ordered_ ? kOrderedBit : 0u);
      cell.write_at = saturated(at_);
      cell.write_epoch = epoch_;
    } else if (!ordered_ && cell.reader != base_) {
      cell.reader = cell.reader < base_ || cell.reader == block_ ? block_ : base_;
      cell.read_at = saturated(at_);
      cell.read_epoch = epoch_;
    }
  }

  void finish() {
    if (releases_) ++epoch();
    if (ordered_ && writes_) publish();
    if (lanes_ == 0) return;
    FindingRecord* const found = record(warp_, at_, FindingKind::global_race, lanes_);
    if (found == nullptr) return;
    if (other_at_ != kFarInstruction) found->other = other_at_;
    const std::string who =
        other_block_ == base_ ? std::string("several blocks") : dsv2::concat("block number ", other_block_ - base_ - 1);
    found->message =
        dsv2::concat(writes_ ? "write" : "read", " of global memory that ", who, " of the launch also touched");
  }

 private:
  std::uint32_t& epoch() { return order_.epochs[block_ - base_ - 1]; }
  void publish() {
    const std::uint64_t now = ++order_.clock;
    order_.published[block_ - base_ - 1].resize(epoch(), now);
  }
  std::uint64_t& acquired() { return order_.acquired[block_ - base_ - 1]; }

  /// Whether `other` published what it did in `epoch` before this block's last acquisition.
  bool is_ordered(std::uint32_t other, std::uint32_t epoch) {
    const auto& times = order_.published[other - base_ - 1];
    return epoch < times.size() && times[epoch] < acquired();
  }
  bool readers_ordered(const GlobalCell& cell) {
    // Several readers: each would have to be asked; a block that has synchronised with others is believed.
    if (cell.reader == base_) return acquired() != 0;
    return is_ordered(cell.reader, cell.read_epoch);
  }

  void meet(int lane, std::uint16_t at, std::uint32_t block) {
    if (lanes_ == 0) {
      other_at_ = at;
      other_block_ = block;
    }
    lanes_ |= 1u << lane;
  }

  Warp& warp_;
  GlobalOrder& order_;
  std::uint32_t at_;
  std::uint32_t base_;
  std::uint32_t block_;
  bool writes_;
  bool ordered_;
  bool releases_ = false;
  std::uint16_t epoch_ = 0;
  std::uint32_t lanes_ = 0;
  std::uint16_t other_at_ = 0;
  std::uint32_t other_block_ = 0;
};

}  // namespace

void check_global_race(Warp& warp, const Instruction& in, const Addresses& addresses, int bytes, Access access) {
  const Machine& machine = *warp.machine;
  GlobalRace race(warp, in, access);
  GlobalCell* const cells = machine.launch->global_cells;
  const std::uint32_t cell_bytes = machine.program->global_cell_bytes;
  const auto cell_of = [&](int lane) { return cells + (addresses.at[lane] - machine.arena_base) / cell_bytes; };
  const int each = std::max(1, bytes / static_cast<int>(cell_bytes));
  if (addresses.pattern == Pattern::uniform) {
    for (int i = 0; i < each; ++i) race.touch(0, cell_of(0)[i]);
  } else {
    for_lanes(addresses.mask, [&](int lane) {
      GlobalCell* const first = cell_of(lane);
      for (int i = 0; i < each; ++i) race.touch(lane, first[i]);
    });
  }
  race.finish();
}

void order_globally(Warp& warp) {
  if (!warp.machine->checks.global_races || warp.machine->touches != nullptr) return;
  ++warp.machine->launch->order->epochs[warp.block->linear];
}

}  // namespace gpusim
