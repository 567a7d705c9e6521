// SPDX-License-Identifier: Apache-2.0
// gather_rows_ on CUDA. Torch-free. Every call enqueues its work on a stream (a cudaStream_t) and reads
// nothing back.
#pragma once

#include <cstdint>

#include "gather/args.h"

namespace microspec {

// Brings slots [0, slots) up to date. Returns a cudaError_t, 0 for success.
int run_gather_rows_cuda(const GatherArgs& args, int64_t slots, void* stream);

}  // namespace microspec
