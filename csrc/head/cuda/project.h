// SPDX-License-Identifier: Apache-2.0
// The first of the head's two kernels: hidden times the active rows. Two ways to do it, by the number
// of rows; torch-free.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/launch.cuh"
#include "head/args.h"

namespace microspec {

// Dot products before scale, bias and cap, to be summed over the splits of D in their order. What
// stands at empty slots is undefined. [splits, rows, pitch], fp32.
struct Partials {
  float* data;
  int64_t pitch;  // K rounded up to whole runs of slots
  int splits;
};

// Rows of hidden in one launch; more are split over launches.
constexpr int kMaxRows = 256;

// Slots that one block takes at a time in project_mma: eight fp32 results are one 32-byte sector.
constexpr int kRun = 8;

// Rows of one group that project_simt takes at once.
constexpr int kSimtRows = 4;
// Beyond it tensor cores do the work: FMAs would then take longer than the weights need to arrive.
#ifndef MICROSPEC_MAX_SIMT_ROWS
#define MICROSPEC_MAX_SIMT_ROWS kSimtRows
#endif
constexpr int kMaxSimtRows = MICROSPEC_MAX_SIMT_ROWS;

// Rows of a group to expect. A group that has more is projected in several turns.
int64_t expected_rows(const HeadArgs& args);

Error project_simt(const HeadArgs& args, const Partials& partials, const Device& device, void* stream);

// Whether project_mma can serve the call at all.
bool fits_mma(const HeadArgs& args);
// Into how many parts project_mma splits D.
int mma_splits(const HeadArgs& args, const Device& device);
Error project_mma(const HeadArgs& args, const Partials& partials, const Device& device, void* stream);

// Whether rows of hidden and weight can be read 16 bytes at a time.
inline bool aligned16(const HeadArgs& args) {
  const auto multiple = [](int64_t bytes) { return bytes % 16 == 0; };
  const int64_t hidden = element_size(args.hidden_type), weight = element_size(args.weight_type);
  return multiple(reinterpret_cast<intptr_t>(args.hidden)) &&
         multiple(reinterpret_cast<intptr_t>(args.weight)) && multiple(args.hidden_row_stride * hidden) &&
         multiple(args.weight_row_stride * weight) && multiple(args.weight_group_stride * weight) &&
         multiple(args.dim * hidden) && multiple(args.dim * weight);
}

}  // namespace microspec
