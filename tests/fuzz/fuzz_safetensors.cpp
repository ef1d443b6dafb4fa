// parse_safetensors either throws Error with one line, or returns entries that lie within the file; so do the checks of
// a quantised file's metadata and panels.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model/checkpoint.h"
#include "model/error.h"
#include "model/safetensors.h"

/// What is taken for a matrix has its bytes.
static void check_panels(const dsv2::SafetensorsEntry& e) {
  for (const dsv2::Shape& shape : {dsv2::Shape{16, 64}, dsv2::Shape{17, 130}, dsv2::Shape{64}}) {
    try {
      if (dsv2::array_bytes(dsv2::dtype_of_panels(e, shape, "fuzz: "), shape) != e.bytes) std::abort();
    } catch (const dsv2::Error& error) {
      if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
    }
  }
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  std::vector<dsv2::SafetensorsEntry> entries;
  bool quantised = false;
  try {
    auto header = dsv2::parse_safetensors(file, "fuzz");
    entries = std::move(header.entries);
    quantised = dsv2::is_quantised_file(header.metadata, "fuzz");
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
    const bool plain = dtype && !(dsv2::is_quantised(*dtype) && e.shape.size() > 1);
    if (plain && dsv2::TensorView{*dtype, e.shape, nullptr}.bytes() != e.bytes) std::abort();
    if (quantised && e.dtype == "U8") check_panels(e);
    bytes += e.bytes;
  }
  volatile unsigned keep = sum;
  static_cast<void>(keep);
  if (bytes > static_cast<std::int64_t>(size)) std::abort();
  return 0;
}
