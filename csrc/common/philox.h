// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), and the number by
// which sparse_sample draws. Without a state: a number is a function of its key and its counter.
#pragma once

#include <cstdint>

namespace microspec {

struct PhiloxWords {
  uint32_t word[4];
};

constexpr PhiloxWords philox4x32_10(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xd2511f53u} * counter.word[0];
    const uint64_t second = uint64_t{0xcd9e8d57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(second >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(second),
                static_cast<uint32_t>(first >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(first)}};
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return counter;
}

constexpr bool equal(const PhiloxWords& a, const PhiloxWords& b) {
  return a.word[0] == b.word[0] && a.word[1] == b.word[1] && a.word[2] == b.word[2] && a.word[3] == b.word[3];
}
// Known answers of Random123.
static_assert(equal(philox4x32_10({{0, 0, 0, 0}}, 0, 0),
                    {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}}));
static_assert(equal(philox4x32_10({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u),
                    {{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}}));
static_assert(equal(philox4x32_10({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0xa4093822u,
                                  0x299f31d0u),
                    {{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}}));

// The fourth word of the counter, so that no other use of Philox with an engine's seeds has these numbers.
constexpr uint32_t kDrawSalt = 0x64726177u;  // "draw"

// Returns the numerator of u = number / 2^64 in (0, 1): 53 bits and a half.
constexpr uint64_t draw_number(int64_t seed, int64_t position) {
  const auto key = static_cast<uint64_t>(seed), at = static_cast<uint64_t>(position);
  const PhiloxWords words =
      philox4x32_10({{static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), 0, kDrawSalt}},
                    static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
  const uint64_t bits = uint64_t{words.word[0]} << 21 | words.word[1] >> 11;
  return (2 * bits + 1) << 10;
}

}  // namespace microspec
