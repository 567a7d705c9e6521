// SPDX-License-Identifier: Apache-2.0
#include "head_checks.h"

#include <cmath>

namespace microspec {

void check_head_ids(const Checker& check, const DeviceCall& call, const HeadArgs& args,
                    const Tensor& active_ids, const std::optional<Tensor>& group_ids) {
  const HostValues ids(call, active_ids);
  if (ids.known()) {
    check.ids(ids.data<int32_t>(), args.groups * args.capacity, args.vocab_size, "active_ids");
  }
  if (!group_ids) return;
  const HostValues groups(call, *group_ids);
  if (!groups.known()) return;
  for (int64_t row = 0; row < group_ids->size(0); ++row) {
    const int64_t group = args.long_group_ids ? groups.data<int64_t>()[row] : groups.data<int32_t>()[row];
    if (group < -1 || group >= args.groups) {
      check.fail("IndexError", "group_ids", "groups in [0, " + std::to_string(args.groups) + ") or -1", group,
                 " at position ", row);
    }
  }
}

HeadArgs checked_head(const Checker& check, const DeviceCall& call, const Tensor& hidden,
                      const Tensor& weight, const Tensor& active_ids, bool packed,
                      const std::optional<Tensor>& group_ids, const std::optional<Tensor>& weight_scale,
                      const std::optional<Tensor>& bias, double logit_scale, double softcap) {
  const int64_t id_dims = active_ids.dim();
  check.value(hidden.dim() == 2, "hidden", "shape [M, D]", hidden);
  check.slots(active_ids);
  check.dtype(active_ids, "active_ids", ScalarType::Int);

  HeadArgs args{};
  args.rows = hidden.size(0);
  args.dim = hidden.size(1);
  args.groups = id_dims == 2 ? active_ids.size(0) : 1;
  args.capacity = active_ids.size(id_dims - 1);
  args.packed = packed;
  call.check_size(args.groups, "active_ids", "G");
  call.check_size(args.capacity, "active_ids", "K");
  call.check_size(args.dim, "hidden", "D");
  args.hidden_type = check.float_dtype(hidden, "hidden");
  args.weight_type = check.row_dtype(weight, "weight", dtype_of(hidden), /*e2m1=*/true);
  call.check_rows(args.weight_type, "weight");

  int64_t columns = args.dim;  // of the tensor
  if (is_4bit(args.weight_type)) {
    check.group_dim(args.weight_type, args.dim, "weight");
    columns /= 2;
  }
  args.vocab_size = int64_t{1} << 31;  // unknown for a slab, unless a bias has V elements
  const auto scale_of = [&](std::initializer_list<int64_t> shape) {
    return check.row_scale(weight_scale, "weight_scale", args.weight_type, shape, args.dim);
  };
  RowScale scale;
  if (!packed) {
    check.value(
        weight.dim() == 2 && weight.size(1) == columns, "weight",
        [&] { return "shape [V, " + std::to_string(columns) + "]"; }, weight);
    args.vocab_size = weight.size(0);
    scale = scale_of({args.vocab_size});
  } else if (id_dims == 1) {
    check.shape(weight, "weight", {args.capacity, columns});
    scale = scale_of({args.capacity});
  } else {
    check.shape(weight, "weight", {args.groups, args.capacity, columns});
    scale = scale_of({args.groups, args.capacity});
  }
  args.weight_scale = scale.by_row;
  args.group_scale = scale.by_group;

  check.value(
      args.groups == 1 || group_ids || args.rows == 0, "group_ids",
      [&] { return "a group per row, as G = " + std::to_string(args.groups); }, "None");
  if (group_ids) {
    args.long_group_ids = check.integer(*group_ids, "group_ids");
    args.one_group = group_ids->dim() == 1 && group_ids->size(0) == 1;
    check.value(
        args.one_group || (group_ids->dim() == 1 && group_ids->size(0) == args.rows), "group_ids",
        [&] { return "shape [" + std::to_string(args.rows) + "] or [1]"; }, *group_ids);
    check.contiguous(*group_ids, "group_ids");
    check.on_device(*group_ids, "group_ids");
    args.group_ids = group_ids->data_ptr();
  }
  if (bias) {
    const auto hidden_dtype = dtype_of(hidden), bias_dtype = dtype_of(*bias);
    check.type(
        bias_dtype == hidden_dtype || bias_dtype == ScalarType::Float, "bias",
        [&] { return dtype_name(hidden_dtype) + (args.hidden_type == DType::f32 ? "" : " or float32"); },
        [&] { return dtype_name(bias_dtype); });
    args.bias_type = check.float_dtype(*bias, "bias");
    check.value(bias->dim() == 1, "bias", "shape [V]", *bias);
    if (!packed) check.shape(*bias, "bias", {args.vocab_size});
    check.contiguous(*bias, "bias");
    check.on_device(*bias, "bias");
    args.vocab_size = bias->size(0);
    args.bias = bias->data_ptr();
  }
  check.value(std::isfinite(logit_scale), "logit_scale", "a finite number", logit_scale);
  check.value(softcap >= 0.0 && std::isfinite(softcap), "softcap", "a finite number >= 0", softcap);
  args.logit_scale = static_cast<float>(logit_scale);
  args.softcap = static_cast<float>(softcap);

  check.unit_inner_stride(hidden, "hidden");
  check.unit_inner_stride(weight, "weight");
  check.contiguous(active_ids, "active_ids");
  check.on_device(weight, "weight");
  check.on_device(active_ids, "active_ids");
  args.hidden = hidden.data_ptr();
  args.hidden_row_stride = hidden.stride(0);
  args.weight = weight.data_ptr();
  args.weight_row_stride = weight.stride(weight.dim() - 2);
  args.weight_group_stride = weight.dim() == 3 ? weight.stride(0) : 0;
  args.active_ids = static_cast<const int32_t*>(active_ids.data_ptr());
  return args;
}

}  // namespace microspec
