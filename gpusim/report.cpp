#include "gpusim/report.h"

#include <cxxabi.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "gpusim/occupancy.h"
#include "model/error.h"

namespace gpusim {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kSectorBytes = 32;

struct FlopName {
  FlopType type;
  std::string_view name;
};
constexpr std::array<FlopName, kFlopTypes> kFlopNames = {{{FlopType::f32, "f32"},
                                                          {FlopType::f64, "f64"},
                                                          {FlopType::f16, "f16"},
                                                          {FlopType::bf16, "bf16"},
                                                          {FlopType::tensor_bf16, "tensor_bf16"},
                                                          {FlopType::tensor_f16, "tensor_f16"},
                                                          {FlopType::tensor_tf32, "tensor_tf32"},
                                                          {FlopType::tensor_int8, "tensor_int8"},
                                                          {FlopType::tensor_f64, "tensor_f64"},
                                                          {FlopType::tensor_fp8, "tensor_fp8"},
                                                          {FlopType::tensor_int4, "tensor_int4"}}};

constexpr std::array<std::string_view, kInstructionClasses> kClassNames = {
    "integer", "f32",         "f64",          "f16",         "special",      "tensor", "convert",
    "move",    "global_load", "global_store", "shared_load", "shared_store", "local",  "constant",
    "atomic",  "async_copy",  "shuffle",      "vote",        "barrier",      "branch", "other"};

struct CountName {
  std::uint64_t Counts::*value;
  std::string_view name;
};
constexpr std::array kCountNames = {
    CountName{&Counts::warp_instructions, "warp_instructions"},
    CountName{&Counts::thread_instructions, "thread_instructions"},
    CountName{&Counts::global_load_requests, "global_load_requests"},
    CountName{&Counts::global_store_requests, "global_store_requests"},
    CountName{&Counts::global_load_sectors, "global_load_sectors"},
    CountName{&Counts::global_store_sectors, "global_store_sectors"},
    CountName{&Counts::global_ideal_sectors, "global_ideal_sectors"},
    CountName{&Counts::global_load_bytes, "global_load_bytes"},
    CountName{&Counts::global_store_bytes, "global_store_bytes"},
    CountName{&Counts::distinct_load_sectors, "distinct_load_sectors"},
    CountName{&Counts::distinct_store_sectors, "distinct_store_sectors"},
    CountName{&Counts::shared_requests, "shared_requests"},
    CountName{&Counts::shared_wavefronts, "shared_wavefronts"},
    CountName{&Counts::shared_ideal_wavefronts, "shared_ideal_wavefronts"},
    CountName{&Counts::branches, "branches"},
    CountName{&Counts::divergent_branches, "divergent_branches"},
    CountName{&Counts::barriers, "barriers"},
    CountName{&Counts::atomics, "atomics"},
};

Json to_json(const Counts& counts) {
  Json out;
  for (const CountName& count : kCountNames) out[std::string(count.name)] = counts.*(count.value);
  for (int i = 0; i < kInstructionClasses; ++i)
    out["warp_instructions_by_class"][std::string(kClassNames[i])] = counts.by_class[i];
  for (const FlopName& flop : kFlopNames)
    out["flops"][std::string(flop.name)] = counts.flops[static_cast<std::size_t>(flop.type)];
  return out;
}

LaunchShape shape_of(const LaunchConfig& config, const Counts& counts) {
  return {config.grid.count(), static_cast<int>(config.block.count()), config.dynamic_shared_bytes,
          counts.distinct_load_sectors + counts.distinct_store_sectors, counts.flops};
}

int warps_of(const LaunchShape& shape) { return (shape.threads + 31) / 32; }

/// Of the whole device, at once.
double resident_warps(const DeviceModel& device, const LaunchShape& shape, int resident_blocks) {
  const double most = static_cast<double>(resident_blocks) * device.multiprocessors;
  return std::min(static_cast<double>(shape.blocks), most) * warps_of(shape);
}

Json to_json(const DeviceModel& device, const LaunchShape& shape, const SameLaunches& same) {
  Counts counts;
  counts.flops = shape.flops;
  const auto flops = [&](FlopType type) { return shape.flops[static_cast<std::size_t>(type)]; };
  return {{"launches", same.launches},
          {"blocks", shape.blocks},
          {"threads_per_block", shape.threads},
          {"dynamic_shared_bytes", shape.dynamic_shared_bytes},
          {"resident_blocks", same.resident_blocks},
          {"occupancy", 32.0 * same.resident_blocks * warps_of(shape) / device.threads_per_multiprocessor},
          {"bytes_in_flight", same.bytes_in_flight},
          {"distinct_bytes", kSectorBytes * static_cast<double>(shape.distinct_sectors)},
          {"tensor_us", least_time(device, counts).tensor_us},
          {"other_flops", flops(FlopType::f32) + flops(FlopType::f64) + flops(FlopType::f16) + flops(FlopType::bf16)}};
}

Json to_json(const SourcePlace& place) { return {{"file", place.file}, {"line", place.line}, {"ptx", place.ptx}}; }

Json to_json(const Dim3& dim) { return {dim.x, dim.y, dim.z}; }

Json to_json(const Finding& finding) {
  Json out = {{"kind", name_of(finding.kind)},   {"warning", finding.warning},      {"kernel", finding.kernel},
              {"place", to_json(finding.place)}, {"block", to_json(finding.block)}, {"thread", to_json(finding.thread)},
              {"times", finding.times},          {"message", finding.message}};
  if (!finding.other.file.empty() || !finding.other.ptx.empty()) out["other_place"] = to_json(finding.other);
  return out;
}

/// 1234567 as "1.23 M".
std::string si(double value) {
  constexpr std::array<const char*, 5> kUnits = {"", " k", " M", " G", " T"};
  std::size_t unit = 0;
  while (value >= 1000 && unit + 1 < kUnits.size()) value /= 1000, ++unit;
  std::ostringstream out;
  out << std::setprecision(unit == 0 ? 6 : 4) << value << kUnits[unit];
  return out.str();
}

std::string si(std::uint64_t value) { return si(static_cast<double>(value)); }

/// "1.25" of used over ideal; "-" without any.
std::string times_ideal(std::uint64_t used, std::uint64_t ideal) {
  if (ideal == 0) return "-";
  std::ostringstream out;
  out << std::fixed << std::setprecision(2) << static_cast<double>(used) / static_cast<double>(ideal);
  return out.str();
}

std::string percent(std::uint64_t part, std::uint64_t whole) {
  if (whole == 0) return "-";
  std::ostringstream out;
  out << std::fixed << std::setprecision(1) << 100.0 * static_cast<double>(part) / static_cast<double>(whole) << " %";
  return out.str();
}

std::string base_name(const std::string& file) { return file.substr(file.rfind('/') + 1); }

template <class T>
std::string counted(T number, const std::string& one, const std::string& more) {
  return dsv2::concat(number, ' ', number == 1 ? one : more);
}

template <class T>
std::string counted(T number, const std::string& noun) {
  return counted(number, noun, noun + 's');
}

void write_counts(std::ostream& out, const Counts& counts, const DeviceModel& device) {
  out << "    instructions  " << si(counts.warp_instructions) << " of warps, " << si(counts.thread_instructions)
      << " of threads: " << percent(counts.thread_instructions, counts.warp_instructions * 32) << " of lanes active; "
      << si(counts.branches) << " branches, " << percent(counts.divergent_branches, counts.branches) << " divergent; "
      << si(counts.barriers) << " barriers, " << si(counts.atomics) << " atomics\n";
  std::string flops;
  for (const FlopName& flop : kFlopNames)
    if (const std::uint64_t value = counts.flops[static_cast<std::size_t>(flop.type)]; value != 0)
      flops += dsv2::concat(flops.empty() ? "" : ", ", flop.name, ' ', si(value), " (", value, ')');
  if (!flops.empty()) out << "    FLOPs         " << flops << '\n';
  const std::uint64_t sectors = counts.global_load_sectors + counts.global_store_sectors;
  if (sectors != 0)
    out << "    global        load " << si(counts.global_load_bytes) << "B in " << si(counts.global_load_sectors)
        << " sectors, store " << si(counts.global_store_bytes) << "B in " << si(counts.global_store_sectors)
        << " sectors: " << times_ideal(sectors, counts.global_ideal_sectors) << " of the ideal; distinct "
        << si(kSectorBytes * static_cast<double>(counts.distinct_load_sectors)) << "B loaded, "
        << si(kSectorBytes * static_cast<double>(counts.distinct_store_sectors)) << "B stored\n";
  if (counts.shared_requests != 0)
    out << "    shared        " << si(counts.shared_requests) << " requests, " << si(counts.shared_wavefronts)
        << " wavefronts: " << times_ideal(counts.shared_wavefronts, counts.shared_ideal_wavefronts)
        << " of the ideal\n";
  const LeastTime least = least_time(device, counts);
  out << "    no less than  " << std::setprecision(4) << std::max(least.memory_us, least.compute_us) << " us on "
      << device.name << ", by " << (least.memory_us >= least.compute_us ? "memory" : "arithmetic") << '\n';
}

void write_lines(std::ostream& out, const KernelRecord& kernel) {
  for (const auto& [place, counts] : kernel.lines) {
    std::uint64_t flops = 0;
    for (const std::uint64_t value : counts.flops) flops += value;
    const std::uint64_t sectors = counts.global_load_sectors + counts.global_store_sectors;
    const std::string where = place.first.empty() ? "?" : dsv2::concat(base_name(place.first), ':', place.second);
    out << "      " << std::left << std::setw(28) << where << std::right << std::setw(10)
        << si(counts.warp_instructions) << " warp instr" << std::setw(9)
        << percent(counts.thread_instructions, counts.warp_instructions * 32) << " lanes" << std::setw(10) << si(flops)
        << " FLOP" << std::setw(10) << si(sectors) << " sectors x" << times_ideal(sectors, counts.global_ideal_sectors)
        << std::setw(10) << si(counts.shared_wavefronts) << " wavefronts x"
        << times_ideal(counts.shared_wavefronts, counts.shared_ideal_wavefronts) << '\n';
  }
}

std::string list_of(const Checks& checks) {
  std::string on;
  std::size_t count = 0;
  for (const CheckName& check : check_names())
    if (checks.*(check.flag)) {
      if (!on.empty()) on += ',';
      on += check.name;
      ++count;
    }
  if (count == 0) return "none";
  return count == check_names().size() ? "all" : on;
}

}  // namespace

