// Hopper: mbarriers, bulk and tensor copies, products of warpgroups, clusters. Results against plain C++, counts by
// hand, every check against a planted fault, and no alarm on correct kernels.
#include <algorithm>
#include <cmath>
#include <functional>

#include "gpusim/tensor_map.h"
#include "gpusim_fixture.h"

namespace gpusim {
namespace {

const std::string kSource = std::string(DSV2_SOURCE_DIR) + "/tests/gpusim/hopper.cu";

struct alignas(64) MapBytes {
  unsigned char bytes[kTensorMapBytes] = {};
};

/// A tensor as cuTensorMapEncodeTiled takes it, innermost dimension first; dense, but for `strides`.
struct Tensor {
  TensorType type = TensorType::bf16;
  void* address = nullptr;
  std::vector<std::uint64_t> sizes;
  std::vector<std::uint32_t> box;
  Swizzle swizzle = Swizzle::none;
  bool nan_fill = false;
  std::vector<std::uint32_t> steps = {};
  std::vector<std::uint64_t> strides = {};
};

std::optional<TensorMapRefusal> encode(Tensor tensor, TensorMap& map) {
  tensor.steps.resize(tensor.sizes.size(), 1);
  if (tensor.strides.empty()) {
    std::uint64_t stride = static_cast<std::uint64_t>(bytes_of(tensor.type));
    for (const std::uint64_t size : tensor.sizes) tensor.strides.push_back(stride *= size);
  }
  return gpusim::encode({.type = static_cast<int>(tensor.type),
                         .rank = static_cast<std::uint32_t>(tensor.sizes.size()),
                         .address = reinterpret_cast<std::uint64_t>(tensor.address),
                         .sizes = tensor.sizes.data(),
                         .strides = tensor.strides.data(),
                         .box = tensor.box.data(),
                         .steps = tensor.steps.data(),
                         .swizzle = static_cast<int>(tensor.swizzle),
                         .fill = tensor.nan_fill ? 1 : 0},
                        map);
}

MapBytes map_of(const Tensor& tensor) {
  TensorMap map;
  const auto refusal = encode(tensor, map);
  EXPECT_FALSE(refusal.has_value()) << refusal->why;
  MapBytes result;
  std::memcpy(result.bytes, &map, sizeof map);
  return result;
}

std::uint16_t to_bf16(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
float from_bf16(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

/// Numbers in [-1, 1), the same every time.
std::vector<float> random_numbers(std::size_t count, std::uint32_t seed) {
  std::vector<float> result(count);
  for (float& value : result) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return result;
}
std::vector<std::uint16_t> random_bf16(std::size_t count, std::uint32_t seed) {
  std::vector<std::uint16_t> result;
  for (const float value : random_numbers(count, seed)) result.push_back(to_bf16(value));
  return result;
}

class GpusimHopper : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (std::string(GPUSIM_PTX_DIR).empty()) GTEST_SKIP() << "no nvcc to compile tests/gpusim/hopper.cu";
    device_.settings.isa = GetParam();
    device_.settings.counts = true;
    device_.settings.threads = 1;
  }
  Simulated device_{std::string(GPUSIM_PTX_DIR).empty()
                        ? std::string(".version 8.0\n.target sm_90a\n.address_size 64\n")
                        : read_text(std::string(GPUSIM_PTX_DIR) + "/hopper.ptx")};

  void expect_clean(const LaunchResult& result) {
    EXPECT_EQ(text_of(result.findings), "");
    EXPECT_EQ(result.status, LaunchStatus::ok);
  }

  /// Findings of this kind at the marked line, and none of another kind that fails a run.
  Finding expect_fault(const LaunchResult& result, FindingKind kind, const std::string& kernel) {
    const auto found = std::find_if(result.findings.begin(), result.findings.end(),
                                    [&](const Finding& finding) { return finding.kind == kind; });
    if (found == result.findings.end()) {
      ADD_FAILURE() << kernel << ": no " << name_of(kind) << ": " << text_of(result.findings);
      return {};
    }
    EXPECT_EQ(found->kernel, kernel);
    EXPECT_TRUE(found->place.file.ends_with("hopper.cu")) << found->place.file;
    const int line = line_of_fault(kSource, kernel);
    const bool race = kind == FindingKind::shared_race;
    EXPECT_TRUE(found->place.line == line || (race && found->other.line == line)) << to_string(*found);
    for (const Finding& other : result.findings) EXPECT_TRUE(other.kind == kind || other.warning) << to_string(other);
    return *found;
  }

  template <class T>
  std::vector<T> get(const T* from, std::size_t count) {
    return std::vector<T>(from, from + count);
  }
};

std::uint64_t flops(const LaunchResult& result, FlopType type) {
  return result.counts.flops[static_cast<std::size_t>(type)];
}

// ---- mbarriers

TEST_P(GpusimHopper, MbarriersOrderAndCount) {
  std::vector<int> in(64);
  for (int i = 0; i < 64; ++i) in[static_cast<std::size_t>(i)] = 3 * i + 1;
  int* const out = device_.fresh<int>(64);
  expect_clean(device_.run("mbarrier_pass", {1}, {64}, device_.put(in), out));
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], in[static_cast<std::size_t>((i + 34) % 64)]) << i;
}

TEST_P(GpusimHopper, RingOfStages) {
  const auto in = random_numbers(32 * 9, 1);
  float* const out = device_.fresh<float>(32);
  expect_clean(device_.run("mbarrier_ring", {1}, {64}, device_.put(in), out, 9));
  for (std::size_t lane = 0; lane < 32; ++lane) {
    float sum = 0;
    for (std::size_t round = 0; round < 9; ++round) sum += in[32 * round + 31 - lane];
    EXPECT_EQ(out[lane], sum) << lane;
  }
  expect_fault(device_.run("ring_given_back", {1}, {64}, device_.put(in), out, 8), FindingKind::shared_race,
               "ring_given_back");
}

