// AVX-512 with VDPBF16PS: Cooper Lake, Sapphire Rapids, Zen 4 and later. Two products of bf16 a lane
// and no widening: half the instructions and half the bytes of activations.
#include <cstdint>

#include "head/args.h"
#include "kernels.h"
#include "simd_avx512bf16.h"

namespace microspec {
namespace avx512bf16 {

constexpr int64_t kChunk = Avx512Vec::kLanes;

#include "panel.inl"
#include "select.inl"

HeadKernel head(DType weight_type, DType hidden_type) {
  return weight_type == DType::bf16 ? head_kernel<Bf16Mac>(DType::bf16)
                                    : widening_head<Avx512Vec>(weight_type, hidden_type);
}

}  // namespace avx512bf16

const InstructionSet kAvx512Bf16 = {"avx512bf16", avx512bf16::head, avx512bf16::select};

}  // namespace microspec
