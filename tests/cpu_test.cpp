// The CPU backend against the reference in double, on every instruction set that this machine runs, and what must hold
// of its results bit by bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "optimized/cpu/backend.h"
#include "optimized/cpu/kernels.h"
#include "optimized/cpu/packed_matrix.h"
#include "optimized/cpu/panel.h"
#include "reference/backend.h"
#include "tests/temporary_folder.h"

namespace dsv2::cpu {

void PrintTo(const IsaInfo& isa, std::ostream* out) { *out << isa.name; }

namespace {

using testing::message_of;

/// DSV2_TEST_SEED, or 1; printed with every failure.
std::uint64_t seed() {
  const char* text = std::getenv("DSV2_TEST_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 1;
}

/// Relative L2 error that f32 may reach: a rounding unit for each op on the way to the output (16 a layer), each a sum
/// of up to `width` terms whose roundings add up like a random walk.
double f32_bound(const Config& c) {
  const std::int64_t width = std::max({c.hidden_size, c.intermediate_size, c.kv_lora_rank});
  return unit_roundoff(DType::f32) * 16 * static_cast<double>(c.num_hidden_layers) *
         std::sqrt(static_cast<double>(width));
}

/// |a - b| / |b| over all elements; infinite when a shape or a number is wrong.
double relative_l2(const TensorView& a, const TensorView& b) {
  if (a.shape != b.shape) return INFINITY;
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < a.size(); ++i) {
    difference += (a.at(i) - b.at(i)) * (a.at(i) - b.at(i));
    norm += b.at(i) * b.at(i);
  }
  const double error = difference == 0 ? 0 : std::sqrt(difference / norm);
  return std::isnan(error) ? INFINITY : error;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.view().bytes())) == 0;
}

struct Named {
  std::string name;
  Config config;
};
void PrintTo(const Named& model, std::ostream* out) { *out << model.name; }

/// Every branch of the model, at widths that are no multiple of any vector.
std::vector<Named> models() {
  Config mha;
  mha.vocab_size = 101, mha.hidden_size = 36, mha.num_hidden_layers = 3;
  mha.num_attention_heads = mha.num_key_value_heads = 3;
  mha.intermediate_size = 50, mha.moe_intermediate_size = 13, mha.max_position_embeddings = 16;
  mha.use_mla = false;
  mha.n_routed_experts = 6, mha.n_shared_experts = 1, mha.num_experts_per_tok = 2, mha.first_k_dense_replace = 1;

  Config mla = mha;
  mla.use_mla = true;
  mla.q_lora_rank = 21, mla.kv_lora_rank = 19;
  mla.qk_nope_head_dim = 10, mla.qk_rope_head_dim = 6, mla.v_head_dim = 7;

  std::vector<Named> all = {{"mha", mha}, {"mla", mla}};
  const auto add = [&](std::string name, Config c, const std::function<void(Config&)>& change) {
    change(c);
    all.push_back({std::move(name), c});
  };
  add("mha_gqa_bias_gelu", mha, [](Config& c) {
    c.hidden_size = 40, c.num_attention_heads = 4, c.num_key_value_heads = 2;
    c.attention_bias = true, c.hidden_act = Activation::gelu, c.rms_norm_eps = 1e-3;
  });
  add("mha_linear_tied", mha, [](Config& c) {
    c.rope_scaling = {.type = RopeType::linear, .factor = 3};
    c.tie_word_embeddings = true, c.n_shared_experts.reset();
  });
  add("mha_dynamic_dense", mha, [](Config& c) {
    c.rope_scaling = {.type = RopeType::dynamic, .factor = 2};
    c.n_routed_experts.reset(), c.hidden_act = Activation::relu;
  });
  add("mha_yarn_top1", mha, [](Config& c) {
    c.rope_scaling = {.type = RopeType::yarn, .factor = 4};
    c.num_experts_per_tok = 1, c.norm_topk_prob = true;
  });
  add("mla_bias_yarn_groups", mla, [](Config& c) {
    c.rope_scaling = {.type = RopeType::yarn,
                      .factor = 4,
                      .original_max_position_embeddings = 8,
                      .mscale = 0.7,
                      .mscale_all_dim = 1.1};
    c.attention_bias = true, c.topk_method = TopkMethod::group_limited_greedy;
    c.n_group = 3, c.topk_group = 2, c.routed_scaling_factor = 2.5;
  });
  add("mla_no_qlora_noaux", mla, [](Config& c) {
    c.q_lora_rank.reset(), c.rope_scaling = {.type = RopeType::dynamic, .factor = 2};
    c.topk_method = TopkMethod::noaux_tc, c.scoring_func = ScoringFunc::sigmoid, c.norm_topk_prob = true;
    c.n_group = 3, c.topk_group = 1, c.num_experts_per_tok = 2, c.moe_layer_freq = 2, c.first_k_dense_replace = 0;
  });
  add("mla_linear_gelu_tanh", mla, [](Config& c) {
    c.rope_scaling = {.type = RopeType::linear, .factor = 3, .mscale_all_dim = 0.5};
    c.hidden_act = Activation::gelu_tanh, c.scoring_func = ScoringFunc::sigmoid;
  });
  add("mla_more_chosen_than_kept", mla, [](Config& c) {  // experts of rejected groups fill in, with weight 0
    c.topk_method = TopkMethod::group_limited_greedy;
    c.n_group = 3, c.topk_group = 1, c.num_experts_per_tok = 3;
  });
  const auto wide = [](Config& c) {  // whole vectors and several of them, tails behind them
    c.hidden_size = 272, c.num_attention_heads = 2, c.num_key_value_heads = 1, c.num_hidden_layers = 2;
    c.intermediate_size = 330, c.moe_intermediate_size = 97, c.kv_lora_rank = 152, c.qk_nope_head_dim = 40;
    c.qk_rope_head_dim = 34, c.v_head_dim = 71;
  };
  add("mha_wide", mha, wide);
  add("mla_wide", mla, wide);
  for (const Named& model : all) model.config.validate(model.name);
  return all;
}

