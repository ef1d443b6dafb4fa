// Wrong kernels, to test the gate with: each is the cpu backend's own kernel with one thing broken.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "model/decoder.h"
#include "optimized/cpu/kernels.h"

namespace dsv2::harness {

/// Where a fault is one.
enum class Where : std::uint8_t {
  everywhere,  ///< but in an int8 cache, whose own are tried alone
  f32,         ///< not where activations may be rounded to bf16
  int8_cache,
  quantised,  ///< int8 and int4 matrices
  int4,
};

struct Fault {
  std::string_view name;                  ///< what is wrong: "padding visible"
  std::string_view op;                    ///< the kernel that is wrong, which the gate must name: "attention"
  void (*inject)(cpu::Kernels& kernels);  ///< replaces the kernel; one fault at a time
  Where where = Where::everywhere;
};

std::span<const Fault> faults();

/// The kernels that faulty ones call where they do the right thing. Set before a fault is injected.
void set_true_kernels(const cpu::Kernels& kernels);

/// The cpu backend with these kernels in place of its own, decoder and ops alike. The last one made is the one that
/// runs: one at a time.
Backend backend_with(const cpu::Kernels& kernels);

/// Does this op of model/op.h run the kernel `op`?
bool runs_kernel(std::string_view op_alone, std::string_view op);

}  // namespace dsv2::harness
