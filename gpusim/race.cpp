#include "gpusim/race.h"

#include <algorithm>
#include <bit>

#include "model/error.h"

namespace gpusim {
namespace {

template <class Visit>
void for_lanes(std::uint32_t mask, Visit visit) {
  for (; mask != 0; mask &= mask - 1) visit(std::countr_zero(mask));
}

constexpr std::uint32_t kAtomicBit = 0x80000000u;

/// Races met by one warp's access of shared memory.
class SharedRace {
 public:
  SharedRace(Warp& warp, std::uint32_t at, Access access)
      : warp_(warp), block_(*warp.block), at_(at), access_(access), named_(warp.machine->program->named_barriers) {}

  /// Looks at one cell, and notes the access in it. `narrow`: less than the cell's 4 bytes, so that lanes that differ
  /// may be in different bytes.
  void touch(int lane, std::uint32_t index, bool narrow) {
    SharedCell& cell = block_.cells[index];
    meet_write(lane, cell, narrow);
    if (access_ != Access::read) meet_reads(lane, cell, index, narrow);
    note(lane, cell, index);
  }

  void finish() {
    report_lanes(FindingKind::shared_race, between_, other_, "with no barrier between");
    report_lanes(FindingKind::shared_race_in_warp, within_, other_within_,
                 "by another lane of the warp, with no __syncwarp between");
  }

 private:
  /// Whether what warp `other` did at `stamp` is ordered before this point.
  bool is_ordered(std::uint32_t other, std::uint32_t stamp) const {
    return named_ ? stamp <= warp_.clocks[other] : stamp < block_.stamp;
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

  void meet_write(int lane, const SharedCell& cell, bool narrow) {
    if (cell.write_stamp == 0 || (access_ == Access::atomic && cell.atomic)) return;
    if (cell.writer != warp_.index) {
      if (!is_ordered(cell.writer, cell.write_stamp) && !narrow) between(lane, cell.write_at);
    } else if (cell.write_lane != lane && cell.write_stamp == block_.stamp && cell.write_syncs == syncs() && !narrow) {
      within(lane, cell.write_at);
    }
  }

  void meet_reads(int lane, const SharedCell& cell, std::uint32_t index, bool narrow) {
    if (cell.read_stamp == 0 || narrow) return;
    const std::uint32_t others = cell.readers & ~(1u << warp_.index);
    if (named_) {
      for_lanes(others, [&](int other) {
        const std::uint32_t stamp = block_.cell_reads[index * block_.warps.size() + static_cast<std::size_t>(other)];
        if (!is_ordered(static_cast<std::uint32_t>(other), stamp)) between(lane, cell.read_at);
      });
    } else if (others != 0 && cell.read_stamp == block_.stamp) {
      between(lane, cell.read_at);
    }
    const bool own =
        (cell.readers >> warp_.index & 1u) != 0 && cell.read_stamp == block_.stamp && cell.read_syncs == syncs();
    if (own && cell.last_reader == warp_.index && (cell.many_lanes || cell.read_lane != lane))
      within(lane, cell.read_at);
  }

  void note(int lane, SharedCell& cell, std::uint32_t index) {
    if (access_ != Access::read) {
      cell.write_stamp = block_.stamp;
      cell.write_at = at_;
      cell.writer = static_cast<std::uint8_t>(warp_.index);
      cell.write_lane = static_cast<std::uint8_t>(lane);
      cell.write_syncs = syncs();
      cell.atomic = access_ == Access::atomic;
      return;
    }
    const bool same = cell.read_stamp == block_.stamp && cell.last_reader == warp_.index && cell.read_syncs == syncs();
    cell.many_lanes = same && (cell.many_lanes || cell.read_lane != lane);
    if (!named_ && cell.read_stamp != block_.stamp) cell.readers = 0;
    cell.readers |= 1u << warp_.index;
    cell.last_reader = static_cast<std::uint8_t>(warp_.index);
    cell.read_stamp = block_.stamp;
    cell.read_at = at_;
    cell.read_lane = static_cast<std::uint8_t>(lane);
    cell.read_syncs = syncs();
    if (named_) block_.cell_reads[index * block_.warps.size() + warp_.index] = block_.stamp;
  }

  std::uint16_t syncs() const { return static_cast<std::uint16_t>(warp_.warp_syncs); }

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
  Access access_;
  bool named_;
  std::uint32_t between_ = 0;
  std::uint32_t within_ = 0;
  std::uint32_t other_ = 0;
  std::uint32_t other_within_ = 0;
};

}  // namespace

void check_shared_race(Warp& warp, const Instruction& in, const Addresses& offsets, int bytes, Access access) {
  SharedRace race(warp, warp.machine->index_of(in), access);
  const int cells = std::max(1, bytes / 4);
  for_lanes(offsets.mask, [&](int lane) {
    const auto first = static_cast<std::uint32_t>(offsets.at[lane] / 4);
    for (int i = 0; i < cells; ++i) race.touch(lane, first + static_cast<std::uint32_t>(i), bytes < 4);
  });
  race.finish();
}

namespace {

class GlobalRace {
 public:
  GlobalRace(Warp& warp, const Instruction& in, Access access)
      : warp_(warp),
        order_(*warp.machine->launch->order),
        at_(warp.machine->index_of(in)),
        block_(static_cast<std::uint32_t>(warp.block->linear) + 1),
        access_(access),
        ordered_(access == Access::atomic || (in.flags & kOrdered) != 0) {
    if (!ordered_) return;
    ++order_.clock;
    order_.acquired[block_ - 1] = order_.clock;
  }

