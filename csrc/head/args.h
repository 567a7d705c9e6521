// SPDX-License-Identifier: Apache-2.0
// HeadArgs is one call of the head as raw pointers, as every backend's kernel sees it. Torch-free.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace microspec {

constexpr int64_t kMaxTopK = 128;

// One checked call. Strides are in elements.
struct HeadArgs {
  const void* hidden;  // [M, D] in hidden_type
  int64_t hidden_row_stride;
  const void* weight;  // [V, D], or [G, K, D] if packed, in weight_type; 4-bit rows have D / 2 elements
  int64_t weight_row_stride;
  int64_t weight_group_stride;  // 0 unless packed
  const float* weight_scale;    // [V] or [G, K], null unless the rows are int8 or fp8
  const void* group_scale;    // of 4-bit rows, else null: bf16 [V, D / 32] or [G, K, D / 32] if the rows are
                              // i4, e4m3 [V, D / 16] or [G, K, D / 16] if they are f4e2m1
  const int32_t* active_ids;  // [G, K], -1 is an empty slot
  const void* group_ids;      // [M], or [1] if one_group; int32 or int64, -1: padding; null: group 0
  const void* bias;           // [V] in hidden_type or fp32, null: none
  int64_t rows;               // M
  int64_t dim;                // D
  int64_t groups;             // G
  int64_t capacity;           // K
  int64_t vocab_size;         // V; 2^31, above every id, for a slab without bias
  float logit_scale;
  float softcap;  // 0: none
  DType hidden_type;
  DType weight_type;
  DType bias_type;
  bool packed;
  bool long_group_ids;
  bool one_group;  // group_ids has one element, for all rows

  int64_t group_of(int64_t row) const {
    if (!group_ids) return 0;
    const int64_t at = one_group ? 0 : row;
    return long_group_ids ? static_cast<const int64_t*>(group_ids)[at]
                          : static_cast<const int32_t*>(group_ids)[at];
  }
};

// Computes the top k of each row on the CPU. logits and token_ids are [M, k], logsumexp is [M].
void run_sparse_head(const HeadArgs& args, int64_t k, float* logits, int64_t* token_ids, float* logsumexp);
// Computes every slot's logit on the CPU. logits is [M, K].
void run_sparse_logits(const HeadArgs& args, float* logits);

}  // namespace microspec
