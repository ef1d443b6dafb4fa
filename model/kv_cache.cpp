#include "model/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace dsv2 {
namespace {

constexpr DType kScale = DType::bf16;  // of the scales of int8 rows
constexpr float kQuantisedMax = 127;

/// The first `length` rows of each head, between arrays [., capacity, ...] of two capacities.
void copy_heads(const Tensor& from, Tensor& into, std::int64_t heads, std::int64_t length) {
  const auto bytes = [&](const Tensor& t) { return heads ? t.view().bytes() / heads : 0; };
  const std::int64_t capacity = into.dim(2), row = capacity ? bytes(into) / capacity : 0;
  for (std::int64_t h = 0; h < heads; ++h)
    std::memcpy(static_cast<char*>(into.data()) + h * bytes(into),
                static_cast<const char*>(from.data()) + h * bytes(from), static_cast<std::size_t>(length * row));
}

}  // namespace

std::array<CachePart, 2> cache_parts(const Config& c) {
  if (c.use_mla) return {{{"k_pe", 1, c.qk_rope_head_dim}, {"compressed_kv", 1, c.kv_lora_rank}}};
  return {{{"key", c.num_key_value_heads, c.head_dim()}, {"value", c.num_key_value_heads, c.head_dim()}}};
}

std::int64_t kv_bytes_per_token(const Config& c, DType kv_dtype) {
  std::int64_t bytes = 0;
  for (const CachePart& part : cache_parts(c))
    bytes += part.heads * (part.dim * bits(kv_dtype) / 8 + (kv_dtype == DType::i8 ? bits(kScale) / 8 : 0));
  return c.num_hidden_layers * bytes;
}

void quantise_row(const float* x, std::int64_t dim, std::int8_t* q, bf16_t* s) {
  float largest = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < dim; ++i) {
    finite = finite && std::isfinite(x[i]);
    largest = std::max(largest, std::fabs(x[i]));
  }
  *s = to_bf16(finite ? largest / kQuantisedMax : std::numeric_limits<float>::quiet_NaN());
  const float scale = to_float(*s);
  const bool empty = !(scale >= std::numeric_limits<float>::min());
  if (empty && finite) *s = to_bf16(0);
  const float inverse = empty ? 0 : 1 / scale;
  for (std::int64_t i = 0; i < dim; ++i) q[i] = empty ? 0 : static_cast<std::int8_t>(std::nearbyint(x[i] * inverse));
}

Tensor widen_quantised(const TensorView& rows, const TensorView& scales) {
  const std::int64_t dim = rows.dim(-1);
  Tensor wide(DType::f32, rows.shape);
  const auto q = rows.as<std::int8_t>();
  const auto s = scales.as<bf16_t>();
  const auto to = wide.as<float>();
  for (std::size_t i = 0; i < q.size(); ++i)
    to[i] = to_float(s[i / static_cast<std::size_t>(dim)]) * static_cast<float>(q[i]);
  return wide;
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
  DSV2_CHECK(dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::i8,
             "cache dtype: expected f64, f32, bf16 or int8, found ", name(dtype));
  allocate(config.num_hidden_layers);
}

void HostKvCache::allocate(std::int64_t layers) {
  layers_.resize(static_cast<std::size_t>(layers));
  for (auto& layer : layers_)
    for (std::size_t p = 0; p < 2; ++p) {
      layer[p].rows =
          Tensor(dtype_ == DType::i8 ? DType::s8 : dtype_, {batch_, parts_[p].heads, capacity_, parts_[p].dim});
      if (dtype_ == DType::i8) layer[p].scales = Tensor(kScale, {batch_, parts_[p].heads, capacity_});
    }
}

std::unique_ptr<HostKvCache> HostKvCache::from_legacy(const LegacyCache& legacy, const Config& config, DType dtype) {
  validate_legacy(legacy, config);
  const std::int64_t length = legacy.front().first.dim(2);
  auto cache = std::make_unique<HostKvCache>(config, legacy.front().first.dim(0), length, dtype);
  for (std::size_t i = 0; i < legacy.size(); ++i)
    for (std::size_t p = 0; p < 2; ++p) {
      const TensorView given = (p == 0 ? legacy[i].first : legacy[i].second).view();
      Part& part = cache->layers_[i][p];
      if (dtype != DType::i8) {
        part.rows = convert(given, dtype);
        continue;
      }
      const std::int64_t dim = given.dim(3);
      const std::vector<float> rows = widen<float>(given);
      for (std::int64_t r = 0; r < part.scales.size(); ++r)
        quantise_row(rows.data() + r * dim, dim, part.rows.as<std::int8_t>().data() + r * dim,
                     part.scales.as<bf16_t>().data() + r);
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
  allocate(other.layer_count());
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    for (std::size_t p = 0; p < 2; ++p) {
      const Part& from = other.layers_[i][p];
      Part& into = layers_[i][p];
      copy_heads(from.rows, into.rows, batch_ * parts_[p].heads, length_);
      if (dtype_ == DType::i8) copy_heads(from.scales, into.scales, batch_ * parts_[p].heads, length_);
    }
  }
}

std::int64_t HostKvCache::bytes() const {
  std::int64_t sum = 0;
  for (const auto& layer : layers_)
    for (const Part& part : layer) sum += part.rows.view().bytes() + (part.scales ? part.scales.view().bytes() : 0);
  return sum;
}

LegacyCache HostKvCache::to_legacy() const {
  const HostKvCache exact(*this, Reallocate{length_});
  const DType wide = dtype_ == DType::f64 ? DType::f64 : DType::f32;
  LegacyCache legacy;
  const auto widened = [&](const Part& part) {
    return part.scales ? widen_quantised(part.rows.view(), part.scales.view()) : convert(part.rows.view(), wide);
  };
  for (const auto& layer : exact.layers_) legacy.push_back({widened(layer[0]), widened(layer[1])});
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
