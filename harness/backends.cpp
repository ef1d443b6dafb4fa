#include "harness/backends.h"

#include <dlfcn.h>

#include <string>
#include <vector>

#include "optimized/cpu/backend.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

/// A backend that is a library of its own, loaded when it is first asked for. Its row says so where that fails.
struct Library {
  const char* file;  // found as the dynamic linker finds it: beside this program's other libraries
  void* handle = nullptr;
  std::string why = {};  // it cannot be loaded
  Backend row = {};

  void load() {
    if (handle || !why.empty()) return;
    handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
      why = concat("built without it: ", dlerror());
      return;
    }
    const auto fill = reinterpret_cast<void (*)(Backend*)>(dlsym(handle, "dsv2_cuda_backend"));
    if (fill)
      fill(&row);
    else
      why = concat(file, " has no dsv2_cuda_backend");
  }
};

/// The functions of a library's row, which load it.
template <Library& library>
Backend loaded_on_demand(std::string_view name, std::string_view description, bool simulated) {
  return {.name = name,
          .description = description,
          .unavailable = []() -> std::optional<std::string> {
            library.load();
            if (!library.why.empty()) return library.why;
            return library.row.unavailable();
          },
          .unsupported = [](const Config& config, const Options& options) -> std::optional<std::string> {
            library.load();
            if (!library.why.empty()) return library.why;
            return library.row.unsupported(config, options);
          },
          .create =
              [](const Config& config, std::shared_ptr<const Weights> weights, const Options& options) {
                library.load();
                if (!library.why.empty()) fail(library.why);
                return library.row.create(config, std::move(weights), options);
              },
          .ops = []() -> std::span<const OpKernel> {
            library.load();
            if (!library.why.empty()) return {};
            return library.row.ops();
          },
          .simulated = simulated};
}

Library cuda_library = {"libdsv2_cuda.so"}, cuda_sim_library = {"libdsv2_cuda_sim.so"};

}  // namespace

std::span<const Backend> backends() {
  static const Backend kBackends[] = {
      reference::backend(), cpu::backend(),
      loaded_on_demand<cuda_library>("cuda", "CUDA kernels on a GPU; f32, bf16, int8 and int4 weights", false),
      loaded_on_demand<cuda_sim_library>("cuda-sim", "the same CUDA objects, their PTX run on the CPU by gpusim",
                                         true)};
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
