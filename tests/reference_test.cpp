// Formulas of the reference on numbers worked out by hand, and what must hold of it whatever the numbers are. That it
// matches the original's own numbers is the business of `dsv2 check`.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "reference/attention.h"
#include "reference/backend.h"
#include "reference/gate.h"
#include "reference/linear.h"
#include "reference/moe.h"
#include "reference/norm.h"
#include "reference/rope.h"
#include "tests/temporary_folder.h"

namespace dsv2::reference {
namespace {

using testing::message_of;
using Ids = std::vector<std::int64_t>;
using MatrixD = Matrix<double>;

/// Another order of the same sums in double; values are of order 1 to 100.
constexpr double kSameSums = 1e-11;

/// DSV2_TEST_SEED, or 1; printed with every failure.
std::uint64_t seed() {
  const char* text = std::getenv("DSV2_TEST_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 1;
}

Tensor ids_tensor(const Ids& values, Shape shape) { return Tensor::from<std::int64_t>(values, std::move(shape)); }

Tensor vector_tensor(const std::vector<double>& values) {
  return Tensor::from<double>(values, {static_cast<std::int64_t>(values.size())});
}

/// Largest absolute difference; infinite where either is not a number. Shapes must agree.
double difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  if (a.shape() != b.shape()) return INFINITY;
  double worst = 0;
  for (std::int64_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(a.at(i) - b.at(i));
    if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
  }
  return worst;
}

double difference(const LegacyCache& a, const LegacyCache& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    worst = std::max({worst, difference(a[i].first, b[i].first), difference(a[i].second, b[i].second)});
  return worst;
}

/// Positions from..to-1 of dimension `axis`.
Tensor slice(const Tensor& t, std::size_t axis, std::int64_t from, std::int64_t to) {
  Shape shape = t.shape();
  shape[axis] = to - from;
  Tensor out(t.dtype(), shape);
  std::int64_t outer = 1, inner = 1;
  for (std::size_t i = 0; i < axis; ++i) outer *= shape[i];
  for (std::size_t i = axis + 1; i < shape.size(); ++i) inner *= shape[i];
  const std::int64_t bytes = bits(t.dtype()) / 8 * inner;
  for (std::int64_t o = 0; o < outer; ++o)
    std::memcpy(static_cast<char*>(out.data()) + o * (to - from) * bytes,
                static_cast<const char*>(t.data()) + (o * t.shape()[axis] + from) * bytes,
                static_cast<std::size_t>((to - from) * bytes));
  return out;
}

Options accumulating_in(DType dtype) {
  Options options;
  options.accumulate = dtype;
  return options;
}
Options in_form(MlaForm form) {
  Options options;
  options.mla_form = form;
  return options;
}

/// Hands every intermediate to a function.
struct Sink final : TapSink {
  using Function = std::function<void(const std::string&, const TensorView&, void*)>;
  explicit Sink(Function f) : function(std::move(f)) {}
  void tap(std::string_view name, const TensorView& view, void* data) override {
    function(std::string(name), view, data);
  }
  Function function;
};

// ---------------------------------------------------------------------------------------------- formulas, by hand

TEST(Linear, WidensExactlyAndCrossesBlocks) {
  constexpr std::int64_t kIn = 5, kOut = 300;
  SCOPED_TRACE(seed());
  std::mt19937_64 rng(seed());
  std::normal_distribution<float> normal;
  std::vector<float> weight(kIn * kOut), bias(kOut);
  for (float& w : weight) w = normal(rng);
  for (float& b : bias) b = normal(rng);
  const MatrixD x = MatrixD::Random(3, kIn);
  const Tensor w32 = Tensor::from<float>(weight, {kOut, kIn}), b32 = Tensor::from<float>(bias, {kOut});
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const Tensor w = convert(w32.view(), dtype), b = convert(b32.view(), dtype);
    const MatrixD y = linear(x, {w.view(), b.view()}), unbiased = linear(x, {w.view(), {}});
    for (std::int64_t n = 0; n < 3; ++n) {
      for (std::int64_t o = 0; o < kOut; ++o) {
        double expected = 0;
        for (std::int64_t i = 0; i < kIn; ++i) expected += x(n, i) * w.at(o * kIn + i);
        EXPECT_NEAR(unbiased(n, o), expected, 1e-14) << name(dtype) << " " << n << " " << o;
        EXPECT_NEAR(y(n, o), expected + b.at(o), 1e-14) << name(dtype) << " " << n << " " << o;
      }
    }
  }
}

TEST(Norm, RmsNorm) {
  const Tensor weight = vector_tensor({1, 2});
  const MatrixD y = rms_norm<double>(MatrixD{{3, 4}, {0, 0}}, weight.view(), 3.5);  // mean square 12.5, + eps = 16
  EXPECT_EQ(y, (MatrixD{{0.75, 2}, {0, 0}}));
}

TEST(Norm, SoftmaxStandsLargeAndMissingValues) {
  const double lowest = std::numeric_limits<double>::lowest();
  MatrixD rows{{1000, 1000 + std::log(3.0), lowest}, {lowest, lowest, lowest}};
  softmax(rows);
  EXPECT_NEAR(rows(0, 0), 0.25, 1e-13);
  EXPECT_NEAR(rows(0, 1), 0.75, 1e-13);
  EXPECT_EQ(rows(0, 2), 0);
  EXPECT_EQ(rows.row(1), (Eigen::RowVector3d::Constant(1.0 / 3)));
}

TEST(Moe, Activations) {
  EXPECT_NEAR(activate(Activation::silu, 1.0), 0.7310585786300049, 1e-15);
  EXPECT_NEAR(activate(Activation::gelu, 1.0), 0.8413447460685429, 1e-15);
  EXPECT_NEAR(activate(Activation::gelu_tanh, 1.0), 0.8411919906082768, 1e-15);
  EXPECT_EQ(activate(Activation::relu, 1.5), 1.5);
  EXPECT_EQ(activate(Activation::relu, -1.5), 0);
  for (const auto a : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu})
    EXPECT_NEAR(activate(a, -1.0), activate(a, 1.0) - 1.0, 1e-15) << name(a);  // all are x * (something odd + 1/2)
}

