// Which op and layer the name of a tensor speaks of.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace dsv2::harness {

struct OpName {
  /// The tap's name without its layer ("self_attn.q_proj"); of a layer's own output "layer"; empty for a name that is
  /// a sentence and speaks of no tensor.
  std::string op;
  std::optional<std::int64_t> layer;
};

/// Of a tap (model/taps.h), of a golden tensor ("full.hidden_states.1", "greedy.cache.0.k_pe": the call's name is left
/// out) and of what a comparison makes of them ("full: layers.0.mlp (alone)").
OpName op_of_tensor(std::string_view tensor);

}  // namespace dsv2::harness
