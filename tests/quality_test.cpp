#include "harness/quality.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/random.h"
#include "optimized/cpu/backend.h"

namespace dsv2::harness {
namespace {

double relative_l2(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += std::pow(double{got[i]} - double{want[i]}, 2);
    norm += double{want[i]} * double{want[i]};
  }
  return std::sqrt(error / norm);
}

TEST(Ggml, GroupsAreAsItsFormatsSay) {
  // Q4_0: the element of largest size becomes -8 steps, so that 7 is the most in the other direction.
  std::vector<float> row(32, 0);
  row[0] = -4, row[1] = 4, row[2] = 1.3f, row[3] = -0.2f;
  through_q4_0(row.data(), 32);
  EXPECT_EQ(row[0], -4);
  EXPECT_EQ(row[1], 3.5f);
  EXPECT_EQ(row[2], 1.5f);
  EXPECT_EQ(row[3], 0);
  EXPECT_EQ(row[4], 0);
  // Q8_0: 127 steps, the scale rounded to f16.
  std::vector<float> eight = {-127, 64.4f, 0.6f};
  through_q8_0(eight.data(), 3);
  EXPECT_EQ(eight, (std::vector<float>{-127, 64, 1}));
}

TEST(Ggml, ErrsOnNormalNumbersAsTheHeaderOfOursSays) {
  std::vector<float> x(32 * 4096);
  fill_normal(x.data(), DType::f32, static_cast<std::int64_t>(x.size()), 3, 0, 1);
  auto four = x, eight = x;
  through_q4_0(four.data(), static_cast<std::int64_t>(x.size()));
  through_q8_0(eight.data(), static_cast<std::int64_t>(x.size()));
  EXPECT_NEAR(relative_l2(four, x), 0.083, 0.005);
  EXPECT_NEAR(relative_l2(eight, x), 0.0054, 0.0004);
}

ForwardOutput output(const std::vector<float>& logits) {
  ForwardOutput out;
  out.logits = Tensor::from<float>(logits, {1, static_cast<std::int64_t>(logits.size()) / 2, 2});
  out.hidden_states.push_back(Tensor::from<float>(std::vector<float>{3, 4}, {1, 1, 2}));
  return out;
}

TEST(Quality, IsWhatTheDefinitionsGive) {
  const ForwardOutput want = output({0, 0, 5, -5});
  const Quality same = judge_quality(output({0, 0, 5, -5}), want);
  EXPECT_EQ(same.logits, 0);
  EXPECT_NEAR(same.kl, 0, 1e-15);
  EXPECT_EQ(same.top1, 1);
  // One of two positions: probabilities 1/2, 1/2 against 1/4, 3/4; there the likeliest token is another.
  ForwardOutput other = output({0, std::log(3.0f), 5, -5});
  other.hidden_states[0].as<float>()[0] = 3.5f;
  const Quality q = judge_quality(other, want);
  EXPECT_NEAR(q.kl, 0.5 * (0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3)), 1e-7);
  EXPECT_EQ(q.top1, 0.5);
  EXPECT_NEAR(q.logits, std::log(3.0) / std::sqrt(50.0), 1e-7);
  EXPECT_NEAR(q.hidden_states[0], 0.1, 1e-7);
  ForwardOutput broken = output({0, std::nanf(""), 5, -5});
  EXPECT_TRUE(std::isnan(judge_quality(broken, want).kl));
  EXPECT_TRUE(judge_quality(broken, want).to_json().at("kl_nats").is_null());
}

TEST(Quality, OrdersTheFormatsByTheirBits) {
  const Config config = Config::preset("tiny-mha");
  const auto weights = Weights::random(config, 2, DType::f32);
  Tensor ids(DType::i64, {1, 24});
  for (std::int64_t i = 0; i < 24; ++i) ids.as<std::int64_t>()[static_cast<std::size_t>(i)] = i * 5 % config.vocab_size;
  const ForwardOutput want = quality_pass(cpu::backend(), config, weights, {}, ids);
  double eight = 0, four = 0;
  for (const QualityFormat& f : quality_formats()) {
    if (f.arithmetic != DType::f32) continue;
    const auto low = f.weights(weights, config);
    const double error = weights_error(config, *low, *weights);
    const Quality q = judge_quality(quality_pass(cpu::backend(), config, low, {}, ids), want);
    EXPECT_EQ(q.hidden_states.size(), static_cast<std::size_t>(config.num_hidden_layers) + 1) << f.name;
    const bool wide = f.name.find('8') != std::string_view::npos;
    EXPECT_NEAR(error, wide ? 0.005 : 0.08, wide ? 0.001 : 0.01) << f.name;
    double& worst = wide ? eight : four;
    worst = std::max(worst, q.hidden_states.front());
  }
  EXPECT_GT(eight, 0.003);
  EXPECT_GT(four, 10 * eight);
}

}  // namespace
}  // namespace dsv2::harness
