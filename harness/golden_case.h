// A case in the format of golden/FORMAT.md, as data: parsed and checked, nothing executed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "model/safetensors.h"
#include "model/tensor.h"
#include "model/weights.h"

namespace dsv2::harness {

/// A tensor of golden.safetensors, or positions from..to-1 of its dimension 1.
struct TensorRef {
  std::string tensor;
  std::optional<std::pair<std::int64_t, std::int64_t>> slice;
};

struct GoldenCall {
  std::string id;
  std::optional<std::string> cache;               ///< name of the cache that the call extends
  std::map<std::string, std::string> cache_from;  ///< part -> pattern
  std::map<std::string, TensorRef> inputs;        ///< input_ids, inputs_embeds, attention_mask, position_ids, labels
  std::map<std::string, std::string> outputs, outputs_bf16;  ///< kind -> pattern
  std::map<std::string, std::string> cache_after;            ///< part -> pattern
  std::optional<TensorRef> valid, cache_valid;
};

struct GoldenGeneration {
  std::string id;
  std::map<std::string, TensorRef> inputs;
  std::int64_t max_new_tokens = 0;
  std::optional<std::int64_t> eos_token_id;
  std::string ids;
  std::optional<std::string> logits;
  std::map<std::string, std::string> cache_after;
};

/// Where a kind of output has its tensors: "full.hidden_states.{i}" stands for one tensor a layer.
enum class Indexed : std::uint8_t { no, layers, layers_and_embeddings, moe_layers };
Indexed indexed(const std::string& kind);

class GoldenCase {
 public:
  std::filesystem::path folder;
  std::string name, description;
  Config config;
  std::filesystem::path weights_path;
  std::vector<GoldenCall> calls;
  std::vector<GoldenGeneration> generate;
  std::map<std::string, double> tolerance;
  bool has_bf16_outputs = false;

  /// Reads case.json, config.json and the header of golden.safetensors. Throws Error naming file and field; a tensor
  /// that a call names and the file lacks, or one that is not finite, is an error too.
  static GoldenCase load(const std::filesystem::path& folder);

  /// The tensor that `ref` names; a slice is copied.
  Tensor tensor(const TensorRef& ref) const;
  /// An expected tensor by name.
  TensorView expected(const std::string& tensor_name) const;
  double tolerance_of(const std::string& tensor_name) const;
  /// The names that a pattern stands for, with their layer (-1 where the kind has no layers).
  std::vector<std::pair<std::int64_t, std::string>> expand(const std::string& kind, const std::string& pattern) const;
  /// How many tensors its calls and generations compare.
  std::int64_t expected_count() const;

 private:
  std::shared_ptr<const SafetensorsFile> tensors_;
};

}  // namespace dsv2::harness
