// SPDX-License-Identifier: Apache-2.0
#include "sample_cpu.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <limits>

#include "common/philox.h"
#include "kernels.h"

namespace microspec {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class T>
void store_logits(const SampleArgs& sample, int64_t target, const float* logits, const int32_t* ids,
                  int64_t count) {
  T* row = static_cast<T*>(sample.token_logits) + target * sample.logits_row_stride;
  std::fill(row, row + sample.logits_columns, static_cast<T>(-kInfinity));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t column = sample.token_of(ids[i]);
    if (column >= 0 && column < sample.logits_columns) row[column] = static_cast<T>(logits[i]);
  }
}

}  // namespace

void sample_row(const SampleArgs& sample, int64_t row, const float* logits, const int32_t* ids, int64_t count,
                float* terms) {
  sample.tokens[row] = -1;
  sample.log_probs[row] = -kInfinity;
  if (count > 0) {
    const uint64_t number = draw_number(sample.seeds[row], sample.positions[row]);
    const Drawn drawn =
        instruction_set().draw(logits, ids, count, sample.temperatures[row], number, sample.unit, terms);
    sample.tokens[row] = sample.token_of(ids[drawn.index]);
    sample.log_probs[row] = drawn.log_prob;
  }
  const int64_t target = sample.logit_row_of(row);
  if (target < 0) return;
  switch (sample.logits_type) {
    case DType::f32: return store_logits<float>(sample, target, logits, ids, count);
    case DType::f16: return store_logits<c10::Half>(sample, target, logits, ids, count);
    case DType::bf16: return store_logits<c10::BFloat16>(sample, target, logits, ids, count);
    default: __builtin_trap();  // the op's checks admit no other type
  }
}

}  // namespace microspec
