// SPDX-License-Identifier: Apache-2.0
// The launch of a tree op, one block a text.
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
#pragma once

#include <algorithm>

#include "cuda/launch.cuh"

namespace microspec::tree {

constexpr int kThreads = 1024;

// Launches a block for each text, with a thread for each of `count` elements where a block has as many.
template <class Args>
Error run(void (*kernel)(Args), const Args& args, int64_t texts, int64_t count, size_t shared, void* stream) {
  if (texts == 0) return cudaSuccess;
  const int64_t warps = ceil_div<int64_t>(std::clamp<int64_t>(count, 1, kThreads), kWarp);
  const Launch how{static_cast<unsigned>(texts), static_cast<unsigned>(warps) * kWarp, shared, stream, true};
  return launch(kernel, how, args);
}

}  // namespace microspec::tree
