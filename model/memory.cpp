#include "model/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <string>

#include "model/error.h"

namespace dsv2 {

namespace {

namespace fs = std::filesystem;

/// The number behind `key` in a file of lines "key value"; without a key, the file's only number.
std::optional<std::int64_t> number_in(const fs::path& file, std::string_view key = {}) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    std::istringstream rest(line.substr(key.size()));
    double value = 0;  // v1 says 9223372036854771712 for no limit, v2 "max"
    if (rest >> value) return static_cast<std::int64_t>(std::min(value, 9e18));
    return std::nullopt;
  }
  return std::nullopt;
}

struct GroupFiles {
  const char *limit, *usage;
  std::array<std::string_view, 2> droppable;  // in memory.stat
};
constexpr GroupFiles kV1 = {
    "memory.limit_in_bytes", "memory.usage_in_bytes", {"total_inactive_file ", "total_active_file "}};
constexpr GroupFiles kV2 = {"memory.max", "memory.current", {"inactive_file ", "active_file "}};

/// What the group of `folder` leaves; nullopt without a limit.
std::optional<std::int64_t> left_in(const fs::path& folder, const GroupFiles& files) {
  const auto limit = number_in(folder / files.limit), usage = number_in(folder / files.usage);
  if (!limit || !usage) return std::nullopt;
  std::int64_t left = *limit - *usage;
  for (const std::string_view key : files.droppable) left += number_in(folder / "memory.stat", key).value_or(0);
  return std::clamp<std::int64_t>(left, 0, *limit);
}

/// The least that the groups from `group` up to `mount` leave.
std::optional<std::int64_t> left_above(const fs::path& mount, const std::string& group, const GroupFiles& files) {
  std::optional<std::int64_t> least;
  fs::path at = fs::path(group).relative_path();
  while (true) {
    // In a container the path is often the host's, and what is mounted is the group itself.
    if (const auto left = left_in(mount / at, files)) least = std::min(least.value_or(*left), *left);
    if (at.empty()) return least;
    at = at.parent_path();
  }
}

}  // namespace

std::optional<std::int64_t> available_memory_bytes(const fs::path& root) {
  std::optional<std::int64_t> least;
  const auto consider = [&](std::optional<std::int64_t> bytes) {
    if (bytes) least = std::min(least.value_or(*bytes), *bytes);
  };
  if (const auto kib = number_in(root / "proc/meminfo", "MemAvailable:")) consider(*kib * 1024);
  std::ifstream groups(root / "proc/self/cgroup");  // "4:memory:/path" is v1, "0::/path" v2
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = ',' + line.substr(first + 1, second - first - 1) + ',',
                      group = line.substr(second + 1);
    if (controllers.find(",memory,") != std::string::npos)
      consider(left_above(root / "sys/fs/cgroup/memory", group, kV1));
    if (controllers == ",,")
      for (const char* mount : {"sys/fs/cgroup", "sys/fs/cgroup/unified"})
        consider(left_above(root / mount, group, kV2));
  }
  return least;
}

namespace {

void require_within(std::span<const MemoryPart> parts, std::int64_t available, std::string_view what,
                    std::string_view memory) {
  const auto gb = [](std::int64_t n) { return static_cast<double>(n) * 1e-9; };
  std::int64_t sum = 0;
  std::string spelled;
  for (const MemoryPart& p : parts) {
    if (p.bytes == 0) continue;
    sum += p.bytes;
    spelled += concat(spelled.empty() ? "" : " + ", gb(p.bytes), " GB for ", p.what);
  }
  DSV2_CHECK(sum <= available, what, ": ", memory, ": expected at most ", gb(available),
             " GB, as are available, found ", spelled, " = ", gb(sum), " GB");
}

}  // namespace

void require_memory(std::span<const MemoryPart> parts, std::string_view what) {
  if (const auto available = available_memory_bytes()) require_within(parts, *available, what, "memory");
}

void require_device_memory(std::span<const MemoryPart> parts, std::int64_t free, std::string_view what) {
  require_within(parts, free, what, "device memory");
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
