# SPDX-License-Identifier: Apache-2.0
"""EngineHead, step by step, against an LRU over rows and float64 logits."""

from typing import Any

import pytest
import torch
from generators import head_case

from microspec_kernels import SparseHead, sparse_head
from microspec_kernels._checks import E2M1, INT4, QUANTISED
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

BOTH = pytest.mark.backends("cpu", "reference")


@BOTH
@pytest.mark.parametrize("mapped", [False, True], ids=["all rows", "mapped"])
@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
def test_every_step(options: dict[str, Any], num_groups: int, mapped: bool, tmp_path: Any) -> None:
    """Requests come and go, tokens of all kinds enter, and most steps evict."""
    rng = torch.Generator().manual_seed(num_groups)
    frequent = torch.randperm(V, generator=rng)[:20].tolist()
    settings = Settings(
        capacity=12,
        learn=False,
        frequent_tokens_file=frequent_tokens_file(tmp_path, frequent),
        **options,
    )
    row_tokens = ROW_TOKENS if mapped else None
    weight = weight_of(torch.bfloat16, settings.slab_dtype, ROWS if mapped else V)
    head = EngineHead(
        weight, settings, num_groups=num_groups, target_vocab_size=V, row_tokens=row_tokens
    )
    wanted = Wanted(
        weight, 12, num_groups=num_groups, row_tokens=row_tokens, frequent_tokens=frequent
    )
    addresses = [tensor.data_ptr() for tensor in state_of(head)]
    for step in range(60):
        count = int(torch.randint(0, 9, (), generator=rng))
        tokens = torch.randint(0, V, (count,), generator=rng)
        for place in torch.randperm(count, generator=rng)[: count // 3]:
            tokens[place] = -1
        tokens = tokens if step % 2 else tokens.int()
        low = -1 if num_groups > 1 else 0
        which = torch.randint(low, num_groups, (count,), generator=rng)
        token_groups = None if num_groups == 1 else which if step % 3 else which.int()
        head.observe(tokens, token_groups)
        wanted.step(tokens.tolist(), which.tolist())
        rows = torch.randint(low, num_groups, (5,), generator=rng).tolist()
        wanted.check(head, hidden_of(rng, 5, torch.bfloat16), rows, f"step {step}")
        if step % 5 == 4:
            head.begin([step % num_groups], [tokens[:0]])
            wanted.begin([step % num_groups])
            wanted.check(head, hidden_of(rng, 5, torch.bfloat16), rows, f"begin at {step}")
    assert wanted.hits > 0 < wanted.misses
    assert [tensor.data_ptr() for tensor in state_of(head)] == addresses


@BOTH
@pytest.mark.parametrize("options", MODES[:2], ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("dtype", [*QUANTISED, INT4, E2M1], ids=str)
def test_quantised_heads(options: dict[str, Any], dtype: torch.dtype) -> None:
    """A head that came quantised drafts from its rows; one with a broken scale never does."""
    case = head_case(
        3, vocab_size=V, capacity=V, active=V, dim=64, m=6, dtype=torch.bfloat16, weight_dtype=dtype
    )
    scale = case.weight_scale.clone()
    scale[7] = float("nan")
    head = EngineHead(
        case.weight,
        Settings(learn=False, capacity=12, **options),
        weight_scale=scale,
        logit_scale=0.5,
    )
    assert str(head).startswith(f"LM head [{V}, 64] ")
    head.observe(torch.tensor([7, 3, 50, 21, 9]))
    ids = torch.tensor([3, 50, 21, 9], dtype=torch.int32)
    want = sparse_head(case.hidden, case.weight, ids, 5, weight_scale=scale, logit_scale=0.5)
    for got, expected in zip(head.topk(case.hidden, 5), want, strict=True):
        torch.testing.assert_close(got, expected)
    with pytest.raises(ValueError, match=rf"^EngineHead: weight_scale: expected shape \[{V}, "):
        EngineHead(case.weight, Settings(learn=False, **options), weight_scale=scale[1:])


@BOTH
@pytest.mark.parametrize("mapped", [False, True])
def test_all_rows_are_the_dense_head(mapped: bool) -> None:
    """Of equal logits it also takes the one that the dense head's argmax takes."""
    count = ROWS if mapped else V
    weight = weight_of(torch.float32, rows=count)
    row_tokens = ROW_TOKENS if mapped else None
    head = EngineHead(
        weight, Settings(learn=False, capacity=10**6), target_vocab_size=V, row_tokens=row_tokens
    )
    assert head.capacity == count
    head.observe(torch.arange(V).flip(0))
    hidden = hidden_of(torch.Generator().manual_seed(3), 200, torch.float32)
    dense = hidden @ weight.T
    best = torch.tensor([row.nonzero()[0, 0] for row in dense == dense.amax(1, keepdim=True)])
    assert ((dense == dense.amax(1, keepdim=True)).sum(1) > 1).any()
    assert torch.equal(head.argmax(hidden), best if row_tokens is None else row_tokens[best])


def test_logits_are_made_as_the_engine_makes_them() -> None:
    weight = torch.randn(V, DIM)
    options = {"bias": torch.randn(V), "logit_scale": 0.25, "softcap": 2.0}
    for mode in ("indexed", "packed"):
        head = EngineHead(weight, Settings(learn=False, capacity=V, mode=mode), **options)  # type: ignore
        head.observe(torch.arange(V))
        hidden = torch.randn(4, DIM)
        want = SparseHead(weight, head.vocab, **options)(hidden, 5)  # type: ignore[arg-type]
        for got, expected in zip(head.topk(hidden, 5), want, strict=True):
            torch.testing.assert_close(got, expected)


@BOTH
@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
def test_slots_for_an_engine_that_chooses_itself(options: dict[str, Any]) -> None:
    """Each slot has the logit of its token, or -inf if it is empty."""
    settings = Settings(learn=False, capacity=12, **options)
    weight = weight_of(torch.bfloat16, settings.slab_dtype, ROWS)
    head = EngineHead(weight, settings, target_vocab_size=V, row_tokens=ROW_TOKENS)
    rng = torch.Generator().manual_seed(3)
    hidden = hidden_of(rng, 5, torch.bfloat16)
    row_of = {int(token): row for row, token in enumerate(ROW_TOKENS)}
    for step in range(10):
        head.observe(torch.randint(0, V, (3,), generator=rng))
        logits, tokens = head.slot_logits(hidden), head.slot_tokens()
        assert (logits.dtype, tokens.dtype) == (torch.float32, torch.int64)
        assert logits.shape == (5, 12) and tokens.shape == (1, 12)
        for slot, token in enumerate(tokens[0].tolist()):
            nothing = torch.full((5,), -torch.inf, dtype=torch.float64)
            row = nothing if token < 0 else hidden.double() @ weight[row_of[token]].double()
            assert torch.equal(logits[:, slot].double(), row), f"step {step}, slot {slot}"
        assert head.stats().active == (tokens >= 0).sum()  # type: ignore[union-attr]
    assert (tokens >= 0).all()


def test_an_empty_vocabulary_proposes_token_0() -> None:
    head = EngineHead(weight_of(torch.float32), Settings(learn=False), num_groups=2)
    groups = torch.tensor([0, -1, 1])
    assert head.argmax(torch.ones(3, DIM), groups).tolist() == [0, 0, 0]
    head.observe(torch.tensor([9]), torch.tensor([1]))
    assert head.argmax(torch.ones(3, DIM), groups).tolist() == [0, 0, 9]
    assert head.argmax(torch.full((3, DIM), float("nan")), groups.clamp(max=0)).tolist() == [0] * 3


@BOTH
@pytest.mark.parametrize("mapped", [False, True], ids=["all rows", "mapped"])
@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
def test_a_broken_row_costs_its_own_token(options: Any, mapped: bool, caplog: Any) -> None:
    """The token never becomes active: one NaN would make a softmax over the slots NaN."""
    count = ROWS if mapped else V
    row_tokens = ROW_TOKENS if mapped else None
    tokens = torch.arange(V) if row_tokens is None else row_tokens
    settings = Settings(learn=False, capacity=12, **options)
    weight = weight_of(torch.bfloat16, settings.slab_dtype, count)
    whole = EngineHead(weight, settings, target_vocab_size=V, row_tokens=row_tokens)
    broken = weight.clone()
    broken[3, 2], broken[5, 1] = torch.nan, torch.inf
    head = EngineHead(broken, settings, target_vocab_size=V, row_tokens=row_tokens)
    gone = tokens[[3, 5]].tolist()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "the draft's LM head: NaN or infinity in the rows of 2 tokens" in warning
    assert warning.endswith(f": {gone[0]}, {gone[1]}")
    told = tokens[:10]
    head.observe(told)
    whole.observe(told[~torch.isin(told, torch.tensor(gone))])
    hidden = hidden_of(torch.Generator().manual_seed(0), 7, torch.bfloat16)
    for got, want in zip(head.topk(hidden, 5), whole.topk(hidden, 5), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(head.slot_logits(hidden), whole.slot_logits(hidden))
    assert torch.equal(head.slot_tokens(), whole.slot_tokens())
    head.observe(told)
    # They count as neither: no vocabulary can cover them.
    assert head.stats()[:2] == (8, 8)  # type: ignore[index]


def test_several_vocabularies_need_to_be_told_apart() -> None:
    head = EngineHead(weight_of(torch.float32), Settings(learn=False), num_groups=2)
    tokens = torch.tensor([1, 2])
    with pytest.raises(
        ValueError, match=r"observe: token_requests: expected one per token, .* 2 req.*, got None"
    ):
        head.observe(tokens)
    with pytest.raises(ValueError, match="group_ids: expected"):
        head.argmax(torch.ones(2, DIM))
    assert head.stats() == EngineStats(0, 0, 0)


@pytest.mark.parametrize("vocabulary", ["shared", "request"])
@pytest.mark.parametrize(("num_groups", "text"), [(1, "1 vocabulary"), (2, "2 vocabularies")])
def test_the_log_says_how_many_vocabularies_there_are(
    num_groups: int, text: str, vocabulary: Any
) -> None:
    """The setting is a plugin's; the head has as many as it was told."""
    settings = Settings(learn=False, vocabulary=vocabulary)
    head = EngineHead(weight_of(torch.float32), settings, num_groups=num_groups)
    assert f", {text}, target's" in str(head)


def test_the_only_vocabulary_begins_anew_too() -> None:
    head = EngineHead(weight_of(torch.float32), Settings(learn=False, vocabulary="request"))
    head.observe(torch.tensor([3, 4]))
    head.begin([0], [torch.tensor([5])])
    assert head.stats() == EngineStats(hits=0, misses=2, active=1)


@pytest.mark.parametrize("target_top_k", [1, 3])
def test_the_targets_likeliest(target_top_k: int) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, V, generator=rng)
    logits[:, ::2] = -torch.inf  # a grammar forbids them like this
    head = EngineHead(
        weight_of(torch.float32, None, V),
        Settings(learn=False, capacity=4, target_top_k=target_top_k),
    )
    got = head.top_target_tokens(logits)
    assert got.tolist() == logits.argsort(dim=1).flip(1)[:, :target_top_k].tolist()


def test_no_more_likeliest_than_tokens() -> None:
    with pytest.raises(ValueError, match=f"target_top_k: expected at most {V}, got {V + 1}"):
        EngineHead(
            weight_of(torch.float32, None, V), Settings(learn=False, capacity=4, target_top_k=V + 1)
        )


@BOTH
@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
def test_another_weight_over_the_same_vocabulary(options: dict[str, Any]) -> None:
    """A module's own head follows what the first one observes, evicts and begins with."""
    rng = torch.Generator().manual_seed(1)
    settings = Settings(capacity=12, learn=False, **options)
    weights = [weight_of(torch.bfloat16, settings.slab_dtype, ROWS, seed) for seed in (0, 1)]
    bias = torch.randn(ROWS, generator=rng)
    first = EngineHead(weights[0], settings, target_vocab_size=V, row_tokens=ROW_TOKENS)
    second = first.with_weight(weights[1], bias=bias)
    alone = EngineHead(weights[1], settings, target_vocab_size=V, row_tokens=ROW_TOKENS, bias=bias)
    hidden = hidden_of(rng, 5, torch.bfloat16)
    for step in range(8):
        tokens = torch.randint(0, V, (7,), generator=rng)
        for head in (first, alone):
            head.begin([0], [tokens]) if step == 4 else head.observe(tokens)
        for got, wanted in zip(second.topk(hidden, 3), alone.topk(hidden, 3), strict=True):
            assert torch.equal(got, wanted)
    assert not torch.equal(second.argmax(hidden), first.argmax(hidden))
    weights[1].copy_(weights[1].roll(1, 0))
    first.reload()
    alone.reload()
    assert torch.equal(second.row_logits(hidden), alone.row_logits(hidden))


def test_another_weight_that_does_not_fit() -> None:
    first = EngineHead(torch.randn(V, DIM), Settings(capacity=12, learn=False))
    broken = torch.randn(V, DIM)
    broken[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"with_weight: expected finite rows, got \[3\]"):
        first.with_weight(broken)
    with pytest.raises(ValueError, match=r"weight: expected shape \[60, D\]"):
        first.with_weight(torch.randn(V - 1, DIM))
    with pytest.raises(TypeError, match="with_weight: weight"):
        first.with_weight(torch.nn.Linear(DIM, V))  # type: ignore[arg-type]
