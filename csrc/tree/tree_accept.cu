// SPDX-License-Identifier: Apache-2.0
// tree_accept_kernel finds the path that the target chose in the tree of a text, one block a text.
//
//   1. A node's link is its parent if the target chose the node's token there, else kNone.
//   2. A thread a node follows the links. The node is accepted if that leads to the root in `depth` steps.
//   3. The block finds the deepest accepted node, the first of equals.
//   4. One thread follows that node's links, writes the path and marks its nodes.
#include <algorithm>

#include "cuda/block_reduce.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"
#include "tree/tree_cuda.h"
#include "tree/tree_launch.cuh"

namespace microspec {

namespace tree {

// The most nodes whose links and chosen tokens a block keeps in shared memory, 32 KB. The links of others are
// in node_tokens, which is written last.
constexpr int64_t kMostStaged = 2048;
constexpr int64_t kNone = -1, kOnPath = -2;  // instead of a parent

inline size_t accept_shared_bytes(const TreeAcceptArgs& args) {
  return args.nodes <= kMostStaged ? 2 * args.nodes * sizeof(int64_t) : 0;
}

struct AcceptState {
  uint32_t depths[kMaxWarps];
  uint32_t leaves[kMaxWarps];
};

// The better of nodes: the deepest, the first of equals.
struct Leaf {
  uint32_t depth, node;
};

// Returns the best leaf of a warp's lanes.
MICROSPEC_DEVICE Leaf best_of_lanes(Leaf leaf) {
  const uint32_t depth = __reduce_max_sync(kAllLanes, leaf.depth);
  return {depth, __reduce_min_sync(kAllLanes, leaf.depth == depth ? leaf.node : ~uint32_t{0})};
}

MICROSPEC_KERNEL(kThreads, 1)
tree_accept_kernel(TreeAcceptArgs args) {
  MICROSPEC_SHARED(AcceptState, storage, 1);
  MICROSPEC_DYNAMIC_SHARED(dynamic);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  AcceptState& state = storage[0];
  const int64_t text = blockIdx.x, nodes = args.nodes, offset = text * nodes;
  int64_t* const node_tokens = args.node_tokens + offset;
  const bool is_staged = nodes <= kMostStaged;
  auto* const staged = reinterpret_cast<int64_t*>(dynamic);
  int64_t* const links = is_staged ? staged : node_tokens;
  const int64_t* const chosen = is_staged ? staged + nodes : args.chosen + offset;

  // The first level of loads: also what a thread's first node needs after the barrier.
  const int64_t mine = threadIdx.x;
  const int64_t my_token = mine < nodes ? args.tokens[offset + mine] : -1;
  const int64_t my_parent = mine < nodes ? args.parents[offset + mine] : kNone;
  if (is_staged) {
    for (int64_t node = mine; node < nodes; node += blockDim.x) {
      staged[nodes + node] = args.chosen[offset + node];
    }
  }
  __syncthreads();
  for (int64_t node = mine; node < nodes; node += blockDim.x) {
    const int64_t token = node == mine ? my_token : args.tokens[offset + node];
    const int64_t parent = node == mine ? my_parent : args.parents[offset + node];
    links[node] = parent >= 0 && parent < node && token == chosen[parent] ? parent : kNone;
  }
  __syncthreads();

  Leaf best{0, 0};
  for (int64_t node = mine; node < nodes; node += blockDim.x) {
    int64_t ancestor = node, depth = 0;
    for (; ancestor > 0 && depth < args.depth; ++depth) ancestor = links[ancestor];
    if (ancestor == 0 && depth > best.depth) {
      best = {static_cast<uint32_t>(depth), static_cast<uint32_t>(node)};
    }
  }
  best = best_of_lanes(best);
  if (lane_index() == 0) {
    state.depths[warp_index()] = best.depth;
    state.leaves[warp_index()] = best.node;
  }
  __syncthreads();
  best = best_of_lanes({word_of_warp(state.depths, uint32_t{0}), word_of_warp(state.leaves, ~uint32_t{0})});

  int64_t* const paths = args.paths + text * args.length;
  int64_t* const path_tokens = args.path_tokens + text * args.length;
  if (threadIdx.x == 0) {
    args.counts[text] = static_cast<int64_t>(best.depth) + 1;
    args.leaves[text] = best.node;
    int64_t node = best.node;
    for (int64_t step = best.depth; step >= 0; --step) {
      paths[step] = node;
      path_tokens[step] = chosen[node];
      const int64_t parent = links[node];
      links[node] = kOnPath;
      node = parent;
    }
  }
  for (int64_t step = int64_t{1} + best.depth + threadIdx.x; step < args.length; step += blockDim.x) {
    paths[step] = 0;
    path_tokens[step] = -1;
  }
  __syncthreads();
  for (int64_t node = mine; node < nodes; node += blockDim.x) {
    node_tokens[node] = links[node] == kOnPath ? chosen[node] : -1;
  }
}

}  // namespace tree

int run_tree_accept_cuda(const TreeAcceptArgs& args, void* stream) {
  if (std::max(args.texts, args.nodes) > kMostOnCuda) return kInvalidValue;
  return tree::run(tree::tree_accept_kernel, args, args.texts, args.nodes, tree::accept_shared_bytes(args),
                   stream);
}

}  // namespace microspec
