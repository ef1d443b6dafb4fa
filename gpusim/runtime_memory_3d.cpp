// Copies, fills and allocations of three dimensions: slices of what the two-dimensional calls do. Arrays are not there.
#include <algorithm>

#include "gpusim/runtime_state.h"

namespace gpusim::runtime {
namespace {

std::byte* at(const cudaPitchedPtr& block, const cudaPos& position, std::size_t slice) {
  return static_cast<std::byte*>(block.ptr) + (position.z + slice) * block.pitch * block.ysize +
         position.y * block.pitch + position.x;
}

/// One slice after the other, or all rows at once where slices follow each other without a gap.
template <class Slice>
cudaError_t for_slices(const cudaExtent& extent, bool gapless, Slice slice) {
  if (extent.width == 0 || extent.height == 0 || extent.depth == 0) return cudaSuccess;
  if (gapless) return slice(0, extent.height * extent.depth);
  for (std::size_t z = 0; z < extent.depth; ++z) {
    if (const cudaError_t error = slice(z, extent.height); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

/// Refuses arrays, and extents that leave their blocks.
void check(const cudaMemcpy3DParms* told) {
  if (told == nullptr) refuse(cudaErrorInvalidValue, "the parameters are null");
  if (told->srcArray != nullptr || told->dstArray != nullptr)
    refuse(cudaErrorNotSupported, "CUDA arrays are not modelled; copy between pitched pointers");
  const auto check_end = [&](const cudaPitchedPtr& block, const cudaPos& position, const char* end) {
    if (position.x + told->extent.width > block.pitch)
      refuse(cudaErrorInvalidPitchValue, "rows of ", told->extent.width, " bytes from byte ", position.x,
             " do not fit the ", end, "'s pitch of ", block.pitch);
    if (told->extent.depth > 1 && position.y + told->extent.height > block.ysize)
      refuse(cudaErrorInvalidValue, told->extent.height, " rows from row ", position.y, " do not fit the ", end,
             "'s slices of ", block.ysize);
  };
  check_end(told->srcPtr, told->srcPos, "source");
  check_end(told->dstPtr, told->dstPos, "destination");
}

template <class Copy>
cudaError_t copy_slices(const char* name, const cudaMemcpy3DParms* told, Copy copy) {
  if (const cudaError_t error = call(name, [&](State&) { check(told); }); error != cudaSuccess) return error;
  const auto fills_slices = [&](const cudaPitchedPtr& block) { return block.ysize == told->extent.height; };
  const bool gapless = fills_slices(told->srcPtr) && fills_slices(told->dstPtr);
  return for_slices(told->extent, gapless, [&](std::size_t z, std::size_t rows) {
    return copy(at(told->dstPtr, told->dstPos, z), told->dstPtr.pitch, at(told->srcPtr, told->srcPos, z),
                told->srcPtr.pitch, told->extent.width, rows);
  });
}

template <class Fill>
cudaError_t fill_slices(const cudaPitchedPtr& block, const cudaExtent& extent, Fill fill) {
  return for_slices(extent, block.ysize == extent.height, [&](std::size_t z, std::size_t rows) {
    return fill(at(block, {0, 0, 0}, z), rows);
  });
}

}  // namespace
}  // namespace gpusim::runtime

using namespace gpusim::runtime;

extern "C" {

cudaError_t cudaMalloc3D(cudaPitchedPtr* out, cudaExtent extent) {
  void* memory = nullptr;
  std::size_t pitch = 0;
  const cudaError_t error = cudaMallocPitch(&memory, &pitch, extent.width, extent.height * extent.depth);
  if (error != cudaSuccess) return error;
  return call("cudaMalloc3D", [&](State&) {
    if (out == nullptr) refuse(cudaErrorInvalidValue, "the pointer to set is null");
    *out = {memory, pitch, extent.width, extent.height};
  });
}

cudaError_t cudaMemcpy3D(const cudaMemcpy3DParms* told) {
  return copy_slices(
      "cudaMemcpy3D", told,
      [&](void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
          std::size_t rows) { return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, rows, told->kind); });
}

cudaError_t cudaMemcpy3DAsync(const cudaMemcpy3DParms* told, cudaStream_t stream) {
  return copy_slices("cudaMemcpy3DAsync", told,
                     [&](void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                         std::size_t rows) {
                       return cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, told->kind, stream);
                     });
}

cudaError_t cudaMemset3D(cudaPitchedPtr block, int value, cudaExtent extent) {
  return fill_slices(block, extent, [&](void* to, std::size_t rows) {
    return cudaMemset2D(to, block.pitch, value, extent.width, rows);
  });
}

cudaError_t cudaMemset3DAsync(cudaPitchedPtr block, int value, cudaExtent extent, cudaStream_t stream) {
  return fill_slices(block, extent, [&](void* to, std::size_t rows) {
    return cudaMemset2DAsync(to, block.pitch, value, extent.width, rows, stream);
  });
}

}  // extern "C"
