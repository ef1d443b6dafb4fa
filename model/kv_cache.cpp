#include "model/kv_cache.h"

#include <algorithm>
#include <utility>

namespace dsv2 {

std::array<CachePart, 2> cache_parts(const Config& c) {
  if (c.use_mla) return {{{"k_pe", 1, c.qk_rope_head_dim}, {"compressed_kv", 1, c.kv_lora_rank}}};
  return {{{"key", c.num_key_value_heads, c.head_dim()}, {"value", c.num_key_value_heads, c.head_dim()}}};
}

std::int64_t kv_bytes_per_token(const Config& c, DType kv_dtype) {
  std::int64_t elements = 0;
  for (const CachePart& part : cache_parts(c)) elements += part.heads * part.dim;
  return c.num_hidden_layers * elements * bits(kv_dtype) / 8;
}

void validate_legacy(const LegacyCache& cache, const Config& c) {
  const auto parts = cache_parts(c);
  DSV2_CHECK(static_cast<std::int64_t>(cache.size()) == c.num_hidden_layers, "past_key_values: expected ",
             c.num_hidden_layers, " layers, found ", cache.size());
  const auto& first = cache.front().first.shape();
  for (std::size_t i = 0; i < cache.size(); ++i) {
    for (std::size_t p = 0; p < 2; ++p) {
      const Tensor& t = p == 0 ? cache[i].first : cache[i].second;
      const auto where = concat("past_key_values layer ", i, " ", parts[p].name);
      DSV2_CHECK(t.dtype() == DType::f32 || t.dtype() == DType::f64, where, ": expected dtype f32 or f64, found ",
                 name(t.dtype()));
      DSV2_CHECK(first.size() == 4 && t.shape().size() == 4, where, ": expected shape [B, ", parts[p].heads, ", T, ",
                 parts[p].dim, "], found ", to_string(t.shape()));
      const Shape expected = {first[0], parts[p].heads, first[2], parts[p].dim};
      DSV2_CHECK(t.shape() == expected, where, ": expected shape ", to_string(expected), ", found ",
                 to_string(t.shape()));
    }
  }
}

HostKvCache::HostKvCache(const Config& config, std::int64_t batch, std::int64_t capacity, DType dtype)
    : parts_(cache_parts(config)), batch_(batch), capacity_(capacity), dtype_(dtype) {
  DSV2_CHECK(batch >= 1, "cache batch: expected at least 1, found ", batch);
  DSV2_CHECK(capacity >= 0, "cache capacity: expected at least 0, found ", capacity);
  layers_.resize(static_cast<std::size_t>(config.num_hidden_layers));
  for (auto& layer : layers_)
    for (std::size_t p = 0; p < 2; ++p) layer[p] = Tensor(dtype, {batch, parts_[p].heads, capacity, parts_[p].dim});
}

std::unique_ptr<HostKvCache> HostKvCache::from_legacy(const LegacyCache& legacy, const Config& config, DType dtype) {
  validate_legacy(legacy, config);
  const std::int64_t length = legacy.front().first.dim(2);
  auto cache = std::make_unique<HostKvCache>(config, legacy.front().first.dim(0), length, dtype);
  for (std::size_t i = 0; i < legacy.size(); ++i) {
    cache->layers_[i][0] = convert(legacy[i].first.view(), dtype);
    cache->layers_[i][1] = convert(legacy[i].second.view(), dtype);
  }
  cache->length_ = length;
  return cache;
}

void HostKvCache::truncate(std::int64_t length) {
  DSV2_CHECK(length >= 0 && length <= length_, "cache truncate: expected a length of 0..", length_, ", found ", length);
  length_ = length;
}

std::unique_ptr<KvCache> HostKvCache::clone() const {
  auto copy = std::unique_ptr<HostKvCache>(new HostKvCache(*this, Reallocate{capacity_}));
  return copy;
}

HostKvCache::HostKvCache(const HostKvCache& other, Reallocate to)
    : parts_(other.parts_), batch_(other.batch_), capacity_(to.capacity), length_(other.length_), dtype_(other.dtype_) {
  layers_.resize(other.layers_.size());
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    for (std::size_t p = 0; p < 2; ++p) {
      layers_[i][p] = Tensor(dtype_, {batch_, parts_[p].heads, capacity_, parts_[p].dim});
      const std::int64_t row = parts_[p].dim * bits(dtype_) / 8;
      const auto* from = static_cast<const char*>(other.layers_[i][p].data());
      auto* into = static_cast<char*>(layers_[i][p].data());
      for (std::int64_t h = 0; h < batch_ * parts_[p].heads; ++h)
        std::memcpy(into + h * capacity_ * row, from + h * other.capacity_ * row,
                    static_cast<std::size_t>(length_ * row));
    }
  }
}

std::int64_t HostKvCache::bytes() const {
  std::int64_t sum = 0;
  for (const auto& layer : layers_)
    for (const Tensor& part : layer) sum += part.view().bytes();
  return sum;
}

LegacyCache HostKvCache::to_legacy() const {
  const HostKvCache exact(*this, Reallocate{length_});
  const DType wide = dtype_ == DType::f64 ? DType::f64 : DType::f32;
  LegacyCache legacy;
  for (const auto& layer : exact.layers_)
    legacy.push_back({convert(layer[0].view(), wide), convert(layer[1].view(), wide)});
  return legacy;
}

void HostKvCache::reserve(std::int64_t tokens) {
  if (tokens <= capacity_) return;
  HostKvCache larger(*this, Reallocate{std::max(tokens, capacity_ + capacity_ / 2)});
  layers_ = std::move(larger.layers_);
  capacity_ = larger.capacity_;
}

void HostKvCache::set_length(std::int64_t length) {
  DSV2_CHECK(length >= 0 && length <= capacity_, "cache length: expected 0..", capacity_, ", found ", length);
  length_ = length;
}

}  // namespace dsv2
