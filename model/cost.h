// FLOPs, bytes and KV of a decoder, in closed form: the only place where dimensions are multiplied.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/decoder.h"
#include "model/tensor.h"

namespace dsv2 {

/// The work to be priced. A FLOP is a FLOP: a fused multiply-add counts 2. Counted are the matrix products, attention,
/// and of RoPE the products of positions and frequencies, as torch's counter sees it; norms, softmax, activations and
/// residuals count as 0 FLOP, their bytes count. int8 and int4 matrices carry a bf16 scale for each group of 32.
struct Workload {
  std::int64_t batch = 1;     ///< B sequences
  std::int64_t tokens = 1;    ///< S new tokens each
  std::int64_t context = 1;   ///< T: keys that the last new token sees, itself included (so T = P + S)
  DType dtype = DType::bf16;  ///< as stored; of int8 and int4, norms, biases and the gate stay bf16
  DType kv_dtype = DType::bf16;
  MlaForm mla_form = MlaForm::automatic;  ///< automatic: the form with fewer FLOPs for this workload
  bool causal = false;          ///< true: attention counts visible pairs only; false: S*T pairs, as published counts do
  Logits logits = Logits::all;  ///< positions that get logits
  /// Distinct experts that a layer touches, as measured; absent: E(1-(1-k/E)^(B*S)), routing uniform.
  std::optional<double> distinct_experts = {};
};

struct Bytes {
  double weights = 0;      ///< read once per step; of the experts only the distinct ones
  double kv = 0;           ///< read and written
  double activations = 0;  ///< inputs and outputs of each op, once each, in f32; attention scores stay where they are
  double total() const { return weights + kv + activations; }
  Bytes& operator+=(const Bytes& other);
};

struct OpCost {
  std::string op;    ///< the project's one name for it: "linear", "attention", "gate", ...
  std::string name;  ///< where: "self_attn.q_proj"
  double flops = 0;
  Bytes bytes;
};

struct LayerCost {
  std::string kind;                   ///< "dense", "moe"; "embedding" and "head" for what surrounds the layers
  std::int64_t first = 0, count = 1;  ///< this many equal layers, starting at index `first`
  double flops = 0;                   ///< of one layer
  Bytes bytes;
  std::vector<OpCost> ops;
};

struct Cost {
  double flops = 0;  ///< of the whole step
  Bytes bytes;
  double kv_bytes_per_token = 0;          ///< over all layers
  double kv_bytes = 0;                    ///< of the context: B * T * kv_bytes_per_token
  double weight_bytes = 0;                ///< resident: every expert
  MlaForm mla_form = MlaForm::automatic;  ///< the one that was priced; automatic for MHA
  std::vector<LayerCost> layers;
};

struct ParameterCount {
  std::int64_t total = 0;   ///< head included (tied: once)
  std::int64_t active = 0;  ///< read for one token: embeddings left out (one row), k of E experts, head included
};

ParameterCount count_parameters(const Config& config);
/// Throws Error naming the field of a workload that is none.
Cost cost(const Config& config, const Workload& work);
/// The form of MLA that cost() prices, without pricing it: for a decoder to ask at every step.
MlaForm mla_form(const Config& config, const Workload& work);
/// Parameters of one part, for figures quoted by part: attention of a layer (norms of the low-rank steps
/// included), the MLP or MoE block of `layer`.
std::int64_t attention_parameters(const Config& config);
std::int64_t mlp_parameters(const Config& config, std::int64_t layer);

}  // namespace dsv2
