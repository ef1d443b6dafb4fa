// What looks on while lanes access shared memory, in vectors: whether an access is plainly right. The rest of
// observe.cpp and race.cpp is for those that are not.
#pragma once

#include "gpusim/lanes.h"
#include "gpusim/race.h"

namespace gpusim::DSV2_ISA {

/// The offsets of a warp's access: those of lanes that do not take part are another lane's.
struct SharedOffsets {
  alignas(64) std::uint32_t at[kWarpLanes];
  std::uint32_t mask = 0;
  std::uint32_t least = 0;
  std::uint32_t most = 0;
};

/// Whether 16 offsets are one, and whether they lie `bytes` apart.
struct HalfForm {
  bool one = false;
  bool steps = false;
};
inline HalfForm half_form(const std::uint32_t* at, std::uint32_t bytes) {
#if defined(__AVX512F__)
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i distance = _mm512_sub_epi32(_mm512_load_si512(at), _mm512_set1_epi32(static_cast<int>(at[0])));
  const __m512i step = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(bytes)));
  return {_mm512_test_epi32_mask(distance, distance) == 0, _mm512_cmpneq_epi32_mask(distance, step) == 0};
#elif defined(__AVX2__)
  const __m256i first = _mm256_set1_epi32(static_cast<int>(at[0]));
  const __m256i bytes_each = _mm256_set1_epi32(static_cast<int>(bytes));
  __m256i moves = _mm256_setzero_si256();
  __m256i wrong = _mm256_setzero_si256();
  for (int i = 0; i < 2; ++i) {
    const __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(8 * i));
    const __m256i distance = _mm256_sub_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(at + 8 * i)), first);
    moves = _mm256_or_si256(moves, distance);
    wrong = _mm256_or_si256(wrong, _mm256_xor_si256(distance, _mm256_mullo_epi32(lane, bytes_each)));
  }
  return {_mm256_testz_si256(moves, moves) != 0, _mm256_testz_si256(wrong, wrong) != 0};
#else
  std::uint32_t moves = 0;
  std::uint32_t wrong = 0;
  for (std::uint32_t l = 0; l < kWarpLanes / 2; ++l) {
    moves |= at[l] ^ at[0];
    wrong |= (at[l] - at[0]) ^ (l * bytes);
  }
  return {moves == 0, wrong == 0};
#endif
}

/// How the offsets lie: a SharedForm.
inline std::uint32_t form_of(const SharedOffsets& offsets, std::uint32_t bytes) {
  const HalfForm first = half_form(offsets.at, bytes);
  const HalfForm second = half_form(offsets.at + kWarpLanes / 2, bytes);
  if (!(first.one || first.steps) || !(second.one || second.steps)) return kScattered;
  return kHalves | (first.one ? 0u : kFirstSteps) | (second.one ? 0u : kSecondSteps);
}

/// Whether `count` states are all kSharedInitialised; where only kPending is asked for, whether none is kSharedPending.
/// `count`: 1, 2, or a multiple of 4.
template <bool kPending>
inline bool are_right(const std::uint8_t* states, std::uint32_t count) {
  static_assert(kSharedUninitialised == 0 && kSharedInitialised == 1 && kSharedPending == 2);
  constexpr std::uint32_t kWanted = kPending ? 0u : 0x01010101u;
  constexpr std::uint32_t kBits = kPending ? 0x02020202u : kAllLanes;
  std::uint32_t wrong = 0;
  if (count < 4) {
    for (std::uint32_t i = 0; i < count; ++i) wrong |= (states[i] ^ kWanted) & kBits & 0xffu;
    return wrong == 0;
  }
  std::uint32_t i = 0;
#if defined(__AVX2__)
  __m256i wrongs = _mm256_setzero_si256();
  for (; i + 32 <= count; i += 32) {
    const __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(states + i));
    wrongs = _mm256_or_si256(wrongs, _mm256_xor_si256(part, _mm256_set1_epi32(static_cast<int>(kWanted))));
  }
  wrongs = _mm256_and_si256(wrongs, _mm256_set1_epi32(static_cast<int>(kBits)));
  wrong = static_cast<std::uint32_t>(_mm256_testz_si256(wrongs, wrongs) == 0);
