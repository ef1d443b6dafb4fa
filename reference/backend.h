// The reference as a row of the backend table.
#pragma once

#include "model/decoder.h"

namespace dsv2::reference {

/// Options::accumulate chooses double (to judge) or float (to time) for every activation, the KV cache included; dtype,
/// kv_dtype, threads and isa are ignored: weights are widened exactly from what they are stored in.
Backend backend();

}  // namespace dsv2::reference
