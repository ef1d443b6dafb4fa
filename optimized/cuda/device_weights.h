// Weights on the device.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "model/weights.h"
#include "optimized/cuda/device.h"
#include "optimized/cuda/types.h"

namespace dsv2::cuda {

struct DeviceMlp {
  MatrixStack gate_proj, up_proj, down_proj;  ///< of one MLP, or of all routed experts
};

/// How the matrices of MLPs lie: those that meet the input, and down_proj.
struct MlpStorage {
  Storage up, down;
};

/// Names and shapes as in LayerWeights.
struct DeviceLayer {
  const float *input_layernorm = nullptr, *post_attention_layernorm = nullptr;
  Matrix q_proj, k_proj, v_proj;        ///< one storage
  Matrix q_a_proj, kv_a_proj_with_mqa;  ///< one storage, and that of q_proj
  Matrix q_b_proj, o_proj;
  Matrix kv_b_proj;  ///< f32 or bf16
  const float *q_a_layernorm = nullptr, *kv_a_layernorm = nullptr;
  Matrix gate;
  const float* e_score_correction_bias = nullptr;
  DeviceMlp experts, shared_experts, mlp;  ///< no data: absent
};

/// A copy of all weights in one allocation. f32, bf16, int8 and int4 matrices stay what they are; f16 ones, and those
/// of one sweep that are stored in different types, are widened to f32, and a quantised kv_b_proj to f32 or, where
/// Options::dtype lets rows be rounded, bf16. Vectors are f32.
class DeviceWeights {
 public:
  /// Throws Error, before it allocates, where the device has not the memory, with the sum.
  DeviceWeights(const Weights& weights, const Stream& stream);

  Matrix embed_tokens, head;  ///< head: lm_head or score, absent without one
  const float* norm = nullptr;
  std::vector<DeviceLayer> layers;

  std::int64_t bytes() const { return memory_.bytes(); }
  /// What a model takes whose matrices are stored in `stored`, at most: of every tensor that `config` implies.
  static std::int64_t bytes_for(const Config& config, DType stored);

 private:
  /// What is to be copied where.
  struct Copy {
    TensorView from;
    Storage storage;
    std::int64_t offset;
  };
  struct Pair {
    const LinearWeights* from;
    Matrix* to;
  };
  std::int64_t place(const TensorView& from, Storage storage);
  void matrix(const LinearWeights& from, Storage storage, Matrix& to);
  void sweep(std::initializer_list<Pair> pairs);
  void vector(const TensorView& from, const float*& to);
  void stack(const std::vector<MlpWeights>& from, const MlpStorage& storage, DeviceMlp& to);
  void copy(const Stream& stream);

  std::vector<Copy> copies_;
  std::int64_t planned_bytes_ = 0;
  // Pointers that hold offsets until there is memory.
  std::vector<const void**> matrices_;
  std::vector<const float**> vectors_;
  DeviceBuffer<std::byte> memory_;
};

}  // namespace dsv2::cuda
