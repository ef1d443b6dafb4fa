// JSON in and out of the harness.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>

#include "model/error.h"

namespace dsv2::harness {

using Json = nlohmann::ordered_json;  // reports keep the order in which they are written

/// The file's content; throws Error as read_text_file() and parse_json() do.
Json read_json(const std::filesystem::path& file);

/// A number, or null where it is not finite: JSON has no NaN.
Json finite_or_null(double value);

/// As files hold it: indented, with a line end. Bytes that are no UTF-8 (a file's name) become U+FFFD.
std::string dump(const Json& json);

/// Writes `text` to `path` ("-": stdout) so that the file appears whole or not at all; missing folders are made. What
/// is there and no regular file (/dev/null, a FIFO) is written to as it is. Throws Error naming the path.
void write_output(const std::filesystem::path& path, std::string_view text);

/// The value under `key` of object `json` as T; throws Error naming source and key when it is missing or of another
/// type.
template <class T>
T require(const Json& json, std::string_view key, std::string_view source) {
  DSV2_CHECK(json.is_object(), source, ": expected an object with ", key, ", found ", json.type_name());
  const auto it = json.find(key);
  DSV2_CHECK(it != json.end(), source, ": ", key, ": expected a value, found none");
  try {
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>)
      DSV2_CHECK(it->is_number_integer(), source, ": ", key, ": expected an integer, found ", it->dump());
    return it->template get<T>();
  } catch (const nlohmann::json::exception&) {
    fail(source, ": ", key, ": found ", it->type_name(), " of the wrong type");
  }
}

}  // namespace dsv2::harness