  void touch(int lane, GlobalCell& cell) {
    const bool writes = access_ != Access::read;
    const bool both_ordered = ordered_ && (cell.write_at & kAtomicBit) != 0;
    if (cell.writer != 0 && cell.writer != block_ && !both_ordered && !is_ordered(cell.writer, cell.write_release)) {
      meet(lane, cell.write_at & ~kAtomicBit, cell.writer);
    }
    if (writes && !ordered_ && cell.reader != 0 && cell.reader != block_ && !readers_ordered(cell)) {
      meet(lane, cell.read_at, cell.reader);
    }
    note(cell, writes);
  }

  void finish() {
    if (ordered_) order_.releases[block_ - 1].push_back(++order_.clock);
    if (lanes_ == 0) return;
    FindingRecord* const found = record(warp_, at_, FindingKind::global_race, lanes_);
    if (found == nullptr) return;
    found->other = other_at_;
    found->message = dsv2::concat(
        access_ == Access::read ? "read" : "write", " of global memory that ",
        other_block_ == kManyReaders ? std::string("several blocks") : dsv2::concat("block number ", other_block_ - 1),
        " of the launch also touched");
  }

 private:
  /// Whether `other` released what it did after `release` releases, before this block's last acquisition.
  bool is_ordered(std::uint32_t other, std::uint32_t release) const {
    const auto& times = order_.releases[other - 1];
    return release < times.size() && times[release] < order_.acquired[block_ - 1];
  }
  bool readers_ordered(const GlobalCell& cell) const {
    // Several readers: each would have to be asked; a block that has synchronised with others is believed.
    if (cell.reader == kManyReaders) return order_.acquired[block_ - 1] != 0;
    return is_ordered(cell.reader, cell.read_release);
  }

  void meet(int lane, std::uint32_t at, std::uint32_t block) {
    if (lanes_ == 0) {
      other_at_ = at;
      other_block_ = block;
    }
    lanes_ |= 1u << lane;
  }

  void note(GlobalCell& cell, bool writes) {
    const auto release = static_cast<std::uint32_t>(order_.releases[block_ - 1].size());
    if (writes) {
      cell.writer = block_;
      cell.write_at = at_ | (ordered_ ? kAtomicBit : 0u);
      cell.write_release = release;
    } else if (!ordered_) {
      cell.reader = cell.reader == 0 || cell.reader == block_ ? block_ : kManyReaders;
      cell.read_at = at_;
      cell.read_release = release;
    }
  }

  Warp& warp_;
  GlobalOrder& order_;
  std::uint32_t at_;
  std::uint32_t block_;
  Access access_;
  bool ordered_;
  std::uint32_t lanes_ = 0;
  std::uint32_t other_at_ = 0;
  std::uint32_t other_block_ = 0;
};

}  // namespace

void check_global_race(Warp& warp, const Instruction& in, const Addresses& addresses, int bytes, Access access) {
  const Machine& machine = *warp.machine;
  GlobalRace race(warp, in, access);
  const int cells = std::max(1, bytes / 4);
  // Narrow neighbours share a cell: blocks that write different bytes of it do not race. Such accesses are not tracked.
  if (bytes >= 4) {
    for_lanes(addresses.mask, [&](int lane) {
      GlobalCell* const first = machine.launch->global_cells + (addresses.at[lane] - machine.arena_base) / 4;
      for (int i = 0; i < cells; ++i) race.touch(lane, first[i]);
    });
  }
  race.finish();
}

}  // namespace gpusim
