// SPDX-License-Identifier: Apache-2.0
// The interface of the instruction sets that the CPU head uses, and the choice among them.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace microspec {

// A panel: some active rows times all activations of their group.
struct Panel {
  const char* const* rows;  // [row_count] first byte of each row
  int64_t row_count;        // at most kMaxPanelRows
  const void* hidden;       // [hidden_count, hidden_stride], zero-padded, or in `arrange`'s order
  int64_t hidden_count;
  int64_t hidden_stride;      // in elements
  int64_t dim;                // D
  float* dots;                // out: [row_count, hidden_count]
  const void* const* scales;  // [row_count] scales of each row's groups; null unless rows have 4 bits
};
// Panels hold a multiple of kPanelUnit rows, which suits every kernel. Larger panels are faster, because the
// first lines of the next panel's rows are not prefetched.
// Hence as many bytes of 4-bit rows as of others: four times the rows.
constexpr int64_t kPanelUnit = 16, kMaxPanelRows = 256;
constexpr int64_t max_panel_rows(DType weight_type) {
  return is_4bit(weight_type) ? kMaxPanelRows : kMaxPanelRows / 4;
}

// A set's way to multiply one type of weight by one type of activations.
struct HeadKernel {
  void (*panel)(const Panel&);
  // The activations' type in the panel: bf16 if the instruction set multiplies bf16, else fp32.
  DType hidden_type;
  // If not null, copies activations [count, stride] into the order that the panel needs, in
  // arranged_rows(count) * stride elements, or count * stride if arranged_rows is null.
  void (*arrange)(const void* hidden, int64_t count, int64_t stride, void* arranged);
  int64_t (*arranged_rows)(int64_t count);
};

// Computes the top k of logits[count] (best first, ties to the lower id) and their logsumexp.
using SelectKernel = void (*)(const float* logits, const int32_t* ids, int64_t count, int64_t k,
                              float* top_logits, int64_t* top_ids, float* logsumexp);

// What a row of sparse_sample drew: an index of its logits, and the logarithm of its probability.
struct Drawn {
  int64_t index;
  float log_prob;
};
// Draws one of logits[count], count >= 1, as sample_args.h says. `terms` is memory for `count` floats.
using DrawKernel = Drawn (*)(const float* logits, const int32_t* ids, int64_t count, float temperature,
                             uint64_t number, float unit, float* terms);

// The kernels of one instruction set. `name` is what MICROSPEC_ISA selects it by.
struct InstructionSet {
  const char* name;
  HeadKernel (*head)(DType weight_type, DType hidden_type);
  SelectKernel select;
  DrawKernel draw;
};

// Activations are padded with zeros to a multiple of this many elements, so that kernels may read whole
// vectors and blocks. Rows of the weight are never read past their end.
constexpr int64_t kHiddenPadding = 128;

// Returns the processor's best set, or the set that MICROSPEC_ISA names. The choice is made once.
const InstructionSet& instruction_set();

extern const InstructionSet kPortable;
#ifdef MICROSPEC_X86
extern const InstructionSet kAvx2;
extern const InstructionSet kAvx512;
extern const InstructionSet kAvx512Bf16;
extern const InstructionSet kAmx;
bool amx_usable();  // also requests the operating system's permission to use the tiles
#endif
#ifdef MICROSPEC_ARM
extern const InstructionSet kNeon;
extern const InstructionSet kNeonBf16;
#endif

}  // namespace microspec