/// A call's inputs with the memory that they look into.
struct Inputs {
  Tensor ids, mask, positions;
  ForwardInput input;
};

/// Records what it is shown, and lets `change` overwrite it first.
class Sink final : public TapSink {
 public:
  using Change = std::function<void(const std::string&, const TensorView&, void*)>;
  explicit Sink(Change change = {}) : change_(std::move(change)) {}
  void tap(std::string_view name, const TensorView& view, void* data) override {
    if (change_) change_(std::string(name), view, data);
    Tensor t(view.dtype, view.shape);
    std::memcpy(t.data(), view.data, static_cast<std::size_t>(view.bytes()));
    seen[std::string(name)] = std::move(t);
  }
  std::map<std::string, Tensor> seen;

 private:
  Change change_;
};

/// Puts the recorded choice of experts in place of the decoder's own: a tie decided otherwise is not an error.
Sink::Change choose_as(const Sink& other) {
  return [&other](const std::string& name, const TensorView& view, void* data) {
    if (view.dtype == DType::i64) std::memcpy(data, other.seen.at(name).data(), static_cast<std::size_t>(view.bytes()));
  };
}

class Cpu : public ::testing::TestWithParam<std::tuple<IsaInfo, Named>> {
 protected:
  Cpu() : trace_(__FILE__, __LINE__, concat("DSV2_TEST_SEED=", seed())), rng_(seed()) {}
  void SetUp() override {
    const auto& [isa, model] = GetParam();
    if (!isa.runs_here) GTEST_SKIP() << "this machine lacks " << isa.name;
    options.isa = isa.name;
    options.threads = 1;  // more in the test that compares them: idle threads spin, to the cost of other tests
    config = model.config;
    weights = Weights::random(config, seed(), DType::f32);
  }
  std::unique_ptr<Decoder> make() const { return backend().create(config, weights, options); }
  std::unique_ptr<Decoder> make_reference() const { return reference::backend().create(config, weights, {}); }

