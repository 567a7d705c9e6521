// SPDX-License-Identifier: Apache-2.0
// The vocab_observe_ op: its checks, and its three parts in turn.
#include "binding/check.h"
#include "binding/device_call.h"
#include "vocab/learn.h"
#include "vocab/learn_cuda.h"
#include "vocab/state.h"

namespace microspec {

namespace {

// Requires a tensor of the tokens' shape.
void check_beside_tokens(const Checker& check, const Tensor& tensor, const char* argument,
                         const Tensor& tokens) {
  bool same = tensor.dim() == tokens.dim();
  for (int64_t d = 0; same && d < tokens.dim(); ++d) same = tensor.size(d) == tokens.size(d);
  check.value(same, argument, [&] { return "shape " + shape_of(tokens) + " as tokens"; }, tensor);
  check.contiguous(tensor, argument);
  check.on_device(tensor, argument);
}

}  // namespace

void vocab_observe_(Tensor active_ids, Tensor slot_stamps, Tensor token_slots, Tensor clock, Tensor tokens,
                    Tensor written, std::optional<Tensor> token_groups, std::optional<Tensor> token_requests,
                    std::optional<Tensor> verdicts, std::optional<Tensor> text_counts,
                    std::optional<Tensor> seen, std::optional<Tensor> request_lists,
                    std::optional<Tensor> total_counts) {
  const Checker check("vocab_observe_", active_ids);
  const DeviceCall call(check, active_ids, "active_ids");
  const VocabArgs update =
      checked_update(check, call, active_ids, slot_stamps, token_slots, clock, tokens, token_groups);
  check.dtype(written, "written", ScalarType::Bool);
  check_beside_tokens(check, written, "written", tokens);
  if (verdicts) {
    check.dtype(*verdicts, "verdicts", ScalarType::Long);
    check.shape(*verdicts, "verdicts", {2, update.groups});
    check.contiguous(*verdicts, "verdicts");
    check.on_device(*verdicts, "verdicts");
  }
  CountArgs count{};
  count.vocab_size = update.vocab_size;
  check.value(text_counts.has_value() == seen.has_value(), "seen",
              "text_counts and seen together, or neither", seen ? "seen alone" : "text_counts alone");
  const auto only_with_counts = [&](const std::optional<Tensor>& tensor, const char* argument) {
    check.value(text_counts || !tensor, argument, "None without text_counts", "a tensor");
  };
  only_with_counts(token_requests, "token_requests");
  only_with_counts(request_lists, "request_lists");
  only_with_counts(total_counts, "total_counts");
  if (text_counts) {
    check_counts(check, *text_counts, total_counts);
    check.shape(*text_counts, "text_counts", {text_counts->size(0), update.vocab_size});
    check_requests(check, call, *text_counts, *seen, request_lists, total_counts, count);
    check.value(token_requests || count.requests == update.groups, "token_requests",
                "the request of each token, as R is not G", "None");
  }
  count.tokens = update.tokens;
  count.long_tokens = update.long_tokens;
  count.written = static_cast<const bool*>(written.data_ptr());
  count.count = update.count;
  count.token_requests = update.token_groups;
  count.long_requests = update.long_groups;
  if (token_requests) {
    count.long_requests = check.integer(*token_requests, "token_requests");
    check_beside_tokens(check, *token_requests, "token_requests", tokens);
    count.token_requests = token_requests->data_ptr();
    count.count = tokens.numel();
  }
  const std::initializer_list<Argument> changed = {{&active_ids, "active_ids"},
                                                   {&slot_stamps, "slot_stamps"},
                                                   {&token_slots, "token_slots"},
                                                   {&clock, "clock"},
                                                   optional_argument(verdicts, "verdicts"),
                                                   optional_argument(text_counts, "text_counts"),
                                                   optional_argument(seen, "seen"),
                                                   optional_argument(total_counts, "total_counts")};
  check.disjoint(changed, {{&tokens, "tokens"},
                           {&written, "written"},
                           optional_argument(token_groups, "token_groups"),
                           optional_argument(token_requests, "token_requests"),
                           optional_argument(request_lists, "request_lists")});
  const JudgeArgs judge{verdicts ? static_cast<int64_t*>(verdicts->data_ptr()) : nullptr,
                        update.active_ids,
                        update.token_slots,
                        update.token_groups,
                        update.long_groups,
                        update.groups,
                        update.capacity,
                        update.count};
  check_token_values(check, call, update, tokens, token_groups);
  note_writes(changed);
  if (call.on_cuda()) {
    if (verdicts || text_counts) call.check(run_vocab_judge_cuda(judge, count, call.stream()));
  } else {
    if (verdicts) judge_cpu(judge, count);
    if (text_counts) count_cpu(count);
  }
  run_update(call, update);
}

}  // namespace microspec
