# SPDX-License-Identifier: Apache-2.0
"""The reference for EngineHead in Python and float64, and the inputs of its tests.

The reference is an LRU over rows and the logits of those rows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from generators import integers
from lru import Lru
from torch import Tensor

from microspec_kernels.engine import EngineHead

V, ROWS, DIM = 60, 41, 16
# Ids that are no tokens of the target and lie outside any table.
STRANGE = (-1, -7, V, V + 1, 2**31 - 1, -(2**31))
# A head with fewer rows than the target has tokens, in random order.
ROW_TOKENS = torch.randperm(V, generator=torch.Generator().manual_seed(5))[:ROWS]

# The quantised value of a slab row's largest element.
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}

MODES: list[dict[str, Any]] = [
    {"mode": "indexed"},
    {"mode": "packed"},
    {"mode": "packed", "slab_dtype": "int8"},
    {"mode": "packed", "slab_dtype": "float8_e4m3fn"},
]


def weight_of(dtype: torch.dtype, slab: str | None = None, rows: int = V, seed: int = 1) -> Tensor:
    """Draw small integers [rows, DIM], so that every logit is exact and ties are frequent.

    With `slab` the logits are exact in a slab of that dtype, too: column 0 holds each row's largest
    value, which makes the row's scale 1. `hidden_of` has 0 in that column.
    """
    weight = integers(torch.Generator().manual_seed(seed), (rows, DIM), dtype)
    if slab is not None:
        weight[:, 0] = LARGEST[slab]
    return weight


def hidden_of(rng: torch.Generator, count: int, dtype: torch.dtype) -> Tensor:
    hidden = integers(rng, (count, DIM), dtype)
    hidden[:, 0] = 0
    return hidden


class Wanted:
    """The expected state: one vocabulary per group, and the counts."""

    def __init__(
        self,
        weight: Tensor,
        capacity: int,
        *,
        num_groups: int = 1,
        row_tokens: Tensor | None = None,
        frequent_tokens: Sequence[int] = (),
    ) -> None:
        tokens = range(len(weight)) if row_tokens is None else row_tokens.tolist()
        self.token_of = dict(enumerate(tokens))
        self.row_of = {token: row for row, token in self.token_of.items()}
        self.weight, self.capacity = weight.double(), min(capacity, len(weight))
        rows = [self.row_of[token] for token in frequent_tokens if token in self.row_of]
        self.frequent_tokens = rows[: self.capacity][
            ::-1
        ]  # the likeliest token is the last to be evicted
        self.lru = [self.fresh() for _ in range(num_groups)]
        self.hits = self.misses = 0

    def fresh(self) -> Lru:
        lru = Lru(self.capacity)
        lru.see(self.frequent_tokens)
        return lru

    def step(self, tokens: Sequence[int], groups: Sequence[int]) -> None:
        pairs = [(t, g) for t, g in zip(tokens, groups, strict=True) if g >= 0]
        before = [set(lru.tokens) for lru in self.lru]
        for token, group in pairs:
            row = self.row_of.get(token, -1)
            self.hits += row in before[group]
            self.misses += row >= 0 and row not in before[group]
        for token, group in pairs:
            self.lru[group].see([self.row_of.get(token, -1)])

    def begin(self, groups: Sequence[int]) -> None:
        for group in groups:
            self.lru[group] = self.fresh()

    def topk(self, hidden: Tensor, k: int, group: int) -> tuple[list[float], list[int], float]:
        """Return logits, tokens and logsumexp of one row of hidden; ties are in order of rows."""
        if group < 0:
            return [-math.inf] * k, [-1] * k, -math.inf
        logits = self.weight @ hidden.double()
        rows = sorted(self.lru[group].tokens, key=lambda row: (-float(logits[row]), row))
        everything = logits[torch.tensor(rows, dtype=torch.int64)]
        found = [(float(logits[row]), self.token_of[row]) for row in rows[:k]]
        found += [(-math.inf, -1)] * (k - len(found))
        total = float(everything.logsumexp(0)) if rows else -math.inf
        return [z for z, _ in found], [t for _, t in found], total

    def check(self, head: EngineHead, hidden: Tensor, groups: Sequence[int], where: str) -> None:
        row_groups = torch.tensor(groups) if head.vocab.num_groups > 1 else None
        for k in (1, 4):
            got = head.topk(hidden, k, row_groups)
            assert [part.dtype for part in got] == [torch.float32, torch.int64, torch.float32]
            for row, group in enumerate(groups):
                logits, tokens, logsumexp = self.topk(hidden[row], k, group)
                assert got[1][row].tolist() == tokens, f"{where}, row {row}"
                assert got[0][row].tolist() == logits, f"{where}, row {row}"
                assert math.isclose(float(got[2][row]), logsumexp, rel_tol=1e-6, abs_tol=1e-5)
        best = [max(0, self.topk(row, 1, g)[1][0]) for row, g in zip(hidden, groups, strict=True)]
        assert head.argmax(hidden, row_groups).tolist() == best, where
        assert head.argmax(hidden, row_groups).dtype == torch.int64
        active: dict[str, Any] = {"active": sum(len(lru.tokens) for lru in self.lru)}
        figures = {"hits": self.hits, "misses": self.misses, "dense_steps": 0, **active}
        found = head.stats()
        assert found is not None and found._asdict() == figures, where


def frequent_tokens_file(tmp_path: Any, tokens: list[int]) -> str:
    path = tmp_path / "frequent.npy"
    np.save(path, np.array(tokens, dtype=np.int64))
    return str(path)


def state_of(head: EngineHead) -> list[Tensor]:
    """Return all tensors that a captured graph may have read, at any depth of the object."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value).__module__.startswith("microspec_kernels") and id(value) not in seen:
            seen.add(id(value))
            for name, part in sorted(vars(value).items()):
                parts = part.values() if name in ("_buffers", "_modules") else [part]
                for each in parts:
                    visit(each)

    visit(head)
    return found
