// SPDX-License-Identifier: Apache-2.0
// The vocab_update_ op: its checks, and the walk over its tokens on the CPU, newest first.
#include <algorithm>
#include <vector>

#include "binding/check.h"
#include "binding/device_call.h"
#include "common/integers.h"
#include "common/parallel.h"
#include "vocab.h"
#include "vocab/state.h"
#include "vocab_cuda.h"

namespace microspec {

namespace {

// Returns the update of group g.
VocabUpdate group_update(const VocabArgs& args, int64_t g) {
  return VocabUpdate({args.active_ids + g * args.capacity, args.slot_stamps + g * args.capacity,
                      args.token_slots + g * args.vocab_size, args.clock + g, args.capacity, args.vocab_size,
                      args.count});
}

// Updates from tokens [G, N]: each group walks over its own row.
void update_rows(const VocabArgs& args) {
  parallel_for(args.groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      VocabUpdate update = group_update(args, g);
      for (int64_t i = args.count - 1; i >= 0 && !update.full(); --i) {
        const int64_t token = value_at(args.tokens, args.long_tokens, g * args.count + i);
        if (token >= 0) update.see(token, i);
      }
      update.place_newcomers();
    }
  });
}

// Updates from tokens [N] of all groups: one walk, until every group is full.
void update_ragged(const VocabArgs& args) {
  std::vector<VocabUpdate> updates;
  updates.reserve(args.groups);
  int64_t open = 0;
  for (int64_t g = 0; g < args.groups; ++g) {
    updates.push_back(group_update(args, g));
    open += !updates[g].full();
  }
  for (int64_t i = args.count - 1; i >= 0 && open > 0; --i) {
    const int64_t token = value_at(args.tokens, args.long_tokens, i);
    const int64_t group = value_at(args.token_groups, args.long_groups, i);
    if (token < 0 || group < 0 || updates[group].full()) continue;
    updates[group].see(token, i);
    open -= updates[group].full();
  }
  parallel_for(args.groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) updates[g].place_newcomers();
  });
}

void update_on_cuda(const DeviceCall& call, const VocabArgs& args) {
  VocabPlan plan;
  call.check(plan_vocab_cuda(args, &plan));
  const Tensor workspace = call.workspace(plan.workspace_bytes());
  call.check(run_vocab_update_cuda(args, plan, workspace.data_ptr(), call.stream()));
}

}  // namespace

void run_update(const DeviceCall& call, const VocabArgs& args) {
  if (call.on_cuda()) {
    update_on_cuda(call, args);
  } else if (args.token_groups) {
    update_ragged(args);
  } else {
    update_rows(args);
  }
}

void vocab_update_(Tensor active_ids, Tensor slot_stamps, Tensor token_slots, Tensor clock, Tensor tokens,
                   std::optional<Tensor> token_groups) {
  const Checker check("vocab_update_", active_ids);
  const DeviceCall call(check, active_ids, "active_ids");
  const VocabSizes sizes = check_state(check, call, active_ids, slot_stamps, token_slots, clock);
  VocabArgs args = update_of(sizes, active_ids, slot_stamps, token_slots, clock);
  args.long_tokens = check.integer(tokens, "tokens");
  const bool ragged = token_groups.has_value();
  if (ragged || tokens.dim() == 1) {
    check.value(tokens.dim() == 1, "tokens", "shape [N] beside token_groups", tokens);
    check.value(ragged || args.groups == 1, "tokens", "shape [G, N], or [N] with token_groups, as G > 1",
                tokens);
  } else {
    check.value(
        tokens.dim() == 2 && tokens.size(0) == args.groups, "tokens",
        [&] { return "shape [" + std::to_string(args.groups) + ", N]"; }, tokens);
  }
  check.contiguous(tokens, "tokens");
  check.on_device(tokens, "tokens");
  args.count = tokens.size(tokens.dim() - 1);
  args.tokens = tokens.data_ptr();
  if (ragged) {
    args.long_groups = check_numbers(check, *token_groups, "token_groups", args.count);
    args.token_groups = token_groups->data_ptr();
  }
  call.check_size(args.count, "tokens", "N");
  const std::initializer_list<Argument> state = {{&active_ids, "active_ids"},
                                                 {&slot_stamps, "slot_stamps"},
                                                 {&token_slots, "token_slots"},
                                                 {&clock, "clock"}};
  check.disjoint(state, {{&tokens, "tokens"}, optional_argument(token_groups, "token_groups")});
  // Every token and group is read before the first write, including those that the walk will not reach.
  check_values(check, call, tokens, args.vocab_size, "tokens", "ids", "flat position");
  if (ragged) check_values(check, call, *token_groups, args.groups, "token_groups", "groups", "position");
  note_writes(state);
  run_update(call, args);
}

}  // namespace microspec
