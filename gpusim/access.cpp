// Loads, stores and atomics in every space. A fast path for lanes side by side, one for a single address, the rest
// lane by lane.
#include <algorithm>

#include "gpusim/async_copy.h"
#include "gpusim/handlers.h"
#include "gpusim/lanes.h"
#include "gpusim/shared_watch.h"

namespace gpusim::DSV2_ISA {
namespace {

using ptx::Space;

template <class T>
T load_from(std::uint64_t address) {
  T value;
  std::memcpy(&value, reinterpret_cast<const void*>(address), sizeof value);
  return value;
}
template <class T>
void store_to(std::uint64_t address, T value) {
  std::memcpy(reinterpret_cast<void*>(address), &value, sizeof value);
}

/// Register plus immediate, in 64 bits.
void read_addresses(Warp& warp, const Instruction& in, Addresses& out) {
  const auto offset = static_cast<std::uint64_t>(in.immediate);
  if (in.address_bytes == 8) {
    const auto* a = lanes<std::uint64_t>(warp, in.a);
    for (int l = 0; l < kWarpLanes; ++l) out.at[l] = a[l] + offset;
  } else {
    const auto* a = lanes<std::uint32_t>(warp, in.a);
    const auto narrow = static_cast<std::uint32_t>(offset);
    for (int l = 0; l < kWarpLanes; ++l) out.at[l] = static_cast<std::uint32_t>(a[l] + narrow);
  }
  out.mask = warp.exec;
  out.pattern = Pattern::scattered;
}

/// The pattern of all 32 lanes' addresses. The last lane tells most patterns apart.
inline Pattern find_pattern(const Addresses& addresses, std::uint64_t bytes) {
  const std::uint64_t first = addresses.at[0];
  const std::uint64_t span = addresses.at[kWarpLanes - 1] - first;
  if (span != 0 && span != bytes * (kWarpLanes - 1)) return Pattern::scattered;
  const std::uint64_t step = span == 0 ? 0 : bytes;
  std::uint64_t wrong = 0;
  for (int l = 0; l < kWarpLanes; ++l) wrong |= (addresses.at[l] - first) ^ (static_cast<std::uint64_t>(l) * step);
  if (wrong != 0) return Pattern::scattered;
  return span == 0 ? Pattern::uniform : Pattern::unit;
}

/// Lanes of the mask whose addresses are no multiple of `bytes`.
std::uint32_t misaligned_lanes(const Addresses& addresses, std::uint64_t bytes) {
  std::uint64_t low = 0;
  for_lanes(addresses.mask, [&](int l) { low |= addresses.at[l]; });
  if ((low & (bytes - 1)) == 0) return 0;
  std::uint32_t result = 0;
  for_lanes(addresses.mask,
            [&](int l) { result |= static_cast<std::uint32_t>((addresses.at[l] & (bytes - 1)) != 0) << l; });
  return result;
}

/// Lanes of the mask whose access does not lie within [begin, begin + size).
std::uint32_t outside_lanes(const Addresses& addresses, std::uint64_t begin, std::uint64_t size, std::uint64_t bytes) {
  const std::uint64_t last = size - bytes;
  std::uint32_t result = 0;
  for_lanes(addresses.mask, [&](int l) { result |= static_cast<std::uint32_t>(addresses.at[l] - begin > last) << l; });
  return result;
}

/// Whether all 32 lanes lie within [begin, begin + size) and on multiples of `bytes`; finds their pattern.
inline bool all_inside(Addresses& addresses, std::uint64_t begin, std::uint64_t size, std::uint64_t bytes) {
  addresses.pattern = find_pattern(addresses, bytes);
  if (size < bytes) return false;
  const std::uint64_t last = size - bytes;
  if (addresses.pattern != Pattern::scattered) {
    const std::uint64_t first = addresses.at[0];
    return first - begin <= last && addresses.at[kWarpLanes - 1] - begin <= last && (first & (bytes - 1)) == 0;
  }
  std::uint64_t low = 0;
  std::uint64_t outside = 0;
  for (int l = 0; l < kWarpLanes; ++l) {
    low |= addresses.at[l];
    outside |= static_cast<std::uint64_t>(addresses.at[l] - begin > last);
  }
  return outside == 0 && (low & (bytes - 1)) == 0;
}

/// The lanes that may go on, after complaints about the others.
template <class Complain>
void drop(Addresses& addresses, std::uint32_t bad, Complain complain) {
  if (bad == 0) return;
  complain(bad);
  addresses.mask &= ~bad;
  addresses.pattern = Pattern::scattered;
}

/// Global memory: host addresses within the arena.
template <bool kInstrumented>
void resolve_global(Warp& warp, const Instruction& in, Addresses& addresses, int bytes, Access access) {
  const auto width = static_cast<std::uint64_t>(bytes);
  const std::uint64_t base = warp.machine->arena_base;
  const bool inside = addresses.mask == kAllLanes && all_inside(addresses, base, DeviceMemory::kArenaBytes, width);
  if (!inside) {
    addresses.pattern = Pattern::scattered;
    drop(addresses, outside_lanes(addresses, base, DeviceMemory::kArenaBytes, width),
         [&](std::uint32_t bad) { bad_global_access(warp, in, bad, addresses.at, bytes, access); });
    drop(addresses, misaligned_lanes(addresses, width),
         [&](std::uint32_t bad) { misaligned_access(warp, in, bad, addresses.at, bytes); });
  }
  if constexpr (kInstrumented) {
    if (addresses.mask != 0) observe_global(warp, in, addresses, bytes, access);
  }
}

/// The block, of this one's cluster, and the offset in it that a shared address means.
std::uint64_t shared_host_address(Warp& warp, std::uint64_t offset) {
  const std::uint64_t rank = offset >> kClusterRankShift;
  Block* const block = rank == 0 ? warp.block : warp.block->cluster[rank - 1];
  return reinterpret_cast<std::uint64_t>(block->shared.data()) + (offset & ((1u << kClusterRankShift) - 1));
}

/// Checks of an access whose lanes all lie within the block's shared memory and are aligned.
void watch_shared(Warp& warp, const Instruction& in, Addresses& addresses, int bytes, Access access) {
  if (!warp.machine->quick) return observe_shared(warp, in, addresses, bytes, access);
  SharedOffsets offsets;
  const auto fallback = static_cast<std::uint32_t>(addresses.at[std::countr_zero(addresses.mask)]);
  offsets.mask = addresses.mask;
  offsets.least = fallback;
  offsets.most = fallback;
  for (int l = 0; l < kWarpLanes; ++l) {
    const bool takes_part = (addresses.mask & kLaneBits.bit[l]) != 0;
    const std::uint32_t at = takes_part ? static_cast<std::uint32_t>(addresses.at[l]) : fallback;
    offsets.at[l] = at;
    offsets.least = at < offsets.least ? at : offsets.least;
    offsets.most = at > offsets.most ? at : offsets.most;
  }
  if (!is_plainly_right(warp, in, offsets, static_cast<std::uint32_t>(bytes), access))
    observe_shared(warp, in, addresses, bytes, access);
}

/// Shared memory: offsets become host addresses.
template <bool kInstrumented>
void resolve_shared(Warp& warp, const Instruction& in, Addresses& addresses, int bytes, Access access) {
  const auto width = static_cast<std::uint64_t>(bytes);
  Block& block = *warp.block;
  for (int l = 0; l < kWarpLanes; ++l) addresses.at[l] &= 0xffffffffu;
  const std::uint64_t size = block.shared_end - kSharedBase;
  const bool inside = addresses.mask == kAllLanes && all_inside(addresses, kSharedBase, size, width);
  if (!inside) {
    addresses.pattern = Pattern::scattered;
    std::uint32_t bad = 0;
    for_lanes(addresses.mask, [&](int l) {
      const std::uint64_t rank = addresses.at[l] >> kClusterRankShift;
      const std::uint64_t offset = addresses.at[l] & ((1u << kClusterRankShift) - 1);
      const bool in_block = offset >= kSharedBase && offset + width <= block.shared_end && rank <= block.cluster.size();
      bad |= static_cast<std::uint32_t>(!in_block) << l;
    });
    drop(addresses, bad,
         [&](std::uint32_t lanes_) { bad_shared_access(warp, in, lanes_, addresses.at, bytes, access); });
    drop(addresses, misaligned_lanes(addresses, width),
         [&](std::uint32_t lanes_) { misaligned_access(warp, in, lanes_, addresses.at, bytes); });
    if (addresses.mask == 0) return;
  }
  if constexpr (kInstrumented) watch_shared(warp, in, addresses, bytes, access);
  if (block.cluster.empty()) {
    const auto base = reinterpret_cast<std::uint64_t>(block.shared.data());
    for (int l = 0; l < kWarpLanes; ++l) addresses.at[l] += base;
  } else {
    for_lanes(addresses.mask, [&](int l) { addresses.at[l] = shared_host_address(warp, addresses.at[l]); });
  }
}

/// A thread's own memory.
void resolve_local(Warp& warp, const Instruction& in, Addresses& addresses, int bytes) {
  std::uint32_t bad = 0;
  for_lanes(addresses.mask, [&](int l) {
    const std::uint64_t offset = addresses.at[l] & 0xffffffffu;
    bad |= static_cast<std::uint32_t>(offset + static_cast<std::uint64_t>(bytes) > warp.local_bytes) << l;
    addresses.at[l] =
        reinterpret_cast<std::uint64_t>(warp.local) + static_cast<std::uint64_t>(l) * warp.local_bytes + offset;
  });
  drop(addresses, bad, [&](std::uint32_t lanes_) { bad_local_access(warp, in, lanes_); });
}

/// The kernel's parameters, by an address that is computed.
void resolve_parameter(Warp& warp, const Instruction& in, Addresses& addresses, int bytes, Access access) {
  const auto& parameters = warp.machine->launch->parameters;
  std::uint32_t bad = 0;
  for_lanes(addresses.mask, [&](int l) {
    const std::uint64_t offset = addresses.at[l] & 0xffffffffu;
    const bool fits = access == Access::read && offset + static_cast<std::uint64_t>(bytes) <= parameters.size();
    bad |= static_cast<std::uint32_t>(!fits) << l;
    addresses.at[l] = reinterpret_cast<std::uint64_t>(parameters.data()) + offset;
  });
  drop(addresses, bad, [&](std::uint32_t lanes_) { bad_local_access(warp, in, lanes_); });
}

/// Generic addresses: mostly all of one space.
template <bool kInstrumented>
void resolve_generic(Warp& warp, const Instruction& in, Addresses& addresses, int bytes, Access access) {
  constexpr std::pair<std::uint64_t, Space> kWindows[] = {
      {kSharedWindow, Space::shared}, {kLocalWindow, Space::local}, {kParamWindow, Space::param}};
  const std::uint32_t wanted = addresses.mask;
  std::uint32_t windowed[3] = {};
  std::uint64_t any_high = 0;
  for_lanes(wanted, [&](int l) { any_high |= addresses.at[l] >> kWindowShift; });
  if (any_high != 0) {
    for_lanes(wanted, [&](int l) {
      for (int i = 0; i < 3; ++i) {
        const bool within = addresses.at[l] >> kWindowShift == kWindows[i].first >> kWindowShift;
        windowed[i] |= static_cast<std::uint32_t>(within) << l;
      }
    });
  }
  const std::uint32_t global = wanted & ~(windowed[0] | windowed[1] | windowed[2]);
  if (global == wanted) return resolve_global<kInstrumented>(warp, in, addresses, bytes, access);
  if (windowed[0] == wanted) return resolve_shared<kInstrumented>(warp, in, addresses, bytes, access);

  // Lanes of several spaces: each in turn, then all together by host address.
  std::uint32_t allowed = 0;
  const auto part = [&](std::uint32_t mask, auto resolve) {
    if (mask == 0) return;
    Addresses some = addresses;
    some.mask = mask;
    some.pattern = Pattern::scattered;
    resolve(some);
    for_lanes(some.mask, [&](int l) { addresses.at[l] = some.at[l]; });
    allowed |= some.mask;
  };
  part(global, [&](Addresses& some) { resolve_global<kInstrumented>(warp, in, some, bytes, access); });
  part(windowed[0], [&](Addresses& some) { resolve_shared<kInstrumented>(warp, in, some, bytes, access); });
  part(windowed[1], [&](Addresses& some) { resolve_local(warp, in, some, bytes); });
  part(windowed[2], [&](Addresses& some) { resolve_parameter(warp, in, some, bytes, access); });
  addresses.mask = allowed;
  addresses.pattern = Pattern::scattered;
}

/// From the operand to host addresses of the lanes that may access them.
template <Space kSpace, bool kInstrumented>
void resolve(Warp& warp, const Instruction& in, Addresses& addresses, int bytes, Access access) {
  read_addresses(warp, in, addresses);
  if constexpr (kSpace == Space::global) resolve_global<kInstrumented>(warp, in, addresses, bytes, access);
  if constexpr (kSpace == Space::shared) resolve_shared<kInstrumented>(warp, in, addresses, bytes, access);
  if constexpr (kSpace == Space::local) resolve_local(warp, in, addresses, bytes);
  if constexpr (kSpace == Space::param) resolve_parameter(warp, in, addresses, bytes, access);
  if constexpr (kSpace == Space::generic) resolve_generic<kInstrumented>(warp, in, addresses, bytes, access);
}

// ---- loads
//
// Loads of s8 extend the sign of a char.
// NOLINTBEGIN(bugprone-signed-char-misuse)

/// Element `index` of vectors of kElements that lie side by side.
template <class T, class R, int kElements>
void gather_unit(R* to, std::uint64_t first, int index) {
  const T* from = reinterpret_cast<const T*>(first) + index;
  for (int l = 0; l < kWarpLanes; ++l) to[l] = static_cast<R>(from[l * kElements]);
}

template <class T, class R>
void load_element(Warp& warp, std::int32_t slot, const Addresses& addresses, int index, int elements) {
  const std::uint64_t offset = static_cast<std::uint64_t>(index) * sizeof(T);
  R* const to = lanes<R>(warp, slot);
  if (addresses.pattern == Pattern::unit) {
    if (elements == 1) return gather_unit<T, R, 1>(to, addresses.at[0], index);
    if (elements == 2) return gather_unit<T, R, 2>(to, addresses.at[0], index);
    if (elements == 4) return gather_unit<T, R, 4>(to, addresses.at[0], index);
  }
  if (addresses.pattern == Pattern::uniform) {
    const R value = static_cast<R>(load_from<T>(addresses.at[0] + offset));
    for (int l = 0; l < kWarpLanes; ++l) to[l] = value;
    return;
  }
  if (addresses.mask == kAllLanes) {
    // Half warps often read side by side, as rows of a tile.
    constexpr int kHalf = kWarpLanes / 2;
    for (int first = 0; first < kWarpLanes; first += kHalf) {
      const std::uint64_t base = addresses.at[first];
      std::uint64_t wrong = static_cast<std::uint64_t>(elements != 1);
      for (int l = 0; l < kHalf; ++l)
        wrong |= (addresses.at[first + l] - base) ^ (static_cast<std::uint64_t>(l) * sizeof(T));
      if (wrong == 0) {
        const T* const from = reinterpret_cast<const T*>(base);
        for (int l = 0; l < kHalf; ++l) to[first + l] = static_cast<R>(from[l]);
      } else {
        for (int l = first; l < first + kHalf; ++l) to[l] = static_cast<R>(load_from<T>(addresses.at[l] + offset));
      }
    }
  } else {
    for_lanes(addresses.mask, [&](int l) { to[l] = static_cast<R>(load_from<T>(addresses.at[l] + offset)); });
  }
}

// NOLINTEND(bugprone-signed-char-misuse)

#if defined(__SSE2__)
/// Four 32-bit elements of every lane: 16 bytes at a time, transposed. `address(l)` is lane l's.
template <class Address>
void load_quads(Warp& warp, const std::int32_t* slots, Address address) {
  alignas(64) static thread_local float ignored[kWarpLanes];
  float* to[4];
  for (int i = 0; i < 4; ++i) to[i] = slots[i] >= 0 ? lanes<float>(warp, slots[i]) : ignored;
  for (int l = 0; l < kWarpLanes; l += 4) {
    __m128 row[4];
    for (int i = 0; i < 4; ++i) row[i] = _mm_loadu_ps(reinterpret_cast<const float*>(address(l + i)));
    _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
    for (int i = 0; i < 4; ++i) _mm_store_ps(to[i] + l, row[i]);
  }
}
#endif

#if defined(__SSE2__)
/// Pairs of 32-bit elements that lie side by side, lane after lane.
inline void load_pairs_unit(Warp& warp, const std::int32_t* slots, std::uint64_t first) {
  const auto* from = reinterpret_cast<const float*>(first);
  float* const x = lanes<float>(warp, slots[0]);
  float* const y = lanes<float>(warp, slots[1]);
  for (int l = 0; l < kWarpLanes; l += 4) {
    const __m128 low = _mm_loadu_ps(from + 2 * l);
    const __m128 high = _mm_loadu_ps(from + 2 * l + 4);
    _mm_store_ps(x + l, _mm_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0)));
    _mm_store_ps(y + l, _mm_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1)));
  }
}
#endif

