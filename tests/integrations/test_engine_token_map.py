# SPDX-License-Identifier: Apache-2.0
"""EngineHead with a token map: the draft's rows are not the target's tokens one for one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.engine import EngineHead, EngineStats, Settings

from .engine_reference import (
    DIM,
    ROW_TOKENS,
    ROWS,
    V,
    frequent_tokens_file,
    weight_of,
)


def test_begins_with_the_frequent_tokens_that_the_draft_has(tmp_path: Any) -> None:
    """They fill the capacity; the rarest is evicted first."""
    absent = next(t for t in range(V) if t not in ROW_TOKENS.tolist())
    with_rows = ROW_TOKENS[:6].tolist()
    settings = Settings(
        capacity=4,
        learn=False,
        frequent_tokens_file=frequent_tokens_file(tmp_path, [absent, *with_rows]),
    )
    head = EngineHead(
        weight_of(torch.float32, rows=ROWS), settings, target_vocab_size=V, row_tokens=ROW_TOKENS
    )

    def active() -> set[int]:
        return {int(ROW_TOKENS[row]) for row in head.vocab.ids[0].tolist()}

    assert active() == set(with_rows[:4])
    head.observe(torch.tensor([with_rows[5]]))
    assert active() == {*with_rows[:3], with_rows[5]}
    assert head.stats() == EngineStats(hits=0, misses=1, active=4)


def test_a_list_that_the_draft_has_no_token_of(tmp_path: Any) -> None:
    message = (
        "frequent_tokens_file: expected at least one token that the draft has a row for, got none"
    )
    weight = weight_of(torch.float32, rows=ROWS)
    absent = sorted(set(range(V)) - set(ROW_TOKENS.tolist()))
    for tokens in ([], absent[:2]):
        settings = Settings(
            learn=False, frequent_tokens_file=frequent_tokens_file(tmp_path, tokens)
        )
        with pytest.raises(ValueError, match=message):
            EngineHead(weight, settings, target_vocab_size=V, row_tokens=ROW_TOKENS)


@pytest.mark.parametrize("token", [-1, V, 2**32 + 5])
def test_a_list_of_what_is_no_token(tmp_path: Any, token: int) -> None:
    settings = Settings(
        learn=False, frequent_tokens_file=frequent_tokens_file(tmp_path, [3, token])
    )
    message = rf"expected ids in \[0, {V}\), got {token} at position 1"
    with pytest.raises(ValueError, match=message):
        EngineHead(weight_of(torch.float32), settings)


def test_a_target_with_more_tokens_than_the_draft() -> None:
    """Without a map, the first rows are the first tokens, and the other tokens have none."""
    head = EngineHead(
        weight_of(torch.float32, rows=ROWS), Settings(learn=False), target_vocab_size=V
    )
    tokens = torch.tensor([ROWS - 1, ROWS, V - 1])
    head.observe(tokens)
    assert head.stats() == EngineStats(hits=0, misses=1, active=1)


def test_a_target_with_fewer_tokens_than_rows() -> None:
    """Padding rows of the head are never proposed."""
    head = EngineHead(weight_of(torch.float32), Settings(learn=False), target_vocab_size=ROWS)
    head.begin([0], [torch.arange(V)])
    assert head.stats() == EngineStats(hits=0, misses=0, active=ROWS)


@pytest.mark.parametrize(
    ("row_tokens", "kind", "message"),
    [
        (ROW_TOKENS[1:], ValueError, r"shape \[41\], got \[40\]"),
        (ROW_TOKENS[:, None], ValueError, r"shape \[41\], got \[41, 1\]"),
        (ROW_TOKENS.float(), TypeError, "integer ids, got float32"),
        (ROW_TOKENS > 3, TypeError, "integer ids, got bool"),
        (ROW_TOKENS - 1, ValueError, r"ids in \[0, 60\), got -1 at position 21"),
        (ROW_TOKENS + 1, ValueError, r"ids in \[0, 60\), got 60 at position \d+"),
        (ROW_TOKENS.clamp(min=7), ValueError, r"distinct ids, got 7 \d+ times"),
    ],
)
def test_a_map_that_is_none(row_tokens: Tensor, kind: type[Exception], message: str) -> None:
    assert 0 in ROW_TOKENS and V - 1 in ROW_TOKENS
    weight = weight_of(torch.float32, rows=ROWS)
    with pytest.raises(kind, match=f"^microspec: row_tokens: expected {message}$"):
        EngineHead(weight, Settings(learn=False), target_vocab_size=V, row_tokens=row_tokens)


def test_maps_of_any_integers() -> None:
    weight = weight_of(torch.float32, rows=ROWS)
    for dtype in (torch.int32, torch.int64, torch.int16):
        head = EngineHead(
            weight, Settings(learn=False), target_vocab_size=V, row_tokens=ROW_TOKENS.to(dtype)
        )
        head.observe(ROW_TOKENS[4:5])
        assert head.argmax(torch.ones(1, DIM)).tolist() == [int(ROW_TOKENS[4])]


def test_coverage_is_of_the_vocabulary_before() -> None:
    """Tokens without a row and -1 do not count."""
    head = EngineHead(
        weight_of(torch.float32, rows=ROWS),
        Settings(learn=False),
        target_vocab_size=V,
        row_tokens=ROW_TOKENS,
    )
    absent = [t for t in range(V) if t not in ROW_TOKENS.tolist()][:3]
    tokens = torch.tensor([*ROW_TOKENS[:5].tolist(), *absent, -1])
    stats = head.stats()
    assert stats is not None and stats.coverage is None
    head.observe(tokens)
    assert head.stats() == EngineStats(hits=0, misses=5, active=5)
    head.observe(tokens)
    stats = head.stats()
    assert stats == EngineStats(hits=5, misses=5, active=5)
    assert stats is not None and stats.coverage == 1 / 2
