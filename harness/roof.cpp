#include "harness/roof.h"

#include <algorithm>

#include "harness/table.h"
#include "model/error.h"

namespace dsv2::harness {
namespace {

constexpr int kRetries = 5;  // of limits that a busy machine may have shown too low

struct Peak {
  double gflop_s;
  std::string_view what;
};

/// The peak of instructions made for `arithmetic`; of f32 where the CPU has none, as bf16 and int8 are widened there.
Peak peak_of(DType arithmetic, const MachineLimits& limits) {
  if (arithmetic == DType::bf16 && limits.peak_bf16_gflop_s) return {*limits.peak_bf16_gflop_s, "bf16 peak"};
  if ((arithmetic == DType::i8 || arithmetic == DType::i4) && limits.peak_int8_gflop_s)
    return {*limits.peak_int8_gflop_s, "int8 peak"};
  return {limits.peak_f32_gflop_s, "f32 peak"};
}

}  // namespace

const MachineLimits& MeasuredLimits::of(int threads) {
  const auto found = by_threads_.find(threads);
  return found != by_threads_.end() ? found->second : by_threads_[threads] = measure_(threads);
}

const MachineLimits& MeasuredLimits::again(int threads) {
  const MachineLimits before = of(threads), now = measure_(threads);
  reset_peak_memory();  // of what measuring took
  return by_threads_[threads] = best_of(before, now);
}

Roof roof(double flops, const Bytes& bytes, DType arithmetic, const MachineLimits& limits) {
  const Peak peak = peak_of(arithmetic, limits);
  const double compute_ns = flops / peak.gflop_s, memory_ns = (bytes.weights + bytes.kv) / limits.read_bandwidth_gb_s;
  if (memory_ns > compute_ns) return {memory_ns, "read bandwidth (weights + KV)"};
  return {compute_ns, std::string(peak.what)};
}

std::optional<std::string> faster_than_roof(double ns, double flops, const Bytes& bytes, DType arithmetic,
                                            const MachineLimits& limits, std::optional<std::int64_t> cache_bytes) {
  Peak peak = peak_of(arithmetic, limits);
  // Attention stays in f32 whatever the matrices are, so either peak may be the one in use.
  if (limits.peak_f32_gflop_s > peak.gflop_s) peak = {limits.peak_f32_gflop_s, "f32 peak"};
  if (const double rate = flops / ns; !(rate <= kRoofTolerance * peak.gflop_s))
    return concat("faster than the roof: ", fixed(rate, 1), " GFLOP/s, where this machine's ", peak.what,
                  " was measured at ", fixed(peak.gflop_s, 1), ": the work was not done, or not timed");
  if (!cache_bytes) return std::nullopt;
  const double from_memory = bytes.weights + bytes.kv - static_cast<double>(*cache_bytes), rate = from_memory / ns;
  if (from_memory > 0 && !(rate <= kRoofTolerance * limits.read_bandwidth_gb_s))
    return concat("faster than the roof: ", fixed(rate, 1), " GB/s from memory (", si(from_memory, "B"),
                  " that the caches cannot hold), where this machine was measured to read ",
                  fixed(limits.read_bandwidth_gb_s, 1), ": the work was not done, or not timed");
  return std::nullopt;
}

std::optional<std::string> faster_than_roof(double ns, double flops, const Bytes& bytes, DType arithmetic,
                                            MeasuredLimits& limits, int threads,
                                            std::optional<std::int64_t> cache_bytes) {
  auto why = faster_than_roof(ns, flops, bytes, arithmetic, limits.of(threads), cache_bytes);
  for (int i = 0; i < kRetries && why; ++i)
    why = faster_than_roof(ns, flops, bytes, arithmetic, limits.again(threads), cache_bytes);
  return why;
}

Roof roof_above(double ns, double flops, const Bytes& bytes, DType arithmetic, MeasuredLimits& limits, int threads) {
  Roof over = roof(flops, bytes, arithmetic, limits.of(threads));
  for (int i = 0; i < kRetries && over.ns > kRoofTolerance * ns; ++i)
    over = roof(flops, bytes, arithmetic, limits.again(threads));
  return over;
}

}  // namespace dsv2::harness
