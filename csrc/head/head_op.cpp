// Checks of sparse_head and sparse_logits, and their results' allocation.
#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "args.h"
#include "head.h"

namespace microspec {

namespace {

void check_ids(const Checker& check, const HeadArgs& args, int64_t vocab_size) {
  check.ids(args.active_ids, args.groups * args.capacity, vocab_size, "active_ids");
  for (int64_t row = 0; row < args.rows; ++row) {
    const int64_t group = args.group_of(row);
    if (group < -1 || group >= args.groups) {
      check.fail("IndexError", "group_ids", "groups in [0, " + std::to_string(args.groups) + ") or -1", group,
                 " at position ", row);
    }
  }
}

HeadArgs checked(const Checker& check, const Tensor& hidden, const Tensor& weight, const Tensor& active_ids,
                 bool packed, const std::optional<Tensor>& group_ids,
                 const std::optional<Tensor>& weight_scale, const std::optional<Tensor>& bias,
                 double logit_scale, double softcap) {
  const int64_t id_dims = active_ids.dim();
  check.value(hidden.dim() == 2, "hidden", "shape [M, D]", shape_of(hidden));
  check.slots(active_ids);
  check.dtype(active_ids, "active_ids", ScalarType::Int);

  HeadArgs args{};
  args.rows = hidden.size(0);
  args.dim = hidden.size(1);
  args.groups = id_dims == 2 ? active_ids.size(0) : 1;
  args.capacity = active_ids.size(id_dims - 1);
  args.packed = packed;
  args.hidden_type = check.float_dtype(hidden, "hidden");
  args.weight_type = check.row_dtype(weight, "weight", hidden.scalar_type());

  int64_t vocab_size = int64_t{1} << 31;  // unknown for a slab, unless a bias tells
  if (!packed) {
    check.value(weight.dim() == 2 && weight.size(1) == args.dim, "weight",
                "shape [V, " + std::to_string(args.dim) + "]", shape_of(weight));
    vocab_size = weight.size(0);
    args.weight_scale = check.row_scale(weight_scale, "weight_scale", args.weight_type, {vocab_size});
  } else if (id_dims == 1) {
    check.shape(weight, "weight", {args.capacity, args.dim});
    args.weight_scale = check.row_scale(weight_scale, "weight_scale", args.weight_type, {args.capacity});
  } else {
    check.shape(weight, "weight", {args.groups, args.capacity, args.dim});
    args.weight_scale =
        check.row_scale(weight_scale, "weight_scale", args.weight_type, {args.groups, args.capacity});
  }

  check.value(args.groups == 1 || group_ids || args.rows == 0, "group_ids",
              "a group per row, as G = " + std::to_string(args.groups), "None");
  if (group_ids) {
    args.long_group_ids = check.integer(*group_ids, "group_ids");
    check.shape(*group_ids, "group_ids", {args.rows});
    check.contiguous(*group_ids, "group_ids");
    check.on_cpu(*group_ids, "group_ids");
    args.group_ids = group_ids->data_ptr();
  }
  if (bias) {
    const std::string hidden_name = dtype_name(hidden.scalar_type());
    check.type(bias->scalar_type() == hidden.scalar_type() || bias->scalar_type() == ScalarType::Float,
               "bias", args.hidden_type == DType::f32 ? hidden_name : hidden_name + " or float32",
               dtype_name(bias->scalar_type()));
    args.bias_type = check.float_dtype(*bias, "bias");
    check.value(bias->dim() == 1, "bias", "shape [V]", shape_of(*bias));
    if (!packed) check.shape(*bias, "bias", {vocab_size});
    check.contiguous(*bias, "bias");
    check.on_cpu(*bias, "bias");
    vocab_size = bias->size(0);
    args.bias = bias->data_ptr();
  }
  check.value(softcap >= 0.0 && std::isfinite(softcap), "softcap", "a finite number >= 0", softcap);
  args.logit_scale = static_cast<float>(logit_scale);
  args.softcap = static_cast<float>(softcap);

  check.unit_inner_stride(hidden, "hidden");
  check.unit_inner_stride(weight, "weight");
  check.contiguous(active_ids, "active_ids");
  check.on_cpu(hidden, "hidden");
  check.on_cpu(weight, "weight");
  check.on_cpu(active_ids, "active_ids");
  args.hidden = hidden.data_ptr();
  args.hidden_row_stride = hidden.stride(0);
  args.weight = weight.data_ptr();
  args.weight_row_stride = weight.stride(weight.dim() - 2);
  args.weight_group_stride = weight.dim() == 3 ? weight.stride(0) : 0;
  args.active_ids = static_cast<const int32_t*>(active_ids.data_ptr());
  check_ids(check, args, vocab_size);
  return args;
}

// A contiguous tensor on the CPU, without the dispatcher that torch::stable::empty goes through.
Tensor empty(std::initializer_list<int64_t> sizes, int32_t dtype) {
  const int64_t dims = static_cast<int64_t>(sizes.size());
  const int64_t strides[] = {dims == 2 ? std::max<int64_t>(1, sizes.begin()[1]) : 1, 1};
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes.begin(), strides, dtype,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> sparse_head_cpu(Tensor hidden, Tensor weight, Tensor active_ids, int64_t k,
                                                   bool packed, std::optional<Tensor> group_ids,
                                                   std::optional<Tensor> weight_scale,
                                                   std::optional<Tensor> bias, double logit_scale,
                                                   double softcap) {
  const Checker check("sparse_head");
  check.value(1 <= k && k <= kMaxTopK, "k", "1 <= k <= " + std::to_string(kMaxTopK), k);
  const HeadArgs args =
      checked(check, hidden, weight, active_ids, packed, group_ids, weight_scale, bias, logit_scale, softcap);
  Tensor logits = empty({args.rows, k}, aoti_torch_dtype_float32());
  Tensor token_ids = empty({args.rows, k}, aoti_torch_dtype_int64());
  Tensor logsumexp = empty({args.rows}, aoti_torch_dtype_float32());
  run_sparse_head(args, k, static_cast<float*>(logits.data_ptr()),
                  static_cast<int64_t*>(token_ids.data_ptr()), static_cast<float*>(logsumexp.data_ptr()));
  return {logits, token_ids, logsumexp};
}

Tensor sparse_logits_cpu(Tensor hidden, Tensor weight, Tensor active_ids, bool packed,
                         std::optional<Tensor> group_ids, std::optional<Tensor> weight_scale,
                         std::optional<Tensor> bias, double logit_scale, double softcap) {
  const Checker check("sparse_logits");
  const HeadArgs args =
      checked(check, hidden, weight, active_ids, packed, group_ids, weight_scale, bias, logit_scale, softcap);
  Tensor logits = empty({args.rows, args.capacity}, aoti_torch_dtype_float32());
  run_sparse_logits(args, static_cast<float*>(logits.data_ptr()));
  return logits;
}

}  // namespace microspec
