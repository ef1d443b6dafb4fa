// How many bytes of global memory a warp may have outstanding: what hides DRAM's latency.
#include <algorithm>
#include <deque>
#include <iterator>

#include "gpusim/program.h"

namespace gpusim {
namespace {

/// A load, or an asynchronous copy, that the warp has not waited for.
struct Outstanding {
  std::uint32_t bytes = 0;
  std::vector<std::int32_t> registers;  ///< that it writes; none: a copy
  int group = 0;                        ///< of a copy: how many were committed before
};

/// A warp issues in order and stops at the first instruction that needs what is still on its way.
class Window {
 public:
  /// Bytes outstanding once the instruction has been issued.
  std::uint32_t issue(const Instruction& in, const InstructionFacts& facts, const RegisterUse& use) {
    if (facts.key == "cp.commit") ++group_;
    if (facts.key == "cp.wait_all") arrive([](const Outstanding& o) { return o.registers.empty(); });
    if (facts.key == "cp.wait")
      arrive([&](const Outstanding& o) { return o.registers.empty() && o.group < group_ - in.immediate; });
    arrive([&](const Outstanding& o) { return touches(use.uses, o) || touches(use.definitions, o); });
    const bool copies = facts.key == "cp.async";
    if (copies || (facts.kind == InstructionClass::global_load && !use.definitions.empty())) {
      const auto bytes = std::uint32_t{in.bytes} * in.elements * kWarpLanes;
      loads_.push_back({bytes, copies ? std::vector<std::int32_t>() : use.definitions, group_});
      bytes_ += bytes;
    }
    return bytes_;
  }

 private:
  static bool touches(const std::vector<std::int32_t>& registers, const Outstanding& load) {
    return std::any_of(registers.begin(), registers.end(), [&](std::int32_t reg) {
      return std::find(load.registers.begin(), load.registers.end(), reg) != load.registers.end();
    });
  }
  /// What was issued before the last one that has to arrive has arrived too.
  template <class Which>
  void arrive(Which which) {
    const auto last = std::find_if(loads_.rbegin(), loads_.rend(), which);
    for (auto left = std::distance(last, loads_.rend()); left > 0; --left) {
      bytes_ -= loads_.front().bytes;
      loads_.pop_front();
    }
  }

  std::deque<Outstanding> loads_;
  std::uint32_t bytes_ = 0;
  int group_ = 0;
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
    for (int pass = 0; pass < (loops ? 2 : 1); ++pass)  // what one turn leaves outstanding, the next one adds to
      for (std::size_t i = begin; i < end; ++i)
        most = std::max(most, window.issue(program.code[i], program.facts[i], uses[i]));
    for (std::size_t i = begin; i < end; ++i)
      if (loads_global(program.facts[i])) program.in_flight[i] = most;
  }
}

}  // namespace gpusim
