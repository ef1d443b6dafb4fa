#include "gpusim/interpreter.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <span>

#include "gpusim/bulk_copy.h"
#include "gpusim/mbarrier.h"
#include "gpusim/race.h"
#include "gpusim/system_calls.h"
#include "gpusim/wgmma.h"
#include "model/error.h"

namespace gpusim {
namespace {

constexpr std::uint32_t kNoStop = 0xffffffffu;
/// Backward branches that a warp takes in one go: enough that switching costs nothing, few enough that lanes, warps
/// and blocks that wait for each other by spinning get on.
constexpr int kPatience = 20000;
/// Rounds in which all waits at mbarriers time out without effect, before that is called a deadlock.
constexpr int kIdleRounds = 4;

std::uint32_t popcount(std::uint32_t mask) { return static_cast<std::uint32_t>(std::popcount(mask)); }

std::uint32_t read_predicate(const Warp& warp, std::int32_t slot) {
  std::uint32_t value = 0;
  std::memcpy(&value, warp.base + slot, sizeof value);
  return value;
}

std::uint32_t read_lane(const Warp& warp, std::int32_t slot, int lane) {
  std::uint32_t value = 0;
  std::memcpy(&value, warp.base + slot + 4 * lane, sizeof value);
  return value;
}

void set_mask(Warp& warp, std::uint32_t mask) {
  warp.mask = mask;
  warp.exec = mask;
  warp.full = mask == warp.live;
}

// ---- groups of lanes

/// Where the running group has to look up: the nearest place ahead at which others wait to be joined or want to run.
void update_stop(Warp& warp) {
  const Program& program = *warp.machine->program;
  warp.ends = (warp.others.empty() ? program.line_end : program.sync_end).data();
  warp.stop = kNoStop;
  for (const Group& group : warp.others) {
    const bool meets = group.wait == Wait::none || group.wait == Wait::warp || group.wait == Wait::turn;
    if (meets && group.pc > warp.pc) warp.stop = std::min(warp.stop, group.pc);
  }
}

/// Takes in the groups that stand where the running one does.
void merge(Warp& warp) {
  std::uint32_t mask = warp.mask;
  std::erase_if(warp.others, [&](const Group& group) {
    const bool meets = group.wait == Wait::none || group.wait == Wait::warp || group.wait == Wait::turn;
    if (group.pc != warp.pc || !meets) return false;
    mask |= group.mask;
    return true;
  });
  set_mask(warp, mask);
}

void resume(Warp& warp, std::size_t index) {
  const Group group = warp.others[index];
  warp.others.erase(warp.others.begin() + static_cast<std::ptrdiff_t>(index));
  warp.pc = group.pc;
  set_mask(warp, group.mask);
  for (Group& other : warp.others) {
    if (other.wait == Wait::turn) other.wait = Wait::none;
  }
  merge(warp);
  update_stop(warp);
}

/// The runnable group that stands lowest: lanes that are behind catch up, so that paths join where they meet.
std::ptrdiff_t lowest(const Warp& warp, Wait wait) {
  std::ptrdiff_t best = -1;
  for (std::size_t i = 0; i < warp.others.size(); ++i) {
    if (warp.others[i].wait != wait) continue;
    if (best < 0 || warp.others[i].pc < warp.others[static_cast<std::size_t>(best)].pc)
      best = static_cast<std::ptrdiff_t>(i);
  }
  return best;
}

/// Lanes that wait at __syncwarp in several places of the code pass when together they are those named.
bool release_warp_barriers(Warp& warp) {
  const Program& program = *warp.machine->program;
  std::uint32_t here = 0;
  const auto at_barrier = [&](const Group& group) {
    return group.wait == Wait::warp && program.facts[group.pc].key == "bar.warp";
  };
  for (const Group& group : warp.others) here |= at_barrier(group) ? group.mask : 0;
  bool released = false;
  for (Group& group : warp.others) {
    if (!at_barrier(group)) continue;
    const std::uint32_t wanted = read_lane(warp, program.code[group.pc].e, std::countr_zero(group.mask));
    if ((wanted & warp.live & ~here) != 0) continue;
    group.wait = Wait::none;
    ++group.pc;
    released = true;
  }
  if (released) order_warp(warp);
  return released;
}

/// Lanes that others than their warp's will wake: those at warp-level syncs go on waiting for them.
bool may_be_woken(const Warp& warp) {
  return std::any_of(warp.others.begin(), warp.others.end(), [](const Group& group) {
    return group.wait == Wait::mbarrier || group.wait == Wait::warpgroup || group.wait == Wait::cluster;
  });
}

/// Chooses a group where none runs; false where all of them wait.
bool pick(Warp& warp) {
  if (warp.others.size() == 1 && warp.others[0].wait == Wait::none) {
    resume(warp, 0);
    return true;
  }
  std::ptrdiff_t next = lowest(warp, Wait::none);
  if (next < 0) next = lowest(warp, Wait::turn);
  if (next < 0 && release_warp_barriers(warp)) next = lowest(warp, Wait::none);
  if (next < 0 && !may_be_woken(warp)) {
    // Only lanes at warp-level syncs are left: those they wait for have exited or stand at a barrier. The sync says so.
    next = lowest(warp, Wait::warp);
    warp.forced = next >= 0;
  }
  if (next < 0) return false;
  resume(warp, static_cast<std::size_t>(next));
  return true;
}

/// The running group has reached or passed a place where another stands.
void regroup(Warp& warp) {
  merge(warp);
  const std::ptrdiff_t behind = lowest(warp, Wait::none);
  if (behind >= 0 && warp.others[static_cast<std::size_t>(behind)].pc < warp.pc) {
    warp.others.push_back({.pc = warp.pc, .mask = warp.mask});
    resume(warp, static_cast<std::size_t>(behind));
  } else {
    update_stop(warp);
  }
}

void park(Warp& warp, Wait wait) {
  warp.others.push_back({.pc = warp.pc, .mask = warp.mask, .wait = wait, .at = warp.pc});
  set_mask(warp, 0);
  warp.event = true;
}

// ---- block barriers

bool waits_at(const Group& group, int barrier) { return group.wait == Wait::barrier && group.barrier == barrier; }

/// What each participant knows of the others' accesses from now on.
void join_clocks(Machine& machine, Block& block, Barrier& barrier, int id) {
  if (!machine.checks.shared_races) return;
  if (machine.program->named_barriers) {
    std::vector<std::uint32_t> joined(block.warps.size(), 0);
    const auto join = [&joined](const std::vector<std::uint32_t>& clocks) {
      for (std::size_t i = 0; i < clocks.size(); ++i) joined[i] = std::max(joined[i], clocks[i]);
    };
    join(barrier.clocks);
    for (const Warp& warp : block.warps) {
      const bool takes_part =
          std::any_of(warp.others.begin(), warp.others.end(), [id](const Group& group) { return waits_at(group, id); });
      if (!takes_part) continue;
      join(warp.clocks);
      joined[warp.index] = block.stamp;
    }
    for (Warp& warp : block.warps) {
      const bool takes_part =
          std::any_of(warp.others.begin(), warp.others.end(), [id](const Group& group) { return waits_at(group, id); });
      if (!takes_part) continue;
      warp.clocks = joined;
      warp.ordered_stamp = block.stamp;
    }
  }
  order_block(block, machine.program->named_barriers);
}

void write_reduction(Warp& warp, const Group& group, const Barrier& barrier, const InstructionFacts& facts) {
  std::byte* const to = warp.base + group.result;
  if (facts.key == "bar.red.popc") {
    for (std::uint32_t mask = group.mask; mask != 0; mask &= mask - 1) {
      std::memcpy(to + 4 * std::countr_zero(mask), &barrier.population, sizeof barrier.population);
    }
    return;
  }
  const bool value = facts.key == "bar.red.and" ? barrier.all : barrier.any;
  std::uint32_t old = 0;
  std::memcpy(&old, to, sizeof old);
  const std::uint32_t next = (old & ~group.mask) | (value ? group.mask : 0);
  std::memcpy(to, &next, sizeof next);
}

bool is_complete(const Block& block, const Barrier& barrier) {
  return barrier.arrived != 0 && barrier.arrived >= (barrier.expected != 0 ? barrier.expected : block.live);
}

/// Lets everyone at barrier `id` go once all have come.
void try_complete(Machine& machine, Block& block, int id) {
  Barrier& barrier = block.barriers[static_cast<std::size_t>(id)];
  if (!is_complete(block, barrier)) return;
  join_clocks(machine, block, barrier, id);
  for (Warp& warp : block.warps) {
    for (Group& group : warp.others) {
      if (!waits_at(group, id)) continue;
      group.wait = Wait::none;
      if (group.result >= 0) write_reduction(warp, group, barrier, machine.program->facts[group.at]);
    }
  }
  barrier = Barrier{};
  ++machine.barriers;
  ++machine.completions;
}

void check_barrier(Warp& warp, const Instruction& in, int id, bool whole_block) {
  const Block& block = *warp.block;
  const Machine& machine = *warp.machine;
  const std::uint32_t at = machine.index_of(in);
  if ((in.flags & kUnaligned) == 0 && warp.exec != warp.live) {
    report(
        warp, at, FindingKind::divergent_barrier, warp.exec,
        dsv2::concat("barrier reached by ", popcount(warp.exec), " of the warp's ", popcount(warp.live), " threads"));
  } else if (whole_block && block.live != block.threads) {
    report(warp, at, FindingKind::divergent_barrier, warp.exec,
           dsv2::concat("barrier after ", block.threads - block.live, " of the block's ", block.threads,
                        " threads have exited"));
  }
  // A barrier of a number of threads is met by producers and consumers in their own places.
  if (!whole_block) return;
  for (const Warp& other : block.warps) {
    for (const Group& group : other.others) {
      if (!waits_at(group, id) || group.at == at) continue;
      if (machine.program->facts[group.at].place == machine.program->facts[at].place) continue;
      FindingRecord* const found = record(warp, at, FindingKind::divergent_barrier, warp.exec);
      if (found == nullptr) continue;
      found->message = "threads of one block meet at different barriers";
      found->other = group.at;
    }
  }
}

/// A warp arrives as one: lanes that have come this far on another path wait for those that are still on theirs. False
/// when all are here, or when the others cannot come; the barrier says so then.
bool waits_for_stragglers(Warp& warp, const Instruction& in) {
  const bool wait = (in.flags & kUnaligned) == 0 && warp.exec != warp.live && warp.exec == warp.mask && !warp.forced &&
                    !warp.others.empty();
  warp.forced = false;
  if (!wait) return false;
  warp.pc = warp.machine->index_of(in);
  park(warp, Wait::warp);
  return true;
}

/// Arrival at a barrier; the kinds differ in what they wait for and what they get.
enum class Arrival { sync, arrive, reduce };

template <Arrival kArrival>
void barrier(Warp& warp, const Instruction& in) {
  Machine& machine = *warp.machine;
  Block& block = *warp.block;
  const int lane = std::countr_zero(warp.exec);
  const int id = static_cast<int>(read_lane(warp, in.a, lane) & 15u);
  const std::uint32_t count = in.b >= 0 ? read_lane(warp, in.b, lane) : 0;
  if (waits_for_stragglers(warp, in)) return;
  if (machine.checks.barriers) check_barrier(warp, in, id, count == 0);

  Barrier& at = block.barriers[static_cast<std::size_t>(id)];
  at.expected = count;
  // A count is one of whole warps: the missing lanes of the last warp count as there.
  at.arrived += count != 0 && warp.exec == warp.live ? kWarpLanes : popcount(warp.exec);
  if constexpr (kArrival == Arrival::reduce) {
    std::uint32_t value = read_predicate(warp, in.c);
    if ((in.flags & kNegated) != 0) value = ~value;
    value &= warp.exec;
    at.population += popcount(value);
    at.any |= value != 0;
    at.all &= value == warp.exec;
  }
  if constexpr (kArrival == Arrival::arrive) {
    if (machine.checks.shared_races && machine.program->named_barriers) {
      at.clocks.resize(block.warps.size(), 0);
      for (std::size_t i = 0; i < at.clocks.size(); ++i) at.clocks[i] = std::max(at.clocks[i], warp.clocks[i]);
      at.clocks[warp.index] = block.stamp;
      order_block(block, true);
    }
  } else {
    // A whole warp that comes last need not wait.
    const bool waits = kArrival == Arrival::reduce || warp.exec != warp.live || machine.program->named_barriers ||
                       !is_complete(block, at);
    if (!waits) return try_complete(machine, block, id);
    warp.others.push_back({.pc = warp.pc,
                           .mask = warp.exec,
                           .wait = Wait::barrier,
                           .barrier = id,
                           .result = kArrival == Arrival::reduce ? in.d : -1,
                           .at = machine.index_of(in)});
    set_mask(warp, warp.mask & ~warp.exec);
    warp.event = true;
  }
  try_complete(machine, block, id);
}

// ---- clusters

/// The blocks that meet at a cluster barrier: the block alone where there is no cluster.
std::span<Block* const> blocks_of_cluster(Block* const& block) {
  if (block->cluster.empty()) return {&block, 1};
  return block->cluster;
}

void try_complete_cluster(Block* block) {
  const auto blocks = blocks_of_cluster(block);
  ClusterBarrier& barrier = blocks[0]->cluster_barrier;
  std::uint32_t live = 0;
  for (const Block* const member : blocks) live += member->live;
  if (barrier.arrived == 0 || barrier.arrived < live) return;
  barrier.arrived = 0;
  ++barrier.phase;
  ++blocks[0]->warps[0].machine->completions;
  for (Block* const member : blocks) {
    for (Warp& warp : member->warps) {
      for (Group& group : warp.others) {
        if (group.wait == Wait::cluster) group.wait = Wait::none;
      }
    }
  }
}

void cluster_arrive(Warp& warp, const Instruction& in) {
  if (waits_for_stragglers(warp, in)) return;
  if (warp.machine->checks.barriers) check_barrier(warp, in, -1, true);
  Block* const block = warp.block;
  ClusterBarrier& barrier = blocks_of_cluster(block)[0]->cluster_barrier;
  warp.cluster_phase = barrier.phase;
  barrier.arrived += popcount(warp.exec);
  try_complete_cluster(block);
}

void cluster_wait(Warp& warp, const Instruction& in) {
  Block* const block = warp.block;
  const bool complete = blocks_of_cluster(block)[0]->cluster_barrier.phase != warp.cluster_phase;
  if (complete) return;
  warp.others.push_back({.pc = warp.pc, .mask = warp.exec, .wait = Wait::cluster, .at = warp.machine->index_of(in)});
  set_mask(warp, warp.mask & ~warp.exec);
  warp.event = true;
}

/// The address, in the shared memory of block `b` of the cluster, of what `a` is in this block's.
template <class T>
void map_address(Warp& warp, const Instruction& in) {
  for (std::uint32_t mask = warp.exec; mask != 0; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    T address{};
    std::memcpy(&address, warp.base + in.a + sizeof(T) * static_cast<std::size_t>(lane), sizeof address);
    const std::uint32_t rank = read_lane(warp, in.b, lane);
    if (!warp.block->cluster.empty()) address |= static_cast<T>(rank + 1) << kClusterRankShift;
    std::memcpy(warp.base + in.d + sizeof(T) * static_cast<std::size_t>(lane), &address, sizeof address);
  }
}

// ---- branches and exits

void branch(Warp& warp, const Instruction& in) {
  std::uint32_t taken = warp.mask;
  if (in.guard >= 0) {
    const std::uint32_t guard = read_predicate(warp, in.guard);
    taken &= in.guard_negated ? ~guard : guard;
  }
  if (taken == 0) return;
  const std::uint32_t at = warp.machine->index_of(in);
  const auto target = static_cast<std::uint32_t>(in.target);
  const bool backward = target <= at;
  if (taken == warp.mask) {
    warp.pc = target;
    if (backward && !warp.others.empty()) update_stop(warp);
  } else {
    if (warp.machine->counted) ++warp.machine->divergences[at];
    const std::uint32_t rest = warp.mask & ~taken;
    // The lanes that are behind go first.
    if (backward) {
      warp.others.push_back({.pc = warp.pc, .mask = rest});
      warp.pc = target;
      set_mask(warp, taken);
    } else {
      warp.others.push_back({.pc = target, .mask = taken});
      set_mask(warp, rest);
    }
    update_stop(warp);
  }
  if (backward && --warp.patience < 0) {
    warp.yield = true;
    warp.event = true;
  }
}

void indexed_branch(Warp& warp, const Instruction& in) {
  const std::uint32_t at = warp.machine->index_of(in);
  const std::uint32_t rest = warp.mask & ~warp.exec;
  if (rest != 0) warp.others.push_back({.pc = warp.pc, .mask = rest});
  std::uint32_t left = warp.exec;
  std::uint32_t ways = 0;
  while (left != 0) {
    const std::uint32_t index = read_lane(warp, in.a, std::countr_zero(left));
    std::uint32_t same = 0;
    for (std::uint32_t mask = left; mask != 0; mask &= mask - 1) {
      const int lane = std::countr_zero(mask);
      if (read_lane(warp, in.a, lane) == index) same |= 1u << lane;
    }
    left &= ~same;
    // An index beyond the list is undefined behaviour: the last entry is as good as any.
    const auto entry = std::min<std::int64_t>(index, in.immediate - 1);
    warp.others.push_back({.pc = static_cast<std::uint32_t>(warp.lists[in.list + entry]), .mask = same});
    ++ways;
  }
  if (ways > 1 && warp.machine->counted) ++warp.machine->divergences[at];
  set_mask(warp, 0);
  warp.event = true;
  if (--warp.patience < 0) warp.yield = true;
}

void exit_lanes(Warp& warp, std::uint32_t mask) {
  Block& block = *warp.block;
  finish_copies(warp, mask, 0, false);
  if (!warp.bulk_stores.empty()) abandon_bulk_stores(warp, mask);
  ++warp.machine->completions;
  warp.live &= ~mask;
  block.live -= popcount(mask);
  set_mask(warp, warp.mask & ~mask);
  warp.event = true;
  try_complete_cluster(&block);
  if (block.live == 0) return;
  for (int id = 0; id < static_cast<int>(block.barriers.size()); ++id) try_complete(*warp.machine, block, id);
}

void exit(Warp& warp, const Instruction&) { exit_lanes(warp, warp.exec); }

void trap(Warp& warp, const Instruction& in) {
  report(warp, warp.machine->index_of(in), FindingKind::trap, warp.exec, "trap");
  abort_launch(warp, LaunchStatus::trap);
}

void assertion(Warp& warp, const Instruction& in) {
  report(warp, warp.machine->index_of(in), FindingKind::trap, warp.exec, assertion_text(warp, in));
  abort_launch(warp, LaunchStatus::trap);
}

void bad_call(Warp& warp, const Instruction& in) {
  report(warp, warp.machine->index_of(in), FindingKind::out_of_bounds, warp.exec,
         "call through a pointer to no function of this module that takes such arguments");
  abort_launch(warp, LaunchStatus::illegal_instruction);
}

void unsupported(Warp& warp, const Instruction& in) {
  const std::uint32_t at = warp.machine->index_of(in);
  const std::string& why = warp.machine->program->facts[at].refusal;
  report(warp, at, FindingKind::unsupported, warp.exec,
         dsv2::concat("not modelled: ", why.empty() ? "this instruction" : why));
  abort_launch(warp, LaunchStatus::illegal_instruction);
}

void nothing(Warp&, const Instruction&) {}

void yield(Warp& warp, const Instruction&) {
  warp.yield = true;
  warp.event = true;
}

void fence(Warp& warp, const Instruction&) { order_globally(warp); }

void print(Warp& warp, const Instruction& in) { print_lanes(warp, in); }

/// What stands for cycles and nanoseconds: the warp instructions of this launch so far, beyond all of earlier launches.
/// Only its growth means anything; two runs see the same.
void clock(Warp& warp, const Instruction& in) {
  constexpr int kLaunchShift = 40;
  const Machine& machine = *warp.machine;
  const std::uint64_t now = (machine.launch->config.launch_id << kLaunchShift) + machine.ticks + machine.executed;
  const std::uint64_t value = in.mode == 1 ? now >> 32 : now;
  const bool wide = warp.machine->program->facts[warp.machine->index_of(in)].key == "clock.b64";
  const std::size_t bytes = wide ? 8 : 4;
  for (std::uint32_t mask = warp.exec; mask != 0; mask &= mask - 1) {
    const auto lane = static_cast<std::size_t>(std::countr_zero(mask));
    std::memcpy(warp.base + in.d + bytes * lane, &value, bytes);
  }
}

// ---- running

/// Counts a straight line by its ends; what lies between is summed up at the launch's end.
void count_line(Machine& machine, std::uint32_t begin, std::uint32_t end, std::uint32_t mask) {
  const auto lanes = static_cast<std::int64_t>(popcount(mask));
  machine.warp_entries[begin] += 1;
  machine.warp_entries[end] -= 1;
  machine.lane_entries[begin] += lanes;
  machine.lane_entries[end] -= lanes;
}

bool is_runnable(const Group& group) { return group.wait == Wait::none || group.wait == Wait::turn; }

/// Whether another group can run while this one yields; it is told to wait for its turn then.
void give_turn(Warp& warp) {
  const bool others_can =
      std::any_of(warp.others.begin(), warp.others.end(), [](const Group& group) { return group.wait == Wait::none; });
  if (warp.mask == 0 || !others_can) return;
  park(warp, Wait::turn);
}

void spend(Machine& machine, Warp& warp) {
  Launch& launch = *machine.launch;
  if (launch.stop.load(std::memory_order_relaxed)) machine.stop = true;
  const std::uint64_t budget = launch.settings.instruction_budget;
  if (budget == 0) return;
  const std::uint64_t total = launch.executed.fetch_add(machine.executed, std::memory_order_relaxed) + machine.executed;
  machine.ticks += machine.executed;
  machine.executed = 0;
  if (total <= budget) return;
  const std::uint32_t lanes = warp.mask != 0 ? warp.mask : warp.live;
  report(warp, std::min<std::uint32_t>(warp.pc, static_cast<std::uint32_t>(machine.program->code.size()) - 1),
         FindingKind::instruction_budget, lanes,
         dsv2::concat("the launch has run its ", budget, " warp instructions and does not end"));
  abort_launch(warp, LaunchStatus::time_out);
}

/// Runs a warp until it waits, yields or ends.
template <bool kCounted>
void run_warp(Machine& machine, Warp& warp) {
  const Instruction* const code = machine.code;
  warp.patience = kPatience;
  if (warp.mask == 0 && !pick(warp)) return;
  for (;;) {
    const std::uint32_t begin = warp.pc;
    const std::uint32_t end = std::min(warp.ends[begin], warp.stop);
    warp.pc = end;
    if constexpr (kCounted) count_line(machine, begin, end, warp.mask);
    machine.executed += end - begin;
    for (const Instruction* in = code + begin, *last = code + end; in != last; ++in) in->run(warp, *in);
    if (warp.event) [[unlikely]] {
      warp.event = false;
      if (machine.stop) return;
      if (warp.yield) {
        warp.yield = false;
        give_turn(warp);
        warp.event = false;
        spend(machine, warp);
        return;
      }
      if (warp.mask == 0) {
        if (!pick(warp)) return;
      } else {
        regroup(warp);
      }
    } else if (warp.pc >= warp.stop) {
      regroup(warp);
    }
  }
}

bool can_run(const Warp& warp) {
  if (warp.live == 0) return false;
  if (warp.mask != 0) return true;
  const bool woken = may_be_woken(warp);
  return std::any_of(warp.others.begin(), warp.others.end(), [woken](const Group& group) {
    return is_runnable(group) || (group.wait == Wait::warp && !woken);
  });
}

/// Lets lanes go that wait for others of their warp; false where there are none.
bool force_warps(std::span<Block* const> blocks) {
  bool any = false;
  for (Block* const block : blocks) {
    for (Warp& warp : block->warps) {
      const std::ptrdiff_t next = lowest(warp, Wait::warp);
      if (warp.mask != 0 || next < 0) continue;
      warp.others[static_cast<std::size_t>(next)].wait = Wait::none;
      warp.forced = true;
      any = true;
    }
  }
  return any;
}

/// Nothing can run any more: says who waits where.
void report_deadlock(Machine& machine, std::span<Block* const> blocks) {
  for (Block* const block : blocks) {
    if (block->done) continue;
    for (Warp& warp : block->warps) {
      for (const Group& group : warp.others) {
        const std::string what = group.wait == Wait::mbarrier ? mbarrier_state(*block, group) : std::string();
        report(warp, group.at, FindingKind::deadlock, group.mask,
               dsv2::concat(popcount(group.mask), " threads wait here for ever", what, "; ",
                            block->threads - block->live, " of the block's ", block->threads, " have exited"));
      }
    }
  }
  for (Block* const block : blocks) {
    if (!block->done) return abort_launch(block->warps[0], LaunchStatus::time_out);
  }
  machine.stop = true;
}

struct SpecialValues {
  const Machine& machine;
  const Block& block;
  const Warp& warp;

