#include "harness/ranges.h"

#include <charconv>

#include "model/error.h"

namespace dsv2::harness {

std::vector<std::int64_t> parse_range(std::string_view text, std::string_view flag) {
  constexpr std::int64_t kLargest = std::int64_t{1} << 24;
  constexpr std::size_t kMost = 1000;
  std::vector<std::int64_t> values;
  const char *at = text.data(), *const end = at + text.size();
  const auto refuse = [&]() { fail(flag, ": expected values like 0,512,4096, 1-8, 1-8*2 or 0-100+25, found ", text); };
  const auto number = [&]() {
    std::int64_t n = 0;
    const auto [next, error] = std::from_chars(at, end, n);
    if (error != std::errc() || n < 0 || n > kLargest) refuse();
    at = next;
    return n;
  };
  const auto take = [&](char c) { return at < end && *at == c ? (++at, true) : false; };
  for (bool more = true; more; more = take(',')) {
    const std::int64_t first = number();
    std::int64_t last = first, factor = 1, step = 1;
    if (take('-')) last = number();
    if (take('*')) {
      factor = number();
      step = 0;
    } else if (take('+')) {
      step = number();
    }
    if (last < first || (step == 0 && (factor < 2 || first == 0))) refuse();
    for (std::int64_t v = first; v <= last; v = v * factor + step) {
      values.push_back(v);
      if (values.size() > kMost) refuse();
    }
  }
  if (at != end) refuse();
  return values;
}

}  // namespace dsv2::harness
