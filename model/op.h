// One op of the decoder alone: what a backend's kernels are judged and timed by, without a decoder around them.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/decoder.h"

namespace dsv2 {

/// An array that an op gives. The shape is the problem's; the element type is the backend's own (f64 from the
/// reference, f32 from others), but for integers and what lies in a cache.
struct OpOutput {
  std::string name;
  Shape shape;
  std::string initial = {};  ///< the input that its memory starts as: for what is changed in place
};

/// An op with its inputs, in host memory. B, S, ... as in golden/FORMAT.md, N = B*S tokens, C >= T rows of a cache's
/// capacity. Activations are f32, matrices of any dtype that Weights holds, cached rows of the KV dtype; `?`: may be
/// absent. Rows from T on of a cached array are not the op's to read or write. Beside an int8 cached array lie its
/// scales, bf16, one for each row (quantise_row()): input and output of the name scales_of() gives.
///
///     embedding               weight [V,D], ids [N] i64                                -> y [N,D]
///     rms_norm                x [N,D], weight [D] f32 (eps of the config)              -> y [N,D]
///     add                     x [N,D], y [N,D]                                         -> x [N,D], in place
///     linear, gate, lm_head   x [N,K], weight [O,K], bias [O]? f32                     -> y [N,O]
///     rope                    q [N,H*w], k [N,K*w'] (the last rope_dim columns of each head turn; angles from
///                             call.positions)                                          -> q_rope [N,H,r], k_rope
///                             [N,K,r]
///     kv_write                first, second [N,heads*dim] (cache_parts), cached_first, cached_second [B,heads,C,dim]
///                                                                              -> cached_first, cached_second, in
///                                                                              place
///     attention               q1 [N,H,d1], k1 [B,K,C,d1], q2 [N,H,d2]?, k2 [B,1,C,d2]?, v [B,K,C,dv]? (absent: k1);
///                             mask and causality of the call, scale of the config      -> y [N,H,dv]
///     mla_absorb              q [N,H*(nope+rope)], attended [N,H,R], weight [H*(nope+v),R] (kv_b_proj)
///                                                           -> q_latent [N,H,R] = q_nope W_uk, y [N,H*v] = attended
///                                                           W_uv^T
///     gate_select             logits [N,E], bias [E]? f32                              -> topk_idx [N,k] i64,
///     ascending gate_weight             logits [N,E], bias [E]?, topk_idx [N,k] i64              -> topk_weight [N,k]
///     experts                 x [N,D], topk_idx, topk_weight [N,k], gate_proj, up_proj [E,F,D], down_proj [E,D,F]
///                                                                                      -> y [N,D]
///     shared_experts, mlp     x [N,D], gate_proj, up_proj [F,D], down_proj [D,F]       -> y [N,D]
///     argmax                  logits [B,V]                                             -> ids [B] i64, the lowest of
///     equals
struct OpProblem {
  std::string_view op;
  Config config;  ///< of one layer
  Call call;
  std::map<std::string, Tensor, std::less<>> in;
  std::vector<OpOutput> out;

  bool has(std::string_view name) const { return in.contains(name); }
  /// Throws Error naming an input that is not there.
  const Tensor& operator[](std::string_view name) const {
    const auto it = in.find(name);
    DSV2_CHECK(it != in.end(), op, ": input ", name, ": expected, found none");
    return it->second;
  }
  std::int64_t rows() const { return call.batch * call.tokens; }  ///< N
};

/// "k1" -> "k1_scales"
inline std::string scales_of(std::string_view cached) { return std::string(cached) + "_scales"; }

/// Memory for one prepared op, valid as long as what prepares it; 64-byte aligned. Whoever runs the op fills all of it
/// with poison before each run (outputs that start as an input, with that) and may watch what lies behind it.
class OpMemory {
 public:
  virtual ~OpMemory() = default;
  virtual void* output(std::string_view name, DType dtype) = 0;
  virtual void* scratch(std::int64_t bytes) = 0;
};

/// A row of a backend's list of ops.
struct OpKernel {
  std::string_view op;
  std::optional<std::string> (*unsupported)(const OpProblem&, const Options&);  ///< why not; nullopt: it can
  /// Does once what a decoder does when it is made, and returns what computes the op: every output, whole, at each
  /// call. Both look into the problem and the memory.
  std::function<void()> (*prepare)(const OpProblem&, const Options&, OpMemory&);
};

}  // namespace dsv2
