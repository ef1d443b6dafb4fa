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
/// Bytes that one token of context takes over all layers: 61,440 for deepseek-ocr at bf16, 31,200 at int8.
std::int64_t kv_bytes_per_token(const Config& config, DType kv_dtype);

/// Writes one row of `dim` numbers as an int8 cache holds it: a bf16 scale s and integers q in -127..127 for s q. s is
/// max |x| / 127 rounded to bf16 and q = x / s rounded to nearest even, so an element is off by at most
/// kQuantisedRowError max |x|. s q has 15 bits: it widens to f32 exactly, and the widened row gives the same s and q
/// again. Rows below 127 times the smallest normal number become zeros; a NaN or an infinity in x makes s one.
///
/// One scale a row, not one for each 32 elements: a scale that is the same in all of a sum leaves the sum, so keys can
/// meet a query as integers and a value's scale joins its probability. Groups of 32 would take the
/// relative L2 error of normally distributed rows of 128 from 0.65 % to 0.53 % (of 512: from 0.74 %), for 4.6 % more
/// bytes and a multiplication per group in the inner loops.
void quantise_row(const float* x, std::int64_t dim, std::int8_t* q, bf16_t* s);
inline constexpr double kQuantisedRowError = (1 + 0x1p-8) / 254;
/// The numbers s q of int8 rows [., dim] with their scales [.], as f32.
Tensor widen_quantised(const TensorView& rows, const TensorView& scales);

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
/// rows of one head are contiguous; of int8, beside it, the rows' scales [B, heads, capacity] (quantise_row()).
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
    auto all = layers_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(part)].rows.as<T>();
    const CachePart& p = parts_[static_cast<std::size_t>(part)];
    return all.data() + (row * p.heads + head) * capacity_ * p.dim;
  }
  /// Scales of all heads' rows of a part, [B, heads, capacity]; null unless dtype() is int8.
  bf16_t* scales(std::int64_t layer, int part) {
    Tensor& all = layers_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(part)].scales;
    return all ? all.as<bf16_t>().data() : nullptr;
  }
  template <class T>
  const T* rows(std::int64_t layer, int part, std::int64_t row, std::int64_t head) const {
    return const_cast<HostKvCache*>(this)->rows<T>(layer, part, row, head);
  }
  const std::array<CachePart, 2>& parts() const { return parts_; }
  std::int64_t layer_count() const { return static_cast<std::int64_t>(layers_.size()); }

 private:
  /// A part of a layer.
  struct Part {
    Tensor rows, scales;  // scales: int8 only
  };
  struct Reallocate {
    std::int64_t capacity;
  };
  HostKvCache(const HostKvCache& other, Reallocate to);  // a copy of the rows held, in arrays of another capacity
  void allocate(std::int64_t layers);

  std::array<CachePart, 2> parts_;
  std::int64_t batch_, capacity_, length_ = 0;
  DType dtype_;
  std::vector<std::array<Part, 2>> layers_;
};

}  // namespace dsv2
