#include "harness/faults.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "model/op.h"
#include "model/tensor.h"
#include "optimized/cpu/backend.h"
#include "optimized/cpu/panel.h"
#include "optimized/cpu/test_hook.h"

namespace dsv2::harness {
namespace {

using cpu::Kernels;
using cpu::Range;

Kernels right;  // what set_true_kernels() was given

// The name of a member of Kernels, the type of its parameters, and a body that has `p` (a copy of them) and `items`.
#define DSV2_FAULT(op, Params, name, ...)                \
  {                                                      \
    name, #op, [](Kernels& k) {                          \
      k.op = [](const cpu::Params& given, Range items) { \
        cpu::Params p = given;                           \
        __VA_ARGS__                                      \
      };                                                 \
    }                                                    \
  }
#define DSV2_FAULT_F32(op, Params, name, ...)                \
  {                                                          \
    name, #op,                                               \
        [](Kernels& k) {                                     \
          k.op = [](const cpu::Params& given, Range items) { \
            cpu::Params p = given;                           \
            __VA_ARGS__                                      \
          };                                                 \
        },                                                   \
        false                                                \
  }

float as_bf16(float x) { return to_float(to_bf16(x)); }

/// The rows of a linear's output that `items` covers: f(y of row n, first column, last column, segment).
template <class F>
void for_outputs(const cpu::LinearParams& p, Range items, F&& f) {
  std::int64_t before = 0;
  for (std::int64_t s = 0; s < p.segment_count; ++s) {
    const cpu::LinearSegment& segment = p.segments[s];
    const std::int64_t begin = std::max(items.begin - before, std::int64_t{0}),
                       end = std::min(items.end - before, segment.out_width);
    for (std::int64_t n = 0; begin < end && n < p.rows; ++n) f(segment.y + n * segment.y_stride, begin, end, segment);
    before += cpu::padded_to_item(segment.out_width);
  }
}

/// The same call with its segments changed.
template <class F>
void with_segments(cpu::LinearParams p, Range items, F&& change) {
  std::vector<cpu::LinearSegment> segments(p.segments, p.segments + p.segment_count);
  for (auto& s : segments) change(s);
  p.segments = segments.data();
  right.linear(p, items);
}
template <class F>
std::vector<cpu::ExpertSegment> expert_segments(const cpu::ExpertsParams& p, F&& change) {
  std::vector<cpu::ExpertSegment> segments(p.segments, p.segments + p.segment_count);
  for (auto& s : segments) change(s);
  return segments;
}

/// A mask [B,S,T] that says for each (query, key) what `visible` says, given what is right.
template <class F>
void with_mask(cpu::AttentionParams p, Range items, F&& visible) {
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(p.batch * p.tokens * p.total));
  for (std::int64_t b = 0; b < p.batch; ++b)
    for (std::int64_t s = 0; s < p.tokens; ++s)
      for (std::int64_t t = 0; t < p.total; ++t) {
        const bool causal = p.mask_token != 0 || t <= p.past + s;
        const bool unmasked = !p.mask || p.mask[b * p.mask_batch + s * p.mask_token + t] != 0;
        mask[static_cast<std::size_t>((b * p.tokens + s) * p.total + t)] = visible(s, t, causal, unmasked);
      }
  p.mask = mask.data();
  p.mask_batch = p.tokens * p.total;
  p.mask_token = p.total;
  right.attention(p, items);
}

/// cos and sin of [N, d/2], each angle through f.
template <class F>
void with_angles(cpu::RopeParams p, Range items, F&& f) {
  const std::int64_t half = p.width / 2;
  std::vector<float> cos(static_cast<std::size_t>(items.end * half)), sin(cos.size());
  for (std::int64_t i = items.begin * half; i < items.end * half; ++i)
    f(i, half, cos[static_cast<std::size_t>(i)], sin[static_cast<std::size_t>(i)]);
  p.cos = cos.data();
  p.sin = sin.data();
  right.rope(p, items);
}

