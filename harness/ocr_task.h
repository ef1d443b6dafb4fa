// The task gate: is what a decoder reads still right? Held-out pictures of text with torch's own answers, as
// golden/tiny_ocr/README.md lays them out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "harness/ocr.h"
#include "harness/report.h"

namespace dsv2::harness {

/// Pictures of one folder, and the text on them.
struct OcrSet {
  std::string name;  ///< the folder's
  std::vector<std::filesystem::path> files;
  std::vector<std::string> fonts, texts;
  std::vector<Picture> pictures;
  /// `folder`/lines.tsv: file, font and text of a line each. Throws Error naming file and line, and as read_png().
  static OcrSet load(const std::filesystem::path& folder, const OcrProcessor& processor);
};

/// What torch read, in f32, on the same checkpoint.
struct OcrAnswers {
  std::vector<std::vector<std::int64_t>> ids;  ///< of each picture, with the end
  std::vector<std::vector<float>> logits;      ///< [ids, V] of each picture, that they were chosen from
  /// Throws Error naming the file: not of `pictures` pictures, or not of a vocabulary of V.
  static OcrAnswers load(const std::filesystem::path& file, std::size_t pictures, std::int64_t vocabulary);
};

/// Character error rate and share of lines without one.
struct OcrScore {
  double cer = 0, exact = 0;
  static OcrScore of(const std::vector<std::string>& texts, const std::vector<std::string>& found);
};

/// How much further from the truth than torch's f32 a dtype may read: a share of characters. f32: its tokens are
/// torch's, but where torch itself was within rounding of another.
double cer_bound(DType dtype);

/// Names the work, and nothing else yet.
Record ocr_record(std::string_view model, const OcrSet& set, const Backend& backend, const Options& options);

/// `decoder`, which is `model`'s in `dtype`, on one set: one record, which the gate judges, and its Record::ocr:
///
///     {characters, lines, cer, exact, torch_cer, torch_exact, kl_mean, kl_p99, kl_max, top1, tied_lines,
///      read: [{file, text, found, torch, picture}]}   lines that differ from the text or from torch first, then others
///
/// KL(torch || decoder) of the next token in nats and top-1 agreement are over torch's own ids, fed to the decoder.
std::vector<Record> check_ocr(std::string_view model, const OcrSet& set, const OcrAnswers& answers,
                              const OcrProcessor& processor, Decoder& decoder, const Backend& backend);

/// A checkpoint's weights, rounded to `dtype` where that is lower than what is stored: load_weights() of flags.h.
using LoadWeights = std::function<std::shared_ptr<const Weights>(const std::string& model, const Config&, DType dtype)>;

/// What is done with a model's decoder on one set: check_ocr() or bench_ocr().
using OcrWork =
    std::function<std::vector<Record>(std::string_view model, const OcrSet& set, const OcrAnswers& answers,
                                      const OcrProcessor& processor, Decoder& decoder, const Backend& backend)>;

/// `work` for every model of `models` on every set in `sets` (a folder of folders), on each of `backends` and with each
/// of `options`. A combination that cannot run, or has no answers of torch's, is a skipped record.
std::vector<Record> run_ocr_task(const std::vector<std::filesystem::path>& models, const std::filesystem::path& sets,
                                 const std::vector<const Backend*>& backends, const std::vector<Options>& options,
                                 const LoadWeights& load, const OcrWork& work);

/// What --task ocr works on: `model`, or without one those of `golden`/tiny_ocr; the folders `sets`, or without one its
/// held-out sets.
struct OcrPlaces {
  std::vector<std::filesystem::path> models, sets;
};
OcrPlaces ocr_places(const std::filesystem::path& golden, const std::string& model,
                     const std::vector<std::string>& sets);

/// The table of checked records, for people, and the lines that were read wrong or otherwise than by torch.
void print_ocr(std::span<const Record> records, bool verbose, std::ostream& out);

}  // namespace dsv2::harness
