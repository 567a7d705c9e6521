// SPDX-License-Identifier: Apache-2.0
// vocab_count_ and the first half of vocab_observe_ on the CPU, one token after the other.
#include "common/integers.h"
#include "vocab/args.h"
#include "vocab/count_table.h"
#include "vocab/learn.h"

namespace microspec {

namespace {

// Judges and counts the id at a position, if there is one.
void take_written(const ObserveArgs& args, int64_t position, int64_t id) {
  const CountTables& tables = args.tally.tables;
  const int64_t request = args.request_at(position);
  if (id < 0 || request < 0 || request >= tables.requests) return;
  const int64_t group = args.group_at(position);
  if (group >= 0 && group < args.groups) {
    int64_t& verdict = args.tally.verdicts[(args.is_active(group, id) ? 0 : tables.requests) + request];
    verdict = wrapping_add(verdict, 1);
  }
  count_token(tables, request, id);
}

}  // namespace

void count_cpu(const CountArgs& args) {
  for (int64_t i = 0; i < args.total(); ++i) {
    const int64_t token = value_at(args.tokens, args.long_tokens, i);
    if (token < 0 || token >= args.tables.vocab_size) continue;
    const int64_t request =
        args.token_requests ? value_at(args.token_requests, args.long_requests, i) : i / args.count;
    count_token(args.tables, request, token);
  }
}

void observe_cpu(const ObserveArgs& args) {
  const StepTokens& tokens = args.tokens;
  for (int64_t i = 0; i < tokens.num_candidates; ++i) {
    args.ids[i] = static_cast<int32_t>(tokens.id_of(value_at(tokens.candidates, tokens.long_candidates, i)));
  }
  for (int64_t i = tokens.num_candidates; i < tokens.count(); ++i) {
    const int64_t id = tokens.id_at(i);
    if (args.ids) args.ids[i] = static_cast<int32_t>(id);
    if (args.tally.verdicts) take_written(args, i, id);
  }
}

}  // namespace microspec