  Tensor draw(Shape shape, std::int64_t below) {
    Tensor t(DType::i64, std::move(shape));
    for (auto& x : t.as<std::int64_t>()) x = std::uniform_int_distribution<std::int64_t>(0, below - 1)(rng_);
    return t;
  }
  Inputs inputs(std::int64_t batch, std::int64_t tokens) {
    Inputs in;
    in.ids = draw({batch, tokens}, config.vocab_size);
    in.input.input_ids = in.ids.view();
    in.input.logits = Logits::all;
    in.input.hidden_states = in.input.attentions = true;
    return in;
  }
  /// Runs a call on both decoders and compares every output and every intermediate that both report. Caches as given.
  void expect_match(Decoder& ours, Decoder& theirs, ForwardInput in, double bound, KvCache* cache = nullptr,
                    KvCache* reference_cache = nullptr) {
    Sink expected;
    in.taps = &expected, in.cache = reference_cache;
    const ForwardOutput b = theirs.forward(in);
    Sink found(choose_as(expected));
    in.taps = &found, in.cache = cache;
    const ForwardOutput a = ours.forward(in);
    EXPECT_LE(relative_l2(a.logits.view(), b.logits.view()), bound) << "logits";
    EXPECT_LE(relative_l2(a.last_hidden_state.view(), b.last_hidden_state.view()), bound) << "last_hidden_state";
    EXPECT_EQ(a.loss.has_value(), b.loss.has_value());
    if (a.loss) {
      EXPECT_NEAR(*a.loss, *b.loss, bound * *b.loss);
    }
    ASSERT_EQ(a.hidden_states.size(), b.hidden_states.size());
    for (std::size_t i = 0; i < a.hidden_states.size(); ++i)
      EXPECT_LE(relative_l2(a.hidden_states[i].view(), b.hidden_states[i].view()), bound) << "hidden_states " << i;
    ASSERT_EQ(a.attentions.size(), b.attentions.size());
    for (std::size_t i = 0; i < a.attentions.size(); ++i)
      EXPECT_LE(relative_l2(a.attentions[i].view(), b.attentions[i].view()), bound) << "attentions " << i;
    for (const auto& [name, tensor] : found.seen) {
      ASSERT_TRUE(expected.seen.contains(name)) << name;
      EXPECT_LE(relative_l2(tensor.view(), expected.seen.at(name).view()), bound) << name;
    }
  }

  Config config;
  std::shared_ptr<const Weights> weights;
  Options options;

 private:
  ::testing::ScopedTrace trace_;
  std::mt19937_64 rng_;
};

INSTANTIATE_TEST_SUITE_P(Isas, Cpu, ::testing::Combine(::testing::ValuesIn(isas()), ::testing::ValuesIn(models())),
                         [](const auto& param_info) {
                           return std::string(std::get<0>(param_info.param).name) + "_" +
                                  std::get<1>(param_info.param).name;
                         });

TEST_P(Cpu, MatchesTheReference) {
  for (const MlaForm form : {MlaForm::automatic, MlaForm::absorbed, MlaForm::expanded}) {
    if (form != MlaForm::automatic && !config.use_mla) continue;
    options.mla_form = form;
    const auto ours = make(), theirs = make_reference();
    for (const std::int64_t batch : {1, 3}) {
      const auto cache = ours->make_cache(batch, 0), reference_cache = theirs->make_cache(batch, 0);
      for (const std::int64_t tokens : {33, 2, 1}) {
        SCOPED_TRACE(concat(name(form), ", batch ", batch, ", ", tokens, " tokens after ", cache->length()));
        const Inputs in = inputs(batch, tokens);
        expect_match(*ours, *theirs, in.input, f32_bound(config));
        expect_match(*ours, *theirs, in.input, f32_bound(config), cache.get(), reference_cache.get());
      }
      const LegacyCache a = cache->to_legacy(), b = reference_cache->to_legacy();
      for (std::size_t i = 0; i < a.size(); ++i) {
        EXPECT_LE(relative_l2(a[i].first.view(), b[i].first.view()), f32_bound(config)) << "cache of layer " << i;
        EXPECT_LE(relative_l2(a[i].second.view(), b[i].second.view()), f32_bound(config)) << "cache of layer " << i;
      }
    }
  }
}

