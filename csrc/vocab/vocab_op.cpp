// SPDX-License-Identifier: Apache-2.0
// The vocab_update_ op: its checks, and the walk over its tokens on the CPU, newest first.
#include <algorithm>
#include <limits>
#include <vector>

#include "binding/check.h"
#include "binding/device_call.h"
#include "common/clones.h"
#include "common/integers.h"
#include "common/parallel.h"
#include "vocab.h"
#include "vocab/state.h"
#include "vocab_cuda.h"

namespace microspec {

namespace {

// Whether all values are in [-1, limit). One vectorised sweep.
MICROSPEC_CLONES bool all_below(const int32_t* values, int64_t count, int64_t limit) {
  const auto bound = static_cast<int32_t>(std::min<int64_t>(limit, std::numeric_limits<int32_t>::max()));
  int32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= (values[i] < -1) | (values[i] >= bound);
  return !bad;
}

MICROSPEC_CLONES bool all_below(const int64_t* values, int64_t count, int64_t limit) {
  int64_t bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= (values[i] < -1) | (values[i] >= limit);
  return !bad;
}

bool all_below(const void* values, bool is_long, int64_t count, int64_t limit) {
  return is_long ? all_below(static_cast<const int64_t*>(values), count, limit)
                 : all_below(static_cast<const int32_t*>(values), count, limit);
}

// Reads every token and group before the first write, including those that the walk will not reach.
void check_tokens(const Checker& check, const VocabArgs& args, const void* tokens, const void* token_groups) {
  const int64_t total = token_groups ? args.count : args.groups * args.count;
  if (all_below(tokens, args.long_tokens, total, args.vocab_size) &&
      (!token_groups || all_below(token_groups, args.long_groups, total, args.groups))) {
    return;
  }
  for (int64_t i = 0; i < total; ++i) {
    const int64_t id = value_at(tokens, args.long_tokens, i);
    if (id < -1 || id >= args.vocab_size) {
      check.fail("IndexError", "tokens", "ids in [0, " + std::to_string(args.vocab_size) + ") or -1", id,
                 " at flat position ", i);
    }
    if (!token_groups) continue;
    const int64_t group = value_at(token_groups, args.long_groups, i);
    if (group < -1 || group >= args.groups) {
      check.fail("IndexError", "token_groups", "groups in [0, " + std::to_string(args.groups) + ") or -1",
                 group, " at position ", i);
    }
  }
}

// Returns the update of group g.
VocabUpdate update_of(const VocabArgs& args, int64_t g) {
  return VocabUpdate({args.active_ids + g * args.capacity, args.slot_stamps + g * args.capacity,
                      args.token_slots + g * args.vocab_size, args.clock + g, args.capacity, args.vocab_size,
                      args.count});
}

// Updates from tokens [G, N]: each group walks over its own row.
void update_rows(const VocabArgs& args) {
  parallel_for(args.groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      VocabUpdate update = update_of(args, g);
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
    updates.push_back(update_of(args, g));
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

VocabArgs checked_update(const Checker& check, const DeviceCall& call, const Tensor& active_ids,
                         const Tensor& slot_stamps, const Tensor& token_slots, const Tensor& clock,
                         const Tensor& tokens, const std::optional<Tensor>& token_groups) {
  const auto [groups, capacity, vocab_size] =
      check_state(check, call, active_ids, slot_stamps, token_slots, clock);

  VocabArgs args{};
  args.long_tokens = check.integer(tokens, "tokens");
  const bool ragged = token_groups.has_value();
  if (ragged || tokens.dim() == 1) {
    check.value(tokens.dim() == 1, "tokens", "shape [N] beside token_groups", tokens);
    check.value(ragged || groups == 1, "tokens", "shape [G, N], or [N] with token_groups, as G > 1", tokens);
  } else {
    check.value(
        tokens.dim() == 2 && tokens.size(0) == groups, "tokens",
        [&] { return "shape [" + std::to_string(groups) + ", N]"; }, tokens);
  }
  check.contiguous(tokens, "tokens");
  check.on_device(tokens, "tokens");
  args.count = tokens.size(tokens.dim() - 1);
  if (ragged) args.long_groups = check_numbers(check, *token_groups, "token_groups", args.count);
  call.check_size(args.count, "tokens", "N");

  args.active_ids = static_cast<int32_t*>(active_ids.data_ptr());
  args.slot_stamps = static_cast<int64_t*>(slot_stamps.data_ptr());
  args.token_slots = static_cast<int32_t*>(token_slots.data_ptr());
  args.clock = static_cast<int64_t*>(clock.data_ptr());
  args.tokens = tokens.data_ptr();
  args.token_groups = ragged ? token_groups->data_ptr() : nullptr;
  args.groups = groups;
  args.capacity = capacity;
  args.vocab_size = vocab_size;
  return args;
}

void check_token_values(const Checker& check, const DeviceCall& call, const VocabArgs& args,
                        const Tensor& tokens, const std::optional<Tensor>& token_groups) {
  const HostValues token_values(call, tokens);
  std::optional<HostValues> group_values;
  if (token_groups) group_values.emplace(call, *token_groups);
  if (!token_values.known()) return;
  check_tokens(check, args, token_values.data<void>(), token_groups ? group_values->data<void>() : nullptr);
}

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
  const VocabArgs args =
      checked_update(check, call, active_ids, slot_stamps, token_slots, clock, tokens, token_groups);
  const std::initializer_list<Argument> state = {{&active_ids, "active_ids"},
                                                 {&slot_stamps, "slot_stamps"},
                                                 {&token_slots, "token_slots"},
                                                 {&clock, "clock"}};
  check.disjoint(state, {{&tokens, "tokens"}, optional_argument(token_groups, "token_groups")});
  check_token_values(check, call, args, tokens, token_groups);
  note_writes(state);
  run_update(call, args);
}

}  // namespace microspec
