#include "harness/op_cases.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <span>

#include "model/quantised.h"
#include "model/random.h"

namespace dsv2::harness {
namespace {

// ---- models: what widths and branches there are

/// Widths that are no multiple of any vector or tile, grouped keys, biases.
Config odd_mha() {
  Config c = Config::preset("tiny-mha");
  c.vocab_size = 257, c.hidden_size = 66, c.num_attention_heads = 3, c.num_key_value_heads = 1;
  c.intermediate_size = 257, c.moe_intermediate_size = 33;
  c.n_routed_experts = 7, c.num_experts_per_tok = 3, c.n_shared_experts = 1;
  c.attention_bias = true;
  return c;
}

Config odd_mla() {
  Config c = Config::preset("tiny-mla");
  c.vocab_size = 257, c.hidden_size = 65, c.num_attention_heads = 3;
  c.intermediate_size = 127, c.moe_intermediate_size = 31;
  c.q_lora_rank = 21, c.kv_lora_rank = 33, c.qk_nope_head_dim = 10, c.qk_rope_head_dim = 6, c.v_head_dim = 7;
  c.n_routed_experts = 9, c.num_experts_per_tok = 2, c.n_group = 3, c.topk_group = 1;
  return c;
}

/// Heads wider than 128, and a number that is no power of two.
Config wide_mha() {
  Config c = Config::preset("tiny-mha");
  c.hidden_size = 4 * 200;
  return c;
}

/// Eight experts of deepseek-ocr's width: grouping without 64 of them in memory.
Config ocr_8_experts() {
  Config c = Config::preset("deepseek-ocr");
  c.n_routed_experts = 8, c.num_experts_per_tok = 2;
  return c;
}

template <RopeType Type, bool Mla>
Config rope_model() {
  Config c = Config::preset(Mla ? "tiny-mla" : "tiny-mha");
  c.max_position_embeddings = 16;  // dynamic stretches beyond it
  c.rope_scaling = {.type = Type, .factor = 4, .original_max_position_embeddings = 32, .mscale_all_dim = 0.8};
  return c;
}

/// Yarn's ramp in the midst of the pairs and beyond half of them, and an amplitude that is given.
template <bool Mla>
Config yarn_wide() {
  Config c = rope_model<RopeType::yarn, Mla>();
  c.max_position_embeddings = 1 << 18;
  c.rope_scaling.original_max_position_embeddings = 1 << 18;
  c.rope_scaling.attention_factor = 1.25;
  return c;
}

template <Activation Act>
Config activation_model() {
  Config c = odd_mha();
  c.hidden_act = Act;
  return c;
}

template <TopkMethod Method, ScoringFunc Scoring>
Config gate_model() {
  Config c = odd_mla();
  c.n_routed_experts = 24, c.num_experts_per_tok = 4, c.n_group = 4, c.topk_group = 2;
  c.topk_method = Method, c.scoring_func = Scoring;
  c.norm_topk_prob = Scoring == ScoringFunc::sigmoid, c.routed_scaling_factor = 2.5;
  return c;
}

/// More experts are chosen than the kept group has: QUIRKS 7.
Config gate_overflow() {
  Config c = gate_model<TopkMethod::group_limited_greedy, ScoringFunc::softmax>();
  c.topk_group = 1, c.num_experts_per_tok = 8;
  return c;
}

/// Chosen experts of rejected groups weigh 0, in all perhaps: the sum that divides is 0 then.
Config group_limited_norm() {
  Config c = gate_model<TopkMethod::group_limited_greedy, ScoringFunc::sigmoid>();
  c.topk_group = 1;
  return c;
}

Config top1() {
  Config c = gate_model<TopkMethod::greedy, ScoringFunc::softmax>();
  c.num_experts_per_tok = 1, c.norm_topk_prob = true;
  return c;
}

template <const char* Name>
Config preset() {
  return Config::preset(Name);
}
constexpr char kTinyMha[] = "tiny-mha", kTinyMla[] = "tiny-mla", kOcr[] = "deepseek-ocr", kLite[] = "deepseek-v2-lite";

constexpr struct {
  std::string_view name;
  Config (*make)();
} kModels[] = {
    {kTinyMha, preset<kTinyMha>},
    {kTinyMla, preset<kTinyMla>},
    {kOcr, preset<kOcr>},
    {kLite, preset<kLite>},
    {"odd-mha", odd_mha},
    {"odd-mla", odd_mla},
    {"wide-mha", wide_mha},
    {"deepseek-ocr-8-experts", ocr_8_experts},
    {"mha-linear", rope_model<RopeType::linear, false>},
    {"mha-dynamic", rope_model<RopeType::dynamic, false>},
    {"mha-yarn", rope_model<RopeType::yarn, false>},
    {"mha-yarn-wide", yarn_wide<false>},
    {"mla-linear", rope_model<RopeType::linear, true>},
    {"mla-dynamic", rope_model<RopeType::dynamic, true>},
    {"mla-yarn", rope_model<RopeType::yarn, true>},
    {"mla-yarn-wide", yarn_wide<true>},
    {"gelu", activation_model<Activation::gelu>},
    {"gelu-tanh", activation_model<Activation::gelu_tanh>},
    {"relu", activation_model<Activation::relu>},
    {"greedy", gate_model<TopkMethod::greedy, ScoringFunc::softmax>},
    {"greedy-sigmoid", gate_model<TopkMethod::greedy, ScoringFunc::sigmoid>},
    {"group-limited", gate_model<TopkMethod::group_limited_greedy, ScoringFunc::softmax>},
    {"group-limited-overflow", gate_overflow},
    {"group-limited-norm", group_limited_norm},
    {"noaux-tc", gate_model<TopkMethod::noaux_tc, ScoringFunc::sigmoid>},
    {"noaux-tc-negative", gate_model<TopkMethod::noaux_tc, ScoringFunc::sigmoid>},
    {"noaux-tc-softmax", gate_model<TopkMethod::noaux_tc, ScoringFunc::softmax>},
    {"top1", top1},
};

// ---- the table

struct Size {
  std::int64_t batch, tokens, past;
};
// The first two sizes of a list take every fill, the others the first one.
constexpr Size kRows[] = {{1, 1, 0}, {2, 33, 0}, {1, 2, 0}, {1, 257, 0}};
constexpr Size kSomeRows[] = {{1, 12, 0}};  // too many to go one by one, too few for a library's tiles
constexpr Size kContext[] = {{2, 1, 5},  {2, 33, 7},  {1, 1, 0},   {1, 2, 0},
                             {1, 33, 0}, {1, 257, 0}, {1, 1, 257}, {3, 2, 31}};
constexpr Size kRealRows[] = {{1, 1, 0}, {1, 33, 0}};
constexpr Size kRealContext[] = {{1, 1, 511}, {1, 1, 4095}, {1, 257, 0}},
               kRealLatent[] = {{1, 1, 511}, {1, 1, 4095}, {1, 33, 40}};
constexpr Size kChunk[] = {{2, 33, 7}};
constexpr Size kOneRow[] = {{1, 1, 0}};
constexpr Size kPadded[] = {{2, 33, 7}, {3, 2, 131}};  // one block of keys, and three

constexpr std::string_view kSmall[] = {"tiny-mha", "tiny-mla", "odd-mha", "odd-mla"};
constexpr std::string_view kSmallMha[] = {"tiny-mha", "odd-mha"};
constexpr std::string_view kSmallMla[] = {"tiny-mla", "odd-mla"};
constexpr std::string_view kWideMha[] = {"wide-mha"};
constexpr std::string_view kReal[] = {kOcr};
constexpr std::string_view kRealMla[] = {kLite};
constexpr std::string_view kFewExperts[] = {"deepseek-ocr-8-experts"};
constexpr std::string_view kRopes[] = {"mha-linear",    "mha-dynamic", "mha-yarn",    "mha-yarn-wide",
                                       "mla-yarn-wide", "mla-linear",  "mla-dynamic", "mla-yarn"};
constexpr std::string_view kActivations[] = {"gelu", "gelu-tanh", "relu"};
constexpr std::string_view kGates[] = {"greedy",
                                       "greedy-sigmoid",
                                       "group-limited",
                                       "group-limited-overflow",
                                       "group-limited-norm",
                                       "noaux-tc",
                                       "noaux-tc-softmax",
                                       "noaux-tc-negative",
                                       "top1"};

constexpr std::string_view kUngrouped[] = {"greedy", "greedy-sigmoid"};

constexpr Fill kAll[] = {Fill::normal, Fill::large, Fill::tiny, Fill::zeros, Fill::denormal};
constexpr Fill kDecisions[] = {Fill::normal, Fill::near_tie, Fill::large, Fill::tiny, Fill::zeros};
// Of the weights of given experts: near ties would leave open which groups were rejected, and their weights are 0.
constexpr Fill kWeights[] = {Fill::normal, Fill::zeros};
constexpr Fill kLarge[] = {Fill::large};  // groups of saturated scores tie, too: of gates without
constexpr Fill kNormal[] = {Fill::normal};
constexpr Fill kTies[] = {Fill::bf16_tie};
constexpr Fill kHidden[] = {Fill::hidden};

struct MatrixTypes {
  DType dtype, stored;
};
constexpr MatrixTypes kF32[] = {{DType::f32, DType::f32}};
constexpr MatrixTypes kMatrix[] = {{DType::f32, DType::f32},
                                   {DType::bf16, DType::bf16},
                                   {DType::f32, DType::bf16},
                                   {DType::i8, DType::i8},
                                   {DType::i4, DType::i4}};
// Never below what a checkpoint stores it in.
constexpr MatrixTypes kGateMatrix[] = {{DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::f32, DType::bf16}};
constexpr MatrixTypes kBf16[] = {{DType::bf16, DType::bf16}};
constexpr DType kNoCache[] = {DType::f32};
constexpr DType kCache[] = {DType::f32, DType::bf16, DType::i8};

/// A family of cases: models x sizes x precisions x KV dtypes x fills x visibilities.
struct Family {
  std::string_view op, place;
  std::span<const std::string_view> models;
  std::span<const Size> sizes = kRows;
  std::span<const MatrixTypes> precisions = kF32;
  std::span<const Fill> fills = kAll;
  std::span<const DType> kv_dtypes = kNoCache;
  bool masked = false;  ///< every visibility, where there is more than one query
  MlaForm form = MlaForm::automatic;
};

constexpr std::string_view kAttention = "self_attn.attention";
const Family kFamilies[] = {
    {"embedding", "embed_tokens", kSmall, kRows, kMatrix, kNormal},
    {"embedding", "embed_tokens", kReal, kRealRows, kMatrix, kNormal},
    {"rms_norm", "input_layernorm", kSmall},
    {"rms_norm", "self_attn.kv_a_layernorm", kSmallMla},
    {"rms_norm", "input_layernorm", kReal, kRealRows, kF32, kNormal},
    {"linear", "self_attn.q_proj", kSmallMha, kRows, kMatrix},
    {"linear", "self_attn.q_a_proj", kSmallMla, kRows, kMatrix, kNormal},
    {"linear", "self_attn.q_b_proj", kSmallMla, kRows, kMatrix, kNormal},
    {"linear", "self_attn.kv_a_proj_with_mqa", kSmallMla, kRows, kMatrix, kNormal},
    {"linear", "self_attn.o_proj", kSmall, kRows, kMatrix},
    {"linear", "self_attn.o_proj", kReal, kRealRows, kMatrix, kNormal},
    {"linear", "self_attn.o_proj", kSmall, kSomeRows, kMatrix, kNormal},
    {"linear", "self_attn.kv_a_proj_with_mqa", kRealMla, kRealRows, kMatrix, kNormal},
    {"rope", "self_attn.rope", kRopes, kContext, kF32, kNormal},
    {"rope", "self_attn.rope", kSmall, kContext},
    {"rope", "self_attn.rope", kReal, kRealContext, kF32, kNormal},
    {"kv_write", "self_attn.kv_write", kSmall, kContext, kF32, kAll, kCache},
    {"kv_write", "self_attn.kv_write", kReal, kRealContext, kF32, kNormal, kCache},
    {"kv_write", "self_attn.kv_write", kSmall, kPadded, kF32, kTies, kCache},
    {"attention", kAttention, kSmallMha, kContext, kF32, kAll, kCache, true},
    {"attention", kAttention, kSmallMha, kPadded, kF32, kHidden, kCache, true},
    {"attention", kAttention, kSmallMla, kContext, kF32, kAll, kCache, true, MlaForm::absorbed},
    {"attention", kAttention, kSmallMla, kContext, kF32, kAll, kCache, true, MlaForm::expanded},
    {"attention", kAttention, kSmallMla, kPadded, kF32, kHidden, kCache, true, MlaForm::absorbed},
    {"attention", kAttention, kSmallMla, kPadded, kF32, kHidden, kCache, true, MlaForm::expanded},
    {"attention", kAttention, kReal, kRealContext, kF32, kNormal, kCache},
    {"attention", kAttention, kSmallMha, kContext, kBf16, kWeights, kCache, true},
    {"attention", kAttention, kSmallMla, kContext, kBf16, kWeights, kCache, true, MlaForm::absorbed},
    {"attention", kAttention, kSmallMla, kContext, kBf16, kWeights, kCache, true, MlaForm::expanded},
    {"attention", kAttention, kReal, kRealContext, kBf16, kNormal, kCache},
    {"attention", kAttention, kWideMha, kChunk, kBf16, kNormal, kCache, true},
    {"attention", kAttention, kRealMla, kRealLatent, kBf16, kNormal, kCache, false, MlaForm::absorbed},
    {"attention", kAttention, kRealMla, kRealLatent, kF32, kNormal, kCache, false, MlaForm::absorbed},
    {"mla_absorb", "self_attn.kv_b_proj", kSmallMla, kRows, kMatrix},
    {"mla_absorb", "self_attn.kv_b_proj", kRealMla, kOneRow, kMatrix, kNormal},
    {"add", "self_attn.residual", kSmall},
    {"add", "self_attn.residual", kReal, kRealRows, kF32, kNormal},
    {"gate", "mlp.gate", kSmall, kRows, kGateMatrix},
    {"gate", "mlp.gate", kReal, kRealRows, kGateMatrix, kNormal},
    {"gate_select", "mlp.gate.topk_idx", kGates, kRows, kF32, kDecisions},
    {"gate_select", "mlp.gate.topk_idx", kReal, kRealRows, kF32, kDecisions},
    {"gate_weight", "mlp.gate.topk_weight", kGates, kRows, kF32, kWeights},
    {"gate_weight", "mlp.gate.topk_weight", kUngrouped, kRows, kF32, kLarge},
    {"gate_weight", "mlp.gate.topk_weight", kReal, kRealRows, kF32, kNormal},
    {"experts", "mlp.experts", kSmall, kRows, kMatrix},
    {"experts", "mlp.experts", kActivations, kRows, kMatrix, kNormal},
    {"experts", "mlp.experts", kFewExperts, kRealRows, kMatrix, kNormal},
    {"shared_experts", "mlp.shared_experts", kSmall, kRows, kMatrix},
    {"shared_experts", "mlp.shared_experts", kReal, kRealRows, kMatrix, kNormal},
    {"mlp", "mlp", kSmall, kRows, kMatrix},
    {"mlp", "mlp", kActivations, kRows, kMatrix},
    {"mlp", "mlp", kSmall, kSomeRows, kMatrix, kNormal},
    {"mlp", "mlp", kReal, kOneRow, kMatrix, kNormal},
    {"lm_head", "lm_head", kSmall, kRows, kMatrix},
    {"lm_head", "lm_head", kReal, kOneRow, kMatrix, kNormal},
    {"argmax", "lm_head.argmax", kSmall, kRows, kF32, kDecisions},
    {"argmax", "lm_head.argmax", kReal, kOneRow, kF32, kDecisions},
};

// ---- drawing

/// Numbers that depend on the seed and the names of the case and of the tensor alone.
class Source {
 public:
  Source(std::uint64_t seed, const OpCase& op_case) : seed_(seed), case_(op_case.name()), fill_(op_case.fill) {}

