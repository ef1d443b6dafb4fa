#include "harness/process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "model/error.h"

namespace dsv2::harness {
namespace {

constexpr int kInterrupts[] = {SIGINT, SIGTERM, SIGHUP};
constexpr timespec kLook{0, 200'000'000};  // between looks at the child, should its SIGCHLD be lost
constexpr auto kGrace = std::chrono::seconds(3);

std::string reason(int error) { return std::generic_category().message(error); }

bool ignored(int signal) {
  struct sigaction now {};
  return ::sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_IGN;
}

/// What posix_spawn takes: where the three standard files go, and the signal mask.
class SpawnSetup {
 public:
  SpawnSetup(const std::filesystem::path& out, const std::filesystem::path& err, const sigset_t& mask) {
    ::posix_spawn_file_actions_init(&files_);
    ::posix_spawnattr_init(&attributes_);
    ::posix_spawn_file_actions_addopen(&files_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_addopen(&files_, STDOUT_FILENO, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::posix_spawn_file_actions_addopen(&files_, STDERR_FILENO, err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::posix_spawnattr_setsigmask(&attributes_, &mask);
    ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK);
  }
  ~SpawnSetup() {
    ::posix_spawn_file_actions_destroy(&files_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;

  const posix_spawn_file_actions_t* files() const { return &files_; }
  const posix_spawnattr_t* attributes() const { return &attributes_; }

 private:
  posix_spawn_file_actions_t files_;
  posix_spawnattr_t attributes_;
};

/// Whether `child` has ended; `status` is then as waitpid() gives it.
bool ended(pid_t child, int& status) {
  pid_t who = 0;
  do who = ::waitpid(child, &status, WNOHANG);
  while (who < 0 && errno == EINTR);
  return who == child;
}

void end(pid_t child, const sigset_t& wake) {
  int status = 0;
  ::kill(child, SIGTERM);
  const auto deadline = std::chrono::steady_clock::now() + kGrace;
  while (!ended(child, status)) {
    if (std::chrono::steady_clock::now() > deadline) ::kill(child, SIGKILL);
    ::sigtimedwait(&wake, nullptr, &kLook);
  }
}

}  // namespace

void die_of(const Interrupted& interrupted) {
  sigset_t just;
  ::sigemptyset(&just);
  ::sigaddset(&just, interrupted.signal);
  ::signal(interrupted.signal, SIG_DFL);
  ::sigprocmask(SIG_UNBLOCK, &just, nullptr);
  ::raise(interrupted.signal);
  std::_Exit(128 + interrupted.signal);
}

SignalsHeld::SignalsHeld() {
  ::sigemptyset(&held_);
  for (const int signal : kInterrupts)
    if (!ignored(signal)) ::sigaddset(&held_, signal);
  ::sigaddset(&held_, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &held_, &before_);
}

SignalsHeld::~SignalsHeld() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }

std::string describe(const ChildExit& end) {
  if (end.signal) return concat("killed by signal ", end.signal, " (", ::strsignal(end.signal), ")");
  return concat("exit code ", end.code);
}

void check_executable(const std::filesystem::path& program) {
  std::error_code error;
  const auto status = std::filesystem::status(program, error);
  DSV2_CHECK(std::filesystem::exists(status), program.string(), ": expected a program, found no such file");
  DSV2_CHECK(std::filesystem::is_regular_file(status), program.string(), ": expected a program, found ",
             std::filesystem::is_directory(status) ? "a folder" : "no regular file");
  DSV2_CHECK(::access(program.c_str(), X_OK) == 0, program.string(), ": cannot be run: ", reason(errno));
}

ChildExit run_child(const std::vector<std::string>& argv, const std::filesystem::path& out,
                    const std::filesystem::path& err, const SignalsHeld& signals) {
  std::vector<char*> words;
  for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  const SpawnSetup setup(out, err, signals.before());
  pid_t child = 0;
  const int error = ::posix_spawn(&child, words.front(), setup.files(), setup.attributes(), words.data(), environ);
  DSV2_CHECK(error == 0, argv.front(), ": cannot be run: ", reason(error));
  int status = 0;
  while (!ended(child, status)) {
    const int signal = ::sigtimedwait(&signals.held(), nullptr, &kLook);
    if (signal <= 0 || signal == SIGCHLD) continue;
    end(child, signals.held());
    throw Interrupted{signal};
  }
  // A terminal sends Ctrl-C to parent and child alike, and the child may be the first to be gone.
  constexpr timespec kNoWait{};
  for (int signal = 0; (signal = ::sigtimedwait(&signals.held(), nullptr, &kNoWait)) > 0;)
    if (signal != SIGCHLD) throw Interrupted{signal};
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGINT) throw Interrupted{SIGINT};
  if (WIFSIGNALED(status)) return {.code = 0, .signal = WTERMSIG(status)};
  return {.code = WEXITSTATUS(status), .signal = 0};
}

}  // namespace dsv2::harness
