// SPDX-License-Identifier: Apache-2.0
// vocab_count_ and vocab_refill_ on CUDA.
#include "vocab/learn_cuda.h"

#include "cuda/runtime.h"

namespace microspec {

int run_vocab_count_cuda(const CountArgs&, void*) { return cudaErrorNotSupported; }
int run_vocab_judge_cuda(const JudgeArgs&, const CountArgs&, void*) { return cudaErrorNotSupported; }
size_t refill_cuda_workspace(const RefillArgs&) { return 0; }
int run_vocab_refill_cuda(const RefillArgs&, void*, void*) { return cudaErrorNotSupported; }

}  // namespace microspec
