#include "harness/bench_op.h"

#include "reference/backend.h"

namespace dsv2::harness {

bool is_timed_by_default(const OpCase& c) {
  return has_real_widths(c) && c.fill == Fill::normal && c.visibility == Visibility::causal;
}

Record bench_op(OpRun& run, const Backend& backend, const Options& options, const TimingOptions& given,
                MeasuredLimits& limits) {
  const int threads = backend.name == reference::backend().name ? 1 : options.threads;
  const Watch beside(threads);
  Record r = run.on(backend, options, [&](const Measured& work, Record& record) {
    TimingOptions timing = given;
    timing.repeat_short = !given.cold;
    Timing taken = measure(work, timing, system_timer(threads));
    record.samples_ns = std::move(taken.samples_ns);
    record.sampling = taken.sampling;
  });
  if (given.cold) r.name += "/cold";
  r.threads = threads;
  r.peak_memory_bytes = peak_memory_bytes();
  if (r.samples_ns.empty()) return r;
  r.conditions = beside.finish();
  const DType arithmetic = parse_dtype(r.dtype).value_or(DType::f32);
  if (auto why = faster_than_roof(r.median_ns(), *r.flops, *r.bytes, arithmetic, limits, options.threads,
                                  machine().cache_bytes)) {
    Comparison c;
    c.name = "time";
    c.passed = false;
    c.reason = std::move(*why);
    r.add(c);
  }
  Bytes from_memory = *r.bytes;
  const bool in_cache =
      !given.cold && r.bytes->total() <= static_cast<double>(machine().last_level_cache_bytes.value_or(0));
  if (in_cache) from_memory = {};
  const Roof over = roof_above(r.median_ns(), *r.flops, from_memory, arithmetic, limits, options.threads);
  if (over.ns > 0) {
    r.share_of_roof = over.ns / r.median_ns();
    r.roof = over.what;
  }
  return r;
}

}  // namespace dsv2::harness
