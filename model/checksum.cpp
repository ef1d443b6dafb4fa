#include "model/checksum.h"

#include <algorithm>
#include <cstdio>

#define XXH_INLINE_ALL  // the header is all that is needed, so nobody who links dsv2 has to link xxHash
#include <xxhash.h>

namespace dsv2 {
namespace {

constexpr std::size_t kChunk = std::size_t{1} << 20;

}  // namespace

struct Checksum::Tail {
  XXH3_state_t state;
  std::size_t bytes = 0;
};

Checksum::Checksum() : tail_(std::make_unique<Tail>()) { XXH3_64bits_reset(&tail_->state); }
Checksum::~Checksum() = default;

void Checksum::update(std::span<const std::byte> bytes) {
  while (!bytes.empty() && (tail_->bytes > 0 || bytes.size() < kChunk)) {
    const std::size_t n = std::min(kChunk - tail_->bytes, bytes.size());
    XXH3_64bits_update(&tail_->state, bytes.data(), n);
    tail_->bytes += n;
    bytes = bytes.subspan(n);
    if (tail_->bytes < kChunk) continue;
    hashes_.push_back(XXH3_64bits_digest(&tail_->state));
    XXH3_64bits_reset(&tail_->state);
    tail_->bytes = 0;
  }
  const std::size_t whole = bytes.size() / kChunk, before = hashes_.size();
  hashes_.resize(before + whole);
#pragma omp parallel for schedule(dynamic) if (whole > 1)
  for (std::size_t i = 0; i < whole; ++i) hashes_[before + i] = XXH3_64bits(bytes.data() + i * kChunk, kChunk);
  if (bytes.size() % kChunk > 0) update(bytes.subspan(whole * kChunk));
}

std::uint64_t Checksum::digest() const {
  std::vector<std::uint64_t> all = hashes_;
  if (tail_->bytes > 0) all.push_back(XXH3_64bits_digest(&tail_->state));
  return XXH3_64bits(all.data(), all.size() * sizeof all.front());  // little-endian, as safetensors are
}

std::string checksum_text(std::uint64_t digest) {
  char text[32];
  std::snprintf(text, sizeof text, "xxh3-64:%016llx", static_cast<unsigned long long>(digest));
  return text;
}

}  // namespace dsv2
