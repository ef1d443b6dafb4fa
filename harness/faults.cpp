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
#define DSV2_FAULT_AT(where, op, Params, name, ...)          \
  {                                                          \
    name, #op,                                               \
        [](Kernels& k) {                                     \
          k.op = [](const cpu::Params& given, Range items) { \
            cpu::Params p = given;                           \
            __VA_ARGS__                                      \
          };                                                 \
        },                                                   \
        where                                                \
  }
#define DSV2_FAULT(op, Params, name, ...) DSV2_FAULT_AT(Where::everywhere, op, Params, name, __VA_ARGS__)
#define DSV2_FAULT_F32(op, Params, name, ...) DSV2_FAULT_AT(Where::f32, op, Params, name, __VA_ARGS__)
#define DSV2_FAULT_INT8_CACHE(op, Params, name, ...) DSV2_FAULT_AT(Where::int8_cache, op, Params, name, __VA_ARGS__)
#define DSV2_FAULT_QUANTISED(op, Params, name, ...) DSV2_FAULT_AT(Where::quantised, op, Params, name, __VA_ARGS__)
#define DSV2_FAULT_INT4(op, Params, name, ...) DSV2_FAULT_AT(Where::int4, op, Params, name, __VA_ARGS__)

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

/// Each int8 row that `items` wrote: f(its numbers, its scale, where that is in p.scales).
template <class F>
void for_rows(const cpu::KvWriteParams& p, Range items, F&& f) {
  if (!p.scales) return;
  for (std::int64_t i = items.begin; i < items.end; ++i)
    for (std::int64_t h = 0; h < p.heads; ++h) {
      const std::int64_t at = i / p.tokens * p.batch_stride + h * p.head_stride + i % p.tokens * p.width;
      f(static_cast<std::int8_t*>(p.y) + at, p.scales[at / p.width], at / p.width);
    }
}

/// The same call with the scales of `rows` (one of p's) taken elsewhere: from(sequence, head, row).
template <class F>
void with_scales(cpu::AttentionParams& p, cpu::KeyRows& rows, Range items, F&& from) {
  if (!rows.scales) return right.attention(p, items);
  const std::int64_t matrix = rows.head_stride ? rows.head_stride : rows.batch_stride,
                     capacity = matrix / rows.row_stride;
  const std::int64_t heads = rows.batch_stride / matrix;
  std::vector<std::uint16_t> scales(rows.scales, rows.scales + p.batch * heads * capacity);
  for (std::int64_t b = 0; b < p.batch; ++b)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t t = 0; t < p.total; ++t)
        scales[static_cast<std::size_t>((b * heads + h) * capacity + t)] = from(b, h, t, heads, capacity);
  rows.scales = scales.data();
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

bool is_quantised(cpu::Arithmetic a) {
  using enum cpu::Arithmetic;
  return a == i8 || a == i4 || a == i8_wide || a == i4_wide;
}

/// A copy of a quantised matrix [rows, cols] with each block changed: f(scales [2][16], integers, bytes of those).
template <class F>
std::vector<char> with_blocks(const void* matrix, cpu::Arithmetic arithmetic, std::int64_t rows, std::int64_t cols,
                              F&& f) {
  const std::int64_t bytes = (rows + cpu::kPanel - 1) / cpu::kPanel * cpu::panel_bytes(arithmetic, cols);
  const auto* from = static_cast<const char*>(matrix);
  std::vector<char> copy(from, from + bytes);
  const std::int64_t block = cpu::panel_bytes(arithmetic, cpu::kQuantBlock);
  for (std::int64_t at = 0; at < bytes; at += block)
    f(reinterpret_cast<std::uint16_t*>(copy.data() + at),
      reinterpret_cast<std::uint8_t*>(copy.data() + at + cpu::kScaleBytes), block - cpu::kScaleBytes);
  return copy;
}

/// The same call with the blocks of its quantised matrices changed.
template <class F>
void linear_with_blocks(cpu::LinearParams p, Range items, F&& f) {
  std::vector<std::vector<char>> copies;
  with_segments(p, items, [&](auto& s) {
    if (!is_quantised(p.arithmetic)) return;
    copies.push_back(with_blocks(s.weight, p.arithmetic, s.out_width, p.width, f));
    s.weight = copies.back().data();
  });
}

