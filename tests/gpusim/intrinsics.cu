// What CUDA's headers emit for their intrinsics: a kernel for each, its results bit by bit against the same header's
// host code, or against plain C++ where the header has none. The doubles and floats of the mathematical library are
// within a few units in the last place of the host's.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"

using std::int16_t, std::int32_t, std::int64_t, std::int8_t, std::uint16_t, std::uint32_t, std::uint64_t;

template <class To, class From>
__host__ __device__ To bits_as(const From& from) {
  To to{};
  memcpy(&to, &from, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
  return to;
}

struct Input {
  uint32_t a, b, c;
};

template <class Case>
__global__ void run_case(const Input* in, uint64_t* out, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) out[i] = Case::device(in[i].a, in[i].b, in[i].c);
}

int wrong = 0, cases = 0;
std::vector<Input> inputs;
Input* device_inputs;
uint64_t* device_out;

template <class Case>
void test(const char* name) {
  const int count = static_cast<int>(inputs.size());
  run_case<Case><<<(count + 127) / 128, 128>>>(device_inputs, device_out, count);
  std::vector<uint64_t> out(inputs.size());
  SUCCEED(cudaMemcpy(out.data(), device_out, out.size() * sizeof out[0], cudaMemcpyDeviceToHost));
  ++cases;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Input& in = inputs[i];
    const uint64_t expected = Case::host(in.a, in.b, in.c);
    if (Case::same(out[i], expected)) continue;
    ++wrong;
    std::printf("%s of %08x %08x %08x: %llx, expected %llx\n", name, in.a, in.b, in.c,
                static_cast<unsigned long long>(out[i]), static_cast<unsigned long long>(expected));
    return;
  }
}

struct Exact {
  static bool same(uint64_t a, uint64_t b) { return a == b; }
};
/// NaNs have many forms; the host's are not PTX's.
template <uint32_t kInfinity, int kBits>
struct Floats {
  static bool same(uint64_t a, uint64_t b) {
    constexpr uint64_t kMask = (uint64_t{1} << kBits) - 1;
    for (int at = 0; at < 32; at += kBits) {
      const uint64_t x = a >> at & kMask, y = b >> at & kMask;
      const uint64_t magnitude = kMask >> 1;
      if (x != y && !((x & magnitude) > kInfinity && (y & magnitude) > kInfinity)) return false;
    }
    return a >> 32 == b >> 32;
  }
};
using Float32 = Floats<0x7f800000u, 32>;
using Halves = Floats<0x7c00u, 16>;
using Brains = Floats<0x7f80u, 16>;

/// The header's own host code is the reference.
#define SHARED(kind, name, expression)                                                   \
  struct name : kind {                                                                   \
    static __host__ __device__ uint64_t device(uint32_t a, uint32_t b, uint32_t c) {     \
      (void)a, (void)b, (void)c;                                                         \
      return bits_as<uint64_t>(expression);                                              \
    }                                                                                    \
    static uint64_t host(uint32_t a, uint32_t b, uint32_t c) { return device(a, b, c); } \
  }
/// A reference of our own.
#define OWN(kind, name, expression, reference)                              \
  struct name : kind {                                                      \
    static __device__ uint64_t device(uint32_t a, uint32_t b, uint32_t c) { \
      (void)a, (void)b, (void)c;                                            \
      return bits_as<uint64_t>(expression);                                 \
    }                                                                       \
    static uint64_t host(uint32_t a, uint32_t b, uint32_t c) {              \
      (void)a, (void)b, (void)c;                                            \
      return bits_as<uint64_t>(reference);                                  \
    }                                                                       \
  }

#define H(x) bits_as<__half>(x)
#define H2(x) bits_as<__half2>(x)
#define B(x) bits_as<__nv_bfloat16>(x)
#define B2(x) bits_as<__nv_bfloat162>(x)
#define F(x) bits_as<float>(x)
#define S(x) static_cast<int32_t>(x)

