// The safetensors file format: 8 bytes of header length, a JSON header, the tensors' bytes.
// Source: https://huggingface.co/docs/safetensors/index#format
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/checksum.h"
#include "model/file.h"
#include "model/tensor.h"

namespace dsv2 {

/// One tensor as the header has it, checked against the file.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;   ///< the format's word: "F32", "BF16", "F8_E4M3", ...
  Shape shape;         ///< its element count times the size of `dtype` is `bytes`
  std::int64_t begin;  ///< first byte, counted from the start of the file
  std::int64_t bytes;  ///< begin + bytes is within the file
};

/// Key of __metadata__ under which a signed file carries the checksum of its data.
inline constexpr const char* kChecksumKey = "checksum";

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< in the order of their bytes; they neither overlap nor leave gaps
  std::map<std::string, std::string> metadata;
};

/// Reads the header of a whole file in memory. Throws Error naming `source`, and the tensor where it is one's fault,
/// for everything that breaks the format: header length, JSON, dtype, shape, offsets. Allocates in proportion to the
/// header that is there, never to sizes that it claims.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view source);

/// The DType of a dtype word ("F32"); nullopt for those that a TensorView does not hold ("U8", "F8_E4M3", ...).
std::optional<DType> dtype_of_safetensors(std::string_view word);

/// A mapped file. Immutable, readable from any thread. Views stay valid as long as the object lives and nobody
/// truncates the file.
class SafetensorsFile {
 public:
  /// Throws Error as parse_safetensors() and MappedFile.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::string& source() const { return source_; }  ///< the path, for messages
  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  /// Of all tensors, from the first to the end of the file.
  std::span<const std::byte> data() const;
  std::span<const std::byte> bytes(const SafetensorsEntry& entry) const;  ///< where they are mapped, aligned or not
  std::vector<std::string> names() const;                                 ///< in the order of entries()
  /// nullptr when there is no such tensor.
  const SafetensorsEntry* find(std::string_view name) const;
  /// The tensor's bytes where they are mapped; a copy made at the first call where they are not aligned to the element.
  /// Throws Error naming file, tensor and dtype when the tensor is absent or its dtype is not one of DType's.
  TensorView view(std::string_view name) const;
  TensorView view(const SafetensorsEntry& entry) const;

 private:
  std::string source_;
  MappedFile file_;
  SafetensorsHeader header_;
  std::map<std::string_view, std::size_t> index_;
  mutable std::mutex mutex_;
  mutable std::map<std::int64_t, Tensor> copies_;  // of misaligned tensors, by begin
};

/// A file being written: the header first, then the tensors' bytes in the order of the header. It appears whole, in
/// commit(), or not at all. The data begin at a multiple of 64 bytes, which is the last that aligns them: the order is
/// the caller's.
class SafetensorsWriter {
 public:
  /// Of `tensors`, name, dtype, shape and bytes are read. `sign`: metadata "checksum" becomes the checksum of all data
  /// bytes (model/checksum.h). Throws Error naming the file.
  SafetensorsWriter(const std::filesystem::path& path, std::span<const SafetensorsEntry> tensors,
                    std::map<std::string, std::string> metadata, bool sign = false);
  void write(std::span<const std::byte> bytes);
  /// Everything is on the disk and the file closed. Throws Error unless all bytes of all tensors were written.
  void finish();
  void commit();  ///< after finish(), if nobody called it yet

 private:
  AtomicFile file_;
  std::string source_;
  std::int64_t missing_ = 0;  // bytes
  std::optional<Checksum> checksum_;
  std::int64_t checksum_at_ = 0;  // where its text is in the file
};

struct NamedTensor {
  std::string name;
  TensorView view;  ///< f64, f32, bf16, f16, i64 or i8; no quantised matrix
};

/// What a header says of it.
SafetensorsEntry entry_of(const NamedTensor& tensor);

/// Writes `tensors` as a file that appears whole or not at all. Wider elements come first, so that all are aligned;
/// otherwise the order is kept. Streams: no copy of the tensors is made. Throws Error naming the file.
void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace dsv2
