#include "reference/heads.h"

#include <vector>

#include "reference/linear.h"

namespace dsv2::reference {

template <class Scalar>
Tensor head_logits(const Matrix<Scalar>& hidden, const Weights& weights, const Config& config,
                   const ForwardInput& input, const Call& call, const Probe& probe) {
  if (call.logits == Logits::none) return {};
  const std::int64_t B = call.batch, S = call.tokens;
  const auto logits_of = [&](const Matrix<Scalar>& rows, const TensorView& head, std::string_view name, Shape shape) {
    Matrix<Scalar> logits = linear(rows, {head, {}});
    probe.tap(name, logits, shape);
    return to_tensor(logits, shape);
  };

  if (config.head == Head::causal_lm && call.logits == Logits::all)
    return logits_of(hidden, weights.lm_head, "lm_head", {B, S, config.vocab_size});

  const bool classify = config.head == Head::sequence_classification;
  std::vector<std::int64_t> rows =
      classify ? pooled_positions(input, config, call) : std::vector<std::int64_t>(static_cast<std::size_t>(B), S - 1);
  for (std::int64_t b = 0; b < B; ++b) rows[static_cast<std::size_t>(b)] += b * S;
  const Matrix<Scalar> selected = hidden(rows, Eigen::all);
  if (classify) return logits_of(selected, weights.score, "score", {B, config.num_labels});
  return logits_of(selected, weights.lm_head, "lm_head", {B, 1, config.vocab_size});
}

template Tensor head_logits(const Matrix<float>&, const Weights&, const Config&, const ForwardInput&, const Call&,
                            const Probe&);
template Tensor head_logits(const Matrix<double>&, const Weights&, const Config&, const ForwardInput&, const Call&,
                            const Probe&);

}  // namespace dsv2::reference
