// SPDX-License-Identifier: Apache-2.0
// The second kernel of vocab_refill_ (refill_kernel.cuh): the stamps of all slots after a reset.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "vocab/refill_state.cuh"

namespace microspec::refill {

// 32 slots a block, one a lane, and each warp counts among an eighth of the tokens.
constexpr int kStampThreads = 256;
constexpr int kStampWarps = kStampThreads / kWarp;
// Places that a lane loads at once, and so the tile of a warp.
constexpr int kPlaces = 4;
constexpr int kTile = kPlaces * kWarp;

MICROSPEC_KERNEL(kStampThreads, 4)
refill_stamps_kernel(RefillArgs args, Layout layout, uint32_t* workspace, int blocks_per_group) {
  MICROSPEC_SHARED(Place, tiles, kStampWarps * kTile);
  MICROSPEC_SHARED(unsigned, counts, kStampThreads);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  const int64_t index = blockIdx.x / blocks_per_group;
  if (list_of(args, index) < 0) return;
  const Group group(args, layout, workspace, index);
  const auto place_at = [&](int slot) { return slot < group.capacity ? group.places[slot] : Place{0, 0}; };
  const int slot = static_cast<int>(blockIdx.x % blocks_per_group) * kWarp + lane_index();
  const Place mine = place_at(slot);
  Place* const tile = tiles + warp_index() * kTile;
  Place next[kPlaces];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) next[i] = place_at(first + i * kWarp + lane_index());
  };
  fetch(warp_index() * kTile);
  unsigned before = 0;
  for (int first = warp_index() * kTile; first < group.capacity; first += kStampWarps * kTile) {
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) tile[i * kWarp + lane_index()] = next[i];
    __syncwarp();
    fetch(first + kStampWarps * kTile);
#pragma unroll 8
    for (int i = 0; i < kTile; ++i) before += tile[i].comes_before(mine);
    __syncwarp();
  }
  counts[threadIdx.x] = before;
  __syncthreads();
  if (warp_index() > 0 || mine.last == 0) return;
  int64_t position = 0;
  for (int warp = 0; warp < kStampWarps; ++warp) position += counts[warp * kWarp + lane_index()];
  const int64_t count = *group.count;
  group.slot_stamps[slot] = position < args.pinned ? kPinnedStamp : count - 1 - position;
}

}  // namespace microspec::refill
