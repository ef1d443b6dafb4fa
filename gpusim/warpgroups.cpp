// What wgmma asks for beside the arithmetic: order, fences, operands in bounds, registers left alone.
#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <span>
#include <utility>

#include "gpusim/interpreter.h"
#include "gpusim/mbarrier.h"
#include "gpusim/race.h"
#include "gpusim/wgmma.h"
#include "model/error.h"

namespace gpusim {
namespace {

constexpr std::uint32_t kChunkBytes = 16;
constexpr std::uint32_t kAddressBits = 18;

/// A field of a descriptor: 14 bits, in units of 16 bytes.
std::uint32_t field(std::uint64_t descriptor, int shift) {
  return static_cast<std::uint32_t>(descriptor >> shift & 0x3fffu) << 4;
}

/// Rows and chunks of an operand: 16 rows of A, N columns of B, with 32 bytes of K each.
struct Extent {
  std::uint32_t rows = 0;
  std::uint32_t chunks = 0;
};
Extent extent_of(std::uint32_t size, bool transposed) {
  if (transposed) return {kWgmmaDepthBytes / 2, size / 8};  // of 16-bit elements
  return {size, kWgmmaDepthBytes / kChunkBytes};
}

/// Calls `visit` with the offsets of an operand's chunks, 32 at a time.
template <class Visit>
void for_chunks(const MatrixLayout& layout, Extent extent, std::uint32_t first_row, std::uint32_t first_chunk,
                Visit visit) {
  Addresses addresses;
  int count = 0;
  const auto flush = [&] {
    if (count == 0) return;
    addresses.mask = count == kWarpLanes ? ~0u : (1u << count) - 1;
    visit(addresses);
    count = 0;
  };
  for (std::uint32_t row = 0; row < extent.rows; ++row) {
    for (std::uint32_t chunk = 0; chunk < extent.chunks; ++chunk) {
      addresses.at[count++] = layout.chunk(first_row + row, first_chunk + chunk);
      if (count == kWarpLanes) flush();
    }
  }
  flush();
}

/// The operands of `in` in shared memory: the warp's rows of A, and B unless `a_alone`.
template <class Visit>
void for_operands(const Warp& warp, const Instruction& in, std::uint64_t a, std::uint64_t b, Visit visit,
                  bool a_alone = false) {
  const bool transposed_a = (in.mode & kWgmmaTransposeA) != 0;
  const bool transposed_b = (in.mode & kWgmmaTransposeB) != 0;
  if (in.a >= 0) {
    const auto rank = static_cast<std::uint32_t>(warp.index % kWarpgroupWarps);
    const std::uint32_t row = transposed_a ? 0 : rank * kWgmmaRows;
    const std::uint32_t chunk = transposed_a ? rank * (kWgmmaRows / 8) : 0;
    for_chunks(MatrixLayout(a, transposed_a), extent_of(kWgmmaRows, transposed_a), row, chunk, visit);
  }
  if (a_alone) return;
  const auto columns = static_cast<std::uint32_t>(in.immediate);
  for_chunks(MatrixLayout(b, transposed_b), extent_of(columns, transposed_b), 0, 0, visit);
}

std::uint64_t descriptor_of(const Warp& warp, std::int32_t slot) {
  return slot < 0 ? 0 : read_slot(warp, slot, std::countr_zero(warp.exec), 8);
}

/// Descriptors are one for the warpgroup, or at least for the warp.
bool is_uniform(const Warp& warp, std::int32_t slot) {
  if (slot < 0) return true;
  const std::uint64_t first = read_slot(warp, slot, 0, 8);
  for (int lane = 1; lane < kWarpLanes; ++lane) {
    if (read_slot(warp, slot, lane, 8) != first) return false;
  }
  return true;
}

/// All four warps, and all of their threads, run the same products in the same order.
bool meet_warpgroup(Warp& warp, const Instruction& in) {
  Block& block = *warp.block;
  const std::uint32_t at = warp.machine->index_of(in);
  const bool checked = warp.machine->checks.barriers;
  if (warp.exec != ~0u) {  // the gathering of lanes has told, where barriers are checked
    if (!checked) abort_launch(warp, LaunchStatus::illegal_instruction);
    return false;
  }
  const std::size_t group = warp.index / kWarpgroupWarps;
  if ((group + 1) * kWarpgroupWarps > block.warps.size()) {
    report(warp, at, FindingKind::divergent_barrier, warp.exec,
           dsv2::concat("wgmma in a warpgroup of ", block.warps.size() - group * kWarpgroupWarps, " warps"));
    return false;
  }
  if (!checked) return true;
  Warpgroup& warpgroup = block.warpgroups[group];
  const std::uint32_t index = warp.products_issued++ - warpgroup.passed;
  if (index == warpgroup.order.size()) {
    warpgroup.order.push_back(at);
  } else if (warpgroup.order[index] != at) {
    FindingRecord* const found = record(warp, at, FindingKind::divergent_barrier, warp.exec);
    if (found != nullptr) {
      found->message = "the warps of a warpgroup run different wgmma";
      found->other = warpgroup.order[index];
    }
  }
  std::uint32_t least = ~0u;
  for (std::size_t i = 0; i < kWarpgroupWarps; ++i)
    least = std::min(least, block.warps[group * kWarpgroupWarps + i].products_issued);
  if (const std::uint32_t done = least - warpgroup.passed; done > 0) {
    warpgroup.order.erase(warpgroup.order.begin(), warpgroup.order.begin() + done);
    warpgroup.passed = least;
  }
  return true;
}

/// All of an operand that a warpgroup reads.
bool is_surely_inside(const Block& block, std::uint64_t descriptor, bool transposed, std::uint32_t size) {
  const Extent extent = extent_of(size, transposed);
  const auto [first, end] = MatrixLayout(descriptor, transposed).bounds(extent.rows, extent.chunks);
  return first >= kSharedBase && end <= block.shared_end;
}

bool are_inside(Warp& warp, const Instruction& in, std::uint64_t a, std::uint64_t b) {
  const bool a_is_inside =
      in.a < 0 || is_surely_inside(*warp.block, a, (in.mode & kWgmmaTransposeA) != 0, kWgmmaRows * kWarpgroupWarps);
  if (a_is_inside &&
      is_surely_inside(*warp.block, b, (in.mode & kWgmmaTransposeB) != 0, static_cast<std::uint32_t>(in.immediate))) {
    return true;
  }
  std::uint64_t wrong = 0;
  const std::uint64_t end = warp.block->shared_end;
  for_operands(warp, in, a, b, [&](const Addresses& addresses) {
    for_lanes(addresses.mask, [&](int lane) {
      const std::uint64_t at = addresses.at[lane];
      if (wrong == 0 && (at < kSharedBase || at + kChunkBytes > end)) wrong = std::max<std::uint64_t>(at, 1);
    });
  });
  if (wrong == 0) return true;
  std::uint64_t offsets[kWarpLanes] = {wrong};
  bad_shared_access(warp, in, 1, offsets, kChunkBytes, Access::read);
  return false;
}

void check_operands(Warp& warp, const Instruction& in, std::uint64_t a, std::uint64_t b) {
  for_operands(warp, in, a, b, [&](const Addresses& addresses) {
    check_shared(warp, in, addresses, kChunkBytes, Access::read);
    if (!tracks_warps(*warp.block)) return;
    for_lanes(addresses.mask, [&](int lane) {
      check_proxy_fence(warp, in, 1u, static_cast<std::uint32_t>(addresses.at[lane]), kChunkBytes);
    });
  });
}

/// B is read once for the warpgroup, A by its warps; core matrices of 128 bytes meet no conflicts.
void count_operands(Warp& warp, const Instruction& in) {
  MemoryCounts& counts = warp.machine->memory_counts[warp.machine->index_of(in)];
  const auto count = [&](std::uint64_t bytes) {
    ++counts.shared_requests;
    counts.shared_wavefronts += (bytes + 127) / 128;
    counts.shared_ideal += (bytes + 127) / 128;
  };
  if (in.a >= 0) count(std::uint64_t{kWgmmaRows} * kWgmmaDepthBytes);
  if (warp.index % kWarpgroupWarps == 0) count(static_cast<std::uint64_t>(in.immediate) * kWgmmaDepthBytes);
}

/// The warps of `warp`'s warpgroup.
std::span<Warp> warps_of(const Warp& warp) {
  std::vector<Warp>& all = warp.block->warps;
  const std::size_t first = warp.index / kWarpgroupWarps * kWarpgroupWarps;
  return std::span(all).subspan(first, std::min(kWarpgroupWarps, all.size() - first));
}

/// The products in the first `groups` groups have been reading their operands up to now. `waits`: this warp waits for
/// them, and stands for the others in what it notes of B. Where another has done so already, writes by this warp are
/// still none that it may have done.
void finish_reads(Warp& warp, std::uint32_t groups, bool waits) {
  for (WgmmaInFlight& product : warp.products) {
    if (product.group >= groups || (product.read && !waits)) continue;
    const bool again = std::exchange(product.read, true);
    const Instruction& in = warp.machine->code[product.at];
    const auto finish = [&](const Addresses& addresses) {
      bool overwritten = false;
      for_lanes(addresses.mask, [&](int lane) {
        overwritten |= check_overwritten(warp, product.at, product.stamp,
                                         static_cast<std::uint32_t>(addresses.at[lane]), kChunkBytes, again);
      });
      if (!overwritten && !again) check_shared_race(warp, in, addresses, kChunkBytes, Access::read);
    };
    for_operands(warp, in, product.a, product.b, finish, !waits);
  }
}

/// A product is one of four warps: who has waited for it knows that all of them are done with its operands.
void finish_groups(Warp& warp, std::uint32_t groups) {
  Block& block = *warp.block;
  if (tracks_warps(block) && !warp.products.empty()) {
    for (Warp& other : warps_of(warp)) {
      finish_reads(other, groups, other.index == warp.index);
      if (other.index != warp.index) warp.clocks[other.index] = std::max(warp.clocks[other.index], block.stamp);
    }
    warp.ordered_stamp = block.stamp;  // and its own lanes know, too
    order_block(block, true);
  }
  std::erase_if(warp.products, [&](const WgmmaInFlight& product) { return product.group < groups; });
}

bool have_closed(const Warp& warp, std::uint32_t groups) {
  const auto warps = warps_of(warp);
  return std::all_of(warps.begin(), warps.end(), [&](const Warp& other) { return other.product_groups >= groups; });
}

void commit(Warp& warp, const Instruction& in) {
  if (!lanes_gathered(warp, in)) return;
  if (tracks_warps(*warp.block) && !warp.products.empty()) {
    for (WgmmaInFlight& product : warp.products) {
      if (product.group == warp.product_groups) product.stamp = warp.block->stamp;
    }
    order_block(*warp.block, true);
  }
  ++warp.product_groups;
  for (Warp& other : warps_of(warp)) {
    for (Group& group : other.others) {
      if (group.wait != Wait::warpgroup || !have_closed(other, group.parity)) continue;
      group.wait = Wait::none;
      finish_groups(other, group.parity);
    }
  }
}

/// Waits until the other warps have come as far, too: then the products are done.
void wait_group(Warp& warp, const Instruction& in) {
  if (!lanes_gathered(warp, in)) return;
  const auto keep = static_cast<std::uint32_t>(in.immediate);
  const std::uint32_t groups = warp.product_groups - std::min(keep, warp.product_groups);
  if (have_closed(warp, groups)) return finish_groups(warp, groups);
  stop_lanes(
      warp,
      {.pc = warp.pc, .mask = warp.exec, .wait = Wait::warpgroup, .at = warp.machine->index_of(in), .parity = groups});
}

void fence(Warp& warp, const Instruction& in) { lanes_gathered(warp, in); }

// ---- hazards, found before the program runs

bool is_product(const InstructionFacts& facts) { return facts.key.starts_with("wgmma.mma."); }

/// Products that share their accumulators are one list; more lists than bits are not looked for.
constexpr std::size_t kMostLists = 64;

class Hazards {
 public:
  Hazards(Program& program, const std::vector<RegisterUse>& uses, const std::vector<std::vector<int>>& successors)
      : program_(program), uses_(uses), successors_(successors) {}

