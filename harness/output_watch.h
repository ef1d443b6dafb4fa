// Do the outputs of timed runs depend on their inputs? A result that was kept from an earlier run costs nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

#include "model/tensor.h"

namespace dsv2::harness {

/// Remembers a fingerprint of each input and output, all their bits.
class OutputWatch {
 public:
  /// The next run. Returns why it is not believed, when its output has the very bits of an earlier run's whose input
  /// differed. Equal inputs prove nothing.
  std::optional<std::string> see(const TensorView& input, const TensorView& output);

 private:
  struct Seen {
    std::uint64_t input;
    std::int64_t run;
  };
  std::unordered_map<std::uint64_t, Seen> outputs_;
  std::int64_t runs_ = 0;
};

}  // namespace dsv2::harness
