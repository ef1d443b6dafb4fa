// What running a model takes, added up before anything is allocated.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "harness/json.h"
#include "model/config.h"
#include "model/decoder.h"

namespace dsv2::harness {

/// In bytes.
struct MemoryNeeds {
  std::int64_t weights =
      0;                    ///< drawn, or mapped: pages of files count, since reading them again at each step is no use
  std::int64_t copies = 0;  ///< that the backend makes of them
  std::int64_t kv = 0;      ///< of `batch` sequences of `context` tokens
  std::int64_t buffers = 0;   ///< that the backend's longest forward pass works in, where it says so
  std::int64_t checking = 0;  ///< while it is checked: the cache in f32 as it is handed over, and the oracle's
  std::optional<std::int64_t> device_free = {};  ///< copies, kv and buffers are on a device that has so much free
  bool device_is_host = false;                   ///< and that device is simulated: they take the host's memory, too
  std::int64_t total() const { return weights + copies + kv + buffers; }  ///< that stays
  Json to_json() const;
};

/// Matrices stored in `stored`, run by `backend` under `options`: `batch` sequences that grow to `context` tokens, of
/// which one forward pass takes at most `tokens`.
MemoryNeeds memory_needs(const Config& config, const Backend& backend, DType stored, const Options& options,
                         std::int64_t batch, std::int64_t context, std::int64_t tokens);

/// Throws Error naming `model` and spelling out the sum when it exceeds the memory that is available, first on the
/// device, if there is one.
void require_memory(const MemoryNeeds& needs, std::string_view model);

}  // namespace dsv2::harness
