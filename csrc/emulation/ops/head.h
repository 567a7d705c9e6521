// SPDX-License-Identifier: Apache-2.0
// The heads and the gather of _emulation.
#pragma once

#include "emulation/ops/run.h"
#include "gather/gather_cuda.h"
#include "head/cuda/head_cuda.h"

namespace microspec::emulation {

inline HeadArgs head_args(const Array& hidden, const Array& weight, const Array& active_ids, bool packed,
                          const OptionalArray& group_ids, const OptionalArray& weight_scale,
                          const OptionalArray& bias, double logit_scale, double softcap) {
  HeadArgs args{};
  args.hidden = pointer<void>(hidden);
  args.hidden_row_stride = stride(hidden, 0);
  args.weight = pointer<void>(weight);
  args.weight_row_stride = stride(weight, static_cast<int>(weight.ndim()) - 2);
  args.weight_group_stride = packed && weight.ndim() == 3 ? stride(weight, 0) : 0;
  args.weight_type = element_type(weight);
  if (is_4bit(args.weight_type)) {
    args.group_scale = pointer<void>(weight_scale);
  } else {
    args.weight_scale = pointer<float>(weight_scale);
  }
  args.active_ids = pointer<int32_t>(active_ids);
  args.group_ids = pointer<void>(group_ids);
  args.bias = pointer<void>(bias);
  args.rows = hidden.shape(0);
  args.dim = hidden.shape(1);
  args.groups = active_ids.ndim() == 2 ? active_ids.shape(0) : 1;
  args.capacity = active_ids.shape(active_ids.ndim() - 1);
  // A slab without bias has rows for slots only, so any id is valid.
  args.vocab_size = !packed ? weight.shape(0) : bias ? bias->shape(0) : int64_t{1} << 31;
  args.logit_scale = static_cast<float>(logit_scale);
  args.softcap = static_cast<float>(softcap);
  args.hidden_type = element_type(hidden);
  args.bias_type = bias ? element_type(*bias) : DType::f32;
  args.packed = packed;
  args.long_group_ids = is_long(group_ids);
  args.one_group = group_ids && group_ids->shape(0) == 1;
  return args;
}

inline HeadPlan plan_of(const HeadArgs& args, bool selects) {
  HeadPlan plan;
  check(plan_head_cuda(args, selects, &plan), "plan_head_cuda");
  return plan;
}

inline void sparse_head(Array logits, Array token_ids, Array logsumexp, const Array& hidden,
                        const Array& weight, const Array& active_ids, int64_t k, bool packed,
                        const OptionalArray& group_ids, const OptionalArray& weight_scale,
                        const OptionalArray& bias, double logit_scale, double softcap) {
  const HeadArgs args =
      head_args(hidden, weight, active_ids, packed, group_ids, weight_scale, bias, logit_scale, softcap);
  const HeadPlan plan = plan_of(args, /*selects=*/true);
  const Workspace workspace(plan.workspace_bytes());
  run("run_sparse_head_cuda", [&] {
    return run_sparse_head_cuda(args, plan, k, pointer<float>(logits), pointer<int64_t>(token_ids),
                                pointer<float>(logsumexp), workspace.get(), nullptr);
  });
}

inline void sparse_logits(Array logits, const Array& hidden, const Array& weight, const Array& active_ids,
                          bool packed, const OptionalArray& group_ids, const OptionalArray& weight_scale,
                          const OptionalArray& bias, double logit_scale, double softcap) {
  const HeadArgs args =
      head_args(hidden, weight, active_ids, packed, group_ids, weight_scale, bias, logit_scale, softcap);
  const HeadPlan plan = plan_of(args, /*selects=*/false);
  const Workspace workspace(plan.workspace_bytes());
  run("run_sparse_logits_cuda",
      [&] { return run_sparse_logits_cuda(args, plan, pointer<float>(logits), workspace.get(), nullptr); });
}

inline void sparse_sample(Array tokens, Array log_probs, const Array& hidden, const Array& weight,
                          const Array& active_ids, const Array& temperatures, const Array& seeds,
                          const Array& positions, bool packed, const OptionalArray& group_ids,
                          const OptionalArray& weight_scale, const OptionalArray& bias, double logit_scale,
                          double softcap, const OptionalArray& row_tokens, std::optional<Array> token_logits,
                          const OptionalArray& logit_rows) {
  HeadArgs args =
      head_args(hidden, weight, active_ids, packed, group_ids, weight_scale, bias, logit_scale, softcap);
  SampleArgs sample{};
  sample.temperatures = pointer<float>(temperatures);
  sample.seeds = pointer<int64_t>(seeds);
  sample.positions = pointer<int64_t>(positions);
  sample.row_tokens = pointer<int64_t>(row_tokens);
  sample.tokens = pointer<int64_t>(tokens);
  sample.log_probs = pointer<float>(log_probs);
  if (token_logits) {
    sample.token_logits = pointer<void>(*token_logits);
    sample.logits_row_stride = stride(*token_logits, 0);
    sample.logits_rows = token_logits->shape(0);
    sample.logits_columns = token_logits->shape(1);
    sample.logits_type = element_type(*token_logits);
    if (packed && !bias) args.vocab_size = sample.logits_columns;
  }
  if (row_tokens) args.vocab_size = row_tokens->shape(0);
  sample.logit_rows = pointer<void>(logit_rows);
  sample.long_logit_rows = is_long(logit_rows);
  sample.unit = draw_unit(args.capacity);
  const HeadPlan plan = plan_of(args, /*selects=*/false);
  const Workspace workspace(plan.workspace_bytes());
  run("run_sparse_sample_cuda",
      [&] { return run_sparse_sample_cuda(args, sample, plan, workspace.get(), nullptr); });
}

inline void gather_rows(Array slab, Array slab_ids, const Array& weight, const Array& active_ids,
                        std::optional<Array> slab_scale, const OptionalArray& weight_scale) {
  GatherArgs args{};
  args.slab = pointer<void>(slab);
  args.slab_ids = pointer<int32_t>(slab_ids);
  args.weight = pointer<void>(weight);
  args.weight_row_stride = stride(weight, 0);
  args.active_ids = pointer<int32_t>(active_ids);
  args.vocab_size = weight.shape(0);
  args.slab_type = element_type(slab);
  args.weight_type = element_type(weight);
  args.dim = weight.shape(1) * (is_4bit(args.weight_type) ? 2 : 1);
  if (is_4bit(args.slab_type)) {
    args.slab_group_scale = pointer<void>(*slab_scale);
    args.weight_group_scale = pointer<void>(weight_scale);
  } else {
    args.slab_scale = slab_scale ? pointer<float>(*slab_scale) : nullptr;
    args.weight_scale = pointer<float>(weight_scale);
  }
  run("run_gather_rows_cuda", [&] { return run_gather_rows_cuda(args, active_ids.size(), nullptr); });
}

inline void bind_head(py::module_& module) {
  using py::arg;
  const auto none = py::none();
  module.def("sparse_head", &sparse_head, arg("logits"), arg("token_ids"), arg("logsumexp"), arg("hidden"),
             arg("weight"), arg("active_ids"), arg("k"), py::kw_only(), arg("packed") = false,
             arg("group_ids") = none, arg("weight_scale") = none, arg("bias") = none,
             arg("logit_scale") = 1.0, arg("softcap") = 0.0);
  module.def("sparse_logits", &sparse_logits, arg("logits"), arg("hidden"), arg("weight"), arg("active_ids"),
             py::kw_only(), arg("packed") = false, arg("group_ids") = none, arg("weight_scale") = none,
             arg("bias") = none, arg("logit_scale") = 1.0, arg("softcap") = 0.0);
  module.def("sparse_sample", &sparse_sample, arg("tokens"), arg("log_probs"), arg("hidden"), arg("weight"),
             arg("active_ids"), arg("temperatures"), arg("seeds"), arg("positions"), py::kw_only(),
             arg("packed") = false, arg("group_ids") = none, arg("weight_scale") = none, arg("bias") = none,
             arg("logit_scale") = 1.0, arg("softcap") = 0.0, arg("row_tokens") = none,
             arg("token_logits") = none, arg("logit_rows") = none);
  module.def("gather_rows_", &gather_rows, arg("slab"), arg("slab_ids"), arg("weight"), arg("active_ids"),
             py::kw_only(), arg("slab_scale") = none, arg("weight_scale") = none);
}

}  // namespace microspec::emulation
