# SPDX-License-Identifier: Apache-2.0
"""EngineHead in an engine: one captured graph of the head, tokens observed between replays."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from compare import assert_bitwise, assert_close
from integrations.engine_reference import ROW_TOKENS, ROWS, STRANGE, V, hidden_of, weight_of
from parallel_worker import rounding_of

from microspec_kernels.engine import EngineHead, EngineStats, Settings

from .test_graphs import captured

DEVICE = "cuda"
STEPS, BEST, HIDDEN = 400, 4, 6
MODES: list[dict[str, Any]] = [
    {"mode": "indexed"},
    {"mode": "packed"},
    {"mode": "packed", "slab_dtype": "int8"},
]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise an error for every call that would wait for the device, inside the context."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def delay_copies(head: EngineHead, cycles: int) -> None:
    """Keep the stream busy on which rows are gathered."""
    if head.head.slab is not None:
        with torch.cuda.stream(head.head.slab.stream):
            torch.cuda._sleep(cycles)


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
def test_one_graph_serves_every_step(
    options: dict[str, Any], num_groups: int, tmp_path: Any
) -> None:
    """Each replay equals the head on the CPU, which tests/integrations tests."""
    rng = torch.Generator().manual_seed(num_groups)
    path = tmp_path / "frequent.npy"
    np.save(path, torch.randperm(V, generator=rng)[:20].numpy())
    settings = Settings(capacity=12, frequent_tokens_file=str(path), num_lists=2, **options)
    weight = weight_of(torch.bfloat16, settings.slab_dtype, ROWS)
    there_weight = weight.to(DEVICE)
    of_draft: dict[str, Any] = {
        "target_vocab_size": V,
        "row_tokens": ROW_TOKENS,
        "num_groups": num_groups,
    }
    here = EngineHead(weight, settings, **of_draft)
    there = EngineHead(there_weight, settings, **of_draft)

    hidden = torch.zeros(HIDDEN, weight.size(1), dtype=weight.dtype, device=DEVICE)
    rows = torch.zeros(HIDDEN, dtype=torch.int64, device=DEVICE)
    results = (
        torch.empty(HIDDEN, BEST, device=DEVICE),
        torch.empty(HIDDEN, BEST, dtype=torch.int64, device=DEVICE),
        torch.empty(HIDDEN, device=DEVICE),
        torch.empty(HIDDEN, dtype=torch.int64, device=DEVICE),
    )

    def step() -> None:
        row_groups = rows if num_groups > 1 else None
        drafted = (*there.topk(hidden, BEST, row_groups), there.argmax(hidden, row_groups))
        for result, value in zip(results, drafted, strict=True):
            result.copy_(value)

    replay = captured(step)
    for index in range(STEPS):
        tokens = torch.randint(0, V, (8,), generator=rng)
        tokens[index % 8] = STRANGE[index % len(STRANGE)]
        which = torch.randint(-1, num_groups, (8,), generator=rng) if num_groups > 1 else None
        now = hidden_of(rng, HIDDEN, weight.dtype)
        low = -1 if num_groups > 1 else 0
        rows_now = torch.randint(low, num_groups, (HIDDEN,), generator=rng)
        hidden.copy_(now)
        rows.copy_(rows_now)
        there_tokens = tokens.to(DEVICE)
        there_which = None if which is None else which.to(DEVICE)
        with no_waiting():
            # The graph has to wait for the gather: a tenth of a millisecond, at times.
            delay_copies(there, 200_000 * (index % 3 == 0))
            there.observe(there_tokens, there_which)
            there.stats()
            replay()
        here.observe(tokens.where((tokens >= 0) & (tokens < V), -1), which)
        row_groups = rows_now if num_groups > 1 else None
        logits, token_ids, logsumexp = here.topk(now, BEST, row_groups)
        assert_bitwise(results[0].cpu() + 0.0, logits + 0.0, f"step {index}: logits")
        assert_bitwise(results[1].cpu(), token_ids, f"step {index}: token_ids")
        assert_close(results[2].cpu(), logsumexp, rounding_of(logsumexp), f"step {index}: sums")
        assert_bitwise(results[3].cpu(), here.argmax(now, row_groups), f"step {index}: argmax")
        if index % 50 == 25:
            prompt = torch.randint(0, V, (9,), generator=rng)
            with no_waiting():
                there.begin([0], [prompt])
            here.begin([0], [prompt])
        if index % 100 == 75:
            weight.copy_(weight_of(weight.dtype, settings.slab_dtype, ROWS, seed=index))
            there_weight.copy_(weight)
            here.reload()
            there.reload()
    there.stats()
    torch.cuda.synchronize()
    found = there.stats()
    assert found == here.stats()
    assert found is not None and found.hits > 0 < found.misses


def test_stats_arrive_without_being_waited_for() -> None:
    head = EngineHead(weight_of(torch.bfloat16).to(DEVICE), Settings(capacity=8, learn=False))
    assert head.stats() is None
    head.observe(torch.arange(3, device=DEVICE))
    torch.cuda.synchronize()
    first = head.stats()
    torch.cuda.synchronize()
    second = head.stats()
    assert first is not None and first.active == 0, "as it was when it was asked for"
    assert second is not None and (second.misses, second.active) == (3, 3)
    head.reset()
    assert head.stats() is None, "what was on its way is of before"
    torch.cuda.synchronize()
    assert head.stats() == EngineStats(0, 0, 0)
