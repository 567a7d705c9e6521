# SPDX-License-Identifier: Apache-2.0
"""The calls of a benchmark: different data each time, and the work between them."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import microspec_kernels as mk
from bench.decoding import batches_head
from bench.harness import cuda_graphs, models
from bench.harness.bandwidth import ReadBandwidth
from bench.harness.head_check import HeadArm
from bench.harness.inputs import make_weight
from bench.ops import gather, time_head, vocab
from bench.ops.time_head import CallTiming, GraphTiming
from microspec_kernels import ops
from microspec_kernels.timing import Percentiles, percentiles

CALLS = 4
TIMES = percentiles([1.0, 2.0, 3.0])


class Times:
    """A stand-in for ``time_arms``: it calls each arm in a few rounds, after `before`."""

    def __init__(self, calls: int = CALLS) -> None:
        self.calls, self.names = calls, list[str]()

    def __call__(
        self,
        arms: Mapping[str, Callable[[], object]],
        rounds: int,
        before: Callable[[str], object] = lambda name: None,
    ) -> dict[str, Percentiles]:
        for _ in range(self.calls):
            for name, call in arms.items():
                before(name)
                call()
                self.names.append(name)
        return dict.fromkeys(arms, TIMES)


def test_each_gather_brings_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[int] = []

    def noted(slab: Tensor, held: Tensor, weight: Tensor, wanted: Tensor, **more: Any) -> None:
        changed.append(int((held != wanted).sum()))
        ops.gather_rows_(slab, held, weight, wanted, **more)

    monkeypatch.setattr(gather, "VOCAB_SIZE", 40_000)
    monkeypatch.setattr(mk, "gather_rows_", noted)
    monkeypatch.setattr(gather, "time_arms", Times())
    rows = gather.on_cpu(quick=True)
    assert len(changed) == CALLS * len(rows) == 2 * CALLS
    assert all(0.9 * gather.CHANGED < n <= gather.CHANGED for n in changed[len(rows) :])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_each_gather_of_a_graph_brings_other_rows(dtype: torch.dtype) -> None:
    arm = gather.Gather(make_weight(4000, 16), 300, 64, dtype)
    arm()
    seen = [arm.held.clone()]
    for _ in range(len(arm.wanted)):
        arm()
        assert int((arm.held != seen[-1]).sum()) == 64
        seen.append(arm.held.clone())
    assert torch.equal(seen[-1], seen[0]) and len(arm.wanted) == len(seen) - 1
    assert arm.bytes() == 64 * 16 * (2 + dtype.itemsize) + 2 * 300 * 4


def test_plain_copies_come_from_other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.arange(20).repeat_interleave(2).view(20, 2)
    target = torch.empty(4, 2, dtype=torch.int64)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: target)
    copy, seen = gather.plain_copy(weight, 4, 3), []
    for _ in range(4):
        copy()
        seen.append(target[:, 0].tolist())
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]


def test_new_tokens_are_new_and_active_ones_active(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    update = mk.ActiveVocab.update

    def noted(self: mk.ActiveVocab, tokens: Tensor, **more: Any) -> None:
        shares.append(float(self.contains(tokens).double().mean()))
        update(self, tokens, **more)

    monkeypatch.setattr(mk.ActiveVocab, "update", noted)
    times = Times(CALLS)
    monkeypatch.setattr(vocab, "time_arms", times)
    vocab.on_cpu(quick=True)
    updates = [name for name in times.names if name.startswith("vocab_update_")]
    taken = list(zip(updates, shares[1:], strict=True))
    new = [share for name, share in taken if name.endswith("all new")]
    active = [share for name, share in taken if name.endswith("all active")]
    assert len(new) == len(active) == CALLS
    assert max(new) < 0.1 and active[1:] == [1.0] * (CALLS - 1)


@pytest.mark.parametrize("new", [True, False])
def test_a_graph_s_tokens_are_all_new_or_all_active(new: bool) -> None:
    arm = vocab.Update(64 * 300 + 3000, 900, new, "cpu")
    for _ in arm.sets:  # the initial tokens have left
        arm()
    for tokens in arm.sets:
        assert len(tokens.unique()) == len(tokens) == vocab.TOKENS
        assert arm.vocab.contains(tokens).float().mean() == (not new)
        arm()


def test_a_graph_that_does_not_update_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = cuda_graphs.Replay(lambda: None, vocab.Update.CALLS, None)
    with pytest.raises(AssertionError, match="vocab_update_"):
        vocab.Update(20_000, 900, True, "cpu").check(idle)

    def refuses(*_: Any) -> None:
        raise KeyError("checked")

    for module, kind in ((vocab, vocab.Update), (gather, gather.Gather)):
        monkeypatch.setattr(kind, "check", refuses)
        with pytest.raises(KeyError, match="checked"):
            module.on_gpu(quick=True, rounds=1, device="cpu")


def test_every_call_of_a_batch_reads_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Tensor] = []

    def noted(hidden: Tensor, weight: Tensor, ids: Tensor, *more: Any, **options: Any) -> Any:
        used.append(ids)
        return ops_head(hidden, weight, ids, *more, **options)

    ops_head = ops.sparse_head
    times = Times(batches_head.SETS)
    monkeypatch.setattr(batches_head, "check", lambda *_: None)
    monkeypatch.setattr(batches_head.ops, "sparse_head", noted)
    monkeypatch.setattr(batches_head, "time_arms", times)
    batches_head.measure("cpu", quick=True)
    for name in set(times.names):
        ids_of_arm = [ids for ids, called in zip(used, times.names, strict=True) if called == name]
        assert len({tuple(ids.flatten().tolist()) for ids in ids_of_arm}) == batches_head.SETS, name


def test_a_wrong_batch_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(hidden: Tensor, weight: Tensor, ids: Tensor, k: int, **options: Any) -> Any:
        logits, tokens, logsumexp = ops_head(hidden, weight, ids, k, **options)
        return logits, tokens.flip(0) if "group_ids" in options else tokens, logsumexp

    ops_head = ops.sparse_head
    monkeypatch.setattr(batches_head.ops, "sparse_head", wrong)
    monkeypatch.setattr(batches_head, "time_arms", Times())
    with pytest.raises(AssertionError, match="request 0 of 1 groups"):
        batches_head.measure("cpu", quick=True)


@pytest.mark.parametrize(
    ("situation", "goes_before"), [("in situ", ["layer"]), ("repeated", ["arm"] * 3)]
)
def test_what_goes_before_a_call_on_a_cpu(
    situation: str, goes_before: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    arm = HeadArm(lambda: (order.append("arm"), torch.zeros(1))[1:], {}, 1000)
    monkeypatch.setattr(time_head, "arms_for", lambda *_, **__: {"arm": arm})
    monkeypatch.setattr(time_head, "validate", lambda *_: None)
    monkeypatch.setattr(time_head, "products", lambda *_: lambda: order.append("layer"))
    monkeypatch.setattr(time_head, "time_arms", Times(1))
    (row,) = time_head.measure(models.TOY, [(300, 1)], 1, CallTiming, situations=[situation])
    read = models.TOY.vocab_size * models.TOY.dim * 2 / 4 / TIMES.p50
    assert [word for word in order if word == "layer"] == ["layer"] * (
        2 if situation == "in situ" else 0
    )
    assert order[: len(goes_before) + 1] == [*goes_before, "arm"]
    assert row["read_GBps"] == pytest.approx(read / 1e9)
    assert row["floor_us"] == pytest.approx(1000 / read * 1e6)


def test_bandwidth_is_read_from_all_of_the_weight() -> None:
    weight = torch.ones(32, 64, dtype=torch.bfloat16)
    wide = weight.view(torch.float32)
    wide.copy_(torch.arange(32.0)[:, None].expand(-1, 32))
    read = ReadBandwidth(weight)
    assert read.bytes == weight.nbytes // 4
    sums = [float(read()) for _ in range(4)]
    assert len(set(sums)) == 4 and sum(sums) == wide.sum() and float(read()) == sums[0]


def test_in_situ_leaves_out_the_layer_s_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def known_times(
        replays: Mapping[str, cuda_graphs.Replay], rounds: int
    ) -> dict[str, list[float]]:
        layer = {time_head.LAYER: [2.0, 7.0, 3.0]}
        return {name: layer.get(name, [5.0, 9.0, 7.0]) for name in replays}

    monkeypatch.setattr(time_head, "time_rounds", known_times)
    rows = time_head.measure(models.TOY, [(300, 1)], 3, GraphTiming, ["packed int8"], device="cpu")
    times = {row["situation"]: [row[f"p{p}_us"] / 1e6 for p in (20, 50, 80)] for row in rows}
    whole, difference = pytest.approx([5, 7, 9]), pytest.approx([2, 3, 4])
    assert times == {"cold": whole, "warm": whole, "in situ": difference}


def test_the_layer_runs_between_the_calls() -> None:
    order: list[str] = []
    arm = HeadArm(lambda: (order.append("arm"), torch.zeros(1))[1:], {}, 0)
    time_head.replay_of(arm, 4, lambda: order.append("layer")).run()
    assert order[:4] == ["layer", "arm"] * 2
    assert set(order[::2]) == {"layer"} and set(order[1::2]) == {"arm"}
    order.clear()
    replay = time_head.replay_of(arm, 5, None)
    assert replay.calls >= time_head.CALLS and replay.calls % 5 == 0, "ends with the first set"


def test_what_a_replay_leaves_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.zeros(1, 2)
    arm = HeadArm(lambda: (), {}, 0)
    checked: list[list[float]] = []
    monkeypatch.setattr(time_head, "check", lambda *a: checked.append(a[3][0].tolist()))
    result = (torch.tensor([1.0, 2.0]),)
    replays = {
        "writes one": cuda_graphs.Replay(lambda: result[0][:1].fill_(5), 1, result),
        "from Python": cuda_graphs.Replay(lambda: None, 1, result, captured=False),
    }
    time_head.check_replays(dict.fromkeys(replays, arm), replays, hidden, 1e-4)
    assert checked == [[5.0, -7.0]], "nothing is left over of an earlier call"

    def refuses(*_: Any) -> None:
        raise KeyError("checked")

    monkeypatch.setattr(time_head, "check_replays", refuses)
    with pytest.raises(KeyError, match="checked"):
        time_head.measure(
            models.TOY, [(300, 1)], 1, GraphTiming, ["packed"], ["warm"], device="cpu"
        )