Config rope_config(bool use_mla, RopeScaling scaling, double theta) {
  Config c = Config::preset(use_mla ? "tiny-mla" : "tiny-mha");
  c.qk_rope_head_dim = 8;
  if (!use_mla) c.hidden_size = 8 * c.num_attention_heads;
  c.rope_theta = theta;
  c.rope_scaling = scaling;
  return c;
}

void expect_frequencies(const RopeFrequencies& found, const std::vector<double>& expected) {
  ASSERT_EQ(found.radians_per_position.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(found.radians_per_position[i], expected[i], 1e-14) << "pair " << i;
}

TEST(Rope, PlainLinearDynamic) {
  for (const bool mla : {false, true}) {
    expect_frequencies(rope_frequencies(rope_config(mla, {}, 1e4), 1000), {1, 0.1, 0.01, 0.001});
    expect_frequencies(rope_frequencies(rope_config(mla, {.type = RopeType::linear, .factor = 4}, 1e4), 1000),
                       {0.25, 0.025, 0.0025, 0.00025});
    Config c = rope_config(mla, {.type = RopeType::dynamic, .factor = 2}, 1e4);
    c.max_position_embeddings = 16;
    expect_frequencies(rope_frequencies(c, 16), {1, 0.1, 0.01, 0.001});
    const double theta = 1e4 * std::pow(2.0, 8.0 / 6);  // 2 * 24 / 16 - 1 = 2
    expect_frequencies(rope_frequencies(c, 24),
                       {1, std::pow(theta, -0.25), std::pow(theta, -0.5), std::pow(theta, -0.75)});
  }
}

// Expected values were worked out apart from this code, from the formulas in reference/rope.h.
TEST(Rope, YarnRampAndItsClamps) {
  const auto frequencies = [](double theta, std::int64_t context, double beta_fast, double beta_slow) {
    return rope_frequencies(rope_config(true,
                                        {.type = RopeType::yarn,
                                         .factor = 4,
                                         .original_max_position_embeddings = context,
                                         .beta_fast = beta_fast,
                                         .beta_slow = beta_slow},
                                        theta),
                            1);
  };
  // Starts at pair -1, taken as 0: pair 0 stays whole. Ends at pair 2.
  expect_frequencies(frequencies(1e4, 128, 32, 1), {1, 0.0625, 0.0025, 0.00025});
  // 2 to 9, taken as 7 (d - 1), so the last of the four pairs is still on the ramp.
  expect_frequencies(frequencies(10, 1024, 32, 1), {1, 0.5623413251903491, 0.31622776601683794, 0.15115374985330843});
  expect_frequencies(frequencies(1e4, 4096, 2, 1.5), {1, 0.1, 0.01, 0.00025});
  // Both ends at pair 0: a step, not a division by zero.
  expect_frequencies(frequencies(1e4, 4, 32, 1), {1, 0.025, 0.0025, 0.00025});
}

TEST(Rope, YarnReadsWhatEachAttentionReads) {
  RopeScaling yarn = {
      .type = RopeType::yarn, .factor = 4, .original_max_position_embeddings = 128, .mscale = 0.5, .mscale_all_dim = 2};
  const double ln4 = std::log(4.0);
  Config mla = rope_config(true, yarn, 1e4);
  mla.max_position_embeddings = 4096;
  EXPECT_NEAR(rope_frequencies(mla, 1).amplitude, (0.05 * ln4 + 1) / (0.2 * ln4 + 1), 1e-15);
  expect_frequencies(rope_frequencies(mla, 1), {1, 0.0625, 0.0025, 0.00025});
  EXPECT_NEAR(softmax_scale(mla), (0.2 * ln4 + 1) * (0.2 * ln4 + 1) / std::sqrt(24.0), 1e-15);

  yarn.original_max_position_embeddings = 4096;
  Config mha = rope_config(false, yarn, 1e4);
  mha.max_position_embeddings = 128;
  EXPECT_NEAR(rope_frequencies(mha, 1).amplitude, 0.1 * ln4 + 1, 1e-15);
  expect_frequencies(rope_frequencies(mha, 1), {1, 0.0625, 0.0025, 0.00025});
  EXPECT_NEAR(softmax_scale(mha), 1 / std::sqrt(8.0), 1e-15);
  mha.rope_scaling.attention_factor = 1.25;
  EXPECT_EQ(rope_frequencies(mha, 1).amplitude, 1.25);

  EXPECT_EQ(yarn_mscale(1, 5), 1);
  EXPECT_EQ(yarn_mscale(0.5, 5), 1);
}

TEST(Rope, SoftmaxScaleOfMlaForAnyType) {
  const Config c = rope_config(true, {.type = RopeType::linear, .factor = 4, .mscale_all_dim = 1}, 1e4);
  EXPECT_NEAR(softmax_scale(c), std::pow(0.1 * std::log(4.0) + 1, 2) / std::sqrt(24.0), 1e-15);
}

TEST(Rope, PairsAndWhereTheyGo) {
  const double a = 0.3, b = 1.1;
  const RopeTable<double> table{MatrixD{{std::cos(a), std::cos(b)}}, MatrixD{{std::sin(a), std::sin(b)}}};
  const MatrixD half = rope<double>(MatrixD{{1, 2, 0, 0}}, 1, RopePairs::half_split, table);
  EXPECT_EQ(half, (MatrixD{{std::cos(a), 2 * std::cos(b), std::sin(a), 2 * std::sin(b)}}));
  // Two heads of width 5, of which the first column is left out.
  const MatrixD interleaved = rope<double>(MatrixD{{9, 1, 0, 2, 0, 9, 0, 1, 0, 2}}, 2, RopePairs::interleaved, table);
  EXPECT_EQ(interleaved, (MatrixD{{std::cos(a), 2 * std::cos(b), std::sin(a), 2 * std::sin(b),  //
                                   -std::sin(a), -2 * std::sin(b), std::cos(a), 2 * std::cos(b)}}));
}

Config gate_config(TopkMethod method, std::int64_t k, std::int64_t n_group = 1, std::int64_t topk_group = 1) {
  Config c = Config::preset("tiny-mla");
  c.topk_method = method;
  c.num_experts_per_tok = k;
  c.n_group = n_group;
  c.topk_group = topk_group;
  c.norm_topk_prob = false;
  c.routed_scaling_factor = 1;
  return c;
}

Ids chosen(const MatrixD& scores, const Config& config, const std::vector<double>& bias = {}) {
  const Tensor b = vector_tensor(bias);
  const auto selection = select_experts(scores, b.view(), config);
  return {selection.topk_idx.row(0).begin(), selection.topk_idx.row(0).end()};
}

TEST(Gate, Scores) {
  const double ln3 = std::log(3.0);
  EXPECT_TRUE(gate_scores<double>(MatrixD{{0, ln3}}, ScoringFunc::softmax).isApprox(MatrixD{{0.25, 0.75}}, 1e-15));
  EXPECT_TRUE(gate_scores<double>(MatrixD{{0, ln3}}, ScoringFunc::sigmoid).isApprox(MatrixD{{0.5, 0.75}}, 1e-15));
}

TEST(Gate, GreedyTakesTheLargestInAscendingOrderAndTheLowerOfATie) {
  EXPECT_EQ(chosen(MatrixD{{.1, .4, .2, .3}}, gate_config(TopkMethod::greedy, 2)), (Ids{1, 3}));
  EXPECT_EQ(chosen(MatrixD{{.1, .3, .3, .3}}, gate_config(TopkMethod::greedy, 2)), (Ids{1, 2}));
  EXPECT_EQ(chosen(MatrixD{{.2, .2, .2, .2}}, gate_config(TopkMethod::greedy, 3)), (Ids{0, 1, 2}));
  EXPECT_EQ(chosen(MatrixD{{NAN, NAN, .2, .1}}, gate_config(TopkMethod::greedy, 2)).size(), 2u);
}

TEST(Gate, GroupLimitedGreedyRanksGroupsByTheirBest) {
  const MatrixD scores{{.05, .50, .30, .31, .01, .02, .29, .28}};
  EXPECT_EQ(chosen(scores, gate_config(TopkMethod::group_limited_greedy, 2, 4, 1)), (Ids{0, 1}));
  EXPECT_EQ(chosen(scores, gate_config(TopkMethod::group_limited_greedy, 3, 4, 2)), (Ids{1, 2, 3}));
  const MatrixD tied{{.3, .1, .3, .2, .1, .1, .1, .1}};  // groups 0 and 1 tie: the lower one stays
  EXPECT_EQ(chosen(tied, gate_config(TopkMethod::group_limited_greedy, 2, 4, 1)), (Ids{0, 1}));
}

TEST(Gate, ExpertsOfRejectedGroupsFillInWithWeightZero) {
  const Config c = gate_config(TopkMethod::group_limited_greedy, 3, 4, 1);
  const auto selection = select_experts<double>(MatrixD{{.1, .1, .2, .1, .4, .5, .3, .1}}, {}, c);
  EXPECT_EQ(selection.topk_idx, (Matrix<std::int64_t>{{0, 4, 5}}));
  EXPECT_EQ(gate_weights(selection, c), (MatrixD{{0, .4, .5}}));
}

TEST(Gate, NoauxRanksGroupsByTheirTwoBestBiasedScores) {
  const Config c = gate_config(TopkMethod::noaux_tc, 2, 2, 1);
  const MatrixD scores{{.9, .1, .1, .1, .5, .6, .1, .1}};  // the best expert is in the group that loses
  EXPECT_EQ(chosen(scores, c, {0, 0, 0, 0, 0, 0, 0, 0}), (Ids{4, 5}));
  EXPECT_EQ(chosen(scores, c, {0, .5, 0, 0, 0, 0, 0, 0}), (Ids{0, 1}));
}

TEST(Gate, NoauxWeightsAreUnbiased) {
  Config c = gate_config(TopkMethod::noaux_tc, 2, 1, 1);
  const Tensor bias = vector_tensor({0, 1, 0, 1});
  const auto selection = select_experts<double>(MatrixD{{.9, .2, .8, .3}}, bias.view(), c);
  EXPECT_EQ(selection.topk_idx, (Matrix<std::int64_t>{{1, 3}}));
  EXPECT_EQ(gate_weights(selection, c), (MatrixD{{.2, .3}}));
}

TEST(Gate, WithAllScoresNegativeTheRejectedGroupWins) {
  EXPECT_EQ(chosen(MatrixD{{.1, .2, .3, .4}}, gate_config(TopkMethod::noaux_tc, 2, 2, 1), {-1, -1, -1, -1}),
            (Ids{0, 1}));
}

TEST(Gate, NormalisedScaledAndNeverForOne) {
  Config c = gate_config(TopkMethod::greedy, 2);
  c.routed_scaling_factor = 10;
  const MatrixD scores{{.1, .3, .2}};
  const auto weights = [&] { return gate_weights(select_experts(scores, {}, c), c); };
  EXPECT_TRUE(weights().isApprox(MatrixD{{3, 2}}, 1e-15));
  c.norm_topk_prob = true;
  EXPECT_TRUE(weights().isApprox(MatrixD{{6, 4}}, 1e-15));
  c.num_experts_per_tok = 1;
  EXPECT_TRUE(weights().isApprox(MatrixD{{3}}, 1e-15));
  c.num_experts_per_tok = 2;
  EXPECT_EQ(gate_weights<double>({Matrix<std::int64_t>{{0, 1}}, MatrixD{{0, 0}}}, c), (MatrixD{{0, 0}}));
}

// ------------------------------------------------------------------------------------------- properties of the whole

struct Named {
  std::string name;
  Config config;
};
void PrintTo(const Named& model, std::ostream* out) { *out << model.name; }

/// Every kind of attention and of gate.
std::vector<Named> models() {
  Config grouped = Config::preset("tiny-mla");
  grouped.q_lora_rank.reset();
  grouped.attention_bias = false;
  grouped.topk_method = TopkMethod::group_limited_greedy;
  grouped.scoring_func = ScoringFunc::softmax;
  grouped.n_shared_experts.reset();
  grouped.tie_word_embeddings = true;
  grouped.rope_scaling = {};
  return {{"mha", Config::preset("tiny-mha")}, {"mla", Config::preset("tiny-mla")}, {"mla_grouped", grouped}};
}

class Reference : public ::testing::TestWithParam<Named> {
 protected:
  Reference() : trace_(__FILE__, __LINE__, concat("DSV2_TEST_SEED=", seed())), rng_(seed()) {
    build(GetParam().config);
  }

  void build(const Config& c, const Options& options = {}) {
    config = c;
    weights = Weights::random(c, seed(), DType::f32);
    decoder = backend().create(c, weights, options);
  }
  Tensor draw_ids(std::int64_t batch, std::int64_t tokens) {
    Tensor t(DType::i64, {batch, tokens});
    for (auto& id : t.as<std::int64_t>())
      id = std::uniform_int_distribution<std::int64_t>(0, config.vocab_size - 1)(rng_);
    return t;
  }
  static ForwardInput asking_for_all(const Tensor& ids) {
    ForwardInput in;
    in.input_ids = ids.view();
    in.logits = Logits::all;
    in.hidden_states = in.attentions = true;
    return in;
  }
  ForwardOutput run(const Tensor& ids, KvCache* cache = nullptr) {
    ForwardInput in = asking_for_all(ids);
    in.cache = cache;
    return decoder->forward(in);
  }

  Config config;
  std::shared_ptr<const Weights> weights;
  std::unique_ptr<Decoder> decoder;

 private:
  ::testing::ScopedTrace trace_;
  std::mt19937_64 rng_;
};

INSTANTIATE_TEST_SUITE_P(Models, Reference, ::testing::ValuesIn(models()),
                         [](const auto& param_info) { return param_info.param.name; });

TEST_P(Reference, AbsorbedEqualsExpanded) {
  if (!config.use_mla) GTEST_SKIP() << "MHA has one form";
  const auto absorbed = backend().create(config, weights, in_form(MlaForm::absorbed));
  const auto expanded = backend().create(config, weights, in_form(MlaForm::expanded));
  const Tensor ids = draw_ids(2, 9);
  const auto a = absorbed->forward(asking_for_all(ids)), e = expanded->forward(asking_for_all(ids));
  EXPECT_LE(difference(a.logits, e.logits), kSameSums);
  EXPECT_GT(difference(a.logits, e.logits), 0) << "the two forms are the same code";
  for (std::size_t i = 0; i < a.attentions.size(); ++i)
    EXPECT_LE(difference(a.attentions[i], e.attentions[i]), kSameSums) << i;
  EXPECT_EQ(difference(run(ids).logits, e.logits), 0) << "automatic is expanded";
}

/// Rows of [K * d, ...] in groups of d, each group `times` times over.
Tensor repeat_groups(const TensorView& t, std::int64_t d, std::int64_t times) {
  Shape shape = t.shape;
  shape[0] *= times;
  Tensor out(t.dtype, shape);
  const std::int64_t group = t.bytes() / t.dim(0) * d;
  for (std::int64_t g = 0; g < shape[0] / d; ++g)
    std::memcpy(static_cast<char*>(out.data()) + g * group, static_cast<const char*>(t.data) + g / times * group,
                static_cast<std::size_t>(group));
  return out;
}

TEST_P(Reference, GroupedKeysEqualRepeatedKeys) {
  if (config.use_mla) GTEST_SKIP() << "MLA has one latent for all heads";
  const std::int64_t times = config.num_attention_heads / config.num_key_value_heads, d = config.head_dim();
  ASSERT_GT(config.num_key_value_heads, 1);
  ASSERT_GT(times, 1);
  Config ungrouped = config;
  ungrouped.num_key_value_heads = config.num_attention_heads;
  const auto repeated = std::make_shared<Weights>();
  repeated->embed_tokens = weights->embed_tokens, repeated->norm = weights->norm, repeated->lm_head = weights->lm_head;
  repeated->layers = weights->layers;
  std::vector<Tensor> storage;
  for (LayerWeights& layer : repeated->layers) {
    for (LinearWeights* projection : {&layer.self_attn.k_proj, &layer.self_attn.v_proj}) {
      for (TensorView* view : {&projection->weight, &projection->bias})
        *view = storage.emplace_back(repeat_groups(*view, d, times)).view();
    }
  }
  const Tensor ids = draw_ids(2, 5);
  const auto out = backend().create(ungrouped, repeated, {})->forward(asking_for_all(ids));
  EXPECT_LE(difference(out.logits, run(ids).logits), kSameSums);
}

TEST_P(Reference, LatentNormsHaveAnEpsOfTheirOwn) {
  if (!config.use_mla) GTEST_SKIP() << "MHA has no latents";
  Config c = config;
  c.rms_norm_eps = 0.5;
  build(c);
  std::map<std::string, std::vector<double>> taps;
  Sink sink([&](const std::string& name, const TensorView& view, void*) {
    if (view.dtype == DType::f64) taps[name] = widen<double>(view);
  });
  const Tensor ids = draw_ids(1, 3);
  ForwardInput in = asking_for_all(ids);
  in.taps = &sink;
  decoder->forward(in);
  const std::string attn = "layers.0.self_attn.";
  const auto expect_norm = [&](const std::string& before, const std::string& after, std::int64_t width,
                               const TensorView& weight) {
    const auto in_cols = static_cast<Eigen::Index>(taps.at(attn + before).size()) / 3;
    const MatrixD x = Eigen::Map<MatrixD>(taps.at(attn + before).data(), 3, in_cols).leftCols(width);
    const MatrixD found = Eigen::Map<MatrixD>(taps.at(attn + after).data(), 3, width);
    EXPECT_EQ(found, rms_norm(x, weight, 1e-6)) << after;
  };
  const AttentionWeights& w = weights->layers[0].self_attn;
  expect_norm("kv_a_proj_with_mqa", "kv_a_layernorm", c.kv_lora_rank, w.kv_a_layernorm);
  if (c.q_lora_rank) expect_norm("q_a_proj", "q_a_layernorm", *c.q_lora_rank, w.q_a_layernorm);
}

TEST_P(Reference, ChunksEqualTheWhole) {
  const Tensor ids = draw_ids(2, 9);
  const auto whole_cache = decoder->make_cache(2, 9), cache = decoder->make_cache(2, 0);
  const auto whole = run(ids, whole_cache.get());
  EXPECT_EQ(difference(run(ids).logits, whole.logits), 0) << "a cache changes a prefill";
  std::int64_t past = 0;
  for (const std::int64_t tokens : {4, 3, 1, 1}) {
    const auto part = run(slice(ids, 1, past, past + tokens), cache.get());
    EXPECT_LE(difference(part.logits, slice(whole.logits, 1, past, past + tokens)), kSameSums) << "after " << past;
    for (std::size_t i = 0; i < part.attentions.size(); ++i)
      EXPECT_LE(difference(part.attentions[i],
                           slice(slice(whole.attentions[i], 2, past, past + tokens), 3, 0, past + tokens)),
                kSameSums);
    past += tokens;
    EXPECT_EQ(cache->length(), past);
  }
  EXPECT_LE(difference(cache->to_legacy(), whole_cache->to_legacy()), kSameSums);
}

TEST_P(Reference, ARowAloneEqualsTheRowInABatch) {
  const Tensor ids = draw_ids(3, 5);
  const auto batch = run(ids);
  for (std::int64_t b = 0; b < 3; ++b) {
    const auto alone = run(slice(ids, 0, b, b + 1));
    EXPECT_LE(difference(alone.logits, slice(batch.logits, 0, b, b + 1)), kSameSums) << b;
  }
}

TEST_P(Reference, PaddingOnEitherSideChangesNothing) {
  const Tensor ids = draw_ids(1, 5);
  const auto alone = run(ids);
  for (const bool left : {true, false}) {
    const std::int64_t from = left ? 3 : 0;
    Tensor padded = draw_ids(1, 8), mask(DType::i64, {1, 8}), positions(DType::i64, {1, 8});
    for (std::int64_t s = 0; s < 5; ++s) {
      padded.as<std::int64_t>()[from + s] = ids.as<std::int64_t>()[s];
      mask.as<std::int64_t>()[from + s] = 1;
      positions.as<std::int64_t>()[from + s] = s;
    }
    ForwardInput in = asking_for_all(padded);
    in.attention_mask = mask.view();
    in.position_ids = positions.view();
    EXPECT_LE(difference(slice(decoder->forward(in).logits, 1, from, from + 5), alone.logits), kSameSums) << left;
    in.position_ids.reset();  // RoPE knows distances only
    EXPECT_LE(difference(slice(decoder->forward(in).logits, 1, from, from + 5), alone.logits), kSameSums) << left;
  }
}

TEST_P(Reference, FourDimensionalMaskReplacesCausality) {
  const Tensor ids = draw_ids(2, 4);
  Tensor causal(DType::i64, {2, 1, 4, 4}), open(DType::i64, {2, 1, 4, 4});
  for (std::int64_t i = 0; i < 32; ++i) {
    causal.as<std::int64_t>()[i] = i % 4 <= i / 4 % 4;
    open.as<std::int64_t>()[i] = 1;
  }
  ForwardInput in = asking_for_all(ids);
  const auto plain = decoder->forward(in);
  in.attention_mask = causal.view();
  EXPECT_EQ(difference(decoder->forward(in).logits, plain.logits), 0);
  in.attention_mask = open.view();
  EXPECT_GT(decoder->forward(in).attentions[0].at(3), 0) << "the first query sees the last key";
}

TEST_P(Reference, AQueryThatSeesNothingAttendsToAllKeysAlike) {
  const Tensor ids = draw_ids(1, 5);
  const Tensor mask = ids_tensor({0, 0, 1, 1, 1}, {1, 5});
  ForwardInput in = asking_for_all(ids);
  in.attention_mask = mask.view();
  const auto out = decoder->forward(in);
  const std::int64_t H = config.num_attention_heads;
  for (const Tensor& p : out.attentions) {
    ASSERT_EQ(p.shape(), (Shape{1, H, 5, 5}));
    for (std::int64_t h = 0; h < H; ++h) {
      for (std::int64_t s = 0; s < 5; ++s) {
        double sum = 0;
        for (std::int64_t t = 0; t < 5; ++t) {
          const double probability = p.at((h * 5 + s) * 5 + t);
          sum += probability;
          const bool uniform = s < 2, hidden = t < 2 || t > s;
          if (uniform || hidden) {
            EXPECT_EQ(probability, uniform ? 0.2 : 0.0) << h << s << t;
          }
        }
        EXPECT_NEAR(sum, 1, 1e-14);
      }
    }
  }
}

TEST_P(Reference, LegacyTupleInAndOut) {
  const Tensor ids = draw_ids(2, 7), first = slice(ids, 1, 0, 5), second = slice(ids, 1, 5, 7);
  const auto cache = decoder->make_cache(2, 7);
  run(first, cache.get());
  ForwardInput in = asking_for_all(first);
  EXPECT_FALSE(decoder->forward(in).past_key_values);
  in.use_cache = true;
  const auto one = decoder->forward(in);
  ASSERT_TRUE(one.past_key_values);
  EXPECT_EQ(difference(*one.past_key_values, cache->to_legacy()), 0);

  const auto with_object = run(second, cache.get());
  EXPECT_FALSE(with_object.past_key_values);
  in = asking_for_all(second);
  in.past_key_values = &*one.past_key_values;
  EXPECT_FALSE(decoder->forward(in).past_key_values);
  in.use_cache = true;
  const auto two = decoder->forward(in);
  EXPECT_EQ(difference(two.logits, with_object.logits), 0);
  ASSERT_TRUE(two.past_key_values);
  EXPECT_EQ(difference(*two.past_key_values, cache->to_legacy()), 0);
  EXPECT_EQ(one.past_key_values->front().first.dim(2), 5) << "the tuple that was passed in grew";
  EXPECT_EQ(difference(decoder->make_cache(*two.past_key_values)->to_legacy(), cache->to_legacy()), 0);
}

TEST_P(Reference, TruncateAndReplay) {
  const Tensor ids = draw_ids(2, 8), tail = slice(ids, 1, 5, 8);
  const auto cache = decoder->make_cache(2, 0);
  run(slice(ids, 1, 0, 5), cache.get());
  const auto copy = cache->clone();
  const auto once = run(tail, cache.get());
  const auto after = cache->to_legacy();
  cache->truncate(5);
  run(draw_ids(2, 2), cache.get());
  cache->truncate(5);
  EXPECT_EQ(difference(run(tail, cache.get()).logits, once.logits), 0);
  EXPECT_EQ(difference(cache->to_legacy(), after), 0);
  EXPECT_EQ(copy->length(), 5);
  EXPECT_EQ(difference(run(tail, copy.get()).logits, once.logits), 0);
}

TEST_P(Reference, AForwardThatThrowsLeavesTheCacheAlone) {
  const auto cache = decoder->make_cache(1, 4);
  const Tensor next = draw_ids(1, 3);
  run(draw_ids(1, 4), cache.get());
  const auto before = cache->to_legacy();
  const auto twin = cache->clone();
  Sink sink([](const std::string& name, const TensorView&, void*) {
    if (name == "layers.2.self_attn.o_proj") throw std::runtime_error("no more");
  });
  ForwardInput in = asking_for_all(next);
  in.cache = cache.get();
  in.taps = &sink;
  EXPECT_EQ(message_of<std::runtime_error>([&] { decoder->forward(in); }), "no more");
  EXPECT_EQ(cache->length(), 4);
  EXPECT_EQ(difference(cache->to_legacy(), before), 0);
  EXPECT_EQ(difference(run(next, cache.get()).logits, run(next, twin.get()).logits), 0);
}

TEST_P(Reference, RefusesForeignCaches) {
  const Tensor ids = draw_ids(1, 2);
  HostKvCache narrow(config, 1, 4, DType::f32);
  EXPECT_EQ(message_of<Error>([&] { run(ids, &narrow); }), "cache: expected dtype f64, found f32");
  Config other = config;
  other.num_hidden_layers = 2;
  HostKvCache shallow(other, 1, 4, DType::f64);
  EXPECT_EQ(message_of<Error>([&] { run(ids, &shallow); }), "cache: expected 3 layers, found 2");
  HostKvCache kind(Config::preset(config.use_mla ? "tiny-mha" : "tiny-mla"), 1, 4, DType::f64);
  EXPECT_NE(message_of<Error>([&] { run(ids, &kind); }), "");
}

TEST_P(Reference, OutputsHangTogether) {
  const Tensor ids = draw_ids(2, 5);
  ForwardInput in = asking_for_all(ids);
  const auto all = decoder->forward(in);
  ASSERT_EQ(all.hidden_states.size(), 4u);
  EXPECT_EQ(difference(all.hidden_states.back(), all.last_hidden_state), 0);
  for (std::int64_t i = 0; i < config.hidden_size; ++i)
    EXPECT_EQ(all.hidden_states[0].at(i), weights->embed_tokens.at(ids.as<std::int64_t>()[0] * config.hidden_size + i));
  EXPECT_FALSE(all.loss);

  ForwardInput embeds = in;
  embeds.input_ids.reset();
  embeds.inputs_embeds = all.hidden_states[0].view();
  EXPECT_EQ(difference(decoder->forward(embeds).logits, all.logits), 0);

  in.logits = Logits::last;
  EXPECT_LE(difference(decoder->forward(in).logits, slice(all.logits, 1, 4, 5)), kSameSums);
  in.logits = Logits::none;
  in.hidden_states = in.attentions = false;
  const auto bare = decoder->forward(in);
  EXPECT_FALSE(bare.logits);
  EXPECT_TRUE(bare.hidden_states.empty() && bare.attentions.empty());
  EXPECT_EQ(difference(bare.last_hidden_state, all.last_hidden_state), 0);

  in.labels = ids.view();
  const auto labelled = decoder->forward(in);
  EXPECT_EQ(difference(labelled.logits, all.logits), 0);
  double expected = 0;
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t s = 0; s < 4; ++s) {
      const std::int64_t row = (b * 5 + s) * config.vocab_size;
      double total = 0;
      for (std::int64_t v = 0; v < config.vocab_size; ++v) total += std::exp(all.logits.at(row + v));
      expected += (std::log(total) - all.logits.at(row + ids.as<std::int64_t>()[b * 5 + s + 1])) / 8;
    }
  }
  ASSERT_TRUE(labelled.loss);
  EXPECT_NEAR(*labelled.loss, expected, 1e-12);
}

