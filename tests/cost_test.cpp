// Every figure of the published counts and of the design notes, to the FLOP where they are given so.
#include "model/cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace dsv2 {
namespace {

const OpCost& op(const Cost& c, const std::string& kind, const std::string& name) {
  for (const LayerCost& layer : c.layers)
    if (layer.kind == kind)
      for (const OpCost& o : layer.ops)
        if (o.name == name) return o;
  throw Error("no op " + name + " in " + kind);
}
const LayerCost& layer(const Cost& c, const std::string& kind) {
  for (const LayerCost& l : c.layers)
    if (l.kind == kind) return l;
  throw Error("no layer " + kind);
}

TEST(Cost, HundredDecodeStepsAsTorchCounts) {
  const Config c = Config::preset("deepseek-ocr");
  double flops = 0;
  for (std::int64_t T = 494; T <= 593; ++T) flops += cost(c, {.context = T}).flops;
  EXPECT_EQ(flops, 118158489600.0);
}

TEST(Cost, PrefillLayersOfDeepseekOcr) {
  const Cost c = cost(Config::preset("deepseek-ocr"), {.tokens = 512, .context = 512});
  const double rope = 512 * 128;
  EXPECT_EQ(op(c, "dense", "mlp").flops, 512.0 * 2 * 3 * 1280 * 6848);
  EXPECT_NEAR(op(c, "dense", "mlp").flops, 26.927e9, 0.5e6);
  EXPECT_NEAR(op(c, "moe", "mlp.gate").flops, 0.083886e9, 0.5e3);
  EXPECT_NEAR(
      op(c, "moe", "mlp.gate").flops + op(c, "moe", "mlp.experts").flops + op(c, "moe", "mlp.shared_experts").flops,
      28.270e9, 0.5e6);
  EXPECT_NEAR(layer(c, "dense").flops - rope, 34.980e9, 0.5e6);
  EXPECT_NEAR(layer(c, "moe").flops - rope, 36.323e9, 0.5e6);
}

TEST(Cost, ParametersAndBytesOfDeepseekOcr) {
  const Config c = Config::preset("deepseek-ocr");
  const ParameterCount p = count_parameters(c);
  EXPECT_NEAR(static_cast<double>(p.total), 2.935e9, 0.5e6);
  EXPECT_NEAR(static_cast<double>(p.active), 574.1e6, 0.05e6);
  const Cost step = cost(c, {.context = 512});
  EXPECT_NEAR(step.bytes.weights, 1.148e9, 0.5e6);
  EXPECT_EQ(step.kv_bytes_per_token, 61440);
  EXPECT_EQ(step.bytes.kv, 61440.0 * 513);  // 512 rows read, one written
}

TEST(Cost, DesignNotesModel) {
  const Config c = Config::preset("ocr-mla-40l");
  EXPECT_NEAR(static_cast<double>(attention_parameters(c)), 61.43e6, 5e3);
  EXPECT_NEAR(static_cast<double>(mlp_parameters(c, 0)), 13.76e6, 5e3);
  EXPECT_NEAR(static_cast<double>(mlp_parameters(c, 1)), 876.1e6, 5e4);
  const ParameterCount p = count_parameters(c);
  EXPECT_NEAR(static_cast<double>(p.total), 36.72e9, 5e6);
  EXPECT_NEAR(static_cast<double>(p.total - c.vocab_size * c.hidden_size), 36.68e9, 5e6);

  const Cost step = cost(c, {.context = 8192});
  EXPECT_EQ(step.mla_form, MlaForm::absorbed);
  EXPECT_NEAR(step.flops, 98e9, 0.05e9);
  EXPECT_NEAR(op(step, "moe", "self_attn.kv_b_proj").flops, 25.2e6, 5e4);
  EXPECT_NEAR(op(step, "moe", "self_attn.attention").flops, 2281.7e6, 5e4);
  double projections = 0;
  for (const char* name : {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"})
    projections += op(step, "moe", std::string("self_attn.") + name).flops;
  EXPECT_NEAR(projections, 97.7e6, 5e4);

  EXPECT_NEAR(step.kv_bytes / 40, 9.44e6, 5e3);
  EXPECT_NEAR(step.kv_bytes, 377.5e6, 5e4);
  EXPECT_NEAR(cost(c, {.context = 16384}).kv_bytes, 755e6, 5e5);
  EXPECT_NEAR(cost(c, {.context = 32768}).kv_bytes, 1.51e9, 5e6);
}

TEST(Cost, MlaFormIsTheCheaperOne) {
  const Config c = Config::preset("ocr-mla-40l");
  for (const std::int64_t tokens : {1, 16, 64, 90, 100, 110, 128, 256, 1024, 4096}) {
    const Workload work{.tokens = tokens, .context = 4096, .causal = tokens % 16 != 0};
    Workload absorbed = work, expanded = work;
    absorbed.mla_form = MlaForm::absorbed, expanded.mla_form = MlaForm::expanded;
    EXPECT_EQ(cost(c, work).flops, std::min(cost(c, absorbed).flops, cost(c, expanded).flops)) << tokens;
    EXPECT_EQ(mla_form(c, work), cost(c, work).mla_form) << tokens;
    EXPECT_EQ(mla_form(c, expanded), MlaForm::expanded);
  }
  EXPECT_EQ(cost(c, {.context = 4096}).mla_form, MlaForm::absorbed);
  EXPECT_EQ(cost(c, {.tokens = 4096, .context = 4096}).mla_form, MlaForm::expanded);
}

TEST(Cost, DistinctExpertsOfABatch) {
  const Config c = Config::preset("deepseek-ocr");
  const auto experts = [&](const Workload& w) { return op(cost(c, w), "moe", "mlp.experts").bytes.weights; };
  const double one = 3.0 * 1280 * 896 * 2;
  EXPECT_NEAR(experts({.context = 512}), 6 * one, 1);
  EXPECT_NEAR(experts({.batch = 8, .context = 512}), 64 * (1 - std::pow(1 - 6.0 / 64, 8)) * one, 1);
  EXPECT_NEAR(experts({.batch = 8, .context = 512, .distinct_experts = 30}), 30 * one, 1);
}

TEST(Cost, CausalCountsVisiblePairs) {
  const Config c = Config::preset("tiny-mha");
  const auto attention = [&](bool causal) {
    return op(cost(c, {.batch = 2, .tokens = 4, .context = 10, .causal = causal}), "moe", "self_attn.attention").flops;
  };
  EXPECT_EQ(attention(false) / attention(true), 4 * 10 / (7.0 + 8 + 9 + 10));
}

/// The tensors of every layer and expert, counted one by one.
TEST(Cost, ParametersAreThoseOfTheTensors) {
  for (const std::string_view preset : preset_names()) {
    for (const bool tied : {false, true}) {
      for (const Head head : {Head::none, Head::causal_lm, Head::sequence_classification}) {
        Config c = Config::preset(preset);
        c.tie_word_embeddings = tied;
        c.head = head;
        c.moe_layer_freq = 2;
        Weights shapes;
        std::int64_t total = 0, first_attention = 0, last_mlp = 0, bf16_bytes = 0;
        const std::int64_t last = c.num_hidden_layers - 1;
        for_each_tensor(c, shapes, [&](const std::string& name, const Shape& shape, const TensorView&) {
          const std::int64_t n = element_count(shape);
          total += n;
          bf16_bytes += 2 * n;
          if (name.starts_with("model.layers.0.self_attn.")) first_attention += n;
          if (name.starts_with(concat("model.layers.", last, ".mlp."))) last_mlp += n;
        });
        EXPECT_EQ(count_parameters(c).total, total) << preset;
        EXPECT_EQ(attention_parameters(c), first_attention) << preset;
        EXPECT_EQ(mlp_parameters(c, last), last_mlp) << preset;
        EXPECT_EQ(cost(c, {}).weight_bytes, static_cast<double>(bf16_bytes)) << preset;
      }
    }
  }
}

TEST(Cost, OneTokenReadsTheActiveParametersAndItsEmbedding) {
  for (const std::string_view preset : preset_names()) {
    const Config c = Config::preset(preset);
    const double read = 2.0 * static_cast<double>(count_parameters(c).active + c.hidden_size);
    EXPECT_NEAR(cost(c, {.context = 1}).bytes.weights / read, 1, 1e-12) << preset;
  }
}

TEST(Cost, IntegersCarryAScaleForEachGroupOf32) {
  const Config c = Config::preset("deepseek-ocr");
  const auto dense = [&](DType dtype) { return op(cost(c, {.dtype = dtype}), "dense", "mlp").bytes.weights; };
  const double elements = 3.0 * 1280 * 6848;
  EXPECT_EQ(dense(DType::f32), elements * 4);
  EXPECT_EQ(dense(DType::i8), elements * 8.5 / 8);
  EXPECT_EQ(dense(DType::i4), elements * 4.5 / 8);
  EXPECT_EQ(op(cost(c, {.dtype = DType::i4}), "moe", "mlp.gate").bytes.weights, 64.0 * 1280 * 2);
}

TEST(Cost, HeadCountsTheRowsThatGetLogits) {
  const Config c = Config::preset("tiny-mha");
  const auto head = [&](Logits logits) {
    return layer(cost(c, {.batch = 2, .tokens = 5, .context = 5, .logits = logits}), "head").flops;
  };
  const double row = 2.0 * 64 * 128;
  EXPECT_EQ(head(Logits::none), 0);
  EXPECT_EQ(head(Logits::last), 2 * row);
  EXPECT_EQ(head(Logits::all), 10 * row);
}

TEST(Cost, LargeWorkDoesNotWrapRound) {
  const std::int64_t large = std::int64_t{1} << 32;
  EXPECT_EQ(cost(Config::preset("tiny-mha"), {.batch = large, .context = large}).kv_bytes, 384.0 * 0x1p64);
}

TEST(Cost, RefusesWorkThatIsNone) {
  const Config c = Config::preset("tiny-mha");
  EXPECT_THROW(cost(c, {.distinct_experts = 0}), Error);
  EXPECT_THROW(cost(c, {.distinct_experts = 9}), Error);
  EXPECT_THROW(cost(c, {.batch = 0}), Error);
  EXPECT_THROW(cost(c, {.tokens = 0}), Error);
  EXPECT_THROW(cost(c, {.tokens = 5, .context = 4}), Error);
}

}  // namespace
}  // namespace dsv2
