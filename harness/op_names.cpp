#include "harness/op_names.h"

#include <charconv>
#include <vector>

namespace dsv2::harness {
namespace {

std::optional<std::int64_t> integer(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

}  // namespace

OpName op_of_tensor(std::string_view tensor) {
  bool of_call = true;  // "full.logits": the first part names a call
  if (const auto colon = tensor.find(": "); colon != std::string_view::npos) {
    tensor.remove_prefix(colon + 2);
    of_call = false;
  }
  for (const std::string_view remark : {" (", " step "}) tensor = tensor.substr(0, tensor.find(remark));
  if (tensor.find(' ') != std::string_view::npos) return {};

  std::vector<std::string_view> parts;
  for (std::string_view rest = tensor;;) {
    const auto dot = rest.find('.');
    parts.push_back(rest.substr(0, dot));
    if (dot == std::string_view::npos) break;
    rest.remove_prefix(dot + 1);
  }
  OpName name;
  const bool tap = parts.front() == "layers";
  for (std::size_t i = tap || !of_call || parts.size() == 1 ? 0 : 1; i < parts.size(); ++i) {
    const auto number = integer(parts[i]);
    if (number && !name.layer) {
      name.layer = number;
    } else if (!(tap && i == 0)) {
      if (!name.op.empty()) name.op += '.';
      name.op += parts[i];
    }
  }
  if (name.op.empty()) name.op = tap ? "layer" : std::string(tensor);
  return name;
}

}  // namespace dsv2::harness
