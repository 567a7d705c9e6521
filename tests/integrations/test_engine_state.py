# SPDX-License-Identifier: Apache-2.0
"""EngineHead's state: resets, reads by captured graphs, and no waits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.engine import EngineHead, EngineStats, Settings

from .engine_reference import (
    DIM,
    MODES,
    ROW_TOKENS,
    ROWS,
    V,
    Wanted,
    frequent_tokens_file,
    hidden_of,
    state_of,
    weight_of,
)


@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
def test_a_weight_that_changed_in_place(options: dict[str, Any]) -> None:
    settings = Settings(learn=False, **options)
    slab = settings.slab_dtype
    weight = weight_of(torch.float32, slab)
    head = EngineHead(weight, settings, num_groups=2)
    tokens = torch.arange(0, V, 2)
    groups = (tokens > 30).long()
    head.observe(tokens, groups)
    wanted = Wanted(weight, V, num_groups=2)
    wanted.step(tokens.tolist(), groups.tolist())
    hidden = hidden_of(torch.Generator().manual_seed(8), 6, torch.float32)
    addresses = [tensor.data_ptr() for tensor in state_of(head)]
    rows = [0, 1, 0, -1, 1, 1]
    wanted.check(head, hidden, rows, "before")
    weight.copy_(weight_of(torch.float32, slab, seed=2))
    wanted.weight = weight.double()
    if head.settings.mode == "packed":
        with pytest.raises(AssertionError):
            wanted.check(head, hidden, rows, "a slab of the old weight")
    head.reload()
    wanted.check(head, hidden, rows, "after")
    assert [tensor.data_ptr() for tensor in state_of(head)] == addresses


def test_a_slab_takes_no_more_than_its_rows() -> None:
    """A second buffer would double the memory and the gathered rows."""
    head = EngineHead(
        weight_of(torch.bfloat16), Settings(learn=False, capacity=8, mode="packed"), num_groups=2
    )
    assert head.head.slab.rows.shape == (2, 8, DIM)  # type: ignore[union-attr]


@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_inference_mode(made_inside: bool, mode: Any) -> None:
    """Engines make the head while models load, and use it in inference mode."""
    weight = torch.nn.Parameter(weight_of(torch.float32))
    with torch.inference_mode(made_inside):
        head = EngineHead(weight, Settings(learn=False, capacity=8, mode=mode), num_groups=2)
    with torch.inference_mode():
        tokens, groups = torch.tensor([3, 4]), torch.tensor([0, 1])
        head.observe(tokens, groups)
        head.begin([0], [tokens[:0]])
        head.reload()
        assert head.argmax(torch.ones(2, DIM), groups).tolist() == [0, 4]
        assert head.stats() == EngineStats(hits=0, misses=2, active=1)


@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("num_groups", [1, 2])
def test_reset(options: dict[str, Any], num_groups: int, tmp_path: Any) -> None:
    """Vocabularies, stats and slab equal those of a new head, at the same addresses."""
    settings = Settings(
        learn=False,
        capacity=8,
        frequent_tokens_file=frequent_tokens_file(tmp_path, [5, 9, 2]),
        **options,
    )
    weight = weight_of(torch.float32, settings.slab_dtype)
    head, fresh = (EngineHead(weight, settings, num_groups=num_groups) for _ in range(2))
    addresses = [tensor.data_ptr() for tensor in state_of(head)]
    tokens, which = torch.arange(20, 40), torch.arange(20) % num_groups
    token_groups = which if num_groups > 1 else None
    head.observe(tokens, token_groups)
    assert head.stats() != fresh.stats()
    head.reset()
    assert head.stats() == fresh.stats() == EngineStats(0, 0, active=3 * num_groups)
    hidden = hidden_of(torch.Generator().manual_seed(4), 6, torch.float32)
    rows = torch.arange(6) % num_groups if num_groups > 1 else None
    for got, want in zip(head.topk(hidden, 5, rows), fresh.topk(hidden, 5, rows), strict=True):
        assert torch.equal(got, want)
    for name, want in fresh.vocab.state_dict().items():
        assert torch.equal(head.vocab.state_dict()[name], want), name
    assert [tensor.data_ptr() for tensor in state_of(head)] == addresses


class Late:
    """A copy that, like one from a GPU, delivers the previous call's values."""

    def __init__(self) -> None:
        self.on_its_way: Tensor | None = None

    def poll(self, value: Tensor) -> Tensor | None:
        arrived, self.on_its_way = self.on_its_way, value.clone()
        return arrived


def test_no_stats_of_before_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microspec_kernels.engine.head.HostCopy", Late)
    head = EngineHead(weight_of(torch.float32), Settings(learn=False))
    head.observe(torch.tensor([3, 4]))
    assert head.stats() is None
    head.reset()
    assert head.stats() is None
    assert head.stats() == EngineStats(0, 0, 0)


class Recorder:
    """Record the tensors that would be copied to the host."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def poll(self, value: Tensor) -> None:
        self.values.append(value)


def test_nothing_waits_for_the_device() -> None:
    """A meta tensor has no value to wait for."""
    head = EngineHead(
        weight_of(torch.float32, rows=ROWS),
        Settings(learn=False),
        num_groups=2,
        target_vocab_size=V,
        row_tokens=ROW_TOKENS,
    )
    owners = (head, head.vocab, head.token_map, head.tally)
    for owner in owners:
        for name, value in vars(owner).items():
            if isinstance(value, Tensor):
                setattr(owner, name, value.to("meta"))
    head.head.to("meta")
    recorder = Recorder()
    head._host_copy = recorder  # type: ignore[assignment]
    tokens = torch.zeros(7, dtype=torch.int64, device="meta")
    groups = torch.zeros(7, dtype=torch.int32, device="meta")
    head.observe(tokens, groups)
    likeliest = head.top_target_tokens(torch.zeros(7, V, device="meta"))
    both = torch.zeros(28, dtype=torch.int64, device="meta")
    head.observe(tokens[:, None], both, lengths=groups, candidates=likeliest)
    head.begin([0], [tokens])
    assert head.argmax(torch.zeros(7, DIM, device="meta"), groups).device.type == "meta"
    assert head.stats() is None, "none has arrived"
    assert [(value.shape, value.device.type) for value in recorder.values] == [((3,), "meta")]
