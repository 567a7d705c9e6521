// SPDX-License-Identifier: Apache-2.0
#include "tree/tree_cuda.h"
namespace microspec {
int run_tree_grow_cuda(const TreeGrowArgs&, void*) { return 801; }
int run_tree_cut_cuda(const TreeCutArgs&, void*) { return 801; }
int run_tree_accept_cuda(const TreeAcceptArgs&, void*) { return 801; }
}  // namespace microspec
