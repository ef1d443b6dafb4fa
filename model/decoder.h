// The one interface: a DeepSeek-V2 decoder, whoever computes it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "model/config.h"
#include "model/kv_cache.h"
#include "model/taps.h"
#include "model/tensor.h"
#include "model/weights.h"

namespace dsv2 {

/// Which positions get logits. Classification heads pool and know only none and all.
enum class Logits : std::uint8_t { none, last, all };

/// How MLA attends: through the latent (absorbed), or through per-head keys and values (expanded). The results agree.
enum class MlaForm : std::uint8_t { automatic, absorbed, expanded };
std::string_view name(MlaForm);

/// What a decoder is built for. Backends refuse what they lack by name (Backend::unsupported).
struct Options {
  DType dtype =
      DType::f32;  ///< of matrices and their arithmetic: f32 uses stored weights exactly, whatever their dtype
  DType kv_dtype = DType::f32;    ///< of the KV cache
  DType accumulate = DType::f64;  ///< reference only: f64 to judge, f32 to time
  int threads = 0;                ///< 0: one per core available to the process
  std::string isa;                ///< cpu: "portable", "avx2", "avx512", ...; empty: the best this machine runs
  MlaForm mla_form = MlaForm::automatic;
};

/// One call. Views are read during the call only. Exactly one of input_ids and inputs_embeds is given.
struct ForwardInput {
  std::optional<TensorView> input_ids;      ///< [B,S] i64, 0 <= id < V
  std::optional<TensorView> inputs_embeds;  ///< [B,S,D] f32, f64 or bf16
  std::optional<TensorView>
      attention_mask;  ///< i64 or f32, 0 or 1. [B,T]: visible keys, on top of causality. [B,1,S,T]: replaces it
  std::optional<TensorView> position_ids;        ///< [B,S] or [1,S] i64, >= 0; default P..P+S-1
  std::optional<TensorView> labels;              ///< causal LM [B,S] (-100: left out); classification [B]
  KvCache* cache = nullptr;                      ///< extended by S tokens; null: none
  const LegacyCache* past_key_values = nullptr;  ///< instead of `cache`: HF's tuple, read and not changed
  bool use_cache = false;                        ///< without `cache`: return past_key_values (QUIRKS 19)
  Logits logits = Logits::none;                  ///< labels imply all
  bool hidden_states = false, attentions = false;
  TapSink* taps = nullptr;
};

/// What was asked for; the rest is empty. f64 from a reference that accumulates in f64, else f32.
struct ForwardOutput {
  Tensor last_hidden_state;    ///< [B,S,D] after the final norm
  Tensor logits;               ///< [B,S,V], [B,1,V] (last) or [B,labels]
  std::optional<double> loss;  ///< mean cross entropy over labels that count; 0 if none does
  std::vector<Tensor>
      hidden_states;               ///< L+1 of [B,S,D]: embeddings, then after each layer, the last after the final norm
  std::vector<Tensor> attentions;  ///< L of [B,H,S,T], probabilities
  std::optional<LegacyCache> past_key_values;
};

/// HF's `return_dict=False`: what is present, in HF's order: loss, logits (last_hidden_state without a head),
/// past_key_values, hidden_states, attentions. Takes the output apart.
using TupleItem = std::variant<double, Tensor, LegacyCache, std::vector<Tensor>>;
std::vector<TupleItem> to_tuple(ForwardOutput output);

/// A model ready to run. Not thread-safe: one forward at a time.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual const Config& config() const = 0;
  virtual const Options& options() const = 0;
  /// An empty cache for `batch` sequences with room for `capacity` tokens before it has to grow.
  virtual std::unique_ptr<KvCache> make_cache(std::int64_t batch, std::int64_t capacity) const = 0;
  /// A cache that starts with the given rows (rounded to options().kv_dtype).
  virtual std::unique_ptr<KvCache> make_cache(const LegacyCache& legacy) const = 0;
  /// Throws Error, before computing anything, for an input that validate_input() refuses.
  virtual ForwardOutput forward(const ForwardInput& input) = 0;
  /// Bytes this decoder holds besides the Weights it was made from: packed copies, tables, scratch.
  virtual std::int64_t workspace_bytes() const = 0;
};

