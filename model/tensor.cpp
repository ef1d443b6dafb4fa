#include "model/tensor.h"

#include <array>
#include <cstdlib>
#include <limits>
#include <new>

#include "model/quantised.h"

namespace dsv2 {
namespace {

struct Row {
  DType dtype;
  std::string_view name;
  int bits;
  double unit_roundoff;
};
constexpr std::array<Row, 8> kRows = {{{DType::f64, "f64", 64, 0x1p-53},
                                       {DType::f32, "f32", 32, 0x1p-24},
                                       {DType::bf16, "bf16", 16, 0x1p-8},
                                       {DType::f16, "f16", 16, 0x1p-11},
                                       {DType::i64, "i64", 64, 0},
                                       {DType::s8, "s8", 8, 0},
                                       {DType::i8, "int8", 8, 0},
                                       {DType::i4, "int4", 4, 0}}};
const Row& row(DType d) { return kRows[static_cast<std::size_t>(d)]; }

constexpr std::size_t kAlignment = 64;

}  // namespace

std::string_view name(DType d) { return row(d).name; }
int bits(DType d) { return row(d).bits; }
double unit_roundoff(DType d) { return row(d).unit_roundoff; }

std::optional<DType> parse_dtype(std::string_view text) {
  for (const Row& r : kRows)
    if (r.name == text) return r.dtype;
  return std::nullopt;
}

float to_float(f16_t x) {
  const std::uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31, mantissa = x.bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  return sign ? -magnitude : magnitude;
}

f16_t to_f16(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  if (std::isnan(x)) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  const float a = std::fabs(x);
  if (a >= 65520.0f) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (a < 0x1p-14f) return {static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(a * 0x1p24f)))};
  const std::uint32_t v = std::bit_cast<std::uint32_t>(a) - (112u << 23);
  return {static_cast<std::uint16_t>(sign | ((v + 0xfff + ((v >> 13) & 1)) >> 13))};
}

std::int64_t element_count(const Shape& shape) {
  std::int64_t n = 1;
  bool zero = false;
  for (const std::int64_t d : shape) {
    DSV2_CHECK(d >= 0, "shape ", to_string(shape), ": negative dimension");
    if (d == 0) zero = true;
    DSV2_CHECK(d == 0 || n <= std::numeric_limits<std::int64_t>::max() / d, "shape ", to_string(shape),
               ": element count does not fit in 63 bits");
    if (d != 0) n *= d;
  }
  return zero ? 0 : n;
}

std::int64_t array_bytes(DType dtype, const Shape& shape) {
  const std::int64_t count = element_count(shape);
  if (!is_quantised(dtype)) return count * bits(dtype) / 8;
  DSV2_CHECK(shape.size() >= 2, name(dtype), ": expected a matrix, found shape ", to_string(shape));
  if (count == 0) return 0;
  const std::int64_t rows = shape[shape.size() - 2], cols = shape.back();
  return count / (rows * cols) * ((rows + kQuantPanel - 1) / kQuantPanel) * quantised_panel_bytes(dtype, cols);
}

std::string to_string(const Shape& shape) {
  std::string s = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

double TensorView::at(std::int64_t i) const {
  switch (dtype) {
    case DType::f64:
      return as<double>()[i];
    case DType::f32:
      return as<float>()[i];
    case DType::bf16:
      return to_float(as<bf16_t>()[i]);
    case DType::f16:
      return to_float(as<f16_t>()[i]);
    case DType::i64:
      return static_cast<double>(as<std::int64_t>()[i]);
    case DType::s8:
      return as<std::int8_t>()[i];
    case DType::i8:
    case DType::i4:
      break;
  }
  fail("elements of dtype ", name(dtype), " have no value without their scales");
}

Tensor::Tensor(DType dtype, Shape shape) : dtype_(dtype), shape_(std::move(shape)) {
  const std::size_t bytes = static_cast<std::size_t>(TensorView{dtype_, shape_, nullptr}.bytes());
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  data_.reset(std::aligned_alloc(kAlignment, rounded ? rounded : kAlignment));
  if (!data_) throw std::bad_alloc();
  std::memset(data_.get(), 0, rounded ? rounded : kAlignment);
}

void Tensor::Free::operator()(void* p) const { std::free(p); }

Tensor Tensor::clone() const {
  if (!data_) return {};
  Tensor t(dtype_, shape_);
  std::memcpy(t.data(), data(), static_cast<std::size_t>(view().bytes()));
  return t;
}

namespace {

template <class To, class From>
void convert_span(std::span<const From> from, To* to) {
  for (std::size_t i = 0; i < from.size(); ++i) {
    double x;
    if constexpr (std::is_same_v<From, bf16_t> || std::is_same_v<From, f16_t>)
      x = to_float(from[i]);
    else
      x = static_cast<double>(from[i]);
    if constexpr (std::is_same_v<To, bf16_t>)
      to[i] = to_bf16(static_cast<float>(x));
    else if constexpr (std::is_same_v<To, f16_t>)
      to[i] = to_f16(static_cast<float>(x));
    else
      to[i] = static_cast<To>(x);
  }
}

template <class To>
void convert_into(const TensorView& v, To* to) {
  if constexpr (std::is_same_v<To, float> || std::is_same_v<To, double>)
    if (is_quantised(v.dtype)) {
      const TensorView first{v.dtype, {v.dim(-2), v.dim(-1)}, v.data};
      const std::int64_t each = first.size();
      for (std::int64_t i = 0; each > 0 && i < v.size() / each; ++i)
        widen_rows_into({v.dtype, first.shape, static_cast<const char*>(v.data) + i * first.bytes()}, 0, first.dim(0),
                        to + i * each);
      return;
    }
  switch (v.dtype) {
    case DType::f64:
      return convert_span(v.as<double>(), to);
    case DType::f32:
      return convert_span(v.as<float>(), to);
    case DType::bf16:
      return convert_span(v.as<bf16_t>(), to);
    case DType::f16:
      return convert_span(v.as<f16_t>(), to);
    case DType::i64:
      return convert_span(v.as<std::int64_t>(), to);
    case DType::s8:
      return convert_span(v.as<std::int8_t>(), to);
    case DType::i8:
    case DType::i4:
      break;
  }
  fail("elements of dtype ", name(v.dtype), " have no value without their scales");
}

}  // namespace

template <class T>
void widen_into(const TensorView& view, T* to) {
  convert_into(view, to);
}
template void widen_into<float>(const TensorView&, float*);
template void widen_into<double>(const TensorView&, double*);

template <class T>
std::vector<T> widen(const TensorView& view) {
  std::vector<T> values(static_cast<std::size_t>(view.size()));
  convert_into(view, values.data());
  return values;
}
template std::vector<float> widen<float>(const TensorView&);
template std::vector<double> widen<double>(const TensorView&);

Tensor convert(const TensorView& view, DType dtype) {
  if (is_quantised(dtype)) return quantise(view, dtype);
  Tensor t(dtype, view.shape);
  switch (dtype) {
    case DType::f64:
      convert_into(view, t.as<double>().data());
      break;
    case DType::f32:
      convert_into(view, t.as<float>().data());
      break;
    case DType::bf16:
      convert_into(view, t.as<bf16_t>().data());
      break;
    case DType::f16:
      convert_into(view, t.as<f16_t>().data());
      break;
    default:
      fail("cannot convert to ", name(dtype));
  }
  return t;
}

}  // namespace dsv2
