// SPDX-License-Identifier: Apache-2.0
// The gather_rows_ op: its checks, and its split over threads.
#include "gather.h"

#include <algorithm>

#include "binding/check.h"
#include "binding/device_call.h"
#include "common/parallel.h"
#include "gather_cuda.h"

namespace microspec {

void gather_rows_(Tensor slab, Tensor slab_ids, Tensor weight, Tensor active_ids,
                  std::optional<Tensor> slab_scale, std::optional<Tensor> weight_scale) {
  const Checker check("gather_rows_", slab);
  const DeviceCall call(check, slab, "slab");
  const int64_t id_dims = active_ids.dim();
  check.slots(active_ids);
  check.value(weight.dim() == 2, "weight", "shape [V, D]", weight);
  const int64_t groups = id_dims == 2 ? active_ids.size(0) : 1;
  const int64_t capacity = active_ids.size(id_dims - 1);
  check.dtype(active_ids, "active_ids", ScalarType::Int);
  check.dtype(slab_ids, "slab_ids", ScalarType::Int);
  if (id_dims == 1) {
    check.shape(slab_ids, "slab_ids", {capacity});
  } else {
    check.shape(slab_ids, "slab_ids", {groups, capacity});
  }

  GatherArgs args{};
  const auto weight_dtype = dtype_of(weight);
  args.weight_type = check.row_dtype(weight, "weight", weight_dtype, /*e2m1=*/true);
  if (is_quantised(args.weight_type)) check.dtype(slab, "slab", weight_dtype);
  args.slab_type = check.row_dtype(slab, "slab", weight_dtype, args.weight_type == DType::f4e2m1);
  call.check_rows(args.slab_type, "slab");
  const int64_t vocab_size = weight.size(0), dim = weight.size(1) * (is_4bit(args.weight_type) ? 2 : 1);
  const int64_t columns = is_4bit(args.slab_type) ? dim / 2 : dim;  // of the slab's tensor
  if (id_dims == 1) {
    check.shape(slab, "slab", {capacity, columns});
  } else {
    check.shape(slab, "slab", {groups, capacity, columns});
  }
  if (is_4bit(args.slab_type)) check.group_dim(args.slab_type, dim, "weight");
  const RowScale from = check.row_scale(weight_scale, "weight_scale", args.weight_type, {vocab_size}, dim);
  args.weight_scale = from.by_row;
  args.weight_group_scale = from.by_group;
  const RowScale to =
      id_dims == 1 ? check.row_scale(slab_scale, "slab_scale", args.slab_type, {capacity}, dim)
                   : check.row_scale(slab_scale, "slab_scale", args.slab_type, {groups, capacity}, dim);
  args.slab_scale = to.by_row;
  args.slab_group_scale = to.by_group;

  check.unit_inner_stride(weight, "weight");
  args.weight = call.data_of(weight, "weight");
  const std::initializer_list<Argument> all = {
      {&slab, "slab"}, {&slab_ids, "slab_ids"}, {&active_ids, "active_ids"}};
  for (const auto& [tensor, name] : all) {
    check.contiguous(*tensor, name);
    check.on_device(*tensor, name);
  }
  const std::initializer_list<Argument> written = {
      {&slab, "slab"}, {&slab_ids, "slab_ids"}, {slab_scale ? &*slab_scale : nullptr, "slab_scale"}};
  check.disjoint(written, {{&weight, "weight"},
                           {&active_ids, "active_ids"},
                           {weight_scale ? &*weight_scale : nullptr, "weight_scale"}});

  args.slab = slab.data_ptr();
  args.slab_ids = static_cast<int32_t*>(slab_ids.data_ptr());
  args.weight_row_stride = weight.stride(0);
  args.active_ids = static_cast<const int32_t*>(active_ids.data_ptr());
  args.dim = dim;
  args.vocab_size = vocab_size;
  const int64_t slots = groups * capacity;
  call.check_size(slots, "active_ids", "G * K");
  call.check_size(row_bytes(args.weight_type, dim), "weight", "bytes of a row");
  const HostValues ids(call, active_ids);
  if (ids.known()) check.ids(ids.data<int32_t>(), slots, vocab_size, "active_ids");
  note_writes(written);
  if (call.on_cuda()) return call.check(run_gather_rows_cuda(args, slots, call.stream()));

  // A thread is worth waking for a quarter megabyte of rows, although most slots cost only one compare.
  const int64_t weight_row = std::max<int64_t>(1, row_bytes(args.weight_type, dim));
  const int64_t grain = std::max<int64_t>(16, (int64_t{1} << 18) / weight_row);
  parallel_for(slots, grain, [&](int64_t begin, int64_t end) { gather_slots(args, begin, end); });
}

}  // namespace microspec
