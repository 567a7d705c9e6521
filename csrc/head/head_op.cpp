// SPDX-License-Identifier: Apache-2.0
// The sparse_head and sparse_logits ops: their checks, and the allocation of their results.
#include "head.h"

#include "cuda/head_cuda.h"
#include "head_checks.h"

namespace microspec {

namespace {

HeadPlan plan_on_cuda(const DeviceCall& call, const HeadArgs& args, bool selects) {
  HeadPlan plan;
  call.check(plan_head_cuda(args, selects, &plan));
  return plan;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> sparse_head(Tensor hidden, Tensor weight, Tensor active_ids, int64_t k,
                                               bool packed, std::optional<Tensor> group_ids,
                                               std::optional<Tensor> weight_scale, std::optional<Tensor> bias,
                                               double logit_scale, double softcap) {
  const Checker check("sparse_head", hidden);
  check.value(1 <= k && k <= kMaxTopK, "k", [&] { return "1 <= k <= " + std::to_string(kMaxTopK); }, k);
  const DeviceCall call(check, hidden, "hidden");
  const HeadArgs args = checked_head(check, call, hidden, weight, active_ids, packed, group_ids, weight_scale,
                                     bias, logit_scale, softcap);
  check_head_ids(check, call, args, active_ids, group_ids);
  Tensor logits = call.empty({args.rows, k}, ScalarType::Float);
  Tensor token_ids = call.empty({args.rows, k}, ScalarType::Long);
  Tensor logsumexp = call.empty({args.rows}, ScalarType::Float);
  const auto values = static_cast<float*>(logits.data_ptr());
  const auto ids = static_cast<int64_t*>(token_ids.data_ptr());
  const auto sums = static_cast<float*>(logsumexp.data_ptr());
  if (call.on_cuda()) {
    const HeadPlan plan = plan_on_cuda(call, args, /*selects=*/true);
    const Tensor workspace = call.workspace(plan.workspace_bytes());
    call.check(run_sparse_head_cuda(args, plan, k, values, ids, sums, workspace.data_ptr(), call.stream()));
  } else {
    run_sparse_head(args, k, values, ids, sums);
  }
  return {logits, token_ids, logsumexp};
}

Tensor sparse_logits(Tensor hidden, Tensor weight, Tensor active_ids, bool packed,
                     std::optional<Tensor> group_ids, std::optional<Tensor> weight_scale,
                     std::optional<Tensor> bias, double logit_scale, double softcap) {
  const Checker check("sparse_logits", hidden);
  const DeviceCall call(check, hidden, "hidden");
  const HeadArgs args = checked_head(check, call, hidden, weight, active_ids, packed, group_ids, weight_scale,
                                     bias, logit_scale, softcap);
  check_head_ids(check, call, args, active_ids, group_ids);
  Tensor logits = call.empty({args.rows, args.capacity}, ScalarType::Float);
  const auto values = static_cast<float*>(logits.data_ptr());
  if (call.on_cuda()) {
    const HeadPlan plan = plan_on_cuda(call, args, /*selects=*/false);
    const Tensor workspace = call.workspace(plan.workspace_bytes());
    call.check(run_sparse_logits_cuda(args, plan, values, workspace.data_ptr(), call.stream()));
  } else {
    run_sparse_logits(args, values);
  }
  return logits;
}

}  // namespace microspec
