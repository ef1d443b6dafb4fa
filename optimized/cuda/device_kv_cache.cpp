#include "optimized/cuda/device_kv_cache.h"

#include <algorithm>
#include <utility>

namespace dsv2::cuda {

DeviceKvCache::DeviceKvCache(const Config& config, std::int64_t batch, std::int64_t capacity, DType dtype,
                             const Stream& stream)
    : config_(config),
      parts_(cache_parts(config)),
      layers_(config.num_hidden_layers),
      batch_(batch),
      capacity_(capacity),
      dtype_(dtype),
      stream_(stream) {
  DSV2_CHECK(batch >= 1, "cache: batch: expected 1 or more, found ", batch);
  DSV2_CHECK(capacity >= 0, "cache: capacity: expected 0 or more, found ", capacity);
  memory_.get(std::max<std::int64_t>(layers_ * layer_bytes(), 1));
}

std::int64_t DeviceKvCache::layer_bytes() const {
  std::int64_t elements = 0;
  for (const CachePart& p : parts_) elements += batch_ * p.heads * capacity_ * p.dim;
  return elements * bits(dtype_) / 8;
}

std::byte* DeviceKvCache::begin(std::int64_t layer, int part) const {
  const std::int64_t before = part == 0 ? 0 : batch_ * parts_[0].heads * capacity_ * parts_[0].dim;
  return memory_.data() + layer * layer_bytes() + before * bits(dtype_) / 8;
}

CachedRows DeviceKvCache::rows(std::int64_t layer, int part) const {
  const CachePart& p = parts_[static_cast<std::size_t>(part)];
  return {.data = begin(layer, part),
          .storage = dtype_ == DType::bf16 ? Storage::bf16 : Storage::f32,
          .batch_stride = p.heads * capacity_ * p.dim,
          .head_stride = p.heads == 1 ? 0 : capacity_ * p.dim,
          .row_stride = static_cast<int>(p.dim)};
}

void DeviceKvCache::truncate(std::int64_t length) {
  DSV2_CHECK(length >= 0 && length <= length_, "cache: truncate: expected 0..", length_, ", found ", length);
  length_ = length;
}

void DeviceKvCache::copy_into(DeviceKvCache& other) const {
  other.length_ = length_;
  if (length_ == 0) return;
  for (std::int64_t layer = 0; layer < layers_; ++layer) {
    for (int part = 0; part < 2; ++part) {
      const CachePart& p = parts_[static_cast<std::size_t>(part)];
      const auto row = static_cast<std::size_t>(p.dim * bits(dtype_) / 8);
      DSV2_CUDA(cudaMemcpy2DAsync(other.begin(layer, part), row * static_cast<std::size_t>(other.capacity_),
                                  begin(layer, part), row * static_cast<std::size_t>(capacity_),
                                  row * static_cast<std::size_t>(length_), static_cast<std::size_t>(batch_ * p.heads),
                                  cudaMemcpyDeviceToDevice, stream_));
    }
  }
  stream_.synchronise();  // the old memory may go
}

void DeviceKvCache::reserve(std::int64_t tokens) {
  if (tokens <= capacity_) return;
  DeviceKvCache larger(config_, batch_, std::max(tokens, capacity_ + capacity_ / 2), dtype_, stream_);
  copy_into(larger);
  std::swap(memory_, larger.memory_);
  capacity_ = larger.capacity_;
}

std::unique_ptr<KvCache> DeviceKvCache::clone() const {
  auto copy = std::make_unique<DeviceKvCache>(config_, batch_, capacity_, dtype_, stream_);
  copy_into(*copy);
  return copy;
}

LegacyCache DeviceKvCache::to_legacy() const {
  LegacyCache legacy;
  for (std::int64_t layer = 0; layer < layers_; ++layer) {
    LegacyLayer& to = legacy.emplace_back();
    for (int part = 0; part < 2; ++part) {
      const CachePart& p = parts_[static_cast<std::size_t>(part)];
      Tensor rows(dtype_, {batch_, p.heads, length_, p.dim});
      const auto row = static_cast<std::size_t>(p.dim * bits(dtype_) / 8);
      const std::size_t width = row * static_cast<std::size_t>(length_);
      if (width > 0) {
        DSV2_CUDA(cudaMemcpy2DAsync(rows.data(), width, begin(layer, part), row * static_cast<std::size_t>(capacity_),
                                    width, static_cast<std::size_t>(batch_ * p.heads), cudaMemcpyDeviceToHost,
                                    stream_));
        stream_.synchronise();
      }
      (part == 0 ? to.first : to.second) = convert(rows.view(), DType::f32);
    }
  }
  return legacy;
}

std::unique_ptr<DeviceKvCache> DeviceKvCache::from_legacy(const LegacyCache& legacy, const Config& config, DType dtype,
                                                          const Stream& stream) {
  validate_legacy(legacy, config);
  const Tensor& any = legacy.front().first;
  auto cache = std::make_unique<DeviceKvCache>(config, any.dim(0), any.dim(2), dtype, stream);
  for (std::size_t layer = 0; layer < legacy.size(); ++layer) {
    for (int part = 0; part < 2; ++part) {
      const Tensor rows = convert((part == 0 ? legacy[layer].first : legacy[layer].second).view(), dtype);
      if (rows.size() > 0)
        stream.upload(cache->begin(static_cast<std::int64_t>(layer), part), static_cast<const std::byte*>(rows.data()),
                      rows.view().bytes());
    }
  }
  stream.synchronise();
  cache->length_ = any.dim(2);
  return cache;
}

}  // namespace dsv2::cuda
