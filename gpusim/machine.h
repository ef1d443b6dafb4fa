// What is in flight while a kernel runs: launch, machine (one host thread), block, warp.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "gpusim/async_proxy.h"
#include "gpusim/launch.h"
#include "gpusim/program.h"

namespace gpusim {

class BlockTouches;
class SavedPages;
struct Block;
struct GlobalCell;
struct GlobalOrder;
struct Machine;

/// Memory for `bytes` on a 64-byte boundary, filled when it is (re)sized.
class AlignedBytes {
 public:
  void resize(std::size_t bytes, int fill = 0);
  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::vector<std::byte> storage_;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Why a group of lanes does not run.
enum class Wait : std::uint8_t {
  none,
  warp,       ///< at a warp-level sync, for lanes of its mask
  barrier,    ///< at a block barrier
  cluster,    ///< at a cluster barrier
  mbarrier,   ///< for a phase of an mbarrier
  warpgroup,  ///< for the other warps of its warpgroup to have closed as many groups of products
  turn,       ///< has gone round a loop many times: the others first
};

/// Lanes of a warp that share a program counter and do not run now.
struct Group {
  std::uint32_t pc = 0;
  std::uint32_t mask = 0;
  Wait wait = Wait::none;
  int barrier = 0;
  std::int32_t result = -1;  ///< slot of bar.red's result
  std::uint32_t at = 0;      ///< instruction that it waits at
  std::uint32_t parity = 0;  ///< of the phase of the mbarrier at offset `barrier`
};

/// An asynchronous copy by lanes of a warp that has been issued and not yet been waited for.
struct PendingCopy {
  std::uint32_t mask = 0;   ///< lanes whose copy is still to be performed
  std::uint32_t group = 0;  ///< their commit group
  std::uint8_t bytes = 0;
  bool whole = true;  ///< nothing of a destination is filled with zeros
  std::array<std::uint64_t, kWarpLanes> source;
  std::array<std::uint32_t, kWarpLanes> destination;
  std::array<std::uint8_t, kWarpLanes> source_bytes;  ///< where not whole
  std::uint32_t sequence = 0;                         ///< among the warp's copies
};

struct Warp {
  std::byte* base = nullptr;        ///< of slots: registers, and the launch's constants behind them
  std::int32_t first_constant = 0;  ///< slot
  std::uint32_t exec = 0;           ///< lanes that take part in the current instruction
  bool full = false;                ///< they are all that have not exited: the others' registers may be clobbered
  bool event = false;               ///< the interpreter has to look before it goes on
  bool yield = false;
  bool forced = false;      ///< its warp-level sync goes on without the lanes that are missing
  std::uint32_t mask = 0;   ///< lanes of the running group
  std::uint32_t live = 0;   ///< lanes that have not exited
  std::uint32_t start = 0;  ///< lanes the warp began with
  std::uint32_t pc = 0;
  std::uint32_t stop = 0;           ///< where another group waits to be joined, or runs first
  int patience = 0;                 ///< backward branches until it yields
  std::uint32_t index = 0;          ///< in the block
  std::uint32_t cluster_phase = 0;  ///< of the cluster's barrier when it last arrived there
  Machine* machine = nullptr;
  Block* block = nullptr;
  const std::int32_t* lists = nullptr;
  std::byte* local = nullptr;
  std::size_t local_bytes = 0;  ///< a lane
  const std::uint32_t* ends = nullptr;
  std::vector<Group> others;

  std::vector<PendingCopy> copies;
  std::array<std::uint32_t, kWarpLanes> copy_groups = {};  ///< commit groups that each lane has closed
  std::uint32_t copies_issued = 0;

  std::vector<BulkStore> bulk_stores;
  std::array<std::uint32_t, kWarpLanes> bulk_groups = {};  ///< bulk groups that each lane has closed
  std::uint32_t failed_tests = 0;                          ///< of mbarriers, one after the other
  std::vector<WgmmaInFlight> products;
  std::uint32_t product_groups = 0;   ///< closed
  std::uint32_t products_issued = 0;  ///< ever

