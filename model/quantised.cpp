#include "model/quantised.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace dsv2 {
namespace {

constexpr std::int64_t kGroupsPerBlock = kQuantBlock / kQuantGroup;
constexpr std::int64_t kScaleBytes = kGroupsPerBlock * kQuantPanel * static_cast<std::int64_t>(sizeof(bf16_t));

// What the largest element of a group may be stored as. The first one to err least is taken.
template <DType>
struct TargetsOf;
template <>
struct TargetsOf<DType::i8> {
  static constexpr float values[] = {-128, -126, -124, -122};
};
template <>
struct TargetsOf<DType::i4> {
  static constexpr float values[] = {-8, -7.5f, -7, -6.5f, -8.5f, -9, 6.5f, 7, 7.5f, 8};
};

// What follows runs on several rows at once, a lane of a vector each, and is compiled once for each width of vectors. A
// lane computes the same in all of them, since the file is compiled without contraction to fused multiply-adds
// (model/CMakeLists.txt).
#define DSV2_INLINE [[gnu::always_inline]] inline

template <int lanes>
struct Vector {
  typedef float Floats __attribute__((vector_size(lanes * 4)));
  typedef std::int32_t Ints __attribute__((vector_size(lanes * 4)));
};

/// Adding it to a number of less than 2^22 leaves no bits behind the point: rounds to an integer, ties to even.
constexpr float kMagic = 0x1.8p23f;

/// What quantised numbers can be before they are clamped: the largest of a group becomes a target, within the rounding
/// of the scale, and nothing in it is larger.
constexpr float reach_of(float target) { return (target < 0 ? -target : target) * (1 + 0x1p-8f); }

/// x rounded to an integer and clamped to lowest..-lowest-1; where no |x| exceeds `reach`, only what that takes.
template <class Floats>
DSV2_INLINE void round_to_integer(Floats& x, float lowest, float reach) {
  x = (x + kMagic) - kMagic;
  if (reach >= 0.5f - lowest) x = x < lowest ? lowest + Floats{} : x;
  if (reach >= -0.5f - lowest) x = x > -lowest - 1 ? -lowest - 1 + Floats{} : x;
}

/// 1 / scale, 0 of 0.
template <class Floats>
DSV2_INLINE void invert(Floats& x) {
  x = x != 0 ? 1 / x : Floats{};
}

/// Looks at `target` for the largest of each group: takes its scale into `best` where it errs less than `least`.
/// `guarded`: not where an element would not be finite.
template <int lanes, bool guarded, class Floats = typename Vector<lanes>::Floats>
DSV2_INLINE void try_target(const Floats* x, const Floats& largest, float target, float lowest, Floats& best,
                            Floats& least) {
  using Ints = typename Vector<lanes>::Ints;
  // As to_bf16() of numbers that are not NaN. Of a denormal scale there is no inverse.
  const Ints u = reinterpret_cast<Ints>(largest / target);
  const Ints half = (u + 0x7fff + (u >> 16 & 1)) & static_cast<std::int32_t>(0xffff0000);
  const Ints normal = (half & 0x7fffffff) >= 0x00800000;
  const Floats scale = reinterpret_cast<Floats>(half & normal);
  Floats inverse = scale, error = {};
  invert(inverse);
  for (std::int64_t k = 0; k < kQuantGroup; ++k) {
    const Floats exact = x[k] * inverse;
    Floats v = exact;
    round_to_integer(v, lowest, reach_of(target));
    const Floats off = v - exact;
    error += off * off;
    if constexpr (guarded) error += v * scale - v * scale;  // NaN of Inf
  }
  const Floats unit = scale != 0 ? scale / largest : Floats{};
  error *= unit * unit;
  const Ints better = error < least;
  least = better ? error : least;
  best = better ? scale : best;
}

/// `lanes` rows of a group, x[k] their column k: into their places in `block`, of which `group` and `row` are meant.
template <int lanes, DType dtype>
DSV2_INLINE void quantise_rows(const typename Vector<lanes>::Floats* x, std::int64_t group, std::int64_t row,
                               std::byte* block) {
  using Floats = typename Vector<lanes>::Floats;
  using Ints = typename Vector<lanes>::Ints;
  constexpr bool wide = dtype == DType::i8;
  constexpr float lowest = wide ? -128 : -8;
  constexpr auto& targets = TargetsOf<dtype>::values;
  Floats largest = {}, most = {};
  for (std::int64_t k = 0; k < kQuantGroup; ++k) {
    const Floats size = reinterpret_cast<Floats>(reinterpret_cast<Ints>(x[k]) & 0x7fffffff);
    const Ints larger = size > most;
    most = larger ? size : most;
    largest = larger ? x[k] : largest;
  }
  bool overflows = false;  // |element| <= 1.25 |largest|: the lowest integer over the smallest target
  for (int lane = 0; lane < lanes; ++lane) overflows |= most[lane] > std::numeric_limits<float>::max() / 2;
  Floats scale = {}, least = std::numeric_limits<float>::infinity() + Floats{};
#pragma GCC unroll 16
  for (const float target : targets) {
    if (overflows)
      try_target<lanes, true>(x, largest, target, lowest, scale, least);
    else
      try_target<lanes, false>(x, largest, target, lowest, scale, least);
  }

  const Ints bits = reinterpret_cast<Ints>(scale);
  for (int lane = 0; lane < lanes; ++lane) {
    const auto stored = static_cast<std::uint16_t>(static_cast<std::uint32_t>(bits[lane]) >> 16);
    std::memcpy(block + (group * kQuantPanel + row + lane) * 2, &stored, sizeof stored);
  }
  Floats inverse = scale;
  invert(inverse);
  constexpr std::int64_t kChunkCols = wide ? 4 : 8, kChunks = kQuantGroup / kChunkCols;
  for (std::int64_t c = 0; c < kChunks; ++c) {
    Ints word = {};
    for (int k = 0; k < kChunkCols; ++k) {
      Floats v = x[c * kChunkCols + k] * inverse;
      round_to_integer(v, lowest, -2 * lowest);
      // Of kMagic + n the low bits are n.
      word |= reinterpret_cast<Ints>(v - lowest + kMagic) << (k % 4 * 8 + k / 4 * 4) & 255 << (k % 4 * 8);
    }
    std::memcpy(block + kScaleBytes + ((group * kChunks + c) * kQuantPanel + row) * 4, &word, sizeof word);
  }
}

template <int lanes, DType dtype>
DSV2_INLINE void quantise_blocks(const float* from, std::int64_t rows, std::int64_t cols, std::byte* panel) {
  for (std::int64_t begin = 0; begin < cols; begin += kQuantBlock, panel += quantised_block_bytes(dtype)) {
    for (std::int64_t g = 0; g < kGroupsPerBlock; ++g) {
      const std::int64_t first = begin + g * kQuantGroup;
      for (std::int64_t row = 0; row < kQuantPanel; row += lanes) {
        typename Vector<lanes>::Floats x[kQuantGroup];
        const std::int64_t filled = std::clamp<std::int64_t>(rows - row, 0, lanes),
                           count = std::clamp<std::int64_t>(cols - first, 0, kQuantGroup);
        if (filled < lanes || count < kQuantGroup) std::memset(x, 0, sizeof x);
        auto* const elements = reinterpret_cast<float*>(x);
        for (std::int64_t r = 0; r < filled; ++r)
          for (std::int64_t k = 0; k < count; ++k) elements[k * lanes + r] = from[(row + r) * cols + first + k];
        quantise_rows<lanes, dtype>(x, g, row, panel);
      }
    }
  }
}

template <int lanes>
DSV2_INLINE void quantise_any(const float* from, std::int64_t rows, std::int64_t cols, DType dtype, std::byte* panel) {
  if (dtype == DType::i8)
    quantise_blocks<lanes, DType::i8>(from, rows, cols, panel);
  else
    quantise_blocks<lanes, DType::i4>(from, rows, cols, panel);
}

void quantise_plain(const float* from, std::int64_t rows, std::int64_t cols, DType dtype, std::byte* panel) {
  quantise_any<4>(from, rows, cols, dtype, panel);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] void quantise_avx2(const float* from, std::int64_t rows, std::int64_t cols, DType dtype,
                                           std::byte* panel) {
  quantise_any<8>(from, rows, cols, dtype, panel);
}
[[gnu::target("avx512f,avx512bw,avx512vl,avx512dq")]] void quantise_avx512(const float* from, std::int64_t rows,
                                                                           std::int64_t cols, DType dtype,
                                                                           std::byte* panel) {
  quantise_any<16>(from, rows, cols, dtype, panel);
}
#endif

void check_quantised(DType dtype) {
  DSV2_CHECK(is_quantised(dtype), "quantised matrix: expected dtype int8 or int4, found ", name(dtype));
}

}  // namespace

