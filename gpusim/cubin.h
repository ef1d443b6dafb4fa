// What ptxas made of kernels, from the machine code beside their PTX. The code itself is not run here.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>

namespace gpusim {

struct CompiledKernel {
  int capability = 0;           ///< 80 for sm_80
  int registers = 0;            ///< a thread
  std::size_t stack_bytes = 0;  ///< local memory of a thread: spilled registers, and arrays that are no registers
};
/// By mangled name.
using CompiledKernels = std::map<std::string, CompiledKernel, std::less<>>;

/// Reads an ELF image of machine code; `capability` is what the result says. Throws dsv2::Error where it is none, or
/// truncated.
CompiledKernels read_cubin(std::span<const std::byte> image, int capability);

}  // namespace gpusim