#endif
  for (; i < count; i += 4) {
    std::uint32_t word;
    std::memcpy(&word, states + i, sizeof word);
    wrong |= (word ^ kWanted) & kBits;
  }
  return wrong == 0;
}

/// The same of `Word`s at each lane's offset.
template <bool kPending, class Word>
inline bool are_right_at(const std::uint8_t* states, const std::uint32_t* offsets, int words) {
  constexpr auto kWanted = static_cast<Word>(kPending ? 0 : 0x0101010101010101u);
  constexpr auto kBits = static_cast<Word>(kPending ? 0x0202020202020202u : ~std::uint64_t{0});
  Word wrong = 0;
  for (int l = 0; l < kWarpLanes; ++l) {
    for (int i = 0; i < words; ++i) {
      Word word;
      std::memcpy(&word, states + offsets[l] + static_cast<std::size_t>(i) * sizeof word, sizeof word);
      wrong |= static_cast<Word>(word ^ kWanted);
    }
  }
  return (wrong & kBits) == 0;
}

template <bool kPending>
inline bool all_right(const std::uint8_t* states, const SharedOffsets& offsets, std::uint32_t form,
                      std::uint32_t bytes) {
  if (form != kScattered) {
    constexpr std::uint32_t kHalf = kWarpLanes / 2;
    const std::uint32_t second = offsets.at[kHalf];
    const std::uint32_t first_count = (form & kFirstSteps) != 0 ? kHalf * bytes : bytes;
    const std::uint32_t second_count = (form & kSecondSteps) != 0 ? kHalf * bytes : bytes;
    if (!are_right<kPending>(states + offsets.at[0], first_count)) return false;
    return (second == offsets.at[0] && second_count == first_count) ||
           are_right<kPending>(states + second, second_count);
  }
  if (bytes == 4) return are_right_at<kPending, std::uint32_t>(states, offsets.at, 1);
  if (bytes >= 8) return are_right_at<kPending, std::uint64_t>(states, offsets.at, static_cast<int>(bytes / 8));
  return bytes == 2 ? are_right_at<kPending, std::uint16_t>(states, offsets.at, 1)
                    : are_right_at<kPending, std::uint8_t>(states, offsets.at, 1);
}

/// Whether the states of what is read are right, or those of what is written can be made so.
inline bool settle_states(std::uint8_t* states, const SharedOffsets& offsets, std::uint32_t form, std::uint32_t bytes,
                          Access access) {
  if (all_right<false>(states, offsets, form, bytes)) return true;
  if (access != Access::write || !all_right<true>(states, offsets, form, bytes)) return false;
  for (int l = 0; l < kWarpLanes; ++l) {
    for (std::uint32_t i = 0; i < bytes; ++i) states[offsets.at[l] + i] = kSharedInitialised;
  }
  return true;
}

/// Whether one of `count` stamps is above `limit`; both below 2^31.
inline bool any_above(const std::uint32_t* stamps, std::uint32_t count, std::uint32_t limit) {
#if defined(__AVX512F__)
  const __m512i limits = _mm512_set1_epi32(static_cast<int>(limit));
  __mmask16 above = 0;
  for (std::uint32_t i = 0; i < count; i += 16) {
    const auto valid = static_cast<__mmask16>(count - i >= 16 ? 0xffffu : (1u << (count - i)) - 1);
    above |= _mm512_mask_cmpgt_epi32_mask(valid, _mm512_maskz_loadu_epi32(valid, stamps + i), limits);
  }
  return above != 0;
#else
  std::uint32_t above = 0;
  for (std::uint32_t i = 0; i < count; ++i) above |= static_cast<std::uint32_t>(stamps[i] > limit);
  return above != 0;
#endif
}

inline void fill_stamps(std::uint32_t* stamps, std::uint32_t count, std::uint32_t stamp) {
#if defined(__AVX512F__)
  for (std::uint32_t i = 0; i < count; i += 16) {
    const auto valid = static_cast<__mmask16>(count - i >= 16 ? 0xffffu : (1u << (count - i)) - 1);
    _mm512_mask_storeu_epi32(stamps + i, valid, _mm512_set1_epi32(static_cast<int>(stamp)));
  }
#else
  for (std::uint32_t i = 0; i < count; ++i) stamps[i] = stamp;
#endif
}

