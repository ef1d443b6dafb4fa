// The GPUs that can be stood in for: what device properties, limits and modelled figures read. One table.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace gpusim {

/// Facts of a device, each from NVIDIA's data sheets and the CUDA programming guide's table of compute capabilities
/// (device_model.cpp names the source line by line).
struct DeviceModel {
  std::string_view name;       ///< a100, h100, h200, rtx4090, rtx5090
  std::string_view marketing;  ///< what cudaDeviceProp::name says
  int capability = 0;          ///< 80, 89, 90, 120
  int ptx_capability = 0;      ///< the highest compute_XX whose PTX is run for it: 80 or 90
  int multiprocessors = 0;
  std::size_t memory_bytes = 0;
  double bandwidth_gb_s = 0;  ///< DRAM, 1e9 bytes a second
  double latency_ns = 0;      ///< of a load from idle DRAM, measured by others; under load it takes longer
  std::size_t l2_bytes = 0;
  int clock_khz = 0;                         ///< boost
  std::size_t shared_per_block = 48 * 1024;  ///< without asking
  std::size_t shared_per_block_optin = 0;
  std::size_t shared_per_multiprocessor = 0;
  int registers_per_multiprocessor = 65536;
  int threads_per_multiprocessor = 0;
  int blocks_per_multiprocessor = 0;
  double dense_bf16_tflop_s = 0;  ///< tensor cores, f32 accumulation, no sparsity
  double dense_tf32_tflop_s = 0;
  double dense_int8_top_s = 0;
  double f32_tflop_s = 0;  ///< outside the tensor cores
};

std::span<const DeviceModel> device_models();
/// Throws dsv2::Error that lists the names when there is none of this name.
const DeviceModel& device_model(std::string_view name);

}  // namespace gpusim
