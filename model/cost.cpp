#include "model/cost.h"

#include <algorithm>
#include <cmath>

namespace dsv2 {
namespace {

/// visit(name, shape, count) for every tensor of the model; one layer stands for all of its kind, so that the time does
/// not grow with what a config claims.
template <class Visit>
void for_each_tensor_shape(const Config& config, Visit&& visit) {
  const auto moe = static_cast<std::int64_t>(config.moe_layers().size()), dense = config.num_hidden_layers - moe;
  Config one = config;
  one.num_hidden_layers = 1;
  one.first_k_dense_replace = 0;
  bool first = true;
  const auto walk = [&](std::optional<std::int64_t> experts, std::int64_t layers) {
    if (layers == 0) return;
    one.n_routed_experts = experts;
    Weights shapes;
    for_each_tensor(one, shapes, [&](const std::string& name, const Shape& shape, const TensorView&) {
      const bool in_layer = name.starts_with("model.layers.");
      if (in_layer || first) visit(name, shape, in_layer ? layers : 1);
    });
    first = false;
  };
  walk(std::nullopt, dense);
  walk(config.n_routed_experts, moe);
}

constexpr double kActivationBytes = 4;  // activations are f32 in every backend

/// Bytes that one element of a matrix takes: quantised ones carry a bf16 scale for each group of 32.
double matrix_bytes(DType dtype) {
  constexpr double kGroup = 32, kScaleBits = 16;
  const bool grouped = dtype == DType::i8 || dtype == DType::i4;
  return (bits(dtype) + (grouped ? kScaleBits / kGroup : 0)) / 8;
}

/// Norms, biases and the gate stay in what a checkpoint stores: never below bf16.
double vector_bytes(DType dtype) { return std::max(bits(dtype), bits(DType::bf16)) / 8.0; }

/// E(1 - (1 - k/E)^N): how many experts N tokens touch when each draws k of E uniformly.
double expected_distinct(std::int64_t experts, std::int64_t per_token, double tokens) {
  const auto E = static_cast<double>(experts);
  return -E * std::expm1(tokens * std::log1p(-static_cast<double>(per_token) / E));
}

class Pricer {
 public:
  Pricer(const Config& config, const Workload& work)
      : c_(config),
        w_(work),
        B_(static_cast<double>(work.batch)),
        S_(static_cast<double>(work.tokens)),
        T_(static_cast<double>(work.context)) {
    const double past = T_ - S_;
    N_ = B_ * S_;
    pairs_ = B_ * (work.causal ? S_ * past + S_ * (S_ + 1) / 2 : S_ * T_);
  }

  LayerCost embedding() {
    begin("embedding");
    const double row = static_cast<double>(c_.hidden_size);
    add("embedding", "embed_tokens", 0, N_ * row * matrix_bytes(w_.dtype), 0, N_ * row);
    return end();
  }

  LayerCost layer(std::int64_t index, MlaForm form) {
    begin(c_.is_moe_layer(index) ? "moe" : "dense");
    const double D = static_cast<double>(c_.hidden_size);
    norm("input_layernorm", D);
    if (c_.use_mla)
      mla(form);
    else
      mha();
    residual("self_attn.residual");
    norm("post_attention_layernorm", D);
    if (c_.is_moe_layer(index))
      moe();
    else
      mlp("mlp", "mlp", static_cast<double>(c_.intermediate_size), N_, 1);
    residual("mlp.residual");
    return end();
  }

  LayerCost head() {
    begin("head");
    const double D = static_cast<double>(c_.hidden_size);
    norm("norm", D);
    if (c_.head == Head::sequence_classification) {
      linear("score", "score", static_cast<double>(c_.num_labels), D, w_.logits == Logits::none ? 0 : B_, false);
    } else if (c_.head == Head::causal_lm && w_.logits != Logits::none) {
      linear("lm_head", "lm_head", static_cast<double>(c_.vocab_size), D, w_.logits == Logits::last ? B_ : N_, false);
    }
    return end();
  }

  /// Of one layer, what the forms of MLA do differently.
  struct MlaFlops {
    double kv_b_proj, attention;
    double total() const { return kv_b_proj + attention; }
  };
  MlaFlops mla_flops(MlaForm form) const {
    const double H = static_cast<double>(c_.num_attention_heads), R = static_cast<double>(c_.kv_lora_rank);
    const double nope = static_cast<double>(c_.qk_nope_head_dim), v = static_cast<double>(c_.v_head_dim);
    const double r = static_cast<double>(c_.qk_rope_head_dim);
    const bool absorbed = form == MlaForm::absorbed;
    return {.kv_b_proj = 2 * (absorbed ? N_ : B_ * T_) * H * (nope + v) * R,
            .attention = 2 * pairs_ * H * (absorbed ? 2 * R + r : nope + r + v)};
  }