  std::vector<std::uint32_t> clocks;  ///< of each warp of the block: the latest stamp that is ordered before here
  std::uint32_t ordered_stamp = 0;    ///< the warp's own accesses up to it lie before its last warp-level barrier
  AlignedBytes registers;
  AlignedBytes local_memory;
};

struct Barrier {
  std::uint32_t arrived = 0;   ///< threads, or whole warps' worth where a count was given
  std::uint32_t expected = 0;  ///< 0: every live thread
  std::uint32_t population = 0;
  bool all = true;
  bool any = false;
  std::vector<std::uint32_t> clocks;  ///< of warps that arrived without waiting
};

/// The barrier of a cluster's blocks; it lies in the first of them.
struct ClusterBarrier {
  std::uint32_t arrived = 0;  ///< threads, in this phase
  std::uint32_t phase = 0;
};

enum SharedByte : std::uint8_t { kSharedUninitialised = 0, kSharedInitialised = 1, kSharedPending = 2 };

/// Accesses to shared memory since the last barrier that met nothing they could race with. They are only written down;
/// their cells learn of them when another access comes so near that it has to look at cells: mostly never.
struct SharedLog {
  /// Of each granule of shared memory the stamps of the last write and of the last access of any kind.
  std::vector<std::uint32_t> writes;
  std::vector<std::uint32_t> accesses;
  /// Entries of kHeader words and offsets: two where both half warps lie side by side or at one place, else 32.
  std::vector<std::uint32_t> words;
  std::size_t used = 0;

  static constexpr int kGranuleShift = 5;  ///< 32 bytes
  static constexpr std::size_t kHeader = 4;
  static constexpr std::size_t kMostWords = std::size_t{1} << 15;
  static constexpr std::size_t kMostEntry = kHeader + kWarpLanes;
};

struct Block {
  Dim3 index;
  std::uint64_t linear = 0;
  std::uint32_t threads = 0;
  std::uint32_t live = 0;
  bool done = false;
  std::vector<Warp> warps;
  AlignedBytes shared;  ///< addressed from 0; [0, kSharedBase) is never valid
  std::size_t shared_end = 0;
  std::array<Barrier, 16> barriers;
  std::vector<std::uint8_t> shared_state;  ///< SharedByte, where such checks are on
  // What the race check knows of each cell, Program::shared_cell_bytes wide: the tags are race.cpp's.
  std::vector<std::uint32_t> write_tags;
  std::vector<std::uint32_t> read_tags;
  std::vector<std::uint32_t> write_at;  ///< instruction
  std::vector<std::uint32_t> read_at;
  std::vector<std::uint32_t> readers;     ///< warps
  std::vector<std::uint32_t> cell_reads;  ///< stamp of each warp's last read of each cell, where barriers are named
  std::uint32_t stamp = 1;                ///< grows with barriers, and from block to block
  std::uint32_t ordered_stamp = 0;        ///< accesses up to it lie before the block's last barrier
  SharedLog log;
  ClusterBarrier cluster_barrier;
  std::vector<Block*> cluster;  ///< its blocks by rank; empty: none
  std::vector<Mbarrier> mbarriers;
  std::vector<BulkCopy> bulk_copies;  ///< under way to here
  std::vector<Warpgroup> warpgroups;
  std::vector<std::uint32_t> proxy_fences;  ///< of each warp: writes up to this stamp are fenced from the async proxy
};

/// Counts of memory traffic at one instruction.
struct MemoryCounts {
  std::uint64_t global_requests = 0;
  std::uint64_t global_sectors = 0;
  std::uint64_t global_ideal = 0;
  std::uint64_t global_bytes = 0;
  std::uint64_t shared_requests = 0;
  std::uint64_t shared_wavefronts = 0;
  std::uint64_t shared_ideal = 0;
  std::uint64_t atomics = 0;
};

struct FindingRecord {
  std::uint64_t block = 0;
  Dim3 block_index;
  std::uint32_t thread = 0;
  std::uint64_t times = 0;
  std::string message;
  std::int64_t other = -1;  ///< instruction of the other access
  bool warning = false;
};

/// A program with the handlers of one instruction set.
struct BoundProgram {
  const Program* program = nullptr;
  std::vector<Instruction> code;
  std::vector<Handler> guarded;  ///< the handler behind a guard; null where there is none
  std::vector<Handler> watched;  ///< the handler of what may touch registers of a product under way; empty: none do
  std::vector<std::uint64_t> touches;  ///< those products' register lists, a bit each
};

/// What all host threads of a launch share.
struct Launch {
  const BoundProgram* bound = nullptr;
  const ptx::Module* module = nullptr;
  LaunchConfig config;
  DeviceMemory* memory = nullptr;
  const DeviceModel* device = nullptr;
  Settings settings;
  std::vector<std::byte> parameters;
  AlignedBytes constants;
  std::size_t local_bytes = 0;   ///< of a thread, its stack included
  std::size_t shared_bytes = 0;  ///< static and dynamic, without kSharedBase
  bool parallel = false;         ///< blocks run on several host threads
  std::atomic<std::uint64_t> next_block{0};
  std::atomic<std::uint64_t> executed{0};
  std::atomic<bool> stop{false};
  std::atomic<bool> blocks_met{false};                 ///< in global memory: see BlockTouches
  SavedPages* saved = nullptr;                         ///< while the launch may be undone
  std::uint64_t* sector_bits[2] = {nullptr, nullptr};  ///< a bit for each sector of the arena: loaded, stored
  std::uint64_t* byte_bits[3] = {};                    ///< of each byte, by Access, where Settings::touched
  std::uint64_t* page_bits[3] = {};                    ///< pages of kTouchedPage bytes in which a byte's bit is set
  GlobalCell* global_cells = nullptr;                  ///< of each 4 bytes of the arena
  GlobalOrder* order = nullptr;
  std::uint64_t workspace = 0;  ///< of a cooperative launch: what its blocks count arrivals in
};

/// A host thread that runs blocks of a launch.
struct Machine {
  Launch* launch = nullptr;
  const Program* program = nullptr;
  const Instruction* code = nullptr;
  std::uint64_t arena_base = 0;
  Checks checks;
  bool observes = false;  ///< some check looks at memory
  bool logs = false;      ///< accesses to shared memory may be logged: see SharedLog
  bool quick = false;     ///< accesses to shared memory that are plainly right need no closer look
  bool counted = false;
  bool touched = false;  ///< bytes are marked that a launch touches
  bool parallel = false;
  BlockTouches* touches = nullptr;  ///< null where blocks run in order and the order is watched
  LaunchStatus status = LaunchStatus::ok;
  bool stop = false;
  std::uint64_t executed = 0;              ///< warp instructions since last told to the launch
  std::uint64_t ticks = 0;                 ///< warp instructions before that: what clocks count
  std::vector<std::int64_t> warp_entries;  ///< how often a line began (+) and ended (-) before an instruction
  std::vector<std::int64_t> lane_entries;
  std::vector<std::uint64_t> guard_losses;  ///< lanes whose guard was false
  std::vector<MemoryCounts> memory_counts;
  std::vector<std::uint64_t> divergences;
  std::uint64_t barriers = 0;
  std::uint64_t completions = 0;  ///< of barriers of any kind, and exits: whether waiting got anybody anywhere
  std::map<std::pair<FindingKind, std::uint32_t>, FindingRecord> findings;

