#include "model/random.h"

#include <algorithm>

namespace dsv2 {
namespace {

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;
constexpr std::int64_t kParallelFrom = 1 << 16, kShare = 1 << 13;  // elements

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

/// to_bf16() of what is not NaN: without its branch the loop below becomes vectors.
inline bf16_t finite_to_bf16(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  return {static_cast<std::uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}

/// One thread's share, compiled once for each width of vectors.
template <class T>
[[gnu::always_inline]] inline void fill_share(T* out, std::int64_t count, std::uint64_t stream, float mean,
                                              float deviation, std::int64_t first) {
  for (std::int64_t i = 0; i < count; ++i) {
    // In double the product is exact, so that a fused multiply-add changes nothing.
    const auto value = static_cast<float>(double{mean} + double{deviation} * normal(stream, first + i));
    if constexpr (std::is_same_v<T, bf16_t>)
      out[i] = finite_to_bf16(value);
    else
      out[i] = value;
  }
}

template <class T>
using FillShare = void (*)(T*, std::int64_t, std::uint64_t, float, float, std::int64_t);

template <class T>
void fill_plain(T* out, std::int64_t count, std::uint64_t stream, float mean, float deviation, std::int64_t first) {
  fill_share(out, count, stream, mean, deviation, first);
}

#if defined(__x86_64__)
template <class T>
[[gnu::target("avx2")]] void fill_avx2(T* out, std::int64_t count, std::uint64_t stream, float mean, float deviation,
                                       std::int64_t first) {
  fill_share(out, count, stream, mean, deviation, first);
}
template <class T>
[[gnu::target("avx512f,avx512bw,avx512vl,avx512dq")]] void fill_avx512(T* out, std::int64_t count, std::uint64_t stream,
                                                                       float mean, float deviation,
                                                                       std::int64_t first) {
  fill_share(out, count, stream, mean, deviation, first);
}
#endif

template <class T>
FillShare<T> best_fill() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return fill_avx512<T>;
  if (__builtin_cpu_supports("avx2")) return fill_avx2<T>;
#endif
  return fill_plain<T>;
}

template <class T>
void fill(T* out, std::int64_t count, std::uint64_t stream, float mean, float deviation, std::int64_t first) {
  static const FillShare<T> share = best_fill<T>();
#pragma omp parallel for schedule(static) if (count >= kParallelFrom)
  for (std::int64_t begin = 0; begin < count; begin += kShare)
    share(out + begin, std::min(kShare, count - begin), stream, mean, deviation, first + begin);
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
