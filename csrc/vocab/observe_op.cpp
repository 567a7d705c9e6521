// SPDX-License-Identifier: Apache-2.0
// The vocab_observe_ op: its checks, the pass that judges and counts, and the update.
#include <string>

#include "binding/check.h"
#include "binding/device_call.h"
#include "vocab/learn.h"
#include "vocab/learn_cuda.h"
#include "vocab/state.h"

namespace microspec {

namespace {

// Requires an int32 or int64 tensor, contiguous and on the device. Returns true for int64.
bool check_integers(const Checker& check, const Tensor& tensor, const char* argument) {
  const bool is_long = check.integer(tensor, argument);
  check.contiguous(tensor, argument);
  check.on_device(tensor, argument);
  return is_long;
}

// The checks of a step's tokens, except those that read values.
StepTokens checked_tokens(const Checker& check, const DeviceCall& call, int64_t vocab_size,
                          const Tensor& tokens, const std::optional<Tensor>& lengths,
                          const std::optional<Tensor>& candidates, const std::optional<Tensor>& token_rows) {
  StepTokens step{};
  step.long_tokens = check_integers(check, tokens, "tokens");
  step.tokens = tokens.data_ptr();
  step.num_tokens = tokens.numel();
  check.value(tokens.dim() == 2 || (tokens.dim() == 1 && !lengths), "tokens",
              lengths ? "shape [B, n] beside lengths" : "shape [N] or [B, n]", tokens);
  if (lengths) {
    step.row_length = tokens.size(1);
    step.long_lengths = check_numbers(check, *lengths, "lengths", tokens.size(0));
    step.lengths = lengths->data_ptr();
  }
  if (candidates) {
    step.long_candidates = check_integers(check, *candidates, "candidates");
    step.candidates = candidates->data_ptr();
    step.num_candidates = candidates->numel();
  }
  step.bound = step.vocab_size = vocab_size;
  if (token_rows) {
    check.dtype(*token_rows, "token_rows", ScalarType::Int);
    check.value(token_rows->dim() == 1 && token_rows->numel() > 0, "token_rows", "shape [T], T >= 1",
                *token_rows);
    check.contiguous(*token_rows, "token_rows");
    check.on_device(*token_rows, "token_rows");
    step.token_rows = static_cast<const int32_t*>(token_rows->data_ptr());
    step.bound = token_rows->numel();
  }
  call.check_size(step.count(), "tokens", "N with the candidates");
  return step;
}

// Requires int32 [n], whose n says the number of requests.
Tally checked_tally(const Checker& check, const DeviceCall& call, const Tensor& tensor, int64_t lists,
                    int64_t vocab_size) {
  check.dtype(tensor, "tally", ScalarType::Int);
  check.contiguous(tensor, "tally");
  check.on_device(tensor, "tally");
  const int64_t per_request = request_words(lists, vocab_size), tables = table_words(lists, vocab_size);
  const int64_t requests = (tensor.numel() - tables) / per_request;
  check.value(
      tensor.dim() == 1 && requests > 0 && requests * per_request + tables == tensor.numel(), "tally",
      [&] {
        return "shape [" + std::to_string(per_request) + " R + " + std::to_string(tables) + "], R >= 1";
      },
      tensor);
  auto* const data = static_cast<int32_t*>(tensor.data_ptr());
  check.value(reinterpret_cast<uintptr_t>(data) % alignof(int64_t) == 0, "tally", "data aligned to 8 bytes",
              "data aligned to 4");
  call.check_size(requests, "tally", "R");
  return tally_at(data, requests, lists, vocab_size);
}

// Requires valid tokens in [-1, bound), where the host knows them.
void check_step_values(const Checker& check, const DeviceCall& call, StepTokens step, const Tensor& tokens,
                       const std::optional<Tensor>& lengths) {
  if (!lengths) {
    check_values(check, call, tokens, step.bound, "tokens", "ids", "flat position");
    return;
  }
  const HostValues host(call, tokens), valid(call, *lengths);
  if (!host.known()) return;
  step.lengths = valid.data<void>();
  for (int64_t i = 0; i < step.num_tokens; ++i) {
    const int64_t id = value_at(host.data<void>(), step.long_tokens, i);
    if (id >= -1 && id < step.bound) continue;
    if (step.valid(i)) fail_value(check, id, i, step.bound, "tokens", "ids", "flat position");
  }
}

}  // namespace

void vocab_observe_(Tensor active_ids, Tensor slot_stamps, Tensor token_slots, Tensor clock, Tensor tokens,
                    std::optional<Tensor> lengths, std::optional<Tensor> candidates,
                    std::optional<Tensor> token_rows, std::optional<Tensor> token_groups,
                    std::optional<Tensor> token_requests, std::optional<Tensor> tally, int64_t num_lists) {
  const Checker check("vocab_observe_", active_ids);
  const DeviceCall call(check, active_ids, "active_ids");
  const VocabSizes sizes = check_state(check, call, active_ids, slot_stamps, token_slots, clock);
  VocabArgs update = update_of(sizes, active_ids, slot_stamps, token_slots, clock);
  ObserveArgs observe{};
  StepTokens& step = observe.tokens;
  step = checked_tokens(check, call, sizes.vocab_size, tokens, lengths, candidates, token_rows);
  observe.active_ids = update.active_ids;
  observe.token_slots = update.token_slots;
  observe.groups = sizes.groups;
  observe.capacity = sizes.capacity;
  check.value(token_groups || sizes.groups == 1, "token_groups", "the group of each token, as G > 1", "None");
  if (token_groups) {
    observe.long_groups = check_numbers(check, *token_groups, "token_groups", step.count());
    observe.token_groups = token_groups->data_ptr();
  }
  check.value(tally || !token_requests, "token_requests", "None without tally", "a tensor");
  check.value(tally ? num_lists >= 0 : num_lists == 0, "num_lists", tally ? "at least 0" : "0 without tally",
              num_lists);
  if (tally) {
    observe.tally = checked_tally(check, call, *tally, num_lists, sizes.vocab_size);
    const int64_t requests = observe.tally.tables.requests;
    check.value(token_requests || requests == 1 || requests == sizes.groups, "token_requests",
                "the request of each token, as R is neither 1 nor G", "None");
  }
  if (token_requests) {
    observe.long_requests = check_numbers(check, *token_requests, "token_requests", step.count());
    observe.token_requests = token_requests->data_ptr();
  }
  const std::initializer_list<Argument> changed = {{&active_ids, "active_ids"},
                                                   {&slot_stamps, "slot_stamps"},
                                                   {&token_slots, "token_slots"},
                                                   {&clock, "clock"},
                                                   optional_argument(tally, "tally")};
  check.disjoint(changed, {{&tokens, "tokens"},
                           optional_argument(lengths, "lengths"),
                           optional_argument(candidates, "candidates"),
                           optional_argument(token_rows, "token_rows"),
                           optional_argument(token_groups, "token_groups"),
                           optional_argument(token_requests, "token_requests")});
  check_step_values(check, call, step, tokens, lengths);
  if (candidates) {
    check_values(check, call, *candidates, step.bound, "candidates", "ids", "flat position");
  }
  if (token_groups) {
    check_values(check, call, *token_groups, sizes.groups, "token_groups", "groups", "position");
  }
  note_writes(changed);

  update.count = step.count();
  update.tokens = step.tokens;
  update.long_tokens = step.long_tokens;
  update.token_groups = observe.token_groups;
  update.long_groups = observe.long_groups;
  std::optional<Tensor> ids;  // of the tokens, if they are not ids as they lie
  if (!step.plain()) {
    ids = call.empty({step.count()}, ScalarType::Int);
    observe.ids = static_cast<int32_t*>(ids->data_ptr());
    update.tokens = observe.ids;
    update.long_tokens = false;
  }
  if (!observe.nothing_to_do()) {
    if (call.on_cuda()) {
      call.check(run_vocab_observe_cuda(observe, call.stream()));
    } else {
      observe_cpu(observe);
    }
  }
  run_update(call, update);
}

}  // namespace microspec