TEST_P(GpusimHopper, AWarpWaitsForItsLaneThatWaits) {
  int* const out = device_.fresh<int>(32);
  expect_clean(device_.run("one_lane_waits", {1}, {64}, device_.put(std::vector<int>{1000}), out));
  for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(out[lane], 1000 + lane);
  int* const all = device_.fresh<int>(64);
  expect_clean(device_.run("one_lane_waits_before_barrier", {1}, {64}, device_.put(std::vector<int>{1000}), all));
  EXPECT_EQ(get(all, 64), std::vector<int>(64, 1001));
}

TEST_P(GpusimHopper, CountsStatesAndBytesOfMbarriers) {
  unsigned* const out = device_.fresh<unsigned>(7);
  expect_clean(device_.run("mbarrier_counts", {1}, {32}, out));
  EXPECT_EQ(get(out, 7), (std::vector<unsigned>{10, 1, 8, 1, 0, 0, 1}));
}

TEST_P(GpusimHopper, MisuseOfMbarriers) {
  int* const out = device_.fresh<int>(64);
  for (const char* const kernel : {"mbarrier_not_initialised", "mbarrier_initialised_twice", "mbarrier_bad_count",
                                   "mbarrier_overrun", "mbarrier_overwritten"}) {
    const unsigned threads = std::string(kernel) == "mbarrier_not_initialised" ? 1 : 2;
    expect_fault(device_.run(kernel, {1}, {threads}, out), FindingKind::mbarrier_misuse, kernel);
  }
  expect_fault(device_.run("mbarrier_misaligned", {1}, {1}, out), FindingKind::misaligned, "mbarrier_misaligned");
  expect_fault(device_.run("mbarrier_init_race", {1}, {64}, out), FindingKind::shared_race, "mbarrier_init_race");
}

TEST_P(GpusimHopper, WaitThatNeverEndsIsNamed) {
  const Finding finding = expect_fault(device_.run("mbarrier_forgotten", {1}, {32}, device_.fresh<int>(32)),
                                       FindingKind::deadlock, "mbarrier_forgotten");
  EXPECT_NE(finding.message.find("1 of 33 arrivals are missing"), std::string::npos) << finding.message;
  device_.settings.checks = {};  // found without checks, too
  expect_fault(device_.run("mbarrier_forgotten", {1}, {32}, device_.fresh<int>(32)), FindingKind::deadlock,
               "mbarrier_forgotten");
}

// ---- bulk copies

TEST_P(GpusimHopper, BulkCopiesThereAndBack) {
  constexpr int kBlocks = 3;
  std::vector<int> in(256 * kBlocks);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i * 7);
  int* const out = device_.fresh<int>(in.size());
  const LaunchResult result = device_.run("bulk_round_trip", {kBlocks}, {128}, device_.put(in), out);
  expect_clean(result);
  for (std::size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i], in[i] + 1) << i;
  EXPECT_EQ(result.counts.global_load_requests, 1u * kBlocks);
  EXPECT_EQ(result.counts.global_load_sectors, 32u * kBlocks);
  EXPECT_EQ(result.counts.global_store_sectors, 32u * kBlocks);
  EXPECT_EQ(result.counts.global_load_bytes, 1024u * kBlocks);
  EXPECT_EQ(result.counts.distinct_load_sectors, 32u * kBlocks);
  // A load and a store of 1024 bytes, 4 requests by each of the 4 warps, one wavefront of 128 bytes each.
  EXPECT_EQ(result.counts.shared_wavefronts, (8u + 8 + 16) * kBlocks);
}

TEST_P(GpusimHopper, FaultsOfBulkCopies) {
  const int* const in = device_.put(std::vector<int>(256, 5));
  int* const out = device_.fresh<int>(256);
  const auto run = [&](const std::string& kernel) { return device_.run(kernel, {1}, {128}, in, out); };
  expect_fault(run("bulk_not_waited"), FindingKind::async_copy_not_waited, "bulk_not_waited");
  expect_fault(run("bulk_wrong_parity"), FindingKind::async_copy_not_waited, "bulk_wrong_parity");
  const Finding hang = expect_fault(run("bulk_wrong_bytes"), FindingKind::deadlock, "bulk_wrong_bytes");
  EXPECT_NE(hang.message.find("0 of 1 arrivals are missing, and 512 bytes of copies"), std::string::npos)
      << hang.message;
  expect_fault(run("bulk_odd_size"), FindingKind::bulk_copy_misuse, "bulk_odd_size");
  expect_fault(run("bulk_past_end"), FindingKind::out_of_bounds, "bulk_past_end");
  const Finding fence = expect_fault(run("bulk_no_fence"), FindingKind::missing_fence, "bulk_no_fence");
  EXPECT_EQ(fence.other.line, fence.place.line - 3);
  expect_fault(run("bulk_source_overwritten"), FindingKind::async_copy_not_waited, "bulk_source_overwritten");
  const Finding exits = expect_fault(run("bulk_never_waited"), FindingKind::async_copy_not_waited, "bulk_never_waited");
  EXPECT_TRUE(exits.warning);
  expect_clean(run("bulk_fence_after_barrier"));
}

TEST_P(GpusimHopper, BulkReductions) {
  constexpr std::size_t kBlocks = 5;
  std::vector<float> values;
  for (std::size_t i = 0; i < 64 * kBlocks; ++i) values.push_back(static_cast<float>(i * 13 % 57));
  float* const sums = device_.put(std::vector<float>(64, 1.0f));
  unsigned* const least = device_.put(std::vector<unsigned>(64, 1000));
  auto* const bits = device_.put(std::vector<std::uint64_t>(64, 0));
  auto* const halves = device_.put(std::vector<std::uint16_t>(64, to_bf16(2)));
  expect_clean(device_.run("bulk_reductions", {kBlocks}, {64}, device_.put(values), sums, least, bits, halves));
  for (std::size_t i = 0; i < 64; ++i) {
    float sum = 1, half = 2;
    unsigned smallest = 1000;
    std::uint64_t all = 0;
    for (std::size_t block = 0; block < kBlocks; ++block) {
      const float value = values[64 * block + i];
      sum += value;
      half = from_bf16(to_bf16(half + value));
      smallest = std::min(smallest, static_cast<unsigned>(value));
      all |= std::uint64_t{1} << (block + i % 8);
    }
    EXPECT_EQ(sums[i], sum) << i;
    EXPECT_EQ(least[i], smallest) << i;
    EXPECT_EQ(bits[i], all) << i;
    EXPECT_EQ(from_bf16(halves[i]), half) << i;
  }
}

