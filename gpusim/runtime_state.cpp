#include "gpusim/runtime_state.h"

#include <unistd.h>
#include <csignal>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <mutex>

#include "gpusim/profile.h"

namespace gpusim::runtime {
namespace {

/// What `dsv2 sim` looks for in a program: that it is linked with this library.
[[gnu::used, gnu::section(".gpusim")]] const char kMarker[] = "gpusim 1";

Environment environment_or_exit() {
  try {
    return read_environment([](const char* name) { return std::getenv(name); });
  } catch (const dsv2::Error& error) {
    std::cerr << "gpusim: " << error.what() << std::endl;
    _exit(2);
  }
}

/// Signals that end a program which does not handle them: the report is written, then the program dies of them.
constexpr int kFatalSignals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTERM, SIGINT, SIGHUP, SIGQUIT};

void on_signal(int number) {
  // What is done here is not safe in a handler: where it hangs or fails itself, the alarm or the signal still kills.
  signal(number, SIG_DFL);
  signal(SIGALRM, SIG_DFL);
  alarm(5);
  State::get().finish_by_signal(number);
  raise(number);
}

/// A stack of its own, as the program's may be what has run out.
void handle_signals() {
  constexpr std::size_t kStackBytes = std::size_t{1} << 18;
  static std::byte stack[kStackBytes];
  const stack_t alternate = {.ss_sp = stack, .ss_flags = 0, .ss_size = kStackBytes};
  sigaltstack(&alternate, nullptr);
  for (const int number : kFatalSignals) {
    struct sigaction old = {};
    if (sigaction(number, nullptr, &old) != 0 || old.sa_handler != SIG_DFL) continue;
    struct sigaction mine = {};
    mine.sa_handler = on_signal;
    mine.sa_flags = SA_ONSTACK | SA_NODEFER;
    sigaction(number, &mine, nullptr);
  }
}

/// As early as can be, so that it runs after the program's own exit handlers and destructors.
[[gnu::constructor(101)]] void finish_at_exit() {
  on_exit([](int status, void*) { State::get().finish(status); }, nullptr);
}

}  // namespace

State& State::get() {
  // Never destroyed: destructors of the program's may still call the runtime.
  static State* const state = [] {
    auto* const made = new State(environment_or_exit());
    handle_signals();
    return made;
  }();
  return *state;
}

State::State(Environment from)
    : environment(std::move(from)),
      device(device_model(environment.device)),
      report(device, environment),
      memory(DeviceMemory::kArenaBytes, environment.settings.checks.any_global()),
      scheduler(environment.settings.checks.streams, [this](const Finding& finding) { report.add(finding); }) {}

cudaError_t& last_error() {
  thread_local cudaError_t error = cudaSuccess;
  return error;
}

void State::tell(const std::string& call, const Refusal& refusal) {
  if (refusal.why.empty()) return;
  tell(refusal.kind, dsv2::concat(call, ": ", refusal.why, " (", cudaGetErrorName(refusal.error), ')'));
}

void State::tell(FindingKind kind, std::string message) {
  Finding finding;
  finding.kind = kind;
  // A program may try a call to see whether it is refused. With all checks off that is its own affair.
  finding.warning = !any(environment.settings.checks);
  finding.message = std::move(message);
  report.add(finding);
}

void State::report_leaks() {
  if (!environment.settings.checks.leaks) return;
  for (const auto& [address, allocation] : memory.live()) {
    if (!allocation.counted_as_leak) continue;
    Finding finding;
    finding.kind = FindingKind::leak;
    finding.message =
        dsv2::concat(allocation.bytes, " bytes of ", allocation.what, " at 0x", std::hex, address, " are never freed");
    report.add(finding);
  }
}

void State::reset() {
  scheduler.wait_all();
  report_leaks();
  unload_all();
  for (const auto& [address, allocation] : memory.live()) {
    memory.release(address);
    scheduler.forget({address, allocation.bytes});
  }
  sizes_.clear();
  device_bytes_ = 0;
  host_visible.clear();
  pinned_flags.clear();
  registered.clear();
  streams.clear();
  events.clear();
  captures.clear();
  forget_graphs();
  forget_pools();
  legacy_ = {};
  ++generation;
  sticky = cudaSuccess;
}

void State::write_report() {
  if (!environment.quiet || report.fired()) report.write_text(std::cerr);
  if (environment.json.empty()) return;
  std::ofstream file(environment.json, std::ios::binary);
  file << report.json();
  file.close();
  if (!file) std::cerr << "gpusim: cannot write " << environment.json << '\n';
}

void State::finish_by_signal(int number) {
  // Another thread may hold the lock for good: it may be the one that waits for this one.
  const std::unique_lock lock(mutex, std::try_to_lock);
  if (!lock.owns_lock() || finished_) return;
  finished_ = true;
  std::cerr << "gpusim: signal " << number << " (" << strsignal(number) << ") ends the program: what is known so far\n";
  write_report();
}

void State::finish(int status) {
  const std::lock_guard lock(mutex);
  if (finished_) return;
  finished_ = true;
  scheduler.wait_all();
  if (status == 0) report_leaks();  // a program that gave up need not have cleaned up
  write_report();
  if (status != 0 || !report.fired()) return;
  // exit() is under way and its status cannot be changed; what it would still do that can be seen is flushing.
  std::cout.flush();
  std::cerr.flush();
  std::fflush(nullptr);
  _exit(1);
}

}  // namespace gpusim::runtime

std::vector<std::string> gpusim::new_findings() {
  runtime::State& state = runtime::State::get();
  const std::lock_guard lock(state.mutex);
  return state.report.new_findings();
}

std::string gpusim::report_so_far() {
  runtime::State& state = runtime::State::get();
  const std::lock_guard lock(state.mutex);
  return state.report.json(false);
}
