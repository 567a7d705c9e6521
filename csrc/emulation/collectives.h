// SPDX-License-Identifier: Apache-2.0
// Collective operations of the lanes of a warp and the threads of a block.
#pragma once

#include "runtime.h"

namespace microspec::emulation {

// Waits until all lanes of the mask are at the same operation. Returns the caller's result.
uint64_t warp_collective(const char* name, const WarpRequest& request, const Site& site);

enum class BarrierResult { none, count, all, any };
int block_barrier(const char* name, BarrierResult wanted, int predicate, const Site& site);

// Operands of one lane of mma.sync m16n8k16.
struct MmaLane {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  bool bf16;
};
void multiply(const std::array<MmaLane*, 32>& lanes);

}  // namespace microspec::emulation
