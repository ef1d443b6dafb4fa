#include "gpusim/tensor_map.h"

#include <bit>
#include <cstring>

#include "model/error.h"

namespace gpusim {
namespace {

constexpr std::array<int, 13> kTypeBytes = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};

bool is_float(TensorType type) { return type >= TensorType::f16; }

template <class... Parts>
TensorMapRefusal invalid(const Parts&... parts) {
  return {.why = dsv2::concat(parts...)};
}
template <class... Parts>
TensorMapRefusal not_modelled(const Parts&... parts) {
  return {.why = dsv2::concat(parts...), .modelled = false};
}

/// What can be told without looking at the dimensions.
std::optional<TensorMapRefusal> check_modes(const TensorMapRequest& request) {
  if (request.type < 0 || request.type > 15) return invalid("tensorDataType ", request.type, " is none");
  if (request.type >= static_cast<int>(kTypeBytes.size())) {
    return not_modelled("the packed 4- and 6-bit types of compute capability 10.0");
  }
  if (request.interleave < 0 || request.interleave > 2) return invalid("interleave ", request.interleave, " is none");
  if (request.interleave != 0) return not_modelled("CU_TENSOR_MAP_INTERLEAVE_16B and _32B");
  if (request.swizzle < 0 || request.swizzle > 6) return invalid("swizzle ", request.swizzle, " is none");
  if (request.swizzle > 3) return not_modelled("swizzles in atoms of 32 and 64 bytes, of compute capability 10.0");
  if (request.l2_promotion < 0 || request.l2_promotion > 3) return invalid("l2Promotion is none");
  if (request.fill < 0 || request.fill > 1) return invalid("oobFill is none");
  if (request.fill == 1 && !is_float(static_cast<TensorType>(request.type))) {
    return invalid("oobFill NaN for a type that is not floating point");
  }
  if (request.rank < 1 || request.rank > kTensorRanks) return invalid("tensorRank ", request.rank, " is not 1 to 5");
  if (request.address % 16 != 0) return invalid("globalAddress is no multiple of 16 bytes");
  return std::nullopt;
}

std::optional<TensorMapRefusal> check_dimensions(const TensorMapRequest& request) {
  const auto element = static_cast<std::uint64_t>(bytes_of(static_cast<TensorType>(request.type)));
  for (std::uint32_t i = 0; i < request.rank; ++i) {
    if (request.sizes[i] == 0 || request.sizes[i] > std::uint64_t{1} << 32) {
      return invalid("globalDim[", i, "] is ", request.sizes[i], ", not 1 to 2^32");
    }
    if (request.box[i] == 0 || request.box[i] > 256) {
      return invalid("boxDim[", i, "] is ", request.box[i], ", not 1 to 256");
    }
    if (request.steps[i] == 0 || request.steps[i] > 8) {
      return invalid("elementStrides[", i, "] is ", request.steps[i], ", not 1 to 8");
    }
    if (i + 1 == request.rank) continue;
    const std::uint64_t stride = request.strides[i];
    if (stride % 16 != 0 || stride >= std::uint64_t{1} << 40) {
      return invalid("globalStrides[", i, "] is ", stride, ", no multiple of 16 below 2^40");
    }
  }
  const std::uint64_t inner = request.box[0] * element;
  if (inner % 16 != 0) return invalid("the box's rows have ", inner, " bytes, no multiple of 16");
  const auto swizzle = static_cast<Swizzle>(request.swizzle);
  if (swizzle != Swizzle::none && inner > swizzle_span(swizzle)) {
    return invalid("the box's rows have ", inner, " bytes, more than the ", swizzle_span(swizzle), " of the swizzle");
  }
  return std::nullopt;
}

void flush_subnormal(std::uint32_t& bits) {
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
}

/// To nearest even at bit 13; NaNs and infinities keep their upper bits.
void round_to_tf32(std::uint32_t& bits) {
  if ((bits & 0x7f800000u) != 0x7f800000u) bits += 0xfffu + (bits >> 13 & 1u);
  bits &= 0xffffe000u;
}

}  // namespace

int bytes_of(TensorType type) { return kTypeBytes[static_cast<std::size_t>(type)]; }

std::optional<TensorMapRefusal> encode(const TensorMapRequest& request, TensorMap& out) {
  if (request.sizes == nullptr || request.box == nullptr || request.steps == nullptr ||
      (request.strides == nullptr && request.rank > 1)) {
    return invalid("an array is null");
  }
  if (auto refusal = check_modes(request)) return refusal;
  if (auto refusal = check_dimensions(request)) return refusal;
  out = TensorMap{.mark = kTensorMapMark,
                  .address = request.address,
                  .rank = static_cast<std::uint8_t>(request.rank),
                  .type = static_cast<TensorType>(request.type),
                  .swizzle = static_cast<Swizzle>(request.swizzle),
                  .nan_fill = request.fill == 1};
  for (std::size_t i = 0; i < request.rank; ++i) {
    out.last[i] = static_cast<std::uint32_t>(request.sizes[i] - 1);
    out.box[i] = static_cast<std::uint16_t>(request.box[i]);
    out.step[i] = static_cast<std::uint8_t>(request.steps[i]);
    if (i + 1 < request.rank) out.strides[i] = request.strides[i];
  }
  return std::nullopt;
}

std::optional<TensorMap> decode_tensor_map(std::span<const std::byte> bytes) {
  TensorMap map;
  if (bytes.size() < sizeof map) return std::nullopt;
  std::memcpy(&map, bytes.data(), sizeof map);
  if (map.mark != kTensorMapMark || map.rank < 1 || map.rank > kTensorRanks) return std::nullopt;
  return map;
}

void finish_row(const TensorTile& tile, const TileRow& row, std::byte* bytes) {
  const TensorMap& map = tile.map;
  const std::uint32_t total = tile.row_bytes();
  const auto fill = [&](std::uint32_t begin, std::uint32_t end) {
    if (begin >= end) return;
    if (!map.nan_fill) {
      std::memset(bytes + begin, 0, end - begin);
      return;
    }
    // All bits but the sign: a NaN in each format.
    std::memset(bytes + begin, 0xff, end - begin);
    for (std::uint32_t at = begin + tile.element_bytes() - 1; at < end; at += tile.element_bytes()) {
      bytes[at] = std::byte{0x7f};
    }
  };
  fill(0, row.first);
  fill(row.end, total);
  if (map.type != TensorType::f32_ftz && map.type != TensorType::tf32 && map.type != TensorType::tf32_ftz) return;
  for (std::uint32_t at = row.first; at + 4 <= row.end; at += 4) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, bytes + at, sizeof bits);
    if (map.type != TensorType::tf32) flush_subnormal(bits);
    if (map.type != TensorType::f32_ftz) round_to_tf32(bits);
    std::memcpy(bytes + at, &bits, sizeof bits);
  }
}

}  // namespace gpusim
