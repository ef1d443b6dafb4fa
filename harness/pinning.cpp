#include "harness/pinning.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "harness/flags.h"
#include "model/error.h"
#include "optimized/cpu/thread_team.h"

namespace dsv2::harness {
namespace {

constexpr const char* kBind = "close";
constexpr const char* kPlaces = "cores";

bool is_set(const char* variable, const char* value) {
  const char* found = std::getenv(variable);
  return found != nullptr && std::strcmp(found, value) == 0;
}

[[noreturn]] void restart_bound() {
  ::setenv("OMP_PROC_BIND", kBind, 1);
  ::setenv("OMP_PLACES", kPlaces, 1);
  std::vector<std::string> words = command_line();
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execv("/proc/self/exe", argv.data());
  fail("--pin: cannot start this program again with OMP_PROC_BIND set: ", std::strerror(errno));
}

/// How many of the threads of a team have a set of CPUs that no other one has, as the kernel sees them.
std::size_t threads_apart(int threads) {
  std::mutex mutex;
  std::set<std::string> masks;
  cpu::ThreadTeam(threads).run(threads, 1, cpu::Split::even, [&](cpu::Range) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return;
    const std::lock_guard lock(mutex);
    masks.emplace(reinterpret_cast<const char*>(&set), sizeof set);
  });
  return masks.size();
}

}  // namespace

bool threads_are_pinned() { return omp_get_proc_bind() != omp_proc_bind_false && omp_get_num_places() > 0; }

void pin_threads(int threads) {
  if (!threads_are_pinned() && !(is_set("OMP_PROC_BIND", kBind) && is_set("OMP_PLACES", kPlaces))) restart_bound();
  DSV2_CHECK(threads_are_pinned(), "--pin: the OpenMP runtime does not bind threads on this system");
  const int places = omp_get_num_places();
  DSV2_CHECK(threads <= places, "--pin: expected at most ", places, " threads, one a core, found ", threads);
  const std::size_t apart = threads_apart(threads);
  DSV2_CHECK(apart == static_cast<std::size_t>(threads), "--pin: expected ", threads,
             " threads on different CPUs, found ", apart, " (OMP_PROC_BIND or OMP_PLACES may be set to share them)");
}

}  // namespace dsv2::harness