TEST_P(GpusimHopper, AsynchronousCopiesArrive) {
  const auto in = random_numbers(256, 5);
  float* const out = device_.fresh<float>(256);
  expect_clean(device_.run("copies_arrive", {1}, {64}, device_.put(in), out));
  for (std::size_t i = 0; i < 256; ++i) EXPECT_EQ(out[i], in[(63 - i / 4) * 4 + i % 4]) << i;
}

// ---- tensors

/// The swizzles by CUDA's programming guide: 16-byte chunks of rows of `span` bytes change places by the row's number
/// within as many rows as fill 128 bytes times the span's chunks.
std::size_t place_of(Swizzle swizzle, std::size_t offset) {
  const std::size_t row128 = offset / 128;
  const std::size_t chunk = offset / 16 % 8;
  std::size_t to = chunk;
  if (swizzle == Swizzle::b128) to = chunk ^ row128 % 8;
  if (swizzle == Swizzle::b64) to = chunk ^ row128 % 4;
  if (swizzle == Swizzle::b32) to = chunk ^ row128 % 2;
  return row128 * 128 + to * 16 + offset % 16;
}

TEST_P(GpusimHopper, TilesOfAMatrixInEverySwizzle) {
  constexpr std::size_t kWidth = 72, kHeight = 40;  // of the tensor
  const auto values = random_bf16(kWidth * kHeight, 3);
  auto* const matrix = device_.put(values);
  struct Case {
    Swizzle swizzle;
    std::uint32_t width, height;
    int x, y;
  };
  const Case cases[] = {{Swizzle::none, 24, 16, 3, 5},  {Swizzle::b32, 16, 24, 8, 0},
                        {Swizzle::b64, 32, 16, -5, 30}, {Swizzle::b128, 64, 16, 16, -3},
                        {Swizzle::b128, 64, 40, 40, 8}, {Swizzle::none, 8, 256, 66, 0}};
  for (const Case& c : cases) {
    const std::size_t bytes = std::size_t{c.width} * c.height * 2;
    device_.dynamic_shared_bytes = bytes;
    auto* const out = device_.fresh<unsigned char>(bytes);
    const MapBytes map =
        map_of({.address = matrix, .sizes = {kWidth, kHeight}, .box = {c.width, c.height}, .swizzle = c.swizzle});
    const LaunchResult result =
        device_.run("tile_dump_2d", {1}, {64}, map, out, c.x, c.y, static_cast<int>(bytes), static_cast<int>(bytes));
    expect_clean(result);
    std::uint64_t inside = 0;
    for (std::uint32_t j = 0; j < c.height; ++j) {
      for (std::uint32_t i = 0; i < c.width; ++i) {
        const auto x = static_cast<std::size_t>(c.x + static_cast<int>(i));
        const auto y = static_cast<std::size_t>(c.y + static_cast<int>(j));
        const bool is_inside = x < kWidth && y < kHeight;
        inside += is_inside;
        std::uint16_t found = 0;
        std::memcpy(&found, out + place_of(c.swizzle, 2 * (std::size_t{j} * c.width + i)), 2);
        ASSERT_EQ(found, is_inside ? values[y * kWidth + x] : 0) << "x " << i << " y " << j;
      }
    }
    EXPECT_EQ(result.counts.global_load_bytes, 2 * inside);
  }
}

TEST_P(GpusimHopper, TilesOfOneToFiveDimensions) {
  const std::vector<std::uint64_t> sizes = {12, 6, 5, 4, 3};
  const std::vector<std::uint32_t> box = {8, 3, 2, 3, 2};
  const std::vector<int> at = {-2, 1, 4, 2, -1};
  std::vector<float> values(12 * 6 * 5 * 4 * 3);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  float* const tensor = device_.put(values);
  for (const std::size_t rank : {1u, 3u, 4u, 5u}) {
    const Tensor described{.type = TensorType::f32,
                           .address = tensor,
                           .sizes = {sizes.begin(), sizes.begin() + static_cast<std::ptrdiff_t>(rank)},
                           .box = {box.begin(), box.begin() + static_cast<std::ptrdiff_t>(rank)},
                           .nan_fill = true};
    std::size_t count = 1;
    for (const std::uint32_t size : described.box) count *= size;
    device_.dynamic_shared_bytes = 4 * count;
    auto* const out = device_.fresh<float>(count);
    const auto* const map = device_.put(std::vector<MapBytes>{map_of(described)});
    expect_clean(device_.run("tile_dump_" + std::to_string(rank) + "d", {1}, {32}, map, out, device_.put(at),
                             static_cast<int>(4 * count)));
    for (std::size_t i = 0; i < count; ++i) {
      bool inside = true;
      std::size_t left = i, stride = 1, offset = 0;
      for (std::size_t d = 0; d < rank; ++d) {
        const auto x = static_cast<std::size_t>(at[d]) + left % box[d];
        inside &= x < sizes[d];
        offset += x * stride;
        left /= box[d];
        stride *= sizes[d];
      }
      if (inside) {
        ASSERT_EQ(out[i], values[offset]) << "rank " << rank << " element " << i;
      } else {
        ASSERT_TRUE(std::isnan(out[i])) << "rank " << rank << " element " << i;
      }
    }
  }
}

