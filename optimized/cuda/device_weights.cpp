#include "optimized/cuda/device_weights.h"

#include <algorithm>
#include <optional>

#include "optimized/cuda/device_array.h"

namespace dsv2::cuda {
namespace {

constexpr std::int64_t kAlignment = 256;  // of every array
std::int64_t aligned(std::int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
/// Until there is memory, a pointer holds an offset.
template <class T>
const T* from_offset(std::int64_t offset) {
  return reinterpret_cast<const T*>(static_cast<std::uintptr_t>(offset));
}

/// The storage that all matrices of a sweep can have.
std::optional<Storage> common_storage(const std::vector<const LinearWeights*>& sweep) {
  std::optional<DType> stored;
  bool mixed = false;
  for (const LinearWeights* w : sweep) {
    if (!w->weight) continue;
    mixed = mixed || (stored && *stored != w->weight.dtype);
    stored = w->weight.dtype;
  }
  if (!stored) return std::nullopt;
  return mixed ? Storage::f32 : storage_of(*stored);
}

/// The same of MLPs: of what meets their input, and of down_proj.
MlpStorage common_storage(const std::vector<MlpWeights>& mlps) {
  std::vector<const LinearWeights*> up, down;
  for (const MlpWeights& m : mlps) up.insert(up.end(), {&m.gate_proj, &m.up_proj}), down.push_back(&m.down_proj);
  return {common_storage(up).value_or(Storage::f32), common_storage(down).value_or(Storage::f32)};
}

}  // namespace

DeviceWeights::DeviceWeights(const Weights& w, const Stream& stream) {
  matrix({w.embed_tokens, {}}, storage_of(w.embed_tokens.dtype), embed_tokens);
  if (w.lm_head && w.lm_head.data == w.embed_tokens.data) {
    head = embed_tokens;
    matrices_.push_back(&head.data);
  } else if (const LinearWeights last{w.lm_head ? w.lm_head : w.score, {}}; last.weight) {
    matrix(last, storage_of(last.weight.dtype), head);
  }
  vector(w.norm, norm);
  layers.resize(w.layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerWeights& from = w.layers[i];
    const AttentionWeights& a = from.self_attn;
    DeviceLayer& to = layers[i];
    vector(from.input_layernorm, to.input_layernorm);
    vector(from.post_attention_layernorm, to.post_attention_layernorm);
    vector(a.q_a_layernorm, to.q_a_layernorm);
    vector(a.kv_a_layernorm, to.kv_a_layernorm);
    vector(from.e_score_correction_bias, to.e_score_correction_bias);
    sweep({{&a.q_proj, &to.q_proj},
           {&a.k_proj, &to.k_proj},
           {&a.v_proj, &to.v_proj},
           {&a.q_a_proj, &to.q_a_proj},
           {&a.kv_a_proj_with_mqa, &to.kv_a_proj_with_mqa}});
    sweep({{&a.q_b_proj, &to.q_b_proj}});
    sweep({{&a.o_proj, &to.o_proj}});
    if (a.kv_b_proj.weight) {
      Storage storage = storage_of(a.kv_b_proj.weight.dtype);
      if (in_panels(storage)) storage = Storage::f32;
      matrix(a.kv_b_proj, storage, to.kv_b_proj);
    }
    if (from.gate) matrix({from.gate, {}}, storage_of(from.gate.dtype), to.gate);
    // Routed and shared experts go through one launch: one storage.
    std::vector<MlpWeights> together = from.experts;
    if (from.shared_experts.gate_proj.weight) together.push_back(from.shared_experts);
    const MlpStorage storage = common_storage(together);
    stack(from.experts, storage, to.experts);
    if (from.shared_experts.gate_proj.weight) stack({from.shared_experts}, storage, to.shared_experts);
    if (from.mlp.gate_proj.weight) stack({from.mlp}, common_storage(std::vector{from.mlp}), to.mlp);
  }
  copy(stream);
}

std::int64_t DeviceWeights::bytes_for(const Config& config, DType stored) {
  std::int64_t sum = kAlignment;
  Weights none;
  for_each_tensor(config, none, [&](const std::string& name, const Shape& shape, const TensorView&) {
    const bool wide = is_kept(name, shape) || (is_quantised(stored) && name.find(".kv_b_proj.") != name.npos);
    sum += aligned(device_bytes(shape, wide ? Storage::f32 : storage_of(stored)));
  });
  return sum;
}

std::int64_t DeviceWeights::place(const TensorView& from, Storage storage) {
  const std::int64_t offset = planned_bytes_ + kAlignment;  // no array lies at offset 0, which is null
  copies_.push_back({from, storage, offset});
  planned_bytes_ += aligned(device_bytes(from.shape, storage));
  return offset;
}

void DeviceWeights::matrix(const LinearWeights& from, Storage storage, Matrix& to) {
  to.storage = storage;
  to.out = static_cast<int>(from.weight.dim(0));
  to.in = static_cast<int>(from.weight.dim(1));
  to.stride = static_cast<int>(row_stride(to.in, storage));
  to.data = from_offset<void>(place(from.weight, storage));
  matrices_.push_back(&to.data);
  vector(from.bias, to.bias);
}

void DeviceWeights::sweep(std::initializer_list<Pair> pairs) {
  std::vector<const LinearWeights*> all;
  for (const Pair& p : pairs) all.push_back(p.from);
  const auto storage = common_storage(all);
  for (const Pair& p : pairs)
    if (p.from->weight) matrix(*p.from, *storage, *p.to);
}

void DeviceWeights::vector(const TensorView& from, const float*& to) {
  if (!from) return;
  to = from_offset<float>(place(from, Storage::f32));
  vectors_.push_back(&to);
}

void DeviceWeights::stack(const std::vector<MlpWeights>& from, const MlpStorage& storage, DeviceMlp& to) {
  if (from.empty()) return;
  const auto add = [&](LinearWeights MlpWeights::*which, Storage of, MatrixStack& matrices) {
    const std::int64_t before = planned_bytes_;
    matrix(from.front().*which, of, matrices.first);
    matrices.stride_bytes = planned_bytes_ - before;
    for (std::size_t e = 1; e < from.size(); ++e) place((from[e].*which).weight, of);
  };
  add(&MlpWeights::gate_proj, storage.up, to.gate_proj);
  add(&MlpWeights::up_proj, storage.up, to.up_proj);
  add(&MlpWeights::down_proj, storage.down, to.down_proj);
}

void DeviceWeights::copy(const Stream& stream) {
  const std::int64_t bytes = planned_bytes_ + kAlignment;
  std::size_t free = 0, all = 0;
  DSV2_CUDA(cudaMemGetInfo(&free, &all));
  DSV2_CHECK(bytes <= static_cast<std::int64_t>(free), "device memory: the weights take ",
             static_cast<double>(bytes) / 1e9, " GB, of ", static_cast<double>(all) / 1e9, " GB there are ",
             static_cast<double>(free) / 1e9, " GB free");
  std::byte* const base = memory_.get(bytes);
  DSV2_CUDA(cudaMemsetAsync(base, 0, static_cast<std::size_t>(bytes), stream));
  for (const Copy& c : copies_) copy_array(c.from, c.storage, base + c.offset, stream);
  stream.synchronise();
  const auto offset_of = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  for (const void** p : matrices_) *p = base + offset_of(*p);
  for (const float** p : vectors_) *p = reinterpret_cast<const float*>(base + offset_of(*p));
  copies_.clear(), matrices_.clear(), vectors_.clear();
}

}  // namespace dsv2::cuda
