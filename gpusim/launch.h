// Modules of PTX, and the launch of a kernel from one: what the CUDA runtime of this library stands on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gpusim/counts.h"
#include "gpusim/cubin.h"
#include "gpusim/device_model.h"
#include "gpusim/finding.h"
#include "gpusim/memory.h"

namespace gpusim {

/// Which checks look on. Each can be on alone; what it costs is in README.md.
struct Checks {
  bool memory = false;       ///< bounds, alignment, use after free: global, shared, local
  bool initialised = false;  ///< uninitialised global and shared memory
  bool shared_races = false;
  bool global_races = false;
  bool barriers = false;      ///< divergent or mismatched; shuffles' masks
  bool async_copies = false;  ///< performed at their wait, so that a missing one shows
  bool leaks = false;
  bool streams = false;  ///< copies delayed to the synchronisation that orders them
  static Checks all();
  bool any_global() const { return memory || initialised; }
};

struct Settings {
  Checks checks;
  bool counts = false;
  int threads = 0;                       ///< host cores, 0: all. Results and counts do not depend on it
  std::uint64_t instruction_budget = 0;  ///< warp instructions a launch may run, 0: unlimited
  std::string isa;                       ///< "avx2", "avx512", "portable"; empty: the best that the CPU has
  bool touched = false;                  ///< fill LaunchResult::loaded, stored and atomics
};

/// A variable of a module in global or constant memory (`__device__`, `__constant__`, `__managed__`).
struct ModuleVariable {
  std::string name;
  std::uint64_t address = 0;
  std::size_t bytes = 0;
};

/// What the runtime reports of a kernel (cudaFuncAttributes, occupancy).
struct KernelInfo {
  std::string name;  ///< mangled, as in PTX
  std::vector<std::size_t> parameter_offsets;
  std::vector<std::size_t> parameter_sizes;
  std::size_t parameter_bytes = 0;
  std::size_t static_shared_bytes = 0;
  std::size_t local_bytes = 0;  ///< a thread
  int registers = 0;            ///< a thread: ptxas's where there is machine code, else what is live at once at most
  int machine_code = 0;         ///< 80 where sm_80 has said registers and stack_bytes; 0: nobody
  std::size_t stack_bytes = 0;  ///< a thread, as CompiledKernel has it
  int max_threads = 1024;       ///< .maxntid, else 1024
  Dim3 cluster = {0, 0, 0};     ///< .reqnctapercluster, zeros where none is asked for
  std::vector<std::string> unsupported;  ///< instructions that would be refused when reached, with source lines
};

/// A PTX module, parsed; its variables live in `memory`, which outlives it. Kernels are lowered when first launched.
/// Thread-safe for launches.
class Module {
 public:
  /// Throws dsv2::Error with the line of PTX that it does not understand.
  static std::unique_ptr<Module> load(std::string_view ptx, DeviceMemory& memory);
  /// One module of several texts that were compiled apart; at least one.
  /// `compiled`: what ptxas made of its kernels, where that is known.
  static std::unique_ptr<Module> link(std::span<const std::string> texts, DeviceMemory& memory,
                                      CompiledKernels compiled = {});
  virtual ~Module() = default;
  virtual std::vector<std::string> kernels() const = 0;
  /// Null when the module has no such kernel. Throws dsv2::Error when its code cannot be lowered.
  virtual const KernelInfo* kernel(std::string_view name) = 0;
  virtual const ModuleVariable* variable(std::string_view name) const = 0;
};

struct LaunchConfig {
  Dim3 grid;
  Dim3 block;
  Dim3 cluster;  ///< blocks of a cluster; 1 where none
  std::size_t dynamic_shared_bytes = 0;
  std::size_t stack_bytes = 1024;         ///< a thread: cudaLimitStackSize
  std::size_t heap_bytes = 8 << 20;       ///< of kernels' malloc together: cudaLimitMallocHeapSize
  bool cooperative = false;               ///< all blocks at once: they may wait for each other
  std::span<const std::byte> parameters;  ///< KernelInfo::parameter_bytes, laid out at its offsets
  std::uint64_t launch_id = 0;            ///< for messages
};

/// Counts of one line, in the order of the source.
struct LineCounts {
  SourcePlace place;
  Counts counts;
};

/// Bytes of device memory.
struct MemoryRange {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  bool operator==(const MemoryRange&) const = default;
};

/// How a launch ended, as the CUDA runtime would say it at the next synchronisation.
enum class LaunchStatus : std::uint8_t { ok, illegal_address, misaligned_address, illegal_instruction, trap, time_out };

struct LaunchResult {
  LaunchStatus status = LaunchStatus::ok;
  std::vector<Finding> findings;
  Counts counts;                     ///< zeros unless Settings::counts
  std::vector<LineCounts> lines;     ///< empty unless Settings::counts
  double warp_bytes_in_flight = 0;   ///< that a warp has outstanding where it loads, mean over the bytes loaded; counts
  std::vector<MemoryRange> loaded;   ///< bytes of global memory that were read, merged, by address
  std::vector<MemoryRange> stored;   ///< the same, written
  std::vector<MemoryRange> atomics;  ///< the same, accessed atomically
  double seconds = 0;                ///< of simulation
};

/// Runs a kernel to its end. `config` was checked against the device model by the caller. Blocks run in parallel on
/// the host's cores; where their order can be seen in the result (float atomics, returned values, locks), in order
/// on one core: two runs give the same bits.
LaunchResult launch(Module& module, std::string_view kernel, const LaunchConfig& config, DeviceMemory& memory,
                    const DeviceModel& device, const Settings& settings);

}  // namespace gpusim