TEST_P(Cpu, MatchesTheReferenceUnderMasks) {
  for (const MlaForm form : {MlaForm::absorbed, MlaForm::expanded}) {
    options.mla_form = form;
    const auto ours = make(), theirs = make_reference();
    const std::int64_t past = 3, S = 70, T = past + S;  // more than one block of keys
    const auto cache = ours->make_cache(3, T), reference_cache = theirs->make_cache(3, T);
    expect_match(*ours, *theirs, inputs(3, past).input, f32_bound(config), cache.get(), reference_cache.get());

    Inputs in = inputs(3, S);
    in.mask = Tensor(DType::i64, {3, T});
    in.positions = Tensor(DType::i64, {3, S});
    for (std::int64_t t = 0; t < T; ++t) {
      in.mask.as<std::int64_t>()[static_cast<std::size_t>(t)] = t >= 9;              // left padding beyond the past
      in.mask.as<std::int64_t>()[static_cast<std::size_t>(T + t)] = t < T - 5;       // right padding
      in.mask.as<std::int64_t>()[static_cast<std::size_t>(2 * T + t)] = t % 7 != 2;  // holes
    }
    for (std::int64_t i = 0; i < 3 * S; ++i) in.positions.as<std::int64_t>()[static_cast<std::size_t>(i)] = i % 41;
    in.input.attention_mask = in.mask.view();
    in.input.position_ids = in.positions.view();
    expect_match(*ours, *theirs, in.input, f32_bound(config), cache->clone().get(), reference_cache->clone().get());

    in.mask = draw({3, 1, S, T}, 2);
    for (std::int64_t t = 0; t < T; ++t) in.mask.as<std::int64_t>()[static_cast<std::size_t>(4 * T + t)] = 0;
    in.input.attention_mask = in.mask.view();
    expect_match(*ours, *theirs, in.input, f32_bound(config), cache.get(), reference_cache.get());
    if (!config.use_mla) break;
  }
}

TEST_P(Cpu, MatchesTheReferenceOnBf16Weights) {
  weights = Weights::random(config, seed(), DType::bf16);
  const auto theirs = make_reference();
  const Inputs prompt = inputs(2, 33), next = inputs(2, 1);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    options.dtype = options.kv_dtype = dtype;
    // bf16 rounds the rows that meet a matrix, and the cache: 2.5 % is what the gate allows.
    const double bound = dtype == DType::f32 ? f32_bound(config) : 0.025;
    const auto ours = make();
    const auto cache = ours->make_cache(2, 0), reference_cache = theirs->make_cache(2, 0);
    for (const Inputs* in : {&prompt, &next})
      expect_match(*ours, *theirs, in->input, bound, cache.get(), reference_cache.get());
  }
}

TEST_P(Cpu, EachOpMatchesTheReferenceWithAnInt8Cache) {
  constexpr double kBound = 2 * 0x1p-7;  // of attention; DerivedBound in harness/compare.h says why
  options.kv_dtype = DType::i8;
  for (const MlaForm form : {MlaForm::absorbed, MlaForm::expanded}) {
    options.mla_form = form;
    const auto ours = make(), theirs = make_reference();
    const auto cache = ours->make_cache(2, 0);
    for (const std::int64_t tokens : {33, 2, 1}) {
      SCOPED_TRACE(concat(name(form), ", ", tokens, " tokens after ", cache->length()));
      const auto same = cache->length() > 0 ? theirs->make_cache(cache->to_legacy()) : theirs->make_cache(2, tokens);
      Inputs in = inputs(2, tokens);
      Sink expected;
      in.input.taps = &expected, in.input.cache = same.get();
      theirs->forward(in.input);
      int compared = 0;
      Sink found([&](const std::string& name, const TensorView& view, void* data) {
        const TensorView right = expected.seen.at(name).view();
        if (view.dtype == DType::i64) {
          std::memcpy(data, right.data, static_cast<std::size_t>(view.bytes()));
          return;
        }
        const double bound = name.ends_with(".attn_output") ? kBound : f32_bound(config);
        EXPECT_LE(relative_l2(view, right), bound) << name;
        widen_into(right, static_cast<float*>(data));
        ++compared;
      });
      in.input.taps = &found, in.input.cache = cache.get();
      ours->forward(in.input);
      EXPECT_GT(compared, 10 * config.num_hidden_layers);
    }
    EXPECT_EQ(cache->bytes(), 2 * cache->capacity() * kv_bytes_per_token(config, DType::i8));
    if (!config.use_mla) break;
  }
}

TEST_P(Cpu, NeitherThreadsNorTapsNorRepetitionChangeABit) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    weights = Weights::random(config, seed(), dtype);
    options.dtype = options.kv_dtype = dtype;
    const Inputs in = inputs(3, 35), next = inputs(3, 1);
    std::vector<ForwardOutput> outputs;
    for (const int threads : {1, 2, 3, 2}) {
      options.threads = threads;
      const auto decoder = make();
      for (int repetition = 0; repetition < 2; ++repetition) {
        Sink sink;
        ForwardInput first = in.input, second = next.input;
        const auto cache = decoder->make_cache(3, 0);
        first.cache = second.cache = cache.get();
        if (repetition == 1) first.taps = second.taps = &sink;
        if (threads == 3) first.attentions = second.attentions = false;
        outputs.push_back(decoder->forward(first));
        outputs.push_back(decoder->forward(second));
      }
    }
    for (std::size_t i = 2; i < outputs.size(); ++i)
      EXPECT_TRUE(same_bits(outputs[i].logits, outputs[i % 2].logits)) << name(dtype) << ", run " << i / 2;
  }
}

