// SPDX-License-Identifier: Apache-2.0
// The first n tokens of the order.
//
// Few of the V tokens can be among the first n. A sample of the counts says from which count on more than n
// tokens are likely; one sweep collects them, and only they are sorted. If the list has too few, the tokens
// with a total join that a sample of the totals names; if all totals have too few, the tokens with a rank
// below n join. The first n have no others: what is left out comes after all that is collected. So if n are
// collected, the result is right whatever the samples said, and else more are collected.
//
// Expected at V = 262144 and n = 3072 on two threads: a sample reads 256 cache lines, 2 µs. A sweep reads 1
// to 3 MB, each in 15 µs from L3, and collects 3000 to 14000 tokens in 10 to 30 µs. Packing them takes 2 ns
// each, and sorting 4000 in two to four passes 30 µs.
#include "vocab/first_tokens_cpu.h"

#include <array>
#include <bit>
#include <functional>
#include <initializer_list>
#include <limits>

#include "common/clones.h"
#include "common/parallel.h"
#include "vocab/packed_places.h"

namespace microspec {

namespace {

constexpr int32_t kLeast = std::numeric_limits<int32_t>::min(), kMost = std::numeric_limits<int32_t>::max();

// Returns the largest count that probably more than `wanted` values reach, or 0. The sample consists of whole
// cache lines: 4096 values show a share of 1 % to a seventh.
int32_t probable_level(const int32_t* values, int64_t size, int64_t wanted) {
  constexpr int64_t kLine = 16, kLines = 256;
  const int64_t stride = std::max(kLine, size / kLines);
  std::vector<int32_t> positive(size / stride * kLine + kLine);
  int64_t samples = 0, found = 0;
  for (int64_t line = 0; line < size; line += stride) {
    const int64_t end = std::min(line + kLine, size);
    samples += end - line;
    for (int64_t i = line; i < end; ++i) {
      positive[found] = values[i];
      found += values[i] > 0;
    }
  }
  const int64_t index = safe_index(wanted, samples, size);
  if (index >= found) return 0;
  std::nth_element(positive.begin(), positive.begin() + index, positive.begin() + found, std::greater<>());
  return positive[index];
}

// A range of values. Null values are in no range.
struct Range {
  const int32_t* values;
  int32_t least, most;
};

MICROSPEC_CLONES void mark_range(const int32_t* values, int64_t count, int32_t least, int32_t most,
                                 uint8_t* marks) {
  for (int64_t i = 0; i < count; ++i) marks[i] |= (values[i] >= least) & (values[i] <= most);
}

// Returns a bit for each of eight bytes that are 0 or 1, the first in memory as the lowest.
uint64_t bits_of(uint64_t bytes) {
  static_assert(std::endian::native == std::endian::little);
  return bytes * 0x0102040810204080 >> 56;
}

// Tokens of a thread's share: small enough for two threads at V = 32000, large against the cost of a share.
constexpr int64_t kShare = 16384;

// Returns the places of a share's tokens that are in at least one of the ranges, by id.
Places collect_share(const TokenOrder& order, std::initializer_list<Range> ranges, int64_t begin,
                     int64_t end) {
  uint64_t words[kShare / 8] = {};
  const auto marks = reinterpret_cast<uint8_t*>(words);
  for (const Range& range : ranges) {
    if (range.values) mark_range(range.values + begin, end - begin, range.least, range.most, marks);
  }
  uint16_t marked[kShare];
  Places places;
  for (int64_t word = 0; word < kShare / 8; word += 8) {
    uint64_t any = 0;
    for (int i = 0; i < 8; ++i) any |= words[word + i];
    if (!any) continue;
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= bits_of(words[word + i]) << 8 * i;
    for (; bits; bits &= bits - 1) {
      marked[places.count++] = static_cast<uint16_t>(8 * word + std::countr_zero(bits));
    }
  }
  places.values.reset(new TokenPlace[places.count]);
  TokenPlace bits{};
  for (int64_t i = 0; i < places.count; ++i) {
    const TokenPlace place = order.place(begin + marked[i]);
    bits = {bits.count | place.count, bits.total | place.total, bits.rank | place.rank, bits.id | place.id};
    places.values[i] = place;
  }
  places.bits = bits;
  return places;
}

// The tokens that are in at least one of some ranges.
struct Collected {
  std::vector<Places> shares;
  int64_t count = 0;

  // Collects anew. Returns whether there are at least `wanted`.
  bool has(int64_t wanted, const TokenOrder& order, std::initializer_list<Range> ranges) {
    shares.resize((order.vocab_size + kShare - 1) / kShare);
    parallel_for(static_cast<int64_t>(shares.size()), 1, [&](int64_t first, int64_t last) {
      for (int64_t share = first; share < last; ++share) {
        const int64_t begin = share * kShare;
        shares[share] = collect_share(order, ranges, begin, std::min(order.vocab_size, begin + kShare));
      }
    });
    count = 0;
    for (const Places& places : shares) count += places.count;
    return count >= wanted;
  }
};

// Collects the first `wanted` tokens and more.
Collected collect(const TokenOrder& order, int64_t wanted) {
  Collected found;
  const auto [counts, totals, ranks, size] = order;
  // A sample that promised too much is rare, and half the level mostly suffices then.
  for (int32_t level = probable_level(counts, size, wanted); level; level /= 2) {
    if (found.has(wanted, order, {{counts, level, kMost}})) return found;
  }
  const Range counted{counts, 1, kMost};
  if (totals) {
    for (int32_t level = probable_level(totals, size, wanted); level; level /= 2) {
      if (found.has(wanted, order, {counted, {totals, level, kMost}})) return found;
    }
  }
  // Of n ranks below n, no more can be of counted tokens than these have of the first n places.
  const auto last = static_cast<int32_t>(wanted - 1);
  if (found.has(wanted, order, {counted, {totals, 1, kMost}, {ranks, kLeast, last}})) return found;
  found.has(wanted, order, {{ranks, kLeast, kMost}});  // the ranks are no permutation
  return found;
}

}  // namespace

std::vector<int32_t> first_tokens(const TokenOrder& order, int64_t count) {
  if (count == 0) return {};
  const Collected found = collect(order, count);
  TokenPlace bits{};
  for (const auto& [values, size, b] : found.shares) {
    bits = {bits.count | b.count, bits.total | b.total, bits.rank | b.rank, bits.id | b.id};
  }
  const PlaceLayout layout(bits);
  __extension__ using Wide = unsigned __int128;  // four fields of 31 bits fit
  return layout.bits() <= 64 ? sorted_tokens<uint64_t>(found.shares, found.count, count, layout)
                             : sorted_tokens<Wide>(found.shares, found.count, count, layout);
}

}  // namespace microspec
