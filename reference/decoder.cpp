// The decoder: embeddings, layers, final norm, head (arXiv 2405.04434, figure 2; upstream's DeepseekV2Model).
#include <utility>

#include "reference/attention.h"
#include "reference/backend.h"
#include "reference/heads.h"
#include "reference/linear.h"
#include "reference/matrix.h"
#include "reference/moe.h"
#include "reference/norm.h"
#include "reference/probe.h"
#include "reference/rope.h"

namespace dsv2::reference {
namespace {

template <class Scalar>
class ReferenceDecoder final : public Decoder {
 public:
  ReferenceDecoder(const Config& config, std::shared_ptr<const Weights> weights, const Options& options)
      : config_(config), weights_(std::move(weights)), options_(options) {}

  const Config& config() const override { return config_; }
  const Options& options() const override { return options_; }
  std::int64_t workspace_bytes() const override { return 0; }

  std::unique_ptr<KvCache> make_cache(std::int64_t batch, std::int64_t capacity) const override {
    return std::make_unique<HostKvCache>(config_, batch, capacity, dtype_of<Scalar>());
  }
  std::unique_ptr<KvCache> make_cache(const LegacyCache& legacy) const override {
    return HostKvCache::from_legacy(legacy, config_, dtype_of<Scalar>());
  }

  ForwardOutput forward(const ForwardInput& input) override;

 private:
  HostKvCache& own_kind(KvCache& cache) const;
  Matrix<Scalar> embeddings(const ForwardInput& input, const Call& call) const;
  Matrix<Scalar> layer(std::int64_t i, const Matrix<Scalar>& hidden, const Call& call, const RopeTable<Scalar>& rope,
                       HostKvCache& cache, Tensor* probabilities, const Probe& probe) const;

