#include "harness/backends.h"

#include <string>

#include "optimized/cpu/backend.h"
#include "reference/backend.h"

namespace dsv2::harness {

std::span<const Backend> backends() {
  static const Backend kBackends[] = {reference::backend(), cpu::backend()};
  return kBackends;
}

const Backend& find_backend(std::string_view name) {
  std::string known;
  for (const Backend& b : backends()) {
    if (b.name == name) return b;
    known += (known.empty() ? "" : ", ") + std::string(b.name);
  }
  fail("--backend: expected one of ", known, ", found ", name);
}

}  // namespace dsv2::harness
