// Register allocation: liveness over the flow graph, then a linear scan over intervals.
#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <set>

#include "gpusim/program.h"

namespace gpusim {
namespace {

/// One bit a register.
class RegisterSet {
 public:
  explicit RegisterSet(std::size_t size = 0) : words_((size + 63) / 64) {}
  bool has(std::size_t i) const { return (words_[i / 64] >> (i % 64) & 1) != 0; }
  void add(std::size_t i) { words_[i / 64] |= std::uint64_t{1} << (i % 64); }

  /// this = uses | (out & ~definitions); whether it grew.
  bool flow_in(const RegisterSet& uses, const RegisterSet& out, const RegisterSet& definitions) {
    bool grew = false;
    for (std::size_t i = 0; i < words_.size(); ++i) {
      const std::uint64_t next = uses.words_[i] | (out.words_[i] & ~definitions.words_[i]);
      grew |= next != words_[i];
      words_[i] = next;
    }
    return grew;
  }
  void merge(const RegisterSet& other) {
    for (std::size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  }
  template <class Visit>
  void for_each(Visit visit) const {
    for (std::size_t i = 0; i < words_.size(); ++i) {
      for (std::uint64_t word = words_[i]; word != 0; word &= word - 1) {
        visit(i * 64 + static_cast<std::size_t>(__builtin_ctzll(word)));
      }
    }
  }

 private:
  std::vector<std::uint64_t> words_;
};

struct Block {
  int begin = 0;
  int end = 0;
  std::vector<int> successors;  ///< blocks
  RegisterSet uses;             ///< before any definition in the block
  RegisterSet definitions;
  RegisterSet in;
  RegisterSet out;
};

std::vector<Block> find_blocks(const std::vector<std::vector<int>>& successors, std::size_t registers) {
  const std::size_t count = successors.size();
  const std::vector<bool> leads = block_leaders(successors);
  std::vector<int> block_of(count + 1, -1);
  std::vector<Block> blocks;
  for (std::size_t i = 0; i < count; ++i) {
    if (leads[i]) {
      blocks.push_back({.begin = static_cast<int>(i),
                        .end = 0,
                        .successors = {},
                        .uses = RegisterSet(registers),
                        .definitions = RegisterSet(registers),
                        .in = RegisterSet(registers),
                        .out = RegisterSet(registers)});
    }
    block_of[i] = static_cast<int>(blocks.size()) - 1;
    blocks.back().end = static_cast<int>(i) + 1;
  }
  for (Block& block : blocks) {
    for (const int target : successors[static_cast<std::size_t>(block.end) - 1]) {
      if (target < static_cast<int>(count)) block.successors.push_back(block_of[static_cast<std::size_t>(target)]);
    }
  }
  return blocks;
}

void solve_liveness(std::vector<Block>& blocks, const std::vector<RegisterUse>& code) {
  for (Block& block : blocks) {
    for (int i = block.begin; i < block.end; ++i) {
      for (const int reg : code[static_cast<std::size_t>(i)].uses) {
        if (!block.definitions.has(static_cast<std::size_t>(reg))) block.uses.add(static_cast<std::size_t>(reg));
      }
      for (const int reg : code[static_cast<std::size_t>(i)].definitions) {
        block.definitions.add(static_cast<std::size_t>(reg));
      }
    }
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
      for (const int next : block->successors) block->out.merge(blocks[static_cast<std::size_t>(next)].in);
      changed |= block->in.flow_in(block->uses, block->out, block->definitions);
    }
  }
}

/// From the first to the last instruction at which a register is live; begin > end: never.
struct Interval {
  int begin = INT32_MAX;
  int end = -1;
  void extend(int at) {
    begin = std::min(begin, at);
    end = std::max(end, at);
  }
};

std::vector<Interval> find_intervals(const std::vector<Block>& blocks, const std::vector<RegisterUse>& code,
                                     const std::vector<int>& live_at_entry, std::size_t registers) {
  std::vector<Interval> intervals(registers);
  for (std::size_t i = 0; i < code.size(); ++i) {
    for (const int reg : code[i].uses) intervals[static_cast<std::size_t>(reg)].extend(static_cast<int>(i));
    for (const int reg : code[i].definitions) intervals[static_cast<std::size_t>(reg)].extend(static_cast<int>(i));
  }
  for (const Block& block : blocks) {
    block.in.for_each([&](std::size_t reg) { intervals[reg].extend(block.begin); });
    block.out.for_each([&](std::size_t reg) { intervals[reg].extend(block.end - 1); });
  }
  for (const int reg : live_at_entry) {
    if (intervals[static_cast<std::size_t>(reg)].end >= 0) intervals[static_cast<std::size_t>(reg)].begin = -1;
  }
  return intervals;
}

/// The register whose value `reg` begins with, where that register ends there; -1 where there is none.
int moved_from(const std::vector<RegisterUse>& code, const std::vector<Interval>& intervals, std::size_t reg) {
  const int at = intervals[reg].begin;
  if (at < 0) return -1;
  const RegisterUse& use = code[static_cast<std::size_t>(at)];
  if (!use.moves || use.uses.size() != 1 || use.definitions.size() != 1) return -1;
  if (use.definitions[0] != static_cast<std::int32_t>(reg) || use.uses[0] == use.definitions[0]) return -1;
  return intervals[static_cast<std::size_t>(use.uses[0])].end == at ? use.uses[0] : -1;
}

/// Units that are free again, by how many they are together; the lowest are taken first, so that a warp's registers
/// stay within few cache lines. Registers of different widths never share units: lane i of a 64-bit register lies where
/// lanes 2i and 2i + 1 of a 32-bit one would, and lanes that have diverged may hold the one while others write the
/// other.
class Units {
 public:
  int take(int count) {
    std::set<int>& free = free_[count];
    if (free.empty()) {
      const int first = size_;
      size_ += count;
      return first;
    }
    return free.extract(free.begin()).value();
  }
  void release(int first, int count) { free_[count].insert(first); }
  int size() const { return size_; }

