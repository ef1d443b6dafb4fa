// A table beside the arena of device memory.
#pragma once

#include <sys/mman.h>

#include <cstddef>

#include "model/error.h"

namespace gpusim {

/// As much address space as its entries need, memory only where it is touched; zeros at first.
template <class T>
class SparseTable {
 public:
  explicit SparseTable(std::size_t entries) : bytes_(entries * sizeof(T)) {
    if (bytes_ == 0) return;
    void* const at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    DSV2_CHECK(at != MAP_FAILED, "gpusim: cannot reserve ", bytes_ >> 30, " GiB of address space");
    data_ = static_cast<T*>(at);
  }
  ~SparseTable() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  SparseTable(const SparseTable&) = delete;
  SparseTable& operator=(const SparseTable&) = delete;
  T* data() const { return data_; }
  /// All zeros again.
  void clear() {
    if (data_ != nullptr) madvise(data_, bytes_, MADV_DONTNEED);
  }

 private:
  std::size_t bytes_;
  T* data_ = nullptr;
};

}  // namespace gpusim
