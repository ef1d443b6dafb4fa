// Whether blocks of a launch race in global memory, told without an order between them: for kernels that have no means
// to order their blocks, so that two that touch a cell, one of them writing, do race.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "gpusim/memory.h"
#include "gpusim/sparse_table.h"

namespace gpusim {

/// What the blocks that one host thread ran touched, by cells of 4 bytes. Kept from launch to launch: every block of
/// every launch has a number of its own, and what bears an older number is of nobody.
///
/// A line of 16 cells is one word as long as one block alone touched it, or several that all only read it: mostly. Else
/// it is spread out, a word for each cell's last writer and reader.
class BlockTouches {
 public:
  /// Numbers for `blocks` more blocks: false where they are used up.
  bool start(std::uint64_t blocks);

  /// Block `linear` touches the cells of [offset, offset + bytes), within the arena. True where it meets another's.
  bool touch(std::uint64_t linear, std::uint64_t offset, std::uint64_t bytes, bool writes);

  /// Whether blocks of different host threads met: `a` and `b` are of the same launch.
  static bool meet(const BlockTouches& a, const BlockTouches& b);

 private:
  static constexpr std::uint64_t kLineBytes = 64;
  static constexpr std::uint64_t kPageBytes = 4096;
  static constexpr std::uint32_t kNumbers = 1u << 30;

  enum State : std::uint64_t { kOwned = 0, kOnlyRead = 1, kSpread = 2 };
  /// `number`: of the block, or of the launch (base_) where there are several. `written`, `read`: a bit for each cell.
  struct Line {
    std::uint32_t number : 30;
    std::uint32_t state : 2;
    std::uint16_t written;
    std::uint16_t read;
  };
  struct Cell {
    std::uint32_t writer;
    std::uint32_t reader;  ///< base_: several
  };
  struct Masks {
    std::uint32_t written = 0;
    std::uint32_t read = 0;
  };

  bool touch_line(std::uint32_t number, std::uint64_t line, std::uint32_t cells, bool writes);
  bool touch_spread(std::uint32_t number, std::uint64_t line, std::uint32_t cells, bool writes);
  void spread(std::uint64_t line);
  Masks masks(std::uint64_t line) const;

  SparseTable<Line> lines_{DeviceMemory::kArenaBytes / kLineBytes};
  SparseTable<Cell> cells_{DeviceMemory::kArenaBytes / 4};
  SparseTable<std::uint32_t> page_launches_{DeviceMemory::kArenaBytes / kPageBytes};  ///< base_ of the last one there
  std::vector<std::uint64_t> pages_;                                                  ///< of this launch
  std::uint32_t base_ = 0;  ///< the launch's number; its blocks follow
  std::uint32_t next_ = 1;
};

/// Pages of device memory as they were before a launch wrote to them, with their shadow.
class SavedPages {
 public:
  explicit SavedPages(DeviceMemory& memory) : memory_(memory) {}

  /// Saves what [address, address + bytes) lies in, before it is written. Any host thread.
  void save(std::uint64_t address, std::uint64_t bytes) {
    const std::uint64_t last = (address + bytes - 1 - memory_.base()) / kPageBytes;
    for (std::uint64_t page = (address - memory_.base()) / kPageBytes; page <= last; ++page) {
      if (__atomic_load_n(saved_.data() + page, __ATOMIC_ACQUIRE) == 0) save_page(page);
    }
  }
  void restore();

 private:
  static constexpr std::uint64_t kPageBytes = 4096;
  struct Page {
    std::uint64_t number = 0;
    std::vector<std::byte> content;
    std::vector<std::uint8_t> shadow;
  };
  void save_page(std::uint64_t page);

  DeviceMemory& memory_;
  SparseTable<std::uint8_t> saved_{DeviceMemory::kArenaBytes / kPageBytes};
  std::vector<Page> pages_;
  std::mutex mutex_;
};

}  // namespace gpusim
