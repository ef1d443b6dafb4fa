#include "harness/interrupt.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <initializer_list>
#include <thread>

#include "model/file.h"

namespace dsv2::harness {
namespace {

/// A handler may do next to nothing, so it passes the signal on to a thread.
int pipe_ends[2] = {-1, -1};

void pass_on(int signal) {
  const int before = errno;
  const auto which = static_cast<unsigned char>(signal);
  [[maybe_unused]] const ssize_t n = ::write(pipe_ends[1], &which, 1);
  errno = before;
}

[[noreturn]] void wait_and_clean_up() {
  unsigned char which = 0;
  while (::read(pipe_ends[0], &which, 1) != 1) {
  }
  remove_temporaries();
  ::signal(which, SIG_DFL);
  ::kill(::getpid(), which);
  for (;;) ::pause();
}

}  // namespace

void clean_up_when_interrupted() {
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0) return;  // then signals end the process at once
  std::thread(wait_and_clean_up).detach();
  struct sigaction action {};
  action.sa_handler = pass_on;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction present {};
    if (::sigaction(signal, nullptr, &present) == 0 && present.sa_handler != SIG_IGN)
      ::sigaction(signal, &action, nullptr);
  }
}

}  // namespace dsv2::harness
