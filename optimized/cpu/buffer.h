// Scratch memory that is kept between calls.
#pragma once

#include <cstdint>

#include "model/tensor.h"

namespace dsv2::cpu {

/// Grows to what was ever asked for; contents are lost when it does, and unspecified otherwise.
template <class T>
class Buffer {
 public:
  /// Room for `count` elements, 64-byte aligned.
  T* get(std::int64_t count) {
    if (count > capacity_) {
      memory_ = {};
      memory_ = Tensor(DType::s8, {count * static_cast<std::int64_t>(sizeof(T))});
      capacity_ = count;
    }
    return static_cast<T*>(memory_.data());
  }
  std::int64_t bytes() const { return capacity_ * static_cast<std::int64_t>(sizeof(T)); }

 private:
  Tensor memory_;
  std::int64_t capacity_ = 0;
};

}  // namespace dsv2::cpu
