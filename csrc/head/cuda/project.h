// SPDX-License-Identifier: Apache-2.0
// project, the first of the head's two kernels, multiplies hidden by the active rows. The number of rows
// selects one of two implementations. Torch-free.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/launch.cuh"
#include "head/args.h"
#include "plan.h"

namespace microspec {

// Dot products before scale, bias and cap: [splits, rows, pitch], fp32. The reader sums them over the splits
// of D, in the order of the splits. Values at empty slots are undefined.
struct Partials {
  float* data;
  int64_t pitch;  // K rounded up to a multiple of kRun
  int splits;
};

// Rows of hidden in one launch. A call with more rows takes several launches.
constexpr int kMaxRows = 256;

// Slots that one block takes at a time in project_mma. Eight fp32 results fill one 32-byte sector.
constexpr int kRun = 8;

// Rows of one group that project_simt takes at once.
constexpr int kSimtRows = 4;
// Above this number of rows, tensor cores do the work: FMAs would take longer than the weights take to
// arrive.
#ifndef MICROSPEC_MAX_SIMT_ROWS
#define MICROSPEC_MAX_SIMT_ROWS kSimtRows
#endif
// Of 4-bit rows, tensor cores multiply any number. While 576 bytes of codes and scales arrive on an SM of an
// H200, it issues 111 instructions. project_simt needs 191 (i4) for them at one row of hidden, because it
// converts every code to fp32, and project_mma 81.
constexpr int max_simt_rows(DType weight_type) { return is_4bit(weight_type) ? 0 : MICROSPEC_MAX_SIMT_ROWS; }

// The number of rows to expect in a group. A group with more rows is projected in several rounds.
int64_t expected_rows(const HeadArgs& args);

Error project_simt(const HeadArgs& args, const Partials& partials, const HeadPlan& plan, void* stream);

// Whether project_mma supports the call: fp16 or bf16 hidden, 16-byte aligned rows, and D a multiple of 64
// bytes of weights; for 4-bit rows of 64 columns, whose two scales must be 4-byte aligned.
bool fits_mma(const HeadArgs& args);
Error plan_mma(const HeadArgs& args, MmaPlan& plan);
Error project_mma(const HeadArgs& args, const Partials& partials, const HeadPlan& plan, void* stream);

// The architecture that a kernel must be compiled for to convert the rows.
inline int least_arch(const HeadArgs& args) { return args.weight_type == DType::f8e4m3 ? kFloat8Arch : 0; }

// Whether rows of hidden and weight can be read 16 bytes at a time.
inline bool aligned16(const HeadArgs& args) {
  const auto multiple = [](int64_t bytes) { return bytes % 16 == 0; };
  const int64_t hidden = element_size(args.hidden_type), weight = element_size(args.weight_type);
  return multiple(reinterpret_cast<intptr_t>(args.hidden)) &&
         multiple(reinterpret_cast<intptr_t>(args.weight)) && multiple(args.hidden_row_stride * hidden) &&
         multiple(args.weight_row_stride * weight) && multiple(args.weight_group_stride * weight) &&
         multiple(args.dim * hidden) && multiple(row_bytes(args.weight_type, args.dim));
}

}  // namespace microspec
