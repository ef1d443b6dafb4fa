// Memory, streams and errors of the CUDA runtime as C++ has them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "model/error.h"

namespace dsv2::cuda {

/// After these a kernel went wrong, and every later call says the same.
inline bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
      return true;
    default:
      return false;
  }
}

/// Throws Error, or BackendFault, that names the call and what the runtime says of it.
inline void check(cudaError_t error, const char* call, const char* file, int line) {
  if (error == cudaSuccess) [[likely]]
    return;
  const std::string what =
      concat("CUDA: ", call, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ") at ", file, ":", line);
  if (is_sticky(error)) throw BackendFault(what);
  throw Error(what);
}

}  // namespace dsv2::cuda

#define DSV2_CUDA(call) ::dsv2::cuda::check((call), #call, __FILE__, __LINE__)
/// After each launch.
#define DSV2_CUDA_LAUNCHED(kernel) ::dsv2::cuda::check(cudaGetLastError(), #kernel, __FILE__, __LINE__)

namespace dsv2::cuda {

/// Device memory that is only ever made larger; what it held is lost then. Not to be grown while a graph that uses it
/// lives.
template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::int64_t count) { get(count); }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }

  /// Room for `count` elements.
  T* get(std::int64_t count) {
    if (count <= count_) return data_;
    cudaFree(std::exchange(data_, nullptr));
    count_ = 0;
    DSV2_CUDA(cudaMalloc(reinterpret_cast<void**>(&data_), static_cast<std::size_t>(count) * sizeof(T)));
    count_ = count;
    return data_;
  }
  T* data() const { return data_; }
  std::int64_t bytes() const { return count_ * static_cast<std::int64_t>(sizeof(T)); }

 private:
  T* data_ = nullptr;
  std::int64_t count_ = 0;
};

/// Host memory that copies of a stream read without a detour.
template <class T>
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() { cudaFreeHost(data_); }
  /// Room for `count` elements; what it held is lost when it grows.
  T* get(std::int64_t count) {
    if (count <= count_) return data_;
    cudaFreeHost(std::exchange(data_, nullptr));
    count_ = 0;
    DSV2_CUDA(cudaMallocHost(reinterpret_cast<void**>(&data_), static_cast<std::size_t>(count) * sizeof(T)));
    count_ = count;
    return data_;
  }

 private:
  T* data_ = nullptr;
  std::int64_t count_ = 0;
};

class Stream {
 public:
  Stream() { DSV2_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  operator cudaStream_t() const { return stream_; }
  void synchronise() const { DSV2_CUDA(cudaStreamSynchronize(stream_)); }
  /// Copies and waits for nothing but what the runtime needs to take pageable memory over.
  template <class T>
  void upload(T* to, const T* from, std::int64_t count) const {
    DSV2_CUDA(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyHostToDevice, stream_));
  }
  /// Copies, and waits until it is there.
  template <class T>
  void download(T* to, const T* from, std::int64_t count) const {
    DSV2_CUDA(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyDeviceToHost, stream_));
    synchronise();
  }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace dsv2::cuda
