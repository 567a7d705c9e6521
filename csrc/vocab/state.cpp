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

VocabArgs update_of(const VocabSizes& sizes, const Tensor& active_ids, const Tensor& slot_stamps,
                    const Tensor& token_slots, const Tensor& clock) {
  VocabArgs args{};
  args.active_ids = static_cast<int32_t*>(active_ids.data_ptr());
  args.slot_stamps = static_cast<int64_t*>(slot_stamps.data_ptr());
  args.token_slots = static_cast<int32_t*>(token_slots.data_ptr());
  args.clock = static_cast<int64_t*>(clock.data_ptr());
  args.groups = sizes.groups;
  args.capacity = sizes.capacity;
  args.vocab_size = sizes.vocab_size;
  return args;
}

}  // namespace microspec
