// The one table of this backend's kernels, once per instruction set, chosen at run time.
#pragma once

#include <string_view>

#include "optimized/cpu/attention.h"
#include "optimized/cpu/cached_rows.h"
#include "optimized/cpu/embedding.h"
#include "optimized/cpu/experts.h"
#include "optimized/cpu/gate.h"
#include "optimized/cpu/linear.h"
#include "optimized/cpu/mla_absorb.h"
#include "optimized/cpu/pack.h"
#include "optimized/cpu/rms_norm.h"
#include "optimized/cpu/rope.h"
#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// Each computes a range of the op's items on the calling thread: no allocation, no exception, no shared state.
struct Kernels {
  bool bf16_dot;  ///< Arithmetic::bf16_dot may be asked for
  void (*embedding)(const EmbeddingParams&, Range);
  void (*rms_norm)(const RmsNormParams&, Range);
  void (*add)(const AddParams&, Range);
  void (*pack)(const PackParams&, Range);
  void (*unpack)(const UnpackParams&, Range);
  void (*linear)(const LinearParams&, Range);
  void (*rope)(const RopeParams&, Range);
  void (*kv_write)(const KvWriteParams&, Range);
  void (*kv_widen)(const KvWidenParams&, Range);
  void (*attention)(const AttentionParams&, Range);
  void (*attention_probabilities)(const AttentionParams&, Range);
  void (*mla_absorb)(const MlaAbsorbParams&, Range);
  void (*gate_select)(const GateParams&, Range);
  void (*gate_weight)(const GateParams&, Range);
  void (*experts_act)(const ExpertsParams&, Range);
  void (*experts_down)(const ExpertsParams&, Range);
};

/// An instruction set and its kernels.
struct Isa {
  std::string_view name;  ///< as in Options::isa
  bool runs_here;
  const Kernels* kernels;
};

/// The one named, or the best that runs here when `name` is empty. Throws Error listing those available.
const Isa& find_isa(std::string_view name);

}  // namespace dsv2::cpu
