// SPDX-License-Identifier: Apache-2.0
// _emulation runs the CUDA library's runners over numpy arrays. It does not check arguments.
#include "arrays.h"
#include "bindings.h"
#include "cuda/error_text.h"
#include "cuda/launch.cuh"
#include "gather/gather_cuda.h"
#include "head/cuda/head_cuda.h"
#include "vocab/learn_cuda.h"
#include "vocab/vocab_cuda.h"

namespace microspec::emulation {

namespace {

HeadArgs head_args(const Array& hidden, const Array& weight, const Array& active_ids, bool packed,
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

// Makes a call that launches kernels, so that other Python threads can make theirs meanwhile.
template <class Call>
void run(const char* op, Call&& call) {
  const int error = [&] {
    const py::gil_scoped_release released;
    return call();
  }();
  check(error, op);
}

HeadPlan plan_of(const HeadArgs& args, bool selects) {
  HeadPlan plan;
  check(plan_head_cuda(args, selects, &plan), "plan_head_cuda");
  return plan;
}

void sparse_head(Array logits, Array token_ids, Array logsumexp, const Array& hidden, const Array& weight,
                 const Array& active_ids, int64_t k, bool packed, const OptionalArray& group_ids,
                 const OptionalArray& weight_scale, const OptionalArray& bias, double logit_scale,
                 double softcap) {
  const HeadArgs args =
      head_args(hidden, weight, active_ids, packed, group_ids, weight_scale, bias, logit_scale, softcap);
  const HeadPlan plan = plan_of(args, /*selects=*/true);
  const Workspace workspace(plan.workspace_bytes());
  run("run_sparse_head_cuda", [&] {
    return run_sparse_head_cuda(args, plan, k, pointer<float>(logits), pointer<int64_t>(token_ids),
                                pointer<float>(logsumexp), workspace.get(), nullptr);
  });
}

void sparse_logits(Array logits, const Array& hidden, const Array& weight, const Array& active_ids,
                   bool packed, const OptionalArray& group_ids, const OptionalArray& weight_scale,
                   const OptionalArray& bias, double logit_scale, double softcap) {
  const HeadArgs args =
      head_args(hidden, weight, active_ids, packed, group_ids, weight_scale, bias, logit_scale, softcap);
  const HeadPlan plan = plan_of(args, /*selects=*/false);
  const Workspace workspace(plan.workspace_bytes());
  run("run_sparse_logits_cuda",
      [&] { return run_sparse_logits_cuda(args, plan, pointer<float>(logits), workspace.get(), nullptr); });
}

void sparse_sample(Array tokens, Array log_probs, const Array& hidden, const Array& weight,
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

void gather_rows(Array slab, Array slab_ids, const Array& weight, const Array& active_ids,
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

VocabArgs update_args(Array& active_ids, Array& slot_stamps, Array& token_slots, Array& clock,
                      const OptionalArray& token_groups) {
  VocabArgs args{};
  args.active_ids = pointer<int32_t>(active_ids);
  args.slot_stamps = pointer<int64_t>(slot_stamps);
  args.token_slots = pointer<int32_t>(token_slots);
  args.clock = pointer<int64_t>(clock);
  args.token_groups = pointer<void>(token_groups);
  args.long_groups = is_long(token_groups);
  args.groups = clock.shape(0);
  args.capacity = slot_stamps.shape(1);
  args.vocab_size = token_slots.shape(1);
  return args;
}

void run_update(const VocabArgs& args) {
  VocabPlan plan;
  check(plan_vocab_cuda(args, &plan), "plan_vocab_cuda");
  const Workspace workspace(plan.workspace_bytes());
  run("run_vocab_update_cuda", [&] { return run_vocab_update_cuda(args, plan, workspace.get(), nullptr); });
}

void vocab_update(Array active_ids, Array slot_stamps, Array token_slots, Array clock, const Array& tokens,
                  const OptionalArray& token_groups) {
  VocabArgs args = update_args(active_ids, slot_stamps, token_slots, clock, token_groups);
  args.tokens = pointer<void>(tokens);
  args.long_tokens = is_long(tokens);
  args.count = tokens.shape(tokens.ndim() - 1);
  run_update(args);
}

void vocab_count(Array text_counts, Array seen, const Array& tokens, const OptionalArray& token_requests,
                 const OptionalArray& request_lists, std::optional<Array> total_counts) {
  CountArgs args{};
  CountTables& tables = args.tables;
  tables.text_counts = pointer<int32_t>(text_counts);
  tables.total_counts = total_counts ? pointer<int32_t>(*total_counts) : nullptr;
  tables.seen = pointer<int32_t>(seen);
  tables.request_lists = pointer<void>(request_lists);
  tables.long_lists = is_long(request_lists);
  tables.requests = seen.shape(0);
  tables.lists = text_counts.shape(0);
  tables.vocab_size = text_counts.shape(1);
  args.tokens = pointer<void>(tokens);
  args.token_requests = pointer<void>(token_requests);
  args.long_tokens = is_long(tokens);
  args.long_requests = is_long(token_requests);
  args.count = tokens.shape(tokens.ndim() - 1);
  run("run_vocab_count_cuda", [&] { return run_vocab_count_cuda(args, nullptr); });
}

void vocab_observe(Array active_ids, Array slot_stamps, Array token_slots, Array clock, const Array& tokens,
                   const OptionalArray& lengths, const OptionalArray& candidates,
                   const OptionalArray& token_rows, const OptionalArray& token_groups,
                   const OptionalArray& token_requests, std::optional<Array> tally, int64_t num_lists) {
  VocabArgs update = update_args(active_ids, slot_stamps, token_slots, clock, token_groups);
  ObserveArgs args{};
  StepTokens& step = args.tokens;
  step.candidates = pointer<void>(candidates);
  step.tokens = pointer<void>(tokens);
  step.lengths = pointer<void>(lengths);
  step.token_rows = pointer<int32_t>(token_rows);
  step.long_candidates = is_long(candidates);
  step.long_tokens = is_long(tokens);
  step.long_lengths = is_long(lengths);
  step.num_candidates = candidates ? candidates->size() : 0;
  step.num_tokens = tokens.size();
  step.row_length = tokens.shape(tokens.ndim() - 1);
  step.bound = token_rows ? token_rows->size() : update.vocab_size;
  step.vocab_size = update.vocab_size;
  if (tally) {
    const int64_t words = tally->size() - table_words(num_lists, step.vocab_size);
    args.tally = tally_at(pointer<int32_t>(*tally), words / request_words(num_lists, step.vocab_size),
                          num_lists, step.vocab_size);
  }
  args.active_ids = update.active_ids;
  args.token_slots = update.token_slots;
  args.token_groups = update.token_groups;
  args.token_requests = pointer<void>(token_requests);
  args.long_groups = update.long_groups;
  args.long_requests = is_long(token_requests);
  args.groups = update.groups;
  args.capacity = update.capacity;
  update.tokens = step.tokens;
  update.long_tokens = step.long_tokens;
  update.count = step.count();
  std::vector<int32_t> ids(step.plain() ? 0 : step.count());
  if (!step.plain()) {
    args.ids = ids.data();
    update.tokens = args.ids;
    update.long_tokens = false;
  }
  if (!args.nothing_to_do()) {
    run("run_vocab_observe_cuda", [&] { return run_vocab_observe_cuda(args, nullptr); });
  }
  run_update(update);
}

void vocab_refill(Array active_ids, Array slot_stamps, Array token_slots, Array clock,
                  const Array& text_counts, const Array& token_ranks, const Array& group_lists,
                  const OptionalArray& total_counts, int64_t pinned, bool reset) {
  RefillArgs args{};
  args.active_ids = pointer<int32_t>(active_ids);
  args.slot_stamps = pointer<int64_t>(slot_stamps);
  args.token_slots = pointer<int32_t>(token_slots);
  args.clock = pointer<int64_t>(clock);
  args.text_counts = pointer<int32_t>(text_counts);
  args.total_counts = pointer<int32_t>(total_counts);
  args.token_ranks = pointer<int32_t>(token_ranks);
  args.group_lists = pointer<void>(group_lists);
  args.long_lists = is_long(group_lists);
  args.reset = reset;
  args.groups = clock.shape(0);
  args.capacity = slot_stamps.shape(1);
  args.vocab_size = token_slots.shape(1);
  args.lists = text_counts.shape(0);
  args.pinned = pinned;
  const Workspace workspace(refill_cuda_workspace(args));
  run("run_vocab_refill_cuda", [&] { return run_vocab_refill_cuda(args, workspace.get(), nullptr); });
}

}  // namespace

PYBIND11_MODULE(_emulation, module) {
  bind_emulation(module);
  module.def("compiled_arch", [] {
    int arch = 0;
    check(cuda_compiled_arch(&arch), "cuda_compiled_arch");
    return arch;
  });
  module.def("error_advice",
             [](int error, int toolkit, int driver, int arch, const std::string& architectures) {
               return error_advice(error, {toolkit, driver, arch, architectures.c_str()});
             });
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
  module.def("vocab_update_", &vocab_update, arg("active_ids"), arg("slot_stamps"), arg("token_slots"),
             arg("clock"), arg("tokens"), py::kw_only(), arg("token_groups") = none);
  module.def("vocab_count_", &vocab_count, arg("text_counts"), arg("seen"), arg("tokens"), py::kw_only(),
             arg("token_requests") = none, arg("request_lists") = none, arg("total_counts") = none);
  module.def("vocab_observe_", &vocab_observe, arg("active_ids"), arg("slot_stamps"), arg("token_slots"),
             arg("clock"), arg("tokens"), py::kw_only(), arg("lengths") = none, arg("candidates") = none,
             arg("token_rows") = none, arg("token_groups") = none, arg("token_requests") = none,
             arg("tally") = none, arg("num_lists") = 0);
  module.def("vocab_refill_", &vocab_refill, arg("active_ids"), arg("slot_stamps"), arg("token_slots"),
             arg("clock"), arg("text_counts"), arg("token_ranks"), arg("group_lists"), py::kw_only(),
             arg("total_counts") = none, arg("pinned") = 0, arg("reset") = true);
}

}  // namespace microspec::emulation
