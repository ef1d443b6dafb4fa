// Routing decisions of two gates: the same, a tie that rounding may decide either way, or wrong.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/tensor.h"

namespace dsv2::harness {

/// One token's experts against the right ones.
enum class Choice : std::uint8_t {
  same,
  tie,    ///< other experts, which the gate's rule gives too for logits within their bounds
  other,  ///< other experts, and no such logits
};

/// Of each token. `got` and `want` [N,k] are ascending ids, `logits` [N,E] the right ones and `slack` [N*E] how far
/// each may be off; `bias` [E] with noaux_tc, else absent. Other experts are a tie when the gate's own rule
/// (reference/gate.h) chooses them for logits moved by no more than their slack, and scores by no more than float32
/// rounds them.
std::vector<Choice> judge_choices(const TensorView& got, const TensorView& want, const TensorView& logits,
                                  std::span<const double> slack, const Config& config, const TensorView& bias);

}  // namespace dsv2::harness
