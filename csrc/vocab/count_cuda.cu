// SPDX-License-Identifier: Apache-2.0
// vocab_count_ and the first half of vocab_observe_ on CUDA, one thread a token.
//
// Bytes of a token: 4 to 8 of `tokens` (and of token_requests), a sector of `seen`, and a sector of each
// table of counts where the bit was new. The chain of dependent steps decides the time of a step's few
// hundred tokens: request and token -> list and word of `seen` -> counts, three trips to the L2 cache, about
// 2 us and the launch. A row map is one trip more, before them. A verdict takes its trips beside them: token
// and group -> slot -> id. The threads of a request meet at its two verdicts, some atomics a step. Expected,
// not measured on a GPU.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"
#include "vocab/count_table.cuh"
#include "vocab/learn_cuda.h"

namespace microspec {

namespace vocab_count {

MICROSPEC_DEVICE int64_t first_position() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
MICROSPEC_DEVICE int64_t positions_of_grid() { return static_cast<int64_t>(gridDim.x) * kThreads; }

MICROSPEC_KERNEL(kThreads, kResident)
vocab_count_kernel(CountArgs args) {
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  for (int64_t i = first_position(); i < args.total(); i += positions_of_grid()) {
    const int64_t token = value_at(args.tokens, args.long_tokens, i);
    if (token < 0 || token >= args.tables.vocab_size) continue;
    const int64_t request =
        args.token_requests ? value_at(args.token_requests, args.long_requests, i) : i / args.count;
    count_token(args.tables, request, token);
  }
}

// Judges and counts an id that the target wrote.
MICROSPEC_DEVICE void take_written(const ObserveArgs& args, int64_t position, int64_t id) {
  const CountTables& tables = args.tally.tables;
  const int64_t request = args.request_at(position);
  if (request < 0 || request >= tables.requests) return;
  const int64_t group = args.group_at(position);
  if (group >= 0 && group < args.groups) {
    // Unsigned, because it wraps around, and because CUDA has no signed sum of 64 bits.
    auto* const verdicts = reinterpret_cast<unsigned long long*>(args.tally.verdicts);
    atomicAdd(verdicts + (args.is_active(group, id) ? 0 : tables.requests) + request, 1ull);
  }
  count_token(tables, request, id);
}

MICROSPEC_KERNEL(kThreads, kResident)
vocab_observe_kernel(ObserveArgs args) {
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  const StepTokens& tokens = args.tokens;
  for (int64_t i = first_position(); i < tokens.count(); i += positions_of_grid()) {
    const int64_t id = tokens.id_at(i);
    if (args.ids) args.ids[i] = static_cast<int32_t>(id);
    if (args.tally.verdicts && i >= tokens.num_candidates && id >= 0) take_written(args, i, id);
  }
}

// Launches a kernel with a thread for each of `count` tokens.
template <class Args>
Error run(void (*kernel)(Args), const Args& args, int64_t count, void* stream) {
  if (count == 0) return cudaSuccess;
  Device device;
  if (const Error error = current_device(device)) return error;
  const int64_t blocks = std::min(ceil_div<int64_t>(count, kThreads), int64_t{kResident} * device.sms);
  const Launch how{static_cast<unsigned>(blocks), kThreads, 0, stream, true};
  return launch(kernel, how, args);
}

}  // namespace vocab_count

int run_vocab_count_cuda(const CountArgs& args, void* stream) {
  if (std::max(args.count, args.tables.requests) > kMostOnCuda) return kInvalidValue;
  return vocab_count::run(vocab_count::vocab_count_kernel, args, args.total(), stream);
}

int run_vocab_observe_cuda(const ObserveArgs& args, void* stream) {
  const int64_t count = args.tokens.count();
  if (std::max(count, args.tally.tables.requests) > kMostOnCuda) return kInvalidValue;
  return vocab_count::run(vocab_count::vocab_observe_kernel, args, count, stream);
}

}  // namespace microspec
