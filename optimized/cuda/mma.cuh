// Tensor cores and asynchronous copies (sm_80), an instruction a function.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace dsv2::cuda {

__device__ inline unsigned shared_address(const void* at) {
  return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

/// A 16 x 16 piece of bf16 in shared memory as mma takes it: lane l gives the address of one of its 32 rows of 8.
__device__ inline void load_fragment(unsigned (&f)[4], const __nv_bfloat16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
               : "r"(shared_address(row))
               : "memory");
}
/// The same, each 8 x 8 piece transposed.
__device__ inline void load_fragment_transposed(unsigned (&f)[4], const __nv_bfloat16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
               : "r"(shared_address(row))
               : "memory");
}
/// c += a b of 16 x 8 x 16.
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// Two neighbours of a fragment.
__device__ inline unsigned pack(float low, float high) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const unsigned&>(two);
}
/// Four neighbours in memory.
__device__ inline std::uint64_t pack(const float4& x) {
  return pack(x.x, x.y) | static_cast<std::uint64_t>(pack(x.z, x.w)) << 32;
}

/// 16 bytes, aligned, from global to shared memory; not present: zeros, and `from` is not read.
__device__ inline void copy_async(void* to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(present ? 16 : 0)
               : "memory");
}
/// Ends a group of the copies of this thread.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until no more than the LEFT latest groups of this thread are under way. Other threads see them after a barrier.
template <int LEFT>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

}  // namespace dsv2::cuda
