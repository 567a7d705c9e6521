// SPDX-License-Identifier: Apache-2.0
// One token of a row's law, in integers (sample_args.h). Each instruction set includes this file inside its
// namespace, after select.inl.
//
// A row reads its logits twice and its terms one and a half times, all in the L1 or L2 cache. At K = 3072
// these are 192 vectors of exponentials with AVX-512.

// Returns the sum of the weights of count terms. Without a branch, so that it vectorises.
inline uint64_t sum_of_weights(const float* terms, int64_t count, float unit) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<int64_t>(terms[i] * unit);
  return static_cast<uint64_t>(sum);
}

// Writes exp((z - largest) / temperature) of each logit; 1 at the largest one, and 0 for NaN.
inline void exponentials(const float* logits, int64_t count, float largest, float temperature, float* terms) {
  const auto of = [&](Floats z) {
    const Floats term = exp_of_nonpositive((z - largest) / temperature);
    const Floats below = term > 0.0f ? term : Floats{};  // -inf / inf is NaN
    return z == largest ? Floats{} + 1.0f : z < largest ? below : Floats{};
  };
  int64_t i = 0;
  for (; i + kChunk <= count; i += kChunk) {
    const Floats chunk = of(load_chunk(logits + i));
    __builtin_memcpy(terms + i, &chunk, sizeof chunk);
  }
  const Floats rest = of(load_rest(logits + i, count - i));
  for (int64_t j = 0; i + j < count; ++j) terms[i + j] = rest[j];
}

inline Drawn draw(const float* logits, const int32_t* ids, int64_t count, float temperature, uint64_t number,
                  float unit, float* terms) {
  int64_t best = 0;
  uint64_t best_key = selection_key(logits[0], ids[0]);
  bool any_nan = false;
  for (int64_t i = 0; i < count; ++i) {
    any_nan |= logits[i] != logits[i];
    // Most logits are below the best by their value alone. Of NaN neither comparison holds.
    if (logits[i] < logits[best]) continue;
    const uint64_t key = selection_key(logits[i], ids[i]);
    if (key <= best_key) continue;
    best = i;
    best_key = key;
  }
  const float largest = logits[best];
  const float nan = __builtin_nanf("");
  if (!(temperature > 0.0f) || largest != largest) return {best, any_nan ? nan : 0.0f};

  exponentials(logits, count, largest, temperature, terms);
  const uint64_t total = sum_of_weights(terms, count, unit);
  uint64_t left = static_cast<uint64_t>(static_cast<unsigned __int128>(number) * total >> 64);
  constexpr int64_t kBlock = 64;
  int64_t first = 0;
  for (;; first += kBlock) {
    const uint64_t sum = sum_of_weights(terms + first, count - first < kBlock ? count - first : kBlock, unit);
    if (left < sum) break;
    left -= sum;
  }
  for (;; ++first) {
    const uint64_t weight = sum_of_weights(terms + first, 1, unit);
    if (left < weight) break;
    left -= weight;
  }
  if (any_nan) return {first, nan};
  const float z = logits[first], exponent = z == largest ? 0.0f : (z - largest) / temperature;
  // The largest logit's weight is `unit`: what is left keeps its digits beside 1.
  const double others = static_cast<double>(total - static_cast<uint64_t>(unit)) / unit;
  return {first, static_cast<float>(exponent - __builtin_log1p(others))};
}
