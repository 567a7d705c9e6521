// Top-k and logsumexp of one row's logits. Included inside an instruction set's namespace, as
// panel.inl is; its loops are written to be vectorised by the compiler.

// Orders logits as the contract does, as one integer: logit descending, then id ascending. NaN is
// below -inf; zero stands for "no entry" (an id's complement is never zero in the low half).
inline uint64_t selection_key(float logit, int32_t id) {
  uint32_t bits = 0;
  if (logit == logit) {
    const float positive_zero = logit + 0.0f;  // -0 equals +0
    __builtin_memcpy(&bits, &positive_zero, 4);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(~id);
}

inline float key_logit(uint64_t key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  if (bits == 0) return __builtin_nanf("");
  bits = bits >> 31 ? bits & 0x7fffffffu : ~bits;
  float logit;
  __builtin_memcpy(&logit, &bits, 4);
  return logit;
}

// exp(x) for x <= 0, within 2 ulp: 2^n times the Taylor series of the rest, |rest| <= ln(2) / 2.
inline float exp_of_nonpositive(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float bounded = x < -87.0f ? -87.0f : x;  // below it the true value adds nothing to a sum >= 1
  const float n = (bounded * kLog2E + kRound) - kRound;
  const float r = (bounded - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  __builtin_memcpy(&power, &exponent, 4);
  return p * power;
}

constexpr int64_t kChunk = 16;

inline float log_sum_exp(const float* logits, int64_t count) {
  float lane_max[kChunk];
  int32_t lane_nan[kChunk];
  for (int j = 0; j < kChunk; ++j) lane_max[j] = -__builtin_inff(), lane_nan[j] = 0;
  int64_t i = 0;
  for (; i + kChunk <= count; i += kChunk) {
    for (int j = 0; j < kChunk; ++j) {
      const float z = logits[i + j];
      lane_max[j] = z > lane_max[j] ? z : lane_max[j];
      lane_nan[j] |= z != z;
    }
  }
  float largest = -__builtin_inff();
  int32_t any_nan = 0;
  for (int j = 0; j < kChunk; ++j) {
    largest = lane_max[j] > largest ? lane_max[j] : largest;
    any_nan |= lane_nan[j];
  }
  for (; i < count; ++i) {
    largest = logits[i] > largest ? logits[i] : largest;
    any_nan |= logits[i] != logits[i];
  }
  if (any_nan) return __builtin_nanf("");
  // Nothing active, or nothing but -inf; or a +inf, beside which nothing else counts.
  if (largest == -__builtin_inff() || largest == __builtin_inff()) return largest;

  // Sums in double: their order then does not show in the fp32 result.
  double lane_sum[kChunk] = {};
  for (i = 0; i + kChunk <= count; i += kChunk) {
    for (int j = 0; j < kChunk; ++j) lane_sum[j] += exp_of_nonpositive(logits[i + j] - largest);
  }
  double sum = 0.0;
  for (int j = 0; j < kChunk; ++j) sum += lane_sum[j];
  for (; i < count; ++i) sum += exp_of_nonpositive(logits[i] - largest);
  return static_cast<float>(largest + __builtin_log(sum));
}

// Whether any of kChunk logits may enter a top-k whose last entry is `bar`; NaNs may.
inline bool any_reaches(const float* logits, float bar) {
  int32_t reaches = 0;
  for (int j = 0; j < kChunk; ++j) reaches |= !(logits[j] < bar);
  return reaches;
}

// Almost every chunk fails against the k-th best so far with one compare, so the sorted insertion
// runs about k * ln(count / k) times.
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
    // key_logit of "no entry" is NaN, which every chunk reaches.
    if (!any_reaches(logits + i, key_logit(best[k - 1]))) continue;
    for (int64_t j = i; j < i + kChunk; ++j) offer(j);
  }
  for (; i < count; ++i) offer(i);
  for (int64_t j = 0; j < k; ++j) {
    top_logits[j] = best[j] ? key_logit(best[j]) : -__builtin_inff();
    top_ids[j] = best[j] ? static_cast<int64_t>(~static_cast<uint32_t>(best[j])) : -1;
  }
  *logsumexp = log_sum_exp(logits, count);
}
