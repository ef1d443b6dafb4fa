#include "gpusim/runtime_library_call.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace gpusim::runtime {
namespace {

constexpr std::uint64_t kSectorBytes = 32;

std::uint64_t as_number(const void* address) { return reinterpret_cast<std::uint64_t>(address); }

std::vector<MemoryRange> ranges_of(const std::vector<Operand>& operands) {
  std::vector<MemoryRange> out;
  for (const Operand& o : operands) {
    if (o.pitch == o.width) {
      out.push_back({as_number(o.data), o.span()});
      continue;
    }
    for (std::size_t row = 0; row < o.rows; ++row) out.push_back({as_number(o.data) + row * o.pitch, o.width});
  }
  return out;
}

std::uint64_t sectors_of(const std::vector<Operand>& operands) {
  std::uint64_t sum = 0;
  for (const Operand& o : operands) {
    std::uint64_t next = 0;  // the first sector that is not counted yet: neighbouring rows may share one
    for (const MemoryRange& range : ranges_of({o})) {
      const std::uint64_t first = std::max(next, range.address / kSectorBytes);
      next = (range.address + range.bytes + kSectorBytes - 1) / kSectorBytes;
      sum += next - std::min(first, next);
    }
  }
  return sum;
}

std::uint64_t bytes_of(const std::vector<Operand>& operands) {
  std::uint64_t sum = 0;
  for (const Operand& o : operands) sum += o.rows * o.width;
  return sum;
}

Counts counts_of(const LibraryCall& call) {
  Counts counts;
  counts.flops[static_cast<std::size_t>(call.flop_type)] = call.flops;
  counts.global_load_bytes = bytes_of(call.reads);
  counts.global_store_bytes = bytes_of(call.writes);
  counts.global_load_sectors = counts.distinct_load_sectors = sectors_of(call.reads);
  counts.global_store_sectors = counts.distinct_store_sectors = sectors_of(call.writes);
  counts.global_ideal_sectors = counts.global_load_sectors + counts.global_store_sectors;
  return counts;
}

void check_on_device(const State& state, const Operand& operand) {
  const Location location = state.checked_range(operand.data, operand.span(), operand.what);
  if (location.place == Place::pageable)
    refuse(cudaErrorInvalidValue, "the ", operand.what, " is host memory, which the device does not reach");
}

void check_initialised(State& state, const LibraryCall& call, const Operand& operand) {
  if (!state.memory.contains(as_number(operand.data))) return;
  for (const MemoryRange& range : ranges_of({operand})) {
    const std::uint8_t* const begin = state.memory.shadow(range.address);
    const std::uint8_t* const end = begin + range.bytes;
    const std::uint8_t* const bad = std::find_if(begin, end, [](std::uint8_t state_of_byte) {
      return state_of_byte != static_cast<std::uint8_t>(Byte::initialised);
    });
    if (bad == end) continue;
    Finding finding;
    finding.kind = FindingKind::uninitialised;
    finding.message = dsv2::concat(call.what, " reads byte ", range.address - as_number(operand.data) + (bad - begin),
                                   " of the ", operand.what, ", which nobody wrote");
    state.report.add(finding);
    return;
  }
}

void run_call(State& state, const LibraryCall& call) {
  const auto start = std::chrono::steady_clock::now();
  for (const auto* operands : {&call.reads, &call.writes, &call.scratch})
    for (const Operand& operand : *operands) check_on_device(state, operand);
  if (state.environment.settings.checks.initialised)
    for (const Operand& operand : call.reads) check_initialised(state, call, operand);
  call.run();
  for (const auto* operands : {&call.writes, &call.scratch})
    for (const MemoryRange& range : ranges_of(*operands))
      if (state.memory.contains(range.address)) state.memory.mark(range.address, range.bytes, Byte::initialised);
  LaunchConfig config;
  config.grid = {0, 0, 0};  // how many blocks the library would take is not known
  LaunchResult result;
  if (state.environment.settings.counts) result.counts = counts_of(call);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  KernelInfo info;
  info.name = call.name;
  state.report.add(info, config, result);
}

}  // namespace

void submit(State& state, cudaStream_t handle, LibraryCall call) {
  CUstream_st& stream = state.stream(handle);
  const auto shared = std::make_shared<const LibraryCall>(std::move(call));
  Work work;
  work.type = cudaGraphNodeTypeKernel;
  work.make = [&state, shared]() {
    Operation operation;
    operation.what = shared->what;
    if (state.scheduler.delayed()) {
      operation.accesses.reads = ranges_of(shared->reads);
      operation.accesses.writes = ranges_of(shared->writes);
      const auto scratch = ranges_of(shared->scratch);
      operation.accesses.writes.insert(operation.accesses.writes.end(), scratch.begin(), scratch.end());
    }
    operation.run = [&state, shared](Accesses&) {
      state.run_operation(shared->what, [&] { run_call(state, *shared); });
    };
    return operation;
  };
  state.enqueue(stream, std::move(work));
}

}  // namespace gpusim::runtime
