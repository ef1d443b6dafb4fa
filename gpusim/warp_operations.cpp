// What the lanes of a warp do together: shuffles, votes, matches, reductions.
#include <algorithm>

#include "gpusim/handlers.h"
#include "gpusim/lanes.h"
#include "gpusim/race.h"

namespace gpusim::DSV2_ISA {
namespace {

void check_sources(Warp& warp, const Instruction& in, const std::uint32_t* source) {
  std::uint32_t sources = 0;
  for_lanes(warp.exec, [&](int l) { sources |= 1u << source[l]; });
  if ((sources & ~warp.exec & warp.start) == 0) return;
  report(warp, warp.machine->index_of(in), FindingKind::bad_shuffle, warp.exec,
         "a lane reads from one that does not take part");
}

/// result[l] = values[from[l]].
inline void permute(std::uint32_t* result, const std::uint32_t* values, const std::uint32_t* from) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_loadu_si512(values);
  const __m512i high = _mm512_loadu_si512(values + 16);
  for (int l = 0; l < kWarpLanes; l += 16) {
    const __m512i at = _mm512_loadu_si512(from + l);
    _mm512_storeu_si512(result + l, _mm512_permutex2var_epi32(low, at, high));
  }
#else
  for (int l = 0; l < kWarpLanes; ++l) result[l] = values[from[l]];
#endif
}

template <Shuffle kMode>
void shuffle_as(Warp& warp, const Instruction& in) {
  const auto* by = lanes<std::uint32_t>(warp, in.b);
  const auto* clamp = lanes<std::uint32_t>(warp, in.c);
  alignas(64) std::uint32_t source[kWarpLanes];
  alignas(64) std::uint32_t inside[kWarpLanes];
  for (int l = 0; l < kWarpLanes; ++l) {
    const auto [from, is_inside] = shuffle_source(kMode, l, by[l], clamp[l]);
    source[l] = static_cast<std::uint32_t>(from);
    inside[l] = is_inside ? kAllLanes : 0u;
  }
  if (warp.exec != kAllLanes && warp.machine->checks.barriers) check_sources(warp, in, source);
  alignas(64) std::uint32_t result[kWarpLanes];
  permute(result, lanes<std::uint32_t>(warp, in.a), source);
  if (in.d2 >= 0) write_predicate(warp, in.d2, to_mask(inside));
  if (in.d >= 0) {
    const std::uint32_t* values = result;
    write<std::uint32_t>(warp, in.d, [=](int l) { return values[l]; });
  }
}

void shuffle(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  switch (static_cast<Shuffle>(in.mode)) {
    case Shuffle::up:
      return shuffle_as<Shuffle::up>(warp, in);
    case Shuffle::down:
      return shuffle_as<Shuffle::down>(warp, in);
    case Shuffle::butterfly:
      return shuffle_as<Shuffle::butterfly>(warp, in);
    case Shuffle::index:
      return shuffle_as<Shuffle::index>(warp, in);
  }
}

/// Distance and segment are numbers in the text: `b` holds each lane's source, `immediate` who reads within its
/// segment.
void shuffle_fixed(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  const auto* source = lanes<std::uint32_t>(warp, in.b);
  if (warp.exec != kAllLanes && warp.machine->checks.barriers) check_sources(warp, in, source);
  if (in.d2 >= 0) write_predicate(warp, in.d2, static_cast<std::uint32_t>(in.immediate));
  if (in.d < 0) return;
  if (warp.full && in.d != in.a)
    return permute(lanes<std::uint32_t>(warp, in.d), lanes<std::uint32_t>(warp, in.a), source);
  alignas(64) std::uint32_t result[kWarpLanes];
  permute(result, lanes<std::uint32_t>(warp, in.a), source);
  const std::uint32_t* values = result;
  write<std::uint32_t>(warp, in.d, [=](int l) { return values[l]; });
}

/// Lanes that stand at one instruction may name different masks, as labelled groups of cooperative_groups do: each
/// group's lanes have their own result.
template <class Run>
void for_each_mask(Warp& warp, const Instruction& in, Run run) {
  const auto* masks = lanes<std::uint32_t>(warp, in.e);
  const std::uint32_t exec = warp.exec;
  const std::uint32_t first = masks[std::countr_zero(exec)];
  std::uint32_t others = 0;
  for_lanes(exec, [&](int l) { others |= static_cast<std::uint32_t>(masks[l] != first) << l; });
  if (others == 0) return run();
  const bool full = warp.full;
  warp.full = false;
  for (std::uint32_t left = exec; left != 0;) {
    const std::uint32_t mask = masks[std::countr_zero(left)];
    std::uint32_t same = 0;
    for_lanes(left, [&](int l) { same |= static_cast<std::uint32_t>(masks[l] == mask) << l; });
    warp.exec = same;
    run();
    left &= ~same;
  }
  warp.exec = exec;
  warp.full = full;
}

void vote_of_group(Warp& warp, const Instruction& in) {
  std::uint32_t value = predicate(warp, in.a);
  if ((in.flags & kNegated) != 0) value = ~value;
  value &= warp.exec;
  switch (in.mode) {
    case 0:
      return write_predicate(warp, in.d, value == warp.exec ? kAllLanes : 0u);
    case 1:
      return write_predicate(warp, in.d, value != 0 ? kAllLanes : 0u);
    case 2:
      return write_predicate(warp, in.d, value == 0 || value == warp.exec ? kAllLanes : 0u);
    default:
      return write<std::uint32_t>(warp, in.d, [=](int) { return value; });
  }
}

void vote(Warp& warp, const Instruction& in) {
  if (gathered(warp, in)) for_each_mask(warp, in, [&] { vote_of_group(warp, in); });
}

/// The lanes, of those that take part, whose value is that of lane `l`.
template <class T>
std::uint32_t same_value(const T* values, std::uint32_t mask, T value) {
  std::uint32_t same = 0;
  for_lanes(mask, [&](int l) { same |= static_cast<std::uint32_t>(values[l] == value) << l; });
  return same;
}

template <class T, bool kAll>
void match_as(Warp& warp, const Instruction& in) {
  const T* a = lanes<T>(warp, in.a);
  const std::uint32_t mask = warp.exec;
  alignas(64) std::uint32_t result[kWarpLanes] = {};
  std::uint32_t equal = 0;
  if constexpr (kAll) {
    equal = same_value(a, mask, a[std::countr_zero(mask)]) == mask ? kAllLanes : 0u;
    std::fill(std::begin(result), std::end(result), equal != 0 ? mask : 0u);
  } else {
    for_lanes(mask, [&](int l) { result[l] = same_value(a, mask, a[l]); });
  }
  const std::uint32_t* from = result;
  write<std::uint32_t>(warp, in.d, [=](int l) { return from[l]; });
  if (in.d2 >= 0) write_predicate(warp, in.d2, equal);
}

template <bool kAll>
void match(Warp& warp, const Instruction& in) {
  if (!gathered(warp, in)) return;
  for_each_mask(warp, in, [&] {
    in.bytes == 8 ? match_as<std::uint64_t, kAll>(warp, in) : match_as<std::uint32_t, kAll>(warp, in);
  });
}

template <class T, class Combine>
void reduce(Warp& warp, const Instruction& in, Combine combine) {
  const T* a = lanes<T>(warp, in.a);
  T value = a[std::countr_zero(warp.exec)];
  for_lanes(warp.exec & (warp.exec - 1), [&](int l) { value = combine(value, a[l]); });
  write<T>(warp, in.d, [=](int) { return value; });
}

struct Sum {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<std::uint32_t>(a) + static_cast<std::uint32_t>(b));
  }
};
struct Smaller {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};
struct Larger {
  template <class T>
  T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct BothBits {
  std::uint32_t operator()(std::uint32_t a, std::uint32_t b) const { return a & b; }
};
struct EitherBits {
  std::uint32_t operator()(std::uint32_t a, std::uint32_t b) const { return a | b; }
};
struct OddBits {
  std::uint32_t operator()(std::uint32_t a, std::uint32_t b) const { return a ^ b; }
};

template <class T, class Combine>
void redux(Warp& warp, const Instruction& in) {
  if (gathered(warp, in)) for_each_mask(warp, in, [&] { reduce<T>(warp, in, Combine()); });
}

void elect_of_group(Warp& warp, const Instruction& in) {
  const int leader = std::countr_zero(warp.exec);
  if (in.d >= 0) write<std::uint32_t>(warp, in.d, [=](int) { return static_cast<std::uint32_t>(leader); });
  if (in.d2 >= 0) write_predicate(warp, in.d2, 1u << leader);
}

void elect(Warp& warp, const Instruction& in) {
  if (gathered(warp, in)) for_each_mask(warp, in, [&] { elect_of_group(warp, in); });
}

void active_mask(Warp& warp, const Instruction& in) {
  const std::uint32_t mask = warp.exec;
  write<std::uint32_t>(warp, in.d, [=](int) { return mask; });
}

void warp_barrier(Warp& warp, const Instruction& in) {
  if (gathered(warp, in)) order_warp(warp);
}

}  // namespace