std::string demangled(std::string_view name) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(std::string(name).c_str(), nullptr, nullptr, &status), &std::free);
  return status == 0 ? std::string(text.get()) : std::string(name);
}

LeastTime least_time(const DeviceModel& device, const Counts& counts) {
  const auto flops = [&](FlopType type) { return static_cast<double>(counts.flops[static_cast<std::size_t>(type)]); };
  LeastTime out;
  const double bytes = kSectorBytes * static_cast<double>(counts.distinct_load_sectors + counts.distinct_store_sectors);
  out.memory_us = bytes / (device.bandwidth_gb_s * 1e9) * 1e6;
  const double tensor = (flops(FlopType::tensor_bf16) + flops(FlopType::tensor_f16)) / device.dense_bf16_tflop_s +
                        flops(FlopType::tensor_tf32) / device.dense_tf32_tflop_s +
                        (flops(FlopType::tensor_int8) + flops(FlopType::tensor_fp8)) / device.dense_int8_top_s;
  const double plain = flops(FlopType::f32) / device.f32_tflop_s;
  out.tensor_us = tensor / 1e12 * 1e6;
  out.compute_us = std::max(out.tensor_us, plain / 1e12 * 1e6);  // the two run side by side
  return out;
}

Report::Report(const DeviceModel& device, const Environment& environment)
    : device_(device), environment_(environment) {}

