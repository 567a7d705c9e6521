// SPDX-License-Identifier: Apache-2.0
// The ops of draft trees of _emulation.
#pragma once

#include <algorithm>

#include "emulation/ops/run.h"
#include "tree/tree_cuda.h"

namespace microspec::emulation {

inline Pool pool_of(Array& tokens, Array& parents, Array& costs) {
  return {tokens.shape(0), tokens.shape(1), pointer<int64_t>(tokens), pointer<int64_t>(parents),
          pointer<float>(costs)};
}

inline void tree_grow(Array next, Array next_tokens, Array next_rows, Array pool_tokens, Array pool_parents,
                      Array pool_costs, const Array& logits, const Array& token_ids, const Array& logsumexp,
                      int64_t width, int64_t begin, const OptionalArray& frontier) {
  TreeGrowArgs args{};
  args.pool = pool_of(pool_tokens, pool_parents, pool_costs);
  args.frontier = pointer<int64_t>(frontier);
  args.logits = pointer<float>(logits);
  args.token_ids = pointer<int64_t>(token_ids);
  args.logsumexp = pointer<float>(logsumexp);
  args.frontier_width = frontier ? frontier->shape(1) : 1;
  args.answers = logits.shape(1);
  args.begin = begin;
  args.width = std::min(width, args.candidates());
  args.next = pointer<int64_t>(next);
  args.next_tokens = pointer<int64_t>(next_tokens);
  args.next_rows = pointer<int64_t>(next_rows);
  run("run_tree_grow_cuda", [&] { return run_tree_grow_cuda(args, nullptr); });
}

inline void tree_cut(Array tokens, Array parents, Array depths, Array ancestor_mask, const Array& roots,
                     Array pool_tokens, Array pool_parents, Array pool_costs, int64_t size) {
  TreeCutArgs args{};
  args.pool = pool_of(pool_tokens, pool_parents, pool_costs);
  args.roots = pointer<int64_t>(roots);
  args.nodes = std::min(size, args.pool.places) + 1;
  args.tokens = pointer<int64_t>(tokens);
  args.parents = pointer<int64_t>(parents);
  args.depths = pointer<int64_t>(depths);
  args.ancestor_mask = pointer<bool>(ancestor_mask);
  run("run_tree_cut_cuda", [&] { return run_tree_cut_cuda(args, nullptr); });
}

inline void tree_accept(Array paths, Array path_tokens, Array node_tokens, Array counts, Array leaves,
                        const Array& tokens, const Array& parents, const Array& chosen, int64_t depth) {
  TreeAcceptArgs args{};
  args.texts = tokens.shape(0);
  args.nodes = tokens.shape(1);
  args.tokens = pointer<int64_t>(tokens);
  args.parents = pointer<int64_t>(parents);
  args.chosen = pointer<int64_t>(chosen);
  args.depth = depth;
  args.length = std::min(depth, args.nodes - 1) + 1;
  args.paths = pointer<int64_t>(paths);
  args.path_tokens = pointer<int64_t>(path_tokens);
  args.node_tokens = pointer<int64_t>(node_tokens);
  args.counts = pointer<int64_t>(counts);
  args.leaves = pointer<int64_t>(leaves);
  run("run_tree_accept_cuda", [&] { return run_tree_accept_cuda(args, nullptr); });
}

inline void bind_tree(py::module_& module) {
  using py::arg;
  const auto none = py::none();
  module.def("tree_grow_", &tree_grow, arg("next"), arg("next_tokens"), arg("next_rows"), arg("pool_tokens"),
             arg("pool_parents"), arg("pool_costs"), arg("logits"), arg("token_ids"), arg("logsumexp"),
             arg("width"), py::kw_only(), arg("begin") = 0, arg("frontier") = none);
  module.def("tree_cut", &tree_cut, arg("tokens"), arg("parents"), arg("depths"), arg("ancestor_mask"),
             arg("roots"), arg("pool_tokens"), arg("pool_parents"), arg("pool_costs"), arg("size"));
  module.def("tree_accept", &tree_accept, arg("paths"), arg("path_tokens"), arg("node_tokens"), arg("counts"),
             arg("leaves"), arg("tokens"), arg("parents"), arg("chosen"), arg("depth"));
}

}  // namespace microspec::emulation
