#include "gpusim/video.h"

#include <algorithm>
#include <cstdlib>

namespace gpusim {
namespace {

/// Fields of VideoOperation in a word, one after the other.
class Packer {
 public:
  template <class T>
  void field(T value, int bits) {
    bits_ |= static_cast<std::uint64_t>(value) << at_;
    at_ += bits;
  }
  std::int64_t bits() const { return static_cast<std::int64_t>(bits_); }

 private:
  std::uint64_t bits_ = 0;
  int at_ = 0;
};
class Unpacker {
 public:
  explicit Unpacker(std::int64_t bits) : bits_(static_cast<std::uint64_t>(bits)) {}
  template <class T>
  void field(T& value, int bits) {
    value = static_cast<T>(bits_ & ((std::uint64_t{1} << bits) - 1));
    bits_ >>= bits;
  }

 private:
  std::uint64_t bits_;
};

/// The one list of fields, for both ways.
template <class Visitor, class Operation>
void visit(Visitor& visitor, Operation& o) {
  visitor.field(o.op, 4);
  visitor.field(o.second, 2);
  visitor.field(o.compare, 3);
  visitor.field(o.d_signed, 1);
  visitor.field(o.a_signed, 1);
  visitor.field(o.b_signed, 1);
  visitor.field(o.saturates, 1);
  visitor.field(o.wraps, 1);
  visitor.field(o.parts, 3);
  visitor.field(o.mask, 4);
  visitor.field(o.a_part, 3);
  visitor.field(o.b_part, 3);
  visitor.field(o.d_part, 3);
  visitor.field(o.plus_one, 1);
  visitor.field(o.negates_product, 1);
  visitor.field(o.negates_c, 1);
  visitor.field(o.shift, 4);
}

std::int64_t extend(std::uint32_t bits, int width, bool is_signed) {
  const std::uint64_t value = bits & ((std::uint64_t{1} << width) - 1);
  const bool negative = is_signed && (value >> (width - 1) & 1u) != 0;
  return static_cast<std::int64_t>(value) - (negative ? std::int64_t{1} << width : 0);
}

int width_of(std::uint8_t part) { return part == 0 ? 32 : part < kVideoHalf ? 8 : 16; }
int shift_of(std::uint8_t part) {
  return part == 0 ? 0 : part < kVideoHalf ? 8 * (part - kVideoByte) : 16 * (part - kVideoHalf);
}
std::int64_t select(std::uint32_t bits, std::uint8_t part, bool is_signed) {
  return extend(bits >> shift_of(part), width_of(part), is_signed);
}

std::int64_t clamp_to(std::int64_t value, int width, bool is_signed) {
  const std::int64_t low = is_signed ? -(std::int64_t{1} << (width - 1)) : 0;
  const std::int64_t high = (std::int64_t{1} << (is_signed ? width - 1 : width)) - 1;
  return std::clamp(value, low, high);
}

bool compare(VideoCompare how, std::int64_t a, std::int64_t b) {
  switch (how) {
    case VideoCompare::eq:
      return a == b;
    case VideoCompare::ne:
      return a != b;
    case VideoCompare::lt:
      return a < b;
    case VideoCompare::le:
      return a <= b;
    case VideoCompare::gt:
      return a > b;
    case VideoCompare::ge:
      return a >= b;
  }
  return false;
}

std::int64_t shift(const VideoOperation& o, std::int64_t a, std::int64_t by) {
  const auto count = static_cast<std::uint32_t>(by);
  const std::uint32_t bits = o.wraps ? count & 31u : std::min(count, 32u);
  return o.op == VideoOp::shift_left ? static_cast<std::int64_t>(static_cast<std::uint64_t>(a) << bits) : a >> bits;
}

std::int64_t compute(const VideoOperation& o, std::int64_t a, std::int64_t b) {
  switch (o.op) {
    case VideoOp::add:
      return a + b;
    case VideoOp::subtract:
      return a - b;
    case VideoOp::difference:
      return std::abs(a - b);
    case VideoOp::minimum:
      return std::min(a, b);
    case VideoOp::maximum:
      return std::max(a, b);
    case VideoOp::average:  // halves away from zero
      return (a + b + (a + b >= 0 ? 1 : 0)) >> 1;
    case VideoOp::shift_left:
    case VideoOp::shift_right:
      return shift(o, a, b);
    case VideoOp::set:
      return compare(o.compare, a, b) ? 1 : 0;
    case VideoOp::mad:
      break;
  }
  return 0;
}

std::uint32_t multiply_add(const VideoOperation& o, std::int64_t a, std::int64_t b, std::uint32_t c) {
  const bool is_signed = o.a_signed || o.b_signed || o.negates_product || o.negates_c;
  __int128 sum = static_cast<__int128>(a) * b;
  if (o.negates_product) sum = -sum;
  const std::int64_t third = is_signed ? std::int64_t{static_cast<std::int32_t>(c)} : std::int64_t{c};
  sum += o.negates_c ? -third : third;
  if (o.plus_one) sum += 1;
  sum >>= o.shift;
  if (o.saturates) {
    const __int128 low = is_signed ? INT32_MIN : 0;
    const __int128 high = is_signed ? __int128{INT32_MAX} : __int128{UINT32_MAX};
    sum = std::clamp(sum, low, high);
  }
  return static_cast<std::uint32_t>(sum);
}

std::uint32_t run_scalar(const VideoOperation& o, std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  const std::int64_t x = select(a, o.a_part, o.a_signed);
  const std::int64_t y = select(b, o.b_part, o.b_signed);
  if (o.op == VideoOp::mad) return multiply_add(o, x, y, c);
  std::int64_t value = compute(o, x, y);
  if (o.saturates) value = clamp_to(value, width_of(o.d_part), o.d_signed);
  const auto bits = static_cast<std::uint32_t>(value);
  const auto as_signed = [](std::uint32_t v) { return static_cast<std::int32_t>(v); };
  switch (o.second) {
    case VideoSecond::add:
      return bits + c;
    case VideoSecond::minimum:
      return o.d_signed ? static_cast<std::uint32_t>(std::min(as_signed(bits), as_signed(c))) : std::min(bits, c);
    case VideoSecond::maximum:
      return o.d_signed ? static_cast<std::uint32_t>(std::max(as_signed(bits), as_signed(c))) : std::max(bits, c);
    case VideoSecond::none:
      break;
  }
  if (o.d_part == 0) return bits;
  const auto keep = static_cast<std::uint32_t>((std::uint64_t{1} << width_of(o.d_part)) - 1);
  const int at = shift_of(o.d_part);
  return (bits & keep) << at | (c & ~(keep << at));
}

std::uint32_t run_parts(const VideoOperation& o, std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  const int width = 32 / o.parts;
  const auto keep = static_cast<std::uint32_t>((std::uint64_t{1} << width) - 1);
  const bool sums = o.second == VideoSecond::add;
  std::uint32_t result = c;
  for (int i = 0; i < o.parts; ++i) {
    if ((o.mask >> i & 1) == 0) continue;
    const int at = i * width;
    std::int64_t value = compute(o, extend(a >> at, width, o.a_signed), extend(b >> at, width, o.b_signed));
    if (o.saturates) value = clamp_to(value, width, o.d_signed);
    if (sums) {
      result += static_cast<std::uint32_t>(value);
    } else {
      result = (result & ~(keep << at)) | (static_cast<std::uint32_t>(value) & keep) << at;
    }
  }
  return result;
}

}  // namespace

std::int64_t pack_video(const VideoOperation& operation) {
  Packer packer;
  visit(packer, operation);
  return packer.bits();
}

VideoOperation unpack_video(std::int64_t bits) {
  VideoOperation operation;
  Unpacker unpacker(bits);
  visit(unpacker, operation);
  return operation;
}

std::uint32_t run_video(const VideoOperation& operation, std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return operation.parts == 1 ? run_scalar(operation, a, b, c) : run_parts(operation, a, b, c);
}

}  // namespace gpusim
