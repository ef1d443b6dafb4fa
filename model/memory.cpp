#include "model/memory.h"

#include <sys/mman.h>

#include <fstream>
#include <string>

#include "model/error.h"

namespace dsv2 {

std::optional<std::int64_t> available_memory_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  std::int64_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    meminfo.ignore(64, '\n');
  }
  return std::nullopt;
}

void require_memory(std::int64_t bytes, std::string_view what) {
  const auto available = available_memory_bytes();
  const auto gb = [](std::int64_t n) { return static_cast<double>(n) * 1e-9; };
  DSV2_CHECK(!available || bytes <= *available, what, ": needs ", gb(bytes), " GB of memory, found ",
             gb(available.value_or(0)), " GB available");
}

std::shared_ptr<void> allocate_pages(std::int64_t bytes, std::string_view what) {
  if (bytes == 0) return nullptr;
  require_memory(bytes, what);
  const auto size = static_cast<std::size_t>(bytes);
  void* const p = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  DSV2_CHECK(p != MAP_FAILED, what, ": cannot allocate ", bytes, " bytes");
#ifdef MADV_HUGEPAGE
  ::madvise(p, size, MADV_HUGEPAGE);  // a hint: fewer page faults and TLB misses
#endif
  return {p, [size](void* q) { ::munmap(q, size); }};
}

}  // namespace dsv2