/// Chooses for one token among the experts that are worth more than 0 or have no value of exactly 0: what a mask of
/// -inf leaves. `choice` holds what competed, zeros for rejected groups.
void choose_without_rejected(const cpu::GateParams& p, std::int64_t token) {
  const float* choice = p.choice + token * p.experts;
  std::vector<std::int64_t> kept, ids;
  for (std::int64_t e = 0; e < p.experts; ++e) (choice[e] != 0 ? kept : ids).push_back(e);
  std::stable_sort(kept.begin(), kept.end(), [&](auto a, auto b) { return choice[a] > choice[b]; });
  kept.insert(kept.end(), ids.begin(), ids.end());
  kept.resize(static_cast<std::size_t>(p.top_k));
  std::sort(kept.begin(), kept.end());
  std::copy(kept.begin(), kept.end(), p.topk_idx + token * p.top_k);
}

const Fault kFaults[] = {
    DSV2_FAULT(embedding, EmbeddingParams, "row of the id before",
               std::vector<std::int64_t> ids(p.ids, p.ids + items.end); for (auto& id : ids) id = std::max<std::int64_t>(id - 1, 0);
               p.ids = ids.data(); right.embedding(p, items);),
    DSV2_FAULT(embedding, EmbeddingParams, "zeros", std::fill(p.y + items.begin * p.width, p.y + items.end * p.width, 0.0f);),

    DSV2_FAULT(rms_norm, RmsNormParams, "eps 1e-5", p.eps = 1e-5f; right.rms_norm(p, items);),
    DSV2_FAULT(rms_norm, RmsNormParams, "weight ignored", const std::vector<float> ones(static_cast<std::size_t>(p.width), 1.0f);
               p.weight = ones.data(); right.rms_norm(p, items);),
    DSV2_FAULT(rms_norm, RmsNormParams, "mean over one element too few", right.rms_norm(p, items);
               const float off = std::sqrt(1 - 1.0f / static_cast<float>(p.width));
               for (std::int64_t i = items.begin * p.width; i < items.end * p.width; ++i) p.y[i] *= off;),
    DSV2_FAULT(rms_norm, RmsNormParams, "tail of a non-multiple tile", right.rms_norm(p, items);
               for (std::int64_t i = items.begin; i < items.end; ++i) p.y[(i + 1) * p.width - 1] = 0;),
    DSV2_FAULT(rms_norm, RmsNormParams, "not normalised", for (std::int64_t i = items.begin; i < items.end; ++i) for (std::int64_t j = 0; j < p.width; ++j)
                   p.y[i * p.width + j] = p.x[i * p.x_stride + j] * p.weight[j];),

    DSV2_FAULT(linear, LinearParams, "zeros", for_outputs(p, items, [](float* y, auto begin, auto end, const auto&) { std::fill(y + begin, y + end, 0.0f); });),
    DSV2_FAULT(linear, LinearParams, "stale output", static_cast<void>(p); static_cast<void>(items);),
    DSV2_FAULT(linear, LinearParams, "bias dropped", with_segments(p, items, [](auto& s) { s.bias = nullptr; });),
    DSV2_FAULT(linear, LinearParams, "bias twice", right.linear(p, items);
               for_outputs(p, items, [](float* y, auto begin, auto end, const auto& s) { for (auto o = begin; s.bias && o < end; ++o) y[o] += s.bias[o]; });),
    DSV2_FAULT(linear, LinearParams, "last column of a thread's share lost", right.linear(p, items);
               for_outputs(p, items, [](float* y, auto, auto end, const auto&) { y[end - 1] = 0; });),
    DSV2_FAULT(linear, LinearParams, "neighbouring columns swapped", right.linear(p, items);
               for_outputs(p, items, [](float* y, auto begin, auto end, const auto&) { if (end - begin > 1) std::swap(y[begin], y[begin + 1]); });),
    DSV2_FAULT(linear, LinearParams, "one element NaN", right.linear(p, items);
               if (items.begin == 0) p.segments[0].y[0] = std::numeric_limits<float>::quiet_NaN();),
    DSV2_FAULT(linear, LinearParams, "sign of one column", right.linear(p, items);
               for_outputs(p, items, [](float* y, auto begin, auto, const auto&) { y[begin] = -y[begin]; });),
    DSV2_FAULT(linear, LinearParams, "rows permuted", right.linear(p, items);
               if (p.rows > 1) for (std::int64_t s = 0; s < p.segment_count; ++s) {
                 const auto& g = p.segments[s];
                 if (items.begin == 0 && s == 0) std::swap_ranges(g.y, g.y + std::min(items.end, g.out_width), g.y + g.y_stride);
               }),
    DSV2_FAULT_F32(linear, LinearParams, "bf16 accumulation", right.linear(p, items);
                   for_outputs(p, items, [](float* y, auto begin, auto end, const auto&) { for (auto o = begin; o < end; ++o) y[o] = as_bf16(y[o]); });),

    DSV2_FAULT(rope, RopeParams, "pairing swapped", p.interleaved = !p.interleaved; right.rope(p, items);),
    DSV2_FAULT(rope, RopeParams, "position off by one",
               with_angles(p, items, [&](std::int64_t i, std::int64_t half, float& c, float& s) {
                 const std::int64_t from = i >= half ? i - half : i; c = given.cos[from]; s = given.sin[from]; });),
    DSV2_FAULT(rope, RopeParams, "rotated backwards",
               with_angles(p, items, [&](std::int64_t i, std::int64_t, float& c, float& s) { c = given.cos[i]; s = -given.sin[i]; });),
    DSV2_FAULT(rope, RopeParams, "not rotated",
               with_angles(p, items, [&](std::int64_t, std::int64_t, float& c, float& s) { c = 1; s = 0; });),
    DSV2_FAULT(rope, RopeParams, "one frequency for all pairs",
               with_angles(p, items, [&](std::int64_t i, std::int64_t half, float& c, float& s) { c = given.cos[i / half * half]; s = given.sin[i / half * half]; });),

    DSV2_FAULT(kv_write, KvWriteParams, "last row missing", right.kv_write(p, {items.begin, std::max(items.begin, items.end - 1)});),
    DSV2_FAULT(kv_write, KvWriteParams, "row of the token before",
               const std::int64_t row = p.heads * p.width; std::vector<float> x(p.x, p.x + items.end * row);
               for (std::int64_t i = items.end - 1; i > 0; --i) std::copy_n(x.begin() + (i - 1) * row, row, x.begin() + i * row);
               p.x = x.data(); p.x_stride = row; right.kv_write(p, items);),
    DSV2_FAULT(kv_write, KvWriteParams, "zeros", const std::vector<float> x(static_cast<std::size_t>(items.end * p.x_stride), 0.0f); p.x = x.data(); right.kv_write(p, items);),

    DSV2_FAULT(attention, AttentionParams, "softmax scale dropped", p.scale = 1; right.attention(p, items);),
    DSV2_FAULT(attention, AttentionParams, "scale of another head size", p.scale *= 1.1f; right.attention(p, items);),
    DSV2_FAULT(attention, AttentionParams, "future token visible", with_mask(p, items, [&](auto s, auto t, bool causal, bool unmasked) { return (causal || t == given.past + s + 1) && unmasked; });),
    DSV2_FAULT(attention, AttentionParams, "padding visible", with_mask(p, items, [](auto, auto, bool causal, bool) { return causal; });),
    DSV2_FAULT(attention, AttentionParams, "last KV row missing", with_mask(p, items, [&](auto s, auto t, bool causal, bool unmasked) { return causal && unmasked && (t != given.past + s || t == 0); });),
    DSV2_FAULT(attention, AttentionParams, "first KV row missing", with_mask(p, items, [&](auto s, auto t, bool causal, bool unmasked) { return causal && unmasked && (t != 0 || given.past + s == 0); });),
    DSV2_FAULT(attention, AttentionParams, "mask ignores causality", with_mask(p, items, [](auto, auto, bool, bool unmasked) { return unmasked; });),
    DSV2_FAULT(attention, AttentionParams, "keys of the first sequence", p.k1.batch_stride = p.k2.batch_stride = 0; right.attention(p, items);),
    DSV2_FAULT(attention, AttentionParams, "values of the first sequence", p.v.batch_stride = 0; right.attention(p, items);),
    DSV2_FAULT(attention, AttentionParams, "stale output", static_cast<void>(p); static_cast<void>(items);),

    DSV2_FAULT(mla_absorb, MlaAbsorbParams, "weights of the first head", const std::vector<const void*> first(static_cast<std::size_t>(p.heads), p.weight[0]); p.weight = first.data(); right.mla_absorb(p, items);),
    DSV2_FAULT(mla_absorb, MlaAbsorbParams, "half of the nope dimensions", p.nope /= 2; right.mla_absorb(p, items);),

    DSV2_FAULT(gate_select, GateParams, "least instead of most",
               std::vector<float> logits(p.logits, p.logits + items.end * p.experts); for (float& x : logits) x = -x;
               p.logits = logits.data(); right.gate_select(p, items);),
    DSV2_FAULT(gate_select, GateParams, "top-k off by one", right.gate_select(p, items);
               for (std::int64_t i = items.begin; i < items.end; ++i) {
                 std::int64_t* chosen = p.topk_idx + i * p.top_k;
                 std::int64_t other = 0;
                 while (std::find(chosen, chosen + p.top_k, other) != chosen + p.top_k) ++other;
                 if (other >= p.experts) continue;
                 chosen[0] = other;
                 std::sort(chosen, chosen + p.top_k);
               }),
    DSV2_FAULT(gate_select, GateParams, "correction bias ignored", p.bias = nullptr;
               if (given.bias) { const std::vector<float> none(static_cast<std::size_t>(p.experts), 0.0f); p.bias = none.data(); right.gate_select(p, items); } else { right.gate_select(p, items); }),
    DSV2_FAULT(gate_select, GateParams, "rejected groups at -inf instead of 0", right.gate_select(p, items);
               if (p.method != TopkMethod::greedy) for (std::int64_t i = items.begin; i < items.end; ++i) choose_without_rejected(p, i);),
    DSV2_FAULT(gate_select, GateParams, "group limit ignored", p.groups = p.top_groups = 1; right.gate_select(p, items);),

    DSV2_FAULT(gate_weight, GateParams, "normalisation flipped", p.normalise = !p.normalise; right.gate_weight(p, items);),
    DSV2_FAULT(gate_weight, GateParams, "scaling dropped", p.scaling = 1; right.gate_weight(p, items);),
    DSV2_FAULT(gate_weight, GateParams, "bias in the weights",
               if (p.bias) for (std::int64_t i = items.begin * p.experts; i < items.end * p.experts; ++i) p.scores[i] += p.bias[i % p.experts];
               right.gate_weight(p, items);),
    DSV2_FAULT(gate_weight, GateParams, "weights in reverse", right.gate_weight(p, items);
               for (std::int64_t i = items.begin; i < items.end; ++i) std::reverse(p.topk_weight + i * p.top_k, p.topk_weight + (i + 1) * p.top_k);),
    DSV2_FAULT(gate_weight, GateParams, "scaled twice", p.scaling *= p.scaling; right.gate_weight(p, items);),

    DSV2_FAULT(experts_act, ExpertsParams, "gate and up swapped", const auto s = expert_segments(p, [](auto& e) { std::swap(e.gate_proj, e.up_proj); }); p.segments = s.data(); right.experts_act(p, items);),
    DSV2_FAULT(experts_act, ExpertsParams, "another activation", p.activation = p.activation == Activation::relu ? Activation::silu : Activation::relu; right.experts_act(p, items);),
    DSV2_FAULT(experts_act, ExpertsParams, "up_proj for gate_proj", const auto s = expert_segments(p, [](auto& e) { e.gate_proj = e.up_proj; }); p.segments = s.data(); right.experts_act(p, items);),
    DSV2_FAULT(experts_act, ExpertsParams, "rows of the first token", static const std::vector<std::int64_t> kFirst(4096, 0);
               const auto s = expert_segments(p, [](auto& e) { e.tokens = kFirst.data(); }); p.segments = s.data(); right.experts_act(p, items);),

    DSV2_FAULT(experts_down, ExpertsParams, "weights ignored", const auto s = expert_segments(p, [](auto& e) { e.weight = nullptr; }); p.segments = s.data(); right.experts_down(p, items);),
    DSV2_FAULT(experts_down, ExpertsParams, "shared expert missing", if (p.segment_count > 1 && !p.segments[p.segment_count - 1].weight) --p.segment_count; right.experts_down(p, items);),
    DSV2_FAULT(experts_down, ExpertsParams, "first expert missing", if (p.segment_count > 1) { ++p.segments; --p.segment_count; } right.experts_down(p, items);),
    DSV2_FAULT(experts_down, ExpertsParams, "expert rows permuted wrongly",
               std::vector<std::vector<std::int64_t>> kept;
               const auto s = expert_segments(p, [&](auto& e) {
                 if (!e.tokens || e.rows < 2) return;
                 kept.emplace_back(e.tokens, e.tokens + e.rows);
                 std::reverse(kept.back().begin(), kept.back().end());
                 e.tokens = kept.back().data(); });
               p.segments = s.data(); right.experts_down(p, items);),
    DSV2_FAULT(experts_down, ExpertsParams, "a lost update, as in a race", right.experts_down(p, items);
               if (p.segment_count > 1) { ++p.segments; --p.segment_count; right.experts_down(p, {items.begin, std::min(items.end, items.begin + 1)}); }
               else { p.y[items.begin] = 0; }),
    DSV2_FAULT(experts_down, ExpertsParams, "added to what was there", std::vector<float> before(p.y, p.y + p.tokens * p.hidden); right.experts_down(p, items);
               for (std::int64_t n = 0; n < p.tokens; ++n) for (std::int64_t d = items.begin; d < std::min(items.end, p.hidden); ++d)
                   p.y[n * p.hidden + d] += before[static_cast<std::size_t>(n * p.hidden + d)];),

    DSV2_FAULT(add, AddParams, "residual dropped", for (std::int64_t i = items.begin; i < items.end; ++i) p.x[i] = p.y[i];),
    DSV2_FAULT(add, AddParams, "added twice", right.add(p, items); right.add(p, items);),
};