TEST_P(GpusimHopper, StridesBetweenElementsAndRows) {
  std::vector<int> values(64 * 20);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i);
  // Rows of 48 of 64 numbers; of every 3 rows one is loaded: 4 of a box of 10.
  const MapBytes map = map_of({.type = TensorType::s32,
                               .address = device_.put(values),
                               .sizes = {48, 20},
                               .box = {16, 10},
                               .steps = {1, 3},
                               .strides = {256}});
  device_.dynamic_shared_bytes = 16 * 4 * 4;
  int* const out = device_.fresh<int>(64);
  expect_clean(device_.run("tile_dump_2d", {1}, {32}, map, reinterpret_cast<unsigned char*>(out), 40, 2, 256, 256));
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[i], i % 16 < 8 ? 64 * (2 + i / 16 * 3) + 40 + i % 16 : 0) << i;
}

TEST_P(GpusimHopper, TilesAreStoredAndAdded) {
  const auto values = random_numbers(32 * 16, 8);
  const Tensor from{.type = TensorType::f32,
                    .address = device_.put(values),
                    .sizes = {32, 16},
                    .box = {16, 8},
                    .swizzle = Swizzle::b64};
  float* const target = device_.put(std::vector<float>(40 * 12, 3.0f));
  const Tensor to{
      .type = TensorType::f32, .address = target, .sizes = {40, 12}, .box = {16, 8}, .swizzle = Swizzle::b64};
  device_.dynamic_shared_bytes = 512;
  const auto expected = [&](int x, int y, bool adds) {
    const int i = x - 30, j = y - 7;
    if (i < 0 || i >= 16 || j < 0 || j >= 8) return 3.0f;
    return values[static_cast<std::size_t>((4 + j) * 32 + 8 + i)] + (adds ? 3.0f : 0.0f);
  };
  for (const bool adds : {true, false}) {
    std::fill(target, target + 40 * 12, 3.0f);
    expect_clean(device_.run("tile_move", {1}, {32}, map_of(from), map_of(to), 8, 4, 30, 7, 512, adds ? 1 : 0));
    for (int y = 0; y < 12; ++y) {
      for (int x = 0; x < 40; ++x) ASSERT_EQ(target[y * 40 + x], expected(x, y, adds)) << x << ", " << y;
    }
  }
}

TEST_P(GpusimHopper, FaultsOfTiles) {
  auto* const matrix = device_.put(std::vector<std::uint16_t>(64 * 64));
  const MapBytes map = map_of({.address = matrix, .sizes = {64, 64}, .box = {64, 8}, .swizzle = Swizzle::b128});
  int* const out = device_.fresh<int>(32);
  device_.dynamic_shared_bytes = 2048;
  expect_fault(device_.run("tile_misaligned", {1}, {32}, map, out), FindingKind::bulk_copy_misuse, "tile_misaligned");
  expect_fault(device_.run("tile_no_map", {1}, {32}, MapBytes{}, out), FindingKind::bulk_copy_misuse, "tile_no_map");
}

TEST(GpusimTensorMap, RefusesWhatTheDriverRefuses) {
  alignas(16) static std::uint16_t memory[16];
  const Tensor good{.address = memory, .sizes = {64, 64}, .box = {64, 8}, .swizzle = Swizzle::b128};
  TensorMap map;
  EXPECT_FALSE(encode(good, map).has_value());
  const auto refused = [&](const char* words, const std::function<void(Tensor&)>& spoil) {
    Tensor bad = good;
    spoil(bad);
    const auto refusal = encode(bad, map);
    ASSERT_TRUE(refusal.has_value()) << words;
    EXPECT_NE(refusal->why.find(words), std::string::npos) << refusal->why;
  };
  refused("more than the 128 of the swizzle", [](Tensor& t) { t.box[0] = 128; });
  refused("not 1 to 256", [](Tensor& t) { t.box[1] = 257; });
  refused("not 1 to 256", [](Tensor& t) { t.box[1] = 0; });
  refused("no multiple of 16", [](Tensor& t) { t.box[0] = 4; });
  refused("no multiple of 16", [](Tensor& t) { t.strides = {136, 8704}; });
  refused("no multiple of 16 bytes", [](Tensor& t) { t.address = memory + 1; });
  refused("not 1 to 2^32", [](Tensor& t) { t.sizes[1] = 0; });
  refused("not 1 to 8", [](Tensor& t) { t.steps = {1, 9}; });
  refused("not 1 to 5", [](Tensor& t) { t.sizes = {8, 8, 8, 8, 8, 8}, t.box = {8, 1, 1, 1, 1, 1}; });
  refused("not floating point", [](Tensor& t) { t.type = TensorType::u16, t.nan_fill = true; });
}

// ---- products of warpgroups

/// How an operand lies in shared memory, as PTX ISA's section on wgmma has it: core matrices of 8 rows of 16 bytes.
struct OperandLayout {
  Swizzle swizzle = Swizzle::none;
  bool transposed = false;  ///< M or N, not K, lies side by side
  std::size_t element = 2;  ///< bytes
  std::size_t first = 0;    ///< where the matrix begins, in bytes beyond the pattern

  std::size_t span() const { return swizzle_span(swizzle); }
  std::size_t leading() const {
    if (swizzle == Swizzle::none) return transposed ? 1024 : 128;
    return transposed ? 16 * span() : 16;
  }
  std::size_t stride() const { return swizzle == Swizzle::none ? (transposed ? 128 : 256) : 8 * span(); }

  /// Offset of element (row, k).
  std::size_t at(std::size_t row, std::size_t k) const {
    const std::size_t per_chunk = 16 / element;
    if (swizzle == Swizzle::none && !transposed) {
      return row / 8 * stride() + k / per_chunk * leading() + row % 8 * 16 + k % per_chunk * element;
    }
    if (swizzle == Swizzle::none) {
      return row / per_chunk * stride() + k / 8 * leading() + k % 8 * 16 + row % per_chunk * element;
    }
    if (!transposed) return place_of(swizzle, first + row * span() + k * element);
    const std::size_t per_span = span() / element;
    return place_of(swizzle, row / per_span * leading() + k * span() + row % per_span * element);
  }

