// The parameters of a decoder under HF's tensor names: mapped from safetensors, or drawn from a seed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/tensor.h"

namespace dsv2 {

/// y = x W^T + b. An absent tensor is an empty view.
struct LinearWeights {
  TensorView weight;  ///< [out, in]
  TensorView bias;    ///< [out] or absent
};

/// down_proj(act(gate_proj(x)) * up_proj(x))
struct MlpWeights {
  LinearWeights gate_proj, up_proj, down_proj;  ///< [I,D], [I,D], [D,I]
};

/// MHA has q, k, v, o; MLA has q (or q_a, norm, q_b), kv_a, norm, kv_b, o. The others are absent.
struct AttentionWeights {
  LinearWeights q_proj;              ///< MHA [H*h,D]; MLA without q_lora [H*(nope+rope),D]
  LinearWeights k_proj, v_proj;      ///< [K*h,D]
  LinearWeights q_a_proj;            ///< [Q,D]
  TensorView q_a_layernorm;          ///< [Q]
  LinearWeights q_b_proj;            ///< [H*(nope+rope),Q]; per head nope rows, then rope rows
  LinearWeights kv_a_proj_with_mqa;  ///< [R+rope,D]
  TensorView kv_a_layernorm;         ///< [R]
  LinearWeights kv_b_proj;           ///< [H*(nope+v),R]; per head nope rows, then v rows
  LinearWeights o_proj;              ///< [D,H*v]
};

struct LayerWeights {
  TensorView input_layernorm, post_attention_layernorm;  ///< [D]
  AttentionWeights self_attn;
  MlpWeights mlp;                      ///< dense layers only
  TensorView gate;                     ///< [E,D]; MoE layers only, as all below
  TensorView e_score_correction_bias;  ///< [E]; noaux_tc only
  std::vector<MlpWeights> experts;     ///< E
  MlpWeights shared_experts;           ///< one MLP of width n_shared_experts * F, or absent
};

/// What a checkpoint held besides the decoder's own tensors.
struct LoadReport {
  std::int64_t files = 0;
  std::int64_t tensors = 0;  ///< used by the decoder
  std::int64_t vision_tensors =
      0;  ///< skipped: model.sam_model.*, vision_model.*, projector.*, image_newline, view_seperator
  std::vector<std::string> unused;  ///< neither; in file order
};

/// Called with (tensors done, tensors in all) from one thread at a time.
using Progress = std::function<void(std::int64_t done, std::int64_t total)>;

/// All tensors of a decoder. Views stay valid as long as this object (or one moved from it) lives. Immutable once made,
/// so it may be read from any thread. Not copied by accident: share it through shared_ptr<const Weights>.
class Weights {
 public:
  TensorView embed_tokens;           ///< [V,D]
  std::vector<LayerWeights> layers;  ///< L
  TensorView norm;                   ///< [D]
  TensorView lm_head;                ///< [V,D]; with tie_word_embeddings the same memory as embed_tokens
  TensorView score;                  ///< [num_labels,D]; sequence classification only

  /// Maps a checkpoint: a folder (model.safetensors, or model.safetensors.index.json), one .safetensors file, or an
  /// index. F32, BF16, F16, int8 and int4 are kept as stored; names with and without the prefix "model." are read.
  /// Every tensor is checked for name, shape, dtype, and NaN / Inf (in parallel); instead of the latter, the files of a
  /// quantised checkpoint (model/checkpoint.h) for their checksum. Throws Error naming file, tensor, expected and
  /// found.
  static std::shared_ptr<const Weights> load(const std::filesystem::path& path, const Config& config,
                                             LoadReport* report = nullptr, const Progress& progress = {});

  /// Draws every tensor, in parallel and in place: matrices N(0, fan_in^-1/2), embeddings N(0, 1), norms 1 + N(0, 0.1),
  /// biases N(0, 0.02); N(m, s) has mean m and standard deviation s, as model/random.h draws it. An element
  /// depends only on (seed, tensor name, index): not on thread count, machine or, but for rounding to it, dtype. Norms,
  /// the gate and its bias are f32, all else is `dtype` (f32, bf16; i8 and i4 quantised as drawn, biases bf16).
  static std::shared_ptr<const Weights> random(const Config& config, std::uint64_t seed, DType dtype,
                                               const Progress& progress = {});

  /// A copy whose matrices and embeddings are rounded to `dtype` (f32, bf16, f16; i8 and i4: quantised); norms, gate
  /// and biases are kept as they are. Where nothing changes (stored in that dtype already) the memory is shared.
  static std::shared_ptr<const Weights> rounded(std::shared_ptr<const Weights> weights, const Config& config,
                                                DType dtype, const Progress& progress = {});

  /// Writes config.json and model.safetensors, or shards of at most `shard_bytes` with an index, into folder `dir`
  /// (made if missing), as write_checkpoint() does.
  void save(const std::filesystem::path& dir, const Config& config, std::int64_t shard_bytes = 2'000'000'000) const;

  /// What random(config, seed, dtype)->save(dir, config) writes, drawn one tensor after the other: in the memory of
  /// one. Returns the bytes of all tensors.
  static std::int64_t save_random(const std::filesystem::path& dir, const Config& config, std::uint64_t seed,
                                  DType dtype, const Progress& progress = {}, std::int64_t shard_bytes = 2'000'000'000);

  std::int64_t bytes(const Config& config) const;  ///< of all tensors, tied ones once

  Weights() = default;
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

 private:
  std::vector<std::shared_ptr<const void>> storage_;  ///< mappings and buffers that the views look into
};

/// Norms, biases, the gate and its correction: what stays in the dtype that a checkpoint has it in when matrices and
/// embeddings are rounded or quantised.
bool is_kept(std::string_view tensor, const Shape& shape);

/// Visits every tensor that `config` implies, in checkpoint order: visit(HF name, shape, view). The one list of
/// tensors: loading, drawing, saving, counting and `cost` walk it. `W` is Weights or const Weights; its vectors are
/// sized first when it is not const.
template <class W, class Visit>
void for_each_tensor(const Config& config, W& weights, Visit&& visit);

}  // namespace dsv2

#include "model/weights_visit.h"
