// Lists and ranges of values, as users of llama-bench and nvbench write them.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace dsv2::harness {

/// "0,512,4096"; "1-8" (every value); "1-8*2" (1 2 4 8); "0-100+25" (0 25 50 75 100); mixed with commas. Values are at
/// least 0, at most 2^24, and a range holds at most 1000. Throws Error naming `flag` for anything else.
std::vector<std::int64_t> parse_range(std::string_view text, std::string_view flag);

}  // namespace dsv2::harness
