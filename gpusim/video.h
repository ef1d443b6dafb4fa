// Video instructions (vadd, vabsdiff4, vmad, ...): what they are told, packed for an instruction's record, and what
// they do to one lane. PTX ISA, "Video Instructions".
#pragma once

#include <cstdint>

namespace gpusim {

/// What is computed of the two operands.
enum class VideoOp : std::uint8_t {
  add,
  subtract,
  difference,
  minimum,
  maximum,
  average,
  shift_left,
  shift_right,
  mad,
  set
};
/// What the result then does with the third operand.
enum class VideoSecond : std::uint8_t { none, add, minimum, maximum };
enum class VideoCompare : std::uint8_t { eq, ne, lt, le, gt, ge };

/// A part of a 32-bit operand: 0 is all of it, 1 to 4 the bytes, 5 and 6 the halves.
inline constexpr std::uint8_t kVideoByte = 1;
inline constexpr std::uint8_t kVideoHalf = 5;

struct VideoOperation {
  VideoOp op = VideoOp::add;
  VideoSecond second = VideoSecond::none;
  VideoCompare compare = VideoCompare::eq;
  bool d_signed = false;
  bool a_signed = false;
  bool b_signed = false;
  bool saturates = false;
  bool wraps = false;      ///< shifts: by the low 5 bits; else by at most 32
  std::uint8_t parts = 1;  ///< 2 or 4: on halves or bytes, all at once
  std::uint8_t mask = 0;   ///< of the parts that are written
  std::uint8_t a_part = 0;
  std::uint8_t b_part = 0;
  std::uint8_t d_part = 0;
  bool plus_one = false;  ///< vmad.po
  bool negates_product = false;
  bool negates_c = false;
  std::uint8_t shift = 0;  ///< vmad: 7 or 15 bits to the right
};

/// To and from the bits of Instruction::immediate.
std::int64_t pack_video(const VideoOperation& operation);
VideoOperation unpack_video(std::int64_t bits);

std::uint32_t run_video(const VideoOperation& operation, std::uint32_t a, std::uint32_t b, std::uint32_t c);

}  // namespace gpusim
