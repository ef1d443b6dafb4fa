// A checksum of data in the gigabytes: XXH3-64 of every 1 MiB, in parallel, then XXH3-64 of those hashes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace dsv2 {

/// Of bytes that arrive piece by piece; how they were cut into pieces changes nothing.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;

  void update(std::span<const std::byte> bytes);  ///< whole MiB in parallel
  std::uint64_t digest() const;                   ///< of all bytes so far

 private:
  struct Tail;  // the last MiB as far as it came
  std::unique_ptr<Tail> tail_;
  std::vector<std::uint64_t> hashes_;  // of the MiB before it
};

/// "xxh3-64:" and 16 hexadecimal digits, as files carry it.
std::string checksum_text(std::uint64_t digest);

}  // namespace dsv2
