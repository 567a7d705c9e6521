# SPDX-License-Identifier: Apache-2.0
"""WeightSlab: the front always equals the vocabulary, and an old front stays valid for readers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from backends_under_test import COMPILED, CPU
from compare import assert_bitwise
from generators import QUANTISED, normal, row_indexed
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels import ActiveVocab, SlabView, WeightSlab, reference, sparse_head
from microspec_kernels.slab import _SideStream

pytestmark = pytest.mark.backends(*COMPILED)

V, K, D = 30, 8, 5
WEIGHT = normal(torch.Generator().manual_seed(0), (V, D), torch.float32)


def rows_of(view: SlabView, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the ids, rows (as bytes if fp8) and scales of the view's group ids."""
    scale = None if view.scale is None else view.scale[group_ids]
    return view.ids[group_ids], row_indexed(view.rows)[group_ids], scale


def assert_front_is(slab: WeightSlab, weight: Tensor, scale: Tensor | None = None) -> None:
    vocab = slab.vocab
    view = slab.front(torch.arange(vocab.num_groups))
    ids, rows, slab_scale = rows_of(view, view.group_ids)
    assert_bitwise(ids, vocab.ids, "ids")
    held = vocab.ids >= 0
    tokens = vocab.ids[held].long()
    want, want_scale = row_indexed(weight)[tokens], None if scale is None else scale[tokens]
    if slab.rows.dtype != weight.dtype:
        quantised, want_scale = reference.quantise_rows(weight[tokens], slab.rows.dtype)
        want = row_indexed(quantised)
    assert_bitwise(rows[held], want, "rows")
    assert (slab_scale is None) == (want_scale is None)
    if slab_scale is not None and want_scale is not None:
        assert_bitwise(slab_scale[held], want_scale, "scale")


def random_tokens(rng: torch.Generator, num_groups: int) -> Tensor:
    n = int(torch.randint(0, 12, (1,), generator=rng))
    return torch.randint(-1, V, (num_groups, n), generator=rng)


@given(
    num_groups=st.integers(1, 3),
    buffers=st.sampled_from((1, 2)),
    dtype=st.sampled_from((None, *QUANTISED)),
    seed=st.integers(0, 9999),
)
def test_front_follows_the_vocabulary(
    num_groups: int, buffers: int, dtype: torch.dtype | None, seed: int
) -> None:
    vocab = ActiveVocab(V, K, num_groups=num_groups, pinned=[4])
    slab = WeightSlab(WEIGHT, vocab, dtype=dtype, buffers=buffers)
    rng = torch.Generator().manual_seed(seed)
    for step in range(7):
        for _ in range(step % 3):  # zero to two updates between refreshes
            vocab.update(random_tokens(rng, num_groups))
        old = slab.front(torch.arange(num_groups))
        before = [None if t is None else t.clone() for t in rows_of(old, old.group_ids)]
        vocab.update(random_tokens(rng, num_groups))
        # The vocabulary has changed; the front has not.
        for now, then in zip(rows_of(old, old.group_ids), before, strict=True):
            assert (now is None) == (then is None)
            if now is not None and then is not None:
                assert_bitwise(now, then, "before the refresh")
        slab.refresh()
        assert_front_is(slab, WEIGHT)
        if buffers == 2:
            for now, then in zip(rows_of(old, old.group_ids), before, strict=True):
                if now is not None and then is not None:
                    assert_bitwise(now, then, "the old front, after the refresh")


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize("buffers", [1, 2])
def test_a_refresh_is_of_the_vocabulary_as_it_was_when_it_was_asked_for(
    buffers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the copy starts when its stream reaches it: here after another update."""
    vocab = ActiveVocab(V, K, num_groups=2)
    slab = WeightSlab(WEIGHT, vocab, buffers=buffers)
    vocab.update(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    asked, used = vocab.ids.clone(), []

    @contextmanager
    def later(*tensors: Tensor) -> Iterator[None]:
        vocab.update(torch.tensor([[7, 8, 9], [10, 11, 12]]))
        used.extend(tensors)
        yield

    monkeypatch.setattr(slab._side_stream, "run", later)
    slab.refresh()
    view = slab.front(torch.arange(2))
    ids, rows, _ = rows_of(view, view.group_ids)
    assert_bitwise(ids, asked, "ids")
    assert_bitwise(rows[asked >= 0], WEIGHT[asked[asked >= 0].long()], "rows")
    (kept,) = used
    assert kept.data_ptr() != vocab.ids.data_ptr() and torch.equal(kept, asked), "kept until then"


class FakeCuda:
    """Record PyTorch's calls for streams and events, and whether a graph is being captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.capturing = False
        say = self.said.append
        current = SimpleNamespace(wait_event=lambda event: say(f"current waits for {event}"))
        self.side = SimpleNamespace(
            wait_stream=lambda other: say(f"side waits for current: {other is current}"),
            record_event=lambda event=None: say("side records") or event or "event",
        )

        @contextmanager
        def on(stream: object) -> Iterator[None]:
            say(f"on side: {stream is self.side}")
            yield
            say("off side")

        monkeypatch.setattr(torch.cuda, "Event", lambda external: "external")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
        monkeypatch.setattr(torch.cuda, "stream", on)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)


