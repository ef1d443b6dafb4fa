// Child processes, started without a shell and waited for, that do not outlive an interrupted parent.
#pragma once

#include <csignal>

#include <filesystem>
#include <string>
#include <vector>

namespace dsv2::harness {

/// Thrown by run_child() when `signal` arrived; the child has ended by then.
struct Interrupted {
  int signal;
};

/// Dies as the signal has it by default, so that a shell sees why. Temporaries are to be gone by then.
[[noreturn]] void die_of(const Interrupted& interrupted);

/// While it lives, SIGINT, SIGTERM and SIGHUP (those that this process does not ignore) wait for run_child() to take
/// them; one that arrives after the last child takes effect when it goes.
class SignalsHeld {
 public:
  SignalsHeld();
  ~SignalsHeld();
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

  const sigset_t& before() const { return before_; }  ///< the mask that a child starts with
  const sigset_t& held() const { return held_; }      ///< and SIGCHLD, which wakes run_child()

 private:
  sigset_t before_, held_;
};

/// How a child ended: with an exit code, or by a signal (0: none).
struct ChildExit {
  int code = 0, signal = 0;
};
/// "exit code 2", "killed by signal 11 (Segmentation fault)"
std::string describe(const ChildExit& end);

/// Throws Error naming `program` unless it is a file that this user may execute.
void check_executable(const std::filesystem::path& program);

/// Runs argv[0], a path, to its end; stdin is /dev/null, stdout and stderr go to the files `out` and `err`. Throws
/// Error naming the program when it cannot be started, Interrupted as said above.
ChildExit run_child(const std::vector<std::string>& argv, const std::filesystem::path& out,
                    const std::filesystem::path& err, const SignalsHeld& signals);

}  // namespace dsv2::harness
