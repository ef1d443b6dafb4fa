// Tokens of PTX text.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace gpusim::ptx {

struct Token {
  enum class Kind : std::uint8_t { word, number, punctuation, string, end };
  Kind kind = Kind::end;
  std::string_view text;  ///< of a string: without its quotes
  int line = 0;
};

/// Words hold dots, `$`, `%` and `::`: "ld.global.L1::no_allocate.f32" is one. Comments are dropped; the last token
/// is `end`. Throws dsv2::Error at a string or comment without an end.
std::vector<Token> tokenize(std::string_view text);

}  // namespace gpusim::ptx
