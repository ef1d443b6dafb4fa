#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace dsv2 {

std::string_view name(MlaForm form) {
  constexpr std::string_view kNames[] = {"automatic", "absorbed", "expanded"};
  return kNames[static_cast<std::size_t>(form)];
}

std::vector<TupleItem> to_tuple(ForwardOutput output) {
  std::vector<TupleItem> tuple;
  if (output.loss) tuple.emplace_back(*output.loss);
  if (output.logits)
    tuple.emplace_back(std::move(output.logits));
  else
    tuple.emplace_back(std::move(output.last_hidden_state));
  if (output.past_key_values) tuple.emplace_back(std::move(*output.past_key_values));
  if (!output.hidden_states.empty()) tuple.emplace_back(std::move(output.hidden_states));
  if (!output.attentions.empty()) tuple.emplace_back(std::move(output.attentions));
  return tuple;
}

namespace {

void expect_i64(const TensorView& v, std::string_view what) {
  DSV2_CHECK(v.dtype == DType::i64, what, ": expected dtype i64, found ", name(v.dtype));
}

void check_labels(const TensorView& labels, const Config& c, const Call& call) {
  expect_i64(labels, "labels");
  DSV2_CHECK(c.head != Head::none, "labels: the model has no head, found labels");
  const bool causal = c.head == Head::causal_lm;
  const Shape expected = causal ? Shape{call.batch, call.tokens} : Shape{call.batch};
  DSV2_CHECK(labels.shape == expected, "labels: expected shape ", to_string(expected), ", found ",
             to_string(labels.shape));
  const std::int64_t classes = causal ? c.vocab_size : c.num_labels;
  for (const std::int64_t label : labels.as<std::int64_t>())
    DSV2_CHECK(label == -100 || (label >= 0 && label < classes), "labels: expected 0..", classes - 1,
               " or -100, found ", label);
}

void check_mask(const TensorView& mask, Call& call) {
  DSV2_CHECK(mask.dtype == DType::i64 || mask.dtype == DType::f32, "attention_mask: expected dtype i64 or f32, found ",
             name(mask.dtype));
  const Shape flat = {call.batch, call.total}, square = {call.batch, 1, call.tokens, call.total};
  DSV2_CHECK(mask.shape == flat || mask.shape == square, "attention_mask: expected shape ", to_string(flat), " or ",
             to_string(square), ", found ", to_string(mask.shape));
  call.mask.resize(static_cast<std::size_t>(mask.size()));
  for (std::size_t i = 0; i < call.mask.size(); ++i) {
    const double value = mask.at(static_cast<std::int64_t>(i));
    DSV2_CHECK(value == 0 || value == 1, "attention_mask: expected 0 or 1, found ", value);
    call.mask[i] = value == 1;
  }
  call.mask_rank = static_cast<int>(mask.shape.size());
}

void fill_positions(const ForwardInput& input, Call& call) {
  const std::int64_t S = call.tokens;
  call.positions.resize(static_cast<std::size_t>(call.batch * S));
  if (input.position_ids) {
    const TensorView& ids = *input.position_ids;
    expect_i64(ids, "position_ids");
    DSV2_CHECK((ids.shape == Shape{call.batch, S} || ids.shape == Shape{1, S}), "position_ids: expected shape ",
               to_string(Shape{call.batch, S}), " or ", to_string(Shape{1, S}), ", found ", to_string(ids.shape));
    const auto values = ids.as<std::int64_t>();
    for (const std::int64_t p : values)
      DSV2_CHECK(p >= 0 && p <= kMaxPosition, "position_ids: expected 0..", kMaxPosition, ", found ", p);
    for (std::size_t i = 0; i < call.positions.size(); ++i) call.positions[i] = values[i % values.size()];
  } else {
    for (std::int64_t b = 0; b < call.batch; ++b)
      std::iota(call.positions.begin() + b * S, call.positions.begin() + (b + 1) * S, call.past);
  }
  call.max_position = *std::max_element(call.positions.begin(), call.positions.end());
}

}  // namespace

