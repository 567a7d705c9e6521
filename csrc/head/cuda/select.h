// SPDX-License-Identifier: Apache-2.0
// select, the second of the head's two kernels, turns dot products into logits and logits into the results.
// Torch-free.
#pragma once

#include <cstdint>

#include "cuda/launch.cuh"
#include "head/args.h"
#include "project.h"

namespace microspec {

// The results per row of hidden: logits and token_ids are [rows, k], logsumexp is [rows].
struct Selection {
  int k;
  float* logits;
  int64_t* token_ids;
  float* logsumexp;
};

// Returns the bytes of workspace for `rows` rows: 0 if their keys fit in registers or shared memory.
size_t select_workspace(int64_t rows, int64_t capacity, const Device& device);
// Enqueues the selection. workspace has select_workspace bytes.
Error select(const HeadArgs& args, const Partials& partials, const Selection& selection, void* workspace,
             const Device& device, void* stream);

// Writes every slot's logit. logits is [rows, K].
Error finish_logits(const HeadArgs& args, const Partials& partials, float* logits, const Device& device,
                    void* stream);

}  // namespace microspec
