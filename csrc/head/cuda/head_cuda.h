// SPDX-License-Identifier: Apache-2.0
// The head on CUDA. Torch-free. Every call enqueues its work on a stream (a cudaStream_t) and reads nothing
// back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "head/args.h"
#include "head/sample_args.h"
#include "plan.h"

namespace microspec {

// Sets *plan to the plan of a call, and with it to the bytes of device memory that the call needs besides its
// results. `selects`: for run_sparse_head_cuda, not for the others. Returns a cudaError_t, 0 for
// success, as the runners do.
int plan_head_cuda(const HeadArgs& args, bool selects, HeadPlan* plan);

// Computes the top k of each row. logits and token_ids are [M, k], logsumexp is [M].
int run_sparse_head_cuda(const HeadArgs& args, const HeadPlan& plan, int64_t k, float* logits,
                         int64_t* token_ids, float* logsumexp, void* workspace, void* stream);
// Computes every slot's logit. logits is [M, K].
int run_sparse_logits_cuda(const HeadArgs& args, const HeadPlan& plan, float* logits, void* workspace,
                           void* stream);
// Draws a token of each row.
int run_sparse_sample_cuda(const HeadArgs& args, const SampleArgs& sample, const HeadPlan& plan,
                           void* workspace, void* stream);

}  // namespace microspec