TEST_P(Cpu, ARowAloneEqualsTheRowInABatch) {
  if (config.rope_scaling.type == RopeType::dynamic) GTEST_SKIP() << "the base follows the length of each call";
  options.mla_form = MlaForm::absorbed;
  const auto decoder = make();
  const std::int64_t S = 37, V = config.vocab_size;
  const Inputs batch = inputs(3, S);
  const ForwardOutput together = decoder->forward(batch.input);
  for (std::int64_t b = 0; b < 3; ++b) {
    const auto ids = batch.ids.as<std::int64_t>().subspan(static_cast<std::size_t>(b * S), S);
    const Tensor row = Tensor::from<std::int64_t>(ids, {1, S});
    const auto cache = decoder->make_cache(1, S);
    for (std::int64_t s = 0; s < S; s += s == 0 ? 30 : 1) {  // a prompt of 30, then token by token
      const std::int64_t tokens = s == 0 ? 30 : 1;
      ForwardInput in;
      in.input_ids = TensorView{DType::i64, {1, tokens}, row.as<std::int64_t>().data() + s};
      in.logits = Logits::all, in.cache = cache.get();
      const ForwardOutput alone = decoder->forward(in);
      EXPECT_EQ(std::memcmp(alone.logits.data(), together.logits.as<float>().data() + (b * S + s) * V,
                            static_cast<std::size_t>(tokens * V) * sizeof(float)),
                0)
          << "row " << b << " at " << s;
    }
  }
}

TEST_P(Cpu, LastLogitsAreThoseOfTheLastPosition) {
  const auto decoder = make();
  Inputs in = inputs(2, 5);
  const Tensor all = decoder->forward(in.input).logits;
  in.input.logits = Logits::last;
  const Tensor last = decoder->forward(in.input).logits;
  ASSERT_EQ(last.shape(), (Shape{2, 1, config.vocab_size}));
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t v = 0; v < config.vocab_size; ++v)
      ASSERT_EQ(last.at(b * config.vocab_size + v), all.at((b * 5 + 4) * config.vocab_size + v));
  in.input.logits = Logits::none;
  EXPECT_FALSE(decoder->forward(in.input).logits);
}

TEST_P(Cpu, OverwrittenTapsTakeEffect) {
  const auto ours = make(), theirs = make_reference();
  Inputs in = inputs(2, 4);
  in.input.hidden_states = in.input.attentions = false;
  Sink names;
  in.input.taps = &names;
  const Tensor plain = ours->forward(in.input).logits;
  for (const auto& [changed, tensor] : names.seen) {
    if (tensor.dtype() == DType::i64) continue;  // what choose_as() changes, everywhere else
    const auto scale = [&changed = changed](const std::string& name, const TensorView& view, void* data) {
      if (name != changed) return;
      for (std::int64_t i = 0; i < view.size(); ++i)
        view.dtype == DType::f32 ? static_cast<float*>(data)[i] *= -1.5f : static_cast<double*>(data)[i] *= -1.5;
    };
    Sink expected(scale);
    in.input.taps = &expected;
    const Tensor b = theirs->forward(in.input).logits;
    const auto choose = choose_as(expected);
    Sink found([&](const std::string& name, const TensorView& view, void* data) {
      scale(name, view, data);
      choose(name, view, data);
    });
    in.input.taps = &found;
    const Tensor a = ours->forward(in.input).logits;
    EXPECT_LE(relative_l2(a.view(), b.view()), 2 * f32_bound(config)) << changed;
    if (!changed.ends_with("gate.logits")) {
      EXPECT_FALSE(same_bits(a, plain)) << changed;
    }
  }
}