std::int64_t quantised_block_bytes(DType dtype) { return kScaleBytes + kQuantPanel * kQuantBlock * bits(dtype) / 8; }

std::int64_t quantised_panel_bytes(DType dtype, std::int64_t cols) {
  return (cols + kQuantBlock - 1) / kQuantBlock * quantised_block_bytes(dtype);
}

void quantise_panel(const float* from, std::int64_t rows, std::int64_t cols, DType dtype, std::byte* panel) {
  check_quantised(dtype);
  static const auto best = quantise_variants().back().quantise_panel;
  best(from, rows, cols, dtype, panel);
}

std::span<const QuantiseVariant> quantise_variants() {
  static const auto all = [] {
    std::vector<QuantiseVariant> run = {{"plain", quantise_plain}};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) run.push_back({"avx2", quantise_avx2});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
      run.push_back({"avx512", quantise_avx512});
#endif
    return run;
  }();
  return all;
}

// Elements: less is done sooner than threads are woken. Unused without OpenMP.
[[maybe_unused]] constexpr std::int64_t kParallelFrom = 1 << 16;

Tensor quantise(const TensorView& matrix, DType dtype) {
  check_quantised(dtype);
  DSV2_CHECK(matrix.shape.size() >= 2, "quantise: expected a matrix, found shape ", to_string(matrix.shape));
  Tensor to(dtype, matrix.shape);
  const std::int64_t rows = matrix.dim(-2), cols = matrix.dim(-1);
  if (matrix.size() == 0) return to;
  const std::int64_t matrices = matrix.size() / (rows * cols), panels = (rows + kQuantPanel - 1) / kQuantPanel;
  const std::int64_t bytes = quantised_panel_bytes(dtype, cols);
  auto* const panel = static_cast<std::byte*>(to.data());
  const TensorView all{matrix.dtype, {matrices * rows, cols}, matrix.data};
  DSV2_CHECK(!is_quantised(all.dtype) && all.dtype != DType::i64, "quantise: expected floats, found ", name(all.dtype));
#pragma omp parallel if (matrix.size() >= kParallelFrom)
  {
    std::vector<float> wide(static_cast<std::size_t>(kQuantPanel * cols));
#pragma omp for schedule(dynamic, 4)
    for (std::int64_t i = 0; i < matrices * panels; ++i) {
      const std::int64_t first = i % panels * kQuantPanel, count = std::min(kQuantPanel, rows - first);
      widen_rows_into(all, i / panels * rows + first, count, wide.data());
      quantise_panel(wide.data(), count, cols, dtype, panel + i * bytes);
    }
  }
  return to;
}

