#include "reference/moe.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "reference/linear.h"

namespace dsv2::reference {

template <class Scalar>
Scalar activate(Activation activation, Scalar x) {
  constexpr auto kPi = std::numbers::pi_v<Scalar>;
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return Scalar(0.5) * x * (1 + std::erf(x / std::numbers::sqrt2_v<Scalar>));
    case Activation::gelu_tanh:
      return Scalar(0.5) * x * (1 + std::tanh(std::sqrt(2 / kPi) * (x + Scalar(0.044715) * x * x * x)));
    case Activation::relu:
      return std::max(x, Scalar{0});
  }
  fail("hidden_act: unknown activation ", static_cast<int>(activation));
}

template <class Scalar>
Matrix<Scalar> mlp(const Matrix<Scalar>& x, const MlpWeights& weights, Activation activation, const Probe& probe) {
  const Matrix<Scalar> gate = linear(x, weights.gate_proj), up = linear(x, weights.up_proj);
  Matrix<Scalar> act = gate.unaryExpr([=](Scalar z) { return activate(activation, z); }).cwiseProduct(up);
  probe.tap("act", act);
  return linear(act, weights.down_proj);
}

template <class Scalar>
Matrix<Scalar> experts(const Matrix<Scalar>& x, const Routing<Scalar>& routing, const std::vector<MlpWeights>& mlps,
                       Activation activation) {
  const auto& [topk_idx, topk_weight] = routing;
  Matrix<Scalar> y = Matrix<Scalar>::Zero(x.rows(), x.cols());
  for (std::size_t e = 0; e < mlps.size(); ++e) {
    std::vector<Eigen::Index> tokens, slots;
    for (Eigen::Index n = 0; n < x.rows(); ++n)
      for (Eigen::Index j = 0; j < topk_idx.cols(); ++j)
        if (topk_idx(n, j) == static_cast<std::int64_t>(e)) tokens.push_back(n), slots.push_back(j);
    if (tokens.empty()) continue;
    const Matrix<Scalar> out = mlp<Scalar>(x(tokens, Eigen::all), mlps[e], activation, Probe());
    for (std::size_t i = 0; i < tokens.size(); ++i)
      y.row(tokens[i]) += topk_weight(tokens[i], slots[i]) * out.row(static_cast<Eigen::Index>(i));
  }
  return y;
}

template <class Scalar>
Matrix<Scalar> moe(const Matrix<Scalar>& x, const LayerWeights& weights, const Config& config, const Probe& probe) {
  const Routing<Scalar> routing = gate(x, weights, config, probe.in("gate"));
  Matrix<Scalar> y = experts(x, routing, weights.experts, config.hidden_act);
  probe.tap("experts", y);

  if (weights.shared_experts.gate_proj.weight) {
    Matrix<Scalar> shared = mlp(x, weights.shared_experts, config.hidden_act, Probe());
    probe.tap("shared_experts", shared);
    y += shared;
  }
  return y;
}

template float activate(Activation, float);
template double activate(Activation, double);
template Matrix<float> mlp(const Matrix<float>&, const MlpWeights&, Activation, const Probe&);
template Matrix<double> mlp(const Matrix<double>&, const MlpWeights&, Activation, const Probe&);
template Matrix<float> experts(const Matrix<float>&, const Routing<float>&, const std::vector<MlpWeights>&, Activation);
template Matrix<double> experts(const Matrix<double>&, const Routing<double>&, const std::vector<MlpWeights>&,
                                Activation);
template Matrix<float> moe(const Matrix<float>&, const LayerWeights&, const Config&, const Probe&);
template Matrix<double> moe(const Matrix<double>&, const LayerWeights&, const Config&, const Probe&);

}  // namespace dsv2::reference