// ---- halves and brains
double value(__half h) { return static_cast<double>(__half2float(h)); }
double value(__nv_bfloat16 b) { return static_cast<double>(__bfloat162float(b)); }
double saturated(double x) { return x != x ? 0 : std::clamp(x, 0.0, 1.0); }
__half half_of(double x) { return __double2half(x); }
/// Of an exact sum: the products of brains reach farther than a double's fraction.
__nv_bfloat16 brain_of(double product, double addend) {
  const auto sum = static_cast<long double>(product) + static_cast<long double>(addend);
  auto rounded = static_cast<double>(sum);
  const long double rest = (static_cast<long double>(product) - static_cast<long double>(rounded)) + addend;
  // Sticky: the last bit set where something was lost, so that the second rounding is as good as one.
  if (rest != 0 && rounded - rounded == 0 && (bits_as<uint64_t>(rounded) & 1) == 0)
    rounded = std::nextafter(rounded, rest > 0 ? HUGE_VAL : -HUGE_VAL);
  return __double2bfloat16(rounded);
}
uint32_t on_halves(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (int at = 0; at < 32; at += 16)
    result |= bits_as<uint32_t>(half_of(value(H(a >> at)) * value(H(b >> at)) + value(H(c >> at)))) << at;
  return result;
}
uint32_t on_brains(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (int at = 0; at < 32; at += 16)
    result |= bits_as<uint32_t>(brain_of(value(B(a >> at)) * value(B(b >> at)), value(B(c >> at)))) << at;
  return result;
}
__nv_bfloat16 brain_down(uint64_t x) {
  const int width = 64 - (x == 0 ? 64 : __builtin_clzll(x));
  const uint64_t kept = width > 8 ? x >> (width - 8) << (width - 8) : x;
  return __double2bfloat16(static_cast<double>(kept));
}
/// The nearest there is; a NaN is the header's 0, or the least number of 64 bits, as PTX has it.
template <class T>
T integer(double x) {
  if (x != x) return sizeof(T) == 8 ? static_cast<T>(uint64_t{1} << 63) : T{0};
  if (x >= std::ldexp(1.0, std::numeric_limits<T>::digits)) return std::numeric_limits<T>::max();
  if (x <= static_cast<double>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  return static_cast<T>(x);
}
SHARED(Halves, half_add, __hadd(H(a), H(b)));
SHARED(Halves, half_sub, __hsub(H(a), H(b)));
SHARED(Halves, half_mul, __hmul(H(a), H(b)));
OWN(Halves, half_fma, __hfma(H(a), H(b), H(c)), half_of(value(H(a)) * value(H(b)) + value(H(c))));
SHARED(Halves, half_add_sat, __hadd_sat(H(a), H(b)));
OWN(Halves, half_fma_sat, __hfma_sat(H(a), H(b), H(c)), half_of(saturated(value(H(a)) * value(H(b)) + value(H(c)))));
SHARED(Halves, half_min, __hmin(H(a), H(b)));
SHARED(Halves, half_max_nan, __hmax_nan(H(a), H(b)));
SHARED(Halves, half_neg, __hneg(H(a)));
SHARED(Halves, half_abs, __habs(H(a)));
SHARED(Halves, half2_add, __hadd2(H2(a), H2(b)));
OWN(Halves, half2_fma, __hfma2(H2(a), H2(b), H2(c)), on_halves(a, b, c));
SHARED(Halves, half2_mul_sat, __hmul2_sat(H2(a), H2(b)));
SHARED(Halves, half2_min_nan, __hmin2_nan(H2(a), H2(b)));
SHARED(Halves, half2_max, __hmax2(H2(a), H2(b)));
SHARED(Halves, half2_eq, __heq2(H2(a), H2(b)));
SHARED(Halves, half2_ltu, __hltu2(H2(a), H2(b)));
SHARED(Halves, half2_swap, __lowhigh2highlow(H2(a)));
SHARED(Exact, half_ge, __hge(H(a), H(b)));
SHARED(Exact, half_neu, __hneu(H(a), H(b)));
SHARED(Exact, half2_all_le, __hble2(H2(a), H2(b)));
SHARED(Exact, half_nan, __hisnan(H(a)));
SHARED(Halves, half_from_float_rn, __float2half_rn(F(a)));
SHARED(Halves, half_from_float_rz, __float2half_rz(F(a)));
SHARED(Halves, half_from_float_rd, __float2half_rd(F(a)));
SHARED(Halves, half_from_float_ru, __float2half_ru(F(a)));
SHARED(Halves, half2_from_floats, __floats2half2_rn(F(a), F(b)));
SHARED(Halves, half_from_int, __int2half_rn(S(a)));
SHARED(Halves, half_from_uint_ru, __uint2half_ru(a));
SHARED(Halves, half_from_int64, __ll2half_rn(static_cast<long long>(static_cast<uint64_t>(a) << 32 | b)));
SHARED(Halves, half_from_short, __short2half_rn(static_cast<short>(a)));
OWN(Exact, half_to_int_rn, __half2int_rn(H(a)), integer<int32_t>(std::nearbyint(value(H(a)))));
SHARED(Exact, half_to_uint_rz, __half2uint_rz(H(a)));
OWN(Exact, half_to_short_rd, __half2short_rd(H(a)), integer<int16_t>(std::floor(value(H(a)))));
OWN(Exact, half_to_int64_ru, __half2ll_ru(H(a)), integer<int64_t>(std::ceil(value(H(a)))));
OWN(Halves, half_floor, hfloor(H(a)), half_of(std::floor(value(H(a)))));
OWN(Halves, half_rint, hrint(H(a)), half_of(std::nearbyint(value(H(a)))));
OWN(Halves, half_trunc, htrunc(H(a)), half_of(std::trunc(value(H(a)))));

SHARED(Brains, brain_add, __hadd(B(a), B(b)));
SHARED(Brains, brain_mul, __hmul(B(a), B(b)));
OWN(Brains, brain_fma, __hfma(B(a), B(b), B(c)), brain_of(value(B(a)) * value(B(b)), value(B(c))));
SHARED(Brains, brain_sub_sat, __hsub_sat(B(a), B(b)));
OWN(Brains, brain2_fma, __hfma2(B2(a), B2(b), B2(c)), on_brains(a, b, c));
SHARED(Brains, brain2_max_nan, __hmax2_nan(B2(a | 0x00010001), B2(b)));
SHARED(Brains, brain_min, __hmin(B(a), B(b)));
SHARED(Brains, brain2_gtu, __hgtu2(B2(a), B2(b)));
SHARED(Exact, brain_lt, __hlt(B(a), B(b)));
SHARED(Brains, brain_from_float_rn, __float2bfloat16_rn(F(a)));
SHARED(Brains, brain_from_float_rz, __float2bfloat16_rz(F(a)));
SHARED(Brains, brain_from_float_rd, __float2bfloat16_rd(F(a)));
SHARED(Brains, brain_from_float_ru, __float2bfloat16_ru(F(a)));
SHARED(Brains, brain2_from_floats, __floats2bfloat162_rn(F(a), F(b)));
SHARED(Brains, brain_from_double, __double2bfloat16(bits_as<double>(static_cast<uint64_t>(a) << 32 | b)));
SHARED(Brains, brain_from_int, __int2bfloat16_rn(S(a)));
OWN(Brains, brain_from_uint64, __ull2bfloat16_rz(static_cast<uint64_t>(a) << 32 | b),
    brain_down(static_cast<uint64_t>(a) << 32 | b));
SHARED(Exact, brain_to_int_rz, __bfloat162int_rz(B(a)));
OWN(Exact, brain_to_uint64_rn, __bfloat162ull_rn(B(a)), integer<uint64_t>(std::nearbyint(value(B(a)))));
OWN(Brains, brain_ceil, hceil(B(a)), brain_of(std::ceil(value(B(a))), -0.0));

// ---- fp8
SHARED(Exact, e4m3_from_float, __nv_cvt_float_to_fp8(F(a), __NV_SATFINITE, __NV_E4M3));
SHARED(Exact, e5m2_from_float, __nv_cvt_float_to_fp8(F(a), __NV_SATFINITE, __NV_E5M2));
SHARED(Exact, e4m3_from_floats, __nv_cvt_float2_to_fp8x2(make_float2(F(a), F(b)), __NV_SATFINITE, __NV_E4M3));
SHARED(Exact, e5m2_from_halves, __nv_cvt_halfraw2_to_fp8x2(static_cast<__half2_raw>(H2(a)), __NV_SATFINITE, __NV_E5M2));
SHARED(Exact, e4m3_from_brain,
       __nv_cvt_bfloat16raw_to_fp8(static_cast<__nv_bfloat16_raw>(B(a)), __NV_SATFINITE, __NV_E4M3));
SHARED(Halves, e4m3_to_halves, __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(a), __NV_E4M3));
SHARED(Halves, e5m2_to_halves, __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(a), __NV_E5M2));

