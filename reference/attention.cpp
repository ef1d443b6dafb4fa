#include "reference/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "reference/linear.h"
#include "reference/norm.h"

namespace dsv2::reference {
namespace {

constexpr double kLatentNormEps = 1e-6;

/// Writes rows [N, heads * dim] behind the rows that the cache holds.
template <class Scalar>
void append(const AttentionContext<Scalar>& c, int part, const Matrix<Scalar>& rows) {
  const auto [name, heads, dim] = c.cache.parts()[static_cast<std::size_t>(part)];
  for (std::int64_t b = 0; b < c.call.batch; ++b)
    for (std::int64_t s = 0; s < c.call.tokens; ++s)
      for (std::int64_t h = 0; h < heads; ++h)
        std::copy_n(rows.row(b * c.call.tokens + s).data() + h * dim, dim,
                    c.cache.template rows<Scalar>(c.layer, part, b, h) + (c.call.past + s) * dim);
}

/// All T rows of one head, those of this call included: [T, dim].
template <class Scalar>
Eigen::Map<const Matrix<Scalar>> cached(const AttentionContext<Scalar>& c, int part, std::int64_t b,
                                        std::int64_t head) {
  return {c.cache.template rows<Scalar>(c.layer, part, b, head), c.call.total,
          c.cache.parts()[static_cast<std::size_t>(part)].dim};
}

template <class Scalar>
void keep_probabilities(const AttentionContext<Scalar>& c, std::int64_t b, std::int64_t h, const Matrix<Scalar>& p) {
  if (c.probabilities)
    std::copy_n(p.data(), p.size(),
                c.probabilities->template as<Scalar>().data() + (b * c.config.num_attention_heads + h) * p.size());
}

/// W^O [o_1; ...; o_H] (equation 19).
template <class Scalar>
Matrix<Scalar> output_projection(const AttentionContext<Scalar>& c, Matrix<Scalar>& heads) {
  c.probe.tap("attn_output", heads);
  Matrix<Scalar> u = linear(heads, c.weights.o_proj);
  c.probe.tap("o_proj", u);
  return u;
}

template <class Scalar>
Matrix<Scalar> projection(const AttentionContext<Scalar>& c, std::string_view name, const Matrix<Scalar>& x,
                          const LinearWeights& weights) {
  Matrix<Scalar> y = linear(x, weights);
  c.probe.tap(name, y);
  return y;
}

template <class Scalar>
Matrix<Scalar> latent_norm(const AttentionContext<Scalar>& c, std::string_view name, const Matrix<Scalar>& x,
                           const TensorView& weight) {
  Matrix<Scalar> y = rms_norm(x, weight, kLatentNormEps);
  c.probe.tap(name, y);
  return y;
}

/// One head of MLA over one sequence.
template <class Scalar>
struct MlaHead {
  MatrixRef<Scalar> q_nope;    ///< [S,nope] q^C
  MatrixRef<Scalar> q_rope;    ///< [S,rope] q^R
  MatrixRef<Scalar> latent;    ///< [T,R] c^KV
  MatrixRef<Scalar> k_rope;    ///< [T,rope] k^R, shared by all heads
  const Matrix<Scalar>& w_uk;  ///< [nope,R] W^UK of this head
  const Matrix<Scalar>& w_uv;  ///< [v,R] W^UV of this head
  Scalar scale;
};

/// Equations 10, 11, 17 and 18: keys and values of this head are made from the latent.
template <class Scalar>
AttentionResult<Scalar> mla_head_expanded(const MlaHead<Scalar>& head, const Call& call, std::int64_t b) {
  const Matrix<Scalar> k_nope = head.latent * head.w_uk.transpose();  // k^C = W^UK c^KV
  const Matrix<Scalar> value = head.latent * head.w_uv.transpose();   // v^C = W^UV c^KV
  return attention<Scalar>({.q1 = head.q_nope, .k1 = k_nope, .q2 = head.q_rope, .k2 = head.k_rope, .v = value},
                           head.scale, call, b);
}

/// The same without keys and values of its own (end of section 2.1.2). Since
///
///     q^C_t . k^C_j = q^C_t . (W^UK c_j) = (W^UK^T q^C_t) . c_j     and
///     sum_j p_tj v^C_j = sum_j p_tj W^UV c_j = W^UV (sum_j p_tj c_j),
///
/// W^UK is absorbed into the query and W^UV into the output, and all heads attend to the cached latents themselves.
template <class Scalar>
AttentionResult<Scalar> mla_head_absorbed(const MlaHead<Scalar>& head, const Call& call, std::int64_t b) {
  const Matrix<Scalar> q_latent = head.q_nope * head.w_uk;  // [S,R]
  auto [attended, p] = attention<Scalar>(
      {.q1 = q_latent, .k1 = head.latent, .q2 = head.q_rope, .k2 = head.k_rope, .v = head.latent}, head.scale, call, b);
  return {attended * head.w_uv.transpose(), std::move(p)};
}

}  // namespace

template <class Scalar>
void masked_softmax(Matrix<Scalar>& scores, const Call& call, std::int64_t b) {
  for (std::int64_t s = 0; s < call.tokens; ++s)
    for (std::int64_t t = 0; t < call.total; ++t)
      if (!call.visible(b, s, t)) scores(s, t) = std::numeric_limits<Scalar>::lowest();
  softmax(scores);
}

template <class Scalar>
AttentionResult<Scalar> attention(const AttentionHead<Scalar>& head, Scalar scale, const Call& call, std::int64_t b) {
  Matrix<Scalar> p = head.q1 * head.k1.transpose();
  if (head.q2.cols() > 0) p += head.q2 * head.k2.transpose();
  p *= scale;
  masked_softmax(p, call, b);
  Matrix<Scalar> output = p * head.v;
  return {std::move(output), std::move(p)};
}

double softmax_scale(const Config& config) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(config.qk_head_dim()));
  const RopeScaling& scaling = config.rope_scaling;
  if (!config.use_mla || scaling.mscale_all_dim == 0) return scale;
  const double m = yarn_mscale(scaling.factor, scaling.mscale_all_dim);
  return scale * m * m;
}

