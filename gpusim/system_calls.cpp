#include "gpusim/system_calls.h"

#include <bit>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "model/error.h"

namespace gpusim {
namespace {

/// A lane's view of memory: strings and arguments by address. What does not lie in memory reads as empty.
class LaneMemory {
 public:
  LaneMemory(const Warp& warp, int lane) : warp_(warp), lane_(static_cast<std::size_t>(lane)) {}

  /// Where the frame begins that the offsets of a call's arguments count from: the instruction's `a` says so.
  std::uint64_t frame(const Instruction& in) const {
    std::uint64_t at = 0;
    if (in.a >= 0) std::memcpy(&at, warp_.base + in.a + sizeof at * lane_, sizeof at);
    return at;
  }

  template <class T>
  T local(std::uint64_t offset) const {
    T value{};
    if (offset + sizeof value <= warp_.local_bytes) {
      std::memcpy(&value, warp_.local + lane_ * warp_.local_bytes + offset, sizeof value);
    }
    return value;
  }

  template <class T>
  T read(std::uint64_t address) const {
    T value{};
    if (address >> kWindowShift == kLocalWindow >> kWindowShift) return local<T>(address & 0xffffffffu);
    if (memory().contains(address)) std::memcpy(&value, reinterpret_cast<const void*>(address), sizeof value);
    return value;
  }

  std::string text(std::uint64_t address) const {
    constexpr std::size_t kLongest = 1 << 16;
    std::string result;
    for (char c = read<char>(address); c != '\0' && result.size() < kLongest; c = read<char>(++address)) result += c;
    return result;
  }

 private:
  const DeviceMemory& memory() const { return *warp_.machine->launch->memory; }
  const Warp& warp_;
  std::size_t lane_;
};

/// Arguments of printf as they lie in the buffer, each on a multiple of its size.
class Arguments {
 public:
  Arguments(const LaneMemory& memory, std::uint64_t address) : memory_(memory), address_(address) {}
  template <class T>
  T next() {
    address_ = (address_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    const T value = memory_.read<T>(address_);
    address_ += sizeof(T);
    return value;
  }

 private:
  const LaneMemory& memory_;
  std::uint64_t address_;
};

template <class T>
void append(std::string& out, const std::string& format, T value) {
  char buffer[512];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  const int written = std::snprintf(buffer, sizeof buffer, format.c_str(), value);
#pragma GCC diagnostic pop
  if (written > 0) out.append(buffer, std::min(static_cast<std::size_t>(written), sizeof buffer - 1));
}

/// One conversion, from its '%' to its letter; returns where the format goes on.
std::size_t convert(const std::string& format, std::size_t at, Arguments& arguments, const LaneMemory& memory,
                    std::string& out) {
  std::string specification = "%";
  bool is_long = false;
  for (++at; at < format.size() && std::string_view("diouxXeEfFgGaAcsp%").find(format[at]) == std::string_view::npos;
       ++at) {
    const char c = format[at];
    if (c == 'l' || c == 'z' || c == 'j' || c == 't') {
      is_long = true;
    } else if (c == '*') {
      specification += std::to_string(arguments.next<std::int32_t>());
    } else if (c != 'h') {
      specification += c;
    }
  }
  if (at >= format.size()) return at;
  const char letter = format[at];
  if (letter == '%') {
    out += '%';
  } else if (std::string_view("eEfFgGaA").find(letter) != std::string_view::npos) {
    append(out, specification + letter, arguments.next<double>());
  } else if (letter == 's') {
    out += memory.text(arguments.next<std::uint64_t>());
  } else if (letter == 'p') {
    append(out, specification + letter, reinterpret_cast<void*>(arguments.next<std::uint64_t>()));
  } else if (is_long) {
    append(out, specification + "ll" + letter, arguments.next<long long>());
  } else {
    append(out, specification + letter, arguments.next<std::int32_t>());
  }
  return at + 1;
}

std::string formatted(const std::string& format, Arguments arguments, const LaneMemory& memory) {
  std::string out;
  for (std::size_t at = 0; at < format.size();) {
    if (format[at] == '%') {
      at = convert(format, at, arguments, memory, out);
    } else {
      out += format[at++];
    }
  }
  return out;
}

}  // namespace

void print_lanes(Warp& warp, const Instruction& in) {
  for (std::uint32_t mask = warp.exec; mask != 0; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    const LaneMemory memory(warp, lane);
    const std::uint64_t frame = memory.frame(in);
    const auto format = memory.local<std::uint64_t>(frame + static_cast<std::uint64_t>(in.immediate));
    const auto arguments = memory.local<std::uint64_t>(frame + static_cast<std::uint64_t>(in.target));
    const std::string text = formatted(memory.text(format), Arguments(memory, arguments), memory);
    std::fwrite(text.data(), 1, text.size(), stdout);
    const auto written = static_cast<std::int32_t>(text.size());
    if (in.c < 0) continue;
    std::byte* const result = warp.local + static_cast<std::size_t>(lane) * warp.local_bytes + frame;
    std::memcpy(result + in.c, &written, sizeof written);
  }
}

std::string assertion_text(const Warp& warp, const Instruction& in) {
  const LaneMemory memory(warp, std::countr_zero(warp.exec));
  const std::uint64_t frame = memory.frame(in);
  const std::string message =
      memory.text(memory.local<std::uint64_t>(frame + static_cast<std::uint64_t>(in.immediate)));
  const std::string file = memory.text(memory.local<std::uint64_t>(frame + static_cast<std::uint64_t>(in.target)));
  const auto line = in.c >= 0 ? memory.local<std::uint32_t>(frame + static_cast<std::uint64_t>(in.c)) : 0u;
  return dsv2::concat("assertion `", message, "` failed in ", file, ":", line);
}

}  // namespace gpusim