/// All lanes' elements from host addresses.
template <class T, class R>
void load_elements(Warp& warp, const Instruction& in, const Addresses& addresses) {
  const std::int32_t* const slots = warp.lists + in.list;
#if defined(__SSE2__)
  if constexpr (sizeof(T) == 4 && sizeof(R) == 4) {
    if (in.elements == 2 && addresses.pattern == Pattern::unit && slots[0] >= 0 && slots[1] >= 0) {
      return load_pairs_unit(warp, slots, addresses.at[0]);
    }
    if (in.elements == 4 && addresses.mask == kAllLanes && addresses.pattern != Pattern::uniform) {
      return load_quads(warp, slots, [&](int l) { return addresses.at[l]; });
    }
  }
#endif
  for (int i = 0; i < in.elements; ++i) {
    if (slots[i] >= 0) load_element<T, R>(warp, slots[i], addresses, i, in.elements);
  }
}

/// Offsets of all 32 lanes in the block's own shared memory; false where one is out of bounds, misaligned or another
/// block's: the general path sorts that out.
inline bool shared_offsets(Warp& warp, const Instruction& in, std::uint32_t bytes, SharedOffsets& offsets) {
  const Block& block = *warp.block;
  if (warp.exec != kAllLanes || !block.cluster.empty() || block.shared_end < kSharedBase + bytes) return false;
  const auto offset = static_cast<std::uint32_t>(in.immediate);
  std::int32_t least = INT32_MAX;  // signed: what SSE2 has comparisons for; what is beyond is below kSharedBase
  std::int32_t most = 0;
  std::uint32_t low = 0;
  const auto note = [&](int l, std::uint32_t at) {
    const auto value = static_cast<std::int32_t>(at);
    offsets.at[l] = at;
    least = value < least ? value : least;
    most = value > most ? value : most;
    low |= at;
  };
  if (in.address_bytes == 8) {
    const auto* a = lanes<std::uint64_t>(warp, in.a);
    for (int l = 0; l < kWarpLanes; ++l) note(l, static_cast<std::uint32_t>(a[l]) + offset);
  } else {
    const auto* a = lanes<std::uint32_t>(warp, in.a);
    for (int l = 0; l < kWarpLanes; ++l) note(l, a[l] + offset);
  }
  offsets.mask = kAllLanes;
  offsets.least = static_cast<std::uint32_t>(least);
  offsets.most = static_cast<std::uint32_t>(most);
  return least >= static_cast<std::int32_t>(kSharedBase) && offsets.most <= block.shared_end - bytes &&
         (low & (bytes - 1)) == 0;
}

