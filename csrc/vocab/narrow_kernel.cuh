// SPDX-License-Identifier: Apache-2.0
// narrow_groups_kernel writes the groups of a large ragged batch in 16 bits each. vocab_update_kernel has one
// block a group, and each of them reads the groups of all tokens: G times N numbers, from the L2 cache. Of
// int64 numbers that is most of the call's time at G = 256 and N = 76800: 157 MB. As 16 bits it is 39 MB.
//
// Not yet measured on a GPU.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "vocab/vocab_state.cuh"

namespace microspec::vocab {

constexpr int kNarrowThreads = 256;

// A number outside [0, G) becomes kNoGroup, which is none of the at most kNoGroup groups.
MICROSPEC_KERNEL(kNarrowThreads, 4)
narrow_groups_kernel(VocabArgs args, uint16_t* narrow) {
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kNarrowThreads + threadIdx.x;
  if (i >= args.count) return;
  const int64_t group = args.long_groups ? static_cast<const int64_t*>(args.token_groups)[i]
                                         : static_cast<const int32_t*>(args.token_groups)[i];
  narrow[i] = static_cast<uint16_t>(group >= 0 && group < args.groups ? group : kNoGroup);
}

}  // namespace microspec::vocab
