// The one table of op-level cases: correctness, performance and the support matrix all read it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "model/cost.h"
#include "model/op.h"

namespace dsv2::harness {

/// What activations hold.
enum class Fill : std::uint8_t {
  normal,    ///< N(0, 1)
  large,     ///< N(0, 1) x 1e4: softmax saturates, squares stay finite
  tiny,      ///< N(0, 1) x 1e-12: eps rules a norm
  zeros,     ///< 0
  near_tie,  ///< decisions only: equal values, and values one ulp apart, at the boundary of what is chosen
  denormal,  ///< below the smallest normal number of float32
  bf16_tie,  ///< N(0, 1), halfway between two numbers of bf16: rounding to even shows
  hidden,    ///< N(0, 1), and N(0, 1) x 1e36 in values that a padding mask hides: any weight but 0 shows
};
std::string_view name(Fill);

/// What queries may see.
enum class Visibility : std::uint8_t {
  causal,
  padding,  ///< [B,T]: the first sequence padded on the left by a third, the last one on the right
  rows,     ///< [B,1,S,T]: drawn; one query sees nothing
  open,     ///< [B,1,S,T]: ones, of what comes later too
};
std::string_view name(Visibility);

/// An op at a place of a model, at one shape.
struct OpCase {
  std::string_view op;                           ///< as in model/op.h
  std::string_view place;                        ///< HF's path in a layer, which says the widths: "self_attn.q_proj"
  std::string_view model;                        ///< a row of the table of models: a preset, or a variation
  std::int64_t batch = 1, tokens = 1, past = 0;  ///< B, S, P
  DType dtype = DType::f32;                      ///< of the arithmetic
  DType stored = DType::f32;                     ///< of matrices: f32 arithmetic takes bf16 ones as they are
  DType kv_dtype = DType::f32;
  Fill fill = Fill::normal;
  Visibility visibility = Visibility::causal;
  MlaForm form = MlaForm::automatic;  ///< attention of MLA: the form

  /// "attention/self_attn.attention/odd-mla/absorbed/b2-s33-p7/f32/kv_bf16/normal/padding": with a seed and a backend
  /// it says everything. Parts that do not apply are left out.
  std::string name() const;
};

/// Widths of a published model, as opposed to small ones that take next to no time.
bool has_real_widths(const OpCase& op_case);
/// Small widths and few rows: hundreds of them take a second.
bool is_small(const OpCase& op_case);
/// Reads or writes a cache, and so has a KV dtype.
bool has_cache(const OpCase& op_case);

/// All of them, in the order of the decoder.
std::vector<OpCase> op_cases();
/// The ops that have cases.
std::vector<std::string_view> op_names();
/// "embedding, rms_norm, ...": op_names() for messages.
std::string known_ops();
/// Throws Error listing the known ones, naming `flag`.
void require_op(std::string_view op, std::string_view flag);

/// The model that a case names, as a config with one layer.
Config op_model(std::string_view model);

/// Draws the inputs: a function of (case, seed) alone.
OpProblem draw(const OpCase& op_case, std::uint64_t seed);

/// Of one run: FLOPs from `cost`; bytes from there too, or, where `cost` has no such part, those of inputs and outputs.
OpCost op_cost(const OpCase& op_case, const OpProblem& problem);

}  // namespace dsv2::harness
