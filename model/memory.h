// Memory in the gigabytes: asked for before it is taken.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace dsv2 {

/// What can be allocated without swapping: MemAvailable of /proc/meminfo, or less where a control group (v1 or v2) of
/// this process, or one above it, leaves less of its limit; file pages that it could drop count as left. nullopt where
/// the system does not say. `root` is where proc/ and sys/ are.
std::optional<std::int64_t> available_memory_bytes(const std::filesystem::path& root = "/");

/// One of several things that memory is needed for.
struct MemoryPart {
  std::string what;
  std::int64_t bytes;
};
/// Throws Error naming `what`, the memory available and the sum that does not fit, part by part.
void require_memory(std::span<const MemoryPart> parts, std::string_view what);
/// The same of a device that has `free` bytes.
void require_device_memory(std::span<const MemoryPart> parts, std::int64_t free, std::string_view what);

/// Throws Error naming `what`, the bytes needed and the bytes available when they do not fit.
void require_memory(std::int64_t bytes, std::string_view what);

/// Zero-filled pages, huge ones where the system gives them; after require_memory(). Throws Error as that does.
std::shared_ptr<void> allocate_pages(std::int64_t bytes, std::string_view what);

}  // namespace dsv2
