// SPDX-License-Identifier: Apache-2.0
// The functions of cuda/ptx.cuh on the host.
#pragma once

#include "numbers.h"
#include "platform.h"

namespace microspec::ptx {

namespace detail {

using emulation::Kind;
using emulation::Site;

// The content of an initialised mbarrier's memory, which reveals an overwrite.
constexpr uint64_t kMBarrier = 0x6d62617272696572;

inline void require_arch(int arch, const char* what, const Site& site) {
  if (MICROSPEC_ARCH < arch) emulation::fail(Kind::unsupported, what, site);
}

inline void check_mbarrier(const uint64_t* barrier, const Site& site) {
  emulation::check_aligned(barrier, 8, "an mbarrier's address", site);
  if (__atomic_load_n(barrier, __ATOMIC_RELAXED) != kMBarrier) {
    emulation::fail(Kind::mbarrier, "an mbarrier that was not initialised, or was overwritten", site);
  }
}

// The addresses and `bytes` must be multiples of `unit`.
inline void check_copy(const void* shared, const void* global, uint32_t bytes, uint32_t unit,
                       const Site& site) {
  emulation::check_aligned(shared, unit, "the target of an asynchronous copy", site);
  emulation::check_aligned(global, unit, "the source of an asynchronous copy", site);
  if (bytes == 0 || bytes % unit) {
    emulation::fail(Kind::mbarrier, "an asynchronous copy of " + std::to_string(bytes) + " bytes", site);
  }
  if (!emulation::current->block->shared.contains(shared, bytes)) {
    emulation::fail(Kind::shared_memory,
                    "an asynchronous copy to " + std::to_string(bytes) + " bytes not all in one shared array",
                    site);
  }
}

inline emulation::AsyncCopies& copies() { return emulation::current->block->copies; }

inline void mma(float* d, const uint32_t* a, const uint32_t* b, bool bf16, const Site& site) {
  emulation::MmaLane lane{d, a, b, bf16};
  const auto address = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(&lane));
  emulation::warp_collective("mma", {emulation::WarpOp::mma, 0xffffffffu, address}, site);
}

template <class Widen, class Round>
uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c, Widen widen, Round round) {
  const auto half = [&](int shift) -> uint32_t {
    const auto at = [&](uint32_t pair) { return widen(static_cast<uint16_t>(pair >> shift)); };
    return uint32_t{round(fmaf(at(a), at(b), at(c)))} << shift;
  };
  return half(16) | half(0);
}

}  // namespace detail

MICROSPEC_DEVICE uint4 load_once16(const void* global, MICROSPEC_SITE) {
  return emulation::load(static_cast<const uint4*>(global), "a 16-byte load", site);
}

MICROSPEC_DEVICE uint4 load_shared16(const void* shared, MICROSPEC_SITE) {
  return emulation::load(static_cast<const uint4*>(shared), "a 16-byte load", site);
}

MICROSPEC_DEVICE void mbarrier_init(uint64_t* barrier, int arrivals, MICROSPEC_SITE) {
  emulation::check_aligned(barrier, 8, "an mbarrier's address", site);
  detail::copies().init(barrier, arrivals, site);
  *barrier = detail::kMBarrier;
}
MICROSPEC_DEVICE void mbarrier_init_fence() {}
MICROSPEC_DEVICE void mbarrier_wait(uint64_t* barrier, uint32_t parity, MICROSPEC_SITE) {
  detail::check_mbarrier(barrier, site);
  detail::copies().wait(barrier, parity, site);
}

MICROSPEC_DEVICE void cp_async16(void* shared, const void* global, MICROSPEC_SITE) {
  detail::check_copy(shared, global, 16, 16, site);
  detail::copies().add(shared, global, 16);
}
MICROSPEC_DEVICE void cp_async4(void* shared, const void* global, MICROSPEC_SITE) {
  detail::check_copy(shared, global, 4, 4, site);
  detail::copies().add(shared, global, 4);
}
MICROSPEC_DEVICE void cp_async_arrive(uint64_t* barrier, MICROSPEC_SITE) {
  detail::check_mbarrier(barrier, site);
  detail::copies().arrive_after_own(barrier, site);
}

MICROSPEC_DEVICE void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes, MICROSPEC_SITE) {
  detail::require_arch(900, "an arrival that announces bytes", site);
  detail::check_mbarrier(barrier, site);
  detail::copies().arrive(barrier, bytes, site);
}
MICROSPEC_DEVICE void bulk_copy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier,
                                MICROSPEC_SITE) {
  detail::require_arch(900, "a bulk copy", site);
  detail::check_mbarrier(barrier, site);
  detail::check_copy(shared, global, bytes, 16, site);
  detail::copies().add_bulk(shared, global, bytes, barrier, site);
}

MICROSPEC_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                               MICROSPEC_SITE) {
  detail::mma(d, a, b, true, site);
}
MICROSPEC_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], MICROSPEC_SITE) {
  detail::mma(d, a, b, false, site);
}

MICROSPEC_DEVICE int computed_here(int value) { return value; }

MICROSPEC_DEVICE uint32_t and_xor(uint32_t word, uint32_t mask, uint32_t bits) {
  return (word & mask) ^ bits;
}

// Each half is rounded to a float on the way, which is exact for products of codes.
MICROSPEC_DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  return detail::fma_halves(a, b, c, emulation::float_of_bf16, emulation::bf16_of_float);
}
MICROSPEC_DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  return detail::fma_halves(a, b, c, emulation::float_of_f16, emulation::f16_of_float);
}

MICROSPEC_DEVICE float2 float2_of_f16x2(uint32_t pair) {
  return {emulation::float_of_f16(static_cast<uint16_t>(pair)),
          emulation::float_of_f16(static_cast<uint16_t>(pair >> 16))};
}
MICROSPEC_DEVICE uint32_t f16x2_of_floats(float low, float high) {
  return uint32_t{emulation::f16_of_float(high)} << 16 | emulation::f16_of_float(low);
}
MICROSPEC_DEVICE uint32_t bf16x2_of_floats(float low, float high) {
  return uint32_t{emulation::bf16_of_float(high)} << 16 | emulation::bf16_of_float(low);
}
MICROSPEC_DEVICE uint32_t f16x2_of_e4m3x2(uint32_t pair, MICROSPEC_SITE) {
  detail::require_arch(890, "a conversion from e4m3", site);
  return f16x2_of_floats(emulation::float_of_e4m3(static_cast<uint8_t>(pair)),
                         emulation::float_of_e4m3(static_cast<uint8_t>(pair >> 8)));
}
MICROSPEC_DEVICE uint32_t e4m3x2_of_floats(float low, float high, MICROSPEC_SITE) {
  detail::require_arch(890, "a conversion to e4m3", site);
  return uint32_t{emulation::e4m3_of_float(high)} << 8 | emulation::e4m3_of_float(low);
}

// One launch is over before the next one begins, so there is nothing to wait for. Code for older GPUs has no
// such instruction.
MICROSPEC_DEVICE void wait_for_earlier_kernels() {
  emulation::end_of_declarations();
  if (MICROSPEC_ARCH >= 900) emulation::note_wait_for_earlier_kernels();
}
MICROSPEC_DEVICE void let_next_kernel_start() {}

}  // namespace microspec::ptx
