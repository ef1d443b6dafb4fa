#include "harness/memory_needs.h"

#include <array>

#include "model/cost.h"
#include "model/memory.h"

namespace dsv2::harness {

Json MemoryNeeds::to_json() const {
  return {{"weights", weights}, {"copies", copies}, {"kv", kv}, {"buffers", buffers}, {"total", total()}};
}

MemoryNeeds memory_needs(const Config& config, const Backend& backend, DType stored, const Options& options,
                         std::int64_t batch, std::int64_t context, std::int64_t tokens) {
  const Cost c = cost(config, {.batch = batch, .context = context, .dtype = stored, .kv_dtype = options.kv_dtype});
  MemoryNeeds needs;
  needs.weights = static_cast<std::int64_t>(c.weight_bytes);
  needs.copies = backend.copied_bytes ? backend.copied_bytes(config, stored, options) : 0;
  needs.kv = static_cast<std::int64_t>(c.kv_bytes);
  if (backend.free_device_bytes) {
    needs.device_free = backend.free_device_bytes();
    needs.device_is_host = backend.simulated;
  }
  if (backend.buffer_bytes) needs.buffers = backend.buffer_bytes(config, options, batch, tokens, context);
  return needs;
}

void require_memory(const MemoryNeeds& needs, std::string_view model) {
  if (needs.device_free) {
    const std::array parts = {MemoryPart{"weights", needs.copies}, MemoryPart{"the KV cache", needs.kv},
                              MemoryPart{"buffers", needs.buffers}};
    require_device_memory(parts, *needs.device_free, model);
  }
  const bool elsewhere = needs.device_free && !needs.device_is_host;
  const auto here = [&](std::int64_t bytes) { return elsewhere ? 0 : bytes; };
  const std::array parts = {
      MemoryPart{"weights", needs.weights},
      MemoryPart{needs.device_free ? "the device's copy" : "packed copies of them", here(needs.copies)},
      MemoryPart{"the KV cache", here(needs.kv)}, MemoryPart{"buffers", here(needs.buffers)},
      MemoryPart{"checking it", needs.checking}};
  dsv2::require_memory(parts, model);
}

}  // namespace dsv2::harness
