// The built command, run as a user would. DSV2_BINARY is its path.
#pragma once

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "model/file.h"
#include "temporary_folder.h"

namespace dsv2::testing {

struct Outcome {
  int code;  ///< -1: ended by a signal
  std::string out, err;
};

/// `arguments` as a shell takes them.
inline Outcome run_dsv2(const std::string& arguments) {
  const TemporaryFolder folder;
  const std::string err = (folder.path() / "err").string();
  std::FILE* pipe = ::popen((std::string(DSV2_BINARY) + " " + arguments + " 2>" + err).c_str(), "r");
  Outcome run;
  std::array<char, 4096> buffer;
  for (std::size_t n; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) run.out.append(buffer.data(), n);
  const int status = ::pclose(pipe);
  run.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  run.err = read_text_file(err);
  return run;
}

}  // namespace dsv2::testing
