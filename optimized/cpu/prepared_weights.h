// Weights as the kernels take them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "model/config.h"
#include "model/decoder.h"
#include "model/weights.h"
#include "optimized/cpu/kernels.h"
#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// What may happen to the rows that meet a matrix.
enum class RowRounding : std::uint8_t {
  none,      ///< they stay f32; int8 and int4 matrices are widened to f32 copies
  integers,  ///< rounded to integers for int8 and int4 matrices
  bf16_dot,  ///< and to bf16 for bf16 ones
};
RowRounding row_rounding(const Options& options, const Kernels& kernels);
/// How a matrix stored in `dtype` is multiplied.
Arithmetic arithmetic_of(DType stored, RowRounding rounding);

/// y = x W^T + bias. No data: absent.
struct Matrix {
  const void* data = nullptr;               ///< [out, in] in panels (panel.h)
  Arithmetic arithmetic = Arithmetic::f32;  ///< with few rows; for_rows() says how it meets more
  std::int64_t out = 0, in = 0;
  const float* bias = nullptr;  ///< [out] or null
};

/// Rows to look up: f32 and bf16 as stored, i8 and i4 in panels.
struct EmbeddingTable {
  const void* data = nullptr;  ///< [V, D]
  Arithmetic stored = Arithmetic::f32;
};

struct PreparedMlp {
  Matrix gate_proj, up_proj, down_proj;
};

/// kv_b_proj head by head: what makes keys of a latent, and what makes values.
struct PreparedHeads {
  std::vector<const void*> w_uk;  ///< H of [nope, R] in panels
  std::vector<const void*> w_uv;  ///< H of [v, R] in panels
  Arithmetic arithmetic = Arithmetic::f32;
};

/// Names and shapes as in LayerWeights.
struct PreparedLayer {
  const float *input_layernorm, *post_attention_layernorm;
  Matrix q_proj, k_proj, v_proj;        ///< one arithmetic
  Matrix q_a_proj, kv_a_proj_with_mqa;  ///< one arithmetic, and that of q_proj
  Matrix q_b_proj, o_proj;
  PreparedHeads kv_b_proj;
  const float *q_a_layernorm = nullptr, *kv_a_layernorm = nullptr;
  Matrix gate;
  const float* e_score_correction_bias = nullptr;
  std::vector<PreparedMlp> experts;  ///< one arithmetic, shared_experts included
  PreparedMlp shared_experts;
  PreparedMlp mlp;
};

/// Matrices in f32 and bf16 are packed into panels, a copy each; int8 and int4 ones are in panels and used where they
/// lie (heads that do not begin at a panel are copied). f16 matrices, and those of one sweep that are stored in
/// different types, are widened to f32; so are vectors that are not f32.
class PreparedWeights {
 public:
  /// `rounding`: of rows, but for those that meet the gate.
  PreparedWeights(std::shared_ptr<const Weights> weights, const Config& config, RowRounding rounding);

  EmbeddingTable embed_tokens;
  Matrix head;  ///< lm_head or score, absent without a head
  const float* norm;
  std::vector<PreparedLayer> layers;

  std::int64_t copied_bytes() const;
  /// The same before there are weights: of matrices stored in `stored`, their vectors in f32.
  static std::int64_t copied_bytes(const Config& config, DType stored, RowRounding rounding);

 private:
  struct Pair {
    const LinearWeights* from;
    Matrix* to;
  };
  /// Panels to be made of rows of a matrix.
  struct Copy {
    TensorView from;
    std::int64_t first, count;  ///< rows
    Arithmetic arithmetic;
    const void** to;
  };
  const float* vector(const TensorView& view);
  void matrices(std::initializer_list<Pair> sweep, RowRounding rounding) {
    matrices(std::vector<Pair>(sweep), rounding);
  }
  void matrices(const std::vector<Pair>& sweep, RowRounding rounding);
  void heads(const TensorView& kv_b_proj, const Config& config, RowRounding rounding, PreparedHeads& to);
  void rows(const TensorView& from, std::int64_t first, std::int64_t count, Arithmetic arithmetic, const void** to);
  void make_copies();

  std::shared_ptr<const Weights> weights_;
  std::vector<Tensor> vectors_, tables_;
  std::vector<Copy> pending_;
  std::shared_ptr<void> panels_;
  std::int64_t panel_bytes_ = 0;
};

}  // namespace dsv2::cpu
