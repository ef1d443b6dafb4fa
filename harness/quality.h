// What low precision costs in quality: a decoder against itself in f32 on the weights as they were.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "harness/json.h"
#include "model/decoder.h"
#include "model/weights.h"

namespace dsv2::harness {

/// A way to store matrices, and to multiply with them.
struct QualityFormat {
  std::string_view name;
  std::string_view description;
  /// Weights as this format stores them: rounded, or widened again from what it would store.
  std::shared_ptr<const Weights> (*weights)(const std::shared_ptr<const Weights>&, const Config&);
  DType stored;      ///< of those
  DType arithmetic;  ///< Options::dtype; f32: only the weights are in low precision
};

/// bf16, int8 and int4 as they run, int8 and int4 by their weights alone, and ggml's Q8_0 and Q4_0 by theirs.
const std::vector<QualityFormat>& quality_formats();

struct Quality {
  std::string format;
  double weights = 0;                 ///< relative L2 of the matrices
  double logits = 0;                  ///< relative L2
  double kl = 0;                      ///< mean over positions of KL(f32 || format) of the next token, in nats
  double top1 = 0;                    ///< share of positions whose likeliest token is the same
  std::vector<double> hidden_states;  ///< relative L2 of the embeddings, after each layer, and after the final norm
  Json to_json() const;
};

/// One pass over `ids` [1,S]: logits and hidden states.
ForwardOutput quality_pass(const Backend& backend, const Config& config, std::shared_ptr<const Weights> weights,
                           const Options& options, const Tensor& ids);

/// `got` of a format against `want`, of the same ids in f32.
Quality judge_quality(const ForwardOutput& got, const ForwardOutput& want);

/// Relative L2 of all matrices of `got` against `want`.
double weights_error(const Config& config, const Weights& got, const Weights& want);

/// ggml's Q4_0 and Q8_0 of a row and back, as its quantize_row_q4_0_ref and quantize_row_q8_0_ref: groups of 32, of
/// which the last may be shorter, and an f16 scale each. Source: https://github.com/ggml-org/ggml, src/ggml-quants.c
void through_q4_0(float* row, std::int64_t cols);
void through_q8_0(float* row, std::int64_t cols);

}  // namespace dsv2::harness