TEST_P(Cpu, ReportsWhatEveryBackendMust) {
  Sink sink;
  Inputs in = inputs(2, 3);
  in.input.taps = &sink;
  make()->forward(in.input);
  std::set<std::string> required = {"embed_tokens", "norm", "lm_head"};
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    required.insert(concat("layers.", i));
    if (!config.is_moe_layer(i)) continue;
    for (const auto* tap : {"logits", "topk_idx", "topk_weight"})
      required.insert(concat("layers.", i, ".mlp.gate.", tap));
  }
  for (const std::string& tap : required) EXPECT_TRUE(sink.seen.contains(tap)) << tap;
}

TEST_P(Cpu, LegacyCachesGoInAndComeOut) {
  const auto decoder = make();
  Inputs prompt = inputs(2, 6), next = inputs(2, 2);
  prompt.input.use_cache = true;
  const ForwardOutput first = decoder->forward(prompt.input);
  ASSERT_TRUE(first.past_key_values);
  next.input.past_key_values = &*first.past_key_values;
  next.input.use_cache = true;
  const ForwardOutput through_tuple = decoder->forward(next.input);
  ASSERT_TRUE(through_tuple.past_key_values);
  EXPECT_EQ(through_tuple.past_key_values->front().first.dim(2), 8);
  EXPECT_EQ(first.past_key_values->front().first.dim(2), 6) << "a tuple is read, not changed";

  const auto cache = decoder->make_cache(*first.past_key_values);
  next.input.past_key_values = nullptr;
  next.input.cache = cache.get();
  const ForwardOutput through_cache = decoder->forward(next.input);
  EXPECT_FALSE(through_cache.past_key_values) << "the cache itself comes back";
  EXPECT_TRUE(same_bits(through_cache.logits, through_tuple.logits));
}

TEST_P(Cpu, ReadsF16AndMixedAndUnalignedWeights) {
  const auto drawn = Weights::random(config, seed(), DType::bf16);
  const auto mixed = std::make_shared<Weights>();
  std::vector<Tensor> storage;
  mixed->layers = drawn->layers;
  for_each_tensor(config, *mixed, [](const std::string&, const Shape&, TensorView&) {});
  std::map<std::string, TensorView> from;
  for_each_tensor(config, *drawn, [&](const std::string& name, const Shape&, const TensorView& v) { from[name] = v; });
  int turn = 0;
  for_each_tensor(config, *mixed, [&](const std::string& name, const Shape&, TensorView& v) {
    const DType dtypes[] = {DType::f16, DType::bf16, DType::f32};
    const Tensor t = convert(from.at(name), dtypes[turn++ % 3]);
    const std::int64_t element = bits(t.dtype()) / 8;
    Tensor& shifted = storage.emplace_back(DType::s8, Shape{t.view().bytes() + element});
    auto* data = static_cast<char*>(shifted.data()) + element;  // aligned to the element and no more
    std::memcpy(data, t.data(), static_cast<std::size_t>(t.view().bytes()));
    v = {t.dtype(), t.shape(), data};
  });
  if (config.tie_word_embeddings) mixed->lm_head = mixed->embed_tokens;
  weights = mixed;
  const auto ours = make(), theirs = make_reference();
  EXPECT_GT(ours->workspace_bytes(), 0) << "copies of f16 are the decoder's own";
  expect_match(*ours, *theirs, inputs(2, 5).input, f32_bound(config));
}

TEST_P(Cpu, TellsWhatItsBuffersTake) {
  for (const MlaForm form : {MlaForm::absorbed, MlaForm::expanded})
    for (const DType dtype : {DType::f32, DType::i8}) {
      options.dtype = options.kv_dtype = dtype;
      options.mla_form = form;
      const auto decoder = cpu::backend().create(config, Weights::rounded(weights, config, dtype), options);
      const std::int64_t weights_alone = decoder->workspace_bytes();
      for (const std::int64_t tokens : {33, 70}) {
        decoder->forward(inputs(2, tokens).input);
        const std::int64_t told = cpu::backend().buffer_bytes(config, options, 2, tokens, tokens);
        EXPECT_GE(told, decoder->workspace_bytes() - weights_alone) << name(dtype) << ", " << tokens << " tokens";
        EXPECT_LE(told, 2 * (decoder->workspace_bytes() - weights_alone)) << name(dtype) << ", " << tokens << " tokens";
      }
    }
}

TEST_P(Cpu, ClassifiesPooledPositions) {
  config.head = Head::sequence_classification, config.num_labels = 5, config.pad_token_id = 2;
  config.tie_word_embeddings = false;
  weights = Weights::random(config, seed(), DType::f32);
  const auto ours = make(), theirs = make_reference();
  Inputs in = inputs(3, 6);
  in.ids.as<std::int64_t>()[9] = 2;
  const Tensor labels = draw({3}, 5);
  in.input.labels = labels.view();
  expect_match(*ours, *theirs, in.input, f32_bound(config));
}

