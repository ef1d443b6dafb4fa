// What a run found and counted, by kernel: as text on stderr, and as JSON.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <iosfwd>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "gpusim/environment.h"
#include "gpusim/launch.h"

namespace gpusim {

/// Version of the JSON: raised when a field changes its meaning or goes.
inline constexpr int kReportVersion = 1;

/// What launches of one kernel have in common that take the same time.
struct LaunchShape {
  std::uint64_t blocks = 0;
  int threads = 0;  ///< a block
  std::size_t dynamic_shared_bytes = 0;
  std::uint64_t distinct_sectors = 0;  ///< as in Counts, loads and stores
  std::array<std::uint64_t, kFlopTypes> flops = {};
  auto operator<=>(const LaunchShape&) const = default;
};
struct SameLaunches {
  std::uint64_t launches = 0;
  int resident_blocks = 0;     ///< that a multiprocessor holds at once
  double bytes_in_flight = 0;  ///< that the warps resident on the device may have outstanding
};

/// All launches of one kernel.
struct KernelRecord {
  KernelInfo info;
  std::uint64_t launches = 0;
  std::uint64_t blocks = 0;
  std::uint64_t threads = 0;
  double seconds = 0;  ///< of simulation
  Counts counts;
  std::map<std::pair<std::string, int>, Counts> lines;  ///< by file and line
  std::map<LaunchShape, SameLaunches> shapes;           ///< where launches are counted
};

/// Collects; not thread-safe: the runtime holds its lock.
class Report {
 public:
  Report(const DeviceModel& device, const Environment& environment);

  /// Adds a launch and what it found. The kernel's name may be mangled.
  void add(const KernelInfo& kernel, const LaunchConfig& config, const LaunchResult& result);
  /// Merges with what was found before of the same kind at the same place; the first of it is told on stderr at once,
  /// as a program may not live to its end.
  void add(const Finding& finding);

  /// In the order in which they were first found.
  const std::vector<Finding>& findings() const { return findings_; }
  const std::map<std::string, KernelRecord>& kernels() const { return kernels_; }
  /// Those (warnings not) that an earlier call has not given, one line each.
  std::vector<std::string> new_findings();
  /// Whether something was found that is not a mere warning: what makes a run fail.
  bool fired() const;

  void write_text(std::ostream& out) const;
  /// One JSON object, indented, ending in a newline; without the counts of each line where `by_line` is false.
  std::string json(bool by_line = true) const;

 private:
  using Key = std::tuple<FindingKind, std::string, std::string, int, std::string, std::string>;

  const DeviceModel& device_;
  const Environment& environment_;
  std::map<std::string, KernelRecord> kernels_;
  std::vector<Finding> findings_;
  std::map<Key, std::size_t> index_;  // of findings_
  std::size_t given_ = 0;             // findings_ that new_findings() has been through
};

/// `_Z3addPfi` as `add(float*, int)`; what is not mangled stays.
std::string demangled(std::string_view name);

/// The least time that a device needs for what was counted, and what bounds it: distinct sectors at its bandwidth,
/// FLOPs at its peaks. A bound, no prediction.
struct LeastTime {
  double memory_us = 0;
  double tensor_us = 0;   ///< each type of tensor FLOPs at its dense peak
  double compute_us = 0;  ///< tensor_us, or the FLOPs of f32 where they take longer
};
LeastTime least_time(const DeviceModel& device, const Counts& counts);

}  // namespace gpusim
