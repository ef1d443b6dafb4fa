// Grey pictures, from PNG files of any kind.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace dsv2::harness {

/// Rows of 8-bit grey, top to bottom: 0 black, 255 white.
struct Picture {
  int width = 0, height = 0;  ///< pixels, at least 1
  std::vector<std::uint8_t> grey;
};

/// Most pixels of a picture that is read: a page at 400 dpi has 15 million.
inline constexpr std::int64_t kMostPixels = std::int64_t{1} << 24;

/// Grey pictures of 8 bits are read as they are, others are converted by libpng (sRGB luminance; 16 bits to 8; what is
/// transparent lies on white). Throws Error naming the file: no PNG, broken, cut short, or of more than kMostPixels,
/// which its header tells before anything is allocated.
Picture read_png(const std::filesystem::path& file);

/// The same picture `height` pixels high, its width in proportion (at least 1): each pixel is the mean of the area that
/// it covers. Unchanged where it is that high already.
Picture scaled_to_height(Picture picture, int height);

}  // namespace dsv2::harness
