// gather_rows_: brings a slab's rows up to date with the active vocabulary.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "common/dtype.h"

namespace microspec {

struct GatherArgs {
  void* slab;                 // [groups * K, D] in slab_type, contiguous
  int32_t* slab_ids;          // [groups * K]
  float* slab_scale;          // [groups * K], null unless the slab is quantised
  const void* weight;         // [V, D] in weight_type
  int64_t weight_row_stride;  // in elements
  const float* weight_scale;  // [V], null unless the weight is quantised
  const int32_t* active_ids;  // [groups * K]
  int64_t dim;                // D
  DType slab_type;
  DType weight_type;
};

// Torch-free: brings slots [begin, end) up to date.
void gather_slots(const GatherArgs& args, int64_t begin, int64_t end);

void gather_rows_cpu(torch::stable::Tensor slab, torch::stable::Tensor slab_ids, torch::stable::Tensor weight,
                     torch::stable::Tensor active_ids, std::optional<torch::stable::Tensor> slab_scale,
                     std::optional<torch::stable::Tensor> weight_scale);

}  // namespace microspec
