// SPDX-License-Identifier: Apache-2.0
#include "vocab/state.h"

namespace microspec {

VocabSizes check_state(const Checker& check, const DeviceCall& call, const Tensor& active_ids,
                       const Tensor& slot_stamps, const Tensor& token_slots, const Tensor& clock) {
  const int64_t id_dims = active_ids.dim();
  check.slots(active_ids);
  const int64_t groups = id_dims == 2 ? active_ids.size(0) : 1;
  const int64_t capacity = active_ids.size(id_dims - 1);
  check.value(token_slots.dim() == 2, "token_slots", "shape [G, V]", token_slots);
  const int64_t vocab_size = token_slots.size(1);
  check.dtype(active_ids, "active_ids", ScalarType::Int);
  check.dtype(slot_stamps, "slot_stamps", ScalarType::Long);
  check.dtype(token_slots, "token_slots", ScalarType::Int);
  check.dtype(clock, "clock", ScalarType::Long);
  check.shape(slot_stamps, "slot_stamps", {groups, capacity});
  check.shape(token_slots, "token_slots", {groups, vocab_size});
  check.shape(clock, "clock", {groups});
  const std::initializer_list<Argument> state = {{&active_ids, "active_ids"},
                                                 {&slot_stamps, "slot_stamps"},
                                                 {&token_slots, "token_slots"},
                                                 {&clock, "clock"}};
  for (const auto& [tensor, name] : state) {
    check.contiguous(*tensor, name);
    check.on_device(*tensor, name);
  }
  call.check_size(groups, "active_ids", "G");
  call.check_size(capacity, "active_ids", "K");
  return {groups, capacity, vocab_size};
}

bool check_numbers(const Checker& check, const Tensor& numbers, const char* argument, int64_t count) {
  const bool is_long = check.integer(numbers, argument);
  check.shape(numbers, argument, {count});
  check.contiguous(numbers, argument);
  check.on_device(numbers, argument);
  return is_long;
}

void check_counts(const Checker& check, const Tensor& text_counts,
                  const std::optional<Tensor>& total_counts) {
  check.value(text_counts.dim() == 2 && text_counts.size(0) > 0, "text_counts", "shape [C, V], C >= 1",
              text_counts);
  check.dtype(text_counts, "text_counts", ScalarType::Int);
  check.contiguous(text_counts, "text_counts");
  check.on_device(text_counts, "text_counts");
  if (!total_counts) return;
  check.dtype(*total_counts, "total_counts", ScalarType::Int);
  check.shape(*total_counts, "total_counts", {text_counts.size(1)});
  check.contiguous(*total_counts, "total_counts");
  check.on_device(*total_counts, "total_counts");
}

void check_requests(const Checker& check, const DeviceCall& call, const Tensor& text_counts,
                    const Tensor& seen, const std::optional<Tensor>& request_lists,
                    const std::optional<Tensor>& total_counts, CountArgs& args) {
  args.lists = text_counts.size(0);
  args.vocab_size = text_counts.size(1);
  args.words = (args.vocab_size + 31) / 32;
  check.value(
      seen.dim() == 2 && seen.size(0) > 0 && seen.size(1) == args.words, "seen",
      [&] { return "shape [R, " + std::to_string(args.words) + "], R >= 1"; }, seen);
  check.dtype(seen, "seen", ScalarType::Int);
  check.contiguous(seen, "seen");
  check.on_device(seen, "seen");
  args.requests = seen.size(0);
  check.value(request_lists || args.lists == 1, "request_lists", "the list of each request, as C > 1",
              "None");
  if (request_lists) {
    args.long_lists = check_numbers(check, *request_lists, "request_lists", args.requests);
    args.request_lists = request_lists->data_ptr();
  }
  call.check_size(args.requests, "seen", "R");
  args.text_counts = static_cast<int32_t*>(text_counts.data_ptr());
  args.total_counts = total_counts ? static_cast<int32_t*>(total_counts->data_ptr()) : nullptr;
  args.seen = static_cast<int32_t*>(seen.data_ptr());
}

}  // namespace microspec
