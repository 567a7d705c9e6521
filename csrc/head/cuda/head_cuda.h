// SPDX-License-Identifier: Apache-2.0
// The head on CUDA: torch-free, enqueued on a stream (a cudaStream_t), nothing read back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "head/args.h"

namespace microspec {

// Bytes of device memory that a call needs besides its results, 256-byte aligned. Like the runners,
// returns a cudaError_t, 0 for success.
int head_cuda_workspace(const HeadArgs& args, size_t* bytes);

// logits and token_ids are [M, k], logsumexp is [M].
int run_sparse_head_cuda(const HeadArgs& args, int64_t k, float* logits, int64_t* token_ids, float* logsumexp,
                         void* workspace, void* stream);
// logits is [M, K].
int run_sparse_logits_cuda(const HeadArgs& args, float* logits, void* workspace, void* stream);

}  // namespace microspec