  Tensor normal(std::string_view tensor, Shape shape, DType dtype, double mean, double deviation) const {
    if (is_quantised(dtype))
      return quantise(normal(tensor, std::move(shape), DType::f32, mean, deviation).view(), dtype);
    Tensor t(dtype, std::move(shape));
    fill_normal(t.data(), dtype, t.size(), stream(tensor), static_cast<float>(mean), static_cast<float>(deviation));
    return t;
  }
  /// Activations, as the case fills them.
  Tensor activations(std::string_view tensor, Shape shape, double deviation = 1) const {
    double scale = deviation;
    if (fill_ == Fill::large) scale *= 1e4;
    if (fill_ == Fill::tiny) scale *= 1e-12;
    if (fill_ == Fill::zeros) scale = 0;
    if (fill_ == Fill::denormal) scale *= 1e-40;
    Tensor t = normal(tensor, std::move(shape), DType::f32, 0, 1);
    for (float& x : t.as<float>()) {
      x = static_cast<float>(x * scale);
      if (fill_ == Fill::bf16_tie) x = std::bit_cast<float>((std::bit_cast<std::uint32_t>(x) & 0xffff0000u) | 0x8000u);
    }
    return t;
  }
  /// W of y = x W^T: products keep the size of x.
  Tensor matrix(std::string_view tensor, Shape shape, DType dtype) const {
    const double width = static_cast<double>(shape.back());
    return normal(tensor, std::move(shape), dtype, 0, 1 / std::sqrt(width));
  }
  Tensor integers(std::string_view tensor, Shape shape, std::int64_t below) const {
    const std::uint64_t from = stream(tensor);
    Tensor t(DType::i64, std::move(shape));
    std::int64_t i = 0;
    for (std::int64_t& x : t.as<std::int64_t>())
      x = static_cast<std::int64_t>(random_bits(from, i++) % static_cast<std::uint64_t>(below));
    return t;
  }
  Fill fill() const { return fill_; }
  std::uint64_t stream(std::string_view tensor) const { return random_stream(seed_, concat(case_, ' ', tensor)); }

