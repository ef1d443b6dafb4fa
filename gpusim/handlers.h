// What each file that is compiled per instruction set registers, and where.
#pragma once

#include "gpusim/program.h"

namespace gpusim {

/// The handlers of an instruction set by key. Its maps are compiled once, for any CPU: files that are compiled per
/// instruction set must not instantiate what other files share.
struct HandlerRegistry;
/// For `head.type`, or `head` alone where `type` is empty.
void add_handler(HandlerRegistry& registry, const char* head, const char* type, Handler handler);
/// For `head.type.space`, in runs without and with checks or counts of memory.
void add_handler(HandlerRegistry& registry, const char* head, const char* type, const char* space, Handler plain,
                 Handler instrumented);

}  // namespace gpusim

#ifdef DSV2_ISA
namespace gpusim::DSV2_ISA {

void register_arithmetic(HandlerRegistry& registry);
void register_seldom_arithmetic(HandlerRegistry& registry);
void register_conversions(HandlerRegistry& registry);
void register_memory(HandlerRegistry& registry);
void register_warp_operations(HandlerRegistry& registry);
void register_tensor(HandlerRegistry& registry);
void register_wgmma(HandlerRegistry& registry);
void register_seldom_tensor(HandlerRegistry& registry);

}  // namespace gpusim::DSV2_ISA
#endif