  std::uint64_t descriptor(std::size_t begin) const {
    constexpr std::uint64_t kCodes[] = {0, 3, 2, 1};
    return (begin + first) >> 4 | std::uint64_t{leading() >> 4} << 16 | std::uint64_t{stride() >> 4} << 32 |
           kCodes[static_cast<std::size_t>(swizzle)] << 62;
  }
};

constexpr std::size_t kSecondOperand = 8192;
constexpr std::size_t kImageBytes = 16384;

/// An image of shared memory with both operands.
template <class T>
std::vector<std::byte> image_of(const std::vector<T>& a, const OperandLayout& a_layout, const std::vector<T>& b,
                                const OperandLayout& b_layout, std::size_t depth) {
  std::vector<std::byte> image(kImageBytes);
  for (std::size_t i = 0; i < a.size(); ++i) std::memcpy(&image[a_layout.at(i / depth, i % depth)], &a[i], sizeof(T));
  for (std::size_t i = 0; i < b.size(); ++i)
    std::memcpy(&image[kSecondOperand + b_layout.at(i / depth, i % depth)], &b[i], sizeof(T));
  return image;
}

/// The element of D that register `i` of a thread holds.
struct Element {
  std::size_t row, column;
};
Element element_of(std::size_t thread, std::size_t i) {
  const std::size_t lane = thread % 32;
  return {thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2};
}

TEST_P(GpusimHopper, ProductsInEveryLayout) {
  const auto a = random_bf16(64 * 16, 21);
  const auto b = random_bf16(64 * 16, 22);
  device_.dynamic_shared_bytes = kImageBytes;
  for (const bool adds : {false, true}) {
    for (const Swizzle swizzle : {Swizzle::none, Swizzle::b32, Swizzle::b64, Swizzle::b128}) {
      for (int transposes = 0; transposes < 4; ++transposes) {
        OperandLayout a_layout{.swizzle = swizzle, .transposed = (transposes & 1) != 0};
        OperandLayout b_layout{.swizzle = swizzle, .transposed = (transposes & 2) != 0};
        // The second step along K of a row that holds several.
        if (swizzle > Swizzle::b32 && !b_layout.transposed) b_layout.first = 32;
        const auto image = image_of(a, a_layout, b, b_layout, 16);
        float* const out = device_.put(std::vector<float>(128 * 32, 0.5f));
        constexpr const char* kKernels[] = {"wgmma_bf16", "wgmma_bf16_ta", "wgmma_bf16_tb", "wgmma_bf16_ta_tb"};
        const LaunchResult result =
            device_.run(kKernels[transposes], {1}, {128}, device_.put(image), static_cast<int>(kImageBytes / 16),
                        a_layout.descriptor(0), b_layout.descriptor(kSecondOperand), adds ? 1 : 0, out);
        expect_clean(result);
        EXPECT_EQ(flops(result, FlopType::tensor_bf16), 2u * 64 * 64 * 16);
        for (std::size_t thread = 0; thread < 128; ++thread) {
          for (std::size_t i = 0; i < 32; ++i) {
            const auto [row, column] = element_of(thread, i);
            float sum = adds ? 0.5f : 0.0f;
            for (std::size_t k = 0; k < 16; ++k)
              sum = std::fmaf(from_bf16(a[row * 16 + k]), from_bf16(b[column * 16 + k]), sum);
            ASSERT_EQ(out[thread * 32 + i], sum) << kKernels[transposes] << ", swizzle " << static_cast<int>(swizzle)
                                                 << ", row " << row << " column " << column;
          }
        }
      }
    }
  }
}

TEST_P(GpusimHopper, ProductsOfRowsInRegisters) {
  const auto a = random_bf16(64 * 16, 23);
  const auto b = random_bf16(64 * 16, 24);
  const OperandLayout layout{.swizzle = Swizzle::b128};
  std::vector<std::uint32_t> rows;
  for (std::size_t thread = 0; thread < 128; ++thread) {
    for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8;
      const std::size_t k = thread % 4 * 2 + i / 2 * 8;
      rows.push_back(a[row * 16 + k] | std::uint32_t{a[row * 16 + k + 1]} << 16);
    }
  }
  device_.dynamic_shared_bytes = kImageBytes;
  float* const out = device_.fresh<float>(128 * 32);
  expect_clean(device_.run("wgmma_registers", {1}, {128}, device_.put(image_of(a, layout, b, layout, 16)),
                           static_cast<int>(kImageBytes / 16), std::uint64_t{0}, layout.descriptor(kSecondOperand),
                           device_.put(rows), out));
  for (std::size_t thread = 0; thread < 128; ++thread) {
    for (std::size_t i = 0; i < 32; ++i) {
      const auto [row, column] = element_of(thread, i);
      float sum = 0;
      for (std::size_t k = 0; k < 16; ++k)
        sum = std::fmaf(from_bf16(a[row * 16 + k]), from_bf16(b[column * 16 + k]), sum);
      ASSERT_EQ(out[thread * 32 + i], sum) << "row " << row << " column " << column;
    }
  }
}

/// A product of 64 x 8: `make` gives elements of small whole numbers, `value` what they are.
template <class T, class Sum, class MakeA, class MakeB>
void check_small_product(Simulated& device, const std::string& kernel, FlopType type, MakeA make_a, MakeB make_b,
                         int scale = 1) {
  constexpr std::size_t kDepth = 32 / sizeof(T);
  std::vector<T> a, b;
  std::vector<int> a_values, b_values;
  for (int i = 0; i < static_cast<int>(64 * kDepth); ++i) a.push_back(make_a(a_values.emplace_back(i * 7 % 13 - 6)));
  for (int i = 0; i < static_cast<int>(8 * kDepth); ++i) b.push_back(make_b(b_values.emplace_back(i * 5 % 11 - 5)));
  const OperandLayout layout{.swizzle = Swizzle::b32, .element = sizeof(T)};
  device.dynamic_shared_bytes = kImageBytes;
  Sum* const out = device.put(std::vector<Sum>(128 * 4, static_cast<Sum>(3)));
  const LaunchResult result =
      device.run(kernel, {1}, {128}, device.put(image_of(a, layout, b, layout, kDepth)),
                 static_cast<int>(kImageBytes / 16), layout.descriptor(0), layout.descriptor(kSecondOperand), 1, out);
  EXPECT_EQ(text_of(result.findings), "") << kernel;
  EXPECT_EQ(flops(result, type), 2u * 64 * 8 * kDepth) << kernel;
  for (std::size_t thread = 0; thread < 128; ++thread) {
    for (std::size_t i = 0; i < 4; ++i) {
      const auto [row, column] = element_of(thread, i);
      int sum = 3;
      for (std::size_t k = 0; k < kDepth; ++k)
        sum += scale * a_values[row * kDepth + k] * b_values[column * kDepth + k];
      ASSERT_EQ(out[thread * 4 + i], static_cast<Sum>(sum)) << kernel << ": row " << row << " column " << column;
    }
  }
}

