// SPDX-License-Identifier: Apache-2.0
// sparse_head, sparse_logits and sparse_sample compute the LM head over the active vocabulary.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace microspec {

std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> sparse_head(
    torch::stable::Tensor hidden, torch::stable::Tensor weight, torch::stable::Tensor active_ids, int64_t k,
    bool packed, std::optional<torch::stable::Tensor> group_ids,
    std::optional<torch::stable::Tensor> weight_scale, std::optional<torch::stable::Tensor> bias,
    double logit_scale, double softcap);

torch::stable::Tensor sparse_logits(torch::stable::Tensor hidden, torch::stable::Tensor weight,
                                    torch::stable::Tensor active_ids, bool packed,
                                    std::optional<torch::stable::Tensor> group_ids,
                                    std::optional<torch::stable::Tensor> weight_scale,
                                    std::optional<torch::stable::Tensor> bias, double logit_scale,
                                    double softcap);

std::tuple<torch::stable::Tensor, torch::stable::Tensor> sparse_sample(
    torch::stable::Tensor hidden, torch::stable::Tensor weight, torch::stable::Tensor active_ids,
    torch::stable::Tensor temperatures, torch::stable::Tensor seeds, torch::stable::Tensor positions,
    bool packed, std::optional<torch::stable::Tensor> group_ids,
    std::optional<torch::stable::Tensor> weight_scale, std::optional<torch::stable::Tensor> bias,
    double logit_scale, double softcap, std::optional<torch::stable::Tensor> row_tokens,
    std::optional<torch::stable::Tensor> token_logits, std::optional<torch::stable::Tensor> logit_rows);

}  // namespace microspec
