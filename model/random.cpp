#include "model/random.h"

namespace dsv2 {
namespace {

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;
constexpr std::int64_t kParallelFrom = 1 << 16;  // elements

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014; constants of Stafford's variant 13).
inline std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

inline std::uint64_t bits_of(std::uint64_t stream, std::int64_t i) {
  return mix(stream + static_cast<std::uint64_t>(i) * kGolden);
}

/// In integers up to the last step, so the same on every machine.
inline float normal(std::uint64_t stream, std::int64_t i) {
  const std::uint64_t x = bits_of(stream, i);
  const auto sum = static_cast<std::int32_t>((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48));
  constexpr float kUnit = 2.6428868e-05f;  // 1 / sqrt(4 (2^32 - 1) / 12)
  return static_cast<float>(sum - 2 * 0xffff) * kUnit;
}

template <class T>
void fill(T* out, std::int64_t count, std::uint64_t stream, float mean, float deviation, std::int64_t first) {
#pragma omp parallel for schedule(static) if (count >= kParallelFrom)
  for (std::int64_t i = 0; i < count; ++i) {
    // In double the product is exact, so that a fused multiply-add changes nothing.
    const auto value = static_cast<float>(double{mean} + double{deviation} * normal(stream, first + i));
    if constexpr (std::is_same_v<T, bf16_t>)
      out[i] = to_bf16(value);
    else
      out[i] = value;
  }
}

}  // namespace

std::uint64_t random_stream(std::uint64_t seed, std::string_view name) {
  std::uint64_t h = mix(seed + kGolden);
  for (const char c : name) h = mix(h ^ static_cast<unsigned char>(c)) + kGolden;
  return h;
}

std::uint64_t random_bits(std::uint64_t stream, std::int64_t i) { return bits_of(stream, i); }

void fill_normal(void* out, DType dtype, std::int64_t count, std::uint64_t stream, float mean, float deviation,
                 std::int64_t first) {
  DSV2_CHECK(dtype == DType::f32 || dtype == DType::bf16, "random numbers: expected dtype f32 or bf16, found ",
             name(dtype));
  if (dtype == DType::bf16)
    fill(static_cast<bf16_t*>(out), count, stream, mean, deviation, first);
  else
    fill(static_cast<float*>(out), count, stream, mean, deviation, first);
}

}  // namespace dsv2