 private:
  void begin(std::string kind) {
    layer_ = {};
    layer_.kind = std::move(kind);
  }
  LayerCost end() {
    for (const OpCost& op : layer_.ops) {
      layer_.flops += op.flops;
      layer_.bytes += op.bytes;
    }
    return std::move(layer_);
  }
  void add(std::string op, std::string name, double flops, double weights, double kv, double activations) {
    layer_.ops.push_back({std::move(op), std::move(name), flops, {weights, kv, activations * kActivationBytes}});
  }

  void norm(const std::string& name, double width) {
    add("rms_norm", name, 0, width * vector_bytes(w_.dtype), 0, 2 * N_ * width);
  }
  void residual(const std::string& name) { add("add", name, 0, 0, 0, 3 * N_ * static_cast<double>(c_.hidden_size)); }
  void linear(const std::string& op, const std::string& name, double out, double in, double rows, bool bias) {
    add(op, name, 2 * rows * out * in,
        rows > 0 ? out * in * matrix_bytes(w_.dtype) + (bias ? out * vector_bytes(w_.dtype) : 0) : 0, 0,
        rows * (out + in));
  }
  void projection(const std::string& name, double out, double in, bool bias = false) {
    linear("linear", "self_attn." + name, out, in, N_, bias);
  }

  /// Angles are positions times frequencies, one product for each pair and token: what torch's counter sees of RoPE.
  void rope(double dim, double rotated) { add("rope", "self_attn.rope", N_ * dim, 0, 0, 2 * N_ * rotated); }

  double kv_row_bytes() const {
    return static_cast<double>(kv_bytes_per_token(c_, w_.kv_dtype)) / static_cast<double>(c_.num_hidden_layers);
  }
  void kv_write(double width) { add("kv_write", "self_attn.kv_write", 0, 0, N_ * kv_row_bytes(), N_ * width); }

  void mha() {
    const double D = static_cast<double>(c_.hidden_size), H = static_cast<double>(c_.num_attention_heads);
    const double K = static_cast<double>(c_.num_key_value_heads), h = static_cast<double>(c_.head_dim());
    projection("q_proj", H * h, D, c_.attention_bias);
    projection("k_proj", K * h, D, c_.attention_bias);
    projection("v_proj", K * h, D, c_.attention_bias);
    rope(h, (H + K) * h);
    kv_write(2 * K * h);
    add("attention", "self_attn.attention", 2 * pairs_ * H * 2 * h, 0, B_ * T_ * kv_row_bytes(), 2 * N_ * H * h);
    projection("o_proj", D, H * h, c_.attention_bias);
  }

  void mla(MlaForm form) {
    const double D = static_cast<double>(c_.hidden_size), H = static_cast<double>(c_.num_attention_heads);
    const double R = static_cast<double>(c_.kv_lora_rank), nope = static_cast<double>(c_.qk_nope_head_dim);
    const double r = static_cast<double>(c_.qk_rope_head_dim), v = static_cast<double>(c_.v_head_dim);
    if (c_.q_lora_rank) {
      const double Q = static_cast<double>(*c_.q_lora_rank);
      projection("q_a_proj", Q, D, c_.attention_bias);
      norm("self_attn.q_a_layernorm", Q);
      projection("q_b_proj", H * (nope + r), Q);
    } else {
      projection("q_proj", H * (nope + r), D);
    }
    projection("kv_a_proj_with_mqa", R + r, D, c_.attention_bias);
    norm("self_attn.kv_a_layernorm", R);
    rope(r, (H + 1) * r);
    kv_write(R + r);
    const double cached = B_ * T_ * kv_row_bytes(), kv_b = H * (nope + v) * R;
    const auto [kv_b_flops, attention_flops] = mla_flops(form);
    if (form == MlaForm::absorbed) {
      add("mla_absorb", "self_attn.kv_b_proj", kv_b_flops, kv_b * matrix_bytes(w_.dtype), 0,
          N_ * H * (nope + v + 2 * R));
      add("attention", "self_attn.attention", attention_flops, 0, cached, N_ * H * (2 * R + r));
    } else {
      add("linear", "self_attn.kv_b_proj", kv_b_flops, kv_b * matrix_bytes(w_.dtype), cached,
          B_ * T_ * (R + H * (nope + v)));
      add("attention", "self_attn.attention", attention_flops, 0, 0,
          N_ * H * (nope + r + v) + B_ * T_ * H * (nope + r + v));
    }
    projection("o_proj", D, H * v, c_.attention_bias);
  }

  /// `copies` MLPs of this width are read; `rows` tokens go through them in all.
  void mlp(const std::string& op, const std::string& name, double width, double rows, double copies) {
    const double D = static_cast<double>(c_.hidden_size), matrices = 3 * width * D;
    add(op, name, 2 * rows * matrices, copies * matrices * matrix_bytes(w_.dtype), 0, rows * (2 * D + 2 * width));
  }

