#include "harness/quality.h"

#include <algorithm>
#include <cmath>

#include "model/memory.h"
#include "model/quantised.h"

namespace dsv2::harness {
namespace {

double relative_l2(const TensorView& got, const TensorView& want) {
  const auto x = widen<float>(got), y = widen<float>(want);
  double error = 0, norm = 0;
#pragma omp parallel for reduction(+ : error, norm)
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double off = double{x[i]} - double{y[i]};
    error += off * off;
    norm += double{y[i]} * double{y[i]};
  }
  return std::sqrt(error / norm);
}

/// log softmax of one position, in double.
std::vector<double> log_probabilities(const TensorView& logits, std::int64_t row) {
  const std::int64_t V = logits.dim(-1);
  const auto x = logits.as<float>().subspan(static_cast<std::size_t>(row * V), static_cast<std::size_t>(V));
  const double most = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float v : x) sum += std::exp(v - most);
  std::vector<double> log_p;
  for (const float v : x) log_p.push_back(v - most - std::log(sum));
  return log_p;
}

template <DType dtype>
std::shared_ptr<const Weights> rounded(const std::shared_ptr<const Weights>& weights, const Config& config) {
  return Weights::rounded(weights, config, dtype);
}

/// Matrices in f32 that went through a format of ggml's, beside the vectors as they were.
template <void (*through)(float*, std::int64_t)>
std::shared_ptr<const Weights> dequantised(const std::shared_ptr<const Weights>& from, const Config& config) {
  struct Held {
    std::shared_ptr<const Weights> from;
    Weights weights;
    std::vector<Tensor> tensors;
  };
  auto held = std::make_shared<Held>();
  std::vector<TensorView> views;
  std::int64_t bytes = 0;
  for_each_tensor(config, *from, [&](const std::string& name, const Shape& shape, const TensorView& view) {
    views.push_back(view);
    if (!is_kept(name, shape)) bytes += array_bytes(DType::f32, shape);
  });
  require_memory(bytes, "weights widened to f32");
  std::size_t i = 0;
  for_each_tensor(config, held->weights, [&](const std::string& name, const Shape& shape, TensorView& view) {
    view = views[i++];
    if (is_kept(name, shape)) return;
    Tensor& t = held->tensors.emplace_back(DType::f32, shape);
    const std::int64_t rows = shape[0], cols = shape[1];
#pragma omp parallel for
    for (std::int64_t r = 0; r < rows; ++r) {
      float* const row = t.as<float>().data() + r * cols;
      widen_rows_into(view, r, 1, row);
      through(row, cols);
    }
    view = t.view();
  });
  if (config.head == Head::causal_lm && config.tie_word_embeddings) held->weights.lm_head = held->weights.embed_tokens;
  held->from = from;
  const Weights* const weights = &held->weights;
  return {std::move(held), weights};
}

constexpr std::int64_t kGgmlGroup = 32;

}  // namespace

void through_q4_0(float* row, std::int64_t cols) {
  for (std::int64_t begin = 0; begin < cols; begin += kGgmlGroup) {
    const std::int64_t end = std::min(cols, begin + kGgmlGroup);
    float largest = 0;
    for (std::int64_t i = begin; i < end; ++i)
      if (std::fabs(row[i]) > std::fabs(largest)) largest = row[i];
    const float scale = largest / -8, inverse = scale != 0 ? 1 / scale : 0, stored = to_float(to_f16(scale));
    for (std::int64_t i = begin; i < end; ++i) {
      const int q = std::min(15, static_cast<int>(row[i] * inverse + 8.5f));
      row[i] = static_cast<float>(q - 8) * stored;
    }
  }
}

void through_q8_0(float* row, std::int64_t cols) {
  for (std::int64_t begin = 0; begin < cols; begin += kGgmlGroup) {
    const std::int64_t end = std::min(cols, begin + kGgmlGroup);
    float most = 0;
    for (std::int64_t i = begin; i < end; ++i) most = std::max(most, std::fabs(row[i]));
    const float scale = most / 127, inverse = scale != 0 ? 1 / scale : 0, stored = to_float(to_f16(scale));
    for (std::int64_t i = begin; i < end; ++i) row[i] = std::round(row[i] * inverse) * stored;
  }
}

