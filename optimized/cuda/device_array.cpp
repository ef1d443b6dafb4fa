#include "optimized/cuda/device_array.h"

#include <utility>

#include "model/quantised.h"

namespace dsv2::cuda {
namespace {

/// As f32 or bf16.
Tensor converted(const TensorView& from, DType wanted) {
  if (!is_quantised(from.dtype)) return convert(from, wanted);
  Tensor wide(DType::f32, from.shape);
  widen_rows_into(from, 0, from.dim(0), wide.as<float>().data());
  return wanted == DType::f32 ? std::move(wide) : convert(wide.view(), wanted);
}

}  // namespace

Storage storage_of(DType stored) {
  switch (stored) {
    case DType::bf16:
      return Storage::bf16;
    case DType::i8:
      return Storage::i8;
    case DType::i4:
      return Storage::i4;
    default:
      return Storage::f32;
  }
}

std::int64_t row_stride(std::int64_t columns, Storage storage) {
  const std::int64_t unit = 16 / element_bytes(storage);
  return (columns + unit - 1) / unit * unit;
}

std::int64_t device_bytes(const Shape& shape, Storage storage) {
  if (in_panels(storage)) return array_bytes(storage == Storage::i8 ? DType::i8 : DType::i4, shape);
  if (shape.size() == 1) return shape[0] * element_bytes(storage);
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows * row_stride(shape.back(), storage) * element_bytes(storage);
}

void copy_array(const TensorView& from, Storage storage, std::byte* to, const Stream& stream) {
  if (from.size() == 0) return;
  if (in_panels(storage)) {
    stream.upload(to, static_cast<const std::byte*>(from.data), from.bytes());
    return;
  }
  const DType wanted = storage == Storage::bf16 ? DType::bf16 : DType::f32;
  const Tensor copy = from.dtype == wanted ? Tensor() : converted(from, wanted);
  const auto element = static_cast<std::size_t>(element_bytes(storage));
  const auto columns = static_cast<std::size_t>(from.dim(-1));
  const auto stride = from.shape.size() == 1 ? columns : static_cast<std::size_t>(row_stride(from.dim(-1), storage));
  DSV2_CUDA(cudaMemcpy2DAsync(to, stride * element, copy ? copy.data() : from.data, columns * element,
                              columns * element, static_cast<std::size_t>(from.size()) / columns,
                              cudaMemcpyHostToDevice, stream));
  if (copy) stream.synchronise();
}

}  // namespace dsv2::cuda
