// Weights as the kernels take them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "model/config.h"
#include "model/weights.h"
#include "optimized/cpu/types.h"

namespace dsv2::cpu {

/// y = x W^T + bias. No data: absent.
struct Matrix {
  const void* data = nullptr;  ///< [out, in], aligned to the element
  Storage storage = Storage::f32;
  Arithmetic arithmetic = Arithmetic::f32;
  std::int64_t out = 0, in = 0;
  const float* bias = nullptr;  ///< [out] or null
};

struct PreparedMlp {
  Matrix gate_proj, up_proj, down_proj;
};

/// Names and shapes as in LayerWeights.
struct PreparedLayer {
  const float *input_layernorm, *post_attention_layernorm;
  Matrix q_proj, k_proj, v_proj;        ///< one arithmetic
  Matrix q_a_proj, kv_a_proj_with_mqa;  ///< one arithmetic, and that of q_proj
  Matrix q_b_proj, kv_b_proj, o_proj;
  const float *q_a_layernorm = nullptr, *kv_a_layernorm = nullptr;
  Matrix gate;
  const float* e_score_correction_bias = nullptr;
  std::vector<PreparedMlp> experts;  ///< one arithmetic, shared_experts included
  PreparedMlp shared_experts;
  PreparedMlp mlp;
};

/// Matrices stored in f32 and bf16 are used where they lie. f16, and matrices of one sweep that are stored in different
/// types, are widened to f32 copies; so are vectors that are not f32.
class PreparedWeights {
 public:
  /// `bf16_dot`: matrices in bf16 may be multiplied with rows rounded to bf16 (not the gate).
  PreparedWeights(std::shared_ptr<const Weights> weights, bool bf16_dot);

  Matrix embed_tokens, head;  ///< head: lm_head or score, absent without a head
  const float* norm;
  std::vector<PreparedLayer> layers;

  std::int64_t copied_bytes() const;

 private:
  struct Pair {
    const LinearWeights* from;
    Matrix* to;
  };
  const float* vector(const TensorView& view);
  void matrices(std::initializer_list<Pair> sweep, bool bf16_dot) { matrices(std::vector<Pair>(sweep), bf16_dot); }
  void matrices(const std::vector<Pair>& sweep, bool bf16_dot);

  std::shared_ptr<const Weights> weights_;
  std::vector<Tensor> copies_;
};

}  // namespace dsv2::cpu
