#include "optimized/cpu/kernels.h"

#include <algorithm>
#include <array>
#include <string>

#include "model/error.h"
#include "optimized/cpu/backend.h"

namespace dsv2::cpu {

namespace portable {
extern const Kernels kKernels;
}
#if defined(DSV2_CPU_X86)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512_bf16 {
extern const Kernels kKernels;
}
#endif

namespace {

/// From the plainest to the best.
const auto& all() {
#if defined(DSV2_CPU_X86)
  static const bool kAvx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool kAvx512 = kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const std::array kAll = {
      Isa{"portable", true, &portable::kKernels},
      Isa{"avx2", kAvx2, &avx2::kKernels},
      Isa{"avx512", kAvx512, &avx512::kKernels},
      Isa{"avx512_bf16", kAvx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"),
          &avx512_bf16::kKernels},
  };
#else
  static const std::array kAll = {Isa{"portable", true, &portable::kKernels}};
#endif
  return kAll;
}

}  // namespace

std::span<const IsaInfo> isas() {
  static const auto kInfos = [] {
    std::array<IsaInfo, std::tuple_size_v<std::remove_cvref_t<decltype(all())>>> infos;
    std::transform(all().begin(), all().end(), infos.begin(), [](const Isa& i) {
      return IsaInfo{i.name, i.runs_here};
    });
    return infos;
  }();
  return kInfos;
}

const Isa& find_isa(std::string_view name) {
  std::string available;
  const Isa* best = nullptr;
  for (const Isa& isa : all()) {
    if (!isa.runs_here) continue;
    available += (available.empty() ? "" : ", ") + std::string(isa.name);
    if (name.empty() || isa.name == name) best = &isa;
  }
  DSV2_CHECK(best, "isa: expected one that this machine runs (", available, "), found ", name);
  return *best;
}

}  // namespace dsv2::cpu
