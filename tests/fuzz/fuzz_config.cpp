// Config::parse either throws Error with one line, or returns a config that is valid and survives the round trip.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "model/config.h"
#include "model/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  dsv2::Config config;
  try {
    config = dsv2::Config::parse({reinterpret_cast<const char*>(data), size}, "fuzz");
  } catch (const dsv2::Error& e) {
    if (std::string(e.what()).find('\n') != std::string::npos) std::abort();
    return 0;
  }
  config.validate();
  // num_labels counts only with its head, and is written only with it.
  if (config.head != dsv2::Head::sequence_classification) config.num_labels = dsv2::Config().num_labels;
  if (config.num_labels > 1000) return 0;  // the round trip writes a line for each
  if (dsv2::Config::parse(config.to_json(), "round trip") != config) std::abort();
  return 0;
}
