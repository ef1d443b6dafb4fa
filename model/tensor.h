// Element types, shapes, and the two ways to hold an array: Tensor owns, TensorView looks.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/error.h"

namespace dsv2 {

/// i8 and i4: matrices in groups with scales (model/quantised.h). s8: plain bytes; rows of an int8 cache, whose scales
/// lie beside them.
enum class DType : std::uint8_t { f64, f32, bf16, f16, i64, s8, i8, i4 };

/// "f32", "bf16", ...: the spelling of flags and reports.
std::string_view name(DType dtype);
/// The inverse of name(); nullopt for an unknown word.
std::optional<DType> parse_dtype(std::string_view text);
/// Size of one element in bits (4 for i4), without scales.
int bits(DType dtype);
constexpr bool is_quantised(DType dtype) { return dtype == DType::i8 || dtype == DType::i4; }
/// Unit roundoff: half the distance from 1 to the next number. f64 2^-53, f32 2^-24, f16 2^-11, bf16 2^-8; 0 for
/// integers.
double unit_roundoff(DType dtype);

/// bfloat16: the upper half of a float32. Conversion to it rounds to nearest, ties to even; NaN stays NaN.
struct bf16_t {
  std::uint16_t bits = 0;
};
/// IEEE binary16, for reading checkpoints.
struct f16_t {
  std::uint16_t bits = 0;
};

inline float to_float(bf16_t x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }
inline bf16_t to_bf16(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) return {static_cast<std::uint16_t>((u >> 16) | 0x40)};
  return {static_cast<std::uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
float to_float(f16_t x);
f16_t to_f16(float x);

/// Dimensions, outermost first; row-major throughout. A scalar has no dimensions.
using Shape = std::vector<std::int64_t>;

/// Product of the dimensions; throws Error when one is negative or the product does not fit in 63 bits.
std::int64_t element_count(const Shape& shape);
/// Bytes that an array takes: element by element, or as model/quantised.h lays out a matrix.
std::int64_t array_bytes(DType dtype, const Shape& shape);
/// "[2, 6, 96]"
std::string to_string(const Shape& shape);

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<double>() {
  return DType::f64;
}
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<bf16_t>() {
  return DType::bf16;
}
template <>
constexpr DType dtype_of<f16_t>() {
  return DType::f16;
}
template <>
constexpr DType dtype_of<std::int64_t>() {
  return DType::i64;
}
template <>
constexpr DType dtype_of<std::int8_t>() {
  return DType::s8;
}

/// A contiguous row-major array that somebody else owns. Empty (no data) means absent.
struct TensorView {
  DType dtype = DType::f32;
  Shape shape;
  const void* data = nullptr;  ///< aligned to the element, no more

  explicit operator bool() const { return data != nullptr; }
  std::int64_t size() const { return element_count(shape); }
  std::int64_t bytes() const { return array_bytes(dtype, shape); }
  /// Dimension i; negative counts from the back.
  std::int64_t dim(int i) const { return shape.at(i < 0 ? shape.size() + i : i); }
  /// Elements as T; throws Error unless T is this view's dtype. A quantised matrix has none.
  template <class T>
  std::span<const T> as() const {
    DSV2_CHECK(dtype == dtype_of<T>(), "tensor has dtype ", name(dtype), ", expected ", name(dtype_of<T>()));
    return {static_cast<const T*>(data), static_cast<std::size_t>(size())};
  }
  /// Element i, widened exactly (f64, f32, bf16, f16, i64, s8). For tests, comparison and printing, not for inner
  /// loops.
  double at(std::int64_t i) const;
};

/// A contiguous row-major array that owns its memory: zero-filled, 64-byte aligned, cheap to move, explicit to copy.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, Shape shape);
  template <class T>
  static Tensor from(std::span<const T> values, Shape shape) {
    Tensor t(dtype_of<T>(), std::move(shape));
    DSV2_CHECK(t.size() == static_cast<std::int64_t>(values.size()), "shape ", to_string(t.shape()), " holds ",
               t.size(), " elements, found ", values.size());
    if (!values.empty()) std::memcpy(t.data(), values.data(), values.size_bytes());
    return t;
  }
  Tensor(Tensor&&) noexcept = default;
  Tensor& operator=(Tensor&&) noexcept = default;
  Tensor clone() const;

  explicit operator bool() const { return data_ != nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::int64_t dim(int i) const { return view().dim(i); }
  std::int64_t size() const { return element_count(shape_); }
  void* data() { return data_.get(); }
  const void* data() const { return data_.get(); }
  TensorView view() const { return {dtype_, shape_, data_.get()}; }
  template <class T>
  std::span<const T> as() const {
    return view().as<T>();
  }
  template <class T>
  std::span<T> as() {
    auto s = view().as<T>();
    return {const_cast<T*>(s.data()), s.size()};
  }
  double at(std::int64_t i) const { return view().at(i); }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  DType dtype_ = DType::f32;
  Shape shape_;
  std::unique_ptr<void, Free> data_;
};

/// All elements widened exactly to T (float or double).
template <class T>
std::vector<T> widen(const TensorView& view);
extern template std::vector<float> widen<float>(const TensorView&);
extern template std::vector<double> widen<double>(const TensorView&);

/// The same into `to`, which has room for view.size() elements.
template <class T>
void widen_into(const TensorView& view, T* to);
extern template void widen_into<float>(const TensorView&, float*);
extern template void widen_into<double>(const TensorView&, double*);

/// Elements converted to `dtype`: f64, f32, bf16 and f16 round to nearest even, i8 and i4 as quantise().
Tensor convert(const TensorView& view, DType dtype);

}  // namespace dsv2
