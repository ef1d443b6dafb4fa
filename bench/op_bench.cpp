// The table of op cases for people who live in Google Benchmark: one benchmark for each case and backend, the name as
// in `dsv2 bench --op`. Each case is checked against the reference in double before it is timed; one that is wrong is
// skipped with its reason, and has no time. All of Google Benchmark's flags work: --benchmark_filter=linear.*bf16
#include <benchmark/benchmark.h>

#include <memory>
#include <string>

#include "harness/backends.h"
#include "harness/bench_op.h"
#include "harness/op_memory.h"
#include "harness/run_op.h"

namespace dsv2::harness {
namespace {

constexpr std::uint64_t kSeed = 1;

void run_case(benchmark::State& state, const OpCase& op_case, const Backend& backend) {
  OpRun run(op_case, kSeed);
  const Record checked = run.on(backend, {});
  if (checked.status != Status::passed) {
    state.SkipWithError(checked.reason.c_str());
    return;
  }
  PoisonedMemory memory(run.problem());
  const auto op = find_op(backend, op_case.op)->prepare(run.problem(), op_options(op_case, backend, {}), memory);
  for (auto _ : state) op();
  const auto runs = static_cast<double>(state.iterations());
  if (*checked.flops > 0)
    state.counters["FLOP/s"] = benchmark::Counter(*checked.flops * runs, benchmark::Counter::kIsRate);
  state.SetBytesProcessed(static_cast<std::int64_t>(checked.bytes->total() * runs));
}

void add_all() {
  for (const OpCase& c : op_cases())
    for (const Backend& backend : backends()) {
      if (!is_timed_by_default(c) || backend.unavailable() || !find_op(backend, c.op)) continue;
      benchmark::RegisterBenchmark(concat(c.name(), "/", backend.name).c_str(), [c, &backend](benchmark::State& state) {
        run_case(state, c, backend);
      })->UseRealTime();
    }
}

}  // namespace
}  // namespace dsv2::harness

int main(int argc, char** argv) {
  dsv2::harness::add_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
