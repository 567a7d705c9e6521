// SPDX-License-Identifier: Apache-2.0
// vocab_update_ on CUDA: torch-free, enqueued on a stream (a cudaStream_t), nothing read back.
#pragma once

#include <cstddef>

#include "vocab/args.h"

namespace microspec {

// Bytes of device memory that a call needs besides its state, 256-byte aligned; 0 for all but very
// large vocabularies. Like the runner, returns a cudaError_t, 0 for success.
int vocab_cuda_workspace(const VocabArgs& args, size_t* bytes);

// Enqueues the update of every group.
int run_vocab_update_cuda(const VocabArgs& args, void* workspace, void* stream);

}  // namespace microspec