TEST_P(Reference, ClassificationPoolsTheTokenBeforeTheFirstPad) {
  Config c = config;
  c.head = Head::sequence_classification;
  c.tie_word_embeddings = false;
  c.num_labels = 4;
  c.pad_token_id = 0;
  build(c);
  const Tensor ids = ids_tensor({5, 6, 7, 0, 0,  //
                                 5, 6, 7, 8, 9,  //
                                 0, 6, 7, 8, 9},
                                {3, 5});
  const auto out = run(ids);
  ASSERT_EQ(out.logits.shape(), (Shape{3, 4}));
  const std::int64_t pooled[] = {2, 4, 4};
  for (std::int64_t b = 0; b < 3; ++b) {
    for (std::int64_t label = 0; label < 4; ++label) {
      double expected = 0;
      for (std::int64_t i = 0; i < c.hidden_size; ++i)
        expected += out.last_hidden_state.at((b * 5 + pooled[b]) * c.hidden_size + i) *
                    weights->score.at(label * c.hidden_size + i);
      EXPECT_NEAR(out.logits.at(b * 4 + label), expected, kSameSums) << b << " " << label;
    }
  }
}

TEST_P(Reference, FloatIsNearDouble) {
  const Tensor ids = draw_ids(2, 6);
  const auto exact = run(ids);
  const auto narrow = backend().create(config, weights, accumulating_in(DType::f32))->forward(asking_for_all(ids));
  EXPECT_EQ(exact.logits.dtype(), DType::f64);
  EXPECT_EQ(narrow.logits.dtype(), DType::f32);
  EXPECT_LE(difference(narrow.logits, exact.logits), 1e-3);
  EXPECT_GT(difference(narrow.logits, exact.logits), 0);
}

