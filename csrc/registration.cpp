// SPDX-License-Identifier: Apache-2.0
// The schemas of every op, and the function for each device. Nothing else belongs here.
#include <torch/csrc/stable/library.h>

#include "gather/gather.h"
#include "head/head.h"
#include "tree/tree.h"
#include "vocab/learn.h"
#include "vocab/vocab.h"

// TORCH_BOX does not check the C++ types of scalars against the schema: a `float` would silently read 0, and
// an `int` would be truncated. Every parameter must be one of these types.
template <class T>
constexpr bool boxes_right =
    std::is_same_v<T, torch::stable::Tensor> || std::is_same_v<T, std::optional<torch::stable::Tensor>> ||
    std::is_same_v<T, double> || std::is_same_v<T, int64_t> || std::is_same_v<T, bool>;

template <class Result, class... Parameters>
constexpr bool all_box_right(Result (*)(Parameters...)) {
  return (boxes_right<std::decay_t<Parameters>> && ...);
}

#define MICROSPEC_BOX(function)                                                                \
  [] {                                                                                         \
    static_assert(all_box_right(&(function)), "a parameter type that TORCH_BOX would garble"); \
    return TORCH_BOX(&(function));                                                             \
  }()

STABLE_TORCH_LIBRARY(microspec, m) {
  m.def(
      "sparse_head(Tensor hidden, Tensor weight, Tensor active_ids, int k, *, bool packed=False, "
      "Tensor? group_ids=None, Tensor? weight_scale=None, Tensor? bias=None, "
      "float logit_scale=1.0, float softcap=0.0) -> (Tensor logits, Tensor token_ids, Tensor logsumexp)");
  m.def(
      "sparse_logits(Tensor hidden, Tensor weight, Tensor active_ids, *, bool packed=False, "
      "Tensor? group_ids=None, Tensor? weight_scale=None, Tensor? bias=None, "
      "float logit_scale=1.0, float softcap=0.0) -> Tensor");
  m.def(
      "sparse_sample(Tensor hidden, Tensor weight, Tensor active_ids, Tensor temperatures, Tensor seeds, "
      "Tensor positions, *, bool packed=False, Tensor? group_ids=None, Tensor? weight_scale=None, "
      "Tensor? bias=None, float logit_scale=1.0, float softcap=0.0, Tensor? row_tokens=None, "
      "Tensor(a!)? token_logits=None, Tensor? logit_rows=None) -> (Tensor tokens, Tensor log_probs)");
  m.def(
      "gather_rows_(Tensor(a!) slab, Tensor(b!) slab_ids, Tensor weight, Tensor active_ids, *, "
      "Tensor(c!)? slab_scale=None, Tensor? weight_scale=None) -> ()");
  m.def(
      "vocab_update_(Tensor(a!) active_ids, Tensor(b!) slot_stamps, Tensor(c!) token_slots, "
      "Tensor(d!) clock, Tensor tokens, *, Tensor? token_groups=None) -> ()");
  m.def(
      "vocab_count_(Tensor(a!) text_counts, Tensor(b!) seen, Tensor tokens, *, Tensor? token_requests=None, "
      "Tensor? request_lists=None, Tensor(c!)? total_counts=None) -> ()");
  m.def(
      "vocab_observe_(Tensor(a!) active_ids, Tensor(b!) slot_stamps, Tensor(c!) token_slots, "
      "Tensor(d!) clock, Tensor tokens, *, Tensor? lengths=None, Tensor? candidates=None, "
      "Tensor? token_rows=None, Tensor? token_groups=None, Tensor? token_requests=None, "
      "Tensor(e!)? tally=None, int num_lists=0) -> ()");
  m.def(
      "vocab_refill_(Tensor(a!) active_ids, Tensor(b!) slot_stamps, Tensor(c!) token_slots, "
      "Tensor(d!) clock, Tensor text_counts, Tensor token_ranks, Tensor group_lists, *, "
      "Tensor? total_counts=None, int pinned=0, bool reset=True) -> ()");
  m.def(
      "tree_grow_(Tensor(a!) pool_tokens, Tensor(b!) pool_parents, Tensor(c!) pool_costs, Tensor logits, "
      "Tensor token_ids, Tensor logsumexp, int width, *, int begin=0, Tensor? frontier=None) "
      "-> (Tensor frontier, Tensor tokens, Tensor rows)");
  m.def(
      "tree_cut(Tensor roots, Tensor pool_tokens, Tensor pool_parents, Tensor pool_costs, int size) "
      "-> (Tensor tokens, Tensor parents, Tensor depths, Tensor ancestor_mask)");
  m.def(
      "tree_accept(Tensor tokens, Tensor parents, Tensor chosen, int depth) "
      "-> (Tensor paths, Tensor path_tokens, Tensor node_tokens, Tensor counts, Tensor leaves)");
}

// Every function serves both devices, after the same checks.
#define MICROSPEC_IMPLEMENT(m)                                        \
  m.impl("sparse_head", MICROSPEC_BOX(microspec::sparse_head));       \
  m.impl("sparse_logits", MICROSPEC_BOX(microspec::sparse_logits));   \
  m.impl("sparse_sample", MICROSPEC_BOX(microspec::sparse_sample));   \
  m.impl("gather_rows_", MICROSPEC_BOX(microspec::gather_rows_));     \
  m.impl("vocab_update_", MICROSPEC_BOX(microspec::vocab_update_));   \
  m.impl("vocab_count_", MICROSPEC_BOX(microspec::vocab_count_));     \
  m.impl("vocab_observe_", MICROSPEC_BOX(microspec::vocab_observe_)); \
  m.impl("vocab_refill_", MICROSPEC_BOX(microspec::vocab_refill_));   \
  m.impl("tree_grow_", MICROSPEC_BOX(microspec::tree_grow_));         \
  m.impl("tree_cut", MICROSPEC_BOX(microspec::tree_cut));             \
  m.impl("tree_accept", MICROSPEC_BOX(microspec::tree_accept))

STABLE_TORCH_LIBRARY_IMPL(microspec, CPU, m) { MICROSPEC_IMPLEMENT(m); }

#ifdef MICROSPEC_CUDA
STABLE_TORCH_LIBRARY_IMPL(microspec, CUDA, m) { MICROSPEC_IMPLEMENT(m); }
#endif
