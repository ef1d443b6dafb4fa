// What a simulator counted of a piece of work, and the time that a device would need for it by a stated model. Never
// mixed with measured times: a record has either samples or this.
#pragma once

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
///      shared_ideal_wavefronts, tensor_flops, other_flops, modelled_us}], the sums of these, minimum_bytes (of
///      `cost`), distinct_over_minimum, requested_over_minimum, roof_us, share_of_roof}
///
/// modelled_us of a kernel: max(distinct bytes / (0.93 bandwidth), tensor FLOPs / (0.8 dense peak), other FLOPs / f32
/// peak) of all its launches, + 1 us each. Distinct bytes are 32-byte sectors that a launch touches, what DRAM must
/// move where no cache helps from launch to launch; requested ones what L2 must serve. roof_us: minimum bytes at the
/// full bandwidth.
Json modelled(const std::string& before, const std::string& after, const Bytes& minimum);

/// The table of one, for people.
void print_modelled(const Json& modelled, std::ostream& out);

}  // namespace dsv2::harness