TEST_P(Reference, MoeIsTheWeightedSumOfItsExperts) {
  const LayerWeights& w = weights->layers[1];
  const MatrixD x = MatrixD::Random(6, config.hidden_size);
  const Probe silent;
  const auto routing = gate(x, w, config, silent);
  MatrixD expected = MatrixD::Zero(6, config.hidden_size);
  for (Eigen::Index n = 0; n < 6; ++n) {
    const MatrixD token = x.row(n);
    for (Eigen::Index j = 0; j < config.num_experts_per_tok; ++j)
      expected.row(n) +=
          routing.topk_weight(n, j) *
          mlp(token, w.experts[static_cast<std::size_t>(routing.topk_idx(n, j))], config.hidden_act, silent);
    if (config.n_shared_experts) expected.row(n) += mlp(token, w.shared_experts, config.hidden_act, silent);
  }
  EXPECT_LE((moe(x, w, config, silent) - expected).cwiseAbs().maxCoeff(), kSameSums);
}

/// The names that model/taps.h lists, for this model.
std::map<std::string, Shape> expected_taps(const Config& c, std::int64_t B, std::int64_t S) {
  const std::int64_t D = c.hidden_size, H = c.num_attention_heads, N = B * S;
  std::map<std::string, Shape> taps = {
      {"embed_tokens", {B, S, D}}, {"norm", {B, S, D}}, {"lm_head", {B, S, c.vocab_size}}};
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string layer = concat("layers.", i), attn = layer + ".self_attn.", ffn = layer + ".mlp";
    for (const char* name :
         {"", ".input_layernorm", ".self_attn.o_proj", ".self_attn.residual", ".post_attention_layernorm", ".mlp"})
      taps[layer + name] = {B, S, D};
    taps[attn + "attn_output"] = {B, S, H * c.value_head_dim()};
    taps[attn + "q_rope"] = {B, S, H, c.rope_dim()};
    if (c.use_mla) {
      const std::int64_t R = c.kv_lora_rank, rope = c.qk_rope_head_dim;
      taps[attn + (c.q_lora_rank ? "q_b_proj" : "q_proj")] = {B, S, H * c.qk_head_dim()};
      if (c.q_lora_rank) taps[attn + "q_a_proj"] = taps[attn + "q_a_layernorm"] = {B, S, *c.q_lora_rank};
      taps[attn + "kv_a_proj_with_mqa"] = {B, S, R + rope};
      taps[attn + "kv_a_layernorm"] = {B, S, R};
      taps[attn + "k_rope"] = {B, S, 1, rope};
    } else {
      const std::int64_t K = c.num_key_value_heads, d = c.head_dim();
      taps[attn + "q_proj"] = {B, S, H * d};
      taps[attn + "k_proj"] = taps[attn + "v_proj"] = {B, S, K * d};
      taps[attn + "k_rope"] = {B, S, K, d};
    }
    if (!c.is_moe_layer(i)) {
      taps[ffn + ".act"] = {B, S, c.intermediate_size};
      continue;
    }
    taps[ffn + ".gate.logits"] = {N, *c.n_routed_experts};
    taps[ffn + ".gate.topk_idx"] = taps[ffn + ".gate.topk_weight"] = {N, c.num_experts_per_tok};
    taps[ffn + ".experts"] = {B, S, D};
    if (c.n_shared_experts) taps[ffn + ".shared_experts"] = {B, S, D};
  }
  return taps;
}