 private:
  std::uint64_t seed_;
  std::string case_;
  Fill fill_;
};

/// Makes logits [N,E] tie: of every row the upper half collapses onto few values, equal or one ulp apart.
void make_near_ties(Tensor& logits) {
  const std::int64_t E = logits.dim(1);
  auto values = logits.as<float>();
  for (std::int64_t n = 0; n < logits.dim(0); ++n) {
    const auto row = values.subspan(static_cast<std::size_t>(n * E), static_cast<std::size_t>(E));
    for (std::size_t e = 0; e < row.size(); ++e) {
      if (row[e] < 0) continue;
      row[e] = 0.75f;
      if (n % 2 == 1 && e % 3 == 0) row[e] = std::nextafter(0.75f, 1.0f);
    }
  }
}

Call draw_call(const OpCase& c, const Source& source) {
  Call call{
      .batch = c.batch, .tokens = c.tokens, .past = c.past, .total = c.past + c.tokens, .positions = {}, .mask = {}};
  const std::int64_t B = call.batch, S = call.tokens, T = call.total;
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t s = 0; s < S; ++s) call.positions.push_back(call.past + s + b);  // sequences differ
  call.max_position = *std::max_element(call.positions.begin(), call.positions.end());
  if (c.visibility == Visibility::padding) {
    call.mask_rank = 2;
    call.mask.assign(static_cast<std::size_t>(B * T), 1);
    for (std::int64_t t = 0; t < std::max<std::int64_t>(T / 3, 1); ++t) {
      call.mask[static_cast<std::size_t>(t)] = 0;
      if (B > 1) call.mask[static_cast<std::size_t>(B * T - 1 - t)] = 0;
    }
  }
  if (c.visibility == Visibility::rows) {
    call.mask_rank = 4;
    const Tensor drawn = source.integers("mask", {B * S * T}, 2);
    for (const std::int64_t bit : drawn.as<std::int64_t>()) call.mask.push_back(static_cast<std::uint8_t>(bit));
    std::fill_n(call.mask.begin(), T, std::uint8_t{0});
  }
  if (c.visibility == Visibility::open) {
    call.mask_rank = 4;
    call.mask.assign(static_cast<std::size_t>(B * S * T), 1);
  }
  return call;
}

/// Draws rows of a cache into the problem. Rows beyond T hold NaN: who reads them shows it.
void cached(const Source& source, OpProblem& p, std::string_view tensor, std::int64_t heads, std::int64_t dim,
            DType dtype, bool are_values = false) {
  constexpr std::int64_t kSpareRows = 3;
  const std::int64_t capacity = p.call.total + kSpareRows;
  Tensor t = source.activations(tensor, {p.call.batch, heads, capacity, dim});
  auto values = t.as<float>();
  for (std::int64_t i = 0; i < t.size(); ++i) {
    const std::int64_t row = i / dim % capacity, b = i / (heads * capacity * dim);
    float& x = values[static_cast<std::size_t>(i)];
    if (row >= p.call.total)
      x = std::numeric_limits<float>::quiet_NaN();
    else if (source.fill() == Fill::hidden && are_values &&
             !p.call.mask[static_cast<std::size_t>(b * p.call.total + row)])
      x *= 1e36f;
  }
  if (dtype != DType::i8) {
    p.in[std::string(tensor)] = dtype == DType::f32 ? std::move(t) : convert(t.view(), dtype);
    return;
  }
  Tensor rows(DType::s8, t.shape()), scales(DType::bf16, {p.call.batch, heads, capacity});
  for (std::int64_t r = 0; r < scales.size(); ++r)
    quantise_row(values.data() + r * dim, dim, rows.as<std::int8_t>().data() + r * dim, scales.as<bf16_t>().data() + r);
  p.in[std::string(tensor)] = std::move(rows);
  p.in[scales_of(tensor)] = std::move(scales);
}

/// [out, in] of a projection at `place`.
std::pair<std::int64_t, std::int64_t> projection_shape(std::string_view place, const Config& c) {
  const std::int64_t D = c.hidden_size, H = c.num_attention_heads, Q = c.q_lora_rank.value_or(0);
  if (place == "self_attn.q_proj") return {H * c.qk_head_dim(), D};
  if (place == "self_attn.q_a_proj") return {Q, D};
  if (place == "self_attn.q_b_proj") return {H * c.qk_head_dim(), Q};
  if (place == "self_attn.kv_a_proj_with_mqa") return {c.kv_lora_rank + c.qk_rope_head_dim, D};
  if (place == "self_attn.o_proj") return {D, H * c.value_head_dim()};
  if (place == "mlp.gate") return {*c.n_routed_experts, D};
  if (place == "lm_head") return {c.vocab_size, D};
  fail("place: expected a projection, found ", place);
}

bool has_bias(std::string_view place, const Config& c) {
  if (!c.attention_bias || !place.starts_with("self_attn.")) return false;
  return !c.use_mla || place.ends_with(".q_a_proj") || place.ends_with(".kv_a_proj_with_mqa") ||
         place.ends_with(".o_proj");
}

void draw_attention(const OpCase& c, const Source& source, OpProblem& p) {
  const Config& m = p.config;
  const std::int64_t N = p.rows(), H = m.num_attention_heads;
  const auto queries = [&](const char* tensor, std::int64_t dim) {
    p.in[tensor] = source.activations(tensor, {N, H, dim});
  };
  std::int64_t dv = m.value_head_dim();
  if (!m.use_mla) {
    queries("q1", m.head_dim());
    cached(source, p, "k1", m.num_key_value_heads, m.head_dim(), c.kv_dtype);
    cached(source, p, "v", m.num_key_value_heads, m.head_dim(), c.kv_dtype, true);
  } else {
    queries("q2", m.qk_rope_head_dim);
    cached(source, p, "k2", 1, m.qk_rope_head_dim, c.kv_dtype);
    if (c.form == MlaForm::absorbed) {
      queries("q1", m.kv_lora_rank);
      cached(source, p, "k1", 1, m.kv_lora_rank, c.kv_dtype, true);
      dv = m.kv_lora_rank;
    } else {  // keys and values of each head are made for the call, in f32
      queries("q1", m.qk_nope_head_dim);
      cached(source, p, "k1", H, m.qk_nope_head_dim, DType::f32);
      cached(source, p, "v", H, m.v_head_dim, DType::f32, true);
    }
  }
  p.out = {{.name = "y", .shape = {N, H, dv}}};
}

void draw_mlp(const OpCase& c, const Source& source, OpProblem& p, Shape up, Shape down) {
  p.in["x"] = source.activations("x", {p.rows(), p.config.hidden_size});
  p.in["gate_proj"] = source.matrix("gate_proj", up, c.stored);
  p.in["up_proj"] = source.matrix("up_proj", std::move(up), c.stored);
  p.in["down_proj"] = source.matrix("down_proj", std::move(down), c.stored);
  p.out = {{.name = "y", .shape = {p.rows(), p.config.hidden_size}}};
}

/// k different experts for each row, ascending.
Tensor draw_choice(const Source& source, std::int64_t rows, std::int64_t experts, std::int64_t k) {
  std::mt19937_64 engine(source.stream("topk_idx"));
  std::vector<std::int64_t> all(static_cast<std::size_t>(experts));
  for (std::size_t e = 0; e < all.size(); ++e) all[e] = static_cast<std::int64_t>(e);
  Tensor t(DType::i64, {rows, k});
  for (std::int64_t n = 0; n < rows; ++n) {
    std::shuffle(all.begin(), all.end(), engine);
    const auto row = t.as<std::int64_t>().subspan(static_cast<std::size_t>(n * k), static_cast<std::size_t>(k));
    std::copy_n(all.begin(), k, row.begin());
    std::sort(row.begin(), row.end());
  }
  return t;
}

Tensor draw_logits(const OpCase& c, const Source& source, Shape shape) {
  // Softmax of logits x 1e4 is one-hot: what saturates here is x 30. Weights are no decision: there e^x overflows.
  const double large = c.op == "gate_weight" ? 60 : 30;
  Tensor logits = source.activations("logits", std::move(shape), c.fill == Fill::large ? large / 1e4 : 1);
  if (c.op == "gate_weight" && c.fill == Fill::large)
    for (float& x : logits.as<float>()) x = std::fabs(x);  // e^-x of the others underflows, as it may
  if (c.fill == Fill::near_tie) make_near_ties(logits);
  return logits;
}

std::string size_name(const OpCase& c) { return concat("b", c.batch, "-s", c.tokens, "-p", c.past); }

}  // namespace

