// Rotary position embedding (arXiv 2104.09864) with the scalings of `rope_scaling`.
//
// Pair i of a head of width d turns by position * w_i and is scaled by `amplitude`; unscaled, w_i = theta^(-2i/d):
//
//   linear    w_i / factor
//   dynamic   theta is replaced by theta * (factor * n / M - (factor - 1))^(d / (d - 2)) for a call of length
//             n > M = max_position_embeddings. n is T in MLA, the largest position + 1 in MHA. Upstream keeps the base
//             of the longest call so far in MLA; here each call is that of a fresh instance (QUIRKS 13).
//   yarn      (arXiv 2309.00071) fast pairs keep w_i, slow ones get w_i / factor, with a linear ramp between. The ramp
//             starts at floor(c(beta_fast)), not below 0, and ends at ceil(c(beta_slow)), not above d - 1 (sic: the
//             pairs end at d/2 - 1), where c(r) = d ln(n / (2 pi r)) / (2 ln theta) is the pair that turns r times in n
//             positions.
//
// MLA is DeepseekV2YarnRotaryEmbedding: n = original_max_position_embeddings, amplitude = m(mscale) / m(mscale_all_dim)
// with m(s) = 0.1 s ln(factor) + 1. MHA is transformers 4.46.3's LlamaAttention (_compute_yarn_parameters), which reads
// neither: n = max_position_embeddings, amplitude = attention_factor, by default 0.1 ln(factor) + 1.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/decoder.h"
#include "reference/matrix.h"

namespace dsv2::reference {

/// Angular frequency of each pair (rope_dim / 2 of them), and the factor on cos and sin.
struct RopeFrequencies {
  std::vector<double> radians_per_position;
  double amplitude = 1.0;
};

/// `length` is that of the call, as `dynamic` counts it; the other types do not read it.
RopeFrequencies rope_frequencies(const Config& config, std::int64_t length);

/// Upstream's yarn_get_mscale: 0.1 mscale ln(factor) + 1; 1 for a factor of at most 1.
double yarn_mscale(double factor, double mscale);

/// amplitude * cos and sin of the angles of each token, [N, rope_dim / 2]; computed in double.
template <class Scalar>
struct RopeTable {
  Matrix<Scalar> cos, sin;
};
template <class Scalar>
RopeTable<Scalar> rope_table(const Config& config, const Call& call);

/// Which columns of a head form pair i: (i, i + d/2) as in Llama (MHA), or (2i, 2i + 1) (MLA; QUIRKS 2).
enum class RopePairs : std::uint8_t { half_split, interleaved };

/// Turns the last d = rope_dim columns of each head of x [N, heads * width]; d <= width. The result [N, heads * d]
/// holds them alone, and has pair i at (i, i + d/2) whichever way it came.
template <class Scalar>
Matrix<Scalar> rope(const Matrix<Scalar>& x, std::int64_t heads, RopePairs pairs, const RopeTable<Scalar>& table);

}  // namespace dsv2::reference
