// SPDX-License-Identifier: Apache-2.0
// vocab_update_ on CUDA. Torch-free. Every call enqueues its work on a stream (a cudaStream_t) and reads
// nothing back.
#pragma once

#include <cstddef>

#include "vocab/args.h"

namespace microspec {

namespace vocab {

// The layout of the arrays that grow with the call, in dynamic shared memory or in a group's words of the
// workspace. The last uses [K] begin at word 0. The newcomers [min(K, N)] follow, newest first; then, for a
// ragged batch, the queue [kQueue] of its positions.
struct Layout {
  int64_t newcomers;  // their first word, even
  int64_t queue;      // its first word
  int64_t words;      // words in total
};

// The groups of a ragged batch as the kernel reads them: each block reads all of them.
struct TokenGroups {
  const void* data;  // [N]; null: tokens are [G, N]
  int bytes;         // of a number: 2 (narrow_groups_kernel's), 4 or 8
};

}  // namespace vocab

// How a call runs. The plan is made once a call and handed on.
struct VocabPlan {
  void (*kernel)(VocabArgs, vocab::TokenGroups, vocab::Layout, int32_t*);
  vocab::Layout layout;
  bool in_shared;       // the layout is in shared memory; else at the start of the workspace, by group
  size_t layout_bytes;  // of the workspace
  size_t narrow_bytes;  // of the workspace, after them: 0 if token_groups are read as they are

  size_t workspace_bytes() const { return layout_bytes + narrow_bytes; }
};

// Sets *plan to the plan of a call, and with it to the device memory that the call needs besides its state:
// none except for very large vocabularies and large ragged batches. Returns a cudaError_t, 0 for success, as
// the runner does.
int plan_vocab_cuda(const VocabArgs& args, VocabPlan* plan);

// Enqueues the update of every group.
int run_vocab_update_cuda(const VocabArgs& args, const VocabPlan& plan, void* workspace, void* stream);

}  // namespace microspec