TEST_P(Cpu, LossAndEmbeddedInputs) {
  const auto ours = make(), theirs = make_reference();
  Inputs in = inputs(2, 9);
  const Tensor labels = draw({2, 9}, config.vocab_size);
  in.input.labels = labels.view();
  expect_match(*ours, *theirs, in.input, f32_bound(config));

  Tensor embeds(DType::f32, {2, 9, config.hidden_size});
  for (auto& x : embeds.as<float>()) x = std::sin(static_cast<float>(&x - embeds.as<float>().data()));
  in.input.input_ids.reset();
  in.input.inputs_embeds = embeds.view();
  expect_match(*ours, *theirs, in.input, f32_bound(config));
}

TEST(CpuBackend, NamesWhatItLacks) {
  const Config config = Config::preset("tiny-mha");
  const auto weights = Weights::random(config, 1, DType::f32);
  const auto error = [&](const std::function<void(Options&)>& change) {
    Options options;
    change(options);
    return message_of<Error>([&] { backend().create(config, weights, options); });
  };
  EXPECT_EQ(error([](Options& o) { o.dtype = DType::f16; }), "cpu: dtype: expected f32, bf16, int8 or int4, found f16");
  EXPECT_EQ(error([](Options& o) { o.kv_dtype = DType::i8; }), "");
  EXPECT_EQ(error([](Options& o) { o.kv_dtype = DType::i4; }), "cpu: kv_dtype: expected f32, bf16 or int8, found int4");
  EXPECT_EQ(error([](Options& o) { o.threads = -1; }), "threads: expected 0 or more, found -1");
  const std::string isa = error([](Options& o) { o.isa = "avx9"; });
  EXPECT_TRUE(isa.starts_with("isa: expected one that this machine runs (portable")) << isa;
  EXPECT_TRUE(isa.ends_with("), found avx9")) << isa;
  for (const IsaInfo& info : isas()) EXPECT_EQ(error([&](Options& o) { o.isa = info.name; }).empty(), info.runs_here);
}

TEST(CpuBackend, RefusesForeignCaches) {
  const Config config = Config::preset("tiny-mha");
  const auto decoder = backend().create(config, Weights::random(config, 1, DType::f32), {});
  const Tensor ids(DType::i64, {1, 2});
  HostKvCache wide(config, 1, 4, DType::f64), other(Config::preset("tiny-mla"), 1, 4, DType::f32);
  for (HostKvCache* cache : {&wide, &other}) {
    ForwardInput in;
    in.input_ids = ids.view(), in.cache = cache;
    EXPECT_TRUE(message_of<Error>([&] { decoder->forward(in); }).starts_with("cache: expected"));
    EXPECT_EQ(cache->length(), 0);
  }
}

TEST(CpuBackend, ThrowingSinksLeaveTheCacheAlone) {
  const Config config = Config::preset("tiny-mla");
  const auto decoder = backend().create(config, Weights::random(config, 1, DType::f32), {});
  const auto cache = decoder->make_cache(1, 4);
  const Tensor ids(DType::i64, {1, 2});
  Sink sink([](const std::string& name, const TensorView& view, void* data) {
    if (name.ends_with("topk_idx")) std::fill_n(static_cast<std::int64_t*>(data), view.size(), -1);
  });
  ForwardInput in;
  in.input_ids = ids.view(), in.cache = cache.get(), in.taps = &sink;
  EXPECT_NE(message_of<Error>([&] { decoder->forward(in); }), "");
  EXPECT_EQ(cache->length(), 0);
}