  void run() {
    find_lists();
    if (lists_.empty()) return;
    find_unfenced();
    track_copies();
    find_touches();
  }

 private:
  using Registers = std::vector<std::int32_t>;
  /// Of a tracked register: the lists of products that may be writing it, in groups that are open and closed.
  struct Writers {
    std::uint64_t open = 0;
    std::uint64_t closed = 0;
  };
  using State = std::vector<Writers>;

  void find_lists() {
    for (std::size_t i = 0; i < program_.code.size(); ++i) {
      if (!is_product(program_.facts[i])) continue;
      Registers registers = uses_[i].definitions;
      std::sort(registers.begin(), registers.end());
      const auto known = std::find(lists_.begin(), lists_.end(), registers);
      program_.code[i].target = static_cast<std::int32_t>(known - lists_.begin());
      if (known != lists_.end()) continue;
      for (const std::int32_t reg : registers) track(reg);
      lists_.push_back(std::move(registers));
    }
  }

  void track(std::int32_t reg) { tracked_.try_emplace(reg, tracked_.size()); }

  /// A copy of one register into another, as the compiler makes them between products: no use of the value.
  bool is_copy(std::size_t i) const {
    return program_.facts[i].key.starts_with("mov.b") && program_.code[i].guard < 0 && uses_[i].uses.size() == 1 &&
           uses_[i].definitions.size() == 1;
  }

