// SPDX-License-Identifier: Apache-2.0
// vocab_count_ and vocab_refill_ on CUDA. Torch-free. Every call enqueues its work on a stream (a
// cudaStream_t), reads nothing back, and returns a cudaError_t, 0 for success.
#pragma once

#include <cstddef>

#include "vocab/learn_args.h"

namespace microspec {

int run_vocab_count_cuda(const CountArgs& args, void* stream);
// Judges and counts, with one kernel. Either part may be absent: no verdicts, no text_counts.
int run_vocab_judge_cuda(const JudgeArgs& judge, const CountArgs& count, void* stream);

// Returns the device memory, in bytes, that a refill needs besides its state.
size_t refill_cuda_workspace(const RefillArgs& args);
int run_vocab_refill_cuda(const RefillArgs& args, void* workspace, void* stream);

}  // namespace microspec
