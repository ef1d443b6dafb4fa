// The container that nvcc puts into a program: which PTX it holds, and which of it a device runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gpusim/device_model.h"

namespace gpusim {

/// One PTX entry of a container. `payload` and the strings point into the container, which outlives it.
struct PtxImage {
  int capability = 0;          ///< 80 for compute_80
  bool arch_specific = false;  ///< compute_90a: runs on that capability alone
  int isa_major = 0;           ///< of the PTX language, 9.0 from nvcc 13.0
  int isa_minor = 0;
  std::string_view source;       ///< the file that was compiled, empty when not told
  bool zstd = false;             ///< else raw text
  std::uint64_t text_bytes = 0;  ///< once decompressed
  std::span<const std::byte> payload;

  /// The PTX text. Throws dsv2::Error when it does not decompress to `text_bytes`.
  std::string text() const;
};

/// One entry of machine code, which is not run here: what it says of its kernels is read (cubin.h).
struct MachineCode {
  int capability = 0;  ///< 80 for sm_80
  bool zstd = false;
  std::uint64_t image_bytes = 0;  ///< once decompressed
  std::span<const std::byte> payload;

  /// The ELF image. Throws dsv2::Error when it does not decompress to `image_bytes`.
  std::vector<std::byte> image() const;
};

struct FatBinary {
  std::vector<PtxImage> ptx;
  std::vector<MachineCode> machine_code;

  /// The image of the highest architecture that `device` runs; null when there is none.
  const PtxImage* choose(const DeviceModel& device) const;
  /// The machine code nearest to the device's own: of the highest capability up to its own, else the first; null when
  /// there is none.
  const MachineCode* nearest_machine_code(const DeviceModel& device) const;
  /// "PTX of compute_80, compute_90a; machine code of sm_90": for messages.
  std::string describe() const;
};

/// Bytes of the container that begins at `container`, by its header: what a registered program hands over without a
/// length. Throws dsv2::Error when there is no container.
std::size_t fat_binary_bytes(const std::byte* container);

/// Reads a container. Throws dsv2::Error naming the offset where it is truncated, malformed, or compressed by a
/// method that is not read (LZ4).
FatBinary read_fat_binary(std::span<const std::byte> container);

}  // namespace gpusim
