// Random numbers that depend on what they are for, and on nothing else: not on threads, machine or order.
#pragma once

#include <cstdint>
#include <string_view>

#include "model/tensor.h"

namespace dsv2 {

/// A stream of numbers for each (seed, name).
std::uint64_t random_stream(std::uint64_t seed, std::string_view name);

/// Element i of a stream: 64 bits.
std::uint64_t random_bits(std::uint64_t stream, std::int64_t i);

/// Fills `out` (`dtype` f32 or bf16) with elements first..first+count-1 of mean + deviation * z, rounded to the dtype,
/// in parallel. z is the sum of four 16-bit uniforms: mean 0, variance 1, bell-shaped, within 3.47, kurtosis 2.7
/// instead of 3.
void fill_normal(void* out, DType dtype, std::int64_t count, std::uint64_t stream, float mean, float deviation,
                 std::int64_t first = 0);

}  // namespace dsv2
