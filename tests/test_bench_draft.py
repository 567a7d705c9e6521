# SPDX-License-Identifier: Apache-2.0
"""The draft's benchmark: its tree is EAGLE-2's, its layer an attention layer, its parts add up."""

import csv
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.draft import step as draft_step
from bench.draft.graph import RANGE, CapturableDraft, DraftShape
from bench.draft.heads import (
    DraftHead,
    NanoSpecDraftHead,
    ObservedTokens,
    SparseDraftHead,
    static_head,
)
from bench.draft.timeline import spans
from bench.harness import models
from bench.harness.draft_layer import DraftLayer
from bench.harness.inputs import make_weight
from bench.harness.sizes import K_BEST
from bench.ops.head_peers import PADDED
from microspec_kernels.speculative.tree import TreeShape, grow
from microspec_kernels.timing import percentiles

TOY, SHAPE, SEEN = models.TOY, DraftShape(), ObservedTokens(40, 16)
CAPACITY, CONTEXT = 300, 24


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return make_weight(TOY.vocab_size, TOY.dim)


@pytest.fixture(scope="module")
def layer(weight: Tensor) -> DraftLayer:
    return DraftLayer(TOY, weight, CONTEXT, SHAPE.drafted)


def test_the_tree_is_the_loops(weight: Tensor, layer: DraftLayer) -> None:
    """Compare with `speculative.tree.grow` over the same layer and head, with its own masks."""
    head = SparseDraftHead(TOY, weight, CAPACITY, SEEN)
    draft = CapturableDraft(layer, head, SHAPE, without=frozenset({"vocabulary"}))
    layer.model = TOY
    drafted = draft()

    features = torch.zeros(PADDED, TOY.dim).bfloat16()
    levels = iter(range(SHAPE.depth))

    def topk(hidden: Tensor, k: int, row_groups: Tensor) -> tuple[Tensor, ...]:
        features[: len(hidden)] = hidden
        return head.best(features, len(hidden))

    def step(
        level_tokens: Tensor, above: Tensor, positions: Tensor, seen: Tensor, cache: Any
    ) -> Tensor:
        level = next(levels)
        assert positions.tolist() == [[level]]
        mask = torch.full((level_tokens.size(1), SHAPE.drafted), -torch.inf)
        mask[:, : SHAPE.accepted] = 0
        # `grow` has the newest level first, and no text in this cache; the layer has it last.
        seen = seen[0].unflatten(1, (-1, K_BEST)).flip(1).flatten(1)
        mask[:, SHAPE.accepted :][:, : seen.size(1)].masked_fill_(seen, 0)
        out = torch.zeros(level_tokens.size(1), TOY.dim).bfloat16()
        first = SHAPE.accepted + level * K_BEST
        layer(level_tokens[0], above[0], first, SHAPE.accepted + level, mask, out)
        return out[None]

    text = torch.zeros(SHAPE.accepted, TOY.dim).bfloat16()
    layer(draft.text, draft.text_features, 0, 0, draft.text_mask, text)
    cache: Any = SimpleNamespace(
        ahead=lambda count: torch.arange(count)[None],
        mask=lambda: torch.zeros(1, 1, 0, dtype=torch.bool),
        alone=lambda count: torch.eye(count, dtype=torch.bool)[None],
        drop=lambda: None,
    )
    tree = grow(
        draft.root,
        text[-1:],
        torch.tensor([0]),
        SimpleNamespace(step=step, head_input=lambda features: features),  # type: ignore[arg-type]
        cache,
        SimpleNamespace(topk=topk),  # type: ignore[arg-type]
        TreeShape(SHAPE.depth, K_BEST, SHAPE.size),
        lambda part: nullcontext(),  # type: ignore[arg-type,return-value]
    )
    assert tree.tokens.shape == (1, SHAPE.size + 1)
    for got, want in zip(drafted, vars(tree).values(), strict=True):
        assert torch.equal(got, want)


