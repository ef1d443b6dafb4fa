// The threads of a decoder: every item exactly once, on the threads that were asked for, however they wait.
#include "optimized/cpu/thread_team.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace dsv2::cpu {
namespace {

constexpr Split kSplits[] = {Split::even, Split::on_demand};
constexpr int kMostThreads = 8;  // more than the cores of many a machine that tests run on

/// How often each of `count` items was visited. Not atomic: a thread sanitizer sees two threads at one item.
std::vector<int> visits(ThreadTeam& team, std::int64_t count, std::int64_t grain, Split split) {
  std::vector<int> seen(static_cast<std::size_t>(count));
  team.run(count, grain, split, [&](Range range) {
    for (std::int64_t i = range.begin; i < range.end; ++i) ++seen[static_cast<std::size_t>(i)];
  });
  return seen;
}

TEST(ThreadTeam, VisitsEachItemOnce) {
  for (int threads = 1; threads <= kMostThreads; ++threads) {
    ThreadTeam team(threads);
    ASSERT_EQ(team.threads(), threads);
    for (const Split split : kSplits)
      for (const std::int64_t count : {0, 1, 2, 3, 7, 8, 31, 32, 33, 257, 1000})
        for (const std::int64_t grain : {1, 3, 32, 2000})
          ASSERT_EQ(visits(team, count, grain, split), std::vector<int>(static_cast<std::size_t>(count), 1))
              << threads << " threads, " << count << " items, grain " << grain;
  }
}

TEST(ThreadTeam, SplitsAtMultiplesOfTheGrain) {
  ThreadTeam team(3);
  for (const Split split : kSplits) {
    std::mutex mutex;
    std::set<std::int64_t> begins, ends;
    team.run(100, 8, split, [&](Range range) {
      const std::lock_guard lock(mutex);
      begins.insert(range.begin);
      ends.insert(range.end);
    });
    for (const std::int64_t begin : begins) EXPECT_EQ(begin % 8, 0);
    for (const std::int64_t end : ends) EXPECT_TRUE(end % 8 == 0 || end == 100) << end;
    EXPECT_EQ(begins.size(), split == Split::even ? 3u : 13u);
  }
}

TEST(ThreadTeam, SharesEvenlyAmongItsThreads) {
  for (int threads = 2; threads <= kMostThreads; ++threads) {
    ThreadTeam team(threads);
    std::mutex mutex;
    std::set<std::thread::id> ids;
    team.run(threads, 1, Split::even, [&](Range range) {
      const std::lock_guard lock(mutex);
      EXPECT_EQ(range.end - range.begin, 1);
      ids.insert(std::this_thread::get_id());
    });
    EXPECT_EQ(ids.size(), static_cast<std::size_t>(threads));
    EXPECT_TRUE(ids.contains(std::this_thread::get_id())) << "the caller takes part";
  }
}

// One thread holds the first item until all others are done: only a team that shares on demand gets there.
TEST(ThreadTeam, SharesOnDemandWhatIsLeft) {
  ThreadTeam team(2);
  std::atomic<int> done{0};
  team.run(64, 1, Split::on_demand, [&](Range range) {
    if (range.begin == 0)
      while (done.load() < 63) std::this_thread::yield();
    ++done;
  });
  EXPECT_EQ(done.load(), 64);
}

TEST(ThreadTeam, RunsOneThreadAndOneGrainInline) {
  const std::thread::id caller = std::this_thread::get_id();
  for (const int threads : {1, 4}) {
    ThreadTeam team(threads);
    for (const Split split : kSplits) {
      int calls = 0;
      team.run(20, threads == 1 ? 1 : 20, split, [&](Range range) {
        ++calls;
        EXPECT_EQ(range.begin, 0);
        EXPECT_EQ(range.end, 20);
        EXPECT_EQ(std::this_thread::get_id(), caller);
      });
      EXPECT_EQ(calls, 1);
    }
  }
}

// Each run reads what the one before wrote on another thread.
TEST(ThreadTeam, OrdersThousandsOfTinyRuns) {
  constexpr std::int64_t kItems = 16;
  for (const int threads : {2, 3, kMostThreads}) {
    ThreadTeam team(threads);
    std::vector<std::int64_t> now(kItems, 0), next(kItems, 0);
    constexpr int kRuns = 5000;
    for (int i = 0; i < kRuns; ++i) {
      const Split split = kSplits[i % 2];
      team.run(kItems, 1, split, [&](Range range) {
        for (std::int64_t j = range.begin; j < range.end; ++j)
          next[static_cast<std::size_t>(j)] = now[static_cast<std::size_t>((j + 1) % kItems)] + 1;
      });
      now.swap(next);
    }
    EXPECT_EQ(now, std::vector<std::int64_t>(kItems, kRuns)) << threads << " threads";
  }
}

TEST(ThreadTeam, WakesAfterAnyIdleTime) {
  ThreadTeam team(4);
  for (const int us : {0, 1, 10, 40, 45, 50, 55, 60, 100, 1000, 20000})
    for (int repeat = 0; repeat < 5; ++repeat) {
      std::this_thread::sleep_for(std::chrono::microseconds(us));
      ASSERT_EQ(visits(team, 64, 1, Split::even), std::vector<int>(64, 1)) << us;
    }
}

// The caller is done long before the workers are, and must sleep.
TEST(ThreadTeam, WaitsForTheLastWorker) {
  const std::thread::id caller = std::this_thread::get_id();
  ThreadTeam team(4);
  std::vector<int> seen(4);
  for (const int ms : {0, 1, 10}) {
    team.run(4, 1, Split::even, [&](Range range) {
      if (std::this_thread::get_id() != caller) std::this_thread::sleep_for(std::chrono::milliseconds(ms));
      ++seen[static_cast<std::size_t>(range.begin)];
    });
    EXPECT_EQ(seen, std::vector<int>(4, 1)) << ms;
    seen.assign(4, 0);
  }
}

TEST(ThreadTeam, ServesSeveralCallersAtOnce) {
  constexpr int kCallers = 3;
  std::vector<int> wrong(kCallers);
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c)
    callers.emplace_back([c, &wrong] {
      ThreadTeam team(2 + c);
      for (int i = 0; i < 300; ++i)
        wrong[static_cast<std::size_t>(c)] += visits(team, 40, 1, kSplits[i % 2]) != std::vector<int>(40, 1);
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, std::vector<int>(kCallers));
}

// A team that another one's items use: what an op must not do with its own.
TEST(ThreadTeam, NestsInAnotherTeam) {
  ThreadTeam outer(2);
  std::vector<int> sums(4);
  outer.run(4, 1, Split::on_demand, [&](Range range) {
    ThreadTeam inner(2);
    for (std::int64_t i = range.begin; i < range.end; ++i)
      for (const int n : visits(inner, 100, 1, Split::even)) sums[static_cast<std::size_t>(i)] += n;
  });
  EXPECT_EQ(sums, std::vector<int>(4, 100));
}

#if defined(__linux__)
int tasks() {
  int count = 0;
  for ([[maybe_unused]] const auto& task : std::filesystem::directory_iterator("/proc/self/task")) ++count;
  return count;
}

TEST(ThreadTeam, LeavesNoThreadBehind) {
  const int before = tasks();
  for (int i = 0; i < 50; ++i) {
    ThreadTeam team(1 + i % kMostThreads);
    EXPECT_EQ(tasks(), before + i % kMostThreads);
    if (i % 3 == 1) visits(team, 100, 1, Split::even);                          // ends while it spins
    if (i % 3 == 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // ends while it sleeps
  }
  EXPECT_EQ(tasks(), before);
}

std::int64_t processor_time_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec * 1'000'000'000 + t.tv_nsec;
}

TEST(ThreadTeam, CostsNothingWhileIdle) {
  cpu_set_t all;
  ASSERT_EQ(::sched_getaffinity(0, sizeof all, &all), 0);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &all)) cpus.push_back(cpu);
  if (cpus.size() < 2) GTEST_SKIP() << "a team spins only where each thread has a core";
  ThreadTeam team(2);
  team.run(2, 1, Split::even, [&](Range range) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpus[static_cast<std::size_t>(range.begin)], &one);
    ::sched_setaffinity(0, sizeof one, &one);
  });
  visits(team, 100, 1, Split::even);  // seen apart: now the worker spins
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::int64_t before = processor_time_ns();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const std::int64_t spent = processor_time_ns() - before;
  ::sched_setaffinity(0, sizeof all, &all);
  EXPECT_LT(spent, 5'000'000);  // of the 200 ms, or what another load left of them, that spinning on would take
}

TEST(ThreadTeam, NamesItsWorkers) {
  ThreadTeam team(2);
  std::mutex mutex;
  std::set<std::string> names;
  team.run(2, 1, Split::even, [&](Range range) {
    char name[16] = "";
    ::pthread_getname_np(::pthread_self(), name, sizeof name);
    const std::lock_guard lock(mutex);
    if (range.begin == 1) names.insert(name);
  });
  EXPECT_EQ(names, std::set<std::string>{"dsv2-1"});
}
#endif

}  // namespace
}  // namespace dsv2::cpu
