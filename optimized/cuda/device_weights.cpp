#include "optimized/cuda/device_weights.h"

#include <algorithm>
#include <optional>

#include "model/quantised.h"

namespace dsv2::cuda {
namespace {

constexpr std::int64_t kAlignment = 256;  // of every array

Storage storage_of(DType stored) {
  switch (stored) {
    case DType::bf16:
      return Storage::bf16;
    case DType::i8:
      return Storage::i8;
    case DType::i4:
      return Storage::i4;
    default:
      return Storage::f32;
  }
}
bool in_panels(Storage storage) { return storage == Storage::i8 || storage == Storage::i4; }
std::int64_t element_bytes(Storage storage) { return storage == Storage::bf16 ? 2 : 4; }
/// Rows begin at multiples of 16 bytes.
std::int64_t row_stride(std::int64_t columns, Storage storage) {
  const std::int64_t unit = 16 / element_bytes(storage);
  return (columns + unit - 1) / unit * unit;
}
std::int64_t bytes_of(const Shape& shape, Storage storage) {
  if (in_panels(storage)) return array_bytes(storage == Storage::i8 ? DType::i8 : DType::i4, shape);
  if (shape.size() == 1) return shape[0] * element_bytes(storage);
  return shape[0] * row_stride(shape[1], storage) * element_bytes(storage);
}
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

}  // namespace

DeviceWeights::DeviceWeights(const Weights& w, const Config& config, const Options& options, const Stream& stream) {
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
      if (in_panels(storage)) storage = options.dtype == DType::f32 ? Storage::f32 : Storage::bf16;
      matrix(a.kv_b_proj, storage, to.kv_b_proj);
    }
    if (from.gate) matrix({from.gate, {}}, storage_of(from.gate.dtype), to.gate);
    stack(from.experts, to.experts);
    if (from.shared_experts.gate_proj.weight) stack({from.shared_experts}, to.shared_experts);
    if (from.mlp.gate_proj.weight) stack({from.mlp}, to.mlp);
  }
  static_cast<void>(config);
  copy(stream);
}

std::int64_t DeviceWeights::place(const TensorView& from, Storage storage) {
  const std::int64_t offset = planned_bytes_ + kAlignment;  // no array lies at offset 0, which is null
  const auto stride = from.shape.size() == 2 ? row_stride(from.dim(1), storage) : from.dim(0);
  copies_.push_back({from, storage, offset, static_cast<int>(stride)});
  planned_bytes_ += aligned(bytes_of(from.shape, storage));
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

void DeviceWeights::stack(const std::vector<MlpWeights>& from, DeviceMlp& to) {
  if (from.empty()) return;
  std::vector<const LinearWeights*> up, down;
  for (const MlpWeights& m : from) up.insert(up.end(), {&m.gate_proj, &m.up_proj}), down.push_back(&m.down_proj);
  const Storage up_storage = *common_storage(up), down_storage = *common_storage(down);
  const auto add = [&](LinearWeights MlpWeights::*which, Storage storage, MatrixStack& stack) {
    const std::int64_t before = planned_bytes_;
    matrix(from.front().*which, storage, stack.first);
    stack.stride_bytes = planned_bytes_ - before;
    for (std::size_t e = 1; e < from.size(); ++e) place((from[e].*which).weight, storage);
  };
  add(&MlpWeights::gate_proj, up_storage, to.gate_proj);
  add(&MlpWeights::up_proj, up_storage, to.up_proj);
  add(&MlpWeights::down_proj, down_storage, to.down_proj);
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
  for (const Copy& c : copies_) {
    std::byte* const to = base + c.offset;
    if (in_panels(c.storage)) {
      stream.upload(to, static_cast<const std::byte*>(c.from.data), c.from.bytes());
      continue;
    }
    const DType wanted = c.storage == Storage::bf16 ? DType::bf16 : DType::f32;
    Tensor converted;
    TensorView from = c.from;
    if (from.dtype != wanted) {
      if (is_quantised(from.dtype)) {
        Tensor wide(DType::f32, from.shape);
        widen_rows_into(from, 0, from.dim(0), wide.as<float>().data());
        converted = convert(wide.view(), wanted);
      } else {
        converted = convert(from, wanted);
      }
      from = converted.view();
    }
    const auto element = static_cast<std::size_t>(element_bytes(c.storage));
    const std::size_t rows = from.shape.size() == 2 ? static_cast<std::size_t>(from.dim(0)) : 1;
    const std::size_t width = static_cast<std::size_t>(from.size()) / std::max<std::size_t>(rows, 1) * element;
    if (from.size() == 0) continue;
    DSV2_CUDA(cudaMemcpy2DAsync(to, static_cast<std::size_t>(c.stride) * element, from.data, width, width, rows,
                                cudaMemcpyHostToDevice, stream));
    if (converted) stream.synchronise();  // what was converted goes
  }
  stream.synchronise();
  const auto offset_of = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  for (const void** p : matrices_) *p = base + offset_of(*p);
  for (const float** p : vectors_) *p = reinterpret_cast<const float*>(base + offset_of(*p));
  copies_.clear(), matrices_.clear(), vectors_.clear();
}

}  // namespace dsv2::cuda