TEST_P(Reference, EveryTapIsReportedOnceAndOverwritingItTakesEffect) {
  const Tensor ids = draw_ids(2, 4);
  ForwardInput in = asking_for_all(ids);
  const auto plain = decoder->forward(in);

  std::map<std::string, Shape> found;
  Sink record([&](const std::string& name, const TensorView& view, void* data) {
    EXPECT_TRUE(found.emplace(name, view.shape).second) << name << " twice";
    EXPECT_EQ(view.data, data);
    EXPECT_EQ(view.dtype, name.ends_with("topk_idx") ? DType::i64 : DType::f64) << name;
  });
  in.taps = &record;
  EXPECT_EQ(difference(decoder->forward(in).logits, plain.logits), 0) << "a sink that only looks";
  EXPECT_EQ(found, expected_taps(config, 2, 4));

  for (const auto& [target, shape] : found) {
    Sink overwrite([&, wanted = target](const std::string& name, const TensorView& view, void* data) {
      if (name != wanted) return;
      for (std::int64_t i = 0; i < view.size(); ++i) {
        if (view.dtype == DType::i64)
          static_cast<std::int64_t*>(data)[i] = (static_cast<std::int64_t*>(data)[i] + 1) % *config.n_routed_experts;
        else
          static_cast<double*>(data)[i] *= 1 + 0.5 * static_cast<double>(i % 3);
      }
    });
    in.taps = &overwrite;
    EXPECT_GT(difference(decoder->forward(in).logits, plain.logits), 1e-6) << target << " is not what goes on";
  }
}