void Report::add(const KernelInfo& kernel, const LaunchConfig& config, const LaunchResult& result) {
  KernelRecord& record = kernels_[demangled(kernel.name)];
  if (record.launches++ == 0) record.info = kernel;
  record.blocks += config.grid.count();
  record.threads += config.grid.count() * config.block.count();
  record.seconds += result.seconds;
  record.counts += result.counts;
  if (environment_.settings.counts) {
    const LaunchShape shape = shape_of(config, result.counts);
    SameLaunches& same = record.shapes[shape];
    if (same.launches++ == 0) {
      same.resident_blocks = resident_blocks(device_, kernel, shape.threads, shape.dynamic_shared_bytes);
      same.bytes_in_flight = result.warp_bytes_in_flight * resident_warps(device_, shape, same.resident_blocks);
    }
  }
  for (const LineCounts& line : result.lines) record.lines[{line.place.file, line.place.line}] += line.counts;
  for (const Finding& finding : result.findings) add(finding);
}

void Report::add(const Finding& finding) {
  // Messages of kernels name addresses and values, which differ from launch to launch: their place tells them apart.
  const bool placed = !finding.kernel.empty() && (!finding.place.file.empty() || !finding.place.ptx.empty());
  const Key key = {finding.kind,       finding.kernel,    finding.place.file,
                   finding.place.line, finding.place.ptx, placed ? "" : finding.message};
  const auto [entry, is_new] = index_.emplace(key, findings_.size());
  if (!is_new) {
    findings_[entry->second].times += finding.times;
    return;
  }
  findings_.push_back(finding);
  std::cerr << "gpusim: " << to_string(finding) << std::endl;
}