/// A whole number with `exponent_bits` and `mantissa_bits`.
std::uint32_t make_float(int value, int exponent_bits, int mantissa_bits) {
  if (value == 0) return 0;
  const auto magnitude = static_cast<unsigned>(std::abs(value));
  const int exponent = 31 - __builtin_clz(magnitude);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const std::uint32_t fraction =
      (exponent <= mantissa_bits ? magnitude << (mantissa_bits - exponent) : magnitude >> (exponent - mantissa_bits)) &
      ((1u << mantissa_bits) - 1);
  return static_cast<std::uint32_t>(value < 0) << (exponent_bits + mantissa_bits) |
         static_cast<std::uint32_t>(exponent + bias) << mantissa_bits | fraction;
}

TEST_P(GpusimHopper, ProductsOfEveryType) {
  const auto f16 = [](int v) { return static_cast<std::uint16_t>(make_float(v, 5, 10)); };
  check_small_product<std::uint16_t, float>(device_, "wgmma_f16", FlopType::tensor_f16, f16, f16);
  check_small_product<std::uint16_t, float>(device_, "wgmma_f16_negated", FlopType::tensor_f16, f16, f16, -1);
  const auto f32 = [](int v) { return static_cast<float>(v); };
  check_small_product<float, float>(device_, "wgmma_tf32", FlopType::tensor_tf32, f32, f32);
  const auto e4m3 = [](int v) { return static_cast<std::uint8_t>(make_float(v, 4, 3)); };
  check_small_product<std::uint8_t, float>(device_, "wgmma_e4m3", FlopType::tensor_fp8, e4m3, e4m3);
  const auto e5m2 = [](int& v) {  // two bits behind the leading one: 5 is not among them
    if (std::abs(v) == 5) v = 4;
    return static_cast<std::uint8_t>(make_float(v, 5, 2));
  };
  check_small_product<std::uint8_t, float>(device_, "wgmma_e5m2_e4m3", FlopType::tensor_fp8, e5m2, e4m3);
  const auto s8 = [](int v) { return static_cast<std::uint8_t>(v); };
  const auto u8 = [](int& v) { return static_cast<std::uint8_t>(v += 200); };
  check_small_product<std::uint8_t, int>(device_, "wgmma_s8", FlopType::tensor_int8, s8, s8);
  check_small_product<std::uint8_t, int>(device_, "wgmma_u8_s8", FlopType::tensor_int8, u8, s8);
  check_small_product<std::uint8_t, int>(device_, "wgmma_s8_saturated", FlopType::tensor_int8, s8, s8);
}

TEST_P(GpusimHopper, SumsThatSaturateAndSumsInHalfPrecision) {
  const OperandLayout bytes{.swizzle = Swizzle::b32, .element = 1};
  const std::vector<std::int8_t> a(64 * 32, 100), b(8 * 32, 100);
  device_.dynamic_shared_bytes = kImageBytes;
  const int chunks = static_cast<int>(kImageBytes / 16);
  int* const out = device_.put(std::vector<int>(128 * 4, INT32_MAX - 1000));
  expect_clean(device_.run("wgmma_s8_saturated", {1}, {128}, device_.put(image_of(a, bytes, b, bytes, 32)), chunks,
                           bytes.descriptor(0), bytes.descriptor(kSecondOperand), 1, out));
  EXPECT_EQ(get(out, 128 * 4), std::vector<int>(128 * 4, INT32_MAX));

  const OperandLayout halves{.swizzle = Swizzle::b64};
  std::vector<std::uint16_t> rows(64 * 16), columns(8 * 16);
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i] = static_cast<std::uint16_t>(make_float(static_cast<int>(i % 5) - 2, 5, 10));
  for (std::size_t i = 0; i < columns.size(); ++i)
    columns[i] = static_cast<std::uint16_t>(make_float(static_cast<int>(i % 7) - 3, 5, 10));
  auto* const packed = device_.put(std::vector<std::uint32_t>(128 * 2, make_float(1, 5, 10) * 0x10001u));
  expect_clean(device_.run("wgmma_f16_sums", {1}, {128}, device_.put(image_of(rows, halves, columns, halves, 16)),
                           chunks, halves.descriptor(0), halves.descriptor(kSecondOperand), 1, packed));
  for (std::size_t thread = 0; thread < 128; ++thread) {
    for (std::size_t i = 0; i < 4; ++i) {
      const auto [row, column] = element_of(thread, i);
      int sum = 1;
      for (std::size_t k = 0; k < 16; ++k)
        sum += (static_cast<int>((row * 16 + k) % 5) - 2) * (static_cast<int>((column * 16 + k) % 7) - 3);
      const std::uint32_t found = packed[thread * 2 + i / 2] >> (i % 2 * 16) & 0xffffu;
      ASSERT_EQ(found, make_float(sum, 5, 10)) << "row " << row << " column " << column;
    }
  }
}