// ---- integers
constexpr uint32_t parts(int width, uint32_t a, uint32_t b, int64_t (*op)(int64_t, int64_t), bool is_signed) {
  uint32_t result = 0;
  const uint64_t keep = (uint64_t{1} << width) - 1;
  for (int at = 0; at < 32; at += width) {
    const auto part = [&](uint32_t v) {
      const auto bits = static_cast<int64_t>(v >> at & keep);
      return is_signed && (bits >> (width - 1)) != 0 ? bits - (int64_t{1} << width) : bits;
    };
    result |= static_cast<uint32_t>(static_cast<uint64_t>(op(part(a), part(b))) & keep) << at;
  }
  return result;
}
constexpr int64_t plus(int64_t a, int64_t b) { return a + b; }
constexpr int64_t minus(int64_t a, int64_t b) { return a - b; }
constexpr int64_t plus_s16(int64_t a, int64_t b) { return std::clamp<int64_t>(a + b, -32768, 32767); }
constexpr int64_t plus_u8(int64_t a, int64_t b) { return std::min<int64_t>(a + b, 255); }
constexpr int64_t minus_s8(int64_t a, int64_t b) { return std::clamp<int64_t>(a - b, -128, 127); }
constexpr int64_t rounded_mean(int64_t a, int64_t b) { return (a + b + 1) >> 1; }
constexpr int64_t mean_down(int64_t a, int64_t b) { return (a + b) >> 1; }
constexpr int64_t distance(int64_t a, int64_t b) { return a > b ? a - b : b - a; }
constexpr int64_t greater_of(int64_t a, int64_t b) { return std::max(a, b); }
constexpr int64_t lesser_of(int64_t a, int64_t b) { return std::min(a, b); }
constexpr int64_t all_if_equal(int64_t a, int64_t b) { return a == b ? -1 : 0; }
constexpr int64_t one_if_less(int64_t a, int64_t b) { return a < b; }
uint32_t sum_of_distances(int width, uint32_t a, uint32_t b, bool is_signed) {
  uint32_t sum = 0;
  const uint32_t distances = parts(width, a, b, distance, is_signed);
  for (int at = 0; at < 32; at += width) sum += distances >> at & ((1u << width) - 1);
  return sum;
}
OWN(Exact, vadd2, __vadd2(a, b), parts(16, a, b, plus, false));
OWN(Exact, vsub4, __vsub4(a, b), parts(8, a, b, minus, false));
OWN(Exact, vaddss2, __vaddss2(a, b), parts(16, a, b, plus_s16, true));
OWN(Exact, vaddus4, __vaddus4(a, b), parts(8, a, b, plus_u8, false));
OWN(Exact, vsubss4, __vsubss4(a, b), parts(8, a, b, minus_s8, true));
OWN(Exact, vavgu4, __vavgu4(a, b), parts(8, a, b, rounded_mean, false));
OWN(Exact, vhaddu4, __vhaddu4(a, b), parts(8, a, b, mean_down, false));
OWN(Exact, vabsdiffu4, __vabsdiffu4(a, b), parts(8, a, b, distance, false));
OWN(Exact, vabsdiffs2, __vabsdiffs2(a, b), parts(16, a, b, distance, true));
OWN(Exact, vmaxs4, __vmaxs4(a, b), parts(8, a, b, greater_of, true));
OWN(Exact, vminu2, __vminu2(a, b), parts(16, a, b, lesser_of, false));
OWN(Exact, vcmpeq4, __vcmpeq4(a, b), parts(8, a, b, all_if_equal, false));
OWN(Exact, vsetltu4, __vsetltu4(a, b), parts(8, a, b, one_if_less, false));
OWN(Exact, vsadu4, __vsadu4(a, b), sum_of_distances(8, a, b, false));
OWN(Exact, vsads2, __vsads2(a, b), sum_of_distances(16, a, b, true));
OWN(Exact, vaddmax_relu, __viaddmax_s32_relu(S(a), S(b), S(c)), std::max({S(a + b), S(c), 0}));
OWN(Exact, vmax3, __vimax3_s32(S(a), S(b), S(c)), std::max({S(a), S(b), S(c)}));
OWN(Exact, vmin3_u16x2, __vimin3_u16x2(a, b, c), parts(16, parts(16, a, b, lesser_of, false), c, lesser_of, false));
OWN(Exact, vaddmin_s16x2, __viaddmin_s16x2(a, b, c), parts(16, parts(16, a, b, plus, true), c, lesser_of, true));
uint32_t dot2(uint32_t a, uint32_t b, uint32_t c, bool high) {
  for (int i = 0; i < 2; ++i) c += (a >> (16 * i) & 0xffff) * (b >> (8 * i + (high ? 16 : 0)) & 0xff);
  return c;
}
OWN(Exact, dp2a_lo, __dp2a_lo(a, b, c), dot2(a, b, c, false));
OWN(Exact, dp2a_hi, __dp2a_hi(a, b, c), dot2(a, b, c, true));
OWN(Exact, mul24, __umul24(a, b), static_cast<uint32_t>(uint64_t{a & 0xffffff} * (b & 0xffffff)));
OWN(Exact, usad, __usad(a, b, c), (a > b ? a - b : b - a) + c);
OWN(Exact, mulhi, __mulhi(S(a), S(b)), static_cast<int32_t>(int64_t{S(a)} * S(b) >> 32));
OWN(Exact, mul64hi, __umul64hi(uint64_t{a} << 32 | b, uint64_t{c} << 32 | a),
    static_cast<uint64_t>(static_cast<unsigned __int128>(uint64_t{a} << 32 | b) * (uint64_t{c} << 32 | a) >> 64));
