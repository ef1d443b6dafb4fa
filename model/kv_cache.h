// Keys and values of the tokens seen so far.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/tensor.h"

namespace dsv2 {

/// One layer of HF's legacy cache tuple: MHA key, value [B,K,T,h]; MLA k_pe [B,1,T,rope], compressed_kv [B,1,T,R].
struct LegacyLayer {
  Tensor first, second;
};
using LegacyCache = std::vector<LegacyLayer>;

/// One of the two arrays that a layer caches.
struct CachePart {
  std::string_view name;  ///< "key", "value" (MHA); "k_pe", "compressed_kv" (MLA, QUIRKS 3)
  std::int64_t heads;     ///< K; 1 in MLA
  std::int64_t dim;       ///< width of one row
};
/// What a layer of this model caches, in the order of the legacy tuple.
std::array<CachePart, 2> cache_parts(const Config& config);
/// Bytes that one token of context takes over all layers: 61,440 for deepseek-ocr at bf16.
std::int64_t kv_bytes_per_token(const Config& config, DType kv_dtype);

/// Throws Error naming layer, part, expected and found unless `cache` is a legacy cache of this model: every layer, one
/// batch size, one length, the widths of cache_parts(), f32 or f64.
void validate_legacy(const LegacyCache& cache, const Config& config);

/// A cache of `batch` sequences that grow together (padding is the mask's business). Made by Decoder::make_cache or
/// from_legacy and only usable with a decoder of the same backend and shape. A forward() that throws leaves it
/// unchanged.
class KvCache {
 public:
  virtual ~KvCache() = default;
  virtual std::int64_t batch() const = 0;
  virtual std::int64_t length() const = 0;    ///< P, tokens held
  virtual std::int64_t capacity() const = 0;  ///< tokens that fit without growing; a forward beyond it grows the cache
  /// Tokens that stay usable when `new_tokens` are added (HF get_usable_length). This cache has no window: length().
  std::int64_t usable_length(std::int64_t new_tokens) const { return static_cast<void>(new_tokens), length(); }
  virtual void truncate(std::int64_t length) = 0;  ///< forgets tokens from `length` on; throws Error above length()
  virtual std::unique_ptr<KvCache> clone() const = 0;
  virtual std::int64_t bytes() const = 0;     ///< really allocated
  virtual LegacyCache to_legacy() const = 0;  ///< copies, widened exactly to f32 (f64 from an f64 cache)
};

/// The cache of the CPU backends. Each part of each layer is one array [B, heads, capacity, dim] of `dtype`, so the
/// rows of one head are contiguous.
class HostKvCache final : public KvCache {
 public:
  HostKvCache(const Config& config, std::int64_t batch, std::int64_t capacity, DType dtype);
  /// Rounds the given rows to `dtype`. Validates as validate_legacy().
  static std::unique_ptr<HostKvCache> from_legacy(const LegacyCache& legacy, const Config& config, DType dtype);

  std::int64_t batch() const override { return batch_; }
  std::int64_t length() const override { return length_; }
  std::int64_t capacity() const override { return capacity_; }
  void truncate(std::int64_t length) override;
  std::unique_ptr<KvCache> clone() const override;
  std::int64_t bytes() const override;
  LegacyCache to_legacy() const override;

  DType dtype() const { return dtype_; }
  /// Makes room for `tokens` in all; existing rows move. Capacity grows by at least half, so appending is linear.
  void reserve(std::int64_t tokens);
  /// Declares that rows up to `length` (at most capacity()) have been written in every layer.
  void set_length(std::int64_t length);
  /// First row of a head; T must be the cache's element type. Rows length().. are the caller's to write.
  template <class T>
  T* rows(std::int64_t layer, int part, std::int64_t row, std::int64_t head) {
    auto all = layers_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(part)].as<T>();
    const CachePart& p = parts_[static_cast<std::size_t>(part)];
    return all.data() + (row * p.heads + head) * capacity_ * p.dim;
  }
  template <class T>
  const T* rows(std::int64_t layer, int part, std::int64_t row, std::int64_t head) const {
    return const_cast<HostKvCache*>(this)->rows<T>(layer, part, row, head);
  }
  const std::array<CachePart, 2>& parts() const { return parts_; }
  std::int64_t layer_count() const { return static_cast<std::int64_t>(layers_.size()); }

 private:
  struct Reallocate {
    std::int64_t capacity;
  };
  HostKvCache(const HostKvCache& other, Reallocate to);  // a copy of the rows held, in arrays of another capacity

  std::array<CachePart, 2> parts_;
  std::int64_t batch_, capacity_, length_ = 0;
  DType dtype_;
  std::vector<std::array<Tensor, 2>> layers_;
};

}  // namespace dsv2
