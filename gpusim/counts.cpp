#include "gpusim/counts.h"

#include <cstddef>

namespace gpusim {

Counts& Counts::operator+=(const Counts& other) {
  warp_instructions += other.warp_instructions;
  thread_instructions += other.thread_instructions;
  for (std::size_t i = 0; i < by_class.size(); ++i) by_class[i] += other.by_class[i];
  for (std::size_t i = 0; i < flops.size(); ++i) flops[i] += other.flops[i];
  global_load_requests += other.global_load_requests;
  global_store_requests += other.global_store_requests;
  global_load_sectors += other.global_load_sectors;
  global_store_sectors += other.global_store_sectors;
  global_ideal_sectors += other.global_ideal_sectors;
  global_load_bytes += other.global_load_bytes;
  global_store_bytes += other.global_store_bytes;
  distinct_load_sectors += other.distinct_load_sectors;
  distinct_store_sectors += other.distinct_store_sectors;
  shared_requests += other.shared_requests;
  shared_wavefronts += other.shared_wavefronts;
  shared_ideal_wavefronts += other.shared_ideal_wavefronts;
  branches += other.branches;
  divergent_branches += other.divergent_branches;
  barriers += other.barriers;
  atomics += other.atomics;
  return *this;
}

}  // namespace gpusim
