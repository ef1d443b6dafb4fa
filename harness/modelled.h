// What a simulator counted of a piece of work, and the time that a device would need for it by a stated model. Never
// mixed with measured times: a record has either samples or this.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

#include "harness/json.h"
#include "model/cost.h"

namespace dsv2::harness {

/// Share of DRAM bandwidth that a kernel which only reads gets, and of the tensor cores' dense peak that a good GEMM
/// gets.
inline constexpr double kModelledBandwidthShare = 0.93, kModelledTensorShare = 0.8;
/// From one kernel's end to the next one's beginning, within a graph.
inline constexpr double kModelledGapUs = 1.0;

/// Environment of a simulator that is to count and not to check, on `device` (gpusim/device_model.h; empty: its
/// default). What is set already stays. Throws Error listing the devices.
void count_on_simulator(const std::string& device);

/// Two reports of the simulator (Backend::profile), before and after the work, as
///
///     {device, kernels: [{name, launches, blocks, distinct_bytes, requested_bytes, ideal_bytes, shared_wavefronts,
///      shared_ideal_wavefronts, tensor_flops, other_flops, modelled_us, registers, machine_code, stack_bytes,
///      static_shared_bytes, dynamic_shared_bytes, resident_blocks, occupancy, bytes_in_flight,
///      bytes_in_flight_needed}], the sums of launches to modelled_us, minimum_bytes (of `cost`),
///      distinct_over_minimum, requested_over_minimum, roof_us, share_of_roof, bytes_in_flight_needed}
///
/// modelled_us: of each launch max(distinct bytes / (0.93 bandwidth), tensor FLOPs / (0.8 dense peak), other FLOPs /
/// f32 peak) + 1 us. Distinct bytes are 32-byte sectors that a launch touches, what DRAM must move where no cache helps
/// from launch to launch; requested ones what L2 must serve. roof_us: minimum bytes at the full bandwidth.
///
/// registers and stack_bytes (spills, and arrays in local memory) of a thread are ptxas's for sm_<machine_code>, the
/// machine code that the library carries beside its PTX; machine_code 0: there is none, and registers are an estimate.
/// These and what follows them are of the launches that move most of the kernel's bytes; stack_bytes is the largest.
/// bytes_in_flight: blocks resident on the device x warps of a block x the loads that a straight line of code can issue
/// together, none needing another's value (gpusim/in_flight.cpp). bytes_in_flight_needed: bandwidth x latency of idle
/// DRAM, by Little's law; under load it takes more. Of a kernel, at most what a launch moves: no more can be on its
/// way.
Json modelled(const std::string& before, const std::string& after, const Bytes& minimum);

/// What bars are for: the step that was counted.
struct BarsOf {
  bool decode = false;        ///< else prefill
  bool tensor_cores = false;  ///< products of matrices belong on them
  std::int64_t layers = 0;
};
/// What kernels are held to, of a result of modelled(), as [{bar, found, least or most, met, worst (kernel)}]: for both
/// the efficiency of loads and stores, bank conflicts and spills; bytes against the minimum, bytes in flight, launches
/// a layer and, on an H100, the share of the roof when decoding; the tensor cores' share of the FLOPs for a prefill.
/// They are meant for the full shapes of deepseek-ocr at batch 1: small shapes miss some.
Json bars(const Json& modelled, const BarsOf& step);
bool all_met(const Json& bars);

/// Modelled records of one report beside those of another that did the same work on a GPU, as [{name, modelled_us,
/// measured_us, measured_over_modelled, share_of_roof (measured)}]; null where the other has no time.
Json beside_measured(const Json& modelled_report, const Json& measured_report);
void print_beside_measured(const Json& rows, std::ostream& out);

/// The table of one, and its bars where it has some, for people.
void print_modelled(const Json& modelled, std::ostream& out);

}  // namespace dsv2::harness
