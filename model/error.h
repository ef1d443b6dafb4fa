// The one error type of the project, and the check that throws it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace dsv2 {

/// Thrown for everything a caller can get wrong: a broken file, a missing tensor, a shape that does not fit, an
/// unknown name. `what()` is one line that names the file or tensor, the field, what was expected and what was found.
/// `dsv2` prints it and exits with 2. State passed to the call that throws (caches, files) is left as it was.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Thrown where a backend's own code broke: an access that the device refused, a kernel that did not end. The input is
/// not to blame, and the backend is of no use afterwards. `dsv2` exits with 1.
class BackendFault : public Error {
 public:
  using Error::Error;
};

/// Everything it is given, written one after the other.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(concat(parts...));
}

}  // namespace dsv2

/// Stays on in release builds. The parts after the condition become the message of the Error.
#define DSV2_CHECK(condition, ...) \
  do {                             \
    if (!(condition)) [[unlikely]] \
      ::dsv2::fail(__VA_ARGS__);   \
  } while (false)
