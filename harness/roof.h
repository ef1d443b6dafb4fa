// The roof over a run: the least time that the machine's measured limits allow it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "harness/machine.h"
#include "model/cost.h"
#include "model/tensor.h"

namespace dsv2::harness {

/// The machine's limits by number of threads, each measured when it is first asked for.
class MeasuredLimits {
 public:
  explicit MeasuredLimits(std::function<MachineLimits(int threads)> measure = measure_limits)
      : measure_(std::move(measure)) {}
  const MachineLimits& of(int threads);
  /// Measures once more and keeps the best of both: a moment in which the machine was busy shows too low a roof.
  const MachineLimits& again(int threads);

 private:
  std::function<MachineLimits(int threads)> measure_;
  std::map<int, MachineLimits> by_threads_;
};

struct Roof {
  double ns = 0;     ///< least time: share_of_roof is this over the measured time
  std::string what;  ///< the limit that sets it: "read bandwidth (weights + KV)", "f32 peak", ...
};
/// Weights and KV stream from memory, activations stay in the caches.
Roof roof(double flops, const Bytes& bytes, DType arithmetic, const MachineLimits& limits);

/// How far above a measured limit a speed may lie: the limit is a measurement too.
inline constexpr double kRoofTolerance = 1.1;

/// Why a run of `ns` is faster than this machine can be, so that the work was not done or not timed; nullopt when it is
/// possible. FLOPs always count, against the highest peak that `arithmetic` may use. Of the bytes (weights and KV, each
/// read at least once) only what the caches cannot hold must have come from memory: small models live in the caches.
/// `cache_bytes`: of all caches together; nullopt: unknown, and bytes are not judged.
std::optional<std::string> faster_than_roof(double ns, double flops, const Bytes& bytes, DType arithmetic,
                                            const MachineLimits& limits, std::optional<std::int64_t> cache_bytes);

/// The same under the limits of `threads`. A run beyond them may show that they were measured in a busy moment: they
/// are measured again, up to five times, before it is refused.
std::optional<std::string> faster_than_roof(double ns, double flops, const Bytes& bytes, DType arithmetic,
                                            MeasuredLimits& limits, int threads,
                                            std::optional<std::int64_t> cache_bytes);

/// roof() under the limits of `threads`, measured again in the same way where the run would be above it.
Roof roof_above(double ns, double flops, const Bytes& bytes, DType arithmetic, MeasuredLimits& limits, int threads);

}  // namespace dsv2::harness
