// SPDX-License-Identifier: Apache-2.0
// vocab_refill_ on CUDA: the workspace and the two launches.
#include <algorithm>

#include "cuda/runtime.h"
#include "vocab/learn_cuda.h"
#include "vocab/refill_kernel.cuh"
#include "vocab/refill_stamps_kernel.cuh"

namespace microspec {

size_t refill_cuda_workspace(const RefillArgs& args) {
  const refill::Layout layout = refill::layout_of(args);
  return ceil_div<size_t>(layout.words * 4 * args.groups, 256) * 256;
}

int run_vocab_refill_cuda(const RefillArgs& args, void* workspace, void* stream) {
  if (std::max({args.capacity, args.groups, args.vocab_size}) > kMostOnCuda) return kInvalidValue;
  if (args.groups == 0) return cudaSuccess;
  const refill::Layout layout = refill::layout_of(args);
  auto* const words = static_cast<uint32_t*>(workspace);
  const Launch fill{static_cast<unsigned>(args.groups), refill::kThreads, 0, stream, true};
  const Error error = launch(refill::refill_kernel, fill, args, layout, words);
  if (error || !args.reset || args.capacity == 0) return error;
  const auto blocks_per_group = static_cast<int>(ceil_div<int64_t>(args.capacity, kWarp));
  const Launch stamp{static_cast<unsigned>(args.groups * blocks_per_group), refill::kStampThreads, 0, stream,
                     true};
  return launch(refill::refill_stamps_kernel, stamp, args, layout, words, blocks_per_group);
}

}  // namespace microspec
