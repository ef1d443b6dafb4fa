// How many blocks of a kernel a multiprocessor holds at once: the arithmetic of CUDA's occupancy calculator.
#pragma once

#include <cstddef>

#include "gpusim/device_model.h"
#include "gpusim/launch.h"

namespace gpusim {

/// Shared memory that the system takes for itself of every block, from compute capability 8.0 on.
inline constexpr std::size_t kReservedSharedBytes = 1024;

/// Blocks of `threads` threads and `dynamic_shared_bytes` that are resident on one multiprocessor; 0 when not even one
/// fits. Registers are those of KernelInfo: where they are an estimate, a bound by registers is one too.
int resident_blocks(const DeviceModel& device, const KernelInfo& kernel, int threads, std::size_t dynamic_shared_bytes);

/// Dynamic shared memory that is left to each block when `blocks` of them shall be resident; 0 when they cannot be.
std::size_t dynamic_shared_for(const DeviceModel& device, const KernelInfo& kernel, int threads, int blocks);

}  // namespace gpusim