template <class Scalar>
Matrix<Scalar> mha(const AttentionContext<Scalar>& c, const Matrix<Scalar>& x) {
  const std::int64_t B = c.call.batch, S = c.call.tokens;
  const std::int64_t H = c.config.num_attention_heads, K = c.config.num_key_value_heads, d = c.config.head_dim();
  const auto scale = static_cast<Scalar>(softmax_scale(c.config));

  const Matrix<Scalar> q_proj = projection(c, "q_proj", x, c.weights.q_proj);
  const Matrix<Scalar> k_proj = projection(c, "k_proj", x, c.weights.k_proj);
  const Matrix<Scalar> value = projection(c, "v_proj", x, c.weights.v_proj);
  Matrix<Scalar> q = rope(q_proj, H, RopePairs::half_split, c.rope);
  Matrix<Scalar> k = rope(k_proj, K, RopePairs::half_split, c.rope);
  c.probe.tap_heads("q_rope", q, H);
  c.probe.tap_heads("k_rope", k, K);
  append(c, 0, k);
  append(c, 1, value);

  const Matrix<Scalar> none;
  Matrix<Scalar> heads(B * S, H * d);
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t h = 0; h < H; ++h) {
      const std::int64_t group = h / (H / K);
      const auto [output, p] = attention<Scalar>({.q1 = q.block(b * S, h * d, S, d),
                                                  .k1 = cached(c, 0, b, group),
                                                  .q2 = none,
                                                  .k2 = none,
                                                  .v = cached(c, 1, b, group)},
                                                 scale, c.call, b);
      keep_probabilities(c, b, h, p);
      heads.block(b * S, h * d, S, d) = output;
    }
  }
  return output_projection(c, heads);
}

