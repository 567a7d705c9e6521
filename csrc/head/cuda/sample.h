// SPDX-License-Identifier: Apache-2.0
// sample takes select's place for sparse_sample: it turns dot products into one drawn token a row.
// Torch-free.
#pragma once

#include <cstdint>

#include "cuda/launch.cuh"
#include "head/sample_args.h"
#include "project.h"

namespace microspec {

// Enqueues the draws of args.rows rows, which are rows `first` and on of the whole call that `sample`
// describes.
Error sample(const HeadArgs& args, const Partials& partials, const SampleArgs& sample, int64_t first,
             void* stream);

}  // namespace microspec