  std::uint32_t index_of(const Instruction& instruction) const {
    return static_cast<std::uint32_t>(&instruction - code);
  }
};

/// Bytes for which Launch::page_bits has one bit.
inline constexpr std::uint64_t kTouchedPage = 4096;

/// What an access does.
enum class Access : std::uint8_t { read, write, atomic };

/// How the addresses of a warp lie.
enum class Pattern : std::uint8_t {
  scattered,
  unit,     ///< all 32 lanes, one after the other
  uniform,  ///< all 32 lanes at one address
};

/// The addresses of a warp's access: host addresses in global memory, offsets in shared.
struct Addresses {
  alignas(64) std::uint64_t at[kWarpLanes];
  std::uint32_t mask = 0;  ///< lanes that access
  Pattern pattern = Pattern::scattered;
};

/// Calls `visit` with the number of each lane of `mask`, in order.
template <class Visit>
void for_lanes(std::uint32_t mask, Visit visit) {
  for (; mask != 0; mask &= mask - 1) visit(std::countr_zero(mask));
}

/// Records a finding at an instruction. The record, where it is the first of its kind there and wants a message.
FindingRecord* record(Warp& warp, std::uint32_t at, FindingKind kind, std::uint32_t lanes);
/// The same with its text.
void report(Warp& warp, std::uint32_t at, FindingKind kind, std::uint32_t lanes, const std::string& message);
/// Ends the launch with `status`.
void abort_launch(Warp& warp, LaunchStatus status);

// What an access that cannot be performed does: says so where checks are on, ends the launch where they are not.
void bad_global_access(Warp& warp, const Instruction& in, std::uint32_t lanes, const std::uint64_t* addresses,
                       int bytes, Access access);
void bad_shared_access(Warp& warp, const Instruction& in, std::uint32_t lanes, const std::uint64_t* offsets, int bytes,
                       Access access);
void bad_local_access(Warp& warp, const Instruction& in, std::uint32_t lanes);
void misaligned_access(Warp& warp, const Instruction& in, std::uint32_t lanes, const std::uint64_t* addresses,
                       int bytes);

/// Checks and counts an access of `bytes` a lane before it is performed; drops lanes that must not go on.
void observe_global(Warp& warp, const Instruction& in, Addresses& addresses, int bytes, Access access);
void observe_shared(Warp& warp, const Instruction& in, Addresses& offsets, int bytes, Access access);
/// The checks of observe_shared alone.
void check_shared(Warp& warp, const Instruction& in, const Addresses& offsets, int bytes, Access access);
/// Notes, where Machine::touches are kept, that a block touches these bytes of global memory.
void note_touch(Warp& warp, std::uint64_t address, std::uint64_t bytes, Access access);

}  // namespace gpusim
