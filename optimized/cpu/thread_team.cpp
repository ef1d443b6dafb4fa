#include "optimized/cpu/thread_team.h"

#include <omp.h>

#include <chrono>
#include <string>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace dsv2::cpu {
namespace {

// Twice what lies between two ops of a decode step, where workers have nothing to do.
constexpr std::chrono::microseconds kSpin{50};
constexpr int kPausesPerLook = 32;  // the clock costs as much as a few of them

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

/// Waits for done() without giving the core away, as long as that may be worth it.
template <class Done>
bool spin_until(const Done& done) {
  for (int i = 0; i < kPausesPerLook; ++i, pause())
    if (done()) return true;
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (std::chrono::steady_clock::now() < end)
    for (int i = 0; i < kPausesPerLook; ++i, pause())
      if (done()) return true;
  return done();
}

#if defined(__linux__)
/// Where OpenMP binds each of `threads` threads; empty where it does not.
std::vector<cpu_set_t> bound_places(int threads) {
  std::vector<cpu_set_t> places;
  if (omp_get_proc_bind() == omp_proc_bind_false || omp_get_num_places() == 0) return places;
  places.resize(static_cast<std::size_t>(threads));
#pragma omp parallel num_threads(threads)
  sched_getaffinity(0, sizeof(cpu_set_t), &places[static_cast<std::size_t>(omp_get_thread_num())]);
  return places;
}
#endif

int current_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

}  // namespace

int available_cores() { return omp_get_num_procs(); }

ThreadTeam::ThreadTeam(int threads)
    : enough_cores_(threads <= available_cores()), cpu_(static_cast<std::size_t>(std::max(threads, 1))) {
  for (auto& cpu : cpu_) cpu.store(-1, std::memory_order_relaxed);
#if defined(__linux__)
  std::vector<cpu_set_t> places;
  if (threads > 1) places = bound_places(threads);
#endif
  try {
    for (int member = 1; member < threads; ++member) {
      std::thread& worker = workers_.emplace_back([this, member] { work(member); });
#if defined(__linux__)
      pthread_setname_np(worker.native_handle(), ("dsv2-" + std::to_string(member)).c_str());
      if (!places.empty())
        pthread_setaffinity_np(worker.native_handle(), sizeof(cpu_set_t), &places[static_cast<std::size_t>(member)]);
#else
      static_cast<void>(worker);
#endif
    }
  } catch (...) {
    stop();
    throw;
  }
}

ThreadTeam::~ThreadTeam() { stop(); }

void ThreadTeam::stop() {
  announce({});
  for (std::thread& worker : workers_) worker.join();
}

/// Not while another of the team may be waiting for this core.
bool ThreadTeam::may_spin(int member) {
  if (!enough_cores_) return false;
  const int here = current_cpu();
  std::atomic<int>& mine = cpu_[static_cast<std::size_t>(member)];
  if (mine.load(std::memory_order_relaxed) != here) mine.store(here, std::memory_order_relaxed);
  return here < 0 || std::none_of(cpu_.begin(), cpu_.end(), [&](const std::atomic<int>& cpu) {
           return &cpu != &mine && cpu.load(std::memory_order_relaxed) == here;
         });
}

void ThreadTeam::share(const Job& job) {
  next_grain_.store(0, std::memory_order_relaxed);
  running_.store(static_cast<std::uint32_t>(workers_.size()), std::memory_order_relaxed);
  announce(job);
  take_part(0);
  const auto all_finished = [this] { return running_.load(std::memory_order_acquire) == 0; };
  if (may_spin(0) ? spin_until(all_finished) : all_finished()) return;
  caller_asleep_.store(true);  // before `running_` is looked at: see work()
  while (const std::uint32_t running = running_.load()) running_.wait(running);
  caller_asleep_.store(false, std::memory_order_relaxed);
}

/// Publishes `job` and wakes who sleeps. Sequential consistency orders the two sides: either a worker on its way to
/// sleep sees the new epoch, or it is counted here.
void ThreadTeam::announce(const Job& job) {
  job_ = job;
  epoch_.fetch_add(1);
  if (asleep_.load() > 0) epoch_.notify_all();
}

void ThreadTeam::work(int member) {
  for (std::uint32_t seen = 0;;) {
    const auto announced = [this, seen] { return epoch_.load(std::memory_order_acquire) != seen; };
    if (!(may_spin(member) ? spin_until(announced) : announced())) {
      asleep_.fetch_add(1);
      epoch_.wait(seen);
      asleep_.fetch_sub(1, std::memory_order_relaxed);
    }
    ++seen;  // no epoch is missed: the next one comes when all have finished this one
    if (!job_.call) return;
    take_part(member);
    // As in announce(): the caller sees the last worker finished, or is seen asleep.
    if (running_.fetch_sub(1) == 1 && caller_asleep_.load()) running_.notify_one();
  }
}

void ThreadTeam::take_part(int member) {
  const Job job = job_;
  const std::int64_t grains = (job.count + job.grain - 1) / job.grain;
  if (job.split == Split::on_demand) {
    for (std::int64_t g; (g = next_grain_.fetch_add(1, std::memory_order_relaxed)) < grains;)
      job.call(job.context, {g * job.grain, std::min((g + 1) * job.grain, job.count)});
    return;
  }
  const std::int64_t t = member, n = threads();
  const Range mine{grains * t / n * job.grain, std::min(grains * (t + 1) / n * job.grain, job.count)};
  if (mine.begin < mine.end) job.call(job.context, mine);
}

}  // namespace dsv2::cpu
