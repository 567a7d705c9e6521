// SPDX-License-Identifier: Apache-2.0
// vocab_update_ on CUDA. Torch-free. Every call enqueues its work on a stream (a cudaStream_t) and reads
// nothing back.
#pragma once

#include <cstddef>

#include "vocab/args.h"

namespace microspec {

// Sets *bytes to the device memory that a call needs besides its state, a multiple of 256: 0 except for very
// large vocabularies. Returns a cudaError_t, 0 for success, as the runner does.
int vocab_cuda_workspace(const VocabArgs& args, size_t* bytes);

// Enqueues the update of every group.
int run_vocab_update_cuda(const VocabArgs& args, void* workspace, void* stream);

}  // namespace microspec
