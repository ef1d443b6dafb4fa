// A checkpoint on disk: one safetensors file or several with an index, beside a config.json; as HF stores it, or
// quantised.
//
// A quantised checkpoint is what `dsv2 quantize` writes: safetensors again, under the same names. A matrix is a U8
// tensor [panels, bytes of a panel], laid out as model/quantised.h says, so that it is used where it is mapped; whether
// it is int8 or int4 follows from the bytes of a panel. What is not quantised is stored as ever. Each file's
// __metadata__ has
//
//     format     "dsv2-quantised"
//     version    "1"
//     group      "32"       columns that share a scale
//     checksum   "xxh3-64:0123456789abcdef" of the file's data (model/checksum.h): checked at load, where the values of
//                other checkpoints are searched for NaN and Inf
//
// Its data, and each of its panels, begin at a multiple of 64 bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/safetensors.h"
#include "model/tensor.h"

namespace dsv2 {

/// Largest shard unless told otherwise.
inline constexpr std::int64_t kShardBytes = 2'000'000'000;

/// Does this metadata say that the file is a quantised one? Throws Error naming `source` and the key for one of another
/// version or group, or without a checksum.
bool is_quantised_file(const std::map<std::string, std::string>& metadata, std::string_view source);

/// i8 or i4: what the panels of `entry` hold of a matrix of `shape` [out, in]. Throws Error naming `where`, expected
/// and found, when they fit neither.
DType dtype_of_panels(const SafetensorsEntry& entry, const Shape& shape, std::string_view where);

/// A checkpoint's files, opened. Views stay valid as long as files() live.
class Checkpoint {
 public:
  /// A folder, one .safetensors file, or an index. Throws Error naming what is missing or broken.
  explicit Checkpoint(const std::filesystem::path& path);

  struct Found {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
    DType dtype = DType::f32;  ///< f32, bf16, f16; i8 or i4 in panels
    Shape shape;               ///< of the tensor, whatever the entry's

    TensorView view() const;
    std::string where() const;  ///< "FILE: tensor NAME: ", for messages
  };
  /// The tensor that HF calls `name`, found under it or under it without "model.". Throws Error naming file, tensor,
  /// expected and found: absent, of another shape or dtype, or panels that are not aligned.
  Found find(const std::string& name, const Shape& shape) const;

  const std::vector<std::shared_ptr<const SafetensorsFile>>& files() const { return files_; }
  bool quantised() const { return quantised_; }  ///< are its files?
  /// What its layers' matrices are stored in (lm_head and embeddings may differ).
  DType matrix_dtype(const Config& config) const;
  /// The same where that is i8 or i4.
  std::optional<DType> quantised_dtype(const Config& config) const;
  /// Throws Error unless there is a tensor for every layer and expert: before memory is taken for those of a config
  /// that claims millions.
  void require_room_for(const Config& config) const;

 private:
  void open_single(const std::filesystem::path& file);
  void open_shards(const std::filesystem::path& index);
  const SafetensorsFile& open(const std::filesystem::path& file);

  struct Place {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
  };
  std::string source_;
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  std::map<std::string_view, Place> tensors_;
  bool quantised_ = false;
};

/// Is a tensor of this name part of DeepSeek-OCR's vision encoder, which no decoder reads?
bool is_vision_tensor(std::string_view name);

/// Throws Error naming `where`, the element and its value if one is NaN or Inf. `view`: f32, bf16 or f16. In parallel.
void require_finite(const TensorView& view, std::string_view where);

/// Throws Error naming file and both checksums unless the data of a signed file are what was signed. In parallel.
void require_checksum(const SafetensorsFile& file);

/// A tensor of a checkpoint that is to be written: its bytes need not be there yet.
struct PlannedTensor {
  std::string name;
  DType dtype;  ///< f32, bf16, f16; of matrices also i8 or i4
  Shape shape;
};

/// Writes config.json and model.safetensors, or shards of at most `shard_bytes` with an index, into folder `dir` (made
/// if missing); quantised files where a matrix is i8 or i4. Calls make(i) once for each of `tensors`, one after the
/// other, in the order of the files; the view is read before the next call. No file appears before all of them are
/// written. Throws Error naming the file, and passes on what `make` throws.
void write_checkpoint(const std::filesystem::path& dir, const Config& config, std::span<const PlannedTensor> tensors,
                      const std::function<TensorView(std::size_t)>& make, std::int64_t shard_bytes = kShardBytes);

}  // namespace dsv2
