// From a picture of a line of text to a decoder's input, and from its ids back to text: what DeepSeek-OCR has around
// its decoder, for the small models of golden/tiny_ocr. The projector computes in f32 on every backend.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "harness/generate.h"
#include "harness/picture.h"
#include "model/config.h"
#include "model/tensor.h"

namespace dsv2::harness {

/// What `model`/processor_config.json, vocab.json and the projector's tensors say: golden/tiny_ocr/README.md.
class OcrProcessor {
 public:
  /// Throws Error naming the file, and what is missing or of the wrong size.
  OcrProcessor(const std::filesystem::path& model, const Config& config);

  std::int64_t max_new_tokens() const { return max_new_tokens_; }
  /// The height that the models read, scaled to it where it was another. Throws Error naming `file` for a picture that
  /// is too wide then.
  Picture fitted(Picture picture, const std::string& file) const;
  /// <bos>, <image> for each column, <ocr>.
  std::int64_t prompt_tokens() const { return columns_ + 2; }
  /// Embeddings [B, prompt_tokens(), D] of fitted pictures: those of <image> are projected columns.
  Tensor prompt(std::span<const Picture* const> pictures) const;
  /// Without special tokens.
  std::string text(std::span<const std::int64_t> ids) const;
  const std::string& token(std::int64_t id) const { return vocabulary_.at(static_cast<std::size_t>(id)); }

 private:
  struct Layer {
    std::int64_t in = 0, out = 0;
    std::vector<float> weight, bias;  ///< [out,in], [out]
    void apply(const float* x, float* y) const;
  };

  std::int64_t height_ = 0, width_ = 0, patch_ = 0, columns_ = 0, max_new_tokens_ = 0, hidden_size_ = 0;
  float ink_minimum_ = 0;
  std::vector<std::string> vocabulary_;
  std::vector<float> bos_, prompt_;  ///< their embeddings
  Layer first_, second_;
};

/// A token that was read, and how sure the model was.
struct ReadToken {
  std::int64_t id = 0, second = 0;  ///< the likeliest id, and the next one
  double log_probability = 0;       ///< of id, in nats
  double margin = 0;                ///< how far above that of `second`
};
/// Two readings are close where one is less than twice as likely as the other.
inline constexpr double kCloseMargin = 0.6931471805599453;

struct ReadLine {
  std::vector<ReadToken> tokens;  ///< the end's included, where it came
  std::string text;
  std::int64_t prefill_ns = 0;        ///< of all pictures read together
  std::vector<std::int64_t> step_ns;  ///< likewise
};

/// Reads fitted pictures together, as DeepSeek-OCR does: greedily, no n-gram of 30 twice within 90 tokens, up to the
/// configuration's end. `on_token`, if any, is called with each token of the first picture as it comes.
std::vector<ReadLine> read_pictures(Decoder& decoder, const OcrProcessor& processor,
                                    std::span<const Picture* const> pictures, std::int64_t max_new_tokens,
                                    const std::function<void(std::int64_t id)>& on_token = {});
inline constexpr std::int64_t kNoRepeatNgram = 30, kNgramWindow = 90;

/// Natural logarithms of the probabilities of one row of logits.
std::vector<double> log_softmax(std::span<const float> logits);

/// Edits (insertions, deletions, replacements) that make `a` of `b`.
std::int64_t edit_distance(std::string_view a, std::string_view b);

/// The PNG files among `paths`, and in those of them that are folders (in order of name). Throws Error naming a path
/// that does not exist, or a folder without one.
std::vector<std::filesystem::path> picture_files(const std::vector<std::string>& paths);

}  // namespace dsv2::harness
