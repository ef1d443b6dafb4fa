// Memory in the gigabytes: asked for before it is taken.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

namespace dsv2 {

/// MemAvailable of /proc/meminfo: what can be allocated without swapping. nullopt where the system does not say.
std::optional<std::int64_t> available_memory_bytes();

/// Throws Error naming `what`, the bytes needed and the bytes available when they do not fit.
void require_memory(std::int64_t bytes, std::string_view what);

/// Zero-filled pages, huge ones where the system gives them; after require_memory(). Throws Error as that does.
std::shared_ptr<void> allocate_pages(std::int64_t bytes, std::string_view what);

}  // namespace dsv2
