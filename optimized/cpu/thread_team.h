// Threads that share the work of one decoder: a fork and join for every op, hundreds in a step of milliseconds.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// Who takes which items. `even`: a contiguous share each, so that memory streams. `on_demand`: one grain after the
/// other, for items of unequal cost.
enum class Split : std::uint8_t { even, on_demand };

/// Cores that this process may use, those that only its other threads are bound to included.
int available_cores();

/// The thread that calls run() and `threads() - 1` workers, which live as long as the team. Who waits, a worker for
/// work or the caller for the last worker, first spins for some microseconds and then sleeps: a team costs nothing
/// between calls, and little more than a sleeping barrier where others use its cores. Where OpenMP binds its threads
/// (OMP_PROC_BIND), the workers are bound to the same places; else they inherit the affinity of who made the team.
/// Not thread-safe: one run() at a time, and none from within one. Any number of teams may run at once.
class ThreadTeam {
 public:
  /// Throws std::system_error when the system gives no thread.
  explicit ThreadTeam(int threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls f(Range) until all of 0..count-1 is done, split at multiples of `grain`; at once, as f(Range{0, count}), for
  /// a team of one and a single grain. What the caller wrote before, f sees on every thread, and what f wrote there the
  /// caller sees after. f must not throw.
  template <class F>
  void run(std::int64_t count, std::int64_t grain, Split split, const F& f) {
    if (count <= 0) return;
    if (workers_.empty() || count <= grain) return f(Range{0, count});
    share({.call = [](const void* context, Range range) { (*static_cast<const F*>(context))(range); },
           .context = &f,
           .count = count,
           .grain = grain,
           .split = split});
  }

 private:
  struct Job {
    void (*call)(const void* context, Range range) = nullptr;  // null: the team ends
    const void* context = nullptr;
    std::int64_t count = 0, grain = 1;
    Split split = Split::even;
  };
  static constexpr std::size_t kLine = 64;  // of the cache: each line below is written by others, or at other times

  void share(const Job& job);
  void announce(const Job& job);
  void work(int member);
  void take_part(int member);
  bool may_spin(int member);
  void stop();

  // Written by the caller between jobs; `epoch_` counts them and publishes what was written.
  alignas(kLine) std::atomic<std::uint32_t> epoch_{0};
  Job job_;
  bool enough_cores_;
  alignas(kLine) std::atomic<std::uint32_t> asleep_{0};  // workers that wait for epoch_ to be notified, or are about to
  alignas(kLine) std::atomic<std::int64_t> next_grain_{0};  // Split::on_demand
  alignas(kLine) std::atomic<std::uint32_t> running_{0};    // workers that have not finished the job
  std::atomic<bool> caller_asleep_{false};
  alignas(kLine) std::vector<std::atomic<int>> cpu_;  // [threads], where each was last seen; -1: unknown
  std::vector<std::thread> workers_;
};

}  // namespace dsv2::cpu