  void moe() {
    const double D = static_cast<double>(c_.hidden_size), E = static_cast<double>(*c_.n_routed_experts);
    const double k = static_cast<double>(c_.num_experts_per_tok), F = static_cast<double>(c_.moe_intermediate_size);
    const double bias = c_.topk_method == TopkMethod::noaux_tc ? E : 0;
    add("gate", "mlp.gate", 2 * N_ * E * D, (E * D + bias) * vector_bytes(w_.dtype), 0, N_ * (D + E));
    const double distinct =
        w_.distinct_experts.value_or(expected_distinct(*c_.n_routed_experts, c_.num_experts_per_tok, N_));
    mlp("experts", "mlp.experts", F, N_ * k, distinct);
    if (c_.n_shared_experts.value_or(0) > 0)
      mlp("shared_experts", "mlp.shared_experts", static_cast<double>(c_.shared_intermediate_size()), N_, 1);
  }

  const Config& c_;
  const Workload& w_;
  double B_, S_, T_, N_ = 0, pairs_ = 0;
  LayerCost layer_;
};

void check(const Config& c, const Workload& w) {
  DSV2_CHECK(w.batch >= 1, "batch: expected at least 1, found ", w.batch);
  DSV2_CHECK(w.tokens >= 1, "tokens: expected at least 1, found ", w.tokens);
  DSV2_CHECK(w.context >= w.tokens, "context: expected at least the ", w.tokens, " new tokens, found ", w.context);
  if (!w.distinct_experts) return;
  const auto most = static_cast<double>(c.n_routed_experts.value_or(0));
  DSV2_CHECK(*w.distinct_experts > 0 && *w.distinct_experts <= most, "distinct_experts: expected more than 0, at most ",
             most, ", found ", *w.distinct_experts);
}

Cost price(const Config& c, const Workload& w, MlaForm form) {
  Pricer pricer(c, w);
  Cost total;
  total.mla_form = c.use_mla ? form : MlaForm::automatic;
  total.layers.push_back(pricer.embedding());
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    LayerCost layer = pricer.layer(i, form);
    layer.first = i;
    if (total.layers.back().kind == layer.kind)
      ++total.layers.back().count;
    else
      total.layers.push_back(std::move(layer));
  }
  total.layers.push_back(pricer.head());
  for (const LayerCost& layer : total.layers) {
    const auto n = static_cast<double>(layer.count);
    total.flops += n * layer.flops;
    total.bytes += {n * layer.bytes.weights, n * layer.bytes.kv, n * layer.bytes.activations};
  }
  total.kv_bytes_per_token = static_cast<double>(kv_bytes_per_token(c, w.kv_dtype));
  total.kv_bytes = static_cast<double>(w.batch) * static_cast<double>(w.context) * total.kv_bytes_per_token;
  for_each_tensor_shape(c, [&](const std::string& name, const Shape& shape, std::int64_t layers) {
    const double each = is_kept(name, shape) ? static_cast<double>(element_count(shape)) * vector_bytes(w.dtype)
                                             : static_cast<double>(array_bytes(w.dtype, shape));
    total.weight_bytes += static_cast<double>(layers) * each;
  });
  return total;
}

}  // namespace

Bytes& Bytes::operator+=(const Bytes& other) {
  weights += other.weights;
  kv += other.kv;
  activations += other.activations;
  return *this;
}

Cost cost(const Config& config, const Workload& work) { return price(config, work, mla_form(config, work)); }

MlaForm mla_form(const Config& config, const Workload& work) {
  check(config, work);
  if (!config.use_mla || work.mla_form != MlaForm::automatic) return work.mla_form;
  const Pricer pricer(config, work);
  const bool absorbed = pricer.mla_flops(MlaForm::absorbed).total() <= pricer.mla_flops(MlaForm::expanded).total();
  return absorbed ? MlaForm::absorbed : MlaForm::expanded;
}

ParameterCount count_parameters(const Config& c) {
  ParameterCount count;
  for_each_tensor_shape(c, [&](const std::string& name, const Shape& shape, std::int64_t layers) {
    const std::int64_t n = layers * element_count(shape);
    count.total += n;
    const bool lookup = name == "model.embed_tokens.weight" && !(c.tie_word_embeddings && c.head == Head::causal_lm);
    if (!lookup && name.find(".mlp.experts.") == std::string::npos) count.active += n;
  });
  const auto moe = static_cast<std::int64_t>(c.moe_layers().size());
  count.active += moe * c.num_experts_per_tok * 3 * c.hidden_size * c.moe_intermediate_size;
  return count;
}

namespace {

/// Of one layer, of the tensors under `module`.
std::int64_t layer_parameters(Config c, bool moe, const std::string& module) {
  c.num_hidden_layers = 1;
  c.first_k_dense_replace = 0;
  if (!moe) c.n_routed_experts.reset();
  std::int64_t sum = 0;
  for_each_tensor_shape(c, [&](const std::string& name, const Shape& shape, std::int64_t) {
    if (name.starts_with("model.layers.0." + module)) sum += element_count(shape);
  });
  return sum;
}

}  // namespace

std::int64_t attention_parameters(const Config& config) { return layer_parameters(config, false, "self_attn."); }

std::int64_t mlp_parameters(const Config& config, std::int64_t layer) {
  return layer_parameters(config, config.is_moe_layer(layer), "mlp.");
}

}  // namespace dsv2
