// How many bytes of global memory a warp may have outstanding: what hides DRAM's latency.
#include <algorithm>
#include <set>

#include "gpusim/program.h"

namespace gpusim {
namespace {

bool is_load(const InstructionFacts& facts, const RegisterUse& use) {
  return facts.kind == InstructionClass::global_load && !use.definitions.empty();
}

/// What no load may be moved across.
bool orders_loads(const InstructionFacts& facts) {
  return facts.kind == InstructionClass::global_store || facts.kind == InstructionClass::atomic ||
         facts.kind == InstructionClass::barrier;
}

/// The loads of a straight line of code that ptxas can issue together: it moves them up, ahead of the arithmetic that
/// uses them, but for one whose address needs a value that is still on its way, and not across stores and barriers.
class Window {
 public:
  /// Bytes outstanding once the instruction has been issued.
  std::uint32_t issue(const Instruction& in, const InstructionFacts& facts, const RegisterUse& use) {
    const auto waits = std::any_of(use.uses.begin(), use.uses.end(), [&](int reg) { return late_.contains(reg); });
    const auto bytes = std::uint32_t{in.bytes} * in.elements * kWarpLanes;
    if (facts.key == "cp.commit") groups_.push_back(0);
    if (facts.key == "cp.wait_all") groups_.assign(1, 0);
    if (facts.key == "cp.wait") {  // leaves the last groups, and what is not in one yet
      const auto left = std::min(groups_.size(), static_cast<std::size_t>(in.immediate) + 1);
      groups_.erase(groups_.begin(), groups_.end() - static_cast<std::ptrdiff_t>(left));
    }
    if (facts.key == "cp.async") groups_.back() += bytes;
    if (orders_loads(facts) || (is_load(facts, use) && waits)) end_line();
    if (is_load(facts, use)) loaded_ += bytes;
    for (const std::int32_t reg : use.definitions) {
      if (waits || is_load(facts, use))
        late_.insert(reg);
      else
        late_.erase(reg);
    }
    std::uint32_t all = loaded_;
    for (const std::uint32_t group : groups_) all += group;
    return all;
  }

  /// Registers are there; copies may still be on their way.
  void end_line() {
    loaded_ = 0;
    late_.clear();
  }

 private:
  std::uint32_t loaded_ = 0;                 // into registers
  std::set<std::int32_t> late_;              // these, and what is computed from them
  std::vector<std::uint32_t> groups_ = {0};  // of copies, oldest first; the last one is not committed
};

bool loads_global(const InstructionFacts& facts) {
  return facts.kind == InstructionClass::global_load || facts.key == "cp.async";
}

}  // namespace

void find_bytes_in_flight(Program& program, const std::vector<RegisterUse>& uses,
                          const std::vector<std::vector<int>>& successors) {
  const std::size_t count = program.code.size();
  const std::vector<bool> leads = block_leaders(successors);
  program.in_flight.assign(count, 0);
  for (std::size_t begin = 0, end = 0; begin < count; begin = end) {
    end = begin + 1;
    while (end < count && !leads[end]) ++end;
    const auto& next = successors[end - 1];
    const bool loops = std::find(next.begin(), next.end(), static_cast<int>(begin)) != next.end();
    Window window;
    std::uint32_t most = 0;
    for (int turn = 0; turn < (loops ? 2 : 1); ++turn) {  // copies that one leaves outstanding, the next one adds to
      for (std::size_t i = begin; i < end; ++i)
        most = std::max(most, window.issue(program.code[i], program.facts[i], uses[i]));
      window.end_line();
    }
    for (std::size_t i = begin; i < end; ++i)
      if (loads_global(program.facts[i])) program.in_flight[i] = most;
  }
}

}  // namespace gpusim
