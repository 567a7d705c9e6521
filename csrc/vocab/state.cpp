// SPDX-License-Identifier: Apache-2.0
#include "vocab/state.h"

namespace microspec {

VocabSizes check_state(const Checker& check, const DeviceCall& call, const Tensor& active_ids,
                       const Tensor& slot_stamps, const Tensor& token_slots, const Tensor& clock) {
  const int64_t id_dims = active_ids.dim();
  check.slots(active_ids);
  const int64_t groups = id_dims == 2 ? active_ids.size(0) : 1;
  const int64_t capacity = active_ids.size(id_dims - 1);
  check.value(token_slots.dim() == 2, "token_slots", "shape [G, V]", shape_of(token_slots));
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

}  // namespace microspec
