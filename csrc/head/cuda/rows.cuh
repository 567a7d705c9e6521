// SPDX-License-Identifier: Apache-2.0
// Helpers for rows: the group of a row of hidden, the address of a slot's weights, and whether a slot is
// active.
#pragma once

#include "common/dtype.h"
#include "cuda/platform.cuh"
#include "head/args.h"

namespace microspec {

// A slot with id -1 or an id out of range is empty. Nothing is read for it.
MICROSPEC_DEVICE bool is_active(const HeadArgs& args, int32_t id) {
  return static_cast<uint32_t>(id) < static_cast<uint64_t>(args.vocab_size);
}

// Returns the group's active ids, [K].
MICROSPEC_DEVICE const int32_t* ids_of(const HeadArgs& args, int group) {
  return args.active_ids + static_cast<int64_t>(group) * args.capacity;
}

// Returns -1 for a padding row.
MICROSPEC_DEVICE int group_of(const HeadArgs& args, int64_t row) {
  if (!args.group_ids) return 0;
  const int64_t at = args.one_group ? 0 : row;
  const int64_t group = args.long_group_ids ? static_cast<const int64_t*>(args.group_ids)[at]
                                            : static_cast<const int32_t*>(args.group_ids)[at];
  return group >= 0 && group < args.groups ? static_cast<int>(group) : -1;
}

// Returns the weights of a slot: by slot if they are packed, else by id.
template <class Row>
MICROSPEC_DEVICE const Row* row_of(const HeadArgs& args, int group, int slot, int32_t id) {
  const int64_t index = args.packed ? slot : id;
  return static_cast<const Row*>(args.weight) + group * args.weight_group_stride +
         index * args.weight_row_stride;
}

// Returns the scales of a slot's groups of 4-bit columns: bf16_t of i4 rows, f8e4m3_t of f4e2m1 rows.
template <class Scale = bf16_t>
MICROSPEC_DEVICE const Scale* group_scales_of(const HeadArgs& args, int group, int slot, int32_t id) {
  const int64_t index = args.packed ? group * args.capacity + slot : id;
  return static_cast<const Scale*>(args.group_scale) + index * (scale_bytes(args.dim) / sizeof(Scale));
}

}  // namespace microspec
