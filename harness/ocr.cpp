#include "harness/ocr.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "harness/json.h"
#include "model/safetensors.h"

namespace dsv2::harness {

namespace fs = std::filesystem;

namespace {

/// Median of all pixels, the lower one of two: the background, as lines of ink cover less than half of a picture.
int background_of(const Picture& picture) {
  std::vector<std::uint8_t> pixels = picture.grey;
  const auto middle = pixels.begin() + static_cast<std::ptrdiff_t>((pixels.size() - 1) / 2);
  std::nth_element(pixels.begin(), middle, pixels.end());
  return *middle;
}

float gelu(float x) { return 0.5f * x * (1 + std::erf(x * (std::numbers::sqrt2_v<float> / 2))); }

}  // namespace

void OcrProcessor::Layer::apply(const float* x, float* y) const {
  for (std::int64_t o = 0; o < out; ++o)
    y[o] = std::inner_product(x, x + in, weight.data() + o * in, 0.0f) + bias[static_cast<std::size_t>(o)];
}

OcrProcessor::OcrProcessor(const fs::path& model, const Config& config) : hidden_size_(config.hidden_size) {
  const fs::path settings = model / "processor_config.json", words = model / "vocab.json";
  const std::string source = settings.string();
  const Json json = read_json(settings);
  const auto count = [&](const char* key) {
    const auto value = require<std::int64_t>(json, key, source);
    DSV2_CHECK(value >= 1 && value <= 100'000, source, ": ", key, ": expected 1 to 100000, found ", value);
    return value;
  };
  height_ = count("image_height"), width_ = count("image_width"), patch_ = count("patch_width");
  max_new_tokens_ = count("max_new_tokens");
  DSV2_CHECK(width_ % patch_ == 0, source, ": image_width: expected a multiple of patch_width, ", patch_, ", found ",
             width_);
  columns_ = width_ / patch_;
  const auto background = require<std::string>(json, "background", source);
  DSV2_CHECK(background == "lower median", source, ": background: expected lower median, found ", background);
  ink_minimum_ = require<float>(json, "ink_minimum", source);

  const Json vocabulary = read_json(words);
  DSV2_CHECK(vocabulary.is_array() && static_cast<std::int64_t>(vocabulary.size()) == config.vocab_size, words.string(),
             ": expected a list of ", config.vocab_size, " tokens (vocab_size), found ",
             vocabulary.is_array() ? concat(vocabulary.size()) : vocabulary.type_name());
  for (const Json& token : vocabulary) {
    DSV2_CHECK(token.is_string(), words.string(), ": expected strings, found ", token.dump());
    vocabulary_.push_back(token.get<std::string>());
  }
  const SafetensorsFile weights(model / "model.safetensors");
  const auto tensor = [&](const std::string& name, const Shape& shape) {
    const TensorView view = weights.view(name);
    DSV2_CHECK(view.shape == shape, weights.source(), ": ", name, ": expected shape ", to_string(shape), ", found ",
               to_string(view.shape));
    return widen<float>(view);
  };
  const std::vector<float> table = tensor("model.embed_tokens.weight", {config.vocab_size, hidden_size_});
  const auto embedding = [&](const char* key) {
    const auto token = require<std::string>(json, key, source);
    const auto found = std::find(vocabulary_.begin(), vocabulary_.end(), token);
    DSV2_CHECK(found != vocabulary_.end(), source, ": ", key, ": expected a token of vocab.json, found ", token);
    const auto row = table.begin() + (found - vocabulary_.begin()) * hidden_size_;
    return std::vector<float>(row, row + hidden_size_);
  };
  bos_ = embedding("bos"), prompt_ = embedding("prompt");
  const auto layer = [&](int index, std::int64_t in, std::int64_t out) {
    const std::string name = concat("model.projector.layers.", index);
    return Layer{in, out, tensor(name + ".weight", {out, in}), tensor(name + ".bias", {out})};
  };
  const std::int64_t inner = weights.view("model.projector.layers.0.bias").size();
  first_ = layer(0, height_ * patch_, inner);
  second_ = layer(2, inner, hidden_size_);
}

Picture OcrProcessor::fitted(Picture picture, const std::string& file) const {
  const int width = picture.width, height = picture.height;
  const double scaled = std::round(static_cast<double>(width) * static_cast<double>(height_) / height);
  DSV2_CHECK(scaled <= static_cast<double>(width_), file, ": picture: expected a line at most ", width_,
             " pixels wide at a height of ", height_, ", found ", width, " x ", height);
  return scaled_to_height(std::move(picture), static_cast<int>(height_));
}

Tensor OcrProcessor::prompt(std::span<const Picture* const> pictures) const {
  const auto B = static_cast<std::int64_t>(pictures.size());
  const std::int64_t S = prompt_tokens(), D = hidden_size_;
  Tensor embeds(DType::f32, {B, S, D});
  std::vector<float> patch(static_cast<std::size_t>(first_.in)), inner(static_cast<std::size_t>(first_.out));
  for (std::int64_t b = 0; b < B; ++b) {
    const Picture& picture = *pictures[static_cast<std::size_t>(b)];
    const int background = background_of(picture);
    float* row = embeds.as<float>().data() + b * S * D;
    std::copy(bos_.begin(), bos_.end(), row);
    std::copy(prompt_.begin(), prompt_.end(), row + (S - 1) * D);
    for (std::int64_t column = 0; column < columns_; ++column) {
      for (std::int64_t y = 0; y < height_; ++y)
        for (std::int64_t x = 0; x < patch_; ++x) {
          const std::int64_t at = column * patch_ + x;  // right of the picture there is background
          const float ink =
              at < picture.width
                  ? static_cast<float>(background - picture.grey[static_cast<std::size_t>(y * picture.width + at)]) /
                        255.0f
                  : 0;
          patch[static_cast<std::size_t>(y * patch_ + x)] = std::max(ink, ink_minimum_);
        }
      first_.apply(patch.data(), inner.data());
      for (float& x : inner) x = gelu(x);
      second_.apply(inner.data(), row + (1 + column) * D);
    }
  }
  return embeds;
}

std::string OcrProcessor::text(std::span<const std::int64_t> ids) const {
  std::string out;
  for (const std::int64_t id : ids)
    if (const std::string& word = token(id); word.size() == 1) out += word;
  return out;
}

std::vector<double> log_softmax(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - top);
  std::vector<double> out;
  for (const float x : logits) out.push_back(x - top - std::log(sum));
  return out;
}

std::vector<ReadLine> read_pictures(Decoder& decoder, const OcrProcessor& processor,
                                    std::span<const Picture* const> pictures, std::int64_t max_new_tokens,
                                    const std::function<void(std::int64_t id)>& on_token) {
  OwnedInput prompt;
  prompt.set("inputs_embeds", processor.prompt(pictures));
  std::vector<std::vector<ReadToken>> steps(pictures.size());
  GenerateOptions wish;
  wish.max_new_tokens = max_new_tokens;
  wish.eos_token_id = decoder.config().eos_token_id;
  wish.no_repeat_ngram = kNoRepeatNgram, wish.window = kNgramWindow;
  wish.on_logits = [&](const TensorView& logits) {
    const auto V = static_cast<std::size_t>(logits.dim(-1));
    const std::vector<float> all = widen<float>(logits);
    for (std::size_t b = 0; b < pictures.size(); ++b) {
      const std::vector<double> logs = log_softmax({all.data() + b * V, V});
      std::vector<std::int64_t> ids(V);
      std::iota(ids.begin(), ids.end(), 0);
      std::partial_sort(ids.begin(), ids.begin() + 2, ids.end(), [&](std::int64_t x, std::int64_t y) {
        const double a = logs[static_cast<std::size_t>(x)], c = logs[static_cast<std::size_t>(y)];
        return a > c || (a == c && x < y);
      });
      const double first = logs[static_cast<std::size_t>(ids[0])], second = logs[static_cast<std::size_t>(ids[1])];
      steps[b].push_back({.id = ids[0], .second = ids[1], .log_probability = first, .margin = first - second});
    }
  };
  wish.on_step = [&](std::int64_t, const std::vector<std::int64_t>& ids) {
    if (on_token) on_token(ids.front());
  };
  const Generation generation = generate(decoder, std::move(prompt), wish);
  std::vector<ReadLine> lines(pictures.size());
  for (std::size_t b = 0; b < lines.size(); ++b) {
    const std::vector<std::int64_t>& ids = generation.ids[b];
    lines[b] = {.tokens = {steps[b].begin(), steps[b].begin() + static_cast<std::ptrdiff_t>(ids.size())},
                .text = processor.text(ids),
                .prefill_ns = generation.prefill_ns,
                .step_ns = generation.step_ns};
  }
  return lines;
}

std::int64_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::int64_t> before(b.size() + 1), now(b.size() + 1);
  std::iota(before.begin(), before.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    now[0] = static_cast<std::int64_t>(i) + 1;
    for (std::size_t j = 0; j < b.size(); ++j)
      now[j + 1] = std::min({before[j] + (a[i] != b[j]), before[j + 1] + 1, now[j] + 1});
    std::swap(before, now);
  }
  return before.back();
}

std::vector<fs::path> picture_files(const std::vector<std::string>& paths) {
  std::vector<fs::path> files;
  for (const fs::path path : paths) {
    DSV2_CHECK(fs::exists(path), path.string(), ": no such file or folder");
    if (!fs::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    std::vector<fs::path> inside;
    for (const auto& entry : fs::directory_iterator(path))
      if (entry.path().extension() == ".png") inside.push_back(entry.path());
    DSV2_CHECK(!inside.empty(), path.string(), ": expected a folder with .png files, found none");
    std::sort(inside.begin(), inside.end());
    files.insert(files.end(), inside.begin(), inside.end());
  }
  return files;
}

}  // namespace dsv2::harness
