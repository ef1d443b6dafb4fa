// parse_safetensors either throws Error with one line, or returns entries that lie within the file.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "model/error.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  std::vector<dsv2::SafetensorsEntry> entries;
  try {
    entries = dsv2::parse_safetensors(file, "fuzz").entries;
  } catch (const dsv2::Error& e) {
    if (std::string(e.what()).find('\n') != std::string::npos) std::abort();
    return 0;
  }
  std::int64_t bytes = 0;
  unsigned sum = 0;
  for (const dsv2::SafetensorsEntry& e : entries) {
    for (const std::byte b : file.subspan(static_cast<std::size_t>(e.begin), static_cast<std::size_t>(e.bytes)))
      sum += std::to_integer<unsigned>(b);  // AddressSanitizer watches the read
    const auto dtype = dsv2::dtype_of_safetensors(e.dtype);
    if (dtype && dsv2::TensorView{*dtype, e.shape, nullptr}.bytes() != e.bytes) std::abort();
    bytes += e.bytes;
  }
  volatile unsigned keep = sum;
  static_cast<void>(keep);
  if (bytes > static_cast<std::int64_t>(size)) std::abort();
  return 0;
}
