// Keys and values on the device.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "model/kv_cache.h"
#include "optimized/cuda/device.h"
#include "optimized/cuda/types.h"

namespace dsv2::cuda {

/// Each part of each layer is one array [B, heads, capacity, dim] of f32 or bf16, all of them in one allocation.
class DeviceKvCache final : public KvCache {
 public:
  /// `stream` orders whatever is done with it and outlives it.
  DeviceKvCache(const Config& config, std::int64_t batch, std::int64_t capacity, DType dtype, const Stream& stream);
  /// Rounds the given rows to `dtype`. Validates as validate_legacy().
  static std::unique_ptr<DeviceKvCache> from_legacy(const LegacyCache& legacy, const Config& config, DType dtype,
                                                    const Stream& stream);

  std::int64_t batch() const override { return batch_; }
  std::int64_t length() const override { return length_; }
  std::int64_t capacity() const override { return capacity_; }
  void truncate(std::int64_t length) override;
  std::unique_ptr<KvCache> clone() const override;
  std::int64_t bytes() const override { return memory_.bytes(); }
  LegacyCache to_legacy() const override;

  DType dtype() const { return dtype_; }
  std::int64_t layer_count() const { return layers_; }
  const std::array<CachePart, 2>& parts() const { return parts_; }
  /// Makes room for `tokens` in all; existing rows move. Capacity grows by at least half.
  void reserve(std::int64_t tokens);
  /// Declares that rows up to `length` have been written, or will be by what is in the stream.
  void set_length(std::int64_t length) { length_ = length; }
  /// All rows of one part of a layer. A part of one head has head_stride 0: every query head reads it.
  CachedRows rows(std::int64_t layer, int part) const;

 private:
  std::byte* begin(std::int64_t layer, int part) const;
  std::int64_t layer_bytes() const;
  /// Copies the rows that are held into `other`, of another capacity perhaps.
  void copy_into(DeviceKvCache& other) const;

  const Config& config_;
  std::array<CachePart, 2> parts_;
  std::int64_t layers_, batch_, capacity_, length_ = 0;
  DType dtype_;
  const Stream& stream_;
  DeviceBuffer<std::byte> memory_;
};

}  // namespace dsv2::cuda