TEST_P(Reference, ForcedExpertsGetTheirOwnWeights) {
  const Tensor ids = draw_ids(1, 3);
  const std::int64_t k = config.num_experts_per_tok;
  std::vector<double> logits, weights_found;
  std::int64_t forced = 0;
  Sink sink([&](const std::string& name, const TensorView& view, void* data) {
    if (name == "layers.1.mlp.gate.logits") logits = widen<double>(view);
    if (name == "layers.1.mlp.gate.topk_idx")
      for (std::int64_t i = 0; i < view.size(); ++i) static_cast<std::int64_t*>(data)[i] = forced + i % k;
    if (name == "layers.1.mlp.gate.topk_weight") weights_found = widen<double>(view);
  });
  ForwardInput in = asking_for_all(ids);
  in.taps = &sink;
  Config greedy = config;
  greedy.topk_method = TopkMethod::greedy;
  greedy.norm_topk_prob = false;
  build(greedy);
  decoder->forward(in);
  const auto E = static_cast<std::size_t>(*config.n_routed_experts);
  const MatrixD scores =
      gate_scores<double>(Eigen::Map<MatrixD>(logits.data(), 3, static_cast<Eigen::Index>(E)), greedy.scoring_func);
  for (std::int64_t n = 0; n < 3; ++n)
    for (std::int64_t j = 0; j < k; ++j)
      EXPECT_EQ(weights_found[static_cast<std::size_t>(n * k + j)], scores(n, j) * greedy.routed_scaling_factor);
  forced = *config.n_routed_experts;
  EXPECT_EQ(message_of<Error>([&] { decoder->forward(in); }), "topk_idx: expected experts 0..7, found 8");
}

TEST(ReferenceBackend, SaysWhatItLacks) {
  const Backend reference = backend();
  EXPECT_EQ(reference.name, "reference");
  EXPECT_FALSE(reference.unavailable());
  const Config config = Config::preset("tiny-mha");
  EXPECT_FALSE(reference.unsupported(config, {}));
  EXPECT_FALSE(reference.unsupported(config, accumulating_in(DType::f32)));
  EXPECT_EQ(reference.unsupported(config, accumulating_in(DType::bf16)), "accumulate: expected f64 or f32, found bf16");
  EXPECT_NE(message_of<Error>([&] { reference.create(config, nullptr, accumulating_in(DType::bf16)); }), "");
}

}  // namespace
}  // namespace dsv2::reference
