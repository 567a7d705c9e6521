// SPDX-License-Identifier: Apache-2.0
// vocab_count_ counts in how many texts each token stood. vocab_refill_ fills vocabularies from these counts.
// vocab_observe_ is a step of an engine: it judges and counts the text's new tokens, and updates.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "vocab/learn_args.h"
#include "vocab/observe_args.h"

namespace microspec {

// The calls on the CPU. Torch-free.
void count_cpu(const CountArgs& args);
// Judges, counts and writes the ids.
void observe_cpu(const ObserveArgs& args);
void refill_cpu(const RefillArgs& args);

void vocab_count_(torch::stable::Tensor text_counts, torch::stable::Tensor seen, torch::stable::Tensor tokens,
                  std::optional<torch::stable::Tensor> token_requests,
                  std::optional<torch::stable::Tensor> request_lists,
                  std::optional<torch::stable::Tensor> total_counts);

void vocab_observe_(torch::stable::Tensor active_ids, torch::stable::Tensor slot_stamps,
                    torch::stable::Tensor token_slots, torch::stable::Tensor clock,
                    torch::stable::Tensor tokens, std::optional<torch::stable::Tensor> lengths,
                    std::optional<torch::stable::Tensor> candidates,
                    std::optional<torch::stable::Tensor> token_rows,
                    std::optional<torch::stable::Tensor> token_groups,
                    std::optional<torch::stable::Tensor> token_requests,
                    std::optional<torch::stable::Tensor> tally, int64_t num_lists);

void vocab_refill_(torch::stable::Tensor active_ids, torch::stable::Tensor slot_stamps,
                   torch::stable::Tensor token_slots, torch::stable::Tensor clock,
                   torch::stable::Tensor text_counts, torch::stable::Tensor token_ranks,
                   torch::stable::Tensor group_lists, std::optional<torch::stable::Tensor> total_counts,
                   int64_t pinned, bool reset);

}  // namespace microspec