TEST_P(GpusimHopper, FaultsOfProducts) {
  const auto values = random_bf16(64 * 16, 25);
  const OperandLayout layout{.swizzle = Swizzle::b128};
  auto* const image = device_.put(image_of(values, layout, values, layout, 16));
  float* const out = device_.fresh<float>(128 * 32);
  device_.dynamic_shared_bytes = kImageBytes;
  const auto run = [&](const std::string& kernel, std::uint64_t beyond = 0) {
    return device_.run(kernel, {1}, {128}, image, static_cast<int>(kImageBytes / 16), layout.descriptor(0),
                       layout.descriptor(kSecondOperand + beyond), out);
  };
  expect_fault(run("wgmma_not_waited"), FindingKind::async_copy_not_waited, "wgmma_not_waited");
  const Finding open =
      expect_fault(run("wgmma_not_committed"), FindingKind::async_copy_not_waited, "wgmma_not_committed");
  EXPECT_NE(open.message.find("commit_group"), std::string::npos) << open.message;
  expect_fault(run("wgmma_no_fence"), FindingKind::missing_fence, "wgmma_no_fence");
  expect_fault(run("wgmma_no_proxy_fence"), FindingKind::missing_fence, "wgmma_no_proxy_fence");
  expect_fault(run("wgmma_past_end", 4096), FindingKind::out_of_bounds, "wgmma_past_end");
  expect_fault(run("wgmma_without_a_warp"), FindingKind::divergent_barrier, "wgmma_without_a_warp");
  expect_fault(run("wgmma_operands_overwritten"), FindingKind::async_copy_not_waited, "wgmma_operands_overwritten");
  const auto two_groups = [&](int second) {
    return device_.run("wgmma_waited_for_one", {1}, {128}, image, static_cast<int>(kImageBytes / 16),
                       layout.descriptor(0), layout.descriptor(kSecondOperand), out, second);
  };
  expect_fault(two_groups(1), FindingKind::async_copy_not_waited, "wgmma_waited_for_one");
  expect_clean(two_groups(0));
}

// ---- what is not modelled

TEST(GpusimHopperRefusals, AreByName) {
  const std::pair<const char*, const char*> kRefused[] = {
      {"cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r2, "
       "%r2}], "
       "[%r1], {%rs1};",
       "mode .im2col"},
      {"cp.async.bulk.tensor.2d.shared::cta.global.tile::gather4.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r2, "
       "%r2, %r2, %r2}], [%r1];",
       "mode .tile::gather4"},
      {"wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %rd1, %rd2, %r2, 0, %p1, 1, 1, 0, "
       "0;",
       "form of wgmma"},
      {"tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%rd1], %rd2;", "tensormap.replace"},
      {"tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 32;", "tcgen05.alloc"},
      {"multimem.red.relaxed.sys.global.add.u32 [%rd1], %r1;", "multimem.red"},
  };
  DeviceMemory memory(std::size_t{1} << 30, true);
  for (const auto& [instruction, words] : kRefused) {
    const std::string ptx = std::string(
                                ".version 8.6\n.target sm_90a\n.address_size 64\n.visible .entry refused()\n{\n"
                                ".reg .pred %p<4>; .reg .b16 %rs<4>; .reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .f32 "
                                "%f<8>;\n") +
                            instruction + "\nret;\n}\n";
    const auto module = Module::load(ptx, memory);
    const auto& unsupported = module->kernel("refused")->unsupported;
    ASSERT_EQ(unsupported.size(), 1u) << instruction;
    EXPECT_NE(unsupported[0].find(words), std::string::npos) << unsupported[0];
  }
}

// ---- whole kernels

constexpr std::size_t kGemmBytes = 2 * (8192 + 16384) + 1024;

TEST_P(GpusimHopper, GemmByARingOfTiles) {
  constexpr int kM = 128, kN = 256, kK = 192;
  const auto a = random_bf16(kM * kK, 31);
  const auto b = random_bf16(kN * kK, 32);
  const MapBytes a_map =
      map_of({.address = device_.put(a), .sizes = {kK, kM}, .box = {64, 64}, .swizzle = Swizzle::b128});
  const MapBytes b_map =
      map_of({.address = device_.put(b), .sizes = {kK, kN}, .box = {64, 128}, .swizzle = Swizzle::b128});
  device_.dynamic_shared_bytes = kGemmBytes;
  const auto run = [&](float* c, int fault) {
    return device_.run("gemm_ring", {kN / 128, kM / 64}, {256}, a_map, b_map, c, kN, kK, fault);
  };
  float* const c = device_.fresh<float>(kM * kN);
  const LaunchResult result = run(c, 0);
  expect_clean(result);
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kN; ++n) {
      float sum = 0;
      for (int k = 0; k < kK; ++k)
        sum = std::fmaf(from_bf16(a[static_cast<std::size_t>(m * kK + k)]),
                        from_bf16(b[static_cast<std::size_t>(n * kK + k)]), sum);
      ASSERT_EQ(c[m * kN + n], sum) << m << ", " << n;
    }
  }
  const Counts& counts = result.counts;
  EXPECT_EQ(flops(result, FlopType::tensor_bf16), 2u * kM * kN * kK);
  constexpr unsigned kBlocks = 4, kSteps = kK / 64;
  EXPECT_EQ(counts.global_load_sectors, kBlocks * kSteps * (64 + 128) * 4);
  EXPECT_EQ(counts.distinct_load_sectors, static_cast<unsigned>((kM + kN) * kK * 2 / 32));
  // Each step writes its tiles and reads them once, 128 bytes at a time.
  EXPECT_EQ(counts.shared_wavefronts, kBlocks * kSteps * 2 * (64 + 128));
  EXPECT_EQ(counts.by_class[static_cast<std::size_t>(InstructionClass::async_copy)], kBlocks * kSteps * 2);

  // The same bits without checks, on several cores.
  device_.settings.checks = {};
  device_.settings.counts = false;
  device_.settings.threads = 3;
  float* const again = device_.fresh<float>(kM * kN);
  expect_clean(run(again, 0));
  EXPECT_EQ(std::memcmp(c, again, sizeof(float) * kM * kN), 0);
}