OWN(Exact, hadd, __hadd(S(a), S(b)), static_cast<int32_t>((int64_t{S(a)} + S(b)) >> 1));
OWN(Exact, urhadd, __urhadd(a, b), static_cast<uint32_t>((uint64_t{a} + b + 1) >> 1));
OWN(Exact, funnel, __funnelshift_rc(a, b, c), static_cast<uint32_t>((uint64_t{b} << 32 | a) >> std::min(c, 32u)));
OWN(Exact, find_first, __ffsll(static_cast<long long>(uint64_t{a} << 32)), a == 0 ? 0 : 33 + __builtin_ctz(a));
OWN(Exact, product128,
    static_cast<uint64_t>(static_cast<unsigned __int128>(uint64_t{a} << 20 | b) * (uint64_t{c} << 25 | a) >> 40),
    static_cast<uint64_t>(static_cast<unsigned __int128>(uint64_t{a} << 20 | b) * (uint64_t{c} << 25 | a) >> 40));

/// The mathematical library, within `kUlps` of the host's.
template <class T, int kUlps>
struct Near {
  static bool same(uint64_t a, uint64_t b) {
    const T x = bits_as<T>(a), y = bits_as<T>(b);
    if (x != x || y != y) return x != x && y != y;
    if (x == y) return true;
    const T scale = std::max(std::fabs(y), std::numeric_limits<T>::min());
    return std::fabs(x - y) <= kUlps * std::numeric_limits<T>::epsilon() * scale;
  }
};
#define MATH(name, ulps, function)                                                                \
  struct name##_double : Near<double, ulps> {                                                     \
    static __host__ __device__ uint64_t device(uint32_t a, uint32_t, uint32_t) {                  \
      return bits_as<uint64_t>(function(static_cast<double>(static_cast<int32_t>(a)) * 0x1p-27)); \
    }                                                                                             \
    static uint64_t host(uint32_t a, uint32_t b, uint32_t c) { return device(a, b, c); }          \
  };                                                                                              \
  struct name##_float : Near<float, ulps> {                                                       \
    static __host__ __device__ uint64_t device(uint32_t a, uint32_t, uint32_t) {                  \
      return bits_as<uint64_t>(function(static_cast<float>(static_cast<int32_t>(a)) * 0x1p-27f)); \
    }                                                                                             \
    static uint64_t host(uint32_t a, uint32_t b, uint32_t c) { return device(a, b, c); }          \
  }
