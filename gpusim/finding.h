// What a check found, where: one entry for each kind and place in the source, however often it fired.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gpusim {

enum class FindingKind : std::uint8_t {
  out_of_bounds,  ///< global, shared or local memory outside any allocation
  use_after_free,
  misaligned,
  uninitialised,          ///< global or shared bytes that nobody wrote, read
  shared_race,            ///< two warps of a block, one writes, no barrier between
  shared_race_in_warp,    ///< the same within a warp, no __syncwarp between: a warning
  global_race,            ///< two blocks of a launch, one writes, not atomic
  stream_race,            ///< host or another stream touches what a stream has not finished
  divergent_barrier,      ///< part of a warp, or of a block, or different barriers
  async_copy_not_waited,  ///< cp.async or bulk copy consumed before its wait
  bad_shuffle,            ///< a lane of the mask that does not take part
  deadlock,
  instruction_budget,  ///< a kernel that does not end
  unsupported,         ///< an instruction that is not modelled, reached
  trap,                ///< trap, failed assert
  leak,
  invalid_argument,  ///< a runtime call refused, with what would help
  mbarrier_misuse,   ///< not initialised, initialised twice, more arrivals or bytes than a phase can take
  bulk_copy_misuse,  ///< size, alignment or tensor map of a bulk copy
  missing_fence,     ///< fence.proxy.async or wgmma.fence
};
/// "out-of-bounds", ...: as reports spell it.
std::string_view name_of(FindingKind kind);

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  std::uint64_t count() const { return std::uint64_t{x} * y * z; }
  bool operator==(const Dim3&) const = default;
};

/// A line of the program's source. Code that was inlined from a header of CUDA is placed where it was inlined.
struct SourcePlace {
  std::string file;  ///< as the compiler wrote it; empty when compiled without -lineinfo
  int line = 0;
  std::string ptx;  ///< the instruction's text
};

struct Finding {
  FindingKind kind = FindingKind::unsupported;
  bool warning = false;  ///< told, does not fail the run
  std::string kernel;    ///< demangled; empty for host-side findings
  SourcePlace place;
  SourcePlace other;  ///< of a race: the access that it meets; empty file and ptx otherwise
  Dim3 block;
  Dim3 thread;
  std::uint64_t times = 1;
  std::string message;  ///< one line: what, the address, the allocation, expected and found
};

/// "kernel: file.cu:12: out-of-bounds: ... block (0,0,0) thread (3,0,0) [ld.global.f32 ...] (17 times)".
std::string to_string(const Finding& finding);

}  // namespace gpusim
