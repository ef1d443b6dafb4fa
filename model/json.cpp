#include "model/json.h"

#include <set>
#include <vector>

#include "model/error.h"

namespace dsv2 {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxQuoted = 200;

/// What nlohmann's exceptions say, without the tag that they start with.
std::string one_line(std::string text) {
  if (const auto tag = text.find("] "); tag != std::string::npos) text.erase(0, tag + 2);
  if (text.size() > 2 * kMaxQuoted) text = text.substr(0, 2 * kMaxQuoted) + "...";
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  return text;
}

}  // namespace

json parse_json(std::string_view text, std::string_view source) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    DSV2_CHECK(depth < kMaxJsonDepth, source, ": expected at most ", kMaxJsonDepth,
               " nested levels of JSON, found more");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      DSV2_CHECK(keys.back().insert(key).second, source, ": expected each key once, found ", quote(key), " twice");
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::exception& e) {
    fail(source, ": expected JSON, found ", one_line(e.what()));
  }
}

std::string quote(std::string_view text) {
  const bool cut = text.size() > kMaxQuoted;
  const auto shown = std::string(text.substr(0, kMaxQuoted)) + (cut ? "..." : "");
  return json(shown).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string describe(const json& value) {
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  if (value.is_array()) return "an array";
  if (value.is_object()) return "an object";
  return value.dump();
}

}  // namespace dsv2
