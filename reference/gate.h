// The router: which experts a token visits, and with what weight (arXiv 2405.04434, sections 2.2.1 and 2.2.2;
// noaux_tc: DeepSeek-V3, arXiv 2412.19437, section 2.1.2). In four steps, so that each can be read, tested and
// overruled alone. N tokens, E experts, k chosen.
#pragma once

#include <cstdint>

#include "model/config.h"
#include "model/weights.h"
#include "reference/matrix.h"
#include "reference/probe.h"

namespace dsv2::reference {

/// s = softmax(logits) over the experts (equation 22), or sigmoid of each: [N,E] -> [N,E].
template <class Scalar>
Matrix<Scalar> gate_scores(const Matrix<Scalar>& logits, ScoringFunc scoring_func);

template <class Scalar>
struct Selection {
  Matrix<std::int64_t> topk_idx;  ///< [N,k], ascending in each row
  Matrix<Scalar> scores;          ///< [N,E], what the weights of the chosen are taken from
};

/// The experts of the k largest values of
///
///   greedy                the scores
///   group_limited_greedy  the scores where the group (E / n_group neighbours) is one of the topk_group best, by its
///                         best score; 0 elsewhere
///   noaux_tc              scores + e_score_correction_bias [E], likewise limited to groups, by the sum of their two
///   best
///
/// The 0 is upstream's (the paper rejects with -inf), so an expert of a rejected group wins over a negative value, and
/// fills in when k exceeds the experts kept (QUIRKS 7). Weights are taken from the same values, zeros included, except
/// in noaux_tc, where they are the unbiased scores (QUIRKS 9). Ties go to the lower id, of groups and of experts.
template <class Scalar>
Selection<Scalar> select_experts(const Matrix<Scalar>& scores, const TensorView& bias, const Config& config);

/// g of the chosen (equation 21): their scores, divided by their sum + 1e-20 with norm_topk_prob and k > 1, then times
/// routed_scaling_factor either way (QUIRKS 8): [N,k].
template <class Scalar>
Matrix<Scalar> gate_weights(const Selection<Scalar>& selection, const Config& config);

template <class Scalar>
struct Routing {
  Matrix<std::int64_t> topk_idx;  ///< [N,k]
  Matrix<Scalar> topk_weight;     ///< [N,k], of topk_idx
};

/// All of it for x [N,D], with the taps of layers.I.mlp.gate. Throws Error when a sink puts an id outside 0..E-1.
template <class Scalar>
Routing<Scalar> gate(const Matrix<Scalar>& x, const LayerWeights& weights, const Config& config, const Probe& probe);

}  // namespace dsv2::reference