template <class Scalar>
Matrix<Scalar> mla(const AttentionContext<Scalar>& c, const Matrix<Scalar>& x, MlaForm form) {
  const std::int64_t B = c.call.batch, S = c.call.tokens, H = c.config.num_attention_heads;
  const std::int64_t nope = c.config.qk_nope_head_dim, d_rope = c.config.qk_rope_head_dim;
  const std::int64_t v = c.config.v_head_dim, R = c.config.kv_lora_rank;

  // q = W^UQ norm(W^DQ x): per head q^C, then the columns that become q^R. Without q_lora_rank one matrix does both.
  const Matrix<Scalar> q = [&] {
    if (!c.config.q_lora_rank) return projection(c, "q_proj", x, c.weights.q_proj);
    const Matrix<Scalar> q_a = projection(c, "q_a_proj", x, c.weights.q_a_proj);
    const Matrix<Scalar> c_q = latent_norm(c, "q_a_layernorm", q_a, c.weights.q_a_layernorm);
    return projection(c, "q_b_proj", c_q, c.weights.q_b_proj);
  }();
  const Matrix<Scalar> kv_a = projection(c, "kv_a_proj_with_mqa", x, c.weights.kv_a_proj_with_mqa);
  const Matrix<Scalar> c_kv = latent_norm<Scalar>(c, "kv_a_layernorm", kv_a.leftCols(R), c.weights.kv_a_layernorm);
  Matrix<Scalar> q_rope = rope(q, H, RopePairs::interleaved, c.rope);
  Matrix<Scalar> k_rope = rope(kv_a, 1, RopePairs::interleaved, c.rope);
  c.probe.tap_heads("q_rope", q_rope, H);
  c.probe.tap_heads("k_rope", k_rope, 1);
  append(c, 0, k_rope);
  append(c, 1, c_kv);

  const auto attend = form == MlaForm::absorbed ? mla_head_absorbed<Scalar> : mla_head_expanded<Scalar>;
  Matrix<Scalar> heads(B * S, H * v);
  for (std::int64_t h = 0; h < H; ++h) {
    const TensorView& kv_b = c.weights.kv_b_proj.weight;
    const auto w_uk = widen_rows<Scalar>(kv_b, h * (nope + v), nope);
    const auto w_uv = widen_rows<Scalar>(kv_b, h * (nope + v) + nope, v);
    for (std::int64_t b = 0; b < B; ++b) {
      const MlaHead<Scalar> head = {.q_nope = q.block(b * S, h * (nope + d_rope), S, nope),
                                    .q_rope = q_rope.block(b * S, h * d_rope, S, d_rope),
                                    .latent = cached(c, 1, b, 0),
                                    .k_rope = cached(c, 0, b, 0),
                                    .w_uk = w_uk,
                                    .w_uv = w_uv,
                                    .scale = static_cast<Scalar>(softmax_scale(c.config))};
      const auto [output, probabilities] = attend(head, c.call, b);
      keep_probabilities(c, b, h, probabilities);
      heads.block(b * S, h * v, S, v) = output;
    }
  }
  return output_projection(c, heads);
}

template void masked_softmax(Matrix<float>&, const Call&, std::int64_t);
template void masked_softmax(Matrix<double>&, const Call&, std::int64_t);
template AttentionResult<float> attention(const AttentionHead<float>&, float, const Call&, std::int64_t);
template AttentionResult<double> attention(const AttentionHead<double>&, double, const Call&, std::int64_t);
template Matrix<float> mha(const AttentionContext<float>&, const Matrix<float>&);
template Matrix<double> mha(const AttentionContext<double>&, const Matrix<double>&);
template Matrix<float> mla(const AttentionContext<float>&, const Matrix<float>&, MlaForm);
template Matrix<double> mla(const AttentionContext<double>&, const Matrix<double>&, MlaForm);

}  // namespace dsv2::reference
