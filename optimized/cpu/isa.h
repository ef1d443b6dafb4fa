// The ops of one instruction set: declared in the namespace DSV2_ISA, for which each kernel source is compiled.
#pragma once

#include "optimized/cpu/kernels.h"

namespace dsv2::cpu::DSV2_ISA {

void embedding(const EmbeddingParams&, Range);
void rms_norm(const RmsNormParams&, Range);
void add(const AddParams&, Range);
void pack(const PackParams&, Range);
void unpack(const UnpackParams&, Range);
void linear(const LinearParams&, Range);
void rope(const RopeParams&, Range);
void kv_write(const KvWriteParams&, Range);
void kv_widen(const KvWidenParams&, Range);
void attention(const AttentionParams&, Range);
void attention_probabilities(const AttentionParams&, Range);
void mla_absorb(const MlaAbsorbParams&, Range);
void gate_select(const GateParams&, Range);
void gate_weight(const GateParams&, Range);
void experts_act(const ExpertsParams&, Range);
void experts_down(const ExpertsParams&, Range);

extern const Kernels kKernels;

}  // namespace dsv2::cpu::DSV2_ISA
