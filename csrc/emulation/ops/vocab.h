// SPDX-License-Identifier: Apache-2.0
// The ops of a vocabulary of _emulation.
#pragma once

#include "emulation/ops/run.h"
#include "vocab/learn_cuda.h"
#include "vocab/vocab_cuda.h"

namespace microspec::emulation {

inline VocabArgs update_args(Array& active_ids, Array& slot_stamps, Array& token_slots, Array& clock,
                             const OptionalArray& token_groups) {
  VocabArgs args{};
  args.active_ids = pointer<int32_t>(active_ids);
  args.slot_stamps = pointer<int64_t>(slot_stamps);
  args.token_slots = pointer<int32_t>(token_slots);
  args.clock = pointer<int64_t>(clock);
  args.token_groups = pointer<void>(token_groups);
  args.long_groups = is_long(token_groups);
  args.groups = clock.shape(0);
  args.capacity = slot_stamps.shape(1);
  args.vocab_size = token_slots.shape(1);
  return args;
}

inline void run_update(const VocabArgs& args) {
  VocabPlan plan;
  check(plan_vocab_cuda(args, &plan), "plan_vocab_cuda");
  const Workspace workspace(plan.workspace_bytes());
  run("run_vocab_update_cuda", [&] { return run_vocab_update_cuda(args, plan, workspace.get(), nullptr); });
}

inline void vocab_update(Array active_ids, Array slot_stamps, Array token_slots, Array clock,
                         const Array& tokens, const OptionalArray& token_groups) {
  VocabArgs args = update_args(active_ids, slot_stamps, token_slots, clock, token_groups);
  args.tokens = pointer<void>(tokens);
  args.long_tokens = is_long(tokens);
  args.count = tokens.shape(tokens.ndim() - 1);
  run_update(args);
}

inline void vocab_count(Array text_counts, Array seen, const Array& tokens,
                        const OptionalArray& token_requests, const OptionalArray& request_lists,
                        std::optional<Array> total_counts) {
  CountArgs args{};
  CountTables& tables = args.tables;
  tables.text_counts = pointer<int32_t>(text_counts);
  tables.total_counts = total_counts ? pointer<int32_t>(*total_counts) : nullptr;
  tables.seen = pointer<int32_t>(seen);
  tables.request_lists = pointer<void>(request_lists);
  tables.long_lists = is_long(request_lists);
  tables.requests = seen.shape(0);
  tables.lists = text_counts.shape(0);
  tables.vocab_size = text_counts.shape(1);
  args.tokens = pointer<void>(tokens);
  args.token_requests = pointer<void>(token_requests);
  args.long_tokens = is_long(tokens);
  args.long_requests = is_long(token_requests);
  args.count = tokens.shape(tokens.ndim() - 1);
  run("run_vocab_count_cuda", [&] { return run_vocab_count_cuda(args, nullptr); });
}

inline void vocab_observe(Array active_ids, Array slot_stamps, Array token_slots, Array clock,
                          const Array& tokens, const OptionalArray& lengths, const OptionalArray& candidates,
                          const OptionalArray& token_rows, const OptionalArray& token_groups,
                          const OptionalArray& token_requests, std::optional<Array> tally,
                          int64_t num_lists) {
  VocabArgs update = update_args(active_ids, slot_stamps, token_slots, clock, token_groups);
  ObserveArgs args{};
  StepTokens& step = args.tokens;
  step.candidates = pointer<void>(candidates);
  step.tokens = pointer<void>(tokens);
  step.lengths = pointer<void>(lengths);
  step.token_rows = pointer<int32_t>(token_rows);
  step.long_candidates = is_long(candidates);
  step.long_tokens = is_long(tokens);
  step.long_lengths = is_long(lengths);
  step.num_candidates = candidates ? candidates->size() : 0;
  step.num_tokens = tokens.size();
  step.row_length = tokens.shape(tokens.ndim() - 1);
  step.bound = token_rows ? token_rows->size() : update.vocab_size;
  step.vocab_size = update.vocab_size;
  if (tally) {
    const int64_t words = tally->size() - table_words(num_lists, step.vocab_size);
    args.tally = tally_at(pointer<int32_t>(*tally), words / request_words(num_lists, step.vocab_size),
                          num_lists, step.vocab_size);
  }
  args.active_ids = update.active_ids;
  args.token_slots = update.token_slots;
  args.token_groups = update.token_groups;
  args.token_requests = pointer<void>(token_requests);
  args.long_groups = update.long_groups;
  args.long_requests = is_long(token_requests);
  args.groups = update.groups;
  args.capacity = update.capacity;
  update.tokens = step.tokens;
  update.long_tokens = step.long_tokens;
  update.count = step.count();
  std::vector<int32_t> ids(step.plain() ? 0 : step.count());
  if (!step.plain()) {
    args.ids = ids.data();
    update.tokens = args.ids;
    update.long_tokens = false;
  }
  if (!args.nothing_to_do()) {
    run("run_vocab_observe_cuda", [&] { return run_vocab_observe_cuda(args, nullptr); });
  }
  run_update(update);
}

inline void vocab_refill(Array active_ids, Array slot_stamps, Array token_slots, Array clock,
                         const Array& text_counts, const Array& token_ranks, const Array& group_lists,
                         const OptionalArray& total_counts, int64_t pinned, bool reset) {
  RefillArgs args{};
  args.active_ids = pointer<int32_t>(active_ids);
  args.slot_stamps = pointer<int64_t>(slot_stamps);
  args.token_slots = pointer<int32_t>(token_slots);
  args.clock = pointer<int64_t>(clock);
  args.text_counts = pointer<int32_t>(text_counts);
  args.total_counts = pointer<int32_t>(total_counts);
  args.token_ranks = pointer<int32_t>(token_ranks);
  args.group_lists = pointer<void>(group_lists);
  args.long_lists = is_long(group_lists);
  args.reset = reset;
  args.groups = clock.shape(0);
  args.capacity = slot_stamps.shape(1);
  args.vocab_size = token_slots.shape(1);
  args.lists = text_counts.shape(0);
  args.pinned = pinned;
  const Workspace workspace(refill_cuda_workspace(args));
  run("run_vocab_refill_cuda", [&] { return run_vocab_refill_cuda(args, workspace.get(), nullptr); });
}

inline void bind_vocab(py::module_& module) {
  using py::arg;
  const auto none = py::none();
  module.def("vocab_update_", &vocab_update, arg("active_ids"), arg("slot_stamps"), arg("token_slots"),
             arg("clock"), arg("tokens"), py::kw_only(), arg("token_groups") = none);
  module.def("vocab_count_", &vocab_count, arg("text_counts"), arg("seen"), arg("tokens"), py::kw_only(),
             arg("token_requests") = none, arg("request_lists") = none, arg("total_counts") = none);
  module.def("vocab_observe_", &vocab_observe, arg("active_ids"), arg("slot_stamps"), arg("token_slots"),
             arg("clock"), arg("tokens"), py::kw_only(), arg("lengths") = none, arg("candidates") = none,
             arg("token_rows") = none, arg("token_groups") = none, arg("token_requests") = none,
             arg("tally") = none, arg("num_lists") = 0);
  module.def("vocab_refill_", &vocab_refill, arg("active_ids"), arg("slot_stamps"), arg("token_slots"),
             arg("clock"), arg("text_counts"), arg("token_ranks"), arg("group_lists"), py::kw_only(),
             arg("total_counts") = none, arg("pinned") = 0, arg("reset") = true);
}

}  // namespace microspec::emulation
