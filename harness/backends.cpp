#include "harness/backends.h"

#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "harness/backend_fault.h"
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
  void (*profile)(std::string*) = nullptr;
  void (*findings)(std::vector<std::string>*) = nullptr;

  void load() {
    if (handle || !why.empty()) return;
    setenv("GPUSIM_QUIET", "1", 0);  // a simulator tells findings; its counts are asked for
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
    profile = reinterpret_cast<void (*)(std::string*)>(dlsym(handle, "dsv2_cuda_profile"));
    findings = reinterpret_cast<void (*)(std::vector<std::string>*)>(dlsym(handle, "dsv2_cuda_findings"));
  }
};

bool can_be_asked(Library& library) {
  library.load();
  return library.why.empty();
}

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
          .simulated = simulated,
          .profile = []() -> std::string {
            library.load();
            std::string json;
            if (library.profile) library.profile(&json);
            return json;
          },
          .findings = []() -> std::vector<std::string> {
            library.load();
            std::vector<std::string> lines;
            if (library.findings) library.findings(&lines);
            return lines;
          },
          .copied_bytes = [](const Config& config, DType stored, const Options& options) -> std::int64_t {
            return can_be_asked(library) ? library.row.copied_bytes(config, stored, options) : 0;
          },
          .buffer_bytes = [](const Config& config, const Options& options, std::int64_t batch, std::int64_t tokens,
                             std::int64_t total) -> std::int64_t {
            return can_be_asked(library) ? library.row.buffer_bytes(config, options, batch, tokens, total) : 0;
          },
          .free_device_bytes = []() -> std::int64_t {
            return can_be_asked(library) ? library.row.free_device_bytes() : 0;
          }};
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

std::optional<std::string> why_not(const Backend& backend) {
  if (auto why = lost(backend.name)) return why;
  return backend.unavailable();
}

std::optional<std::string> why_not(const Backend& backend, const Config& config, const Options& options) {
  if (auto why = why_not(backend)) return why;
  return backend.unsupported(config, options);
}

void require_runs(const Backend& backend, const Config& config, const Options& options) {
  if (const auto why = backend.unavailable()) throw Unavailable(concat(backend.name, ": ", *why));
  if (const auto why = backend.unsupported(config, options)) fail(backend.name, ": ", *why);
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
