#include "gpusim/occupancy.h"

#include <algorithm>

namespace gpusim {
namespace {

constexpr int kWarp = 32;
constexpr int kSubpartitions = 4;         // schedulers of a multiprocessor, each with its own registers
constexpr int kRegisterUnit = 256;        // registers are given to a warp in these
constexpr std::size_t kSharedUnit = 128;  // bytes

template <class T>
T round_up(T value, T unit) {
  return (value + unit - 1) / unit * unit;
}

int resident_by_registers(const DeviceModel& device, int registers, int warps) {
  if (registers <= 0) return device.blocks_per_multiprocessor;
  const int per_warp = round_up(registers * kWarp, kRegisterUnit);
  const int warps_resident = device.registers_per_multiprocessor / kSubpartitions / per_warp * kSubpartitions;
  return warps_resident / warps;
}

}  // namespace

int resident_blocks(const DeviceModel& device, const KernelInfo& kernel, int threads,
                    std::size_t dynamic_shared_bytes) {
  if (threads <= 0 || threads > kernel.max_threads) return 0;
  const int warps = (threads + kWarp - 1) / kWarp;
  const std::size_t asked = kernel.static_shared_bytes + dynamic_shared_bytes;
  if (asked > device.shared_per_block_optin) return 0;
  const std::size_t shared = round_up(asked + kReservedSharedBytes, kSharedUnit);
  return std::min({device.blocks_per_multiprocessor, device.threads_per_multiprocessor / kWarp / warps,
                   static_cast<int>(device.shared_per_multiprocessor / shared),
                   resident_by_registers(device, kernel.registers, warps)});
}

std::size_t dynamic_shared_for(const DeviceModel& device, const KernelInfo& kernel, int threads, int blocks) {
  if (blocks <= 0 || resident_blocks(device, kernel, threads, 0) < blocks) return 0;
  const std::size_t each =
      device.shared_per_multiprocessor / static_cast<std::size_t>(blocks) / kSharedUnit * kSharedUnit;
  const std::size_t taken = kReservedSharedBytes + kernel.static_shared_bytes;
  if (each <= taken) return 0;
  return std::min(each - taken, device.shared_per_block_optin - kernel.static_shared_bytes);
}

}  // namespace gpusim
