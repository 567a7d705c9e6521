// SPDX-License-Identifier: Apache-2.0
// The head on CUDA is two launches: project multiplies, and select finishes. Dependent launch joins them. The
// alternative is a ticket: the last block of one launch finishes. A ticket needs a counter that is zero and
// that no other call uses. That costs either a memset a call (a graph node of 1.3 us) or state that breaks
// when two captured graphs run side by side.
#include "head_cuda.h"

#include <algorithm>

#include "project.h"
#include "select.h"

namespace microspec {

namespace {

constexpr int64_t kAlignment = 256;

// The launch plan of one chunk of rows.
struct HeadPlan {
  Device device;
  bool mma;
  Partials partials;  // in the workspace
  size_t partials_bytes;
};

// Chooses the kernel and lays out the workspace.
Error make_plan(const HeadArgs& chunk, void* workspace, HeadPlan& plan) {
  if (const Error error = current_device(plan.device)) return error;
  plan.mma = fits_mma(chunk) && expected_rows(chunk) > kMaxSimtRows;
  plan.partials.data = static_cast<float*>(workspace);
  plan.partials.pitch = ceil_div<int64_t>(chunk.capacity, kRun) * kRun;
  plan.partials.splits = plan.mma ? mma_splits(chunk, plan.device) : 1;
  const size_t bytes = plan.partials.splits * chunk.rows * plan.partials.pitch * sizeof(float);
  plan.partials_bytes = ceil_div<size_t>(bytes, kAlignment) * kAlignment;
  return 0;
}

// Returns the call for up to kMaxRows rows from `first` on.
HeadArgs rows_from(const HeadArgs& args, int64_t first) {
  HeadArgs chunk = args;
  chunk.rows = std::min<int64_t>(kMaxRows, args.rows - first);
  const int64_t offset = first * args.hidden_row_stride * element_size(args.hidden_type);
  chunk.hidden = static_cast<const char*>(args.hidden) + offset;
  if (args.group_ids) {
    const int64_t size = args.long_group_ids ? sizeof(int64_t) : sizeof(int32_t);
    chunk.group_ids = static_cast<const char*>(args.group_ids) + first * size;
  }
  return chunk;
}

// Calls finish(chunk, first row of the chunk, plan) after each chunk's projection.
template <class Finish>
Error for_each_chunk(const HeadArgs& args, void* workspace, void* stream, Finish&& finish) {
  for (int64_t first = 0; first < args.rows; first += kMaxRows) {
    const HeadArgs chunk = rows_from(args, first);
    HeadPlan plan;
    if (const Error error = make_plan(chunk, workspace, plan)) return error;
    if (args.capacity > 0) {
      const auto project = plan.mma ? project_mma : project_simt;
      if (const Error error = project(chunk, plan.partials, plan.device, stream)) return error;
    }
    if (const Error error = finish(chunk, first, plan)) return error;
  }
  return 0;
}

}  // namespace

int64_t expected_rows(const HeadArgs& args) {
  // A call with several groups may leave some of them without rows (one of two buffers, for example), so
  // expect twice the average.
  return std::min(args.rows, ceil_div(2 * args.rows, args.groups));
}

int head_cuda_workspace(const HeadArgs& args, size_t* bytes) {
  *bytes = 0;
  if (args.rows == 0) return 0;
  // The first chunk needs the most: later chunks have no more rows, hence no more splits.
  const HeadArgs chunk = rows_from(args, 0);
  HeadPlan plan;
  if (const Error error = make_plan(chunk, nullptr, plan)) return error;
  *bytes = plan.partials_bytes + select_workspace(chunk.rows, chunk.capacity, plan.device);
  return 0;
}

int run_sparse_head_cuda(const HeadArgs& args, int64_t k, float* logits, int64_t* token_ids, float* logsumexp,
                         void* workspace, void* stream) {
  return for_each_chunk(args, workspace, stream,
                        [&](const HeadArgs& chunk, int64_t first, const HeadPlan& plan) {
                          const Selection selection{static_cast<int>(k), logits + first * k,
                                                    token_ids + first * k, logsumexp + first};
                          void* keys = static_cast<char*>(workspace) + plan.partials_bytes;
                          return select(chunk, plan.partials, selection, keys, plan.device, stream);
                        });
}

int run_sparse_logits_cuda(const HeadArgs& args, float* logits, void* workspace, void* stream) {
  if (args.capacity == 0) return 0;
  return for_each_chunk(
      args, workspace, stream, [&](const HeadArgs& chunk, int64_t first, const HeadPlan& plan) {
        return finish_logits(chunk, plan.partials, logits + first * args.capacity, plan.device, stream);
      });
}

}  // namespace microspec