MATH(math_sin, 4, sin);
MATH(math_exp, 4, exp);
MATH(math_log1p, 4, log1p);
MATH(math_erf, 6, erf);
MATH(math_cbrt, 4, cbrt);
MATH(math_tanh, 6, tanh);
MATH(math_asinh, 6, asinh);
MATH(math_rint, 0, rint);

int main() {
  const uint32_t edges[] = {0,          1,          0x80000000, 0x3f800000, 0xbf800001, 0x7f800000, 0xff800000,
                            0x7fc00000, 0x00800000, 0x3c003c00, 0xbc017bff, 0x7c00fc00, 0x04000001, 0x83ff0400,
                            0x7fffffff, 0xffffffff, 0x00ff7f80, 0x12345678, 0x477fe000, 0x33000001, 0x43e00000};
  for (const uint32_t a : edges)
    for (const uint32_t b : edges)
      for (const uint32_t c : {uint32_t{0}, uint32_t{0x3c003f80}, uint32_t{0xc1000007}}) inputs.push_back({a, b, c});
  uint32_t state = 12345;
  const auto random = [&] { return state = state * 1664525u + 1013904223u; };
  for (int i = 0; i < 2000; ++i) {
    const uint32_t a = random() ^ random() >> 16, b = random() ^ random() >> 16, c = random() ^ random() >> 16;
    inputs.push_back({a, b, c});
  }
  SUCCEED(cudaMalloc(&device_inputs, inputs.size() * sizeof(Input)));
  SUCCEED(cudaMalloc(&device_out, inputs.size() * sizeof(uint64_t)));
  SUCCEED(cudaMemcpy(device_inputs, inputs.data(), inputs.size() * sizeof(Input), cudaMemcpyHostToDevice));
#define TEST(name) test<name>(#name)
  TEST(half_add), TEST(half_sub), TEST(half_mul), TEST(half_fma), TEST(half_add_sat), TEST(half_fma_sat),
      TEST(half_min);
  TEST(half_max_nan), TEST(half_neg), TEST(half_abs), TEST(half2_add), TEST(half2_fma), TEST(half2_mul_sat);
  TEST(half2_min_nan), TEST(half2_max), TEST(half2_eq), TEST(half2_ltu), TEST(half2_swap), TEST(half_ge),
      TEST(half_neu);
  TEST(half2_all_le), TEST(half_nan), TEST(half_from_float_rn), TEST(half_from_float_rz), TEST(half_from_float_rd);
  TEST(half_from_float_ru), TEST(half2_from_floats), TEST(half_from_int), TEST(half_from_uint_ru),
      TEST(half_from_int64);
  TEST(half_from_short), TEST(half_to_int_rn), TEST(half_to_uint_rz), TEST(half_to_short_rd), TEST(half_to_int64_ru);
  TEST(half_floor), TEST(half_rint), TEST(half_trunc);
  TEST(brain_add), TEST(brain_mul), TEST(brain_fma), TEST(brain_sub_sat), TEST(brain2_fma), TEST(brain2_max_nan);
  TEST(brain_min), TEST(brain2_gtu), TEST(brain_lt), TEST(brain_from_float_rn), TEST(brain_from_float_rz);
  TEST(brain_from_float_rd), TEST(brain_from_float_ru), TEST(brain2_from_floats), TEST(brain_from_double);
  TEST(brain_from_int), TEST(brain_from_uint64), TEST(brain_to_int_rz), TEST(brain_to_uint64_rn), TEST(brain_ceil);
  TEST(e4m3_from_float), TEST(e5m2_from_float), TEST(e4m3_from_floats), TEST(e5m2_from_halves), TEST(e4m3_from_brain);
  TEST(e4m3_to_halves), TEST(e5m2_to_halves);
  TEST(vadd2), TEST(vsub4), TEST(vaddss2), TEST(vaddus4), TEST(vsubss4), TEST(vavgu4), TEST(vhaddu4), TEST(vabsdiffu4);
  TEST(vabsdiffs2), TEST(vmaxs4), TEST(vminu2), TEST(vcmpeq4), TEST(vsetltu4), TEST(vsadu4), TEST(vsads2);
  TEST(vaddmax_relu), TEST(vmax3), TEST(vmin3_u16x2), TEST(vaddmin_s16x2), TEST(dp2a_lo), TEST(dp2a_hi), TEST(mul24);
  TEST(usad), TEST(mulhi), TEST(mul64hi), TEST(hadd), TEST(urhadd), TEST(funnel), TEST(find_first), TEST(product128);
#define TEST_MATH(name) TEST(name##_double), TEST(name##_float)
  TEST_MATH(math_sin), TEST_MATH(math_exp), TEST_MATH(math_log1p), TEST_MATH(math_erf), TEST_MATH(math_cbrt);
  TEST_MATH(math_tanh), TEST_MATH(math_asinh), TEST_MATH(math_rint);
  SUCCEED(cudaFree(device_inputs));
  SUCCEED(cudaFree(device_out));
  std::printf("%d intrinsics, %d wrong\n", cases, wrong);
  return wrong == 0 ? 0 : 5;
}