#undef DSV2_FAULT
#undef DSV2_FAULT_F32

}  // namespace

std::span<const Fault> faults() { return kFaults; }

void set_true_kernels(const Kernels& kernels) { right = kernels; }

Backend backend_with(const Kernels& kernels) {
  static Kernels in_use;
  in_use = kernels;
  Backend backend = cpu::backend();
  backend.create = [](const Config& config, std::shared_ptr<const Weights> weights, const Options& options) {
    return cpu::create_with_kernels(config, std::move(weights), options, in_use);
  };
  backend.ops = []() -> std::span<const OpKernel> {
    static const auto kOps = [] {
      std::vector<OpKernel> ops(cpu::ops().begin(), cpu::ops().end());
      for (OpKernel& op : ops)
        op.prepare = [](const OpProblem& problem, const Options& options, OpMemory& memory) {
          return cpu::prepare_with_kernels(problem, options, memory, in_use);
        };
      return ops;
    }();
    return kOps;
  };
  return backend;
}

bool runs_kernel(std::string_view op_alone, std::string_view op) {
  const auto one_of = [&](std::initializer_list<std::string_view> ops) {
    return std::find(ops.begin(), ops.end(), op_alone) != ops.end();
  };
  if (op == "linear") return one_of({"linear", "gate", "lm_head", "mla_absorb"});
  if (op == "experts_act" || op == "experts_down") return one_of({"experts", "shared_experts", "mlp"});
  if (op == "gate_select") return one_of({"gate_select", "gate_weight"});
  return op_alone == op;
}

}  // namespace dsv2::harness
