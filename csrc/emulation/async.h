// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies, by cp.async and by the copy engine, and the mbarriers that they arrive on.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "failure.h"

namespace microspec::emulation {

struct Thread;

struct Piece {
  void* to;
  const void* from;
  uint32_t bytes;
};

// Copies `bytes` (a multiple of 4) as the kernel itself would, with instrumented reads and writes.
void copy_as_kernel(void* to, const void* from, uint32_t bytes);

// The state of an mbarrier, which hardware keeps in its 8 bytes.
struct MBarrier {
  uint64_t* address;
  int arrivals;       // in a phase
  int missing;        // arrivals still to come in this phase
  int64_t bytes = 0;  // announced bytes still to come; negative: bytes that came before their announcement
  unsigned phase = 0;
  std::vector<Thread*> waiting;
  void* race_context = nullptr;  // context of the copies that complete here
  char issue_key = 0, phase_keys[2] = {};
};

// The asynchronous copies and mbarriers of one block.
class AsyncCopies {
 public:
  ~AsyncCopies();

  void init(uint64_t* barrier, int arrivals, const Site& site);
  // Arrives once and announces bytes to come.
  void arrive(uint64_t* barrier, uint32_t bytes, const Site& site);
  void wait(uint64_t* barrier, uint32_t parity, const Site& site);

  // Copies 4 or 16 bytes, for the current thread.
  void add(void* shared, const void* global, uint32_t bytes);
  // Arrives once everything that the current thread added is there.
  void arrive_after_own(uint64_t* barrier, const Site& site);
  void add_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier, const Site& site);

  bool any_under_way() const { return !under_way_.empty(); }
  // Lets one transfer arrive: the oldest, or any transfer if the order is free.
  void deliver_one();

 private:
  // Copies that end with one signal to a barrier: bytes, or an arrival.
  struct Transfer {
    std::vector<Piece> pieces;
    MBarrier* barrier;
    const Thread* thread;  // the thread that issued these cp.asyncs; null for a bulk copy
    Site site;
  };
  MBarrier& at(uint64_t* barrier, const Site& site);
  void start(Transfer&& transfer);
  void count_arrival(MBarrier& barrier, const Site& site);
  void advance(MBarrier& barrier, const Site& site);

  std::vector<std::unique_ptr<MBarrier>> barriers_;
  std::vector<Transfer> under_way_;
};

}  // namespace microspec::emulation
