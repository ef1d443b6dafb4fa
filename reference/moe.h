// The feed-forward block of a layer: one gated MLP, or a mixture of them.
#pragma once

#include "model/config.h"
#include "model/weights.h"
#include "reference/gate.h"
#include "reference/matrix.h"
#include "reference/probe.h"

namespace dsv2::reference {

/// silu x / (1 + e^-x); gelu x Phi(x) with the error function; gelu_tanh 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715
/// x^3))); relu max(x, 0). As transformers' ACT2FN.
template <class Scalar>
Scalar activate(Activation activation, Scalar x);

/// down_proj(act(gate_proj x) * up_proj x): [N,D] -> [N,D]. Taps `act`.
template <class Scalar>
Matrix<Scalar> mlp(const Matrix<Scalar>& x, const MlpWeights& weights, Activation activation, const Probe& probe);

/// sum of g_i FFN_i(x) over the chosen experts i of each token (first sum of equation 20): [N,D] -> [N,D].
template <class Scalar>
Matrix<Scalar> experts(const Matrix<Scalar>& x, const Routing<Scalar>& routing, const std::vector<MlpWeights>& mlps,
                       Activation activation);

/// DeepSeekMoE (arXiv 2405.04434, equation 20 without the residual): the chosen experts, plus the shared ones, which
/// are stored as one MLP: [N,D] -> [N,D].
template <class Scalar>
Matrix<Scalar> moe(const Matrix<Scalar>& x, const LayerWeights& weights, const Config& config, const Probe& probe);

}  // namespace dsv2::reference
