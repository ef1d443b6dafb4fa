// How weights are laid out in device memory, and how they get there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/tensor.h"
#include "optimized/cuda/device.h"
#include "optimized/cuda/types.h"

namespace dsv2::cuda {

/// bf16, i8 and i4 stay what they are; all else is f32.
Storage storage_of(DType stored);
constexpr bool in_panels(Storage storage) { return storage == Storage::i8 || storage == Storage::i4; }
constexpr std::int64_t element_bytes(Storage storage) { return storage == Storage::bf16 ? 2 : 4; }
/// Elements from row to row of a matrix that is not in panels: rows begin at multiples of 16 bytes.
std::int64_t row_stride(std::int64_t columns, Storage storage);
/// Of a vector, a matrix, or a stack of matrices [.., rows, columns].
std::int64_t device_bytes(const Shape& shape, Storage storage);
/// Copies an array that is stored in any way, rounded or widened to `storage` (panels only from panels). `to` has
/// device_bytes(), which are zeros. What is behind `from` may go when it returns.
void copy_array(const TensorView& from, Storage storage, std::byte* to, const Stream& stream);

}  // namespace dsv2::cuda