Call validate_input(const ForwardInput& in, const Config& c) {
  DSV2_CHECK(in.input_ids.has_value() != in.inputs_embeds.has_value(),
             "input_ids, inputs_embeds: expected exactly one of them, found ", in.input_ids ? "both" : "neither");
  DSV2_CHECK(!(in.cache && in.past_key_values), "cache, past_key_values: expected at most one of them, found both");
  Call call{};
  if (in.input_ids) {
    const TensorView& ids = *in.input_ids;
    expect_i64(ids, "input_ids");
    DSV2_CHECK(ids.shape.size() == 2, "input_ids: expected shape [B, S], found ", to_string(ids.shape));
    call.batch = ids.shape[0], call.tokens = ids.shape[1];
  } else {
    const TensorView& embeds = *in.inputs_embeds;
    DSV2_CHECK(embeds.shape.size() == 3 && embeds.shape[2] == c.hidden_size, "inputs_embeds: expected shape [B, S, ",
               c.hidden_size, "], found ", to_string(embeds.shape));
    DSV2_CHECK(embeds.dtype == DType::f32 || embeds.dtype == DType::f64 || embeds.dtype == DType::bf16,
               "inputs_embeds: expected dtype f32, f64 or bf16, found ", name(embeds.dtype));
    call.batch = embeds.shape[0], call.tokens = embeds.shape[1];
  }
  const std::string_view which = in.input_ids ? "input_ids" : "inputs_embeds";
  DSV2_CHECK(call.batch >= 1 && call.tokens >= 1, which, ": expected at least one sequence of one token, found ",
             to_string(in.input_ids ? in.input_ids->shape : in.inputs_embeds->shape));
  if (in.input_ids)
    for (const std::int64_t id : in.input_ids->as<std::int64_t>())
      DSV2_CHECK(id >= 0 && id < c.vocab_size, "input_ids: expected 0..", c.vocab_size - 1, ", found ", id);
  else
    for (std::int64_t i = 0; i < in.inputs_embeds->size(); ++i)
      DSV2_CHECK(std::isfinite(in.inputs_embeds->at(i)), "inputs_embeds: expected finite values, found ",
                 in.inputs_embeds->at(i), " at element ", i);

  std::int64_t past_batch = call.batch;
  if (in.cache) {
    past_batch = in.cache->batch(), call.past = in.cache->length();
  } else if (in.past_key_values) {
    validate_legacy(*in.past_key_values, c);
    past_batch = in.past_key_values->front().first.dim(0), call.past = in.past_key_values->front().first.dim(2);
  }
  DSV2_CHECK(past_batch == call.batch, which, ": expected a batch of ", past_batch, " as in the cache, found ",
             call.batch);
  call.total = call.past + call.tokens;
  if (in.attention_mask) check_mask(*in.attention_mask, call);
  fill_positions(in, call);
  call.logits = in.logits;
  if (in.labels) {
    check_labels(*in.labels, c, call);
    call.logits = Logits::all;
  }
  DSV2_CHECK(call.logits == Logits::none || c.head != Head::none,
             "logits: the model has no head, found a request for logits");
  DSV2_CHECK(
      c.head != Head::sequence_classification || call.logits == Logits::none || call.batch == 1 || c.pad_token_id,
      "pad_token_id: expected a value to classify a batch of ", call.batch, ", found none");
  return call;
}

std::vector<std::int64_t> pooled_positions(const ForwardInput& in, const Config& c, const Call& call) {
  std::vector<std::int64_t> last(static_cast<std::size_t>(call.batch), call.tokens - 1);
  if (!in.input_ids || !c.pad_token_id) return last;
  const auto ids = in.input_ids->as<std::int64_t>();
  for (std::int64_t b = 0; b < call.batch; ++b) {
    const auto row = ids.subspan(static_cast<std::size_t>(b * call.tokens), static_cast<std::size_t>(call.tokens));
    const auto pad = std::find(row.begin(), row.end(), *c.pad_token_id) - row.begin();
    if (pad > 0) last[static_cast<std::size_t>(b)] = pad - 1;  // without a pad this is S - 1
  }
  return last;
}

double cross_entropy_loss(const ForwardInput& in, const Config& c, const Call& call, const TensorView& logits) {
  const auto labels = in.labels->as<std::int64_t>();
  const bool causal = c.head == Head::causal_lm;
  const std::int64_t classes = logits.dim(-1), S = call.tokens;
  double sum = 0;
  std::int64_t count = 0;
  const auto add = [&](std::int64_t row, std::int64_t label) {
    if (label == -100) return;
    double max = -INFINITY, total = 0;
    for (std::int64_t v = 0; v < classes; ++v) max = std::max(max, logits.at(row * classes + v));
    for (std::int64_t v = 0; v < classes; ++v) total += std::exp(logits.at(row * classes + v) - max);
    sum += max + std::log(total) - logits.at(row * classes + label);
    ++count;
  };
  for (std::int64_t b = 0; b < call.batch; ++b) {
    if (!causal) add(b, labels[static_cast<std::size_t>(b)]);
    for (std::int64_t s = 0; causal && s + 1 < S; ++s) add(b * S + s, labels[static_cast<std::size_t>(b * S + s + 1)]);
  }
  return count ? sum / static_cast<double>(count) : 0.0;
}

}  // namespace dsv2
