// SPDX-License-Identifier: Apache-2.0
// The head on CUDA. Torch-free. Every call enqueues its work on a stream (a cudaStream_t) and reads nothing
// back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "head/args.h"

namespace microspec {

// Sets *bytes to the device memory that a call needs besides its results, a multiple of 256. Returns a
// cudaError_t, 0 for success, as the runners do.
int head_cuda_workspace(const HeadArgs& args, size_t* bytes);

// Computes the top k of each row. logits and token_ids are [M, k], logsumexp is [M].
int run_sparse_head_cuda(const HeadArgs& args, int64_t k, float* logits, int64_t* token_ids, float* logsumexp,
                         void* workspace, void* stream);
// Computes every slot's logit. logits is [M, K].
int run_sparse_logits_cuda(const HeadArgs& args, float* logits, void* workspace, void* stream);

}  // namespace microspec
