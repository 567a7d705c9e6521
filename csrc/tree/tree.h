// SPDX-License-Identifier: Apache-2.0
// Draft trees as EAGLE-2 grows, cuts and verifies them: tree_grow_ adds a level to a pool of candidates,
// tree_cut takes the best of the pool, and tree_accept finds the path that the target chose.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "tree/args.h"

namespace microspec {

// On the CPU. Torch-free. Values out of range count as -1.
void tree_grow_cpu(const TreeGrowArgs& args);
void tree_cut_cpu(const TreeCutArgs& args);
void tree_accept_cpu(const TreeAcceptArgs& args);

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> tree_grow_(Tensor pool_tokens, Tensor pool_parents, Tensor pool_costs,
                                              Tensor logits, Tensor token_ids, Tensor logsumexp,
                                              int64_t width, int64_t begin, std::optional<Tensor> frontier);

std::tuple<Tensor, Tensor, Tensor, Tensor> tree_cut(Tensor roots, Tensor pool_tokens, Tensor pool_parents,
                                                    Tensor pool_costs, int64_t size);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> tree_accept(Tensor tokens, Tensor parents, Tensor chosen,
                                                               int64_t depth);

}  // namespace microspec
