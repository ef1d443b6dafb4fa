// From what is known at run time to template arguments.
#pragma once

#include <type_traits>

#include "optimized/cuda/types.h"

namespace dsv2::cuda {

template <auto Value>
using Constant = std::integral_constant<decltype(Value), Value>;

/// call(Constant<storage>)
template <class Call>
void with_storage(Storage storage, Call&& call) {
  switch (storage) {
    case Storage::f32:
      return call(Constant<Storage::f32>());
    case Storage::bf16:
      return call(Constant<Storage::bf16>());
    case Storage::i8:
      return call(Constant<Storage::i8>());
    case Storage::i4:
      return call(Constant<Storage::i4>());
  }
}

/// call(Constant<R>): R the least of 1, 2, 4 and 8 that holds `rows`.
template <class Call>
void with_rows(int rows, Call&& call) {
  if (rows <= 1) return call(Constant<1>());
  if (rows <= 2) return call(Constant<2>());
  if (rows <= 4) return call(Constant<4>());
  return call(Constant<8>());
}

/// Whether many rows meet a matrix of this storage on tensor cores.
constexpr bool on_tensor_cores(Storage storage, bool rounds) { return rounds && storage != Storage::f32; }

}  // namespace dsv2::cuda
