// SPDX-License-Identifier: Apache-2.0
// GatherArgs is one call of gather_rows_ as raw pointers, as every backend's kernel sees it. Torch-free.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace microspec {

// One checked call.
struct GatherArgs {
  void* slab;                      // [groups * K, D] in slab_type, contiguous; 4-bit rows have D / 2 elements
  int32_t* slab_ids;               // [groups * K]
  float* slab_scale;               // [groups * K], null unless the slab is int8 or fp8
  void* slab_group_scale;          // bf16 [groups * K, D / 32] if the slab is i4, e4m3 [groups * K, D / 16]
                                   // if it is f4e2m1, else null
  const void* weight;              // [V, D] in weight_type; on CUDA also pinned host memory
  int64_t weight_row_stride;       // in elements
  const float* weight_scale;       // [V], null unless the weight is int8 or fp8
  const void* weight_group_scale;  // the same of the weight, [V, D / 32] or [V, D / 16]
  const int32_t* active_ids;       // [groups * K]
  int64_t dim;                     // D
  int64_t vocab_size;              // V
  DType slab_type;
  DType weight_type;
};

// The largest magnitudes of a quantised row: symmetric int8, and float8_e4m3fn.
constexpr float kInt8Max = 127.0f;
constexpr float kFloat8Max = 448.0f;
// The same of a group of i4 columns.
constexpr float kInt4Max = 7.0f;

}  // namespace microspec
