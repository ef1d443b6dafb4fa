// Tensor maps: how a tensor lies in global memory and which box of it a copy moves. CUtensorMap's 128 bytes are opaque
// to programs; here they hold a TensorMap.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace gpusim {

inline constexpr int kTensorRanks = 5;
inline constexpr std::size_t kTensorMapBytes = 128;

/// In the order of CUtensorMapDataType.
enum class TensorType : std::uint8_t { u8, u16, u32, s32, u64, s64, f16, f32, f64, bf16, f32_ftz, tf32, tf32_ftz };
int bytes_of(TensorType type);

/// How 16-byte chunks change places within rows of shared memory: by the address's bits from 7 up.
enum class Swizzle : std::uint8_t { none, b32, b64, b128 };
constexpr std::uint32_t swizzle_span(Swizzle swizzle) { return 16u << static_cast<int>(swizzle); }
constexpr std::uint32_t swizzled(Swizzle swizzle, std::uint32_t address) {
  const std::uint32_t phases = (1u << static_cast<int>(swizzle)) - 1;
  return address ^ ((address >> 7 & phases) << 4);
}

struct TensorMap {
  std::uint64_t mark = 0;  ///< kTensorMapMark: it has been encoded
  std::uint64_t address = 0;
  std::array<std::uint64_t, kTensorRanks - 1> strides = {};  ///< in bytes, of dimension 1 and up
  std::array<std::uint32_t, kTensorRanks> last = {};         ///< sizes less one, in elements
  std::array<std::uint16_t, kTensorRanks> box = {};          ///< in elements of the tensor
  std::array<std::uint8_t, kTensorRanks> step = {};          ///< between elements that are moved
  std::uint8_t rank = 0;
  TensorType type = TensorType::u8;
  Swizzle swizzle = Swizzle::none;
  bool nan_fill = false;  ///< what lies outside reads as NaN, not as zero
};
static_assert(sizeof(TensorMap) <= kTensorMapBytes);
inline constexpr std::uint64_t kTensorMapMark = 0x70616d726f736e74;

/// What a program asks an encoding of, as the driver's call takes it.
struct TensorMapRequest {
  int type = 0;
  std::uint32_t rank = 0;
  std::uint64_t address = 0;
  const std::uint64_t* sizes = nullptr;    ///< rank
  const std::uint64_t* strides = nullptr;  ///< rank - 1, in bytes
  const std::uint32_t* box = nullptr;      ///< rank
  const std::uint32_t* steps = nullptr;    ///< rank
  int interleave = 0;
  int swizzle = 0;
  int l2_promotion = 0;
  int fill = 0;
};

/// A refusal: `supported`, what the driver would refuse too; else what is not modelled.
struct TensorMapRefusal {
  std::string why;
  bool modelled = true;
};
/// Fills `out`, or says why not.
std::optional<TensorMapRefusal> encode(const TensorMapRequest& request, TensorMap& out);
/// From the 128 bytes; nothing where no encoding made them.
std::optional<TensorMap> decode_tensor_map(std::span<const std::byte> bytes);

/// A box of a tensor: where it begins, in elements; parts of it may lie outside.
struct TensorTile {
  TensorMap map;
  std::array<std::int32_t, kTensorRanks> at = {};

  /// Elements along dimension `i` that are moved.
  std::uint32_t count(int i) const {
    const auto d = static_cast<std::size_t>(i);
    if (i >= map.rank) return 1;
    return i == 0 ? map.box[0] : (map.box[d] + map.step[d] - 1u) / map.step[d];
  }
  std::uint32_t element_bytes() const { return static_cast<std::uint32_t>(bytes_of(map.type)); }
  std::uint32_t row_bytes() const { return count(0) * element_bytes(); }
  /// Of rows in shared memory: a swizzled row fills its span.
  std::uint32_t row_pitch() const { return map.swizzle == Swizzle::none ? row_bytes() : swizzle_span(map.swizzle); }
  std::uint32_t rows() const { return count(1) * count(2) * count(3) * count(4); }
  /// What an mbarrier is told of.
  std::uint32_t bytes() const { return rows() * row_bytes(); }
  std::uint32_t shared_bytes() const { return rows() * row_pitch(); }
};

/// A row of a tile: its bytes [first, end) lie within the tensor, from `address` on.
struct TileRow {
  std::uint32_t offset = 0;  ///< in shared memory from the tile's begin, before swizzling
  std::uint64_t address = 0;
  std::uint32_t first = 0;
  std::uint32_t end = 0;
};

/// Calls `visit` with each row of a tile, in the order of shared memory.
template <class Visit>
void visit_rows(const TensorTile& tile, Visit visit) {
  const TensorMap& map = tile.map;
  const std::uint32_t element = tile.element_bytes();
  const auto inner = static_cast<std::int64_t>(tile.count(0));
  const std::int64_t size = std::int64_t{map.last[0]} + 1;
  const auto first = static_cast<std::uint32_t>(std::clamp<std::int64_t>(-std::int64_t{tile.at[0]}, 0, inner));
  const auto end = static_cast<std::uint32_t>(std::clamp<std::int64_t>(size - tile.at[0], first, inner));
  std::array<std::uint32_t, kTensorRanks> i = {};
  for (std::uint32_t row = 0; row < tile.rows(); ++row) {
    std::uint64_t address = map.address + static_cast<std::uint64_t>((tile.at[0] + std::int64_t{first}) * element);
    bool inside = true;
    for (std::size_t d = 1; d < map.rank; ++d) {
      const std::int64_t at = tile.at[d] + std::int64_t{i[d]} * map.step[d];
      inside &= at >= 0 && at <= std::int64_t{map.last[d]};
      address += static_cast<std::uint64_t>(at) * map.strides[d - 1];
    }
    visit(TileRow{.offset = row * tile.row_pitch(),
                  .address = address,
                  .first = inside ? first * element : 0,
                  .end = inside ? end * element : 0});
    for (std::size_t d = 1; d < map.rank && ++i[d] == tile.count(static_cast<int>(d)); ++d) i[d] = 0;
  }
}

/// A row as it lies in shared memory: `row` has row_bytes() bytes, those within the tensor copied already. Fills the
/// others, and rounds or flushes what its type asks for.
void finish_row(const TensorTile& tile, const TileRow& row, std::byte* bytes);

}  // namespace gpusim