inline void log_access(Warp& warp, std::uint32_t at, const SharedOffsets& offsets, std::uint32_t form,
                       std::uint32_t bytes, Access access) {
  SharedLog& log = warp.block->log;
  const LoggedAccess entry{.at = at,
                           .stamp = warp.block->stamp,
                           .mask = offsets.mask,
                           .warp = static_cast<std::uint8_t>(warp.index),
                           .access = static_cast<std::uint8_t>(access),
                           .bytes = static_cast<std::uint8_t>(bytes),
                           .form = static_cast<std::uint8_t>(form)};
  std::uint32_t* const to = log.words.data() + log.used;
  std::memcpy(to, &entry, sizeof entry);
  if (form != kScattered) {
    to[SharedLog::kHeader] = offsets.at[0];
    to[SharedLog::kHeader + 1] = offsets.at[kWarpLanes / 2];
    log.used += SharedLog::kHeader + 2;
  } else {
    std::memcpy(to + SharedLog::kHeader, offsets.at, sizeof offsets.at);
    log.used += SharedLog::kMostEntry;
  }
}

/// Looks at the granules of an access, and, where it may go on, stamps them. `visit(first, count)` is given them all,
/// or more than those where that is quicker: reads in between can only make a later write look at its cells.
template <class Visit>
inline void visit_granules(const SharedOffsets& offsets, std::uint32_t bytes, Access access, Visit visit) {
  constexpr std::uint32_t kMostRead = 64;
  constexpr std::uint32_t kMostWritten = 16;  // 32 lanes of 16 bytes side by side
  const std::uint32_t first = offsets.least >> SharedLog::kGranuleShift;
  const std::uint32_t count = ((offsets.most + bytes - 1) >> SharedLog::kGranuleShift) - first + 1;
  if (count <= (access == Access::read ? kMostRead : kMostWritten)) return visit(first, count);
  for (int l = 0; l < kWarpLanes; ++l) visit(offsets.at[l] >> SharedLog::kGranuleShift, 1u);
}

/// Whether the check of races has nothing to look at: no granule of the access has been touched since the last barrier
/// in a way that it could race with. Logs it where that is so.
inline bool races_with_nothing(Warp& warp, std::uint32_t at, const SharedOffsets& offsets, std::uint32_t form,
                               std::uint32_t bytes, Access access) {
  Block& block = *warp.block;
  SharedLog& log = block.log;
  const bool reads = access == Access::read;
  const std::uint32_t* const stamps = (reads ? log.writes : log.accesses).data();
  bool touched = false;
  visit_granules(offsets, bytes, access, [&](std::uint32_t first, std::uint32_t count) {
    touched |= any_above(stamps + first, count, block.ordered_stamp);
  });
  if (touched) return false;
  if (log.used + SharedLog::kMostEntry > SharedLog::kMostWords) replay_log(block);
  log_access(warp, at, offsets, form, bytes, access);
  visit_granules(offsets, bytes, access, [&](std::uint32_t first, std::uint32_t count) {
    fill_stamps(log.accesses.data() + first, count, block.stamp);
    if (!reads) fill_stamps(log.writes.data() + first, count, block.stamp);
  });
  return true;
}

/// Whether an access of `bytes` a lane, within bounds and aligned, is plainly right: observe_shared need not be asked.
inline bool is_plainly_right(Warp& warp, const Instruction& in, const SharedOffsets& offsets, std::uint32_t bytes,
                             Access access) {
  const Machine& machine = *warp.machine;
  Block& block = *warp.block;
  if (!machine.quick || !block.cluster.empty()) return false;
  if (!machine.logs && block.shared_state.empty()) return true;
  const std::uint32_t form = form_of(offsets, bytes);
  if (!block.shared_state.empty() && !settle_states(block.shared_state.data(), offsets, form, bytes, access))
    return false;
  return !machine.logs || races_with_nothing(warp, machine.index_of(in), offsets, form, bytes, access);
}

}  // namespace gpusim::DSV2_ISA
