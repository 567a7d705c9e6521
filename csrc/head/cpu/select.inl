// SPDX-License-Identifier: Apache-2.0
// Top k and logsumexp of one row's logits. Each instruction set includes this file inside its namespace, as
// it does panel.inl, after it defines kChunk, the number of floats in its registers.

// Returns one integer that orders logits as the contract does: logit descending, then id ascending. NaN is
// below -inf. Zero means "no entry" (an id's complement is never zero in the low half).
inline uint64_t selection_key(float logit, int32_t id) {
  uint32_t bits = 0;
  if (logit == logit) {
    const float positive_zero = logit + 0.0f;  // -0 equals +0
    __builtin_memcpy(&bits, &positive_zero, 4);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(~id);
}

// Returns a key's logit; NaN for a key that means "no entry", too.
inline float key_logit(uint64_t key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  if (bits == 0) return __builtin_nanf("");
  bits = bits >> 31 ? bits & 0x7fffffffu : ~bits;
  float logit;
  __builtin_memcpy(&logit, &bits, 4);
  return logit;
}

// The compiler's vectors of kChunk lanes, the width of one register of the set. The compiler takes wider
// vectors apart element by element.
typedef float Floats __attribute__((vector_size(4 * kChunk)));
typedef int32_t Ints __attribute__((vector_size(4 * kChunk)));
typedef double Doubles __attribute__((vector_size(8 * kChunk)));

inline Floats load_chunk(const float* p) {
  Floats chunk;
  __builtin_memcpy(&chunk, p, sizeof chunk);
  return chunk;
}

// Loads the last, partial chunk. Missing elements are -inf, which changes neither maximum nor sum.
inline Floats load_rest(const float* p, int64_t count) {
  Floats chunk = Floats{} - __builtin_inff();
  for (int64_t j = 0; j < count; ++j) chunk[j] = p[j];
  return chunk;
}

// Returns exp(x) for x <= 0, within 2 ulp: 2^n times the Taylor series of the remainder, |remainder| <= ln(2)
// / 2.
inline Floats exp_of_nonpositive(Floats x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;                      // 1.5 * 2^23: adding it rounds to an integer
  const Floats bounded = x < -87.0f ? Floats{} - 87.0f : x;  // e^-87 is negligible beside a sum >= 1
  const Floats n = (bounded * kLog2E + kRound) - kRound;
  const Floats r = (bounded - n * kLn2High) - n * kLn2Low;
  Floats p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * reinterpret_cast<Floats>(exponent);
}

// Returns the logsumexp of all logits; NaN if one of them is NaN.
inline float log_sum_exp(const float* logits, int64_t count) {
  const int64_t whole = count / kChunk * kChunk;
  const Floats rest = load_rest(logits + whole, count - whole);
  Floats lane_max = rest;
  Ints lane_nan = rest != rest;
  for (int64_t i = 0; i < whole; i += kChunk) {
    const Floats z = load_chunk(logits + i);
    lane_max = z > lane_max ? z : lane_max;
    lane_nan |= z != z;
  }
  float largest = -__builtin_inff();
  for (int64_t j = 0; j < kChunk; ++j) {
    if (lane_nan[j]) return __builtin_nanf("");
    largest = lane_max[j] > largest ? lane_max[j] : largest;
  }
  // No slot is active, or all logits are -inf; or one is +inf, and the others do not matter.
  if (largest == -__builtin_inff() || largest == __builtin_inff()) return largest;

  // Sum in double, so that the order does not show in the fp32 result.
  Doubles lane_sum = __builtin_convertvector(exp_of_nonpositive(rest - largest), Doubles);
  for (int64_t i = 0; i < whole; i += kChunk) {
    const Floats z = load_chunk(logits + i);
    lane_sum += __builtin_convertvector(exp_of_nonpositive(z - largest), Doubles);
  }
  double sum = 0.0;
  for (int64_t j = 0; j < kChunk; ++j) sum += lane_sum[j];
  return static_cast<float>(largest + __builtin_log(sum));
}

// Writes the top k and the logsumexp. One compare rejects almost every chunk against the k-th best so far, so
// the sorted insertion runs about k * ln(count / k) times.
void select(const float* logits, const int32_t* ids, int64_t count, int64_t k, float* top_logits,
            int64_t* top_ids, float* logsumexp) {
  uint64_t best[kMaxTopK];
  for (int64_t j = 0; j < k; ++j) best[j] = 0;
  const auto offer = [&](int64_t i) {
    const uint64_t key = selection_key(logits[i], ids[i]);
    if (key <= best[k - 1]) return;
    int64_t at = k - 1;
    for (; at > 0 && best[at - 1] < key; --at) best[at] = best[at - 1];
    best[at] = key;
  };
  int64_t i = 0;
  for (; i + kChunk <= count; i += kChunk) {
    // No logit is below the NaN that stands for "no entry", and no NaN is below any logit.
    const Ints below = load_chunk(logits + i) < key_logit(best[k - 1]);
    int32_t all_below = -1;
    for (int64_t j = 0; j < kChunk; ++j) all_below &= below[j];
    if (all_below) continue;
    for (int64_t j = 0; j < kChunk; ++j) {
      if (!below[j]) offer(i + j);
    }
  }
  for (; i < count; ++i) offer(i);
  for (int64_t j = 0; j < k; ++j) {
    top_logits[j] = best[j] ? key_logit(best[j]) : -__builtin_inff();
    top_ids[j] = best[j] ? static_cast<int64_t>(~static_cast<uint32_t>(best[j])) : -1;
  }
  *logsumexp = log_sum_exp(logits, count);
}