  std::uint64_t of(Special special, std::uint32_t lane) const {
    const LaunchConfig& config = machine.launch->config;
    const Dim3 grid = config.grid;
    const Dim3 threads = config.block;
    const Dim3 cluster = config.cluster;
    const std::uint32_t thread = warp.index * kWarpLanes + lane;
    const std::uint32_t bit = 1u << lane;
    switch (special) {
      case Special::tid_x:
        return thread % threads.x;
      case Special::tid_y:
        return thread / threads.x % threads.y;
      case Special::tid_z:
        return thread / threads.x / threads.y;
      case Special::ntid_x:
        return threads.x;
      case Special::ntid_y:
        return threads.y;
      case Special::ntid_z:
        return threads.z;
      case Special::ctaid_x:
        return block.index.x;
      case Special::ctaid_y:
        return block.index.y;
      case Special::ctaid_z:
        return block.index.z;
      case Special::nctaid_x:
        return grid.x;
      case Special::nctaid_y:
        return grid.y;
      case Special::nctaid_z:
        return grid.z;
      case Special::laneid:
        return lane;
      case Special::warpid:
        return warp.index;
      case Special::nwarpid:
        return block.warps.size();
      case Special::smid:
        return block.linear % static_cast<std::uint64_t>(std::max(1, machine.launch->device->multiprocessors));
      case Special::nsmid:
        return static_cast<std::uint64_t>(machine.launch->device->multiprocessors);
      case Special::gridid:
        return config.launch_id;
      case Special::lanemask_eq:
        return bit;
      case Special::lanemask_le:
        return bit | (bit - 1);
      case Special::lanemask_lt:
        return bit - 1;
      case Special::lanemask_ge:
        return ~(bit - 1);
      case Special::lanemask_gt:
        return ~(bit | (bit - 1));
      case Special::dynamic_smem_size:
        return config.dynamic_shared_bytes;
      case Special::total_smem_size:
        return machine.launch->shared_bytes;
      case Special::clusterid_x:
        return block.index.x / cluster.x;
      case Special::clusterid_y:
        return block.index.y / cluster.y;
      case Special::clusterid_z:
        return block.index.z / cluster.z;
      case Special::nclusterid_x:
        return grid.x / cluster.x;
      case Special::nclusterid_y:
        return grid.y / cluster.y;
      case Special::nclusterid_z:
        return grid.z / cluster.z;
      case Special::cluster_ctaid_x:
        return block.index.x % cluster.x;
      case Special::cluster_ctaid_y:
        return block.index.y % cluster.y;
      case Special::cluster_ctaid_z:
        return block.index.z % cluster.z;
      case Special::cluster_nctaid_x:
        return cluster.x;
      case Special::cluster_nctaid_y:
        return cluster.y;
      case Special::cluster_nctaid_z:
        return cluster.z;
      case Special::cluster_ctarank:
        return block.index.x % cluster.x +
               cluster.x * (block.index.y % cluster.y + cluster.y * (block.index.z % cluster.z));
      case Special::cluster_nctarank:
        return cluster.count();
      case Special::is_explicit_cluster:
        return cluster.count() > 1 ? 1 : 0;
      case Special::envreg0:
        return 0;
      case Special::envreg1:
        return machine.launch->workspace >> 32;
      case Special::envreg2:
        return machine.launch->workspace & 0xffffffffu;
      case Special::stack_base:
        return 0;
      case Special::stack_top:
        return machine.program->local_bytes;
    }
    return 0;
  }
};

bool differs_by_lane(Special special) {
  return special <= Special::tid_z || special == Special::laneid ||
         (special >= Special::lanemask_eq && special <= Special::lanemask_gt);
}

void start_warp(Machine& machine, Block& block, Warp& warp, std::uint32_t index) {
  const Program& program = *machine.program;
  warp.machine = &machine;
  warp.block = &block;
  warp.index = index;
  warp.lists = program.lists.data();
  const AlignedBytes& constants = machine.launch->constants;
  warp.registers.resize(program.register_bytes + constants.size());
  if (constants.size() != 0)
    std::memcpy(warp.registers.data() + program.register_bytes, constants.data(), constants.size());
  warp.first_constant = static_cast<std::int32_t>(program.register_bytes);
  warp.local_bytes = machine.launch->local_bytes;
  warp.local_memory.resize(warp.local_bytes * kWarpLanes);
  warp.base = warp.registers.data();
  warp.local = warp.local_memory.data();
  const std::uint32_t left = block.threads - index * kWarpLanes;
  warp.start = left >= kWarpLanes ? 0xffffffffu : (1u << left) - 1;
  warp.live = warp.start;
  warp.pc = 0;
  warp.others.clear();
  warp.event = false;
  warp.yield = false;
  warp.forced = false;
  set_mask(warp, warp.live);
  update_stop(warp);
  warp.copies.clear();
  warp.copy_groups = {};
  warp.copies_issued = 0;
  warp.bulk_stores.clear();
  warp.bulk_groups = {};
  warp.failed_tests = 0;
  warp.products.clear();
  warp.product_groups = 0;
  warp.products_issued = 0;
  warp.ordered_stamp = 0;
  warp.clocks.assign(machine.checks.shared_races && program.named_barriers ? block.warps.size() : 0,
                     block.ordered_stamp);
  const SpecialValues values{machine, block, warp};
  for (const SpecialSlot& special : program.specials) {
    std::uint64_t value = values.of(special.special, 0);
    for (std::uint32_t lane = 0; lane < kWarpLanes; ++lane) {
      if (differs_by_lane(special.special)) value = values.of(special.special, lane);
      std::memcpy(warp.base + special.slot + static_cast<std::size_t>(special.bytes) * lane, &value,
                  static_cast<std::size_t>(special.bytes));
    }
  }
}

}  // namespace

void AlignedBytes::resize(std::size_t bytes, int fill) {
  constexpr std::size_t kLine = 64;
  if (bytes != size_ || data_ == nullptr) {
    storage_.resize(bytes + 2 * kLine);
    const auto address = reinterpret_cast<std::uintptr_t>(storage_.data());
    data_ = storage_.data() + (kLine - address % kLine) % kLine;
    size_ = bytes;
  }
  std::memset(data_, fill, size_);
}

void stop_lanes(Warp& warp, const Group& group) {
  warp.others.push_back(group);
  set_mask(warp, warp.mask & ~group.mask);
  warp.event = true;
}

void run_watched(Warp& warp, const Instruction& in) {
  const BoundProgram& bound = *warp.machine->launch->bound;
  const std::uint32_t at = warp.machine->index_of(in);
  if (!warp.products.empty()) check_product_registers(warp, in, bound.touches[at]);
  bound.watched[at](warp, in);
}

void run_guarded(Warp& warp, const Instruction& in) {
  Machine& machine = *warp.machine;
  const std::uint32_t at = machine.index_of(in);
  const std::uint32_t guard = read_predicate(warp, in.guard);
  const std::uint32_t exec = warp.mask & (in.guard_negated ? ~guard : guard);
  if (machine.counted) machine.guard_losses[at] += popcount(warp.mask & ~exec);
  if (exec == 0) return;
  const Handler handler = machine.launch->bound->guarded[at];
  if (exec == warp.mask) return handler(warp, in);
  warp.exec = exec;
  warp.full = false;
  handler(warp, in);
  set_mask(warp, warp.mask);
}

bool lanes_gathered(Warp& warp, const Instruction& in) {
  Machine& machine = *warp.machine;
  const std::uint32_t at = machine.index_of(in);
  std::uint32_t named = 0;
  for (std::uint32_t mask = warp.exec; mask != 0; mask &= mask - 1)
    named |= read_lane(warp, in.e, std::countr_zero(mask));
  const std::uint32_t missing = named & warp.live & ~warp.exec;
  const bool can_wait = missing != 0 && !warp.forced && warp.exec == warp.mask && !warp.others.empty();
  if (can_wait) {
    warp.pc = at;
    park(warp, Wait::warp);
    return false;
  }
  warp.forced = false;
  if (machine.checks.barriers) {
    const std::uint32_t absent = named & warp.start & ~warp.exec;
    const std::uint32_t strangers = warp.exec & ~named;
    if (absent != 0) {
      report(warp, at, FindingKind::bad_shuffle, warp.exec,
             dsv2::concat(popcount(absent), " lanes of the mask do not take part, the first is lane ",
                          std::countr_zero(absent)));
    } else if (strangers != 0) {
      report(warp, at, FindingKind::bad_shuffle, strangers,
             dsv2::concat(popcount(strangers), " lanes take part that the mask does not name, the first is lane ",
                          std::countr_zero(strangers)));
    }
  }
  return true;
}

void register_control(HandlerRegistry& registry) {
  add_handler(registry, "bra", "", branch);
  add_handler(registry, "brx", "", indexed_branch);
  add_handler(registry, "exit", "", exit);
  add_handler(registry, "trap", "", trap);
  add_handler(registry, "assert", "", assertion);
  add_handler(registry, "bad_call", "", bad_call);
  add_handler(registry, "unsupported", "", unsupported);
  add_handler(registry, "nop", "", nothing);
  add_handler(registry, "fence", "", fence);
  add_handler(registry, "yield", "", yield);
  add_handler(registry, "printf", "", print);
  add_handler(registry, "clock.b32", "", clock);
  add_handler(registry, "clock.b64", "", clock);
  add_handler(registry, "bar.sync", "", barrier<Arrival::sync>);
  add_handler(registry, "bar.arrive", "", barrier<Arrival::arrive>);
  add_handler(registry, "cluster.arrive", "", cluster_arrive);
  add_handler(registry, "cluster.wait", "", cluster_wait);
  add_handler(registry, "mapa.b32", "", map_address<std::uint32_t>);
  add_handler(registry, "mapa.b64", "", map_address<std::uint64_t>);
  add_handler(registry, "bar.red.popc", "", barrier<Arrival::reduce>);
  add_handler(registry, "bar.red.and", "", barrier<Arrival::reduce>);
  add_handler(registry, "bar.red.or", "", barrier<Arrival::reduce>);
}

void start_block(Machine& machine, Block& block, std::uint64_t linear) {
  const Launch& launch = *machine.launch;
  const Dim3 grid = launch.config.grid;
  block.linear = linear;
  block.index = {static_cast<unsigned>(linear % grid.x), static_cast<unsigned>(linear / grid.x % grid.y),
                 static_cast<unsigned>(linear / grid.x / grid.y)};
  block.threads = static_cast<std::uint32_t>(launch.config.block.count());
  block.live = block.threads;
  block.done = false;
  block.shared_end = kSharedBase + launch.shared_bytes;
  for (Barrier& barrier : block.barriers) barrier = Barrier{};
  block.cluster.clear();
  block.cluster_barrier = ClusterBarrier{};
  block.mbarriers.clear();
  block.bulk_copies.clear();
  block.warps.resize((block.threads + kWarpLanes - 1) / kWarpLanes);
  const Checks& checks = machine.checks;
  block.shared_state.clear();
  const bool watched = checks.initialised || checks.async_copies;
  if (watched) block.shared_state.assign(block.shared_end, kSharedUninitialised);
  // What nobody wrote reads as NaNs where it is watched, so that it shows in results too.
  block.shared.resize(block.shared_end, watched ? 0xff : 0);
  if (checks.shared_races) start_race_check(block, *machine.program);
  const bool warp_clocks = checks.shared_races && machine.program->named_barriers;
  block.proxy_fences.assign(warp_clocks ? block.warps.size() : 0, block.ordered_stamp);
  block.warpgroups.assign((block.warps.size() + kWarpgroupWarps - 1) / kWarpgroupWarps, Warpgroup{});
  for (std::size_t i = 0; i < block.warps.size(); ++i)
    start_warp(machine, block, block.warps[i], static_cast<std::uint32_t>(i));
}

void run_blocks(Machine& machine, std::span<Block* const> blocks) {
  std::size_t left = blocks.size();
  std::uint64_t completions = machine.completions;
  int rounds = 0;  // in which waits at mbarriers have run out of time, and nothing came of it
  while (left > 0) {
    bool progress = false;
    for (Block* const block : blocks) {
      if (block->done) continue;
      for (Warp& warp : block->warps) {
        if (!can_run(warp)) continue;
        machine.counted ? run_warp<true>(machine, warp) : run_warp<false>(machine, warp);
        progress = true;
        if (machine.stop) return;
      }
      if (block->live == 0) {
        block->done = true;
        --left;
      }
    }
    if (progress) continue;
    // A wait may give up, and its thread do something else.
    rounds = machine.completions == completions ? rounds + 1 : 0;
    completions = machine.completions;
    if (release_warpgroups(machine, blocks)) continue;
    if (rounds <= kIdleRounds && expire_waits(blocks)) continue;
    if (!force_warps(blocks)) return report_deadlock(machine, blocks);
  }
  for (Block* const block : blocks) check_warpgroups(machine, *block);
  spend(machine, blocks[0]->warps[0]);  // short blocks never yield: their sum may still be over the budget
}

}  // namespace gpusim
