// SPDX-License-Identifier: Apache-2.0
#include "async.h"

#include <algorithm>
#include <utility>

#include "races.h"
#include "runtime.h"

namespace microspec::emulation {

AsyncCopies::~AsyncCopies() {
  for (const auto& barrier : barriers_) races::end_context(barrier->race_context);
}

// ---- mbarriers

MBarrier& AsyncCopies::at(uint64_t* barrier, const Site& site) {
  for (const auto& known : barriers_) {
    if (known->address == barrier) return *known;
  }
  fail(Kind::mbarrier, "an mbarrier that was never initialised", site);
}

void AsyncCopies::init(uint64_t* barrier, int arrivals, const Site& site) {
  if (!current->block->shared.contains(barrier, sizeof(*barrier))) {
    fail(Kind::mbarrier, "an mbarrier outside shared memory", site);
  }
  if (arrivals < 1 || arrivals >= 1 << 20) {
    fail(Kind::mbarrier, "an mbarrier for " + std::to_string(arrivals) + " arrivals", site);
  }
  for (const auto& known : barriers_) {
    if (known->address == barrier) fail(Kind::mbarrier, "an mbarrier initialised twice", site);
  }
  const races::Unseen unseen;
  barriers_.push_back(std::make_unique<MBarrier>());
  MBarrier& made = *barriers_.back();
  made.address = barrier;
  made.arrivals = made.missing = arrivals;
  made.race_context = races::make_context("asynchronous copies");
}

// Ends the phase if all arrivals and bytes are there.
void AsyncCopies::advance(MBarrier& barrier, const Site& site) {
  if (barrier.missing > 0) return;
  if (barrier.bytes < 0) fail(Kind::mbarrier, "more bytes copied than were announced to the mbarrier", site);
  if (barrier.bytes > 0) return;
  barrier.missing = barrier.arrivals;
  barrier.phase ^= 1;
  for (Thread* thread : barrier.waiting) wake(*thread);
  barrier.waiting.clear();
}

void AsyncCopies::count_arrival(MBarrier& barrier, const Site& site) {
  if (barrier.missing == 0) fail(Kind::mbarrier, "more arrivals than the mbarrier was initialised for", site);
  --barrier.missing;
  advance(barrier, site);
}

void AsyncCopies::arrive(uint64_t* barrier, uint32_t bytes, const Site& site) {
  MBarrier& to = at(barrier, site);
  races::release(&to.phase_keys[to.phase]);
  to.bytes += bytes;
  count_arrival(to, site);
}

void AsyncCopies::wait(uint64_t* barrier, uint32_t parity, const Site& site) {
  MBarrier& on = at(barrier, site);
  if (parity > 1) fail(Kind::mbarrier, "a parity that is neither 0 nor 1", site);
  maybe_yield();
  while (on.phase == parity) {
    {
      const races::Unseen unseen;
      on.waiting.push_back(current);
    }
    wait_here("mbarrier_wait", site);
  }
  races::acquire(&on.phase_keys[parity]);
}

// ---- Copies

void AsyncCopies::add(void* shared, const void* global, uint32_t bytes) {
  auto& own = current->copies;
  {
    const races::Unseen unseen;
    own.push_back({shared, global, bytes});
  }
  if (settings.copies == Copies::eager) copy_as_kernel(shared, global, bytes);
  // Some copies arrive at once. They arrive again with the rest, because a copy's target is undefined until
  // its arrival.
  if (settings.copies == Copies::random && random().one_in(4)) copy_as_kernel(shared, global, bytes);
}

void AsyncCopies::arrive_after_own(uint64_t* barrier, const Site& site) {
  Transfer transfer{{}, &at(barrier, site), current, site};
  {
    const races::Unseen unseen;
    if (settings.copies != Copies::eager) transfer.pieces = current->copies;
    current->copies.clear();
  }
  start(std::move(transfer));
}

void AsyncCopies::add_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier,
                           const Site& site) {
  Transfer transfer{{}, &at(barrier, site), nullptr, site};
  {
    const races::Unseen unseen;
    transfer.pieces.push_back({shared, global, bytes});
  }
  start(std::move(transfer));
}

void AsyncCopies::start(Transfer&& transfer) {
  races::release(&transfer.barrier->issue_key);
  {
    const races::Unseen unseen;
    under_way_.push_back(std::move(transfer));
  }
  if (settings.copies == Copies::eager) deliver_one();
  if (settings.copies == Copies::random && random().one_in(3)) deliver_one();
}

void AsyncCopies::deliver_one() {
  const races::Unseen unseen;  // another line of execution does the copying
  size_t index = settings.copies == Copies::random ? random().below(under_way_.size()) : 0;
  // A thread's arrival waits for all of its earlier copies.
  const Thread* thread = under_way_[index].thread;
  for (size_t earlier = 0; thread && earlier < index; ++earlier) {
    if (under_way_[earlier].thread == thread) index = earlier;
  }
  const Transfer transfer = std::move(under_way_[index]);
  under_way_.erase(under_way_.begin() + static_cast<std::ptrdiff_t>(index));
  MBarrier& barrier = *transfer.barrier;
  races::as(barrier.race_context, [&] {
    races::acquire(&barrier.issue_key);
    for (const Piece& piece : transfer.pieces) copy_as_kernel(piece.to, piece.from, piece.bytes);
    races::release(&barrier.phase_keys[barrier.phase]);
  });
  if (transfer.thread) {
    count_arrival(barrier, transfer.site);
  } else {
    barrier.bytes -= transfer.pieces[0].bytes;
    advance(barrier, transfer.site);
  }
}

}  // namespace microspec::emulation
