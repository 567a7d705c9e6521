// SPDX-License-Identifier: Apache-2.0
// vocab_count_, vocab_refill_ and the first half of vocab_observe_ on CUDA. Torch-free. Every call enqueues
// its work on a stream (a cudaStream_t), reads nothing back, and returns a cudaError_t, 0 for success.
#pragma once

#include <cstddef>

#include "vocab/learn_args.h"
#include "vocab/observe_args.h"

namespace microspec {

int run_vocab_count_cuda(const CountArgs& args, void* stream);
// Judges, counts and writes the ids, with one kernel.
int run_vocab_observe_cuda(const ObserveArgs& args, void* stream);

// Returns the device memory, in bytes, that a refill needs besides its state.
size_t refill_cuda_workspace(const RefillArgs& args);
int run_vocab_refill_cuda(const RefillArgs& args, void* workspace, void* stream);

}  // namespace microspec
