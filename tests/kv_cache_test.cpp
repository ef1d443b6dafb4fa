#include "model/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace dsv2 {
namespace {

struct Quantised {
  std::vector<std::int8_t> q;
  bf16_t s{};
  explicit Quantised(const std::vector<float>& x) : q(x.size()) {
    quantise_row(x.data(), static_cast<std::int64_t>(x.size()), q.data(), &s);
  }
  std::vector<float> widened() const {
    const auto n = static_cast<std::int64_t>(q.size());
    const Tensor t = widen_quantised({DType::s8, {1, n}, q.data()}, {DType::bf16, {1}, &s});
    return {t.as<float>().begin(), t.as<float>().end()};
  }
};

std::vector<float> normal_row(std::mt19937_64& engine, std::size_t dim, float size) {
  std::normal_distribution<float> normal(0, size);
  std::vector<float> x(dim);
  for (float& v : x) v = normal(engine);
  return x;
}

TEST(QuantisedRow, IsOffByHalfAStepAndComesBackAsItIs) {
  std::mt19937_64 engine(1);
  for (const float size : {1e-30f, 1e-3f, 1.0f, 3e4f, 1e36f})
    for (const std::size_t dim : {1u, 3u, 24u, 128u, 512u})
      for (int row = 0; row < 50; ++row) {
        const std::vector<float> x = normal_row(engine, dim, size);
        const Quantised once(x);
        const std::vector<float> wide = once.widened();
        double largest = 0;
        for (const float v : x) largest = std::max(largest, std::fabs(static_cast<double>(v)));
        for (std::size_t i = 0; i < dim; ++i)
          ASSERT_LE(std::fabs(static_cast<double>(wide[i]) - x[i]), kQuantisedRowError * largest * (1 + 0x1p-14));
        const Quantised twice(wide);
        ASSERT_EQ(twice.q, once.q);
        ASSERT_EQ(twice.s.bits, once.s.bits);
      }
}

TEST(QuantisedRow, RoundsToNearestEven) {
  const Quantised r({127, 0.5f, 1.5f, -0.5f, -2.5f, 63.4f, -127});
  EXPECT_EQ(to_float(r.s), 1.0f);
  EXPECT_EQ(r.q, (std::vector<std::int8_t>{127, 0, 2, 0, -2, 63, -127}));
}

TEST(QuantisedRow, WhatIsTooSmallIsZeroAndWhatIsNotFiniteShows) {
  const float least = std::numeric_limits<float>::min();
  EXPECT_EQ(Quantised({126 * least, -least}).widened(), (std::vector<float>{0, 0}));
  EXPECT_EQ(Quantised({127 * least}).widened(), (std::vector<float>{127 * least}));
  EXPECT_EQ(Quantised({0, 0}).widened(), (std::vector<float>{0, 0}));
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
    for (const float v : Quantised({1, bad, 2}).widened()) EXPECT_TRUE(std::isnan(v));
}

TEST(Int8Cache, TakesTheBytesThatCostSaysAndKeepsItsRows) {
  for (const char* preset : {"tiny-mha", "tiny-mla"}) {
    const Config config = Config::preset(preset);
    std::mt19937_64 engine(2);
    LegacyCache given;
    for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
      const auto part = [&](std::size_t p) {
        const CachePart c = cache_parts(config)[p];
        const Shape shape{2, c.heads, 5, c.dim};
        return Tensor::from(
            std::span<const float>(normal_row(engine, static_cast<std::size_t>(element_count(shape)), 1)), shape);
      };
      given.push_back({part(0), part(1)});
    }
    const auto cache = HostKvCache::from_legacy(given, config, DType::i8);
    EXPECT_EQ(cache->bytes(), 2 * 5 * kv_bytes_per_token(config, DType::i8)) << preset;
    const LegacyCache rows = cache->to_legacy();
    const auto expect_rows = [&](const KvCache& other, std::int64_t length) {
      const LegacyCache found = other.to_legacy();
      for (std::size_t i = 0; i < rows.size(); ++i)
        for (const auto& [got, want] :
             {std::pair(&found[i].first, &rows[i].first), {&found[i].second, &rows[i].second}}) {
          ASSERT_EQ(got->dim(2), length);
          const std::int64_t dim = want->dim(3);
          for (std::int64_t n = 0; n < got->size(); ++n) {
            const std::int64_t matrix = n / (length * dim), at = n % (length * dim);
            ASSERT_EQ(got->at(n), want->at(matrix * 5 * dim + at)) << preset << " layer " << i;
          }
        }
    };
    expect_rows(*HostKvCache::from_legacy(rows, config, DType::i8), 5);
    const auto copy = cache->clone();
    auto& host = dynamic_cast<HostKvCache&>(*copy);
    host.reserve(13);
    EXPECT_EQ(host.bytes(), 2 * 13 * kv_bytes_per_token(config, DType::i8)) << preset;
    expect_rows(*copy, 5);
    copy->truncate(3);
    expect_rows(*copy, 3);
  }
}

TEST(KvBytes, OfAToken) {
  const Config ocr = Config::preset("deepseek-ocr");
  EXPECT_EQ(kv_bytes_per_token(ocr, DType::bf16), 61'440);
  EXPECT_EQ(kv_bytes_per_token(ocr, DType::i8), 12 * 2 * 10 * (128 + 2));
}

}  // namespace
}  // namespace dsv2
