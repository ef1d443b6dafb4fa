// From a checkpoint in floats to a quantised one, tensor by tensor.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/tensor.h"
#include "model/weights.h"

namespace dsv2 {

struct QuantiseOptions {
  DType dtype = DType::i4;               ///< i8 or i4: of all matrices and embeddings
  std::optional<DType> head_dtype = {};  ///< of lm_head, or of score: bf16, i8 or i4; absent: as dtype
};

/// What was written, and how far it is from what was read.
struct QuantiseReport {
  struct Row {
    std::string tensor;
    DType dtype = DType::f32;
    std::int64_t elements = 0, bytes = 0;
    double error = 0;  ///< relative L2 of the stored values against the source's
  };
  std::vector<Row> tensors;                                    ///< those whose dtype changed
  Row worst;                                                   ///< of them; without a name when there are none
  double error = 0;                                            ///< relative L2 over all of them
  std::int64_t bytes = 0, parameters = 0;                      ///< of all tensors
  std::int64_t quantised_bytes = 0, quantised_parameters = 0;  ///< of those in int8 and int4
  std::int64_t left_out = 0;                                   ///< the source's tensors that no decoder reads
};

/// Reads checkpoint `from` and writes a quantised one (model/checkpoint.h) into folder `dir`. Beside the mapped source
/// it holds one tensor. Throws Error naming the tensor for NaN and Inf, and for a source that is quantised already.
QuantiseReport quantise_checkpoint(const std::filesystem::path& from, const Config& config,
                                   const QuantiseOptions& options, const std::filesystem::path& dir,
                                   const Progress& progress = {}, std::int64_t shard_bytes = 2'000'000'000);

}  // namespace dsv2
