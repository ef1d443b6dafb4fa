#include "optimized/cpu/isa.h"

namespace dsv2::cpu::DSV2_ISA {

#if defined(__AVX512BF16__)
constexpr bool kBf16Dot = true;
#else
constexpr bool kBf16Dot = false;
#endif

const Kernels kKernels = {
    .bf16_dot = kBf16Dot,
    .embedding = embedding,
    .rms_norm = rms_norm,
    .add = add,
    .pack = pack,
    .unpack = unpack,
    .linear = linear,
    .rope = rope,
    .kv_write = kv_write,
    .kv_widen = kv_widen,
    .attention = attention,
    .attention_probabilities = attention_probabilities,
    .mla_absorb = mla_absorb,
    .gate_select = gate_select,
    .gate_weight = gate_weight,
    .experts_act = experts_act,
    .experts_down = experts_down,
};

}  // namespace dsv2::cpu::DSV2_ISA
