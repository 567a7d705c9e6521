// SPDX-License-Identifier: Apache-2.0
// The second of the head's two kernels: from dot products to logits, and from those to the results.
// Torch-free.
#pragma once

#include <cstdint>

#include "cuda/launch.cuh"
#include "head/args.h"
#include "project.h"

namespace microspec {

// Per row of hidden: the top k, [rows, k], and the logsumexp, [rows].
struct Selection {
  int k;
  float* logits;
  int64_t* token_ids;
  float* logsumexp;
};

// Bytes of workspace for `rows` rows: 0 where their keys fit in registers or shared memory.
size_t select_workspace(int64_t rows, int64_t capacity, const Device& device);
Error select(const HeadArgs& args, const Partials& partials, const Selection& selection, void* workspace,
             const Device& device, void* stream);

// logits: [rows, K]
Error finish_logits(const HeadArgs& args, const Partials& partials, float* logits, const Device& device,
                    void* stream);

}  // namespace microspec
