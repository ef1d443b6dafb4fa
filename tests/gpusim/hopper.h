// PTX of compute_90a as statements, for the kernels of these tests: macros, so that a line is the line of its use.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

/// CUtensorMap as kernels see it: its 128 bytes.
struct alignas(64) TensorMapBytes {
  unsigned char bytes[128];
};

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

#define MBARRIER_INIT(barrier, count) \
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&(barrier))), "r"(count) : "memory")
#define MBARRIER_INVAL(barrier) \
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(&(barrier))) : "memory")
#define MBARRIER_ARRIVE(barrier) \
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(&(barrier))) : "memory")
#define MBARRIER_ARRIVE_COUNT(barrier, count)                                                                \
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&(barrier))), \
               "r"(count)                                                                                    \
               : "memory")
#define MBARRIER_ARRIVE_STATE(state, barrier) \
  asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(shared_address(&(barrier))) : "memory")
#define MBARRIER_ARRIVE_EXPECT(barrier, bytes)                                                                         \
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&(barrier))), \
               "r"(bytes)                                                                                              \
               : "memory")
#define MBARRIER_TRY_WAIT(done, barrier, parity)                                 \
  asm volatile(                                                                  \
      "{\n .reg .pred p;\n"                                                      \
      " mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"                 \
      " selp.u32 %0, 1, 0, p;\n}"                                                \
      : "=r"(done)                                                               \
      : "r"(shared_address(&(barrier))), "r"(static_cast<std::uint32_t>(parity)) \
      : "memory")
#define MBARRIER_WAIT(barrier, parity) \
  for (std::uint32_t done_ = 0; done_ == 0;) MBARRIER_TRY_WAIT(done_, barrier, parity)
#define MBARRIER_TEST_WAIT_STATE(done, barrier, state)     \
  asm volatile(                                            \
      "{\n .reg .pred p;\n"                                \
      " mbarrier.test_wait.shared::cta.b64 p, [%1], %2;\n" \
      " selp.u32 %0, 1, 0, p;\n}"                          \
      : "=r"(done)                                         \
      : "r"(shared_address(&(barrier))), "l"(state)        \
      : "memory")

#define MBARRIER_TEST_WAIT(done, barrier, parity)                                \
  asm volatile(                                                                  \
      "{\n .reg .pred p;\n"                                                      \
      " mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"                \
      " selp.u32 %0, 1, 0, p;\n}"                                                \
      : "=r"(done)                                                               \
      : "r"(shared_address(&(barrier))), "r"(static_cast<std::uint32_t>(parity)) \
      : "memory")

#define BULK_LOAD(to, from, bytes, barrier)                                                                     \
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"( \
                   shared_address(to)),                                                                         \
               "l"(from), "r"(bytes), "r"(shared_address(&(barrier)))                                           \
               : "memory")
#define BULK_STORE(to, from, bytes)                                                                                \
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)), \
               "r"(bytes)                                                                                          \
               : "memory")
#define BULK_REDUCE(operation_and_type, to, from, bytes)                                                              \
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group." operation_and_type " [%0], [%1], %2;" ::"l"(to), \
               "r"(shared_address(from)), "r"(bytes)                                                                  \
               : "memory")
#define BULK_COMMIT() asm volatile("cp.async.bulk.commit_group;" ::: "memory")
#define BULK_WAIT(n) asm volatile("cp.async.bulk.wait_group %0;" ::"n"(n) : "memory")
#define BULK_WAIT_READ(n) asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(n) : "memory")
#define FENCE_PROXY_ASYNC() asm volatile("fence.proxy.async.shared::cta;" ::: "memory")
#define FENCE_MBARRIER_INIT() asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory")

#define TENSOR_LOAD_2D(to, map, x, y, barrier)                                                                  \
  asm volatile(                                                                                                 \
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], " \
      "[%4];" ::"r"(shared_address(to)),                                                                        \
      "l"(&(map)), "r"(x), "r"(y), "r"(shared_address(&(barrier)))                                              \
      : "memory")
#define TENSOR_LOAD_3D(to, map, x, y, z, barrier)                                                                   \
  asm volatile(                                                                                                     \
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], " \
      "[%5];" ::"r"(shared_address(to)),                                                                            \
      "l"(&(map)), "r"(x), "r"(y), "r"(z), "r"(shared_address(&(barrier)))                                          \
      : "memory")
#define TENSOR_STORE_2D(map, x, y, from)                                                                         \
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&(map)), \
               "r"(x), "r"(y), "r"(shared_address(from))                                                         \
               : "memory")

#define WGMMA_FENCE() asm volatile("wgmma.fence.sync.aligned;" ::: "memory")
#define WGMMA_COMMIT() asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory")
#define WGMMA_WAIT(n) asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory")

#define REGISTERS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define REGISTERS_16(d, i) REGISTERS_4(d, i), REGISTERS_4(d, i + 4), REGISTERS_4(d, i + 8), REGISTERS_4(d, i + 12)
#define REGISTERS_32(d, i) REGISTERS_16(d, i), REGISTERS_16(d, i + 16)
#define NAMES_32                                                                       \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22," \
  "%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_64                                                                                                      \
  NAMES_32                                                                                                            \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59," \
  "%60,%61,%62,%63"

/// d += A B, bf16, A and B by descriptors; whether A and B are transposed.
#define WGMMA_N64(d, a, b, adds, transpose_a, transpose_b)                                                    \
  asm volatile(                                                                                               \
      "{\n .reg .pred p;\n setp.ne.b32 p, %34, 0;\n"                                                          \
      " wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, %32, %33, p, 1, 1, %35, %36;\n}" \
      : REGISTERS_32(d, 0)                                                                                    \
      : "l"(a), "l"(b), "r"(static_cast<int>(adds)), "n"(transpose_a), "n"(transpose_b))
#define WGMMA_N128(d, a, b, adds, transpose_a, transpose_b)                                                    \
  asm volatile(                                                                                                \
      "{\n .reg .pred p;\n setp.ne.b32 p, %66, 0;\n"                                                           \
      " wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, %64, %65, p, 1, 1, %67, %68;\n}" \
      : REGISTERS_32(d, 0), REGISTERS_32(d, 32)                                                                \
      : "l"(a), "l"(b), "r"(static_cast<int>(adds)), "n"(transpose_a), "n"(transpose_b))
/// The same with A in four registers.
#define WGMMA_N64_REGISTERS(d, a, b, adds, transpose_b)                                                                \
  asm volatile(                                                                                                        \
      "{\n .reg .pred p;\n setp.ne.b32 p, %37, 0;\n"                                                                   \
      " wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}" \
      : REGISTERS_32(d, 0)                                                                                             \
      : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "l"(b), "r"(static_cast<int>(adds)), "n"(transpose_b))

/// A matrix descriptor: byte offsets, and the swizzle as the descriptor counts it (1: 128, 2: 64, 3: 32 bytes).
__device__ inline std::uint64_t descriptor(const void* at, std::uint64_t leading, std::uint64_t stride,
                                           std::uint64_t swizzle) {
  return (shared_address(at) & 0x3ffffu) >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | swizzle << 62;
}
