// SPDX-License-Identifier: Apache-2.0
// What sparse_sample does with one row's logits on the CPU.
#pragma once

#include <cstdint>

#include "head/sample_args.h"

namespace microspec {

// Draws row `row` from the logits of its `count` occupied slots, whose ids are `ids`, and writes its row of
// token_logits. `terms` is memory for `count` floats.
void sample_row(const SampleArgs& sample, int64_t row, const float* logits, const int32_t* ids, int64_t count,
                float* terms);

}  // namespace microspec