void register_warp_operations(HandlerRegistry& registry) {
  add_handler(registry, "shfl", "", shuffle);
  add_handler(registry, "shfl.fixed", "", shuffle_fixed);
  add_handler(registry, "vote", "", vote);
  add_handler(registry, "match.any", "", match<false>);
  add_handler(registry, "match.all", "", match<true>);
  add_handler(registry, "redux.add", "u32", redux<std::uint32_t, Sum>);
  add_handler(registry, "redux.add", "s32", redux<std::int32_t, Sum>);
  add_handler(registry, "redux.min", "u32", redux<std::uint32_t, Smaller>);
  add_handler(registry, "redux.min", "s32", redux<std::int32_t, Smaller>);
  add_handler(registry, "redux.max", "u32", redux<std::uint32_t, Larger>);
  add_handler(registry, "redux.max", "s32", redux<std::int32_t, Larger>);
  add_handler(registry, "redux.and", "b32", redux<std::uint32_t, BothBits>);
  add_handler(registry, "redux.or", "b32", redux<std::uint32_t, EitherBits>);
  add_handler(registry, "redux.xor", "b32", redux<std::uint32_t, OddBits>);
  add_handler(registry, "elect", "", elect);
  add_handler(registry, "activemask", "", active_mask);
  add_handler(registry, "bar.warp", "", warp_barrier);
}

}  // namespace gpusim::DSV2_ISA
