// The kernels of this backend: what each takes, and the function that launches it into a stream. No launch allocates,
// synchronises, or reads device memory on the host: a sequence of them can be captured into a graph.
//
// N rows (tokens of all sequences), D hidden, H heads, K key heads, E experts, k chosen, F expert width, T = P + S.
// Activations are f32. Strides are in elements.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "model/config.h"
#include "optimized/cuda/blas.h"
#include "optimized/cuda/types.h"

namespace dsv2::cuda {

/// y[i] = table[ids[i]], widened exactly.
struct EmbeddingParams {
  Matrix table;             ///< [V,D]
  const std::int32_t* ids;  ///< [N]
  int rows;                 ///< N
  float* y;                 ///< [N,D]
};
void embedding(const EmbeddingParams& p, cudaStream_t stream);

/// y = weight * x / sqrt(mean(x^2) + eps), row by row.
struct RmsNormParams {
  const float* x;
  std::int64_t x_stride;
  const float* weight;  ///< [width]
  float eps;
  int rows, width;
  float* y;                     ///< [rows, width]
  std::uint16_t* rounded;       ///< the same in bf16, for the library; null: not wanted
  std::int64_t rounded_stride;  ///< its rows, apart
};
void rms_norm(const RmsNormParams& p, cudaStream_t stream);

/// x += y
struct AddParams {
  float* x;
  const float* y;
  std::int64_t count;
};
void add(const AddParams& p, cudaStream_t stream);

/// One of the matrices that the same rows meet.
struct LinearSegment {
  Matrix weight;
  float* y;  ///< [N, out], rows y_stride apart
  std::int64_t y_stride;
};
inline constexpr int kMaxSegments = 4;

/// y = x W^T + bias of each segment: in one launch, or by the library where it takes them. All weights have one storage
/// and one `in`.
struct LinearParams {
  const float* x;  ///< [N, in], rows x_stride apart
  std::int64_t x_stride;
  int rows;                      ///< N
  const std::int32_t* pick;      ///< [N]: row i is x[pick[i]]; null: x[i]
  bool rounds;                   ///< many rows may be rounded to bf16 for the tensor cores
  const std::uint16_t* rounded;  ///< they have been: bf16, rows a matrix's stride apart; null: not yet
  bool adds;                     ///< y += instead of y =
  int segment_count;
  LinearSegment segments[kMaxSegments];
};
void linear(const LinearParams& p, const Blas& blas, cudaStream_t stream);

/// Rotates the last `width` columns of each head by its token's angles (pairs (i, i + width/2), or (2i, 2i + 1) when
/// interleaved, whose result is de-interleaved: QUIRKS 2), and writes keys and values into the cache behind the rows
/// that it holds.
struct RopeKvWriteParams {
  int batch, tokens;  ///< B, S
  const int* past;    ///< P, on the device
  int heads;          ///< of queries, H
  int width;          ///< rope_dim
  bool interleaved;
  const float *cos, *sin;  ///< [N, width/2]
  const float* q;          ///< [N,H,.], the first of the columns that turn
  std::int64_t q_token_stride;
  int q_head_stride;
  float* q_rope;   ///< [N,H,width]
  const float* k;  ///< [N,K,.]; the same of keys
  std::int64_t k_token_stride;
  int k_head_stride;
  int key_heads;        ///< K, of k
  float* k_rope;        ///< [N,K,width] or null: not wanted
  CachedRows keys;      ///< k_rope goes here; no data: nowhere
  const float* values;  ///< [N,value_heads,value_width], contiguous: copied to the cache as they are
  int value_heads, value_width;
  CachedRows cached_values;  ///< no data: none
};
void rope_kv_write(const RopeKvWriteParams& p, cudaStream_t stream);

/// All of a decode step of MHA up to attention in one launch, for few rows: q, k, v = norm(x) W^T + bias, q and k
/// rotated, k and v written into the cache. Where qkv_rope_fits() says so.
struct QkvRopeParams {
  const float* x;  ///< [N,D]
  RowNorm norm;
  Matrix q_proj, k_proj, v_proj;  ///< one storage
  int batch, tokens;              ///< B, S; N = B S <= kFewRows
  const int* past;
  int heads, key_heads, width;  ///< H, K, head_dim
  const float *cos, *sin;       ///< [N, width/2]
  float* q_rope;                ///< [N,H,width]
  CachedRows keys, values;
};
bool qkv_rope_fits(int rows, int width);
void qkv_rope(const QkvRopeParams& p, cudaStream_t stream);

/// All of a decode step of MLA up to attention, for few rows, in one launch; in two where queries have a low rank: one
/// with q_a_proj and kv_a_proj, one with q_b_proj as q_proj, x = q_low and q_a_layernorm as its norm. Where
/// mla_qkv_rope_fits() says so.
struct MlaQkvRopeParams {
  const float* x;  ///< [N, in of the matrices]
  RowNorm norm;
  Matrix q_a_proj, kv_a_proj, q_proj;  ///< no data: not in this launch; one storage
  int batch, tokens;                   ///< B, S; N = B S <= kFewRows
  const int* past;
  const float *cos, *sin;  ///< [N, rope/2]
  int heads, nope, rope, v;
  Matrix kv_b_proj;     ///< as in MlaAbsorbParams
  float* q_low;         ///< [N, out of q_a_proj], not normalised
  float* q_latent;      ///< [N,H,R]: q_nope W_uk
  float* q_rope;        ///< [N,H,rope]
  RowNorm latent_norm;  ///< kv_a_layernorm
  float* kv;            ///< [N, R + rope] of scratch
  CachedRows keys;      ///< k_pe
  CachedRows latents;
  float* partial;  ///< mla_qkv_rope_partial_size() floats of scratch
  int* arrived;    ///< [1 + H] zeros, and zeros again afterwards
};
bool mla_qkv_rope_fits(int rows, const Matrix& q_proj, int nope, int rope);
std::int64_t mla_qkv_rope_partial_size(int rows, int heads, int nope, int latent);
void mla_qkv_rope(const MlaQkvRopeParams& p, cudaStream_t stream);

/// Copies rows [N, heads * width] into the cache behind the rows that it holds.
struct KvWriteParams {
  const float* x;
  int batch, tokens;
  const int* past;
  int heads, width;
  CachedRows rows;
};
void kv_write(const KvWriteParams& p, cudaStream_t stream);

/// softmax(scale (q1 k1^T + q2 k2^T) + mask) v, for MHA, GQA and the absorbed form of MLA:
///
///                 q1, k1                       q2, k2             v
///   MHA           rotated q, k (d1 = h)        none               v
///   MLA absorbed  q_nope W_uk [R], latent [R]  q_rope, k_pe       latent; the caller applies W_uv
///
/// Query head h reads key head h / (H/K). A query whose keys are all masked attends to all T alike (QUIRKS 17).
struct AttentionParams {
  int batch, tokens;     ///< B, S
  const int* past;       ///< P, on the device
  int heads, key_heads;  ///< H, K
  const float *q1, *q2;  ///< [B,S,H,d1], [B,S,H,d2] or null
  CachedRows k1, k2, v;
  int d1, d2, dv;
  float scale;
  bool rounds;                          ///< queries and probabilities may be rounded to bf16 for the tensor cores
  const std::uint8_t* mask;             ///< 1: visible; null: causal only. Rank 2 [B,T]; rank 4 [B,S,T]
  std::int64_t mask_batch, mask_token;  ///< strides of mask; mask_token 0: rank 2, on top of causality
  const std::uint8_t* all_masked;       ///< [B,S]: 1 where no key is visible; null: nowhere
  int splits;                           ///< of the keys, attention_splits()
  int* arrived;                         ///< [attention_arrivals()] zeros, and zeros again afterwards; splits > 1
  float* partial;                       ///< attention_partial_size() floats of scratch; null where splits is 1
  float* y;                             ///< [B,S,H,dv]
};
/// Widest rows of d1 + d2, of dv, and of MLA's q_nope.
inline constexpr int kMaxKeyWidth = 1024, kMaxValueWidth = 512, kMaxNopeWidth = 512;
/// N at most: it is a grid's third dimension.
inline constexpr int kMostRows = 65535;
/// Parts of the keys that blocks of their own attend to, so that a few queries fill a device of `processors`.
int attention_splits(int batch, int tokens, int heads, int key_heads, int most, int processors);
std::int64_t attention_partial_size(const AttentionParams& p);
/// How many ints AttentionParams::arrived has.
int attention_arrivals(int batch, int tokens, int heads, int key_heads);
void attention(const AttentionParams& p, cudaStream_t stream);
/// What attention() does on tensor cores (flash_attention.cu): kFlashTokens or more, p.rounds, a bf16 cache whose rows
/// are multiples of 16 bytes, keys and values of MHA and GQA up to 256 wide, or of MLA's latent space up to 512 + 64.
/// Each block reads its keys alone: `splits`, `partial` and `arrived` are not looked at.
inline constexpr int kFlashTokens = 32;
bool flash_attention_fits(const AttentionParams& p);
void flash_attention(const AttentionParams& p, cudaStream_t stream);

/// The probabilities of the same: [B,H,S,T], T = `total`.
struct AttentionProbabilitiesParams {
  AttentionParams attention;  ///< y, partial and splits are not looked at
  int total;
  float* y;
};
void attention_probabilities(const AttentionProbabilitiesParams& p, cudaStream_t stream);

/// keys: y[n,h,:] = sum over j of x[n,h,j] W_uk[h][j,:], q_nope into the latent space, [N,H,R].
/// values: y[n,h,:] = x[n,h,:] W_uv[h]^T, what was attended to out of it, [N,H*v].
struct MlaAbsorbParams {
  const float* x;  ///< [N,H,nope] or [N,H,R]
  std::int64_t x_token_stride;
  int x_head_stride;
  Matrix kv_b_proj;  ///< [H*(nope+v), R], f32 or bf16: per head nope rows, then v rows
  int rows, heads;   ///< N, H
  int nope, v;
  float* y;
};
void mla_absorb_keys(const MlaAbsorbParams& p, cudaStream_t stream);
void mla_absorb_values(const MlaAbsorbParams& p, cudaStream_t stream);

/// The router, from logits on: QUIRKS 6 to 9.
struct GateParams {
  const float* logits;     ///< [N,E]
  const float* bias;       ///< [E] or null
  float* scores;           ///< [N,E]: what weights are taken from
  std::int32_t* topk_idx;  ///< [N,k], ascending
  float* topk_weight;      ///< [N,k]
  int rows, experts, top_k;
  int groups, top_groups;
  TopkMethod method;
  ScoringFunc scoring;
  bool normalise;
  float scaling;
};
void gate_select(const GateParams& p, cudaStream_t stream);  ///< logits -> scores, topk_idx
void gate_weight(const GateParams& p, cudaStream_t stream);  ///< scores, topk_idx -> topk_weight

/// Tokens by the expert that they chose. All arrays are on the device: no launch depends on their content.
struct ExpertGroups {
  std::int32_t* begin;    ///< [E+1]: places begin[e]..begin[e+1]-1 are those of expert e
  std::int32_t* tokens;   ///< [N*k]: the token at a place, ascending for each expert
  std::int32_t* place;    ///< [N,k]: where token n's choice j is
  std::int32_t* touched;  ///< [E]: experts that have tokens, ascending
  std::int32_t* counts;   ///< [2]: how many of them; how many tiles
  std::int32_t* tiles;    ///< [max_tiles][2]: expert, first place, of each kTileRows places
};
inline constexpr int kTileRows = 64;
/// Tiles that N*k places of E experts can make at most.
constexpr int max_expert_tiles(int places, int experts) {
  return (places + kTileRows - 1) / kTileRows + (experts < places ? experts : places);
}
struct ExpertGroupsParams {
  const std::int32_t* topk_idx;  ///< [N,k]
  int rows, top_k, experts;
  ExpertGroups groups;
};
void expert_groups(const ExpertGroupsParams& p, cudaStream_t stream);

/// x += attn o_proj^T + bias, then the whole router, for few rows in one launch: logits = norm(x) W^T, choice, weights,
/// groups. Where o_proj_route_fits() says so.
struct OProjRouteParams {
  const float* attn;  ///< [N, in of o_proj]
  Matrix o_proj;
  float* x;  ///< [N,D]
  RowNorm norm;
  Matrix weight;   ///< [E,D], f32 or bf16
  float* partial;  ///< o_proj_route_partial_size() floats of scratch
  GateParams gate;
  float* logits;  ///< [N,E]: gate.logits
  ExpertGroups groups;
  int* arrived;  ///< 0, and 0 again afterwards
};
/// The last block needs shared memory for some numbers of every expert and group.
bool o_proj_route_fits(int rows, int experts, int groups);
std::int64_t o_proj_route_partial_size(int rows, int hidden, int experts);
void o_proj_route(const OProjRouteParams& p, cudaStream_t stream);

/// MLPs over the rows of x, each over its own: act = activation(x gate_proj^T) * (x up_proj^T), and
/// y[n] (+)= sum over its experts, in ascending order, of weight * (act down_proj^T). Without groups there is one MLP,
/// over all rows, with weight 1.
struct ExpertsParams {
  const float* x;  ///< [N,D]
  int rows, top_k, experts;
  const ExpertGroups* groups;                 ///< null: one MLP over all rows; top_k = experts = 1
  const float* topk_weight;                   ///< [N,k]; null without groups
  RowNorm norm;                               ///< of x, few rows only
  MatrixStack gate_proj, up_proj, down_proj;  ///< [E][F,D], [E][F,D], [E][D,F]
  /// One more MLP over all rows with weight 1, added last; few rows only. No data: none. Its act lies behind the
  /// places'.
  MatrixStack shared_gate_proj, shared_up_proj, shared_down_proj;
  Activation activation;
  bool rounds;                   ///< many rows may be rounded to bf16 for the tensor cores
  const std::uint16_t* rounded;  ///< x, as in LinearParams
  bool adds;                     ///< y += instead of y =
  float* act;                    ///< [N*k,F]: by place; then [N,F of the shared MLP]
  bool act_rounded;              ///< what the library takes next may be left in Blas::rounded() alone
  float* partial;                ///< [N*k,D], by place; few rows do without
  float* y;                      ///< [N,D]
};
void experts_act(const ExpertsParams& p, const Blas& blas, cudaStream_t stream);
void experts_down(const ExpertsParams& p, const Blas& blas, cudaStream_t stream);

/// The lowest index of the largest of each row.
struct ArgmaxParams {
  const float* x;  ///< [rows, width]
  int rows, width;
  std::int32_t* ids;
};
void argmax(const ArgmaxParams& p, cudaStream_t stream);

}  // namespace dsv2::cuda