bool has_real_widths(const OpCase& c) { return c.model.starts_with("deepseek"); }

bool is_small(const OpCase& c) {
  constexpr std::int64_t kFewTokens = 33;
  return !has_real_widths(c) && c.tokens <= kFewTokens;
}

bool has_cache(const OpCase& c) { return c.op == "attention" || c.op == "kv_write"; }

std::string_view name(Fill f) {
  constexpr std::string_view kNames[] = {"normal",   "large",    "tiny",     "zeros",
                                         "near_tie", "denormal", "bf16_tie", "hidden"};
  return kNames[static_cast<std::size_t>(f)];
}

std::string_view name(Visibility v) {
  constexpr std::string_view kNames[] = {"causal", "padding", "rows", "open"};
  return kNames[static_cast<std::size_t>(v)];
}

std::string OpCase::name() const {
  std::string text = concat(op, "/", place, "/", model);
  if (form != MlaForm::automatic) text += concat("/", dsv2::name(form));
  text += concat("/", size_name(*this), "/", dsv2::name(dtype));
  if (stored != dtype) text += concat("-on-", dsv2::name(stored));
  if (has_cache(*this)) text += concat("/kv_", dsv2::name(kv_dtype));
  text += concat("/", harness::name(fill));
  if (visibility != Visibility::causal) text += concat("/", harness::name(visibility));
  return text;
}

