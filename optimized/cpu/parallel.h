// Work shared among the threads of one decoder.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// Who takes which items. `even`: a contiguous share each, so that memory streams. `on_demand`: one grain after the
/// other, for items of unequal cost.
enum class Split : std::uint8_t { even, on_demand };

/// Calls f(Range) until all of 0..count-1 is done, split at multiples of `grain`. f must not throw.
template <class F>
void parallel_for(int threads, std::int64_t count, std::int64_t grain, Split split, F&& f) {
  const std::int64_t grains = (count + grain - 1) / grain;
  if (threads == 1 || grains <= 1) {
    if (count > 0) f(Range{0, count});
    return;
  }
  if (split == Split::on_demand) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (std::int64_t g = 0; g < grains; ++g) f(Range{g * grain, std::min((g + 1) * grain, count)});
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const std::int64_t t = omp_get_thread_num(), n = omp_get_num_threads();
    const Range mine{grains * t / n * grain, std::min(grains * (t + 1) / n * grain, count)};
    if (mine.begin < mine.end) f(mine);
  }
}

}  // namespace dsv2::cpu
