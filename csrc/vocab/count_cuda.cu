// SPDX-License-Identifier: Apache-2.0
// vocab_count_ and the first half of vocab_observe_ on CUDA: the verdicts on a step's tokens, and their
// counts.
//
// One thread a token. atomicOr on the token's word of `seen` tells the one thread that sets the bit, and that
// thread counts. Integer sums do not depend on the order of the threads, so the result is exact and the same
// bits run to run.
//
// Bytes of a token: 4 to 8 of `tokens` (and of token_requests), a sector of `seen`, and a sector of each
// table of counts where the bit was new. The chain of dependent steps decides the time of a step's few
// hundred tokens: request and token -> list and word of `seen` -> counts, three trips to the L2 cache, about
// 2 us and the launch. A verdict takes the same trips beside them: token and group -> slot -> id. The threads
// of a group meet at its two verdicts, some tens of atomics a step. Expected, not measured on a GPU.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"
#include "vocab/learn_cuda.h"

namespace microspec {

namespace vocab_count {

constexpr int kThreads = 256;
// Blocks that fill an SM of 1536 threads. A longer batch walks over the grid.
constexpr int kResident = 6;

MICROSPEC_DEVICE int64_t integer_at(const void* data, bool is_long, int64_t i) {
  return is_long ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
}

// Unsigned, so that a sum wraps around: a caller's counts may hold any number.
MICROSPEC_DEVICE unsigned* word_at(int32_t* table, int64_t i) {
  return reinterpret_cast<unsigned*>(table + i);
}

// Adds the verdict on the token at position i: it was active, or it was not.
MICROSPEC_DEVICE void give_verdict(const JudgeArgs& args, int64_t i, int64_t token, int64_t vocab_size) {
  const int64_t group = args.token_groups ? integer_at(args.token_groups, args.long_groups, i) : i / args.row;
  if (group < 0 || group >= args.groups) return;
  const int32_t slot = args.token_slots[group * vocab_size + token];
  const bool active =
      slot >= 0 && slot < args.capacity && args.active_ids[group * args.capacity + slot] == token;
  // Unsigned, because it wraps around, and because CUDA has no signed sum of 64 bits.
  auto* const verdicts = reinterpret_cast<unsigned long long*>(args.verdicts);
  atomicAdd(verdicts + (active ? 0 : args.groups) + group, 1ull);
}

MICROSPEC_KERNEL(kThreads, kResident)
vocab_count_kernel(JudgeArgs judge, CountArgs args, int64_t total) {
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const int64_t token = integer_at(args.tokens, args.long_tokens, i);
    if (token < 0 || token >= args.vocab_size || (args.written && !args.written[i])) continue;
    if (judge.verdicts) give_verdict(judge, i, token, args.vocab_size);
    const int64_t request =
        args.token_requests ? integer_at(args.token_requests, args.long_requests, i) : i / args.count;
    if (request < 0 || request >= args.requests) continue;
    const int64_t list = args.request_lists ? integer_at(args.request_lists, args.long_lists, request) : 0;
    if (list < 0 || list >= args.lists) continue;
    const unsigned bit = 1u << token % 32;
    if (atomicOr(word_at(args.seen, request * args.words + token / 32), bit) & bit) continue;
    atomicAdd(word_at(args.text_counts, list * args.vocab_size + token), 1u);
    if (args.total_counts) atomicAdd(word_at(args.total_counts, token), 1u);
  }
}

Error run_count(const JudgeArgs& judge, const CountArgs& args, int64_t total, void* stream) {
  if (std::max(args.count, args.requests) > kMostOnCuda) return kInvalidValue;
  if (total == 0) return cudaSuccess;
  Device device;
  if (const Error error = current_device(device)) return error;
  const int64_t blocks = std::min(ceil_div<int64_t>(total, kThreads), int64_t{kResident} * device.sms);
  const Launch how{static_cast<unsigned>(blocks), kThreads, 0, stream, true};
  return launch(vocab_count_kernel, how, judge, args, total);
}

}  // namespace vocab_count

using vocab_count::run_count;

int run_vocab_count_cuda(const CountArgs& args, void* stream) {
  const int64_t total = args.token_requests ? args.count : args.requests * args.count;
  return run_count(JudgeArgs{}, args, total, stream);
}

int run_vocab_judge_cuda(const JudgeArgs& judge, const CountArgs& count, void* stream) {
  return run_count(judge, count, judge.token_groups ? judge.row : judge.groups * judge.row, stream);
}

}  // namespace microspec