/// 32-bit elements at all lanes' offsets. Groups of lanes mostly read side by side or one element: gathers are slow.
inline void gather_words(std::uint32_t* to, const std::byte* base, const std::uint32_t* offsets) {
#if defined(__AVX512F__)
  const __m512i steps = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
  for (int l = 0; l < kWarpLanes; l += 16) {
    const __m512i at = _mm512_load_si512(offsets + l);
    const __m512i distance = _mm512_sub_epi32(at, _mm512_set1_epi32(static_cast<int>(offsets[l])));
    const std::byte* const first = base + offsets[l];
    __m512i value;
    if (_mm512_cmpeq_epi32_mask(distance, steps) == 0xffff) {
      value = _mm512_loadu_si512(first);
    } else if (_mm512_test_epi32_mask(distance, distance) == 0) {
      value = _mm512_set1_epi32(static_cast<int>(load_from<std::uint32_t>(reinterpret_cast<std::uint64_t>(first))));
    } else {
      value = _mm512_i32gather_epi32(at, base, 1);
    }
    _mm512_store_si512(to + l, value);
  }
#elif defined(__AVX2__)
  const __m256i steps = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  for (int l = 0; l < kWarpLanes; l += 8) {
    const __m256i at = _mm256_load_si256(reinterpret_cast<const __m256i*>(offsets + l));
    const __m256i distance = _mm256_sub_epi32(at, _mm256_set1_epi32(static_cast<int>(offsets[l])));
    const std::byte* const first = base + offsets[l];
    auto* const out = reinterpret_cast<__m256i*>(to + l);
    if (_mm256_movemask_epi8(_mm256_cmpeq_epi32(distance, steps)) == -1) {
      _mm256_store_si256(out, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
    } else if (_mm256_testz_si256(distance, distance) != 0) {
      _mm256_store_si256(
          out, _mm256_set1_epi32(static_cast<int>(load_from<std::uint32_t>(reinterpret_cast<std::uint64_t>(first)))));
    } else {
      for (int i = l; i < l + 8; ++i) std::memcpy(to + i, base + offsets[i], 4);
    }
  }
#else
  for (int l = 0; l < kWarpLanes; ++l) std::memcpy(to + l, base + offsets[l], 4);
#endif
}

/// ld.shared of 32-bit elements by all lanes; false where there may be something to complain about.
template <bool kInstrumented>
bool load_shared_words(Warp& warp, const Instruction& in) {
  if (kInstrumented && !warp.machine->quick) return false;
  SharedOffsets offsets;
  const std::uint32_t bytes = 4u * in.elements;
  if (!shared_offsets(warp, in, bytes, offsets)) return false;
  if (kInstrumented && !is_plainly_right(warp, in, offsets, bytes, Access::read)) return false;
  const std::byte* const base = warp.block->shared.data();
  const std::int32_t* const slots = warp.lists + in.list;
#if defined(__SSE2__)
  if (in.elements == 4) {
    load_quads(warp, slots, [&](int l) { return base + offsets.at[l]; });
    return true;
  }
#endif
  for (int i = 0; i < in.elements; ++i) {
    if (slots[i] >= 0) gather_words(lanes<std::uint32_t>(warp, slots[i]), base + 4 * i, offsets.at);
  }
  return true;
}

template <class T, class R, Space kSpace, bool kInstrumented>
void load(Warp& warp, const Instruction& in) {
  if constexpr (kSpace == Space::shared && sizeof(T) == 4 && sizeof(R) == 4) {
    if (load_shared_words<kInstrumented>(warp, in)) return;
  }
  Addresses addresses;
  resolve<kSpace, kInstrumented>(warp, in, addresses, static_cast<int>(sizeof(T)) * in.elements, Access::read);
  if (addresses.mask != 0) load_elements<T, R>(warp, in, addresses);
}

// ---- stores

template <class T, class R>
void store_element(Warp& warp, std::int32_t slot, const Addresses& addresses, int index, int elements) {
  const std::uint64_t offset = static_cast<std::uint64_t>(index) * sizeof(T);
  const R* const from = lanes<R>(warp, slot);
  if (addresses.pattern == Pattern::unit && elements == 1) {
    T* const to = reinterpret_cast<T*>(addresses.at[0]);
    for (int l = 0; l < kWarpLanes; ++l) to[l] = static_cast<T>(from[l]);
    return;
  }
  for_lanes(addresses.mask, [&](int l) { store_to<T>(addresses.at[l] + offset, static_cast<T>(from[l])); });
}

/// st.shared of 32-bit elements by all lanes; false where there may be something to complain about.
template <bool kInstrumented>
bool store_shared_words(Warp& warp, const Instruction& in) {
  if (kInstrumented && !warp.machine->quick) return false;
  SharedOffsets offsets;
  const std::uint32_t bytes = 4u * in.elements;
  if (!shared_offsets(warp, in, bytes, offsets)) return false;
  if (kInstrumented && !is_plainly_right(warp, in, offsets, bytes, Access::write)) return false;
  std::byte* const base = warp.block->shared.data();
  for (int i = 0; i < in.elements; ++i) {
    const auto* from = lanes<std::uint32_t>(warp, warp.lists[in.list + i]);
    for (int l = 0; l < kWarpLanes; ++l) std::memcpy(base + offsets.at[l] + 4 * i, from + l, 4);
  }
  return true;
}

template <class T, class R, Space kSpace, bool kInstrumented>
void store(Warp& warp, const Instruction& in) {
  if constexpr (kSpace == Space::shared && sizeof(T) == 4 && sizeof(R) == 4) {
    if (store_shared_words<kInstrumented>(warp, in)) return;
  }
  Addresses addresses;
  resolve<kSpace, kInstrumented>(warp, in, addresses, static_cast<int>(sizeof(T)) * in.elements, Access::write);
  if (addresses.mask == 0) return;
  for (int i = 0; i < in.elements; ++i) {
    store_element<T, R>(warp, warp.lists[in.list + i], addresses, i, in.elements);
  }
}

// ---- cp.async

/// Whether the lines of global memory that the lanes read are known to be good throughout.
inline bool lines_are_good(const Machine& machine, const Addresses& addresses) {
  if (!machine.checks.any_global() || !machine.launch->memory->has_shadow()) return true;
  const DeviceMemory& memory = *machine.launch->memory;
  std::uint8_t common = 0xff;
  for (int l = 0; l < kWarpLanes; ++l) common &= memory.line_state(addresses.at[l]);
  const auto wanted = static_cast<std::uint8_t>(Byte::initialised);
  return (common & wanted) == wanted;
}

/// Whole copies of kBytes a lane of which all is plainly right. False, and nothing done, where it is not.
template <std::uint32_t kBytes>
bool copy_whole(Warp& warp, const Instruction& in) {
  Machine& machine = *warp.machine;
  Block& block = *warp.block;
  const auto* a = lanes<std::uint32_t>(warp, in.a);
  const auto* c = lanes<std::uint64_t>(warp, in.c);
  const int some = std::countr_zero(warp.exec);
  SharedOffsets to{.at = {}, .mask = warp.exec, .least = kAllLanes, .most = 0};
  Addresses from;
  from.mask = warp.exec;
  std::uint64_t outside = 0;
  std::uint64_t low = 0;
  for (int l = 0; l < kWarpLanes; ++l) {
    const bool takes_part = (warp.exec & kLaneBits.bit[l]) != 0;
    to.at[l] = (takes_part ? a[l] : a[some]) + static_cast<std::uint32_t>(in.immediate);
    from.at[l] = (takes_part ? c[l] : c[some]) + static_cast<std::uint64_t>(std::int64_t{in.target});
    to.least = to.at[l] < to.least ? to.at[l] : to.least;
    to.most = to.at[l] > to.most ? to.at[l] : to.most;
    outside |= static_cast<std::uint64_t>(from.at[l] - machine.arena_base > DeviceMemory::kArenaBytes - kBytes);
    low |= from.at[l] | to.at[l];
  }
  if (outside != 0 || (low & (kBytes - 1)) != 0) return false;
  if (to.least < kSharedBase || std::uint64_t{to.most} + kBytes > block.shared_end) return false;
  if (machine.observes) {
    std::uint32_t groups = 0;
    for (int l = 0; l < kWarpLanes; ++l)
      groups |= (warp.copy_groups[l] ^ warp.copy_groups[some]) & ((warp.exec & kLaneBits.bit[l]) != 0 ? kAllLanes : 0u);
    if (groups != 0 || !lines_are_good(machine, from)) return false;
    if (!is_plainly_right(warp, in, to, kBytes, Access::write)) return false;
    if (machine.checks.global_races || machine.touched) observe_global(warp, in, from, kBytes, Access::read);
    if (machine.checks.async_copies) {
      std::uint8_t* const states = block.shared_state.data();
      for_lanes(warp.exec, [&](int l) { std::memset(states + to.at[l], kSharedPending, kBytes); });
      postpone_copy(warp, warp.exec, kBytes, to.at, from.at);
      return true;
    }
  }
  std::byte* const shared = block.shared.data();
  for_lanes(warp.exec,
            [&](int l) { std::memcpy(shared + to.at[l], reinterpret_cast<const void*>(from.at[l]), kBytes); });
  return true;
}

void copy(Warp& warp, const Instruction& in) {
  const bool whole = in.b < 0 && in.mode == 0 && in.address_bytes == 4 && warp.block->cluster.empty();
  const bool done = whole && (in.bytes == 16  ? copy_whole<16>(warp, in)
                              : in.bytes == 8 ? copy_whole<8>(warp, in)
                                              : copy_whole<4>(warp, in));
  if (!done) copy_async(warp, in);
}

// ---- atomics: lanes one after the other, the lowest first

struct AtomicAdd {
  template <class T>
  static T apply(T old, T value, T) {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(static_cast<std::make_unsigned_t<T>>(old) + static_cast<std::make_unsigned_t<T>>(value));
    else
      return old + value;
  }
};
struct AtomicExchange {
  template <class T>
  static T apply(T, T value, T) {
    return value;
  }
};
struct AtomicCompareAndSwap {
  template <class T>
  static T apply(T old, T expected, T value) {
    return old == expected ? value : old;
  }
};
struct AtomicMinimum {
  template <class T>
  static T apply(T old, T value, T) {
    return value < old ? value : old;
  }
};
struct AtomicMaximum {
  template <class T>
  static T apply(T old, T value, T) {
    return value > old ? value : old;
  }
};
struct AtomicIncrement {
  template <class T>
  static T apply(T old, T limit, T) {
    return old >= limit ? T{0} : static_cast<T>(old + 1);
  }
};
struct AtomicDecrement {
  template <class T>
  static T apply(T old, T limit, T) {
    return old == 0 || old > limit ? limit : static_cast<T>(old - 1);
  }
};
struct AtomicAnd {
  template <class T>
  static T apply(T old, T value, T) {
    return old & value;
  }
};
struct AtomicOr {
  template <class T>
  static T apply(T old, T value, T) {
    return old | value;
  }
};
struct AtomicXor {
  template <class T>
  static T apply(T old, T value, T) {
    return old ^ value;
  }
};
template <class H>
struct AtomicAddHalf {
  static std::uint16_t apply(std::uint16_t old, std::uint16_t value, std::uint16_t) {
    return static_cast<std::uint16_t>(Lane<H>::store(Lane<H>::load(old) + Lane<H>::load(value)));
  }
};
template <class H>
struct AtomicAddPair {
  static std::uint32_t apply(std::uint32_t old, std::uint32_t value, std::uint32_t) {
    const std::uint32_t low = Lane<H>::store(Lane<H>::load(old & 0xffffu) + Lane<H>::load(value & 0xffffu));
    return low | Lane<H>::store(Lane<H>::load(old >> 16) + Lane<H>::load(value >> 16)) << 16;
  }
};

template <class Op, class T>
T update(std::uint64_t address, T value, T other, bool parallel) {
  T* const at = reinterpret_cast<T*>(address);
  if (!parallel) {
    const T old = *at;
    *at = Op::apply(old, value, other);
    return old;
  }
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  T next = Op::apply(old, value, other);
  while (!__atomic_compare_exchange_n(at, &old, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    next = Op::apply(old, value, other);
  }
  return old;
}

/// T: as it is computed with; B: unsigned of its size, for the host's atomics; R: its register.
template <class Op, class T, class R, Space kSpace, bool kInstrumented>
void atomic(Warp& warp, const Instruction& in) {
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t,
                                  std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;
  struct OnBits {
    static Bits apply(Bits old, Bits value, Bits other) {
      return std::bit_cast<Bits>(Op::apply(std::bit_cast<T>(old), std::bit_cast<T>(value), std::bit_cast<T>(other)));
    }
  };
  Addresses addresses;
  resolve<kSpace, kInstrumented>(warp, in, addresses, static_cast<int>(sizeof(T)) * in.elements, Access::atomic);
  const bool parallel = warp.machine->parallel && kSpace != Space::shared;
  for (int i = 0; i < in.elements; ++i) {
    const R* value = lanes<R>(warp, warp.lists[in.list + i]);
    const R* other = in.c >= 0 ? lanes<R>(warp, in.c) : value;
    const std::int32_t slot = warp.lists[in.list + in.elements + i];
    R* result = slot >= 0 ? lanes<R>(warp, slot) : nullptr;
    const std::uint64_t offset = static_cast<std::uint64_t>(i) * sizeof(T);
    for_lanes(addresses.mask, [&](int l) {
      const Bits old = update<OnBits, Bits>(addresses.at[l] + offset, static_cast<Bits>(value[l]),
                                            static_cast<Bits>(other[l]), parallel);
      if (result != nullptr) result[l] = static_cast<R>(old);
    });
  }
}

/// exch and cas of 128 bits: programs with them run in order, so that no host atomic is needed.
template <bool kCompares, Space kSpace, bool kInstrumented>
void atomic_quad(Warp& warp, const Instruction& in) {
  using Quad = unsigned __int128;
  Addresses addresses;
  resolve<kSpace, kInstrumented>(warp, in, addresses, sizeof(Quad), Access::atomic);
  const Quad* const value = lanes<Quad>(warp, warp.lists[in.list]);
  const std::int32_t slot = warp.lists[in.list + in.elements];
  for_lanes(addresses.mask, [&](int l) {
    const Quad old = load_from<Quad>(addresses.at[l]);
    if constexpr (kCompares) {
      if (old == value[l]) store_to<Quad>(addresses.at[l], lanes<Quad>(warp, in.c)[l]);
    } else {
      store_to<Quad>(addresses.at[l], value[l]);
    }
    if (slot >= 0) lanes<Quad>(warp, slot)[l] = old;
  });
}

// ---- the table

/// A key's handlers for every space, plain and instrumented. `kMake<space, instrumented>()` is the handler.
template <class Make>
void add_spaces(HandlerRegistry& registry, const char* head, const char* type, Make make) {
  const auto add = [&]<Space kSpace>(const char* space) {
    add_handler(registry, head, type, space, make.template operator()<kSpace, false>(),
                make.template operator()<kSpace, true>());
  };
  add.template operator()<Space::global>("global");
  add.template operator()<Space::shared>("shared");
  add.template operator()<Space::local>("local");
  add.template operator()<Space::param>("param");
  add.template operator()<Space::generic>("generic");
}

template <class T, class R>
void add_load(HandlerRegistry& registry, const char* type) {
  add_spaces(registry, "ld", type,
             []<Space kSpace, bool kInstrumented>() -> Handler { return load<T, R, kSpace, kInstrumented>; });
}
template <class T, class R>
void add_store(HandlerRegistry& registry, const char* type) {
  add_spaces(registry, "st", type,
             []<Space kSpace, bool kInstrumented>() -> Handler { return store<T, R, kSpace, kInstrumented>; });
}
template <class Op, class T, class R = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>>
void add_atomic(HandlerRegistry& registry, const char* head, const char* type) {
  const auto add = [&]<Space kSpace>(const char* space) {
    add_handler(registry, head, type, space, atomic<Op, T, R, kSpace, false>, atomic<Op, T, R, kSpace, true>);
  };
  add.template operator()<Space::global>("global");
  add.template operator()<Space::shared>("shared");
  add.template operator()<Space::generic>("generic");
}

template <bool kCompares>
void add_quad_atomic(HandlerRegistry& registry, const char* head) {
  const auto add = [&]<Space kSpace>(const char* space) {
    add_handler(registry, head, "b128", space, atomic_quad<kCompares, kSpace, false>,
                atomic_quad<kCompares, kSpace, true>);
  };
  add.template operator()<Space::global>("global");
  add.template operator()<Space::shared>("shared");
  add.template operator()<Space::generic>("generic");
}

template <class Op>
void add_integer_atomics(HandlerRegistry& registry, const char* head) {
  add_atomic<Op, std::uint32_t>(registry, head, "u32");
  add_atomic<Op, std::int32_t>(registry, head, "s32");
  add_atomic<Op, std::uint64_t>(registry, head, "u64");
  add_atomic<Op, std::int64_t>(registry, head, "s64");
}
template <class Op>
void add_bit_atomics(HandlerRegistry& registry, const char* head) {
  add_atomic<Op, std::uint32_t>(registry, head, "b32");
  add_atomic<Op, std::uint64_t>(registry, head, "b64");
}

}  // namespace

void register_memory(HandlerRegistry& registry) {
  // Loads by what is in memory and the size of the register.
  add_load<std::uint8_t, std::uint32_t>(registry, "u8.r4");
  add_load<std::int8_t, std::int32_t>(registry, "s8.r4");
  add_load<std::uint16_t, std::uint32_t>(registry, "u16.r4");
  add_load<std::int16_t, std::int32_t>(registry, "s16.r4");
  add_load<std::uint32_t, std::uint32_t>(registry, "u32.r4");
  add_load<std::uint8_t, std::uint64_t>(registry, "u8.r8");
  add_load<std::int8_t, std::int64_t>(registry, "s8.r8");
  add_load<std::uint16_t, std::uint64_t>(registry, "u16.r8");
  add_load<std::int16_t, std::int64_t>(registry, "s16.r8");
  add_load<std::uint32_t, std::uint64_t>(registry, "u32.r8");
  add_load<std::int32_t, std::int64_t>(registry, "s32.r8");
  add_load<std::uint64_t, std::uint64_t>(registry, "u64.r8");
  add_load<unsigned __int128, unsigned __int128>(registry, "u128.r16");
  add_store<std::uint8_t, std::uint32_t>(registry, "u8.r4");
  add_store<std::uint16_t, std::uint32_t>(registry, "u16.r4");
  add_store<std::uint32_t, std::uint32_t>(registry, "u32.r4");
  add_store<std::uint8_t, std::uint64_t>(registry, "u8.r8");
  add_store<std::uint16_t, std::uint64_t>(registry, "u16.r8");
  add_store<std::uint32_t, std::uint64_t>(registry, "u32.r8");
  add_store<std::uint64_t, std::uint64_t>(registry, "u64.r8");
  add_store<unsigned __int128, unsigned __int128>(registry, "u128.r16");

  add_handler(registry, "cp.async", "", copy);

  add_integer_atomics<AtomicAdd>(registry, "atom.add");
  add_integer_atomics<AtomicMinimum>(registry, "atom.min");
  add_integer_atomics<AtomicMaximum>(registry, "atom.max");
  add_atomic<AtomicAdd, float>(registry, "atom.add", "f32");
  add_atomic<AtomicAdd, double>(registry, "atom.add", "f64");
  add_atomic<AtomicAddHalf<F16>, std::uint16_t>(registry, "atom.add", "f16");
  add_atomic<AtomicAddHalf<Bf16>, std::uint16_t>(registry, "atom.add", "bf16");
  add_atomic<AtomicAddPair<F16>, std::uint32_t>(registry, "atom.add", "f16x2");
  add_atomic<AtomicAddPair<Bf16>, std::uint32_t>(registry, "atom.add", "bf16x2");
  add_atomic<AtomicIncrement, std::uint32_t>(registry, "atom.inc", "u32");
  add_atomic<AtomicDecrement, std::uint32_t>(registry, "atom.dec", "u32");
  add_bit_atomics<AtomicAnd>(registry, "atom.and");
  add_bit_atomics<AtomicOr>(registry, "atom.or");
  add_bit_atomics<AtomicXor>(registry, "atom.xor");
  add_bit_atomics<AtomicExchange>(registry, "atom.exch");
  add_bit_atomics<AtomicCompareAndSwap>(registry, "atom.cas");
  add_atomic<AtomicCompareAndSwap, std::uint16_t>(registry, "atom.cas", "b16");
  add_quad_atomic<true>(registry, "atom.cas");
  add_quad_atomic<false>(registry, "atom.exch");
}

}  // namespace gpusim::DSV2_ISA
