// Every kind of PNG is read as the grey that one sees, or refused in one line.
#include "harness/picture.h"

#include <gtest/gtest.h>
#include <png.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "model/error.h"
#include "model/file.h"
#include "temporary_folder.h"

namespace dsv2::harness {
namespace {

using testing::message_of;
using testing::TemporaryFolder;

/// Black, white and all greys between, 17 x 16.
constexpr int kWidth = 17, kHeight = 16;
int grey_at(int x, int y) { return std::min(255, 16 * x + y); }

struct Kind {
  const char* name;
  int colour_type, bits;
  bool interlaced = false;
  int tolerance = 0;
};
std::ostream& operator<<(std::ostream& out, const Kind& kind) { return out << kind.name; }

/// The grey that `kind` can store for grey_at().
int stored_grey(const Kind& kind, int x, int y) {
  const int most = (1 << std::min(8, kind.bits)) - 1;
  return kind.colour_type == PNG_COLOR_TYPE_PALETTE ? grey_at(x, y) : (grey_at(x, y) * most + 127) / 255 * 255 / most;
}

/// Rows as libpng takes them: samples of kind.bits, most significant bit and byte first.
std::vector<std::vector<png_byte>> rows_of(const Kind& kind) {
  std::vector<std::vector<png_byte>> rows;
  for (int y = 0; y < kHeight; ++y) {
    std::vector<png_byte> row;
    int filled = 8;
    const auto put = [&](int value) {
      if (kind.bits == 16) {
        row.insert(row.end(), 2, static_cast<png_byte>(value));  // value * 257
      } else {
        if (filled == 8) row.push_back(0), filled = 0;
        row.back() = static_cast<png_byte>(row.back() | value << (8 - kind.bits - filled));
        filled += kind.bits;
      }
    };
    for (int x = 0; x < kWidth; ++x) {
      const int grey = grey_at(x, y);
      if (kind.colour_type == PNG_COLOR_TYPE_PALETTE) {
        put(255 - grey);
        continue;
      }
      const int most = (1 << std::min(8, kind.bits)) - 1;
      for (int i = 0; i < (kind.colour_type & PNG_COLOR_MASK_COLOR ? 3 : 1); ++i) put((grey * most + 127) / 255);
      if (kind.colour_type & PNG_COLOR_MASK_ALPHA) put(255);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string encoded(const Kind& kind, std::vector<std::vector<png_byte>> rows) {
  std::string out;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &out,
      [](png_structp to, png_bytep bytes, png_size_t count) {
        static_cast<std::string*>(png_get_io_ptr(to))->append(reinterpret_cast<const char*>(bytes), count);
      },
      nullptr);
  png_set_IHDR(png, info, kWidth, kHeight, kind.bits, kind.colour_type,
               kind.interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_BASE,
               PNG_FILTER_TYPE_BASE);
  std::array<png_color, 256> palette;
  for (std::size_t i = 0; i < palette.size(); ++i) {
    const auto grey = static_cast<png_byte>(255 - i);
    palette[i] = {grey, grey, grey};
  }
  if (kind.colour_type == PNG_COLOR_TYPE_PALETTE) png_set_PLTE(png, info, palette.data(), 256);
  std::vector<png_bytep> pointers;
  for (auto& row : rows) pointers.push_back(row.data());
  png_set_rows(png, info, pointers.data());
  png_write_png(png, info, PNG_TRANSFORM_IDENTITY, nullptr);
  png_destroy_write_struct(&png, &info);
  return out;
}
std::string encoded(const Kind& kind) { return encoded(kind, rows_of(kind)); }

class PngFile : public ::testing::Test {
 protected:
  std::filesystem::path write(std::string_view bytes) {
    auto file = folder_ / "picture.png";
    write_text_file(file, bytes);
    return file;
  }
  std::string refusal(std::string_view bytes) {
    const auto file = write(bytes);
    return message_of<Error>([&] { read_png(file); });
  }

 private:
  TemporaryFolder folder_;
};

class PngKind : public PngFile, public ::testing::WithParamInterface<Kind> {};

TEST_P(PngKind, IsReadAsItsGrey) {
  const Picture picture = read_png(write(encoded(GetParam())));
  ASSERT_EQ(picture.width, kWidth);
  ASSERT_EQ(picture.height, kHeight);
  for (int y = 0; y < kHeight; ++y)
    for (int x = 0; x < kWidth; ++x)
      ASSERT_NEAR(picture.grey[static_cast<std::size_t>(y * kWidth + x)], stored_grey(GetParam(), x, y),
                  GetParam().tolerance)
          << x << ", " << y;
}

INSTANTIATE_TEST_SUITE_P(
    All, PngKind,
    ::testing::Values(Kind{"grey1", PNG_COLOR_TYPE_GRAY, 1}, Kind{"grey2", PNG_COLOR_TYPE_GRAY, 2},
                      Kind{"grey4", PNG_COLOR_TYPE_GRAY, 4}, Kind{"grey8", PNG_COLOR_TYPE_GRAY, 8},
                      Kind{"grey16", PNG_COLOR_TYPE_GRAY, 16}, Kind{"interlaced", PNG_COLOR_TYPE_GRAY, 8, true},
                      Kind{"grey_alpha", PNG_COLOR_TYPE_GRAY_ALPHA, 8}, Kind{"palette", PNG_COLOR_TYPE_PALETTE, 8},
                      Kind{"rgb", PNG_COLOR_TYPE_RGB, 8, false, 1}, Kind{"rgb16", PNG_COLOR_TYPE_RGB, 16, false, 1},
                      Kind{"rgb_alpha", PNG_COLOR_TYPE_RGB_ALPHA, 8, true, 1}),
    [](const auto& kind) { return std::string(kind.param.name); });

TEST_F(PngFile, WhatIsTransparentLiesOnWhite) {
  const Kind kind{"grey_alpha", PNG_COLOR_TYPE_GRAY_ALPHA, 8};
  auto rows = rows_of(kind);
  for (auto& row : rows)
    for (std::size_t x = 0; x < row.size(); x += 2) row[x] = 0, row[x + 1] = x < 10 ? 0 : 255;
  const Picture picture = read_png(write(encoded(kind, rows)));
  EXPECT_EQ(picture.grey[4], 255);
  EXPECT_EQ(picture.grey[5], 0);
}

TEST_F(PngFile, OtherFilesAreNone) {
  EXPECT_NE(refusal("").find("picture.png: expected a PNG picture, found a file of another kind"), std::string::npos);
  EXPECT_NE(refusal("GIF89a, and more").find("found a file of another kind"), std::string::npos);
  EXPECT_NE(message_of<Error>([] { read_png("no/such.png"); }).find("no/such.png"), std::string::npos);
}

TEST_F(PngFile, CutAtAnyByteIsOneLine) {
  const std::string whole = encoded({"rgb", PNG_COLOR_TYPE_RGB, 8});
  // The last 12 bytes only say that this was the end: libpng does without.
  for (std::size_t size = 0; size < whole.size() - 12; ++size) {
    const std::string why = refusal(std::string_view(whole).substr(0, size));
    ASSERT_NE(why.find("picture.png: expected a PNG picture"), std::string::npos) << size << " bytes: " << why;
    ASSERT_EQ(why.find('\n'), std::string::npos) << why;
  }
}

TEST_F(PngFile, AChangedByteIsReadOrOneLine) {
  const std::string whole = encoded({"palette", PNG_COLOR_TYPE_PALETTE, 8});
  int refused = 0;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string broken = whole;
    broken[at] = static_cast<char>(broken[at] ^ 0x55);
    const std::string why = refusal(broken);
    refused += !why.empty();
    ASSERT_EQ(why.find('\n'), std::string::npos) << why;
  }
  EXPECT_GT(refused, 33);  // signature and header at least
}

/// The header of `whole` with other dimensions, and a checksum that fits.
std::string resized(std::string whole, std::uint32_t width, std::uint32_t height) {
  png_save_uint_32(reinterpret_cast<png_bytep>(whole.data() + 16), width);
  png_save_uint_32(reinterpret_cast<png_bytep>(whole.data() + 20), height);
  const auto sum = static_cast<png_uint_32>(crc32(0, reinterpret_cast<const Bytef*>(whole.data() + 12), 17));
  png_save_uint_32(reinterpret_cast<png_bytep>(whole.data() + 29), sum);
  return whole;
}

TEST_F(PngFile, DimensionsAreLookedAtBeforeMemoryIsTaken) {
  const std::string whole = encoded({"grey8", PNG_COLOR_TYPE_GRAY, 8});
  EXPECT_NE(refusal(resized(whole, 1'000'000, 1'000'000)).find("picture.png"), std::string::npos);
  EXPECT_NE(refusal(resized(whole, 0, 16)).find("picture.png"), std::string::npos);
  EXPECT_NE(refusal(resized(whole, 4097, 4096)).find("expected at most 16777216 pixels, found 4097 x 4096"),
            std::string::npos);
  EXPECT_NE(refusal(resized(whole, 4096, 4096)).find("cannot be read"), std::string::npos);  // its data end early
}

TEST(ScaledToHeight, IsTheMeanOfWhatAPixelCovers) {
  const Picture wide{.width = 4, .height = 2, .grey = {0, 0, 100, 200, 0, 0, 100, 200}};
  const Picture half = scaled_to_height(wide, 1);
  EXPECT_EQ(half.width, 2);
  EXPECT_EQ(half.grey, (std::vector<std::uint8_t>{0, 150}));
  EXPECT_EQ(scaled_to_height(wide, 2).grey, wide.grey);
  const Picture dot{.width = 1, .height = 1, .grey = {7}};
  const Picture large = scaled_to_height(dot, 32);
  EXPECT_EQ(large.width, 32);
  EXPECT_EQ(large.grey, std::vector<std::uint8_t>(32 * 32, 7));
}

TEST(ScaledToHeight, ThreeToTwoSharesTheMiddle) {
  const Picture column{.width = 1, .height = 3, .grey = {0, 90, 180}};
  const Picture two = scaled_to_height(column, 2);
  EXPECT_EQ(two.width, 1);
  EXPECT_EQ(two.grey, (std::vector<std::uint8_t>{30, 150}));
}

}  // namespace
}  // namespace dsv2::harness
