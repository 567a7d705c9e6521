// SPDX-License-Identifier: Apache-2.0
// AVX-512 without bf16 arithmetic: Skylake to Ice Lake.
#include <cstdint>

#include "head/args.h"
#include "kernels.h"
#include "simd_avx512.h"

namespace microspec {
namespace avx512 {

constexpr int64_t kChunk = Avx512Vec::kLanes;

#include "panel.inl"
#include "select.inl"
#include "draw.inl"

}  // namespace avx512

const InstructionSet kAvx512 = {"avx512", avx512::widening_head<Avx512Vec>, avx512::select, avx512::draw};

}  // namespace microspec
