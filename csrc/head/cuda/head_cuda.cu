// SPDX-License-Identifier: Apache-2.0
// The head on CUDA is two launches: project multiplies, and select finishes. Dependent launch joins them. The
// alternative is a ticket: the last block of one launch finishes. A ticket needs a counter that is zero and
// that no other call uses. That costs either a memset a call (a graph node of 1.3 us) or state that breaks
// when two captured graphs run side by side.
#include "head_cuda.h"

#include <algorithm>

#include "project.h"
#include "sample.h"
#include "select.h"

namespace microspec {

namespace {

constexpr int64_t kAlignment = 256;

int64_t pitch_of(const HeadArgs& args) { return ceil_div<int64_t>(args.capacity, kRun) * kRun; }

// Chooses the kernels of a chunk of rows, and lays out the workspace. plan.selects is set.
Error make_plan(const HeadArgs& chunk, HeadPlan& plan) {
  Device device;
  if (const Error error = current_device(device)) return error;
  plan.rows = chunk.rows;
  plan.sms = device.sms;
  plan.mma = fits_mma(chunk) && expected_rows(chunk) > max_simt_rows(chunk.weight_type);
  if (plan.mma) {
    if (const Error error = plan_mma(chunk, plan.mma_plan)) return error;
  }
  const size_t bytes = plan.splits() * chunk.rows * pitch_of(chunk) * sizeof(float);
  plan.partials_bytes = ceil_div<size_t>(bytes, kAlignment) * kAlignment;
  if (!plan.selects) return 0;
  return select_workspace(chunk.rows, chunk.capacity, plan.orders_bytes);
}

// Returns the call for up to kMaxRows rows from `first` on.
HeadArgs rows_from(const HeadArgs& args, int64_t first) {
  HeadArgs chunk = args;
  chunk.rows = std::min<int64_t>(kMaxRows, args.rows - first);
  const int64_t offset = first * args.hidden_row_stride * element_size(args.hidden_type);
  chunk.hidden = static_cast<const char*>(args.hidden) + offset;
  if (args.group_ids && !args.one_group) {
    const int64_t size = args.long_group_ids ? sizeof(int64_t) : sizeof(int32_t);
    chunk.group_ids = static_cast<const char*>(args.group_ids) + first * size;
  }
  return chunk;
}

// Calls finish(chunk, first row of the chunk, its partials, its plan) after each chunk's projection.
template <class Finish>
Error for_each_chunk(const HeadArgs& args, const HeadPlan& first_plan, void* workspace, void* stream,
                     Finish&& finish) {
  HeadPlan plan = first_plan;
  for (int64_t first = 0; first < args.rows; first += kMaxRows) {
    const HeadArgs chunk = rows_from(args, first);
    if (chunk.rows != plan.rows) {
      if (const Error error = make_plan(chunk, plan)) return error;
    }
    const Partials partials{static_cast<float*>(workspace), pitch_of(chunk), plan.splits()};
    if (args.capacity > 0) {
      const auto project = plan.mma ? project_mma : project_simt;
      if (const Error error = project(chunk, partials, plan, stream)) return error;
    }
    if (const Error error = finish(chunk, first, partials, plan)) return error;
  }
  return 0;
}

}  // namespace

int64_t expected_rows(const HeadArgs& args) {
  if (args.one_group) return args.rows;
  // A call with several groups may leave some of them without rows (one of two buffers, for example), so
  // expect twice the average.
  return std::min(args.rows, ceil_div(2 * args.rows, args.groups));
}

int plan_head_cuda(const HeadArgs& args, bool selects, HeadPlan* plan) {
  *plan = HeadPlan{};
  plan->selects = selects;
  if (args.rows == 0) return 0;
  // The first chunk needs the most memory: later chunks have no more rows, hence no more splits.
  return make_plan(rows_from(args, 0), *plan);
}

int run_sparse_head_cuda(const HeadArgs& args, const HeadPlan& call_plan, int64_t k, float* logits,
                         int64_t* token_ids, float* logsumexp, void* workspace, void* stream) {
  return for_each_chunk(
      args, call_plan, workspace, stream,
      [&](const HeadArgs& chunk, int64_t first, const Partials& partials, const HeadPlan& plan) {
        const Selection selection{static_cast<int>(k), logits + first * k, token_ids + first * k,
                                  logsumexp + first};
        void* orders = plan.orders_bytes ? static_cast<char*>(workspace) + plan.partials_bytes : nullptr;
        return select(chunk, partials, selection, orders, stream);
      });
}

int run_sparse_logits_cuda(const HeadArgs& args, const HeadPlan& call_plan, float* logits, void* workspace,
                           void* stream) {
  if (args.capacity == 0) return 0;
  return for_each_chunk(
      args, call_plan, workspace, stream,
      [&](const HeadArgs& chunk, int64_t first, const Partials& partials, const HeadPlan& plan) {
        return finish_logits(chunk, partials, logits + first * args.capacity, plan, stream);
      });
}

int run_sparse_sample_cuda(const HeadArgs& args, const SampleArgs& all_rows, const HeadPlan& call_plan,
                           void* workspace, void* stream) {
  return for_each_chunk(args, call_plan, workspace, stream,
                        [&](const HeadArgs& chunk, int64_t first, const Partials& partials, const HeadPlan&) {
                          return sample(chunk, partials, all_rows, first, stream);
                        });
}

}  // namespace microspec
