// SPDX-License-Identifier: Apache-2.0
// vocab_count_ on the CPU: a bit and a counter for each token, one token after the other. And the verdicts
// of vocab_observe_.
#include "common/integers.h"
#include "vocab/args.h"
#include "vocab/learn.h"

namespace microspec {

namespace {

// Adds one, wrapping around: a caller's counts may hold any number.
void increment(int32_t& count) { count = static_cast<int32_t>(static_cast<uint32_t>(count) + 1); }

}  // namespace

void count_cpu(const CountArgs& args) {
  const int64_t total = args.token_requests ? args.count : args.requests * args.count;
  for (int64_t i = 0; i < total; ++i) {
    const int64_t token = value_at(args.tokens, args.long_tokens, i);
    if (token < 0 || token >= args.vocab_size || (args.written && !args.written[i])) continue;
    const int64_t request =
        args.token_requests ? value_at(args.token_requests, args.long_requests, i) : i / args.count;
    if (request < 0 || request >= args.requests) continue;
    const int64_t list = args.request_lists ? value_at(args.request_lists, args.long_lists, request) : 0;
    if (list < 0 || list >= args.lists) continue;
    int32_t& word = args.seen[request * args.words + token / 32];
    const auto bit = static_cast<int32_t>(uint32_t{1} << token % 32);
    if (word & bit) continue;
    word |= bit;
    increment(args.text_counts[list * args.vocab_size + token]);
    if (args.total_counts) increment(args.total_counts[token]);
  }
}

void judge_cpu(const JudgeArgs& args, const CountArgs& tokens) {
  const int64_t total = args.token_groups ? args.row : args.groups * args.row;
  for (int64_t i = 0; i < total; ++i) {
    const int64_t token = value_at(tokens.tokens, tokens.long_tokens, i);
    if (token < 0 || token >= tokens.vocab_size || !tokens.written[i]) continue;
    const int64_t group = args.token_groups ? value_at(args.token_groups, args.long_groups, i) : i / args.row;
    if (group < 0 || group >= args.groups) continue;
    const int32_t slot = args.token_slots[group * tokens.vocab_size + token];
    const bool active =
        slot >= 0 && slot < args.capacity && args.active_ids[group * args.capacity + slot] == token;
    int64_t& verdict = args.verdicts[(active ? 0 : args.groups) + group];
    verdict = wrapping_add(verdict, 1);
  }
}

}  // namespace microspec
