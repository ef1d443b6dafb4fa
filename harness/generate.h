// Greedy generation as DeepSeek-OCR runs it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/decoder.h"

namespace dsv2::harness {

/// A ForwardInput with the tensors that its views look into. Movable, not copyable.
struct OwnedInput {
  std::map<std::string, Tensor> tensors;  ///< by kind
  ForwardInput input;

  /// `kind`: input_ids, inputs_embeds, attention_mask, position_ids or labels; throws Error for another.
  void set(const std::string& kind, Tensor tensor);
  std::int64_t batch() const;   ///< B
  std::int64_t tokens() const;  ///< S
};

/// The input that feeds `ids` [B] back after `before`: a given mask grows by a 1, given positions by last + 1.
OwnedInput next_input(const OwnedInput& before, const std::vector<std::int64_t>& ids);

/// The id of the largest value in each row's last position of logits [B,S,V]; the lower id wins a tie.
std::vector<std::int64_t> argmax_last(const TensorView& logits);

struct GenerateOptions {
  std::int64_t max_new_tokens = 1;  ///< at least 1
  /// A sequence that gave one of these is finished (it is its last id); empty: none.
  std::vector<std::int64_t> eos_token_id = {};
  std::int64_t no_repeat_ngram = 0;  ///< n: no n-gram occurs twice; 0: off
  std::int64_t window = 0;           ///< ... within this many last tokens; 0: all
  std::function<void(std::int64_t step, const std::vector<std::int64_t>& ids)> on_step = {};  ///< as each token comes
  std::function<void(const TensorView& logits)> on_logits = {};  ///< [B,1,V] of each step, before it
};

struct Generation {
  std::vector<std::vector<std::int64_t>> ids;  ///< of each sequence: new ids only
  std::int64_t prefill_ns = 0;
  std::vector<std::int64_t> step_ns;  ///< of each decode step
};

/// Prefill with a new cache, then one token a step until every sequence is finished or max_new_tokens are there; a
/// finished sequence goes on with its last id, which is not reported. Throws Error for what forward() refuses.
Generation generate(Decoder& decoder, OwnedInput prompt, const GenerateOptions& options);

/// Ids that would complete an n-gram already in `tokens` (its last `window` ones; 0: all).
std::vector<std::int64_t> repeated_ngram_ids(const std::vector<std::int64_t>& tokens, std::int64_t n,
                                             std::int64_t window);

}  // namespace dsv2::harness