// Ways to read a block wrong.
constexpr auto kOtherGroup = [](std::uint16_t* scales, std::uint8_t*, std::int64_t) {
  std::swap_ranges(scales, scales + cpu::kPanel, scales + cpu::kPanel);
};
constexpr auto kNextRow = [](std::uint16_t* scales, std::uint8_t*, std::int64_t) {
  for (int g = 0; g < 2; ++g)
    std::rotate(scales + g * cpu::kPanel, scales + g * cpu::kPanel + 1, scales + (g + 1) * cpu::kPanel);
};
constexpr auto kScaleSign = [](std::uint16_t* scales, std::uint8_t*, std::int64_t) {
  for (int i = 0; i < 2 * cpu::kPanel; ++i) scales[i] &= 0x7fff;
};
constexpr auto kNibbles = [](std::uint16_t*, std::uint8_t* q, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) q[i] = static_cast<std::uint8_t>(q[i] << 4 | q[i] >> 4);
};
constexpr auto kTwosComplement = [](std::uint16_t*, std::uint8_t* q, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) q[i] ^= n == cpu::kPanel * cpu::kQuantBlock ? 0x80 : 0x88;
};

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
    DSV2_FAULT_QUANTISED(linear, LinearParams, "quantised: scale of the other group", linear_with_blocks(p, items, kOtherGroup);),
    DSV2_FAULT_QUANTISED(linear, LinearParams, "quantised: scale of the next row", linear_with_blocks(p, items, kNextRow);),
    DSV2_FAULT_QUANTISED(linear, LinearParams, "quantised: sign of the scale lost", linear_with_blocks(p, items, kScaleSign);),
    DSV2_FAULT_QUANTISED(linear, LinearParams, "quantised: offset taken for two's complement", linear_with_blocks(p, items, kTwosComplement);),
    DSV2_FAULT_INT4(linear, LinearParams, "int4: nibbles swapped", linear_with_blocks(p, items, kNibbles);),
    DSV2_FAULT_QUANTISED(experts_act, ExpertsParams, "quantised: scale of the other group", std::vector<std::vector<char>> copies;
               const auto s = expert_segments(p, [&](auto& e) {
                 if (!is_quantised(p.up_arithmetic)) return;
                 copies.push_back(with_blocks(e.up_proj, p.up_arithmetic, e.width, p.hidden, kOtherGroup));
                 e.up_proj = copies.back().data(); });
               p.segments = s.data(); right.experts_act(p, items);),
    DSV2_FAULT_INT4(experts_act, ExpertsParams, "int4: nibbles swapped", std::vector<std::vector<char>> copies;
               const auto s = expert_segments(p, [&](auto& e) {
                 if (!is_quantised(p.up_arithmetic)) return;
                 copies.push_back(with_blocks(e.gate_proj, p.up_arithmetic, e.width, p.hidden, kNibbles));
                 e.gate_proj = copies.back().data(); });
               p.segments = s.data(); right.experts_act(p, items);),
    DSV2_FAULT_QUANTISED(experts_down, ExpertsParams, "quantised: scale of the next row", std::vector<std::vector<char>> copies;
               const auto s = expert_segments(p, [&](auto& e) {
                 if (!is_quantised(p.down_arithmetic)) return;
                 copies.push_back(with_blocks(e.down_proj, p.down_arithmetic, p.hidden, e.width, kNextRow));
                 e.down_proj = copies.back().data(); });
               p.segments = s.data(); right.experts_down(p, items);),
    DSV2_FAULT_QUANTISED(experts_down, ExpertsParams, "quantised: offset taken for two's complement", std::vector<std::vector<char>> copies;
               const auto s = expert_segments(p, [&](auto& e) {
                 if (!is_quantised(p.down_arithmetic)) return;
                 copies.push_back(with_blocks(e.down_proj, p.down_arithmetic, p.hidden, e.width, kTwosComplement));
                 e.down_proj = copies.back().data(); });
               p.segments = s.data(); right.experts_down(p, items);),
    DSV2_FAULT_QUANTISED(mla_absorb, MlaAbsorbParams, "quantised: scale of the next row", std::vector<std::vector<char>> copies;
               std::vector<const void*> weight(p.weight, p.weight + p.heads);
               for (const void*& w : weight) if (is_quantised(p.arithmetic)) w = copies.emplace_back(with_blocks(w, p.arithmetic, p.nope, p.width, kNextRow)).data();
               p.weight = weight.data(); right.mla_absorb(p, items);),
    DSV2_FAULT_QUANTISED(embedding, EmbeddingParams, "quantised: row of another panel", std::vector<std::int64_t> ids(p.ids, p.ids + items.end);
               for (auto& id : ids) id = id >= cpu::kPanel ? id - cpu::kPanel : id;
               p.ids = ids.data(); right.embedding(p, items);),
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

    DSV2_FAULT_INT8_CACHE(kv_write, KvWriteParams, "int8 cache: sign lost", right.kv_write(p, items);
               for_rows(p, items, [&](std::int8_t* q, std::uint16_t&, std::int64_t) { for (std::int64_t j = 0; j < p.width; ++j) q[j] = static_cast<std::int8_t>(std::abs(q[j])); });),
    DSV2_FAULT_INT8_CACHE(kv_write, KvWriteParams, "int8 cache: scale of the first token", right.kv_write(p, items);
               for_rows(p, items, [&](std::int8_t*, std::uint16_t& s, std::int64_t at) { s = p.scales[at - at % (p.head_stride ? p.head_stride / p.width : p.batch_stride / p.width)]; });),
    DSV2_FAULT_INT8_CACHE(kv_write, KvWriteParams, "int8 cache: scale of half the range", right.kv_write(p, items);
               for_rows(p, items, [](std::int8_t*, std::uint16_t& s, std::int64_t) { s = to_bf16(to_float(bf16_t{s}) / 2).bits; });),
    DSV2_FAULT_INT8_CACHE(kv_write, KvWriteParams, "int8 cache: scale not written", std::vector<std::uint16_t> before;
               for_rows(p, items, [&](std::int8_t*, std::uint16_t& s, std::int64_t) { before.push_back(s); });
               right.kv_write(p, items); std::size_t n = 0;
               for_rows(p, items, [&](std::int8_t*, std::uint16_t& s, std::int64_t) { s = before[n++]; });),
    DSV2_FAULT_INT8_CACHE(kv_write, KvWriteParams, "int8 cache: six bits", right.kv_write(p, items);
               for_rows(p, items, [&](std::int8_t* q, std::uint16_t&, std::int64_t) { for (std::int64_t j = 0; j < p.width; ++j) q[j] = static_cast<std::int8_t>(q[j] / 4 * 4); });),

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
    DSV2_FAULT_INT8_CACHE(attention, AttentionParams, "int8 cache: scale of the next key",
               with_scales(p, p.k1, items, [&](auto b, auto h, auto t, auto heads, auto capacity) { return given.k1.scales[(b * heads + h) * capacity + (t + 1) % p.total]; });),
    DSV2_FAULT_INT8_CACHE(attention, AttentionParams, "int8 cache: scale of the next value",
               with_scales(p, p.v, items, [&](auto b, auto h, auto t, auto heads, auto capacity) { return given.v.scales[(b * heads + h) * capacity + (t + 1) % p.total]; });),
    DSV2_FAULT_INT8_CACHE(attention, AttentionParams, "int8 cache: scales of the first sequence and head",
               with_scales(p, p.v, items, [&](auto, auto, auto t, auto, auto) { return given.v.scales[t]; });),
    DSV2_FAULT_INT8_CACHE(attention, AttentionParams, "int8 cache: keys without scales",
               with_scales(p, p.k1, items, [](auto, auto, auto, auto, auto) { return std::uint16_t{0x3f80}; });),

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
#undef DSV2_FAULT_INT8_CACHE

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