  Config config_;
  std::shared_ptr<const Weights> weights_;
  Options options_;
};

template <class Scalar>
HostKvCache& ReferenceDecoder<Scalar>::own_kind(KvCache& cache) const {
  auto* host = dynamic_cast<HostKvCache*>(&cache);
  DSV2_CHECK(host, "cache: expected one made by the reference decoder, found another backend's");
  DSV2_CHECK(host->dtype() == dtype_of<Scalar>(), "cache: expected dtype ", name(dtype_of<Scalar>()), ", found ",
             name(host->dtype()));
  DSV2_CHECK(host->layer_count() == config_.num_hidden_layers, "cache: expected ", config_.num_hidden_layers,
             " layers, found ", host->layer_count());
  const auto expected = cache_parts(config_);
  for (std::size_t p = 0; p < 2; ++p) {
    const CachePart& found = host->parts()[p];
    DSV2_CHECK(found.name == expected[p].name && found.heads == expected[p].heads && found.dim == expected[p].dim,
               "cache: expected ", expected[p].name, " of ", expected[p].heads, " x ", expected[p].dim, ", found ",
               found.name, " of ", found.heads, " x ", found.dim);
  }
  return *host;
}

template <class Scalar>
Matrix<Scalar> ReferenceDecoder<Scalar>::embeddings(const ForwardInput& input, const Call& call) const {
  const std::int64_t N = call.batch * call.tokens, D = config_.hidden_size;
  if (input.inputs_embeds)
    return widen_rows<Scalar>({input.inputs_embeds->dtype, {N, D}, input.inputs_embeds->data}, 0, N);
  const auto ids = input.input_ids->as<std::int64_t>();
  Matrix<Scalar> rows(N, D);
  for (std::int64_t n = 0; n < N; ++n)
    rows.row(n) = widen_rows<Scalar>(weights_->embed_tokens, ids[static_cast<std::size_t>(n)], 1);
  return rows;
}

template <class Scalar>
Matrix<Scalar> ReferenceDecoder<Scalar>::layer(std::int64_t i, const Matrix<Scalar>& hidden, const Call& call,
                                               const RopeTable<Scalar>& rope, HostKvCache& cache, Tensor* probabilities,
                                               const Probe& probe) const {
  const LayerWeights& w = weights_->layers[static_cast<std::size_t>(i)];

  Matrix<Scalar> x = rms_norm(hidden, w.input_layernorm, config_.rms_norm_eps);
  probe.tap("input_layernorm", x);
  const AttentionContext<Scalar> context = {.config = config_,
                                            .weights = w.self_attn,
                                            .call = call,
                                            .rope = rope,
                                            .cache = cache,
                                            .layer = i,
                                            .probabilities = probabilities,
                                            .probe = probe.in("self_attn")};
  Matrix<Scalar> residual = hidden + (config_.use_mla ? mla(context, x, options_.mla_form) : mha(context, x));
  context.probe.tap("residual", residual);

  x = rms_norm(residual, w.post_attention_layernorm, config_.rms_norm_eps);
  probe.tap("post_attention_layernorm", x);
  Matrix<Scalar> y = config_.is_moe_layer(i) ? moe(x, w, config_, probe.in("mlp"))
                                             : mlp(x, w.mlp, config_.hidden_act, probe.in("mlp"));
  probe.tap("mlp", y);
  return residual + y;
}

template <class Scalar>
ForwardOutput ReferenceDecoder<Scalar>::forward(const ForwardInput& input) {
  const Call call = validate_input(input, config_);
  const std::int64_t B = call.batch, S = call.tokens, T = call.total, D = config_.hidden_size;

  // A call without a cache object works on one of its own.
  std::unique_ptr<KvCache> own;
  if (!input.cache) own = input.past_key_values ? make_cache(*input.past_key_values) : make_cache(B, T);
  HostKvCache& cache = own_kind(input.cache ? *input.cache : *own);
  cache.reserve(T);

  ForwardOutput out;
  const Probe probe(input.taps, call);
  const RopeTable<Scalar> rope = rope_table<Scalar>(config_, call);
  Matrix<Scalar> hidden = embeddings(input, call);
  probe.tap("embed_tokens", hidden);
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    if (input.hidden_states) out.hidden_states.push_back(to_tensor(hidden, {B, S, D}));
    Tensor* probabilities = nullptr;
    if (input.attentions)
      probabilities = &out.attentions.emplace_back(dtype_of<Scalar>(), Shape{B, config_.num_attention_heads, S, T});
    const std::string module = concat("layers.", i);
    hidden = layer(i, hidden, call, rope, cache, probabilities, probe.in(module));
    probe.tap(module, hidden);
  }
  hidden = rms_norm(hidden, weights_->norm, config_.rms_norm_eps);
  probe.tap("norm", hidden);
  if (input.hidden_states) out.hidden_states.push_back(to_tensor(hidden, {B, S, D}));
  out.last_hidden_state = to_tensor(hidden, {B, S, D});
  out.logits = head_logits(hidden, *weights_, config_, input, call, probe);
  if (input.labels) out.loss = cross_entropy_loss(input, config_, call, out.logits.view());

  // Only now: a sink or an allocation may have thrown before.
  cache.set_length(T);
  if (input.use_cache && !input.cache) out.past_key_values = cache.to_legacy();
  return out;
}

std::optional<std::string> unsupported(const Config&, const Options& options) {
  if (options.accumulate == DType::f64 || options.accumulate == DType::f32) return std::nullopt;
  return concat("accumulate: expected f64 or f32, found ", name(options.accumulate));
}

std::unique_ptr<Decoder> create(const Config& config, std::shared_ptr<const Weights> weights, const Options& options) {
  if (const auto why = unsupported(config, options)) fail("reference: ", *why);
  if (options.accumulate == DType::f64)
    return std::make_unique<ReferenceDecoder<double>>(config, std::move(weights), options);
  return std::make_unique<ReferenceDecoder<float>>(config, std::move(weights), options);
}

}  // namespace

Backend backend() {
  return {.name = "reference",
          .description = "plain Eigen in formula order, one thread; double to judge, float to time",
          .unavailable = [] { return std::optional<std::string>(); },
          .unsupported = unsupported,
          .create = create,
          .ops = ops};
}

}  // namespace dsv2::reference
