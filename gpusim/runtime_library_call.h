// Work of a library that comes as machine code, which the CPU does in its stead. Streams and graphs take it as they
// take a kernel; what it touches is checked, and its ideal traffic is counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "gpusim/runtime_state.h"

namespace gpusim::runtime {

/// Rows of bytes, `pitch` apart (no less than `width`).
struct Operand {
  const char* what;  ///< what a message calls it
  const void* data;
  std::size_t width, rows, pitch;
  std::size_t span() const { return (rows - 1) * pitch + width; }
};

struct LibraryCall {
  std::string name;  ///< in the report: of all calls of its kind
  std::string what;  ///< in messages: of this one
  std::vector<Operand> reads, writes;
  std::vector<Operand> scratch = {};  ///< written, too, but not counted
  std::uint64_t flops = 0;
  FlopType flop_type = FlopType::f32;
  std::function<void()> run;  ///< on memory that has been found to be there
};

/// Puts it into the stream, or into the graph that the stream captures. When it is reached, operands outside a live
/// allocation break the device as a kernel's would, and bytes that nobody wrote are told of. Each operand counts as
/// moved once.
void submit(State& state, cudaStream_t stream, LibraryCall call);

}  // namespace gpusim::runtime
