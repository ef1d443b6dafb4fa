#include "harness/output_watch.h"

#include <functional>
#include <string_view>

#include "model/error.h"

namespace dsv2::harness {
namespace {

std::uint64_t fingerprint(const TensorView& t) {
  return std::hash<std::string_view>{}({static_cast<const char*>(t.data), static_cast<std::size_t>(t.bytes())});
}

}  // namespace

std::optional<std::string> OutputWatch::see(const TensorView& input, const TensorView& output) {
  const Seen now{fingerprint(input), runs_++};
  const auto [before, fresh] = outputs_.try_emplace(fingerprint(output), now);
  if (fresh || before->second.input == now.input) return std::nullopt;
  return concat("the output does not depend on the input: run ", now.run, " gave the very bits of run ",
                before->second.run, " for other input");
}

}  // namespace dsv2::harness
