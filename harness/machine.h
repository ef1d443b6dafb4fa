// The machine that a report was made on, and what it can do at best.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

namespace dsv2::harness {

/// Measured with `threads` threads: what shares of the roof refer to.
struct MachineLimits {
  double read_bandwidth_gb_s = 0;  ///< streaming reads of a buffer far larger than the caches, best of several passes
  double peak_f32_gflop_s = 0;     ///< independent FMAs in registers, widest ISA present
  std::optional<double> peak_bf16_gflop_s = {};  ///< bf16 dot products into f32; absent where the CPU has none
  std::optional<double> peak_int8_gflop_s = {};  ///< 8-bit dot products into 32 bits (an operation is a FLOP here)
};

struct Machine {
  std::string cpu;  ///< model name as the kernel gives it
  std::string isa;  ///< widest that the optimized CPU backend would choose
  int cores = 0;    ///< available to this process
  std::int64_t memory_bytes = 0;
  // Of the CPUs available to this process, instances that they share counted once; nullopt where the system is silent.
  std::optional<std::int64_t> last_level_cache_bytes;
  std::optional<std::int64_t> cache_bytes;         ///< of all levels together: what can be read without memory
  std::optional<double> clock_mhz, max_clock_mhz;  ///< highest of those CPUs; now (when first asked), and at most
  std::optional<std::string> governor;             ///< of the frequency: "performance", "powersave", ...
  std::optional<bool> smt;                         ///< are two hardware threads of one core in use?
  std::optional<double> load_average;              ///< over a minute, when first asked
};

/// Described at the first call.
const Machine& machine();
/// Takes about half a second.
MachineLimits measure_limits(int threads);
/// The higher of each limit: two measurements of one machine, of which a busy moment spoiled one.
MachineLimits best_of(const MachineLimits& a, const MachineLimits& b);

/// Reads and writes a buffer of twice the caches (256 MiB where their size is unknown), shared among a team of
/// `threads`, so that nothing else is left in them. The buffer is kept: it counts in this process's memory.
void flush_caches(int threads);

/// Memory of this process now, and at its highest since reset_peak_memory(): VmRSS and VmHWM.
std::int64_t resident_memory_bytes();
std::int64_t peak_memory_bytes();
/// What else went on while something was measured: two measurements can be compared where it was nothing, and the same.
struct Conditions {
  /// Of the time in which this process's threads wanted a core (theirs, or what the hypervisor took from the machine),
  /// the share in which they waited for one. Above a percent or so another load ran beside the measurement.
  std::optional<double> waited_share;
  /// Median time of an op of no work on a team of threads (optimized/cpu/thread_team.h), before and after. It jumps
  /// when cores are shared, or when a virtual machine's cores move apart on the host, as small parallel ops then do.
  /// Absent for one thread.
  std::optional<std::array<double, 2>> fork_join_ns;
};

/// Observes from its construction to finish(); both take a few milliseconds at most, 20 ms where cores are shared.
class Watch {
 public:
  explicit Watch(int threads);
  Conditions finish() const;

 private:
  /// Summed over threads since the process started; zeros where the kernel does not say.
  struct CoreTime {
    std::int64_t ran_ns = 0, waited_ns = 0;
  };
  static CoreTime core_time();

  int threads_;
  double fork_join_ns_ = 0;
  CoreTime start_;
};

/// Starts the high-water mark anew where the kernel allows it (/proc/self/clear_refs).
void reset_peak_memory();
/// What glibc's malloc holds of the system's memory now: tensors, caches, packed weights, and what was freed but not
/// given back; neither mapped checkpoints nor drawn weights. nullopt with another C library.
std::optional<std::int64_t> allocator_bytes();

}  // namespace dsv2::harness