std::vector<OpCase> op_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const OpCase& c) { cases.push_back(c); };
  for (const Family& f : kFamilies) {
    for (const std::string_view model : f.models)
      for (std::size_t s = 0; s < f.sizes.size(); ++s)
        for (const auto& [dtype, stored] : f.precisions)
          for (const DType kv_dtype : f.kv_dtypes)
            for (const Fill fill : s < 2 ? f.fills : f.fills.first(1))
              for (const Visibility v : {Visibility::causal, Visibility::padding, Visibility::rows, Visibility::open}) {
                const bool whole = fill == Fill::normal && f.sizes[s].tokens > 1;  // masks of every kind
                if (v != Visibility::causal && !(f.masked && (whole || fill == Fill::hidden))) continue;
                if (fill == Fill::hidden && v != Visibility::padding) continue;
                add({.op = f.op,
                     .place = f.place,
                     .model = model,
                     .batch = f.sizes[s].batch,
                     .tokens = f.sizes[s].tokens,
                     .past = f.sizes[s].past,
                     .dtype = dtype,
                     .stored = stored,
                     .kv_dtype = kv_dtype,
                     .fill = fill,
                     .visibility = v,
                     .form = f.form});
              }
  }
  return cases;
}

std::vector<std::string_view> op_names() {
  std::vector<std::string_view> names;
  for (const Family& f : kFamilies)
    if (std::find(names.begin(), names.end(), f.op) == names.end()) names.push_back(f.op);
  return names;
}

