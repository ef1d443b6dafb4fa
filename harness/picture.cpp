#include "harness/picture.h"

#include <png.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "model/error.h"
#include "model/file.h"

namespace dsv2::harness {
namespace {

/// libpng's picture, freed whatever happens.
struct PngImage : png_image {
  PngImage() : png_image() { version = PNG_IMAGE_VERSION; }
  ~PngImage() { png_image_free(this); }
  PngImage(const PngImage&) = delete;
  PngImage& operator=(const PngImage&) = delete;
};

/// Mean of at(i) over [begin, end) in units of cells, each weighted by how much of it is covered.
template <class At>
double mean_over(double begin, double end, int cells, const At& at) {
  double sum = 0;
  const int last = std::min(cells, static_cast<int>(std::ceil(end)));
  for (int i = static_cast<int>(begin); i < last; ++i)
    sum += at(i) * (std::min(end, i + 1.0) - std::max(begin, static_cast<double>(i)));
  return sum / (end - begin);
}

}  // namespace

Picture read_png(const std::filesystem::path& file) {
  const MappedFile mapped(file);
  const auto bytes = mapped.bytes();
  PngImage png;
  const auto check = [&](int done) {
    DSV2_CHECK(done && !PNG_IMAGE_FAILED(png), file.string(),
               ": expected a PNG picture, found one that cannot be read: ", png.message);
  };
  DSV2_CHECK(bytes.size() >= 8 && png_sig_cmp(reinterpret_cast<png_const_bytep>(bytes.data()), 0, 8) == 0,
             file.string(), ": expected a PNG picture, found a file of another kind");
  check(png_image_begin_read_from_memory(&png, bytes.data(), bytes.size()));
  const std::int64_t pixels = static_cast<std::int64_t>(png.width) * static_cast<std::int64_t>(png.height);
  DSV2_CHECK(pixels <= kMostPixels, file.string(), ": picture: expected at most ", kMostPixels, " pixels, found ",
             png.width, " x ", png.height);
  png.format = PNG_FORMAT_GRAY;
  png.flags |= PNG_IMAGE_FLAG_16BIT_sRGB;  // else 16 bits without a gAMA chunk would be taken for linear light
  Picture picture{.width = static_cast<int>(png.width),
                  .height = static_cast<int>(png.height),
                  .grey = std::vector<std::uint8_t>(PNG_IMAGE_SIZE(png))};
  const png_color white = {255, 255, 255};
  check(png_image_finish_read(&png, &white, picture.grey.data(), 0, nullptr));
  return picture;
}

Picture scaled_to_height(Picture from, int height) {
  if (from.height == height) return from;
  const double scale = static_cast<double>(from.height) / height;
  Picture to{.width = std::max(1, static_cast<int>(std::lround(from.width / scale))), .height = height, .grey = {}};
  const double across = static_cast<double>(from.width) / to.width;
  // Rows first: a picture of the old width and the new height.
  std::vector<double> rows(static_cast<std::size_t>(height) * static_cast<std::size_t>(from.width));
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < from.width; ++x)
      rows[static_cast<std::size_t>(y) * static_cast<std::size_t>(from.width) + static_cast<std::size_t>(x)] =
          mean_over(y * scale, (y + 1) * scale, from.height, [&](int i) {
            return static_cast<double>(from.grey[static_cast<std::size_t>(i) * static_cast<std::size_t>(from.width) +
                                                 static_cast<std::size_t>(x)]);
          });
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < to.width; ++x) {
      const double* row = rows.data() + static_cast<std::size_t>(y) * static_cast<std::size_t>(from.width);
      const double mean = mean_over(x * across, (x + 1) * across, from.width, [&](int i) { return row[i]; });
      to.grey.push_back(static_cast<std::uint8_t>(std::clamp(std::lround(mean), 0L, 255L)));
    }
  return to;
}

}  // namespace dsv2::harness
