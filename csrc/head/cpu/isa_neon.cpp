// SPDX-License-Identifier: Apache-2.0
// Advanced SIMD without bf16 arithmetic, which every ARMv8 processor has: Graviton2, Ampere Altra.
//
// Rows are widened to fp32: bf16 by a shift, fp16 by FCVTL, int8 by two extensions and SCVTF, fp8 through
// fp16. One FMLA does four lanes' multiply-adds. So R rows and C activations cost R * C FMLAs for R + C loads
// and R widenings. With 4 * 6 accumulators the FMLAs dominate, and there are enough independent chains to
// hide their latency (two to four cycles) six times over. Speed was not measured: these kernels were tested
// under an emulator.
#include <cstdint>

#include "head/args.h"
#include "kernels.h"
#include "simd_neon.h"

namespace microspec {
namespace neon {

constexpr int64_t kChunk = NeonVec::kLanes;

#include "panel.inl"
#include "select.inl"
#include "draw.inl"

}  // namespace neon

const InstructionSet kNeon = {"neon", neon::widening_head<NeonVec>, neon::select, neon::draw};

}  // namespace microspec