@pytest.mark.backends(*CPU)
def test_work_beside_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side work follows earlier work and keeps its tensors; the test checks who waits for it."""
    cuda = FakeCuda(monkeypatch)
    kept = SimpleNamespace(record_stream=lambda stream: cuda.said.append(f"kept: {stream}"))
    side = _SideStream(torch.device("cuda"), cuda.side)  # type: ignore[arg-type]
    side.wait()
    assert cuda.said == [], "nothing to wait for yet"
    ran = [
        "side waits for current: True", "on side: True", "work", "side records", "off side",
        f"kept: {cuda.side}",
    ]  # fmt: skip
    for captured in (False, True):
        cuda.capturing = captured
        with side.run(kept):  # type: ignore[arg-type]
            cuda.said.append("work")
        assert cuda.said == ran
        cuda.said.clear()
        for capturing in (True, False):
            cuda.capturing = capturing
            side.wait()
            event = "event" if captured else "external"
            assert cuda.said == [f"current waits for {event}"] * (capturing or not captured)
            cuda.said.clear()


@pytest.mark.backends(*CPU)
def test_what_reads_or_writes_the_rows_waits_for_the_copying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slab = WeightSlab(WEIGHT, ActiveVocab(V, K))
    slab.ids.fill_(7)
    seen: list[Tensor] = []
    monkeypatch.setattr(slab._side_stream, "wait", lambda: seen.append(slab.ids.clone()))
    slab.front()
    slab.wait()
    slab.invalidate()
    assert len(seen) == 3 and all(ids.eq(7).all() for ids in seen), "before, not after"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("num_groups", [1, 2, 3, 4, 6, 8])
def test_group_ids_point_into_the_front_buffer(num_groups: int, dtype: torch.dtype) -> None:
    vocab = ActiveVocab(V, K, num_groups=num_groups)
    slab = WeightSlab(WEIGHT, vocab, buffers=2)
    groups = torch.tensor([num_groups - 1, -1, 0, *range(num_groups)], dtype=dtype)
    seen = set()
    for _ in range(3):
        slab.refresh()
        view = slab.front(groups)
        base = int(view.group_ids[2])
        assert view.group_ids.tolist() == [g + base if g >= 0 else -1 for g in groups.tolist()]
        assert slab.front().group_ids.tolist() == [base]
        assert slab.front(groups[0]).group_ids.shape == ()
        seen.add(base)
    assert seen == {0, num_groups}
    assert view.rows.shape == (2 * num_groups, K, D)
    assert view.ids.shape == (2 * num_groups, K)


def test_view_is_what_the_head_takes() -> None:
    """Each group has its own tokens and padding, through both buffers."""
    vocab = ActiveVocab(V, K, num_groups=2)
    slab = WeightSlab(WEIGHT, vocab, dtype=torch.int8)
    hidden = torch.randn(5, D)
    groups = torch.tensor([1, 0, -1, 1, 0])
    for tokens in ([[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [1, 2, 3]], [[20, 21, 22], [23, 24, 25]]):
        vocab.update(torch.tensor(tokens))
        slab.refresh()
        rows, ids, scale, at = slab.front(groups)
        top = sparse_head(hidden, rows, ids, K, packed=True, group_ids=at, weight_scale=scale)
        for row, group in enumerate(groups.tolist()):
            found = {t for t in top[1][row].tolist() if t >= 0}
            assert found == (
                set(vocab.ids[group][vocab.ids[group] >= 0].tolist()) if group >= 0 else set()
            )


@pytest.mark.parametrize("buffers", [1, 2])
def test_only_changed_rows_are_copied(buffers: int) -> None:
    """The weight changes without notice: rows that stay keep their old values."""
    vocab, weight = ActiveVocab(V, K), WEIGHT.clone()
    slab = WeightSlab(weight, vocab, buffers=buffers)
    vocab.update(torch.arange(6))
    for _ in range(buffers):
        slab.refresh()
    weight += 1
    vocab.update(torch.tensor([6]))
    slab.refresh()
    view = slab.front()
    rows = view.rows[0 if view.group_ids is None else view.group_ids[0]]
    assert_bitwise(rows[:6], WEIGHT[:6], "stayed")
    assert_bitwise(rows[6], WEIGHT[6] + 1, "came")
    slab.invalidate()
    assert slab.ids.eq(-1).all(), "nothing stale may be read"
    slab.refresh()
    assert_front_is(slab, weight)
    slab.refresh()
    assert_front_is(slab, weight)


@pytest.mark.parametrize("dtype", QUANTISED, ids=str)
def test_quantised_weight(dtype: torch.dtype) -> None:
    weight, scale = reference.quantise_rows(WEIGHT, dtype)
    vocab = ActiveVocab(V, K, num_groups=2)
    slab = WeightSlab(weight, vocab, weight_scale=scale)
    assert slab.rows.dtype == dtype
    for seed in range(4):
        vocab.update(random_tokens(torch.Generator().manual_seed(seed), 2))
        slab.refresh()
        assert_front_is(slab, weight, scale)


@pytest.mark.backends(*CPU)
def test_a_weight_elsewhere_has_to_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = ActiveVocab(V, K)
    elsewhere.ids = elsewhere.ids.to("meta")
    expected = "weight: expected a tensor on meta or in pinned host memory, got one on cpu"
    with pytest.raises(ValueError, match=f"WeightSlab: {expected}"):
        WeightSlab(WEIGHT, elsewhere)
    monkeypatch.setattr(Tensor, "is_pinned", lambda self: self is WEIGHT)
    assert WeightSlab(WEIGHT, elsewhere).rows.device.type == "meta"


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (WEIGHT[1:], {}, f"weight: expected shape [{V}, D], got [{V - 1}, {D}]"),
        (WEIGHT[0], {}, f"weight: expected shape [{V}, D], got [{D}]"),
        (WEIGHT, {"buffers": 3}, "buffers: expected 1 or 2, got 3"),
        (WEIGHT, {"buffers": 0}, "buffers: expected 1 or 2, got 0"),
    ],
)
def test_wrong_construction(weight: Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"WeightSlab: {message}")):
        WeightSlab(weight, ActiveVocab(V, K), **options)  # type: ignore[arg-type]
