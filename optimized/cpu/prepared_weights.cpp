#include "optimized/cpu/prepared_weights.h"

#include <algorithm>
#include <utility>

namespace dsv2::cpu {

PreparedWeights::PreparedWeights(std::shared_ptr<const Weights> weights, bool bf16_dot) : weights_(std::move(weights)) {
  const Weights& w = *weights_;
  const LinearWeights table{w.embed_tokens, {}}, last{w.lm_head ? w.lm_head : w.score, {}};
  matrices({{&table, &embed_tokens}}, false);
  matrices({{&last, &head}}, bf16_dot);
  norm = vector(w.norm);
  layers.resize(w.layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerWeights& from = w.layers[i];
    const AttentionWeights& a = from.self_attn;
    PreparedLayer& to = layers[i];
    to.input_layernorm = vector(from.input_layernorm);
    to.post_attention_layernorm = vector(from.post_attention_layernorm);
    to.q_a_layernorm = vector(a.q_a_layernorm);
    to.kv_a_layernorm = vector(a.kv_a_layernorm);
    to.e_score_correction_bias = vector(from.e_score_correction_bias);
    matrices({{&a.q_proj, &to.q_proj},
              {&a.k_proj, &to.k_proj},
              {&a.v_proj, &to.v_proj},
              {&a.q_a_proj, &to.q_a_proj},
              {&a.kv_a_proj_with_mqa, &to.kv_a_proj_with_mqa}},
             bf16_dot);
    matrices({{&a.q_b_proj, &to.q_b_proj}}, bf16_dot);
    matrices({{&a.kv_b_proj, &to.kv_b_proj}}, bf16_dot);
    matrices({{&a.o_proj, &to.o_proj}}, bf16_dot);
    const LinearWeights gate{from.gate, {}};
    matrices({{&gate, &to.gate}}, false);  // a rounded row could choose another expert

    to.experts.resize(from.experts.size());
    std::vector<Pair> up, down;
    const auto add = [&](const MlpWeights& mlp, PreparedMlp& prepared) {
      up.push_back({&mlp.gate_proj, &prepared.gate_proj});
      up.push_back({&mlp.up_proj, &prepared.up_proj});
      down.push_back({&mlp.down_proj, &prepared.down_proj});
    };
    for (std::size_t e = 0; e < from.experts.size(); ++e) add(from.experts[e], to.experts[e]);
    add(from.shared_experts, to.shared_experts);
    add(from.mlp, to.mlp);
    matrices(up, bf16_dot);
    matrices(down, bf16_dot);
  }
}

const float* PreparedWeights::vector(const TensorView& view) {
  if (!view) return nullptr;
  if (view.dtype == DType::f32) return view.as<float>().data();
  return copies_.emplace_back(convert(view, DType::f32)).as<float>().data();
}

void PreparedWeights::matrices(const std::vector<Pair>& sweep, bool bf16_dot) {
  const auto all = [&](DType dtype) {
    return std::all_of(sweep.begin(), sweep.end(),
                       [&](const Pair& p) { return !p.from->weight || p.from->weight.dtype == dtype; });
  };
  const bool bf16 = all(DType::bf16), f32 = all(DType::f32);
  for (const auto& [from, to] : sweep) {
    if (!from->weight) continue;
    to->out = from->weight.dim(0);
    to->in = from->weight.dim(1);
    to->bias = vector(from->bias);
    to->storage = bf16 ? Storage::bf16 : Storage::f32;
    to->arithmetic = !bf16 ? Arithmetic::f32 : bf16_dot ? Arithmetic::bf16_dot : Arithmetic::bf16;
    to->data = bf16 || f32 ? from->weight.data : copies_.emplace_back(convert(from->weight, DType::f32)).data();
  }
}

std::int64_t PreparedWeights::copied_bytes() const {
  std::int64_t sum = 0;
  for (const Tensor& t : copies_) sum += t.view().bytes();
  return sum;
}

}  // namespace dsv2::cpu