std::string known_ops() {
  std::string known;
  for (const std::string_view op : op_names()) known += (known.empty() ? "" : ", ") + std::string(op);
  return known;
}

void require_op(std::string_view op, std::string_view flag) {
  const auto names = op_names();
  DSV2_CHECK(std::find(names.begin(), names.end(), op) != names.end(), flag, ": expected one of ", known_ops(),
             ", found ", op);
}

Config op_model(std::string_view model) {
  for (const auto& row : kModels) {
    if (row.name != model) continue;
    Config c = row.make();
    c.num_hidden_layers = 1;
    return c;
  }
  fail("model of an op case: found ", model, ", which is not in the table");
}

OpProblem draw(const OpCase& c, std::uint64_t seed) {
  const Source source(seed, c);
  OpProblem p{.op = c.op, .config = op_model(c.model), .call = draw_call(c, source), .in = {}, .out = {}};
  Config& m = p.config;
  const std::int64_t N = p.rows(), D = m.hidden_size, H = m.num_attention_heads, R = m.kv_lora_rank;
  const std::int64_t E = m.n_routed_experts.value_or(0), k = m.num_experts_per_tok, F = m.moe_intermediate_size;
  m.validate(c.model);

  if (c.op == "embedding") {
    p.in["weight"] = source.normal("weight", {m.vocab_size, D}, c.stored, 0, 1);
    p.in["ids"] = source.integers("ids", {N}, m.vocab_size);
    p.out = {{.name = "y", .shape = {N, D}}};
  } else if (c.op == "rms_norm") {
    const bool latent = c.place == "self_attn.kv_a_layernorm";
    if (latent) m.rms_norm_eps = 1e-6;  // QUIRKS 1
    const std::int64_t width = latent ? R : D;
    p.in["x"] = source.activations("x", {N, width});
    p.in["weight"] = source.normal("weight", {width}, DType::f32, 1, 0.1);
    p.out = {{.name = "y", .shape = {N, width}}};
  } else if (c.op == "add") {
    p.in["x"] = source.activations("x", {N, D});
    p.in["y"] = source.activations("y", {N, D});
    p.out = {{.name = "x", .shape = {N, D}, .initial = "x"}};
  } else if (c.op == "linear" || c.op == "gate" || c.op == "lm_head") {
    const auto [out, in] = projection_shape(c.place, m);
    p.in["x"] = source.activations("x", {N, in});
    p.in["weight"] = source.matrix("weight", {out, in}, c.stored);
    if (has_bias(c.place, m)) p.in["bias"] = source.normal("bias", {out}, DType::f32, 0, 0.02);
    p.out = {{.name = "y", .shape = {N, out}}};
  } else if (c.op == "rope") {
    const std::int64_t key_heads = m.use_mla ? 1 : m.num_key_value_heads, r = m.rope_dim();
    p.in["q"] = source.activations("q", {N, H * m.qk_head_dim()});
    p.in["k"] = source.activations("k", {N, m.use_mla ? R + r : key_heads * r});
    p.out = {{.name = "q_rope", .shape = {N, H, r}}, {.name = "k_rope", .shape = {N, key_heads, r}}};
  } else if (c.op == "kv_write") {
    const auto parts = cache_parts(m);
    const char* names[][2] = {{"first", "cached_first"}, {"second", "cached_second"}};
    for (std::size_t i = 0; i < 2; ++i) {
      p.in[names[i][0]] = source.activations(names[i][0], {N, parts[i].heads * parts[i].dim});
      cached(source, p, names[i][1], parts[i].heads, parts[i].dim, c.kv_dtype);
      for (const std::string& array : {std::string(names[i][1]), scales_of(names[i][1])})
        if (p.has(array)) p.out.push_back({.name = array, .shape = p[array].shape(), .initial = array});
    }
  } else if (c.op == "attention") {
    draw_attention(c, source, p);
  } else if (c.op == "mla_absorb") {
    p.in["q"] = source.activations("q", {N, H * m.qk_head_dim()});
    p.in["attended"] = source.activations("attended", {N, H, R});
    p.in["weight"] = source.matrix("weight", {H * (m.qk_nope_head_dim + m.v_head_dim), R}, c.stored);
    p.out = {{.name = "q_latent", .shape = {N, H, R}}, {.name = "y", .shape = {N, H * m.v_head_dim}}};
  } else if (c.op == "gate_select" || c.op == "gate_weight") {
    p.in["logits"] = draw_logits(c, source, {N, E});
    // A bias that makes all values negative: a rejected group's 0 then wins (QUIRKS 7).
    const double mean = c.model == "noaux-tc-negative" ? -1.5 : 0;
    if (m.topk_method == TopkMethod::noaux_tc) p.in["bias"] = source.normal("bias", {E}, DType::f32, mean, 0.05);
    if (c.op == "gate_select") {
      p.out = {{.name = "topk_idx", .shape = {N, k}}};
    } else {
      p.in["topk_idx"] = draw_choice(source, N, E, k);
      p.out = {{.name = "topk_weight", .shape = {N, k}}};
    }
  } else if (c.op == "experts") {
    draw_mlp(c, source, p, {E, F, D}, {E, D, F});
    p.in["topk_idx"] = draw_choice(source, N, E, k);
    p.in["topk_weight"] = source.normal("topk_weight", {N, k}, DType::f32, 0.3, 0.1);
  } else if (c.op == "shared_experts") {
    draw_mlp(c, source, p, {m.shared_intermediate_size(), D}, {D, m.shared_intermediate_size()});
  } else if (c.op == "mlp") {
    draw_mlp(c, source, p, {m.intermediate_size, D}, {D, m.intermediate_size});
  } else if (c.op == "argmax") {
    p.in["logits"] = draw_logits(c, source, {c.batch, m.vocab_size});
    p.out = {{.name = "ids", .shape = {c.batch}}};
  } else {
    fail("op: expected one with cases, found ", c.op);
  }
  return p;
}

