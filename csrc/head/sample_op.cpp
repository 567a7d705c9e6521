// SPDX-License-Identifier: Apache-2.0
// The sparse_sample op: its checks, and the allocation of its results.
#include <string>

#include "cuda/head_cuda.h"
#include "head.h"
#include "head_checks.h"
#include "sample_args.h"

namespace microspec {

namespace {

void check_vector(const Checker& check, const Tensor& tensor, const char* argument, ScalarType dtype,
                  int64_t size) {
  check.dtype(tensor, argument, dtype);
  check.shape(tensor, argument, {size});
  check.contiguous(tensor, argument);
  check.on_device(tensor, argument);
}

void check_token_logits(const Checker& check, const DeviceCall& call, const HeadArgs& args,
                        const Tensor& logits, bool any_column, bool any_row, SampleArgs& sample) {
  const char* name = "token_logits";
  sample.logits_type = check.float_dtype(logits, name);
  check.value(logits.dim() == 2, name, "shape [R, V']", logits);
  const int64_t rows = logits.size(0), columns = logits.size(1);
  check.value(
      any_column || columns >= args.vocab_size, name,
      [&] { return "at least V = " + std::to_string(args.vocab_size) + " columns"; }, columns);
  check.value(
      any_row || rows >= args.rows, name,
      [&] { return "at least M = " + std::to_string(args.rows) + " rows, or logit_rows"; }, rows);
  check.unit_inner_stride(logits, name);
  check.value(rows <= 1 || logits.stride(0) >= columns, name, "rows that do not overlap", "stride ",
              logits.stride(0));
  check.on_device(logits, name);
  call.check_size(columns, name, "V'");
  sample.token_logits = logits.data_ptr();
  sample.logits_row_stride = logits.stride(0);
  sample.logits_rows = rows;
  sample.logits_columns = columns;
}

// Raises an error for a row of token_logits that does not exist, if the values are available.
void check_logit_rows(const Checker& check, const DeviceCall& call, const Tensor& logit_rows,
                      const SampleArgs& sample) {
  const HostValues values(call, logit_rows);
  if (!values.known()) return;
  for (int64_t i = 0; i < logit_rows.size(0); ++i) {
    const int64_t row = sample.long_logit_rows ? values.data<int64_t>()[i] : values.data<int32_t>()[i];
    if (row >= -1 && row < sample.logits_rows) continue;
    check.fail("IndexError", "logit_rows", "rows in [0, " + std::to_string(sample.logits_rows) + ") or -1",
               row, " at position ", i);
  }
}

}  // namespace

std::tuple<Tensor, Tensor> sparse_sample(Tensor hidden, Tensor weight, Tensor active_ids, Tensor temperatures,
                                         Tensor seeds, Tensor positions, bool packed,
                                         std::optional<Tensor> group_ids, std::optional<Tensor> weight_scale,
                                         std::optional<Tensor> bias, double logit_scale, double softcap,
                                         std::optional<Tensor> row_tokens, std::optional<Tensor> token_logits,
                                         std::optional<Tensor> logit_rows) {
  const Checker check("sparse_sample", hidden);
  const DeviceCall call(check, hidden, "hidden");
  HeadArgs args = checked_head(check, call, hidden, weight, active_ids, packed, group_ids, weight_scale, bias,
                               logit_scale, softcap);
  check_vector(check, temperatures, "temperatures", ScalarType::Float, args.rows);
  check_vector(check, seeds, "seeds", ScalarType::Long, args.rows);
  check_vector(check, positions, "positions", ScalarType::Long, args.rows);
  SampleArgs sample{};
  const bool names_tokens = !packed || bias;  // V is known
  if (row_tokens) {
    check.value(row_tokens->dim() == 1, "row_tokens", "shape [V]", *row_tokens);
    const int64_t size = names_tokens ? args.vocab_size : row_tokens->size(0);
    check_vector(check, *row_tokens, "row_tokens", ScalarType::Long, size);
    sample.row_tokens = static_cast<const int64_t*>(row_tokens->data_ptr());
    args.vocab_size = size;
  }
  if (token_logits) {
    const bool any_column = row_tokens || !names_tokens;
    check_token_logits(check, call, args, *token_logits, any_column, logit_rows.has_value(), sample);
    // A slab names its tokens freely, as long as they have a column.
    if (!row_tokens && !names_tokens) args.vocab_size = sample.logits_columns;
  }
  if (logit_rows) {
    check.value(token_logits.has_value(), "logit_rows", "None without token_logits", "a tensor");
    sample.long_logit_rows = check.integer(*logit_rows, "logit_rows");
    check.shape(*logit_rows, "logit_rows", {args.rows});
    check.contiguous(*logit_rows, "logit_rows");
    check.on_device(*logit_rows, "logit_rows");
    sample.logit_rows = logit_rows->data_ptr();
  }
  const std::initializer_list<Argument> written = {optional_argument(token_logits, "token_logits")};
  check.disjoint(written, {{&hidden, "hidden"},
                           {&weight, "weight"},
                           {&active_ids, "active_ids"},
                           {&temperatures, "temperatures"},
                           {&seeds, "seeds"},
                           {&positions, "positions"},
                           optional_argument(group_ids, "group_ids"),
                           optional_argument(weight_scale, "weight_scale"),
                           optional_argument(bias, "bias"),
                           optional_argument(row_tokens, "row_tokens"),
                           optional_argument(logit_rows, "logit_rows")});
  check_head_ids(check, call, args, active_ids, group_ids);
  if (logit_rows) check_logit_rows(check, call, *logit_rows, sample);
  note_writes(written);

  Tensor tokens = call.empty({args.rows}, ScalarType::Long);
  Tensor log_probs = call.empty({args.rows}, ScalarType::Float);
  sample.temperatures = static_cast<const float*>(temperatures.data_ptr());
  sample.seeds = static_cast<const int64_t*>(seeds.data_ptr());
  sample.positions = static_cast<const int64_t*>(positions.data_ptr());
  sample.tokens = static_cast<int64_t*>(tokens.data_ptr());
  sample.log_probs = static_cast<float*>(log_probs.data_ptr());
  sample.unit = draw_unit(args.capacity);
  if (call.on_cuda()) {
    HeadPlan plan;
    call.check(plan_head_cuda(args, /*selects=*/false, &plan));
    const Tensor workspace = call.workspace(plan.workspace_bytes());
    call.check(run_sparse_sample_cuda(args, sample, plan, workspace.data_ptr(), call.stream()));
  } else {
    run_sparse_sample(args, sample);
  }
  return {tokens, log_probs};
}

}  // namespace microspec
