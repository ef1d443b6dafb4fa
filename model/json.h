// JSON that nobody vouches for. Only files that link nlohmann_json include this.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace dsv2 {

/// Arrays and objects nested deeper than this are refused.
inline constexpr int kMaxJsonDepth = 64;

/// Strict JSON in UTF-8. Throws Error with one line that starts with `source` for anything else, for a number out of
/// range, for an object with one key twice, and for nesting beyond kMaxJsonDepth.
nlohmann::json parse_json(std::string_view text, std::string_view source);

/// `text` in quotes with control characters escaped, cut to a readable length: for names found in a file.
std::string quote(std::string_view text);

/// A value as an error message shows it: quote() text, a number, "an array", "an object", "null".
std::string describe(const nlohmann::json& value);

}  // namespace dsv2
