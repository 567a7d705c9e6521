// SPDX-License-Identifier: Apache-2.0
// select, the second of the head's two kernels, turns dot products into logits and logits into the results.
// Torch-free.
#pragma once

#include <cstdint>

#include "cuda/launch.cuh"
#include "head/args.h"
#include "plan.h"
#include "project.h"

namespace microspec {

// The results per row of hidden: logits and token_ids are [rows, k], logsumexp is [rows].
struct Selection {
  int k;
  float* logits;
  int64_t* token_ids;
  float* logsumexp;
};

// Sets bytes to the workspace for the orders of `rows` rows: 0 if they fit in registers or shared memory.
Error select_workspace(int64_t rows, int64_t capacity, size_t& bytes);
// Enqueues the selection. workspace has select_workspace bytes, and is null for 0.
Error select(const HeadArgs& args, const Partials& partials, const Selection& selection, void* workspace,
             void* stream);

// Writes every slot's logit. logits is [rows, K].
Error finish_logits(const HeadArgs& args, const Partials& partials, float* logits, const HeadPlan& plan,
                    void* stream);

}  // namespace microspec
