// SPDX-License-Identifier: Apache-2.0
// The tree ops: their checks.
#include <algorithm>
#include <string>

#include "binding/check.h"
#include "binding/device_call.h"
#include "binding/values.h"
#include "tree/tree.h"
#include "tree/tree_cuda.h"

namespace microspec {

namespace {

// Requires a tensor of this dtype and shape, contiguous and on the device. Returns its values.
template <class T>
T* checked(const Checker& check, const Tensor& tensor, const char* argument,
           std::initializer_list<int64_t> shape) {
  check.dtype(tensor, argument, std::is_same_v<T, float> ? ScalarType::Float : ScalarType::Long);
  check.shape(tensor, argument, shape);
  check.contiguous(tensor, argument);
  check.on_device(tensor, argument);
  return static_cast<T*>(tensor.data_ptr());
}

// Requires pools [B, N]. The caller has checked that the tokens have two dimensions.
Pool checked_pool(const Checker& check, const DeviceCall& call, const Tensor& tokens, const Tensor& parents,
                  const Tensor& costs) {
  Pool pool{};
  pool.texts = tokens.size(0);
  pool.places = tokens.size(1);
  const std::initializer_list<int64_t> shape = {pool.texts, pool.places};
  pool.tokens = checked<int64_t>(check, tokens, "pool_tokens", shape);
  pool.parents = checked<int64_t>(check, parents, "pool_parents", shape);
  pool.costs = checked<float>(check, costs, "pool_costs", shape);
  call.check_size(pool.texts, "pool_tokens", "B");
  call.check_size(pool.places, "pool_tokens", "N", kMostCandidatesOnCuda);
  return pool;
}

int64_t* data_of(const Tensor& tensor) { return static_cast<int64_t*>(tensor.data_ptr()); }

}  // namespace

std::tuple<Tensor, Tensor, Tensor> tree_grow_(Tensor pool_tokens, Tensor pool_parents, Tensor pool_costs,
                                              Tensor logits, Tensor token_ids, Tensor logsumexp,
                                              int64_t width, int64_t begin, std::optional<Tensor> frontier) {
  const Checker check("tree_grow_", pool_tokens);
  const DeviceCall call(check, pool_tokens, "pool_tokens");
  check.value(pool_tokens.dim() == 2, "pool_tokens", "shape [B, N]", pool_tokens);
  TreeGrowArgs args{};
  args.pool = checked_pool(check, call, pool_tokens, pool_parents, pool_costs);
  const int64_t texts = args.pool.texts;
  args.frontier_width = 1;
  if (frontier) {
    check.value(
        frontier->dim() == 2 && frontier->size(0) == texts && frontier->size(1) >= 1, "frontier",
        [&] { return "shape [" + std::to_string(texts) + ", w], w >= 1"; }, *frontier);
    args.frontier_width = frontier->size(1);
    args.frontier = checked<int64_t>(check, *frontier, "frontier", {texts, args.frontier_width});
  }
  const int64_t rows = texts * args.frontier_width;
  check.value(
      logits.dim() == 2 && logits.size(0) == rows && logits.size(1) >= 1, "logits",
      [&] { return "shape [" + std::to_string(rows) + ", k], k >= 1"; }, logits);
  args.answers = logits.size(1);
  args.logits = checked<float>(check, logits, "logits", {rows, args.answers});
  args.token_ids = checked<int64_t>(check, token_ids, "token_ids", {rows, args.answers});
  args.logsumexp = checked<float>(check, logsumexp, "logsumexp", {rows});
  check.value(width >= 1, "width", "at least 1", width);
  const int64_t last = args.pool.places - args.candidates();
  check.value(
      begin >= 0 && begin <= last, "begin", [&] { return "0 to N - w k = " + std::to_string(last); }, begin);
  const std::initializer_list<Argument> pool = {
      {&pool_tokens, "pool_tokens"}, {&pool_parents, "pool_parents"}, {&pool_costs, "pool_costs"}};
  check.disjoint(pool, {{&logits, "logits"},
                        {&token_ids, "token_ids"},
                        {&logsumexp, "logsumexp"},
                        optional_argument(frontier, "frontier")});
  if (frontier) check_values(check, call, *frontier, begin, "frontier", "places", "flat position");
  note_writes(pool);

  args.begin = begin;
  args.width = std::min(width, args.candidates());
  const auto next = [&] { return call.empty({texts, args.width}, ScalarType::Long); };
  Tensor places = next(), tokens = next(), next_rows = next();
  args.next = data_of(places);
  args.next_tokens = data_of(tokens);
  args.next_rows = data_of(next_rows);
  if (call.on_cuda()) {
    call.check(run_tree_grow_cuda(args, call.stream()));
  } else {
    tree_grow_cpu(args);
  }
  return {places, tokens, next_rows};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> tree_cut(Tensor roots, Tensor pool_tokens, Tensor pool_parents,
                                                    Tensor pool_costs, int64_t size) {
  const Checker check("tree_cut", roots);
  const DeviceCall call(check, roots, "roots");
  check.value(roots.dim() == 1, "roots", "shape [B]", roots);
  const int64_t texts = roots.size(0);
  TreeCutArgs args{};
  args.roots = checked<int64_t>(check, roots, "roots", {texts});
  check.value(
      pool_tokens.dim() == 2 && pool_tokens.size(0) == texts, "pool_tokens",
      [&] { return "shape [" + std::to_string(texts) + ", N]"; }, pool_tokens);
  args.pool = checked_pool(check, call, pool_tokens, pool_parents, pool_costs);
  check.value(size >= 1, "size", "at least 1", size);
  check_values(check, call, pool_parents, args.pool.places, "pool_parents", "places", "flat position");

  const int64_t nodes = args.nodes = std::min(size, args.pool.places) + 1;
  const auto of_nodes = [&] { return call.empty({texts, nodes}, ScalarType::Long); };
  Tensor tokens = of_nodes(), parents = of_nodes(), depths = of_nodes();
  Tensor ancestor_mask = call.empty({texts, nodes, nodes}, ScalarType::Bool);
  args.tokens = data_of(tokens);
  args.parents = data_of(parents);
  args.depths = data_of(depths);
  args.ancestor_mask = static_cast<bool*>(ancestor_mask.data_ptr());
  if (call.on_cuda()) {
    call.check(run_tree_cut_cuda(args, call.stream()));
  } else {
    tree_cut_cpu(args);
  }
  return {tokens, parents, depths, ancestor_mask};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> tree_accept(Tensor tokens, Tensor parents, Tensor chosen,
                                                               int64_t depth) {
  const Checker check("tree_accept", tokens);
  const DeviceCall call(check, tokens, "tokens");
  check.value(tokens.dim() == 2 && tokens.size(1) >= 1, "tokens", "shape [B, n], n >= 1", tokens);
  TreeAcceptArgs args{};
  const int64_t texts = args.texts = tokens.size(0), nodes = args.nodes = tokens.size(1);
  args.tokens = checked<int64_t>(check, tokens, "tokens", {texts, nodes});
  args.parents = checked<int64_t>(check, parents, "parents", {texts, nodes});
  args.chosen = checked<int64_t>(check, chosen, "chosen", {texts, nodes});
  call.check_size(texts, "tokens", "B");
  call.check_size(nodes, "tokens", "n");
  check.value(depth >= 0, "depth", "at least 0", depth);
  check_values(check, call, parents, nodes, "parents", "nodes", "flat position");

  args.depth = depth;
  args.length = std::min(depth, nodes - 1) + 1;
  const auto of_path = [&] { return call.empty({texts, args.length}, ScalarType::Long); };
  const auto of_text = [&] { return call.empty({texts}, ScalarType::Long); };
  Tensor paths = of_path(), path_tokens = of_path(),
         node_tokens = call.empty({texts, nodes}, ScalarType::Long);
  Tensor counts = of_text(), leaves = of_text();
  args.paths = data_of(paths);
  args.path_tokens = data_of(path_tokens);
  args.node_tokens = data_of(node_tokens);
  args.counts = data_of(counts);
  args.leaves = data_of(leaves);
  if (call.on_cuda()) {
    call.check(run_tree_accept_cuda(args, call.stream()));
  } else {
    tree_accept_cpu(args);
  }
  return {paths, path_tokens, node_tokens, counts, leaves};
}

}  // namespace microspec