 private:
  std::map<int, std::set<int>> free_;
  int size_ = 0;
};

}  // namespace

std::vector<bool> block_leaders(const std::vector<std::vector<int>>& successors) {
  const std::size_t count = successors.size();
  std::vector<bool> leads(count + 1, false);
  leads[0] = true;
  for (std::size_t i = 0; i < count; ++i) {
    const auto& next = successors[i];
    if (next.size() == 1 && next[0] == static_cast<int>(i) + 1) continue;
    leads[i + 1] = true;
    for (const int target : next) leads[static_cast<std::size_t>(target)] = true;
  }
  return leads;
}

std::vector<std::vector<int>> live_registers(const std::vector<RegisterUse>& code, std::size_t registers,
                                             const std::vector<std::vector<int>>& successors,
                                             const std::vector<int>& points) {
  std::vector<Block> blocks = find_blocks(successors, registers);
  solve_liveness(blocks, code);
  std::vector<std::vector<int>> result;
  for (const int point : points) {
    const auto block = std::find_if(blocks.begin(), blocks.end(),
                                    [point](const Block& b) { return b.begin <= point && point < b.end; });
    std::set<int> live;
    if (block != blocks.end()) {
      block->out.for_each([&](std::size_t reg) { live.insert(static_cast<int>(reg)); });
      for (int i = block->end; i-- > point;) {
        for (const int reg : code[static_cast<std::size_t>(i)].definitions) live.erase(reg);
        for (const int reg : code[static_cast<std::size_t>(i)].uses) live.insert(reg);
      }
    }
    result.emplace_back(live.begin(), live.end());
  }
  return result;
}

RegisterAllocation allocate_registers(const std::vector<RegisterUse>& code, const std::vector<int>& register_units,
                                      const std::vector<std::vector<int>>& successors,
                                      const std::vector<int>& live_at_entry) {
  const std::size_t registers = register_units.size();
  std::vector<Block> blocks = find_blocks(successors, registers);
  solve_liveness(blocks, code);
  const std::vector<Interval> intervals = find_intervals(blocks, code, live_at_entry, registers);

  RegisterAllocation result;
  result.units.assign(registers, -1);
  std::vector<std::size_t> order;
  for (std::size_t reg = 0; reg < registers; ++reg) {
    if (intervals[reg].end < 0) continue;
    if (register_units[reg] == 0) result.units[reg] = 0;
    if (register_units[reg] != 0) order.push_back(reg);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return intervals[a].begin < intervals[b].begin; });

  Units units;
  const auto ends_later = [&](std::size_t a, std::size_t b) { return intervals[a].end > intervals[b].end; };
  std::vector<std::size_t> active;  // a heap, the first to end on top
  std::vector<bool> taken_over(registers, false);
  for (const std::size_t reg : order) {
    while (!active.empty() && intervals[active.front()].end < intervals[reg].begin) {
      std::pop_heap(active.begin(), active.end(), ends_later);
      const std::size_t ended = active.back();
      if (!taken_over[ended]) units.release(result.units[ended], register_units[ended]);
      active.pop_back();
    }
    const int from = moved_from(code, intervals, reg);
    if (from >= 0 && register_units[static_cast<std::size_t>(from)] == register_units[reg]) {
      result.units[reg] = result.units[static_cast<std::size_t>(from)];
      taken_over[static_cast<std::size_t>(from)] = true;
    } else {
      result.units[reg] = units.take(register_units[reg]);
    }
    active.push_back(reg);
    std::push_heap(active.begin(), active.end(), ends_later);
  }
  result.unit_count = units.size();
  return result;
}

}  // namespace gpusim
