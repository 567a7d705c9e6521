// SPDX-License-Identifier: Apache-2.0
// SampleArgs is what sparse_sample takes besides HeadArgs, as raw pointers. Torch-free.
//
// A row's law in integers. Slot s has the weight w(s) = floor(exp((z(s) - max z) / T) * unit), and 1 * unit
// at the largest logit. The row draws the first slot whose running sum of weights is above floor(u * total),
// u from philox.h. Sums of integers are exact, so a result depends neither on the order of the additions nor
// on how many threads make them.
//
// unit is the power of two for which K weights of `unit` sum up to 2^62 at most: 2^50 at K = 3072, and 2^47
// at K = 32768. floor() loses less than one a slot, together less than K / unit of a total that is at least
// 1: 2^-38 or 2^-32. The rounding of an fp32 exponential, 2^-24, is above both.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "head/args.h"

namespace microspec {

// Returns `unit` for K slots.
constexpr float draw_unit(int64_t capacity) {
  int bits = 62;
  while (bits > 0 && int64_t{1} << (62 - bits) < capacity) --bits;
  return static_cast<float>(int64_t{1} << bits);
}

// Strides are in elements.
struct SampleArgs {
  const float* temperatures;  // [M]
  const int64_t* seeds;       // [M]
  const int64_t* positions;   // [M]
  const int64_t* row_tokens;  // [V], the token of each id; null: the id itself
  int64_t* tokens;            // [M]
  float* log_probs;           // [M]
  void* token_logits;         // [R, V'] in logits_type, null: not wanted
  int64_t logits_row_stride;
  int64_t logits_rows;     // R
  int64_t logits_columns;  // V'
  const void* logit_rows;  // [M], int32 or int64; null: row m
  float unit;
  DType logits_type;
  bool long_logit_rows;

  constexpr int64_t token_of(int32_t id) const { return row_tokens ? row_tokens[id] : id; }
  // Returns the row of token_logits for a row of hidden; -1: none, or one that does not exist.
  constexpr int64_t logit_row_of(int64_t row) const {
    if (!token_logits) return -1;
    int64_t at = row;
    if (logit_rows) {
      at = long_logit_rows ? static_cast<const int64_t*>(logit_rows)[row]
                           : static_cast<const int32_t*>(logit_rows)[row];
    }
    return at >= 0 && at < logits_rows ? at : -1;
  }
};

// Draws on the CPU.
void run_sparse_sample(const HeadArgs& args, const SampleArgs& sample);

}  // namespace microspec
