// SPDX-License-Identifier: Apache-2.0
// Replaces the CUDA sources in a build without nvcc. That build registers no op for CUDA tensors, so nothing
// here is ever called.
#include "gather/gather_cuda.h"
#include "head/cuda/head_cuda.h"
#include "cuda/runtime.h"
#include "tree/tree_cuda.h"
#include "vocab/learn_cuda.h"
#include "vocab/vocab_cuda.h"

namespace microspec {

namespace {
constexpr int kNotSupported = 801;  // cudaErrorNotSupported
}

extern "C" __attribute__((visibility("default"))) const char* microspec_cuda_architectures() {
  return nullptr;
}

std::string cuda_error_text(int) { return "this library was built without CUDA"; }
int cuda_compiled_arch(int*) { return kNotSupported; }
int cuda_pinned_pointer(const void*, const void**) { return kNotSupported; }
int cuda_copy_to_host(void*, const void*, size_t, void*, bool*) { return kNotSupported; }

int plan_head_cuda(const HeadArgs&, bool, HeadPlan*) { return kNotSupported; }
int run_sparse_head_cuda(const HeadArgs&, const HeadPlan&, int64_t, float*, int64_t*, float*, void*, void*) {
  return kNotSupported;
}
int run_sparse_logits_cuda(const HeadArgs&, const HeadPlan&, float*, void*, void*) { return kNotSupported; }
int run_sparse_sample_cuda(const HeadArgs&, const SampleArgs&, const HeadPlan&, void*, void*) {
  return kNotSupported;
}
int run_gather_rows_cuda(const GatherArgs&, int64_t, void*) { return kNotSupported; }
int run_tree_grow_cuda(const TreeGrowArgs&, void*) { return kNotSupported; }
int run_tree_cut_cuda(const TreeCutArgs&, void*) { return kNotSupported; }
int run_tree_accept_cuda(const TreeAcceptArgs&, void*) { return kNotSupported; }
int plan_vocab_cuda(const VocabArgs&, VocabPlan*) { return kNotSupported; }
int run_vocab_update_cuda(const VocabArgs&, const VocabPlan&, void*, void*) { return kNotSupported; }
int run_vocab_count_cuda(const CountArgs&, void*) { return kNotSupported; }
int run_vocab_observe_cuda(const ObserveArgs&, void*) { return kNotSupported; }
size_t refill_cuda_workspace(const RefillArgs&) { return 0; }
int run_vocab_refill_cuda(const RefillArgs&, void*, void*) { return kNotSupported; }

}  // namespace microspec
