// Global memory of the simulated device: one arena of address space, with what is known of every byte beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

namespace gpusim {

/// What the shadow says of one byte of device memory.
enum class Byte : std::uint8_t {
  unallocated = 0,    ///< never handed out, or a gap between allocations
  freed = 1,          ///< was part of an allocation that has been freed
  uninitialised = 2,  ///< allocated, never written
  initialised = 3,
};

/// A live or freed piece of device memory. Addresses are host addresses: host code that holds one may read it
/// (managed memory), and a copy is a memcpy.
struct Allocation {
  std::uint64_t address = 0;
  std::size_t bytes = 0;
  std::string what;  ///< "cudaMalloc", "managed", "__device__ NAME": what a message calls it
  bool alive = true;
  bool counted_as_leak = true;  ///< false for module variables
  bool on_heap = false;         ///< by a kernel's malloc
};

/// The arena. `kArenaBytes` of address space are reserved once (no memory until it is touched); the shadow, one Byte
/// for each byte, lies `shadow()` away, so that a lookup is an add. Beside it lies one byte for each line of kLine
/// bytes: what all of its bytes have in common, so that a warp's access mostly looks at two or three bytes. Allocation
/// and freeing are thread-safe; reads and writes of content are the callers' to order. A freed range is not handed out
/// again until the arena is exhausted, so that use after free is seen.
class DeviceMemory {
 public:
  static constexpr std::size_t kArenaBytes = std::size_t{1} << 38;
  static constexpr std::size_t kAlignment = 256;  ///< of every allocation, as cudaMalloc gives
  static constexpr std::size_t kGap = 256;        ///< unallocated bytes between neighbours, at least
  static constexpr std::size_t kLine = 64;

  /// `capacity_bytes`: what the device model has; more is cudaErrorMemoryAllocation. `shadow`: whether bytes are
  /// tracked at all (checks of global memory on); without it all are taken as initialised within the arena.
  DeviceMemory(std::size_t capacity_bytes, bool shadow);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// Address, or 0 when it does not fit. Fresh memory holds the byte 0xff where bytes are tracked.
  std::uint64_t allocate(std::size_t bytes, std::string what, Byte initial = Byte::uninitialised);
  /// The same for a module's variable: written already, and no leak.
  std::uint64_t allocate_variable(std::size_t bytes, const std::string& name);
  /// A kernel's malloc, within the `limit` of what such calls hold together (cudaLimitMallocHeapSize); 0 for none.
  std::uint64_t allocate_on_heap(std::size_t bytes, std::size_t limit);
  /// False where `address` is nothing that allocate_on_heap gave and that is still alive.
  bool release_on_heap(std::uint64_t address);
  /// False where `address` begins no live allocation.
  bool release(std::uint64_t address);

  /// The allocation, live or freed, that holds `address`; else the nearest one before it, for messages.
  std::optional<Allocation> find(std::uint64_t address) const;
  std::map<std::uint64_t, Allocation> live() const;
  std::size_t used_bytes() const;
  std::size_t capacity_bytes() const { return capacity_; }

  /// Nothing has been handed out at or beyond this address.
  std::uint64_t end_of_use() const;

  bool contains(std::uint64_t address) const { return address - base_ < kArenaBytes; }
  std::uint64_t base() const { return base_; }
  bool has_shadow() const { return shadow_ != nullptr; }
  /// The Byte of `address`, which must lie in the arena; null without a shadow.
  std::uint8_t* shadow(std::uint64_t address) const { return shadow_ + (address - base_); }

  /// The bits that the states of all bytes of `address`'s line have, or fewer of them: 0 where nothing is known.
  std::uint8_t line_state(std::uint64_t address) const {
    return __atomic_load_n(lines_ + (address - base_) / kLine, __ATOMIC_RELAXED);
  }
  /// A kernel has written these bytes. Host threads may say so at once, of neighbours too.
  void initialise(std::uint64_t address, std::size_t bytes);
  /// The shadow of these bytes was written: looks at their lines again.
  void refresh_lines(std::uint64_t address, std::size_t bytes);

  /// Marks a range: host copies, memset, host writes of managed memory.
  void mark(std::uint64_t address, std::size_t bytes, Byte state);
  /// A copy within the device carries the state of each byte along.
  void copy_marks(std::uint64_t to, std::uint64_t from, std::size_t bytes);

 private:
  std::uint64_t base_ = 0;
  std::uint8_t* shadow_ = nullptr;
  std::uint8_t* lines_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  std::size_t heap_used_ = 0;
  std::uint64_t next_ = 0;
  std::map<std::uint64_t, Allocation> allocations_;
  mutable std::mutex mutex_;
};

}  // namespace gpusim