def test_the_layer_is_attention_over_context_and_tree(layer: DraftLayer) -> None:
    """Compare in fp32, with every key for every query head and one mask over all."""
    n, first = 5, 8
    tokens, features = torch.randint(TOY.vocab_size, (n,)), torch.randn(n, TOY.dim).bfloat16()
    mask = torch.where(torch.rand(n, SHAPE.drafted) < 0.5, 0.0, -torch.inf)
    mask[:, first : first + n] = torch.full((n, n), -torch.inf).fill_diagonal_(0)
    out = torch.zeros(n, TOY.dim).bfloat16()
    layer(tokens, features, first, 3, mask, out)

    fc, qkv, o, gate_up, down = (
        w.float() for w in (layer.fc, layer.qkv, layer.out, layer.gate_up, layer.down)
    )
    x = torch.cat((layer.embedding[tokens], features), 1).float() @ fc.T
    q = (x @ qkv.T).view(n, -1, TOY.head_dim)[:, : TOY.heads]
    angle = layer.cos[CONTEXT + 3].float(), layer.sin[CONTEXT + 3].float()
    half = TOY.head_dim // 2
    q = q * angle[0] + torch.cat((-q[..., half:], q[..., :half]), -1) * angle[1]
    keys, values = (
        t.float().repeat_interleave(TOY.heads // TOY.kv_heads, 0)
        for t in (layer.keys, layer.values)
    )
    every = torch.cat((torch.zeros(n, CONTEXT), mask), 1)
    mixed = F.scaled_dot_product_attention(q.transpose(0, 1), keys, values, every)
    x = x + mixed.transpose(0, 1).flatten(1) @ o.T
    gate, up = (F.rms_norm(x, (TOY.dim,), eps=1e-5) @ gate_up.T).chunk(2, -1)
    want = x + (F.silu(gate) * up) @ down.T
    assert torch.nn.functional.cosine_similarity(out.float(), want, dim=1).min() > 0.9995
    assert (out.float() - want).abs().max() < 0.03 * want.abs().max()


def every_head(weight: Tensor) -> dict[str, DraftHead]:
    makers = draft_step.heads(TOY, weight, CAPACITY, SEEN, more=True, triton=False)
    return {name: make() for name, (make, _) in makers.items()}


def test_every_head_is_right_after_many_steps(weight: Tensor, layer: DraftLayer) -> None:
    for name, head in every_head(weight).items():
        draft = CapturableDraft(layer, head, SHAPE)
        for _ in range(3):
            draft()
            head.validate(name)


def test_every_step_brings_new_tokens(weight: Tensor) -> None:
    """Each step replaces `new` tokens; the slabs hold the rows of their ids."""
    for head in (
        SparseDraftHead(TOY, weight, CAPACITY, SEEN, torch.bfloat16),
        NanoSpecDraftHead(TOY, weight, CAPACITY, SEEN),
    ):
        for _ in range(2 * head.steps.count):
            before = set(head.operands()["active_ids"].flatten().tolist())
            head.update()
            head.gather()
            head.join()
            operands = head.operands()
            ids = operands["active_ids"].flatten().long()
            assert len(set(ids.tolist())) == CAPACITY
            assert len(set(ids.tolist()) - before) == SEEN.new
            assert torch.equal(operands["weight"].view(CAPACITY, -1), weight[ids])


class NoHost(TorchDispatchMode):
    """Raise an error if a call makes the host wait for the device, which would end a capture."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(self.REFUSED), name
        places = args[1] if name.startswith("index") and isinstance(args[1], list) else ()
        assert all(t is None or t.dtype != torch.bool for t in places), "an index by a mask"
        return func(*args, **(kwargs or {}))


def test_nothing_of_a_draft_goes_to_the_host(weight: Tensor, layer: DraftLayer) -> None:
    for head in every_head(weight).values():
        for without in (frozenset[str](), frozenset({"head"}), frozenset({"tree"})):
            draft = CapturableDraft(layer, head, SHAPE, without)
            with NoHost():
                draft()
    with pytest.raises(AssertionError, match="scalar"), NoHost():
        weight.max().item()


def test_a_wrong_slab_is_refused(weight: Tensor) -> None:
    head = NanoSpecDraftHead(TOY, weight, CAPACITY, SEEN)
    head.weight.mul_(1.5)
    assert head.ids is not None
    head.ids.copy_(head.ids.roll(1))
    head.validate("still a slab, of other tokens")
    broken = static_head(TOY, weight)
    broken.softcap, right = 1.0, broken.operands
    broken.operands = lambda: {**right(), "weight": weight.roll(1, 0)}  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="static"):
        broken.validate("static")


def test_parts() -> None:
    """The vocabulary's time comes from drafts without a gather, the gather's from whole drafts."""
    seconds = {
        "draft": [10.0],
        "head": [7.0],
        "vocabulary": [8.5],
        "gather": [9.5],
        "gather, alone": [11.5],
    }
    parts = {name: time.p50 for name, time in draft_step.parts_of(seconds).items()}
    assert parts == {
        "draft": 10.0,
        "head": 3.0,
        "vocabulary": 1.0,
        "gather": 0.5,
        "gather, alone": 2.0,
    }
    packed = {name: percentiles([time]) for name, time in parts.items()}
    dense = {"draft": percentiles([40.0])}
    compiled = {"draft": percentiles([20.0])}
    times = {"dense": dense, "dense, compiled": compiled, "packed": packed}
    lines = {(line["arm"], line["part"]): line for line in draft_step.rows({}, times)}
    assert lines["packed", "gather"]["hidden"] == 0.75
    assert lines["packed", "draft"]["over_dense"] == 0.5, "of the better one"
    assert lines["packed", "draft"]["over_static"] == ""


def test_the_timeline_of_a_trace() -> None:
    def event(part: str, start: float, dur: float, stream: int, cat: str) -> dict[str, Any]:
        return {"name": RANGE + part, "ts": start, "dur": dur, "tid": stream, "cat": cat}

    on_gpu = "gpu_user_annotation"
    events: list[dict[str, Any]] = [
        event("layer", 104.5, 20.0, 7, on_gpu),
        event("gather", 103.0, 4.0, 9, on_gpu),
        event("vocabulary", 100.0, 3.0, 7, on_gpu),
        event("head", 50.0, 3.0, 1, "user_annotation"),
        {"name": "kernel", "ts": 1.0, "dur": 1.0, "tid": 7, "cat": "kernel"},
    ]
    found = [tuple(row.values()) for row in spans(events, on_gpu=True)]
    assert found == [
        ("vocabulary", "draft", 0.0, 3.0),
        ("gather", "side", 3.0, 7.0),
        ("layer", "draft", 4.5, 24.5),
    ]
    assert [row["part"] for row in spans(events, on_gpu=False)] == ["head"]


def test_a_gpu_also_waits_for_the_gather(weight: Tensor) -> None:
    packed = SparseDraftHead(TOY, weight, CAPACITY, SEEN, torch.bfloat16)
    assert draft_step.variants(packed, "cuda")[draft_step.ALONE] == (frozenset(), True)
    assert draft_step.ALONE not in draft_step.variants(packed, "cpu")
    assert set(draft_step.variants(DraftHead(TOY, weight), "cuda")) == {
        "draft",
        "layer",
        "head",
        "tree",
    }


def test_a_quick_run_writes_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[Any] = ["draft_step", "--quick", "--out", tmp_path, "--arms", "dense,packed fp8"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    draft_step.main()
    rows = list(csv.DictReader((tmp_path / "draft_step.csv").open()))
    assert {row["arm"] for row in rows} == {"dense", "packed fp8"}
    assert {row["part"] for row in rows if row["arm"] == "packed fp8"} == {
        *("draft", "layer", "head", "tree", "vocabulary", "gather")
    }
    lines = list(csv.DictReader((tmp_path / "draft_timeline.csv").open()))
    calls = [row["part"] for row in lines if row["arm"] == "packed fp8"]
    assert (calls.count("head"), calls.count("layer"), calls.count("gather")) == (6, 6, 1)
    assert all(float(row["end_us"]) >= float(row["start_us"]) for row in lines)
