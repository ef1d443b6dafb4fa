// The reference as a row of the backend table.
#pragma once

#include <span>

#include "model/decoder.h"
#include "model/op.h"

namespace dsv2::reference {

/// Options::accumulate chooses double (to judge) or float (to time) for every activation, the KV cache included; dtype,
/// kv_dtype, threads and isa are ignored: weights are widened exactly from what they are stored in.
Backend backend();

/// Every op of model/op.h; Options as above. Outputs are f64, or f32 when it accumulates in float.
std::span<const OpKernel> ops();

}  // namespace dsv2::reference
