// Checks of vocab_update_ and the sorting of its tokens into groups.
#include <algorithm>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "vocab.h"

namespace microspec {

namespace {

struct Tokens {
  const void* data;
  bool is_long;
  int64_t operator[](int64_t i) const {
    return is_long ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

struct GroupTokens {
  std::vector<int64_t> tokens, offsets;
  void push(int64_t token, int64_t offset) {
    tokens.push_back(token);
    offsets.push_back(offset);
  }
};

}  // namespace

void vocab_update_cpu(Tensor active_ids, Tensor slot_stamps, Tensor token_slots, Tensor clock, Tensor tokens,
                      std::optional<Tensor> token_groups) {
  const Checker check("vocab_update_");
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

  const Tokens token{tokens.data_ptr(), check.integer(tokens, "tokens")};
  const bool ragged = token_groups.has_value();
  if (ragged || tokens.dim() == 1) {
    check.value(tokens.dim() == 1, "tokens", "shape [N] beside token_groups", shape_of(tokens));
    check.value(ragged || groups == 1, "tokens", "shape [G, N], or [N] with token_groups, as G > 1",
                shape_of(tokens));
  } else {
    check.value(tokens.dim() == 2 && tokens.size(0) == groups, "tokens",
                "shape [" + std::to_string(groups) + ", N]", shape_of(tokens));
  }
  const int64_t count = tokens.size(tokens.dim() - 1);
  Tokens group_of{nullptr, false};
  if (ragged) {
    group_of = {token_groups->data_ptr(), check.integer(*token_groups, "token_groups")};
    check.shape(*token_groups, "token_groups", {count});
    check.contiguous(*token_groups, "token_groups");
    check.on_cpu(*token_groups, "token_groups");
  }
  const std::pair<const Tensor*, const char*> all[] = {{&active_ids, "active_ids"},
                                                       {&slot_stamps, "slot_stamps"},
                                                       {&token_slots, "token_slots"},
                                                       {&clock, "clock"},
                                                       {&tokens, "tokens"}};
  for (const auto& [tensor, name] : all) {
    check.contiguous(*tensor, name);
    check.on_cpu(*tensor, name);
  }

  // Everything is read and checked before the first write.
  std::vector<GroupTokens> seen(groups);
  for (int64_t i = 0; i < tokens.numel(); ++i) {
    const int64_t id = token[i];
    if (id < -1 || id >= vocab_size) {
      check.fail("IndexError", "tokens", "ids in [0, " + std::to_string(vocab_size) + ") or -1", id,
                 " at flat position ", i);
    }
    const int64_t group = ragged ? group_of[i] : i / count;
    if (group < -1 || group >= groups) {
      check.fail("IndexError", "token_groups", "groups in [0, " + std::to_string(groups) + ") or -1", group,
                 " at position ", i);
    }
    if (id >= 0 && group >= 0) seen[group].push(id, ragged ? i : i % count);
  }

  const auto ids = static_cast<int32_t*>(active_ids.data_ptr());
  const auto stamps = static_cast<int64_t*>(slot_stamps.data_ptr());
  const auto slots = static_cast<int32_t*>(token_slots.data_ptr());
  const auto clocks = static_cast<int64_t*>(clock.data_ptr());
  parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      vocab_update_group({ids + g * capacity, stamps + g * capacity, slots + g * vocab_size, clocks + g,
                          capacity, seen[g].tokens.data(), seen[g].offsets.data(),
                          static_cast<int64_t>(seen[g].tokens.size()), count});
    }
  });
}

}  // namespace microspec
