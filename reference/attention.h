// Self-attention: MHA with grouped keys (DeepSeek-OCR as shipped), and multi-head latent attention of DeepSeek-V2.
#pragma once

#include "model/decoder.h"
#include "reference/matrix.h"
#include "reference/probe.h"
#include "reference/rope.h"

namespace dsv2::reference {

/// What attention of one layer works with, besides its input.
template <class Scalar>
struct AttentionContext {
  const Config& config;
  const AttentionWeights& weights;
  const Call& call;
  const RopeTable<Scalar>& rope;
  HostKvCache& cache;  ///< of Scalar, with room for T rows; rows P..T-1 of `layer` are written, its length stays
  std::int64_t layer;
  Tensor* probabilities;  ///< [B,H,S,T] of Scalar, filled; null: not wanted
  Probe probe;            ///< of layers.I.self_attn
};

/// Softmax over the keys of one head's scores [S,T] in place, hidden keys first replaced by the most negative finite
/// number. A query that sees no key at all therefore attends to all T alike, as upstream does (QUIRKS 17).
template <class Scalar>
void masked_softmax(Matrix<Scalar>& scores, const Call& call, std::int64_t b);

/// One head over one sequence. MHA has no second part of queries and keys: empty matrices.
template <class Scalar>
struct AttentionHead {
  MatrixRef<Scalar> q1, k1;  ///< [S,d1], [T,d1]
  MatrixRef<Scalar> q2, k2;  ///< [S,d2], [T,d2]: MLA's rotated part
  MatrixRef<Scalar> v;       ///< [T,dv]
};
template <class Scalar>
struct AttentionResult {
  Matrix<Scalar> output;         ///< [S,dv]
  Matrix<Scalar> probabilities;  ///< [S,T]
};

/// softmax(scale (q1 k1^T + q2 k2^T)) v over the keys that `call` lets sequence b see.
template <class Scalar>
AttentionResult<Scalar> attention(const AttentionHead<Scalar>& head, Scalar scale, const Call& call, std::int64_t b);

/// Scale of the scores before softmax: 1/sqrt(width of q and k); in MLA times m(mscale_all_dim)^2 (QUIRKS 11).
double softmax_scale(const Config& config);

/// Multi-head attention (arXiv 2405.04434, section 2.1.1) as transformers' LlamaAttention: x [N,D] -> [N,D].
/// Query head h reads key/value head h / (H/K). Half-split RoPE; the cache holds keys after RoPE.
template <class Scalar>
Matrix<Scalar> mha(const AttentionContext<Scalar>& context, const Matrix<Scalar>& x);

/// Multi-head latent attention (sections 2.1.2 and 2.1.3, equations 9 to 19): x [N,D] -> [N,D]. Upstream adds a norm
/// to both latents, with eps 1e-6 whatever rms_norm_eps is (QUIRKS 1). The cache holds k^R after RoPE and the
/// normalised c^KV (QUIRKS 3). `automatic` is `expanded`, the form in which the paper defines it.
template <class Scalar>
Matrix<Scalar> mla(const AttentionContext<Scalar>& context, const Matrix<Scalar>& x, MlaForm form);

}  // namespace dsv2::reference