OpCost op_cost(const OpCase& c, const OpProblem& p) {
  const Config& m = p.config;
  std::optional<double> distinct;
  if (p.has("topk_idx") && c.op == "experts") {
    const auto ids = p["topk_idx"].as<std::int64_t>();
    distinct = static_cast<double>(std::set<std::int64_t>(ids.begin(), ids.end()).size());
  }
  Config priced = m;  // of the kind that has the place
  priced.first_k_dense_replace = c.place == "mlp" ? 1 : 0;
  priced.moe_layer_freq = 1;
  const Cost all = cost(priced, {.batch = c.batch,
                                 .tokens = c.tokens,
                                 .context = p.call.total,
                                 .dtype = c.stored,
                                 .kv_dtype = c.kv_dtype,
                                 .mla_form = m.use_mla && c.form == MlaForm::automatic ? MlaForm::absorbed : c.form,
                                 .causal = c.visibility != Visibility::rows && c.visibility != Visibility::open,
                                 .distinct_experts = distinct});
  for (const LayerCost& layer : all.layers)
    for (const OpCost& op : layer.ops)
      if (op.name == c.place && op.op == c.op) return op;
  OpCost own{.op = std::string(c.op), .name = std::string(c.place), .flops = 0, .bytes = {}};
  for (const auto& [_, tensor] : p.in) own.bytes.activations += static_cast<double>(tensor.view().bytes());
  for (const OpOutput& out : p.out) own.bytes.activations += 4.0 * static_cast<double>(element_count(out.shape));
  return own;
}

}  // namespace dsv2::harness
