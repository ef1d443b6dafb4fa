#include "harness/blocks.h"

#include <algorithm>
#include <utility>

namespace dsv2::harness {
namespace {

int badness(Status s) {
  switch (s) {
    case Status::passed:
      return 0;
    case Status::skipped:
      return 1;
    case Status::error:
      return 2;
    case Status::failed:
      return 3;
  }
  return 3;
}

void add(Record& all, Record&& block) {
  if (badness(block.status) > badness(all.status)) {
    all.status = block.status;
    all.reason = std::move(block.reason);
  }
  all.compared += block.compared;
  if (block.budget_used > all.budget_used) {
    all.budget_used = block.budget_used;
    all.worst = std::move(block.worst);
  }
  std::move(block.failures.begin(), block.failures.end(), std::back_inserter(all.failures));
  all.ties += block.ties;
  all.rows_left_out = std::max(all.rows_left_out, block.rows_left_out);
  all.resident_memory_bytes = std::max(all.resident_memory_bytes, block.resident_memory_bytes);
  all.peak_memory_bytes = std::max(all.peak_memory_bytes, block.peak_memory_bytes);
  all.allocator_peak_bytes = std::max(all.allocator_peak_bytes, block.allocator_peak_bytes);
  all.samples_ns.insert(all.samples_ns.end(), block.samples_ns.begin(), block.samples_ns.end());
  all.conditions.waited_share = std::max(all.conditions.waited_share, block.conditions.waited_share);
  if (all.conditions.fork_join_ns && block.conditions.fork_join_ns)  // before the first, after the last
    (*all.conditions.fork_join_ns)[1] = (*block.conditions.fork_join_ns)[1];
  if (!all.sampling || !block.sampling) return;
  ++all.sampling->blocks;
  all.sampling->warm_up_runs += block.sampling->warm_up_runs;
  if (all.sampling->stopped == Stop::converged) all.sampling->stopped = block.sampling->stopped;
}

}  // namespace

Record pool_blocks(std::vector<Record> blocks) {
  DSV2_CHECK(!blocks.empty(), "pool of no blocks");
  Record all = std::move(blocks.front());
  if (blocks.size() == 1) return all;
  std::vector<double> medians;
  const double first = all.samples_ns.empty() ? 0 : all.median_ns();
  if (first > 0) medians.push_back(first);
  for (auto block = blocks.begin() + 1; block != blocks.end(); ++block) {
    if (!block->samples_ns.empty()) medians.push_back(block->median_ns());
    add(all, std::move(*block));
  }
  if (all.status != Status::passed || medians.size() < 2) return all;
  all.noise_floor = relative_spread(medians);
  if (all.share_of_roof) *all.share_of_roof *= first / all.median_ns();
  if (all.sampling) all.sampling->relative_error = median_error(all.samples_ns, all.sampling->confidence);
  return all;
}

}  // namespace dsv2::harness
