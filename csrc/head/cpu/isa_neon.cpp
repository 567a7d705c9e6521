// SPDX-License-Identifier: Apache-2.0
// Advanced SIMD, which every ARMv8 processor has, without bf16 arithmetic: Graviton2, Ampere Altra.
//
// Rows are widened to fp32: bf16 by a shift, fp16 by FCVTL, int8 by two extensions and SCVTF, fp8
// through fp16. A multiply-add is one FMLA of four lanes. So R rows and C activations cost R * C FMLA
// for (R + C) loads and R widenings; with 4 * 6 accumulators the FMLAs are the most of it, and their
// chains (two to four cycles each) are hidden six times over. Speed was not measured: these kernels
// were tested under an emulator.
#include <cstdint>

#include "head/args.h"
#include "kernels.h"
#include "simd_neon.h"

namespace microspec {
namespace neon {

constexpr int64_t kChunk = NeonVec::kLanes;

#include "panel.inl"
#include "select.inl"

}  // namespace neon

const InstructionSet kNeon = {"neon", neon::widening_head<NeonVec>, neon::select};

}  // namespace microspec