  void track_copies() {
    for (std::size_t before = 0; before != tracked_.size();) {
      before = tracked_.size();
      for (std::size_t i = 0; i < program_.code.size(); ++i) {
        if (is_copy(i) && tracked_.contains(uses_[i].uses[0])) track(uses_[i].definitions[0]);
      }
    }
  }

  /// Products that no fence leads to.
  void find_unfenced() {
    std::vector<bool> fenced(program_.code.size(), false);
    std::vector<std::size_t> work;
    for (std::size_t i = 0; i < program_.code.size(); ++i) {
      if (program_.facts[i].key == "wgmma.fence") work.push_back(i);
    }
    while (!work.empty()) {
      const std::size_t at = work.back();
      work.pop_back();
      for (const int next : successors_[at]) {
        const auto to = static_cast<std::size_t>(next);
        if (to >= fenced.size() || fenced[to]) continue;
        fenced[to] = true;
        work.push_back(to);
      }
    }
    for (std::size_t i = 0; i < program_.code.size(); ++i) {
      if (is_product(program_.facts[i]) && !fenced[i]) program_.code[i].mode |= kWgmmaUnfenced;
    }
  }

  /// The state after instruction `i`; notes what it touches.
  void step(std::size_t i, State& state) {
    const InstructionFacts& facts = program_.facts[i];
    const RegisterUse& use = uses_[i];
    if (is_product(facts)) {
      const auto list = static_cast<std::size_t>(program_.code[i].target);
      const std::uint64_t bit = list < kMostLists ? std::uint64_t{1} << list : 0;
      for (const std::int32_t reg : use.definitions) state[tracked_.at(reg)] = {.open = bit};
      return;
    }
    if (facts.key == "wgmma.wait") {
      if (program_.code[i].immediate != 0) return;
      for (Writers& writers : state) writers.closed = 0;
      return;
    }
    if (facts.key == "wgmma.commit") {
      for (Writers& writers : state) {
        writers.closed |= writers.open;
        writers.open = 0;
      }
      return;
    }
    if (is_copy(i)) {
      const auto from = tracked_.find(use.uses[0]);
      const auto to = tracked_.find(use.definitions[0]);
      if (to != tracked_.end()) state[to->second] = from != tracked_.end() ? state[from->second] : Writers{};
      return;
    }
    std::uint64_t touched = 0;
    for (const Registers* const registers : {&use.uses, &use.definitions}) {
      for (const std::int32_t reg : *registers) {
        const auto found = tracked_.find(reg);
        if (found != tracked_.end()) touched |= state[found->second].open | state[found->second].closed;
      }
    }
    if (touched != 0) program_.product_touches[static_cast<std::uint32_t>(i)] |= touched;
    if (program_.code[i].guard >= 0) return;
    for (const std::int32_t reg : use.definitions) {
      const auto found = tracked_.find(reg);
      if (found != tracked_.end()) state[found->second] = {};
    }
  }