class CpuOps : public ::testing::TestWithParam<IsaInfo> {
 protected:
  void SetUp() override {
    if (!GetParam().runs_here) GTEST_SKIP() << "this machine lacks " << GetParam().name;
  }
  const Kernels& kernels() const { return *find_isa(GetParam().name).kernels; }
};
INSTANTIATE_TEST_SUITE_P(Isas, CpuOps, ::testing::ValuesIn(isas()),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

/// simd.h's exp through silu, whose error it dominates: 4 roundings of f32 beside the exponential's own.
TEST_P(CpuOps, SiluIsAccurate) {
  const std::int64_t count = 200'000;
  std::vector<float> gate(count), up(count, 1.0f), act(static_cast<std::size_t>(packed_width(count)));
  std::vector<float> one(kPackedMultiple);
  one[0] = 1;
  for (std::int64_t i = 0; i < count; ++i) gate[static_cast<std::size_t>(i)] = -86.0f + 172.0f * i / count;
  const ExpertSegment segment{.gate_proj = gate.data(),
                              .up_proj = up.data(),
                              .down_proj = nullptr,
                              .width = count,
                              .rows = 1,
                              .tokens = nullptr,
                              .weight = nullptr,
                              .act = act.data()};
  kernels().experts_act({.segments = &segment,
                         .segment_count = 1,
                         .up_arithmetic = Arithmetic::f32,
                         .down_arithmetic = Arithmetic::f32,
                         .activation = Activation::silu,
                         .hidden = 1,
                         .tokens = 1,
                         .x = one.data(),
                         .y = nullptr},
                        {0, count});
  double worst = 0;
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double x = gate[i], expected = x / (1 + std::exp(-x));
    const double error = expected == 0 ? std::abs(act[i]) : std::abs(act[i] - expected) / std::abs(expected);
    worst = std::max(worst, std::isnan(error) ? INFINITY : error);
  }
  EXPECT_LE(worst, 4 * unit_roundoff(DType::f32) * 2);
}

/// However a matrix op is split, and whatever lies around its output.
TEST_P(CpuOps, LinearWritesItsItemsAndNothingElse) {
  const std::int64_t guard = 16;
  for (const auto& [N, K, O] :
       {std::tuple{1, 1, 1}, {2, 31, 5}, {3, 33, 33}, {7, 257, 170}, {33, 64, 9}, {13, 1027, 65}}) {
    const std::int64_t padded = packed_width(K);
    std::vector<float> x(static_cast<std::size_t>(N * padded)), weight(static_cast<std::size_t>(O * K));
    std::mt19937_64 rng(seed());
    std::normal_distribution<float> normal;
    for (std::int64_t n = 0; n < N; ++n)
      for (std::int64_t k = 0; k < K; ++k) x[static_cast<std::size_t>(n * padded + k)] = normal(rng);
    for (float& w : weight) w = normal(rng);
    Tensor panels(DType::s8, {packed_matrix_bytes(Arithmetic::f32, O, K)});
    pack_matrix({DType::f32, {O, K}, weight.data()}, Arithmetic::f32, static_cast<std::byte*>(panels.data()));
    std::vector<float> results[2];
    for (const bool split : {false, true}) {
      std::vector<float>& y = results[split];
      y.assign(static_cast<std::size_t>(N * O + 2 * guard), -77.0f);
      const LinearSegment segment{.x = x.data(),
                                  .weight = panels.data(),
                                  .bias = nullptr,
                                  .y = y.data() + guard,
                                  .y_stride = O,
                                  .out_width = O};
      const std::int64_t step = split ? kItem : padded_to_item(O);
      for (std::int64_t o = 0; o < O; o += step)
        kernels().linear({.arithmetic = Arithmetic::f32,
                          .rows = N,
                          .width = K,
                          .x_stride = padded * 4,
                          .segments = &segment,
                          .segment_count = 1},
                         {o, o + step});
      for (std::int64_t i = 0; i < guard; ++i) {
        EXPECT_EQ(y[static_cast<std::size_t>(i)], -77.0f);
        EXPECT_EQ(y[y.size() - 1 - static_cast<std::size_t>(i)], -77.0f);
      }
    }
    EXPECT_EQ(results[0], results[1]) << N << " x " << K << " x " << O;
    for (std::int64_t n = 0; n < N; ++n) {
      for (std::int64_t o = 0; o < O; ++o) {
        double sum = 0, size = 0;
        for (std::int64_t k = 0; k < K; ++k) {
          const double term = static_cast<double>(x[static_cast<std::size_t>(n * padded + k)]) *
                              static_cast<double>(weight[static_cast<std::size_t>(o * K + k)]);
          sum += term, size += std::abs(term);
        }
        EXPECT_LE(std::abs(results[0][static_cast<std::size_t>(guard + n * O + o)] - sum),
                  unit_roundoff(DType::f32) * static_cast<double>(K) * size);
      }
    }
  }
}

}  // namespace
}  // namespace dsv2::cpu
