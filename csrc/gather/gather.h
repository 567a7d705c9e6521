// SPDX-License-Identifier: Apache-2.0
// gather_rows_ brings a slab's rows up to date with the active vocabulary.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "gather/args.h"

namespace microspec {

// Brings slots [begin, end) up to date on the CPU. Torch-free.
void gather_slots(const GatherArgs& args, int64_t begin, int64_t end);

void gather_rows_(torch::stable::Tensor slab, torch::stable::Tensor slab_ids, torch::stable::Tensor weight,
                  torch::stable::Tensor active_ids, std::optional<torch::stable::Tensor> slab_scale,
                  std::optional<torch::stable::Tensor> weight_scale);

}  // namespace microspec