namespace {

/// One row of a panel.
template <DType dtype, class T>
void widen_row(const std::byte* panel, std::int64_t row, std::int64_t cols, T* to) {
  constexpr std::int64_t kChunkCols = dtype == DType::i8 ? 4 : 8;
  constexpr int offset = dtype == DType::i8 ? 128 : 8;
  for (std::int64_t begin = 0; begin < cols; begin += kQuantGroup) {
    const std::int64_t group = begin % kQuantBlock / kQuantGroup;
    const std::byte* const block = panel + begin / kQuantBlock * quantised_block_bytes(dtype);
    bf16_t stored;
    std::memcpy(&stored, block + (group * kQuantPanel + row) * static_cast<std::int64_t>(sizeof stored), sizeof stored);
    const float scale = to_float(stored);
    float element[kQuantGroup];
    for (std::int64_t c = 0; c < kQuantGroup / kChunkCols; ++c) {
      std::uint8_t chunk[4];
      const std::int64_t at = group * kQuantGroup / kChunkCols + c;
      std::memcpy(chunk, block + kScaleBytes + (at * kQuantPanel + row) * 4, sizeof chunk);
      for (int i = 0; i < kChunkCols; ++i) {
        const int u = dtype == DType::i8 ? chunk[i] : chunk[i % 4] >> (i / 4 * 4) & 15;
        element[c * kChunkCols + i] = scale * static_cast<float>(u - offset);  // 8 x 8 bits: exact
      }
    }
    const std::int64_t count = std::min(kQuantGroup, cols - begin);
    for (std::int64_t k = 0; k < count; ++k) to[begin + k] = static_cast<T>(element[k]);
  }
}

}  // namespace

template <class T>
void widen_rows_into(const TensorView& m, std::int64_t first, std::int64_t count, T* to) {
  const std::int64_t cols = m.dim(-1);
  if (!is_quantised(m.dtype)) {
    const auto* bytes = static_cast<const char*>(m.data) + first * cols * bits(m.dtype) / 8;
    return widen_into<T>({m.dtype, {count, cols}, bytes}, to);
  }
  for (std::int64_t row = first; row < first + count; ++row, to += cols) {
    const auto* const panel =
        static_cast<const std::byte*>(m.data) + row / kQuantPanel * quantised_panel_bytes(m.dtype, cols);
    if (m.dtype == DType::i8)
      widen_row<DType::i8>(panel, row % kQuantPanel, cols, to);
    else
      widen_row<DType::i4>(panel, row % kQuantPanel, cols, to);
  }
}
template void widen_rows_into<float>(const TensorView&, std::int64_t, std::int64_t, float*);
template void widen_rows_into<double>(const TensorView&, std::int64_t, std::int64_t, double*);

}  // namespace dsv2
