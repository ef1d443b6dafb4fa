// What the lanes of a warp do together: shuffles, votes, matches, reductions.
#include <algorithm>

#include "gpusim/handlers.h"
#include "gpusim/interpreter.h"
#include "gpusim/lanes.h"

namespace gpusim::DSV2_ISA {
namespace {

enum class Shuffle : std::uint8_t { up, down, butterfly, index };

/// The lane that lane `l` reads, and whether it lies within the segment.
template <Shuffle kMode>
std::pair<int, bool> shuffle_source(int l, std::uint32_t by, std::uint32_t clamp_and_mask) {
  const int segment = static_cast<int>(clamp_and_mask >> 8 & 31u);
  const int clamp = static_cast<int>(clamp_and_mask & 31u);
  const int distance = static_cast<int>(by & 31u);
  const int last = (l & segment) | (clamp & ~segment);
  int source = 0;
  bool inside = false;
  if constexpr (kMode == Shuffle::up) {
    source = l - distance;
    inside = source >= last;
  } else {
    source = kMode == Shuffle::down        ? l + distance
             : kMode == Shuffle::butterfly ? (l ^ distance)
                                           : ((l & segment) | (distance & ~segment));
    inside = source <= last;
  }
  return {inside ? source : l, inside};
}

template <Shuffle kMode>
void shuffle_as(Warp& warp, const Instruction& in) {
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const auto* by = lanes<std::uint32_t>(warp, in.b);
  const auto* clamp = lanes<std::uint32_t>(warp, in.c);
  alignas(64) std::uint32_t result[kWarpLanes];
  std::uint32_t inside_mask = 0;
  std::uint32_t sources = 0;
  for (int l = 0; l < kWarpLanes; ++l) {
    const auto [source, inside] = shuffle_source<kMode>(l, by[l], clamp[l]);
    result[l] = a[source & 31];
    inside_mask |= static_cast<std::uint32_t>(inside) << l;
    sources |= (warp.exec >> l & 1u) << (source & 31);
  }
  if (in.d2 >= 0) write_predicate(warp, in.d2, inside_mask);
  if (in.d >= 0) {
    const std::uint32_t* from = result;
    write<std::uint32_t>(warp, in.d, [=](int l) { return from[l]; });
  }
  const std::uint32_t absent = sources & ~warp.exec & warp.start;
  if (absent != 0 && warp.machine->checks.barriers) {
    report(warp, warp.machine->index_of(in), FindingKind::bad_shuffle, warp.exec,
           "a lane reads from one that does not take part");
  }
}

void shuffle(Warp& warp, const Instruction& in) {
  if (!lanes_gathered(warp, in)) return;
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

void vote(Warp& warp, const Instruction& in) {
  if (!lanes_gathered(warp, in)) return;
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
  if (!lanes_gathered(warp, in)) return;
  in.bytes == 8 ? match_as<std::uint64_t, kAll>(warp, in) : match_as<std::uint32_t, kAll>(warp, in);
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
  if (lanes_gathered(warp, in)) reduce<T>(warp, in, Combine());
}

void elect(Warp& warp, const Instruction& in) {
  if (!lanes_gathered(warp, in)) return;
  const int leader = std::countr_zero(warp.exec);
  if (in.d >= 0) write<std::uint32_t>(warp, in.d, [=](int) { return static_cast<std::uint32_t>(leader); });
  if (in.d2 >= 0) write_predicate(warp, in.d2, 1u << leader);
}

void active_mask(Warp& warp, const Instruction& in) {
  const std::uint32_t mask = warp.exec;
  write<std::uint32_t>(warp, in.d, [=](int) { return mask; });
}

void warp_barrier(Warp& warp, const Instruction& in) {
  if (lanes_gathered(warp, in)) ++warp.warp_syncs;
}

}  // namespace

void register_warp_operations(HandlerRegistry& registry) {
  add_handler(registry, "shfl", "", shuffle);
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
