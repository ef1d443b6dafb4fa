// Handlers by key, once for each instruction set.
#include <array>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "gpusim/async_copy.h"
#include "gpusim/binding.h"
#include "gpusim/bulk_copy.h"
#include "gpusim/handlers.h"
#include "gpusim/interpreter.h"
#include "gpusim/mbarrier.h"
#include "gpusim/subroutines.h"
#include "gpusim/wgmma.h"
#include "model/error.h"

#define GPUSIM_DECLARE_ISA(isa)                               \
  namespace isa {                                             \
  void register_arithmetic(HandlerRegistry& registry);        \
  void register_seldom_arithmetic(HandlerRegistry& registry); \
  void register_seldom_tensor(HandlerRegistry& registry);     \
  void register_conversions(HandlerRegistry& registry);       \
  void register_memory(HandlerRegistry& registry);            \
  void register_warp_operations(HandlerRegistry& registry);   \
  void register_tensor(HandlerRegistry& registry);            \
  void register_wgmma(HandlerRegistry& registry);             \
  void register_all(HandlerRegistry& registry) {              \
    register_arithmetic(registry);                            \
    register_seldom_arithmetic(registry);                     \
    register_seldom_tensor(registry);                         \
    register_conversions(registry);                           \
    register_memory(registry);                                \
    register_warp_operations(registry);                       \
    register_tensor(registry);                                \
    register_wgmma(registry);                                 \
  }                                                           \
  }

namespace gpusim {

struct HandlerRegistry {
  std::unordered_map<std::string, Handler> plain;
  std::unordered_map<std::string, Handler> instrumented;
};

void add_handler(HandlerRegistry& registry, const char* head, const char* type, Handler handler) {
  std::string key = head;
  if (*type != '\0') key.append(".").append(type);
  registry.plain[key] = handler;
}

void add_handler(HandlerRegistry& registry, const char* head, const char* type, const char* space, Handler plain,
                 Handler instrumented) {
  const std::string key = dsv2::concat(head, *type != '\0' ? "." : "", type, ".", space);
  registry.plain[key] = plain;
  registry.instrumented[key] = instrumented;
}

GPUSIM_DECLARE_ISA(portable)
#ifdef GPUSIM_X86
GPUSIM_DECLARE_ISA(avx2)
GPUSIM_DECLARE_ISA(avx512)
#endif

namespace {

struct Isa {
  std::string_view name;
  bool (*available)();
  void (*register_all)(HandlerRegistry&);
};

#ifdef GPUSIM_X86
bool has_avx2() { return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0; }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
}
#endif
bool always() { return true; }

/// The best first.
constexpr Isa kIsas[] = {
#ifdef GPUSIM_X86
    {"avx512", has_avx512, avx512::register_all},
    {"avx2", has_avx2, avx2::register_all},
#endif
    {"portable", always, portable::register_all},
};

const HandlerRegistry& registry_of(const Isa& isa) {
  static std::array<HandlerRegistry, std::size(kIsas)> registries;
  static std::array<std::once_flag, std::size(kIsas)> once;
  const auto index = static_cast<std::size_t>(&isa - kIsas);
  std::call_once(once[index], [&] {
    isa.register_all(registries[index]);
    register_control(registries[index]);
    register_async_copies(registries[index]);
    register_mbarriers(registries[index]);
    register_bulk_copies(registries[index]);
    register_warpgroups(registries[index]);
    register_subroutines(registries[index]);
  });
  return registries[index];
}

const Isa& find_isa(std::string_view name) {
  for (const Isa& isa : kIsas) {
    if (name.empty() ? isa.available() : isa.name == name) {
      DSV2_CHECK(isa.available(), "gpusim: this CPU has no ", name);
      return isa;
    }
  }
  std::string known;
  for (const Isa& isa : kIsas) known += dsv2::concat(known.empty() ? "" : ", ", isa.name);
  dsv2::fail("gpusim: unknown instruction set '", name, "', there are: ", known);
}

std::string_view space_name(ptx::Space space) {
  switch (space) {
    case ptx::Space::global:
    case ptx::Space::constant:
      return "global";
    case ptx::Space::shared:
      return "shared";
    case ptx::Space::local:
      return "local";
    case ptx::Space::param:
      return "param";
    default:
      return "generic";
  }
}

/// Facts name the operation; memory's handlers differ in space and size too.
std::string handler_key(const InstructionFacts& facts, const Instruction& in) {
  const std::string& key = facts.key;
  if (key == "ld" || key == "st") {
    const bool is_signed = (in.flags & kSigned) != 0 && in.bytes < in.register_bytes && key == "ld";
    return dsv2::concat(key, is_signed ? ".s" : ".u", 8 * in.bytes, ".r", int{in.register_bytes}, ".",
                        space_name(in.space));
  }
  if (key.starts_with("atom.") || key.starts_with("wmma.load") || key.starts_with("wmma.store") || key == "ldmatrix" ||
      key == "stmatrix") {
    return dsv2::concat(key, ".", space_name(in.space));
  }
  return key;
}

Handler find(const HandlerRegistry& registry, const std::string& key, bool instrumented) {
  if (instrumented) {
    if (const auto found = registry.instrumented.find(key); found != registry.instrumented.end()) return found->second;
  }
  const auto found = registry.plain.find(key);
  return found == registry.plain.end() ? nullptr : found->second;
}

}  // namespace

void refuse_unknown(Program& program) {
  const HandlerRegistry& registry = registry_of(kIsas[std::size(kIsas) - 1]);
  for (std::size_t i = 0; i < program.code.size(); ++i) {
    InstructionFacts& facts = program.facts[i];
    const std::string key = handler_key(facts, program.code[i]);
    if (find(registry, key, false) != nullptr) continue;
    facts.refusal = "no handler for " + key;
    facts.key = "unsupported";
    facts.flow = Flow::control;
  }
}

BoundProgram bind_handlers(const Program& program, std::string_view isa, bool instrumented) {
  const HandlerRegistry& registry = registry_of(find_isa(isa));
  BoundProgram result;
  result.program = &program;
  result.code = program.code;
  result.guarded.assign(program.code.size(), nullptr);
  for (std::size_t i = 0; i < result.code.size(); ++i) {
    Instruction& in = result.code[i];
    const std::string key = handler_key(program.facts[i], in);
    in.run = find(registry, key, instrumented);
    DSV2_CHECK(in.run != nullptr, "gpusim: no handler for ", key);
    if (in.guard >= 0 && key != "bra") {
      result.guarded[i] = in.run;
      in.run = run_guarded;
    }
  }
  if (instrumented && !program.product_touches.empty()) {
    result.watched.assign(program.code.size(), nullptr);
    result.touches.assign(program.code.size(), 0);
    for (const auto& [at, lists] : program.product_touches) {
      result.watched[at] = std::exchange(result.code[at].run, run_watched);
      result.touches[at] = lists;
    }
  }
  return result;
}

}  // namespace gpusim
