// SPDX-License-Identifier: Apache-2.0
#include "collectives.h"

#include <algorithm>

#include "races.h"

namespace microspec::emulation {

namespace {

constexpr unsigned kLanes = 32;

template <class F>
void for_lanes(unsigned mask, F&& f) {
  for (; mask; mask &= mask - 1) f(static_cast<unsigned>(__builtin_ctz(mask)));
}

// Orders everything that any of the threads did before this ahead of everything that all of them do after it.
template <class Threads>
void order_all(const Threads& threads, const void* key) {
  if (!races::kDetected) return;
  void* self = races::this_context();
  for (const auto& thread : threads) {
    if (!thread) continue;
    races::switch_to(thread->fiber.race_context);
    races::release(key);
  }
  for (const auto& thread : threads) {
    if (!thread) continue;
    races::switch_to(thread->fiber.race_context);
    races::acquire(key);
  }
  races::switch_to(self);
}

// Returns the lane that a shuffle reads: the lane itself if CUDA keeps its value.
unsigned source_of(const WarpRequest& request, unsigned lane) {
  const unsigned width = request.width, first = lane & ~(width - 1);
  switch (request.op) {
    case WarpOp::shfl: return first | (request.source & (width - 1));
    case WarpOp::shfl_up: return lane >= first + request.source ? lane - request.source : lane;
    case WarpOp::shfl_down: return lane + request.source < first + width ? lane + request.source : lane;
    default: {
      const unsigned source = lane ^ request.source;
      return source < first + width ? source : lane;
    }
  }
}

void shuffle(Warp& warp, unsigned mask) {
  for_lanes(mask, [&](unsigned lane) {
    Thread& thread = *warp.lanes[lane];
    const unsigned source = source_of(thread.request, lane);
    if (!(mask >> source & 1)) {
      fail(Kind::wrong_mask,
           place_of(thread) + " reads lane " + std::to_string(source) + ", which the mask leaves out",
           thread.site);
    }
    thread.result = warp.lanes[source]->request.value;
  });
}

void match(Warp& warp, unsigned mask) {
  for_lanes(mask, [&](unsigned lane) {
    uint64_t same = 0;
    for_lanes(mask, [&](unsigned other) {
      same |= uint64_t{warp.lanes[other]->request.value == warp.lanes[lane]->request.value} << other;
    });
    warp.lanes[lane]->result = same;
  });
}

uint32_t combine(WarpOp op, uint32_t a, uint32_t b) {
  const auto x = static_cast<int32_t>(a), y = static_cast<int32_t>(b);
  switch (op) {
    case WarpOp::add: return a + b;
    case WarpOp::min_signed: return static_cast<uint32_t>(std::min(x, y));
    case WarpOp::min_unsigned: return std::min(a, b);
    case WarpOp::max_signed: return static_cast<uint32_t>(std::max(x, y));
    case WarpOp::max_unsigned: return std::max(a, b);
    case WarpOp::bit_and: return a & b;
    case WarpOp::bit_or: return a | b;
    default: return a ^ b;
  }
}

// Computes the one result for all lanes of a vote or a reduction.
uint64_t reduce(const Warp& warp, WarpOp op, unsigned mask) {
  unsigned votes = 0;
  uint32_t sum = 0;
  bool first = true;
  for_lanes(mask, [&](unsigned lane) {
    const uint64_t value = warp.lanes[lane]->request.value;
    votes |= unsigned{value != 0} << lane;
    sum = first ? static_cast<uint32_t>(value) : combine(op, sum, static_cast<uint32_t>(value));
    first = false;
  });
  switch (op) {
    case WarpOp::ballot: return votes;
    case WarpOp::any: return votes != 0;
    case WarpOp::all: return votes == mask;
    default: return sum;
  }
}

void execute(Warp& warp, WarpOp op, unsigned mask) {
  switch (op) {
    case WarpOp::sync: {
      std::array<Thread*, kLanes> members{};
      for_lanes(mask, [&](unsigned lane) { members[lane] = warp.lanes[lane]; });
      return order_all(members, &warp.order_keys[__builtin_ctz(mask)]);
    }
    case WarpOp::mma: {
      std::array<MmaLane*, kLanes> operands;
      for_lanes(mask, [&](unsigned lane) {
        operands[lane] = reinterpret_cast<MmaLane*>(warp.lanes[lane]->request.value);
      });
      return multiply(operands);
    }
    case WarpOp::match_any: return match(warp, mask);
    case WarpOp::shfl:
    case WarpOp::shfl_up:
    case WarpOp::shfl_down:
    case WarpOp::shfl_xor: return shuffle(warp, mask);
    default: {
      const uint64_t result = reduce(warp, op, mask);
      for_lanes(mask, [&](unsigned lane) { warp.lanes[lane]->result = result; });
    }
  }
}

// Requires two lanes that name each other to be at the same instruction.
void check_same(const Thread& self, const Thread& other) {
  const WarpRequest& own = self.request;
  const WarpRequest& its = other.request;
  const bool same_place = own.op == WarpOp::sync || other.site.line() == self.site.line();
  if (!(its.mask >> self.lane & 1) || (its.op == own.op && its.mask == own.mask && same_place)) return;
  fail(Kind::divergent_warp,
       std::string(self.waits_at) + ", while " + place_of(other) + ", of the same mask, is at " +
           other.waits_at + " (" + text_of(other.site) + ")",
       self.site);
}

// Whether all lanes of the mask have arrived, at the same instruction.
bool all_arrived(const Warp& warp, const Thread& self) {
  const unsigned others = self.request.mask & ~(1u << self.lane);
  const unsigned here = others & warp.waiting;
  if (here != others) {
    // The last lane to arrive checks the others.
    if (here) check_same(self, *warp.lanes[__builtin_ctz(here)]);
    return false;
  }
  bool same = true;
  for_lanes(others, [&](unsigned lane) {
    check_same(self, *warp.lanes[lane]);
    same &= warp.lanes[lane]->request.mask == self.request.mask;
  });
  return same;
}

}  // namespace

uint64_t warp_collective(const char* name, const WarpRequest& request, const Site& site) {
  Thread& self = *current;
  Warp& warp = *self.warp;
  if (!(request.mask >> self.lane & 1))
    fail(Kind::wrong_mask, std::string(name) + " by a lane outside the mask", site);
  if (request.mask & warp.exited) {
    const unsigned lane = static_cast<unsigned>(__builtin_ctz(request.mask & warp.exited));
    fail(Kind::wrong_mask,
         std::string(name) + " with lane " + std::to_string(lane) +
             " in the mask, which has ended or never was",
         site);
  }
  self.request = request;
  self.waits_at = name;
  self.site = site;
  warp.waiting |= 1u << self.lane;
  if (!all_arrived(warp, self)) {
    wait_here(name, site);
    return self.result;
  }
  execute(warp, request.op, request.mask);
  warp.waiting &= ~request.mask;
  for_lanes(request.mask, [&](unsigned lane) {
    if (warp.lanes[lane] != &self) wake(*warp.lanes[lane]);
  });
  self.waits_at = nullptr;
  return self.result;
}

int block_barrier(const char* name, BarrierResult wanted, int predicate, const Site& site) {
  Block& block = *current->block;
  BlockBarrier& barrier = block.barrier;
  if (block.live < block.threads.size()) {
    fail(Kind::divergent_barrier,
         std::string(name) + ", but " + std::to_string(block.threads.size() - block.live) +
             " threads of the block have ended",
         site);
  }
  if (barrier.arrived > 0 && barrier.site.line() != site.line()) {
    fail(Kind::divergent_barrier,
         std::string(name) + ", while others wait at " + barrier.name + " (" + text_of(barrier.site) + ")",
         site);
  }
  barrier.name = name;
  barrier.site = site;
  barrier.count += predicate != 0;
  barrier.all &= predicate != 0;
  barrier.any |= predicate != 0;
  if (++barrier.arrived < block.live) {
    wait_here(name, site);
  } else {
    barrier.result = {barrier.count, barrier.all, barrier.any};
    barrier.arrived = 0;
    barrier.count = barrier.any = 0;
    barrier.all = 1;
    order_all(block.threads, &barrier);
    for (const auto& thread : block.threads) {
      if (thread.get() != current) wake(*thread);
    }
  }
  switch (wanted) {
    case BarrierResult::count: return barrier.result.count;
    case BarrierResult::all: return barrier.result.all;
    case BarrierResult::any: return barrier.result.any;
    default: return 0;
  }
}

}  // namespace microspec::emulation
