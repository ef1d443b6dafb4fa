// What turns the last hidden state into logits.
#pragma once

#include "model/decoder.h"
#include "reference/matrix.h"
#include "reference/probe.h"

namespace dsv2::reference {

/// Logits of the positions that `call` asks for, from hidden [N,D] after the final norm. Causal LM: h W^T with lm_head,
/// or with embed_tokens when tied: [B,S,V], or [B,1,V] for Logits::last. Sequence classification: score of the pooled
/// position of each sequence: [B,labels] (QUIRKS 20). Empty for Logits::none.
template <class Scalar>
Tensor head_logits(const Matrix<Scalar>& hidden, const Weights& weights, const Config& config,
                   const ForwardInput& input, const Call& call, const Probe& probe);

/// A matrix as a tensor of `shape`.
template <class Scalar>
Tensor to_tensor(const Matrix<Scalar>& values, Shape shape) {
  return Tensor::from(std::span<const Scalar>(values.data(), static_cast<std::size_t>(values.size())),
                      std::move(shape));
}

}  // namespace dsv2::reference
