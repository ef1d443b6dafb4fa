#include "gpusim/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "model/error.h"

namespace gpusim {
namespace {

std::size_t round_up(std::size_t value, std::size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Address space without memory behind it: pages come when they are touched, zeroed.
std::byte* reserve(std::size_t bytes, const char* what) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  DSV2_CHECK(at != MAP_FAILED, "gpusim: cannot reserve ", bytes >> 30, " GiB of address space for the ", what);
  return static_cast<std::byte*>(at);
}

/// Gives the whole pages within [address, address + bytes) back to the system; they read as zeros afterwards.
void drop_pages(std::uint64_t address, std::size_t bytes) {
  constexpr std::uint64_t kPage = 4096;
  const std::uint64_t begin = round_up(address, kPage);
  const std::uint64_t end = (address + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace

DeviceMemory::DeviceMemory(std::size_t capacity_bytes, bool shadow) : capacity_(capacity_bytes) {
  base_ = reinterpret_cast<std::uint64_t>(reserve(kArenaBytes, "arena"));
  if (shadow) {
    try {
      shadow_ = reinterpret_cast<std::uint8_t*>(reserve(kArenaBytes, "shadow"));
      lines_ = reinterpret_cast<std::uint8_t*>(reserve(kArenaBytes / kLine, "shadow"));
    } catch (...) {
      if (shadow_ != nullptr) munmap(shadow_, kArenaBytes);
      munmap(reinterpret_cast<void*>(base_), kArenaBytes);
      throw;
    }
  }
  next_ = base_ + kGap;  // an access just before the first allocation is out of bounds too
}

DeviceMemory::~DeviceMemory() {
  munmap(reinterpret_cast<void*>(base_), kArenaBytes);
  if (shadow_ != nullptr) munmap(shadow_, kArenaBytes);
  if (lines_ != nullptr) munmap(lines_, kArenaBytes / kLine);
}

std::uint64_t DeviceMemory::allocate(std::size_t bytes, std::string what, Byte initial) {
  const std::lock_guard lock(mutex_);
  if (bytes > capacity_ - used_) return 0;
  const std::size_t room = round_up(std::max<std::size_t>(bytes, 1), kAlignment) + kGap;
  const std::uint64_t end = base_ + kArenaBytes;
  std::uint64_t at = next_;
  if (room > end - at) {
    // The arena has been handed out once: forget what was freed and take the first hole between live allocations.
    std::erase_if(allocations_, [](const auto& entry) { return !entry.second.alive; });
    at = base_ + kGap;
    for (const auto& [address, allocation] : allocations_) {
      if (address >= at + room) break;
      at = address + round_up(std::max<std::size_t>(allocation.bytes, 1), kAlignment) + kGap;
    }
    if (at > end || room > end - at) return 0;
  }
  next_ = std::max(next_, at + room);
  used_ += bytes;
  allocations_[at] = Allocation{.address = at, .bytes = bytes, .what = std::move(what)};
  if (shadow_ != nullptr && bytes > 0) {
    std::memset(reinterpret_cast<void*>(at), 0xff, bytes);
    mark(at, bytes, initial);
  }
  return at;
}

std::uint64_t DeviceMemory::allocate_variable(std::size_t bytes, const std::string& name) {
  const std::uint64_t address = allocate(bytes, "__device__ " + name, Byte::initialised);
  const std::lock_guard lock(mutex_);
  if (address != 0) allocations_[address].counted_as_leak = false;
  return address;
}

std::uint64_t DeviceMemory::allocate_on_heap(std::size_t bytes, std::size_t limit) {
  {
    const std::lock_guard lock(mutex_);
    if (bytes == 0 || bytes > limit - std::min(limit, heap_used_)) return 0;
  }
  const std::uint64_t address = allocate(bytes, "the device's malloc");
  const std::lock_guard lock(mutex_);
  if (address == 0) return 0;
  allocations_[address].on_heap = true;
  heap_used_ += bytes;
  return address;
}

bool DeviceMemory::release_on_heap(std::uint64_t address) {
  std::size_t bytes = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = allocations_.find(address);
    if (found == allocations_.end() || !found->second.alive || !found->second.on_heap) return false;
    bytes = found->second.bytes;
    heap_used_ -= bytes;
  }
  return release(address);
}

std::uint64_t DeviceMemory::end_of_use() const {
  const std::lock_guard lock(mutex_);
  return next_;
}

bool DeviceMemory::release(std::uint64_t address) {
  const std::lock_guard lock(mutex_);
  const auto found = allocations_.find(address);
  if (found == allocations_.end() || !found->second.alive) return false;
  Allocation& allocation = found->second;
  allocation.alive = false;
  used_ -= allocation.bytes;
  drop_pages(address, allocation.bytes);
  mark(address, allocation.bytes, Byte::freed);
  return true;
}

std::optional<Allocation> DeviceMemory::find(std::uint64_t address) const {
  const std::lock_guard lock(mutex_);
  auto next = allocations_.upper_bound(address);
  if (next == allocations_.begin()) return std::nullopt;
  return std::prev(next)->second;
}

std::map<std::uint64_t, Allocation> DeviceMemory::live() const {
  const std::lock_guard lock(mutex_);
  std::map<std::uint64_t, Allocation> result;
  for (const auto& entry : allocations_) {
    if (entry.second.alive) result.insert(entry);
  }
  return result;
}

std::size_t DeviceMemory::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

void DeviceMemory::initialise(std::uint64_t address, std::size_t bytes) {
  std::uint8_t* const states = shadow(address);
  for (std::size_t i = 0; i < bytes; ++i)
    __atomic_store_n(states + i, static_cast<std::uint8_t>(Byte::initialised), __ATOMIC_RELAXED);
  refresh_lines(address, bytes);
}

void DeviceMemory::refresh_lines(std::uint64_t address, std::size_t bytes) {
  const std::uint64_t last = (address + bytes - 1 - base_) / kLine;
  for (std::uint64_t at = (address - base_) / kLine; at <= last; ++at) {
    std::uint64_t common = ~std::uint64_t{0};
    for (std::size_t i = 0; i < kLine; i += sizeof common) {
      common &= __atomic_load_n(reinterpret_cast<const std::uint64_t*>(shadow_ + at * kLine + i), __ATOMIC_RELAXED);
    }
    common &= common >> 32;
    common &= common >> 16;
    common &= common >> 8;
    __atomic_store_n(lines_ + at, static_cast<std::uint8_t>(common), __ATOMIC_RELAXED);
  }
}

void DeviceMemory::mark(std::uint64_t address, std::size_t bytes, Byte state) {
  if (shadow_ == nullptr || bytes == 0) return;
  std::memset(shadow(address), static_cast<int>(state), bytes);
  const std::uint64_t begin = round_up(address, kLine);
  const std::uint64_t end = (address + bytes) / kLine * kLine;
  if (begin < end) std::memset(lines_ + (begin - base_) / kLine, static_cast<int>(state), (end - begin) / kLine);
  refresh_lines(address, 1);
  refresh_lines(address + bytes - 1, 1);
}

void DeviceMemory::copy_marks(std::uint64_t to, std::uint64_t from, std::size_t bytes) {
  if (shadow_ == nullptr || bytes == 0) return;
  std::memmove(shadow(to), shadow(from), bytes);
  refresh_lines(to, bytes);
}

}  // namespace gpusim