  /// Forward, to a fixed point; instructions where paths meet keep the union of their states.
  void find_touches() {
    const std::size_t count = program_.code.size();
    std::vector<int> incoming(count + 1, 0);
    for (std::size_t i = 0; i < count; ++i) {
      for (const int next : successors_[i]) ++incoming[static_cast<std::size_t>(next)];
    }
    std::map<std::size_t, State> states;  // where several paths meet, or one that is no straight line begins
    std::vector<std::size_t> work;
    const auto flow = [&](std::size_t to, const State& state) {
      if (to >= count) return;
      const auto [entry, fresh] = states.try_emplace(to, state);
      bool changed = fresh;
      for (std::size_t r = 0; r < state.size() && !fresh; ++r) {
        Writers& known = entry->second[r];
        changed |= ((state[r].open & ~known.open) | (state[r].closed & ~known.closed)) != 0;
        known.open |= state[r].open;
        known.closed |= state[r].closed;
      }
      if (changed) work.push_back(to);
    };
    flow(0, State(tracked_.size()));
    while (!work.empty()) {
      std::size_t at = work.back();
      work.pop_back();
      State state = states.at(at);
      for (;;) {
        step(at, state);
        const auto& next = successors_[at];
        const bool straight =
            next.size() == 1 && static_cast<std::size_t>(next[0]) == at + 1 && at + 1 < count && incoming[at + 1] == 1;
        if (straight) {
          ++at;
          continue;
        }
        for (const int to : next) flow(static_cast<std::size_t>(to), state);
        break;
      }
    }
  }