TEST_P(GpusimHopper, StagesGivenBackTooEarlyOrNotAtAll) {
  constexpr int kM = 64, kN = 128, kK = 256;
  auto* const values = device_.put(random_bf16(kN * kK, 33));
  const MapBytes a_map = map_of({.address = values, .sizes = {kK, kM}, .box = {64, 64}, .swizzle = Swizzle::b128});
  const MapBytes b_map = map_of({.address = values, .sizes = {kK, kN}, .box = {64, 128}, .swizzle = Swizzle::b128});
  device_.dynamic_shared_bytes = kGemmBytes;
  float* const c = device_.fresh<float>(kM * kN);
  for (const int fault : {1, 2}) {
    const LaunchResult result = device_.run("gemm_ring", {1}, {256}, a_map, b_map, c, kN, kK, fault);
    const bool found = std::any_of(result.findings.begin(), result.findings.end(), [](const Finding& finding) {
      return finding.kind == FindingKind::shared_race || finding.kind == FindingKind::async_copy_not_waited;
    });
    EXPECT_TRUE(found) << fault << ": " << text_of(result.findings);
  }
}

TEST_P(GpusimHopper, Attention) {
  constexpr std::size_t kHeads = 2, kQueries = 100, kKeys = 150, kWidth = 64;
  const auto q = random_bf16(kHeads * kQueries * kWidth, 41);
  const auto k = random_bf16(kHeads * kKeys * kWidth, 42);
  const auto v = random_bf16(kHeads * kKeys * kWidth, 43);
  const auto map = [&](const std::vector<std::uint16_t>& values, std::size_t tokens) {
    return map_of({.address = device_.put(values),
                   .sizes = {kWidth, tokens, kHeads},
                   .box = {64, 64, 1},
                   .swizzle = Swizzle::b128});
  };
  const MapBytes maps[] = {map(q, kQueries), map(k, kKeys), map(v, kKeys)};
  const float scale = 0.125f * 1.44269504f;
  device_.dynamic_shared_bytes = 5 * 8192 + 1024;
  const auto run = [&](float* out) {
    return device_.run("attention", {2, kHeads}, {256}, maps[0], maps[1], maps[2], out, static_cast<int>(kQueries),
                       static_cast<int>(kKeys), scale);
  };
  float* const out = device_.fresh<float>(kHeads * kQueries * kWidth);
  const LaunchResult result = run(out);
  expect_clean(result);
  // Two products of 64 x 64 x 64 for each of 3 tiles of keys.
  EXPECT_EQ(flops(result, FlopType::tensor_bf16), 2u * kHeads * 3 * 2 * 2 * 64 * 64 * 64);
  for (std::size_t h = 0; h < kHeads; ++h) {
    for (std::size_t i = 0; i < kQueries; ++i) {
      std::vector<double> weights;
      double total = 0;
      for (std::size_t j = 0; j < kKeys; ++j) {
        double dot = 0;
        for (std::size_t d = 0; d < kWidth; ++d)
          dot += static_cast<double>(from_bf16(q[(h * kQueries + i) * kWidth + d])) *
                 from_bf16(k[(h * kKeys + j) * kWidth + d]);
        total += weights.emplace_back(std::exp(dot / 8));
      }
      for (std::size_t d = 0; d < kWidth; ++d) {
        double sum = 0, magnitude = 0;
        for (std::size_t j = 0; j < kKeys; ++j) {
          const double term = weights[j] / total * from_bf16(v[(h * kKeys + j) * kWidth + d]);
          sum += term;
          magnitude += std::abs(term);
        }
        // Weights are rounded to bf16, half of 2^-8 at most each; sums in f32 add next to nothing.
        const double error = std::abs(out[(h * kQueries + i) * kWidth + d] - sum);
        ASSERT_TRUE(error <= magnitude * 0x1.1p-9)
            << h << ", " << i << ", " << d << ": " << error << " of " << magnitude;
      }
    }
  }
  device_.settings.checks = {};
  device_.settings.threads = 2;
  float* const again = device_.fresh<float>(kHeads * kQueries * kWidth);
  const LaunchResult plain = run(again);
  EXPECT_EQ(std::memcmp(out, again, sizeof(float) * kHeads * kQueries * kWidth), 0);
  EXPECT_EQ(plain.counts, result.counts);
}

TEST_P(GpusimHopper, ClustersShareTilesAndValues) {
  device_.cluster = {2, 1, 1};
  const auto values = random_bf16(64 * 16, 51);
  const MapBytes map =
      map_of({.address = device_.put(values), .sizes = {64, 16}, .box = {64, 16}, .swizzle = Swizzle::b128});
  constexpr int kBytes = 2048;
  device_.dynamic_shared_bytes = kBytes;
  auto* const dump = device_.fresh<unsigned char>(2 * kBytes);
  expect_clean(device_.run("cluster_multicast", {2}, {64}, map, dump, kBytes));
  for (std::size_t i = 0; i < 2 * kBytes; i += 2) {
    std::uint16_t found = 0;
    std::memcpy(&found, dump + i / kBytes * kBytes + place_of(Swizzle::b128, i % kBytes), 2);
    ASSERT_EQ(found, values[i % kBytes / 2]) << i;
  }

  device_.dynamic_shared_bytes = 0;
  std::vector<int> in(256);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i * i);
  int* const out = device_.fresh<int>(4 * 256);
  expect_clean(device_.run("cluster_exchange", {4}, {64}, device_.put(in), out));
  for (std::size_t block = 0; block < 4; ++block) {
    for (std::size_t i = 0; i < 64; ++i) {
      const int theirs = in[(block ^ 1) * 64 + i];
      for (int way = 0; way < 3; ++way)
        ASSERT_EQ(out[block * 256 + static_cast<std::size_t>(way) * 64 + i], theirs + way) << block << ", " << i;
      ASSERT_EQ(out[block * 256 + 192 + i], static_cast<int>(block % 2 ^ 1));
    }
  }
  expect_fault(device_.run("cluster_not_waited", {2}, {64}, device_.put(in), out), FindingKind::async_copy_not_waited,
               "cluster_not_waited");
}

INSTANTIATE_TEST_SUITE_P(Isa, GpusimHopper, ::testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace gpusim
