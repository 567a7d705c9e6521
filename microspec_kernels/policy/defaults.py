# SPDX-License-Identifier: Apache-2.0
"""The defaults of the loop, the engines, the command line and the benchmarks."""

CAPACITY = 3072
"""K, tokens that can be active at a time: the papers' choice (docs/policy.md has other sizes)."""

TARGET_TOP_K = 3
"""Number of the target's likeliest tokens that enter after each verified row.

3 raise τ if a vocabulary begins empty, and cost little more than 1 (docs/policy.md).
"""

NUM_LISTS = 8
"""Number of learned lists. Eight save 18 % to 31 % of one list's misses in mixed traffic."""

FLOOR_SHARE = 0.75
"""Share of a shared vocabulary that is pinned to the tokens of the most texts."""

TEXTS_PER_FLOOR = 8
"""Number of requests after which the pinned tokens of a shared vocabulary are chosen anew."""

PROMPT_SHARE = 1 / 6
"""Share of a shared vocabulary that one prompt may take, its newest tokens.

So a long prompt does not evict what the other requests use (docs/policy.md).
"""
