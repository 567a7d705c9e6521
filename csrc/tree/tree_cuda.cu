// SPDX-License-Identifier: Apache-2.0
// The tree ops on CUDA: one launch each, one block a text.
//
// The chain of dependent steps decides the time, not the bytes: with w k = 100, N = 511 and 60 nodes a text
// reads and writes 4, 16 and 4 KB. Expected, not measured on a GPU, in us, of which the launch takes some 2
// beside the ops before it:
// - tree_grow_: frontier 0.6 -> cost of the path 0.6 -> list, two barriers 0.1 -> rank, 100 steps 0.3 ->
//   token, in L1 0.1. 1.7 in all, 1.0 at the root. With w k = 1024 it selects first, 1 more.
// - tree_cut: costs, tokens and parents 0.6 -> bounds 0.1 -> some ten steps of bisection 0.8 -> bitmap and
//   sums 0.2 -> nodes 0.1 -> 6 steps of the walk 0.2. 2.0 in all.
// - tree_accept: tokens, parents and chosen tokens 0.6 -> links, two barriers 0.1 -> 6 steps 0.2 -> the
//   deepest 0.1 -> path 0.2. 1.2 in all.
// The floor of each is its first level of loads and one barrier, 0.7.
//
// Texts run beside each other up to the number of SMs. A frontier of more than 256 places is ranked in
// quadratic time: 0.1 s for the largest, 2^16. A path is followed link by link: a chain of n nodes that all
// match takes n^2 / 2048 steps of a thread.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/runtime.h"
#include "tree/tree_accept_kernel.cuh"
#include "tree/tree_cuda.h"
#include "tree/tree_cut_kernel.cuh"
#include "tree/tree_grow_kernel.cuh"

namespace microspec {

namespace tree {

// Launches a block for each text, with a thread for each of `count` elements where a block has as many.
template <class Args>
Error run(void (*kernel)(Args), const Args& args, int64_t texts, int64_t count, size_t shared, void* stream) {
  if (texts == 0) return cudaSuccess;
  const int64_t warps = ceil_div<int64_t>(std::clamp<int64_t>(count, 1, kThreads), kWarp);
  const Launch how{static_cast<unsigned>(texts), static_cast<unsigned>(warps) * kWarp, shared, stream, true};
  return launch(kernel, how, args);
}

}  // namespace tree

int run_tree_grow_cuda(const TreeGrowArgs& args, void* stream) {
  if (args.pool.texts > kMostOnCuda || args.candidates() > kMostCandidatesOnCuda) return kInvalidValue;
  return tree::run(tree::tree_grow_kernel, args, args.pool.texts, args.candidates(), 0, stream);
}

int run_tree_cut_cuda(const TreeCutArgs& args, void* stream) {
  if (args.pool.texts > kMostOnCuda || args.pool.places > kMostCandidatesOnCuda) return kInvalidValue;
  return tree::run(tree::tree_cut_kernel, args, args.pool.texts, args.pool.places,
                   tree::cut_shared_bytes(args), stream);
}

int run_tree_accept_cuda(const TreeAcceptArgs& args, void* stream) {
  if (std::max(args.texts, args.nodes) > kMostOnCuda) return kInvalidValue;
  return tree::run(tree::tree_accept_kernel, args, args.texts, args.nodes, tree::accept_shared_bytes(args),
                   stream);
}

}  // namespace microspec
