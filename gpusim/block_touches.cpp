#include "gpusim/block_touches.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace gpusim {

bool BlockTouches::start(std::uint64_t blocks) {
  if (blocks >= kNumbers || next_ + blocks + 1 >= kNumbers) return false;
  base_ = next_;
  next_ += static_cast<std::uint32_t>(blocks) + 1;
  pages_.clear();
  return true;
}

bool BlockTouches::touch(std::uint64_t linear, std::uint64_t offset, std::uint64_t bytes, bool writes) {
  const std::uint32_t number = base_ + 1 + static_cast<std::uint32_t>(linear);
  const std::uint64_t end = offset + bytes;
  for (std::uint64_t page = offset / kPageBytes; page <= (end - 1) / kPageBytes; ++page) {
    std::uint32_t& launch = page_launches_.data()[page];
    if (launch == base_) continue;
    launch = base_;
    pages_.push_back(page);
  }
  bool meets = false;
  for (std::uint64_t at = offset; at < end;) {
    const std::uint64_t line = at / kLineBytes;
    const std::uint64_t next = std::min(end, (line + 1) * kLineBytes);
    const std::uint64_t first = at % kLineBytes / 4;
    const std::uint64_t count = (next - at + 3) / 4;
    meets |= touch_line(number, line, static_cast<std::uint32_t>(((1u << count) - 1) << first), writes);
    at = next;
  }
  return meets;
}

bool BlockTouches::touch_line(std::uint32_t number, std::uint64_t at, std::uint32_t cells, bool writes) {
  Line& line = lines_.data()[at];
  const auto mask = static_cast<std::uint16_t>(cells);
  if (line.number < base_) line = {.number = number, .state = kOwned, .written = 0, .read = 0};
  if (line.number == number) {
    (writes ? line.written : line.read) |= mask;
    return false;
  }
  if (line.state == kSpread) return touch_spread(number, at, cells, writes);
  if (writes) {
    if (((line.written | line.read) & mask) != 0) return true;
  } else {
    if ((line.written & mask) != 0) return true;
    if (line.written == 0) {
      line.number = base_;
      line.state = kOnlyRead;
      line.read |= mask;
      return false;
    }
  }
  spread(at);
  return touch_spread(number, at, cells, writes);
}

void BlockTouches::spread(std::uint64_t at) {
  Line& line = lines_.data()[at];
  Cell* const cells = cells_.data() + at * (kLineBytes / 4);
  for (std::uint32_t i = 0; i < kLineBytes / 4; ++i) {
    cells[i].writer = (line.written >> i & 1) != 0 ? line.number : 0;
    cells[i].reader = (line.read >> i & 1) != 0 ? line.number : 0;
  }
  line.number = base_;
  line.state = kSpread;
}

bool BlockTouches::touch_spread(std::uint32_t number, std::uint64_t at, std::uint32_t cells, bool writes) {
  bool meets = false;
  for (; cells != 0; cells &= cells - 1) {
    Cell& cell = cells_.data()[at * (kLineBytes / 4) + static_cast<std::uint64_t>(std::countr_zero(cells))];
    meets |= cell.writer >= base_ && cell.writer != number;
    if (writes) {
      meets |= cell.reader >= base_ && cell.reader != number;
      cell.writer = number;
    } else {
      cell.reader = cell.reader < base_ || cell.reader == number ? number : base_;
    }
  }
  return meets;
}

BlockTouches::Masks BlockTouches::masks(std::uint64_t at) const {
  const Line& line = lines_.data()[at];
  if (line.number < base_) return {};
  if (line.state != kSpread) return {line.written, line.read};
  Masks masks;
  for (std::uint32_t i = 0; i < kLineBytes / 4; ++i) {
    const Cell& cell = cells_.data()[at * (kLineBytes / 4) + i];
    masks.written |= static_cast<std::uint32_t>(cell.writer >= base_) << i;
    masks.read |= static_cast<std::uint32_t>(cell.reader >= base_) << i;
  }
  return masks;
}

bool BlockTouches::meet(const BlockTouches& a, const BlockTouches& b) {
  for (const std::uint64_t page : a.pages_) {
    if (b.page_launches_.data()[page] != b.base_) continue;
    const std::uint64_t first = page * (kPageBytes / kLineBytes);
    for (std::uint64_t line = first; line < first + kPageBytes / kLineBytes; ++line) {
      const Masks of_a = a.masks(line);
      const Masks of_b = b.masks(line);
      if (((of_a.written & (of_b.written | of_b.read)) | (of_a.read & of_b.written)) != 0) return true;
    }
  }
  return false;
}

void SavedPages::save_page(std::uint64_t page) {
  const std::lock_guard lock(mutex_);
  std::uint8_t& saved = saved_.data()[page];
  if (saved != 0) return;
  const std::uint64_t address = memory_.base() + page * kPageBytes;
  Page copy;
  copy.number = page;
  copy.content.resize(kPageBytes);
  std::memcpy(copy.content.data(), reinterpret_cast<const void*>(address), kPageBytes);
  if (memory_.has_shadow()) copy.shadow.assign(memory_.shadow(address), memory_.shadow(address) + kPageBytes);
  pages_.push_back(std::move(copy));
  __atomic_store_n(&saved, std::uint8_t{1}, __ATOMIC_RELEASE);
}

void SavedPages::restore() {
  for (const Page& page : pages_) {
    const std::uint64_t address = memory_.base() + page.number * kPageBytes;
    std::memcpy(reinterpret_cast<void*>(address), page.content.data(), kPageBytes);
    if (page.shadow.empty()) continue;
    std::memcpy(memory_.shadow(address), page.shadow.data(), kPageBytes);
    memory_.refresh_lines(address, kPageBytes);
  }
  pages_.clear();
  saved_.clear();
}

}  // namespace gpusim