const std::vector<QualityFormat>& quality_formats() {
  static const std::vector<QualityFormat> formats = {
      {"bf16", "as it runs", rounded<DType::bf16>, DType::bf16, DType::bf16},
      {"int8", "as it runs", rounded<DType::i8>, DType::i8, DType::i8},
      {"int8-weights", "weights alone, products in f32", rounded<DType::i8>, DType::i8, DType::f32},
      {"q8_0-weights", "ggml's Q8_0, weights alone", dequantised<through_q8_0>, DType::f32, DType::f32},
      {"int4", "as it runs", rounded<DType::i4>, DType::i4, DType::i4},
      {"int4-weights", "weights alone, products in f32", rounded<DType::i4>, DType::i4, DType::f32},
      {"q4_0-weights", "ggml's Q4_0, weights alone", dequantised<through_q4_0>, DType::f32, DType::f32},
  };
  return formats;
}

Json Quality::to_json() const {
  Json layers = Json::array();
  for (const double h : hidden_states) layers.push_back(finite_or_null(h));
  return {{"format", format},
          {"weights_relative_l2", finite_or_null(weights)},
          {"logits_relative_l2", finite_or_null(logits)},
          {"kl_nats", finite_or_null(kl)},
          {"top1_agreement", finite_or_null(top1)},
          {"hidden_states_relative_l2", layers}};
}

ForwardOutput quality_pass(const Backend& backend, const Config& config, std::shared_ptr<const Weights> weights,
                           const Options& options, const Tensor& ids) {
  if (const auto why = backend.unsupported(config, options)) fail(backend.name, ": ", *why);
  const auto decoder = backend.create(config, std::move(weights), options);
  ForwardInput input;
  input.input_ids = ids.view();
  input.logits = Logits::all;
  input.hidden_states = true;
  return decoder->forward(input);
}

Quality judge_quality(const ForwardOutput& got, const ForwardOutput& want) {
  Quality q;
  q.logits = relative_l2(got.logits.view(), want.logits.view());
  for (std::size_t i = 0; i < want.hidden_states.size(); ++i)
    q.hidden_states.push_back(relative_l2(got.hidden_states[i].view(), want.hidden_states[i].view()));
  const std::int64_t rows = want.logits.size() / want.logits.dim(-1);
  double kl = 0;
  std::int64_t same = 0;
#pragma omp parallel for reduction(+ : kl, same)
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto p = log_probabilities(want.logits.view(), r), other = log_probabilities(got.logits.view(), r);
    for (std::size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - other[i]);
    same += std::max_element(p.begin(), p.end()) - p.begin() ==
            std::max_element(other.begin(), other.end()) - other.begin();
  }
  q.kl = kl / static_cast<double>(rows);
  q.top1 = static_cast<double>(same) / static_cast<double>(rows);
  return q;
}

double weights_error(const Config& config, const Weights& got, const Weights& want) {
  std::vector<TensorView> views;
  for_each_tensor(config, want, [&](const std::string&, const Shape&, const TensorView& v) { views.push_back(v); });
  std::size_t i = 0;
  double error = 0, norm = 0;
  for_each_tensor(config, got, [&](const std::string& name, const Shape& shape, const TensorView& v) {
    const TensorView& from = views[i++];
    if (is_kept(name, shape)) return;
    const std::int64_t rows = shape[0], cols = shape[1];
#pragma omp parallel reduction(+ : error, norm)
    {
      std::vector<float> x(static_cast<std::size_t>(cols)), y(x.size());
#pragma omp for
      for (std::int64_t r = 0; r < rows; ++r) {
        widen_rows_into(v, r, 1, x.data());
        widen_rows_into(from, r, 1, y.data());
        for (std::size_t c = 0; c < x.size(); ++c) {
          const double off = double{x[c]} - double{y[c]};
          error += off * off;
          norm += double{y[c]} * double{y[c]};
        }
      }
    }
  });
  return std::sqrt(error / norm);
}

}  // namespace dsv2::harness
