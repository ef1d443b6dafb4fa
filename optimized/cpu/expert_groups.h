// The tokens of a MoE layer, grouped by the experts that they chose.
#pragma once

#include <cstdint>
#include <vector>

namespace dsv2::cpu {

/// Calls visit(expert, rows, tokens, weight) for every chosen expert, in ascending order: its tokens, ascending, and
/// their weights. `tokens` and `weight` have room for N*k, `begin` is scratch. topk_idx and topk_weight: [N,k].
template <class Visit>
void for_each_chosen_expert(const std::int64_t* topk_idx, const float* topk_weight, std::int64_t count, std::int64_t k,
                            std::int64_t experts, std::vector<std::int64_t>& begin, std::int64_t* tokens, float* weight,
                            Visit&& visit) {
  const auto E = static_cast<std::size_t>(experts);
  begin.assign(E + 1, 0);
  for (std::int64_t i = 0; i < count * k; ++i) ++begin[static_cast<std::size_t>(topk_idx[i] + 1)];
  for (std::size_t e = 0; e < E; ++e) begin[e + 1] += begin[e];
  for (std::size_t e = 0; e < E; ++e)
    if (const std::int64_t first = begin[e]; begin[e + 1] > first)
      visit(e, begin[e + 1] - first, tokens + first, weight + first);
  for (std::int64_t i = 0; i < count * k; ++i) {
    const std::int64_t at = begin[static_cast<std::size_t>(topk_idx[i])]++;
    tokens[at] = i / k;
    weight[at] = topk_weight[i];
  }
}

}  // namespace dsv2::cpu
