// SPDX-License-Identifier: Apache-2.0
// The instructions that CUDA C++ has no name for, one function each, on generic pointers. Kernels contain no
// inline assembly. csrc/emulation/ptx.h implements the same functions on the host, and
// tests/gpu/test_conformance.py compares the two on a GPU.
#pragma once

#include "platform.cuh"

#ifdef MICROSPEC_EMULATION
#include "emulation/ptx.h"
#else

namespace microspec::ptx {

MICROSPEC_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Loads 16 aligned bytes of global memory that no thread reads twice. Not ld.global.nc: under dependent
// launch a kernel before may write them while this one runs, and the path for read-only data does not promise
// to see that write, even after wait_for_earlier_kernels.
MICROSPEC_DEVICE uint4 load_once16(const void* global) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(global)));
  return v;
}

// Loads 16 aligned bytes of shared memory. nvcc may split an ordinary load of 16 bytes into words, as it does
// where each half of a word goes to a conversion from e4m3. Each word is then a request of its own.
MICROSPEC_DEVICE uint4 load_shared16(const void* shared) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(shared_address(shared)));
  return v;
}

// ---- Barriers in shared memory that asynchronous copies arrive on
//
// Initialises a barrier for `arrivals` arrivals a phase. mbarrier_init_fence and a block barrier must follow.
MICROSPEC_DEVICE void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine.
MICROSPEC_DEVICE void mbarrier_init_fence() {
#if MICROSPEC_ARCH >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// Waits until the phase of the given parity is over: 0 for the first phase, 1 for the second, 0 for …
MICROSPEC_DEVICE void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{ .reg .pred done;\n"
#if MICROSPEC_ARCH >= 900  // sleeps in hardware for a while
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
#else
        "mbarrier.test_wait.parity.shared.b64 done, [%1], %2;\n"
#endif
        "selp.u32 %0, 1, 0, done; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

// ---- cp.async: each thread copies 16 or 4 aligned bytes from global to shared memory
MICROSPEC_DEVICE void cp_async16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
}
MICROSPEC_DEVICE void cp_async4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
}
// Arrives once on the barrier when all copies that this thread has started are complete.
MICROSPEC_DEVICE void cp_async_arrive(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// ---- Bulk copies (sm_90): one thread copies any number of bytes through the copy engine
//
// Arrives once and announces `bytes` that bulk copies will deliver in this phase.
MICROSPEC_DEVICE void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
#if MICROSPEC_ARCH >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}
// Copies `bytes` (a multiple of 16, both ends 16-byte aligned) and counts them on the barrier.
MICROSPEC_DEVICE void bulk_copy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
#if MICROSPEC_ARCH >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#endif
}

// ---- Tensor cores: d[16 x 8] += a[16 x 16] · b[16 x 8], accumulated in fp32
//
// Lane 4g + t holds a[g][2t..], a[g + 8][2t..], a[g][2t + 8..], a[g + 8][2t + 8..] (two elements each),
// b[2t..][g], b[2t + 8..][g], and d[g][2t..], d[g + 8][2t..].
MICROSPEC_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
MICROSPEC_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Returns the value, and hides from the compiler where it comes from. So nothing that is computed from it
// moves out of a loop, where it would take a register for as long as the loop runs.
MICROSPEC_DEVICE int computed_here(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// ---- Logic: (word & mask) ^ bits. nvcc makes two instructions of it if both are constants.
MICROSPEC_DEVICE uint32_t and_xor(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
  return result;
}

// ---- Arithmetic on pairs: a · b + c, each half rounded once
MICROSPEC_DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
MICROSPEC_DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// ---- Conversions. A pair is one word, with the first element in the low half.
MICROSPEC_DEVICE float2 float2_of_f16x2(uint32_t pair) {
  float2 v;
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
      : "=f"(v.x), "=f"(v.y)
      : "r"(pair));
  return v;
}
// Rounds to the nearest, ties to even.
MICROSPEC_DEVICE uint32_t f16x2_of_floats(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
MICROSPEC_DEVICE uint32_t bf16x2_of_floats(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// Converts two e4m3 in the low half of `pair` to two fp16, exactly (sm_89).
MICROSPEC_DEVICE uint32_t f16x2_of_e4m3x2(uint32_t pair) {
  uint32_t halves = 0;
#if MICROSPEC_ARCH >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<unsigned short>(pair)));
#endif
  return halves;
}
// Rounds to the nearest, ties to even, and clamps to ±448 (sm_89).
MICROSPEC_DEVICE uint32_t e4m3x2_of_floats(float low, float high) {
  unsigned short pair = 0;
#if MICROSPEC_ARCH >= 890
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
#endif
  return pair;
}

// ---- Dependent launch (sm_90): see launch.cuh
//
// Returns when the kernels before this one in the stream are over and their writes are visible.
MICROSPEC_DEVICE void wait_for_earlier_kernels() {
#if MICROSPEC_ARCH >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel in the stream start as soon as every block has called this and there is room.
MICROSPEC_DEVICE void let_next_kernel_start() {
#if MICROSPEC_ARCH >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace microspec::ptx

#endif  // MICROSPEC_EMULATION