std::vector<std::string> Report::new_findings() {
  std::vector<std::string> lines;
  for (; given_ < findings_.size(); ++given_)
    if (!findings_[given_].warning) lines.push_back(to_string(findings_[given_]));
  return lines;
}

bool Report::fired() const {
  return std::any_of(findings_.begin(), findings_.end(), [](const Finding& finding) { return !finding.warning; });
}

void Report::write_text(std::ostream& out) const {
  const Checks& checks = environment_.settings.checks;
  out << "gpusim: report: " << device_.marketing << " (" << device_.name << "), checks: " << list_of(checks) << '\n';
  for (const auto& [name, kernel] : kernels_) {
    std::uint64_t found = 0;
    for (const Finding& finding : findings_)
      if (finding.kernel == name) found += finding.times;
    out << "  " << name << ": " << counted(kernel.launches, "launch", "launches") << ", "
        << counted(kernel.blocks, "block") << ", " << si(kernel.threads) << " threads, " << std::fixed
        << std::setprecision(3) << kernel.seconds << " s of simulation" << std::defaultfloat;
    if (found != 0) out << ", " << counted(found, "finding");
    out << '\n';
    if (environment_.settings.counts) write_counts(out, kernel.counts, device_);
    if (environment_.lines) write_lines(out, kernel);
  }
  // Each finding was told when it was found; here is how often.
  std::map<FindingKind, std::pair<std::size_t, std::uint64_t>> kinds;
  std::size_t errors = 0;
  for (const Finding& finding : findings_) {
    ++kinds[finding.kind].first;
    kinds[finding.kind].second += finding.times;
    errors += finding.warning ? 0 : 1;
  }
  for (const auto& [kind, seen] : kinds)
    out << "  " << name_of(kind) << ": " << counted(seen.first, "place") << ", " << counted(seen.second, "time")
        << '\n';
  out << "gpusim: " << counted(errors, "error") << ", " << counted(findings_.size() - errors, "warning") << '\n';
}

std::string Report::json(bool by_line) const {
  Json out = {{"schema", "gpusim-report"},
              {"version", kReportVersion},
              {"device",
               {{"name", device_.name},
                {"marketing", device_.marketing},
                {"capability", device_.capability},
                {"multiprocessors", device_.multiprocessors},
                {"bandwidth_gb_s", device_.bandwidth_gb_s},
                {"latency_ns", device_.latency_ns},
                {"dense_bf16_tflop_s", device_.dense_bf16_tflop_s},
                {"f32_tflop_s", device_.f32_tflop_s}}}};
  for (const CheckName& check : check_names())
    out["checks"][std::string(check.name)] = environment_.settings.checks.*(check.flag);
  out["counts"] = environment_.settings.counts;
  out["fired"] = fired();
  out["kernels"] = Json::array();
  for (const auto& [name, kernel] : kernels_) {
    Json entry = {{"name", name},
                  {"launches", kernel.launches},
                  {"blocks", kernel.blocks},
                  {"threads", kernel.threads},
                  {"simulation_s", kernel.seconds},
                  {"registers", kernel.info.registers},
                  {"machine_code", kernel.info.machine_code},
                  {"stack_bytes", kernel.info.stack_bytes},
                  {"static_shared_bytes", kernel.info.static_shared_bytes}};
    if (environment_.settings.counts) {
      entry["shapes"] = Json::array();
      for (const auto& [shape, same] : kernel.shapes) entry["shapes"].push_back(to_json(device_, shape, same));
      entry["counts"] = to_json(kernel.counts);
      const LeastTime least = least_time(device_, kernel.counts);
      entry["least_time_us"] = {{"memory", least.memory_us}, {"compute", least.compute_us}};
      if (by_line) entry["lines"] = Json::array();
      for (const auto& [place, counts] : kernel.lines)
        if (by_line)
          entry["lines"].push_back({{"file", place.first}, {"line", place.second}, {"counts", to_json(counts)}});
    }
    out["kernels"].push_back(std::move(entry));
  }
  out["findings"] = Json::array();
  for (const Finding& finding : findings_) out["findings"].push_back(to_json(finding));
  // A file name need not be UTF-8.
  return out.dump(2, ' ', false, Json::error_handler_t::replace) + '\n';
}

}  // namespace gpusim
