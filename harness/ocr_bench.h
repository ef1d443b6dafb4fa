// How fast real content is read, and what it does to the decoder: which experts it uses, and what drafting from what
// was already read is worth.
#pragma once

#include <cstdint>
#include <map>
#include <ostream>
#include <span>
#include <string_view>
#include <vector>

#include "harness/ocr_task.h"

namespace dsv2::harness {

/// A reading whose tokens were drafted from the text itself, and checked several at a time.
struct LookupReading {
  std::vector<std::int64_t> ids;
  std::int64_t drafted = 0, accepted = 0, forwards = 0;  ///< forwards: decode steps, the prefill not counted
};

/// Prompt lookup decoding of one picture: where the last two ids (else the last one) occurred before, the up to `draft`
/// ids that followed them then are put to the decoder in one pass, and kept as far as they are what it chooses. Its ids
/// are those of greedy decoding, but for rounding. Source: github.com/apoorvumang/prompt-lookup-decoding
LookupReading read_with_lookup(Decoder& decoder, const OcrProcessor& processor, const Picture& picture,
                               std::int64_t max_new_tokens, std::int64_t draft);
inline constexpr std::int64_t kLookupDraft = 4;

/// How often each expert is chosen, by layer, when `pictures` are read together and their text is what `answers` says.
std::map<std::int64_t, std::vector<std::int64_t>> expert_counts(Decoder& decoder, const OcrProcessor& processor,
                                                                const OcrSet& set);

/// Two records, prefill and decode of one picture at a time, timed over all pictures of the set several times, with the
/// verdict of check_ocr(). Record::ocr of the second has, beside what that says,
///
///     lookup {draft, accept_rate, tokens_per_forward, same_lines}, experts [{layer, shares, most, least}]
std::vector<Record> bench_ocr(std::string_view model, const OcrSet& set, const OcrAnswers& answers,
                              const OcrProcessor& processor, Decoder& decoder, const Backend& backend);

/// The table of such records, for people.
void print_ocr_speeds(std::span<const Record> records, std::ostream& out);

}  // namespace dsv2::harness
