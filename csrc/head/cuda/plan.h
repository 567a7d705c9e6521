// SPDX-License-Identifier: Apache-2.0
// How the head's two kernels run a call. The plan is made once a call and handed on. No CUDA header is
// needed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace microspec {

// How project_mma divides D, and its shared memory.
struct MmaPlan {
  int splits;
  int warp_dim;   // elements of D a warp, a multiple of kChunk
  int scales_at;  // of 4-bit rows: bytes from the start of a row in the ring to its scales
  int row_pitch;  // bytes
  int depth;      // runs in the ring
  size_t shared_bytes;
};

// A call of up to kMaxRows rows.
struct HeadPlan {
  int64_t rows;  // that the plan is for
  bool selects;  // sparse_head's, not sparse_logits' or sparse_sample's
  int sms;       // of the device
  bool mma;      // project_mma rather than project_simt
  MmaPlan mma_plan;
  size_t partials_bytes;  // at the start of the workspace
  size_t orders_bytes;    // after them: 0 if select's orders fit in registers or shared memory

  size_t workspace_bytes() const { return partials_bytes + orders_bytes; }
  int splits() const { return mma ? mma_plan.splits : 1; }
};

}  // namespace microspec
