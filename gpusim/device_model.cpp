#include "gpusim/device_model.h"

#include <array>
#include <string>

#include "model/error.h"

namespace gpusim {
namespace {

constexpr std::size_t kKib = 1024, kMib = 1024 * kKib, kGib = 1024 * kMib;

// Threads, blocks, registers and shared memory: CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute
// Capability" (columns 8.0, 8.9, 9.0, 12.0). Of shared memory 1 KiB a block is the system's, so that a block may ask
// for 1 KiB less than a multiprocessor has.

// Latency: chains of dependent loads beyond L2, at 125 MB and up. github.com/te42kyfo/gpu-benches: A100 80GB
// (cuda-latency, 572 cycles at 1.41 GHz), H100 PCIe (gpu-latency, 650 at 1.755 GHz), L40, the RTX 4090's chip
// (gpu-latency, 631 at 2.49 GHz). The RTX 5090 has that of the RTX 5080 (arXiv:2507.10789, 877 cycles at 2.617 GHz),
// the H200 that of the H100.

// NVIDIA H100 Tensor Core GPU Architecture whitepaper v1.04, tables 1 to 3 (SXM5; dense figures); H100 datasheet.
constexpr DeviceModel kH100{.name = "h100",
                            .marketing = "NVIDIA H100 80GB HBM3",
                            .capability = 90,
                            .ptx_capability = 90,
                            .multiprocessors = 132,
                            .memory_bytes = 80 * kGib,
                            .bandwidth_gb_s = 3350,
                            .latency_ns = 370,
                            .l2_bytes = 50 * kMib,
                            .clock_khz = 1'980'000,
                            .shared_per_block_optin = 227 * kKib,
                            .shared_per_multiprocessor = 228 * kKib,
                            .threads_per_multiprocessor = 2048,
                            .blocks_per_multiprocessor = 32,
                            .dense_bf16_tflop_s = 989.4,
                            .dense_tf32_tflop_s = 494.7,
                            .dense_int8_top_s = 1978.9,
                            .f32_tflop_s = 66.9};

// NVIDIA H200 datasheet (SXM): the H100's chip, 141 GB at 4.8 TB/s.
constexpr DeviceModel kH200 = [] {
  DeviceModel model = kH100;
  model.name = "h200";
  model.marketing = "NVIDIA H200";
  model.memory_bytes = 141'000'000'000;
  model.bandwidth_gb_s = 4800;
  return model;
}();

constexpr std::array kModels = {
    // NVIDIA A100 Tensor Core GPU Architecture whitepaper, tables 1 and 4; A100 80GB datasheet (bandwidth, SXM).
    DeviceModel{.name = "a100",
                .marketing = "NVIDIA A100-SXM4-80GB",
                .capability = 80,
                .ptx_capability = 80,
                .multiprocessors = 108,
                .memory_bytes = 80 * kGib,
                .bandwidth_gb_s = 2039,
                .latency_ns = 406,
                .l2_bytes = 40 * kMib,
                .clock_khz = 1'410'000,
                .shared_per_block_optin = 163 * kKib,
                .shared_per_multiprocessor = 164 * kKib,
                .threads_per_multiprocessor = 2048,
                .blocks_per_multiprocessor = 32,
                .dense_bf16_tflop_s = 312,
                .dense_tf32_tflop_s = 156,
                .dense_int8_top_s = 624,
                .f32_tflop_s = 19.5},
    kH100,
    kH200,
    // NVIDIA Ada GPU Architecture whitepaper v2.1, appendix A (RTX 4090; dense, f32 accumulation).
    DeviceModel{.name = "rtx4090",
                .marketing = "NVIDIA GeForce RTX 4090",
                .capability = 89,
                .ptx_capability = 80,
                .multiprocessors = 128,
                .memory_bytes = 24 * kGib,
                .bandwidth_gb_s = 1008,
                .latency_ns = 253,
                .l2_bytes = 72 * kMib,
                .clock_khz = 2'520'000,
                .shared_per_block_optin = 99 * kKib,
                .shared_per_multiprocessor = 100 * kKib,
                .threads_per_multiprocessor = 1536,
                .blocks_per_multiprocessor = 24,
                .dense_bf16_tflop_s = 165.2,
                .dense_tf32_tflop_s = 82.6,
                .dense_int8_top_s = 660.6,
                .f32_tflop_s = 82.6},
    // NVIDIA RTX Blackwell GPU Architecture whitepaper v1.1, appendix A (RTX 5090; dense, f32 accumulation).
    DeviceModel{.name = "rtx5090",
                .marketing = "NVIDIA GeForce RTX 5090",
                .capability = 120,
                .ptx_capability = 90,
                .multiprocessors = 170,
                .memory_bytes = 32 * kGib,
                .bandwidth_gb_s = 1792,
                .latency_ns = 335,
                .l2_bytes = 96 * kMib,
                .clock_khz = 2'407'000,
                .shared_per_block_optin = 99 * kKib,
                .shared_per_multiprocessor = 100 * kKib,
                .threads_per_multiprocessor = 1536,
                .blocks_per_multiprocessor = 24,
                .dense_bf16_tflop_s = 209.5,
                .dense_tf32_tflop_s = 104.8,
                .dense_int8_top_s = 838,
                .f32_tflop_s = 104.8},
};

}  // namespace

std::span<const DeviceModel> device_models() { return kModels; }

const DeviceModel& device_model(std::string_view name) {
  std::string names;
  for (const DeviceModel& model : kModels) {
    if (model.name == name) return model;
    names.append(names.empty() ? "" : ", ").append(model.name);
  }
  dsv2::fail("device model: expected one of ", names, ", found \"", name, "\"");
}

}  // namespace gpusim
