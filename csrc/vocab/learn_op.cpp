// SPDX-License-Identifier: Apache-2.0
// The vocab_count_ and vocab_refill_ ops: their checks.
#include "binding/check.h"
#include "binding/device_call.h"
#include "vocab/learn.h"
#include "vocab/learn_cuda.h"
#include "vocab/state.h"

namespace microspec {

namespace {

// Requires seen int32 [R, ceil(V / 32)], and request_lists [R] if there are several lists.
CountTables checked_tables(const Checker& check, const DeviceCall& call, const Tensor& text_counts,
                           const Tensor& seen, const std::optional<Tensor>& request_lists,
                           const std::optional<Tensor>& total_counts) {
  CountTables tables{};
  tables.lists = text_counts.size(0);
  tables.vocab_size = text_counts.size(1);
  const int64_t words = tables.words();
  check.value(
      seen.dim() == 2 && seen.size(0) > 0 && seen.size(1) == words, "seen",
      [&] { return "shape [R, " + std::to_string(words) + "], R >= 1"; }, seen);
  check.dtype(seen, "seen", ScalarType::Int);
  check.contiguous(seen, "seen");
  check.on_device(seen, "seen");
  tables.requests = seen.size(0);
  check.value(request_lists || tables.lists == 1, "request_lists", "the list of each request, as C > 1",
              "None");
  if (request_lists) {
    tables.long_lists = check_numbers(check, *request_lists, "request_lists", tables.requests);
    tables.request_lists = request_lists->data_ptr();
  }
  call.check_size(tables.requests, "seen", "R");
  tables.text_counts = static_cast<int32_t*>(text_counts.data_ptr());
  tables.total_counts = total_counts ? static_cast<int32_t*>(total_counts->data_ptr()) : nullptr;
  tables.seen = static_cast<int32_t*>(seen.data_ptr());
  return tables;
}

}  // namespace

void vocab_count_(Tensor text_counts, Tensor seen, Tensor tokens, std::optional<Tensor> token_requests,
                  std::optional<Tensor> request_lists, std::optional<Tensor> total_counts) {
  const Checker check("vocab_count_", text_counts);
  const DeviceCall call(check, text_counts, "text_counts");
  CountArgs args{};
  check_counts(check, text_counts, total_counts);
  args.tables = checked_tables(check, call, text_counts, seen, request_lists, total_counts);
  args.long_tokens = check.integer(tokens, "tokens");
  const int64_t requests = args.tables.requests;
  const bool ragged = token_requests.has_value();
  if (ragged || tokens.dim() == 1) {
    check.value(tokens.dim() == 1, "tokens", "shape [N] beside token_requests", tokens);
    check.value(ragged || requests == 1, "tokens", "shape [R, N], or [N] with token_requests, as R > 1",
                tokens);
  } else {
    check.value(
        tokens.dim() == 2 && tokens.size(0) == requests, "tokens",
        [&] { return "shape [" + std::to_string(requests) + ", N]"; }, tokens);
  }
  check.contiguous(tokens, "tokens");
  check.on_device(tokens, "tokens");
  args.count = tokens.size(tokens.dim() - 1);
  if (ragged) {
    args.long_requests = check_numbers(check, *token_requests, "token_requests", args.count);
    args.token_requests = token_requests->data_ptr();
  }
  const std::initializer_list<Argument> written = {
      {&text_counts, "text_counts"}, {&seen, "seen"}, optional_argument(total_counts, "total_counts")};
  check.disjoint(written, {{&tokens, "tokens"},
                           optional_argument(token_requests, "token_requests"),
                           optional_argument(request_lists, "request_lists")});
  call.check_size(args.count, "tokens", "N");

  args.tokens = tokens.data_ptr();
  note_writes(written);
  if (call.on_cuda()) {
    call.check(run_vocab_count_cuda(args, call.stream()));
  } else {
    count_cpu(args);
  }
}

void vocab_refill_(Tensor active_ids, Tensor slot_stamps, Tensor token_slots, Tensor clock,
                   Tensor text_counts, Tensor token_ranks, Tensor group_lists,
                   std::optional<Tensor> total_counts, int64_t pinned, bool reset) {
  const Checker check("vocab_refill_", active_ids);
  const DeviceCall call(check, active_ids, "active_ids");
  const auto [groups, capacity, vocab_size] =
      check_state(check, call, active_ids, slot_stamps, token_slots, clock);
  call.check_size(vocab_size, "token_slots", "V");
  check_counts(check, text_counts, total_counts);
  check.shape(text_counts, "text_counts", {text_counts.size(0), vocab_size});
  check.dtype(token_ranks, "token_ranks", ScalarType::Int);
  check.shape(token_ranks, "token_ranks", {vocab_size});
  check.contiguous(token_ranks, "token_ranks");
  check.on_device(token_ranks, "token_ranks");
  const bool long_lists = check_numbers(check, group_lists, "group_lists", groups);
  check.value(
      pinned >= 0 && pinned <= capacity, "pinned", [&] { return "0 to K = " + std::to_string(capacity); },
      pinned);
  const std::initializer_list<Argument> state = {{&active_ids, "active_ids"},
                                                 {&slot_stamps, "slot_stamps"},
                                                 {&token_slots, "token_slots"},
                                                 {&clock, "clock"}};
  check.disjoint(state, {{&text_counts, "text_counts"},
                         {&token_ranks, "token_ranks"},
                         {&group_lists, "group_lists"},
                         optional_argument(total_counts, "total_counts")});

  RefillArgs args{};
  args.active_ids = static_cast<int32_t*>(active_ids.data_ptr());
  args.slot_stamps = static_cast<int64_t*>(slot_stamps.data_ptr());
  args.token_slots = static_cast<int32_t*>(token_slots.data_ptr());
  args.clock = static_cast<int64_t*>(clock.data_ptr());
  args.text_counts = static_cast<const int32_t*>(text_counts.data_ptr());
  args.total_counts = total_counts ? static_cast<const int32_t*>(total_counts->data_ptr()) : nullptr;
  args.token_ranks = static_cast<const int32_t*>(token_ranks.data_ptr());
  args.group_lists = group_lists.data_ptr();
  args.long_lists = long_lists;
  args.reset = reset;
  args.groups = groups;
  args.capacity = capacity;
  args.vocab_size = vocab_size;
  args.lists = text_counts.size(0);
  args.pinned = pinned;

  check_values(check, call, group_lists, args.lists, "group_lists", "lists", "position");
  note_writes(state);
  if (call.on_cuda()) {
    const Tensor workspace = call.workspace(refill_cuda_workspace(args));
    call.check(run_vocab_refill_cuda(args, workspace.data_ptr(), call.stream()));
  } else {
    refill_cpu(args);
  }
}

}  // namespace microspec