struct OpKernel;  // model/op.h

/// A row of the backend table in harness/.
struct Backend {
  std::string_view name;                        ///< "reference", "cpu", ...
  std::string_view description;                 ///< one line for `dsv2 backends`
  std::optional<std::string> (*unavailable)();  ///< why this machine cannot run it; nullopt: it can
  std::optional<std::string> (*unsupported)(const Config&,
                                            const Options&);  ///< why it lacks this; nullopt: it does not
  std::unique_ptr<Decoder> (*create)(const Config&, std::shared_ptr<const Weights>, const Options&);
  std::span<const OpKernel> (*ops)();  ///< what it can compute alone
  /// Its kernels run on a simulator: they are checked, and their time says nothing.
  bool simulated = false;
  std::string (*profile)() = nullptr;  ///< simulated: the simulator's report so far, as JSON (gpusim/report.h)
  /// Simulated: what the simulator's checks found since the last call, one line each: kernel, place, what.
  std::vector<std::string> (*findings)() = nullptr;
  /// Bytes of the copies that a decoder makes of weights whose matrices are stored in `stored`; null: it makes none.
  std::int64_t (*copied_bytes)(const Config&, DType stored, const Options&) = nullptr;
  /// Bytes of the buffers that a forward pass of `tokens` new tokens in each of `batch` sequences, `total` with those
  /// in the cache, works in, at most; without what it returns. Null: not known.
  std::int64_t (*buffer_bytes)(const Config&, const Options&, std::int64_t batch, std::int64_t tokens,
                               std::int64_t total) = nullptr;
  /// Bytes that are free on the device, where weights are copied to and caches and buffers lie: copied_bytes and
  /// buffer_bytes are there. Null: it works in the host's memory.
  std::int64_t (*free_device_bytes)() = nullptr;
};

/// A call as every backend sees it: checked, with the defaults filled in.
struct Call {
  std::int64_t batch, tokens, past, total;  ///< B, S, P, T = P + S
  std::vector<std::int64_t> positions;      ///< [B*S]
  std::int64_t max_position = 0;            ///< largest of them
  Logits logits = Logits::none;             ///< labels taken into account

  /// May query s (0..S-1) of sequence b attend to key t (0..T-1)? Causality (t <= P + s) and the mask.
  bool visible(std::int64_t b, std::int64_t s, std::int64_t t) const {
    if (mask_rank == 4) return mask[static_cast<std::size_t>((b * tokens + s) * total + t)] != 0;
    return t <= past + s && (mask_rank == 0 || mask[static_cast<std::size_t>(b * total + t)] != 0);
  }
  /// Visible keys lie in 0..key_end(s)-1: P + s + 1, or T with a 4-D mask.
  std::int64_t key_end(std::int64_t s) const { return mask_rank == 4 ? total : past + s + 1; }
  int mask_rank = 0;               ///< 0, 2 or 4
  std::vector<std::uint8_t> mask;  ///< attention_mask, element by element; empty without one
};

/// Position ids above this are refused: cos and sin of larger angles mean nothing in float32.
inline constexpr std::int64_t kMaxPosition = (std::int64_t{1} << 24) - 1;

/// Checks an input against the model and the cache it extends, as golden/bad_input says. Throws Error naming the input,
/// expected and found.
Call validate_input(const ForwardInput& input, const Config& config);

/// Row of each sequence that a classification head pools (QUIRKS 20): the token before the first pad_token_id in
/// input_ids; the last one if there is none, if it comes first, or with inputs_embeds.
std::vector<std::int64_t> pooled_positions(const ForwardInput& input, const Config& config, const Call& call);

/// Mean cross entropy of `logits` against input.labels as each head defines it, accumulated in double.
double cross_entropy_loss(const ForwardInput& input, const Config& config, const Call& call, const TensorView& logits);

}  // namespace dsv2
