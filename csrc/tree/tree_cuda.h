// SPDX-License-Identifier: Apache-2.0
// The tree ops on CUDA. Torch-free. Every call enqueues work on `stream` and returns a cudaError_t.
#pragma once

#include "tree/args.h"

namespace microspec {

int run_tree_grow_cuda(const TreeGrowArgs& args, void* stream);
int run_tree_cut_cuda(const TreeCutArgs& args, void* stream);
int run_tree_accept_cuda(const TreeAcceptArgs& args, void* stream);

}  // namespace microspec
