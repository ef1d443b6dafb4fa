#include "model/quantised.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "model/checksum.h"
#include "model/random.h"
#include "model/weights.h"

namespace dsv2 {
namespace {

Tensor normal(std::int64_t rows, std::int64_t cols, std::uint64_t seed = 1) {
  Tensor t(DType::f32, {rows, cols});
  fill_normal(t.data(), DType::f32, t.size(), random_stream(seed, "x"), 0, 1);
  return t;
}

double relative_l2(const Tensor& a, const TensorView& b) {
  const auto x = widen<double>(a.view()), y = widen<double>(b);
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < x.size(); ++i) error += (x[i] - y[i]) * (x[i] - y[i]), norm += x[i] * x[i];
  return std::sqrt(error / norm);
}

TEST(Quantised, BytesAreWhatTheLayoutSays) {
  EXPECT_EQ(array_bytes(DType::i8, {16, 64}), 1088);
  EXPECT_EQ(array_bytes(DType::i4, {16, 64}), 576);
  EXPECT_EQ(array_bytes(DType::i4, {1280, 896}), 1280 * 896 * 9 / 16);   // 4.5 bits
  EXPECT_EQ(array_bytes(DType::i8, {1280, 896}), 1280 * 896 * 17 / 16);  // 8.5 bits
  EXPECT_EQ(array_bytes(DType::i4, {17, 65}), 2 * 2 * 576);              // filled up
  EXPECT_EQ(array_bytes(DType::i4, {3, 17, 65}), 3 * 2 * 2 * 576);       // each matrix by itself
  EXPECT_THROW(array_bytes(DType::i8, {100}), Error);                    // no matrix
  EXPECT_EQ(array_bytes(DType::i4, {0, 64}), 0);
}

TEST(Quantised, ErrsAsDocumented) {
  const Tensor x = normal(64, 640);
  const double e8 = relative_l2(x, quantise(x.view(), DType::i8).view());
  const double e4 = relative_l2(x, quantise(x.view(), DType::i4).view());
  EXPECT_GT(e8, 0.0045);
  EXPECT_LT(e8, 0.0052);
  EXPECT_GT(e4, 0.077);
  EXPECT_LT(e4, 0.084);
}

TEST(Quantised, EveryElementIsWithinHalfAStepOfItsGroupOrClipped) {
  for (const DType dtype : {DType::i8, DType::i4}) {
    const Tensor x = normal(19, 97);
    const auto wide = widen<double>(quantise(x.view(), dtype).view());
    for (std::int64_t r = 0; r < 19; ++r) {
      for (std::int64_t first = 0; first < 97; first += kQuantGroup) {
        double largest = 0;
        for (std::int64_t k = first; k < std::min<std::int64_t>(97, first + kQuantGroup); ++k)
          largest = std::max(largest, std::fabs(x.at(r * 97 + k)));
        const double step = largest / (dtype == DType::i8 ? 121 : 6.4);
        for (std::int64_t k = first; k < std::min<std::int64_t>(97, first + kQuantGroup); ++k)
          EXPECT_LE(std::fabs(wide[static_cast<std::size_t>(r * 97 + k)] - x.at(r * 97 + k)), step) << r << ' ' << k;
      }
    }
  }
}

TEST(Quantised, LayoutIsAsDocumented) {
  // One group with a single element: its scale is exact, and only its own byte differs from the value 0.
  for (const auto& [dtype, row, col, byte, shift] :
       {std::tuple(DType::i8, 3, 6, 64 + (1 * 16 + 3) * 4 + 2, 0), std::tuple(DType::i8, 15, 63, 64 + 1023, 0),
        std::tuple(DType::i4, 3, 6, 64 + (0 * 16 + 3) * 4 + 2, 4),
        std::tuple(DType::i4, 3, 10, 64 + (16 + 3) * 4 + 2, 0), std::tuple(DType::i4, 15, 63, 64 + 511, 4)}) {
    Tensor x(DType::f32, {16, 64});
    x.as<float>()[static_cast<std::size_t>(row * 64 + col)] = -1;
    const Tensor q = quantise(x.view(), dtype);
    const auto* bytes = static_cast<const std::uint8_t*>(q.data());
    const int zero = dtype == DType::i8 ? 128 : 0x88, mask = dtype == DType::i8 ? 255 : 15;
    for (int b = 64; b < q.view().bytes(); ++b) {
      if (b == byte)
        EXPECT_EQ(bytes[b] >> shift & mask, 0) << b;  // -1 = scale * (0 - 2^(bits-1))
      else
        EXPECT_EQ(bytes[b], zero) << b;
    }
    bf16_t scale;
    std::memcpy(&scale, bytes + (col / 32 * 16 + row) * 2, 2);
    EXPECT_EQ(to_float(scale), dtype == DType::i8 ? 1 / 128.0f : 1 / 8.0f);
  }
}

TEST(Quantised, ExtremesStayFinite) {
  Tensor x(DType::f32, {4, 64});
  auto v = x.as<float>();
  for (std::size_t i = 0; i < 64; ++i) {
    v[i] = 1e-42f;                                  // a denormal scale: 0
    v[64 + i] = std::numeric_limits<float>::max();  // the scale rounds up, the product must not
    v[128 + i] = i == 5 ? 1e30f : 1e-30f;
  }
  for (const DType dtype : {DType::i8, DType::i4}) {
    const auto wide = widen<double>(quantise(x.view(), dtype).view());
    for (std::size_t i = 0; i < wide.size(); ++i) EXPECT_TRUE(std::isfinite(wide[i])) << i;
    EXPECT_EQ(wide[0], 0);
    EXPECT_NEAR(wide[64] / std::numeric_limits<float>::max(), 1, 0.01);
    EXPECT_NEAR(wide[128 + 5] / 1e30, 1, 0.01);
  }
}

TEST(Quantised, EveryVariantGivesTheSameBits) {
  const auto variants = quantise_variants();
  if (variants.size() < 2) GTEST_SKIP() << "this machine runs one variant only";
  for (const DType dtype : {DType::i8, DType::i4}) {
    for (const auto& [rows, cols] : {std::pair(16, 256), std::pair(11, 97), std::pair(1, 1)}) {
      for (int kind = 0; kind < 5; ++kind) {
        Tensor x = normal(rows, cols, static_cast<std::uint64_t>(kind));
        std::size_t i = 0;
        for (float& v : x.as<float>()) {
          ++i;
          if (kind == 1) v *= i % 7 ? 1e-20f : 1e20f;
          if (kind == 2) v *= i % 96 < 33 ? 1e-38f : 9e37f;  // denormal scales, and elements that would overflow
          if (kind == 3) v *= i % 5 ? 0 : 1e-38f;
          if (kind == 4) v = static_cast<float>(static_cast<int>(v * 4));  // ties
        }
        const auto bytes = static_cast<std::size_t>(quantised_panel_bytes(dtype, cols));
        std::vector<std::byte> first(bytes, std::byte{1}), other(bytes, std::byte{2});
        variants.front().quantise_panel(x.as<float>().data(), rows, cols, dtype, first.data());
        for (const QuantiseVariant& v : variants.subspan(1)) {
          v.quantise_panel(x.as<float>().data(), rows, cols, dtype, other.data());
          EXPECT_EQ(first, other) << v.isa << ' ' << name(dtype) << ' ' << rows << 'x' << cols << " kind " << kind;
        }
      }
    }
  }
}

TEST(Quantised, BitsArePinned) {  // checkpoints that are drawn from a seed must stay what they are
  const Tensor x = normal(48, 320, 5);
  for (const auto& [dtype, expected] :
       {std::pair(DType::i8, "xxh3-64:dea28b038b1d386d"), std::pair(DType::i4, "xxh3-64:68dbeb13e465c7ec")}) {
    const Tensor q = quantise(x.view(), dtype);
    Checksum sum;
    sum.update({static_cast<const std::byte*>(q.data()), static_cast<std::size_t>(q.view().bytes())});
    EXPECT_EQ(checksum_text(sum.digest()), expected);
  }
}

TEST(Quantised, RowsAreReadWhereTheyBegin) {
  const Tensor x = normal(40, 70), q = quantise(x.view(), DType::i4);
  const auto all = widen<float>(q.view());
  std::vector<float> some(7 * 70);
  widen_rows_into(q.view(), 13, 7, some.data());
  for (std::size_t i = 0; i < some.size(); ++i) EXPECT_EQ(some[i], all[13 * 70 + i]);
}

TEST(Quantised, StacksOfMatricesAreQuantisedOneByOne) {
  Tensor x(DType::f32, {3, 17, 33});
  fill_normal(x.data(), DType::f32, x.size(), 7, 0, 1);
  const Tensor q = quantise(x.view(), DType::i8);
  const std::int64_t each = array_bytes(DType::i8, {17, 33});
  for (std::int64_t i = 0; i < 3; ++i) {
    const Tensor one = quantise({DType::f32, {17, 33}, x.as<float>().data() + i * 17 * 33}, DType::i8);
    EXPECT_EQ(std::memcmp(one.data(), static_cast<const char*>(q.data()) + i * each, static_cast<std::size_t>(each)),
              0);
  }
}

TEST(Quantised, RefusesWhatIsNoMatrixOfFloats) {
  EXPECT_THROW(quantise(Tensor(DType::f32, {8}).view(), DType::i8), Error);
  EXPECT_THROW(quantise(Tensor(DType::i64, {8, 8}).view(), DType::i8), Error);
  EXPECT_THROW(quantise(Tensor(DType::f32, {8, 8}).view(), DType::bf16), Error);
  const Tensor q = quantise(normal(16, 64).view(), DType::i8);
  EXPECT_THROW(q.as<std::int8_t>(), Error);
  EXPECT_THROW(q.at(0), Error);
}

TEST(Quantised, WeightsDrawnAreTheDrawnWeightsQuantised) {
  for (const char* preset : {"tiny-mha", "tiny-mla"}) {
    const Config config = Config::preset(preset);
    for (const DType dtype : {DType::i8, DType::i4}) {
      const auto drawn = Weights::random(config, 3, dtype);
      const auto rounded = Weights::rounded(Weights::random(config, 3, DType::f32), config, dtype);
      EXPECT_EQ(drawn->bytes(config), [&] {
        std::int64_t sum = 0;
        for_each_tensor(config, *drawn,
                        [&](const std::string&, const Shape&, const TensorView& v) { sum += v.bytes(); });
        return sum;
      }());
      std::vector<TensorView> expected;
      for_each_tensor(config, *rounded,
                      [&](const std::string&, const Shape&, const TensorView& v) { expected.push_back(v); });
      std::size_t i = 0;
      for_each_tensor(config, *drawn, [&](const std::string& name, const Shape& shape, const TensorView& v) {
        const TensorView& e = expected[i++];
        if (shape.size() == 1) return;  // vectors keep the dtype they were drawn in
        ASSERT_EQ(v.dtype, e.dtype) << name;
        EXPECT_EQ(std::memcmp(v.data, e.data, static_cast<std::size_t>(v.bytes())), 0) << name;
      });
    }
  }
}

}  // namespace
}  // namespace dsv2
