// SPDX-License-Identifier: Apache-2.0
// Sorts places as integers: a place's fields are packed into one key, and the first place has the smallest.
// Torch-free.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "vocab/first_tokens_cpu.h"

namespace microspec {

// Returns the index, in a sorted sample of `samples` of `all` values, behind which hardly ever any of the
// first `wanted` values lies: the expected index and three standard deviations.
inline int64_t safe_index(int64_t wanted, int64_t samples, int64_t all) {
  const double expected =
      static_cast<double>(wanted) * static_cast<double>(samples) / static_cast<double>(all);
  return static_cast<int64_t>(expected + 3 * std::sqrt(expected) + 1);
}

// Places of some tokens by ascending id, and the bits that are set in any of them.
struct Places {
  std::unique_ptr<TokenPlace[]> values;
  int64_t count = 0;
  TokenPlace bits{};
};

// How many bits each field takes. Each has at most 31.
struct PlaceLayout {
  int count, total, rank, id;

  explicit PlaceLayout(const TokenPlace& bits)
      : count(std::bit_width(bits.count)),
        total(std::bit_width(bits.total)),
        rank(std::bit_width(bits.rank)),
        id(std::bit_width(bits.id)) {}

  int bits() const { return count + total + rank + id; }

  template <class Key>
  Key pack(const TokenPlace& place) const {
    // The larger counts come first, so they are inverted.
    const uint32_t counts = (uint32_t{1} << count) - 1 - place.count;
    const uint32_t totals = (uint32_t{1} << total) - 1 - place.total;
    return ((Key{counts} << total | totals) << rank | place.rank) << id | place.id;
  }
  template <class Key>
  int32_t token(Key key) const {
    return static_cast<int32_t>(static_cast<uint32_t>(key) & ((uint32_t{1} << id) - 1));
  }
};

// Sorts keys by LSD radix from bit `begin` to bit `end`. Bits that all keys share cost no pass. Eleven bits a
// pass: their 2048 counters fit beside the keys in the L1 cache.
template <class Key>
void sort_bits(std::unique_ptr<Key[]>& keys, int64_t count, int begin, int end) {
  constexpr int kBits = 11, kValues = 1 << kBits;
  const auto digit = [](Key key, int shift) { return static_cast<uint32_t>(key >> shift) & (kValues - 1); };
  Key varying = 0;
  for (int64_t i = 0; i < count; ++i) varying |= keys[i] ^ keys[0];
  std::unique_ptr<Key[]> sorted(new Key[count]);
  for (int shift = begin; shift < end;) {
    if (!(digit(varying, shift) & 1)) {
      ++shift;
      continue;
    }
    uint32_t begins[kValues + 1] = {};
    for (int64_t i = 0; i < count; ++i) ++begins[digit(keys[i], shift) + 1];
    for (int value = 1; value < kValues; ++value) begins[value] += begins[value - 1];
    for (int64_t i = 0; i < count; ++i) sorted[begins[digit(keys[i], shift)]++] = keys[i];
    keys.swap(sorted);
    shift += kBits;
  }
}

// Returns a key that hardly ever lies before the `wanted`-th one, from a sample of about 1024 keys.
template <class Key>
Key cut_of(const std::vector<Places>& shares, int64_t all, int64_t wanted, const PlaceLayout& layout) {
  const int64_t stride = std::max<int64_t>(1, all / 1024);
  std::vector<Key> sample;
  sample.reserve(all / stride + 1);
  int64_t next = 0;
  for (const Places& share : shares) {
    for (; next < share.count; next += stride) sample.push_back(layout.pack<Key>(share.values[next]));
    next -= share.count;
  }
  const auto samples = static_cast<int64_t>(sample.size()), index = safe_index(wanted, samples, all);
  if (index >= samples) return ~Key{0};
  std::nth_element(sample.begin(), sample.begin() + index, sample.end());
  return sample[index];
}

// Returns the tokens of the first `wanted` places, in order. `all` is the number of places. If many more than
// wanted, most are left out before the sort.
template <class Key>
std::vector<int32_t> sorted_tokens(const std::vector<Places>& shares, int64_t all, int64_t wanted,
                                   const PlaceLayout& layout) {
  std::unique_ptr<Key[]> keys(new Key[all]);
  int64_t count = 0;
  const auto take = [&](Key last) {
    count = 0;
    for (const Places& share : shares) {
      for (int64_t i = 0; i < share.count; ++i) {  // without a branch that could be mispredicted
        const Key key = layout.pack<Key>(share.values[i]);
        keys[count] = key;
        count += key <= last;
      }
    }
  };
  if (all > wanted + wanted / 2) take(cut_of<Key>(shares, all, wanted, layout));
  if (count < wanted) take(~Key{0});
  // The keys lie by id, and passes keep the order of equal digits.
  sort_bits(keys, count, layout.id, layout.bits());
  std::vector<int32_t> tokens(wanted);
  for (int64_t i = 0; i < wanted; ++i) tokens[i] = layout.token(keys[i]);
  return tokens;
}

}  // namespace microspec