  Program& program_;
  const std::vector<RegisterUse>& uses_;
  const std::vector<std::vector<int>>& successors_;
  std::vector<Registers> lists_;
  std::map<std::int32_t, std::size_t> tracked_;
};

}  // namespace

MatrixLayout::MatrixLayout(std::uint64_t descriptor, bool transposed) {
  const std::uint32_t leading = field(descriptor, 16);
  const std::uint32_t stride = field(descriptor, 32);
  constexpr std::uint32_t kSpans[] = {16, 128, 64, 32};
  const std::uint32_t span = kSpans[descriptor >> 62];
  start_ = field(descriptor, 0) & ((1u << kAddressBits) - 1);
  base_offset_ = static_cast<std::uint32_t>(descriptor >> 49 & 7u);
  phases_ = span / 16 - 1;
  pitch_ = span;
  if (span == 16) {
    row_step_ = transposed ? leading : stride;
    far_step_ = transposed ? stride : leading;
  } else {
    row_step_ = stride;
    chunk_bits_ = static_cast<std::uint32_t>(std::countr_zero(span / 16));
    far_step_ = transposed ? leading : 0;
  }
}

bool begin_product(Warp& warp, const Instruction& in) {
  Machine& machine = *warp.machine;
  if (!lanes_gathered(warp, in)) return false;
  if (!meet_warpgroup(warp, in)) return false;
  const std::uint64_t a = descriptor_of(warp, in.a);
  const std::uint64_t b = descriptor_of(warp, in.b);
  const std::uint32_t at = machine.index_of(in);
  if (machine.checks.barriers && (in.mode & kWgmmaUnfenced) != 0) {
    report(warp, at, FindingKind::missing_fence, warp.exec, "wgmma with no wgmma.fence before it");
  }
  if (machine.checks.barriers && (!is_uniform(warp, in.a) || !is_uniform(warp, in.b))) {
    report(warp, at, FindingKind::divergent_barrier, warp.exec, "the warp's threads give wgmma different descriptors");
  }
  if (!are_inside(warp, in, a, b)) return false;
  if (machine.counted) count_operands(warp, in);
  if (machine.observes) check_operands(warp, in, a, b);
  if (machine.checks.async_copies) warp.products.push_back({.at = at, .group = warp.product_groups, .a = a, .b = b});
  return true;
}

void check_product_registers(Warp& warp, const Instruction& in, std::uint64_t lists) {
  const Machine& machine = *warp.machine;
  if (!machine.checks.async_copies) return;
  for (const WgmmaInFlight& product : warp.products) {
    const auto list = static_cast<std::uint32_t>(machine.code[product.at].target);
    if (list >= kMostLists || (lists >> list & 1u) == 0) continue;
    const bool committed = product.group < warp.product_groups;
    FindingRecord* const found = record(warp, machine.index_of(in), FindingKind::async_copy_not_waited, warp.mask);
    if (found == nullptr) return;
    found->other = product.at;
    found->message = committed
                         ? "use of a register that wgmma is still to write: no wgmma.wait_group has waited for it"
                         : "use of a register that wgmma is still to write: no wgmma.commit_group has closed its group";
    return;
  }
}

void check_warpgroups(Machine& machine, Block& block) {
  if (!machine.checks.barriers) return;
  for (std::size_t group = 0; group < block.warpgroups.size(); ++group) {
    Warpgroup& warpgroup = block.warpgroups[group];
    if (warpgroup.order.empty()) continue;
    const auto end = static_cast<std::uint32_t>(warpgroup.passed + warpgroup.order.size());
    const auto warps = warps_of(block.warps[group * kWarpgroupWarps]);
    const auto has_run = [end](const Warp& warp) { return warp.products_issued == end; };
    const auto missing = std::count_if(warps.begin(), warps.end(), std::not_fn(has_run));
    report(*std::find_if(warps.begin(), warps.end(), has_run), warpgroup.order.back(), FindingKind::divergent_barrier,
           ~0u, dsv2::concat("wgmma that ", missing, " of the warpgroup's 4 warps did not run"));
    warpgroup.order.clear();
    for (Warp& warp : warps) warp.products_issued = end;
    warpgroup.passed = end;
  }
}

bool release_warpgroups(Machine& machine, std::span<Block* const> blocks) {
  bool any = false;
  for (Block* const block : blocks) {
    for (Warp& warp : block->warps) {
      for (Group& group : warp.others) {
        if (group.wait != Wait::warpgroup) continue;
        check_warpgroups(machine, *block);
        group.wait = Wait::none;
        finish_groups(warp, group.parity);
        any = true;
      }
    }
  }
  return any;
}

void find_product_hazards(Program& program, const std::vector<RegisterUse>& uses,
                          const std::vector<std::vector<int>>& successors) {
  Hazards(program, uses, successors).run();
}

void register_warpgroups(HandlerRegistry& registry) {
  add_handler(registry, "wgmma.commit", "", commit);
  add_handler(registry, "wgmma.wait", "", wait_group);
  add_handler(registry, "wgmma.fence", "", fence);
}

}  // namespace gpusim
