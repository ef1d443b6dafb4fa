// What a launch did, counted: the figures of a profiler, each one the same in every run.
#pragma once

#include <array>
#include <cstdint>

namespace gpusim {

/// Classes of warp instructions, as a profiler's instruction mix names them.
enum class InstructionClass : std::uint8_t {
  integer,
  f32,
  f64,
  f16,
  special,
  tensor,
  convert,
  move,
  global_load,
  global_store,
  shared_load,
  shared_store,
  local,
  constant,
  atomic,
  async_copy,
  shuffle,
  vote,
  barrier,
  branch,
  other,
};
inline constexpr int kInstructionClasses = static_cast<int>(InstructionClass::other) + 1;

/// Types by which FLOPs are told apart. An FMA is two, an `ex2` or `rcp` one.
enum class FlopType : std::uint8_t {
  f32,
  f64,
  f16,
  bf16,
  tensor_bf16,
  tensor_f16,
  tensor_tf32,
  tensor_int8,
  tensor_f64,
  tensor_fp8,
  tensor_int4,  ///< and narrower
};
inline constexpr int kFlopTypes = static_cast<int>(FlopType::tensor_int4) + 1;

/// Counts of one PTX instruction, of one source line, or of a whole launch: they add up.
struct Counts {
  std::uint64_t warp_instructions = 0;
  std::uint64_t thread_instructions = 0;                         ///< active lanes whose predicate held, summed
  std::array<std::uint64_t, kInstructionClasses> by_class = {};  ///< warp instructions
  std::array<std::uint64_t, kFlopTypes> flops = {};

  std::uint64_t global_load_requests = 0;  ///< warp instructions that read global memory
  std::uint64_t global_store_requests = 0;
  std::uint64_t global_load_sectors = 0;  ///< 32-byte sectors they touch: what L1/L2 must serve
  std::uint64_t global_store_sectors = 0;
  std::uint64_t global_ideal_sectors = 0;  ///< the least for as many distinct bytes, loads and stores
  std::uint64_t global_load_bytes = 0;     ///< bytes that lanes asked for
  std::uint64_t global_store_bytes = 0;
  std::uint64_t distinct_load_sectors = 0;  ///< of the whole launch: the least that DRAM must move (launch only)
  std::uint64_t distinct_store_sectors = 0;

  std::uint64_t shared_requests = 0;
  std::uint64_t shared_wavefronts = 0;        ///< passes through 32 banks of 4 bytes
  std::uint64_t shared_ideal_wavefronts = 0;  ///< passes without a conflict
  std::uint64_t branches = 0;
  std::uint64_t divergent_branches = 0;
  std::uint64_t barriers = 0;  ///< block barriers completed
  std::uint64_t atomics = 0;   ///< lanes

  Counts& operator+=(const Counts& other);
  bool operator==(const Counts&) const = default;
};

}  // namespace gpusim
