# SPDX-License-Identifier: Apache-2.0
"""With any draft the output equals the target's own greedy output, token for token."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microspec_kernels.policy import MICROSPEC, Policy
from microspec_kernels.speculative import CausalModel, generate

from .models import (
    KINDS,
    VOCAB,
    Scrambled,
    eagle,
    example,
    greedy,
    head_bias,
    noisy,
    prompt,
    tiny,
    truncated,
)
from .paths import Path, with_captured

HEADS = ("dense", "static", "sparse")
SHAPES = ((1, 1, 1), (3, 4, 7), (5, 8, 40))  # depth, tree_width, tree_size
CAPACITIES = (1, 8, 64, 4 * VOCAB)
FREQUENT = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("path", "kind", "head", "shape"),
    with_captured(
        list(product(KINDS, HEADS, SHAPES)),
        [("llama", head, SHAPES[1]) for head in HEADS] + [("qwen3", "sparse", SHAPES[2])],
    ),
    indirect=["path"],
)
def test_equals_transformers(path: Path, kind: str, head: Any, shape: tuple[int, int, int]) -> None:
    model, text, truth = example(kind)
    depth, tree_width, size = shape
    with path() as put:
        target, draft = CausalModel(put(model)), put(noisy(model))
        for capacity in CAPACITIES if head != "dense" else (1,):
            result = generate(
                target, draft, text, len(truth), head=head, capacity=capacity,
                frequent_tokens=FREQUENT, depth=depth, tree_width=tree_width, tree_size=size,
            )  # fmt: skip
            assert result.tokens.tolist() == truth.tolist(), f"capacity {capacity}"


@pytest.mark.parametrize("head", ["dense", "static", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_noisy_copy_is_mostly_accepted(kind: str, head: Any) -> None:
    model, text, truth = example(kind)
    result = generate(
        model, noisy(model), text, len(truth), head=head, capacity=VOCAB, frequent_tokens=FREQUENT
    )
    assert result.tokens.tolist() == truth.tolist()
    assert result.stats.tau > 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_copy_reaches_the_greatest_acceptance(kind: str) -> None:
    model, text, truth = example(kind)
    depth = 4
    count = 1 + 5 * (depth + 1)
    result = generate(
        model, model, text, count, head="dense", depth=depth, tree_width=1, tree_size=depth
    )
    assert result.tokens.tolist() == truth[:count].tolist()
    assert result.acceptance_lengths == [depth + 1] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_target_and_an_eagle_draft(kind: str) -> None:
    model, text, truth = example(kind)
    target = CausalModel(model)
    for draft in (truncated(model), eagle(target)):
        for head in ("dense", "sparse"):
            result = generate(target, draft, text, len(truth), head=head, capacity=64)
            assert result.tokens.tolist() == truth.tolist()


@pytest.mark.parametrize("head", ["dense", "static", "sparse"])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_broken_draft_costs_time_and_nothing_else(value: float, head: Any) -> None:
    model, text, truth = example("llama")
    target = CausalModel(model)
    result = generate(
        target, Scrambled(target, value), text, 8, head=head, capacity=64, frequent_tokens=FREQUENT
    )
    assert result.tokens.tolist() == truth[:8].tolist()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    length=st.integers(1, 40),
    count=st.integers(0, 12),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 50)),
    capacity=st.integers(1, 250),
    pinned=st.integers(0, 8),
    frequent=st.integers(0, VOCAB),
    mode=st.sampled_from(["indexed", "packed"]),
    sources=st.sets(st.sampled_from(MICROSPEC)),
)
def test_equals_transformers_under_any_settings(
    kind: str,
    length: int,
    count: int,
    shape: tuple[int, int, int],
    capacity: int,
    pinned: int,
    frequent: int,
    mode: Any,
    sources: set[Any],
) -> None:
    model, _, _ = example(kind)
    text = prompt(length, seed=length)
    truth = greedy(model, text, count).tolist() if count else []
    depth, tree_width, size = shape
    result = generate(
        model, noisy(model), text, count, head="sparse", depth=depth, tree_width=tree_width,
        tree_size=size, capacity=capacity, mode=mode, learn=pinned == 0, policy=Policy(
        tuple(sources), FREQUENT[:frequent], FREQUENT[: min(pinned, capacity)]),
    )  # fmt: skip
    assert result.tokens.tolist() == truth


def test_a_prompt_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill in pieces of 7 equals a single pass, for the target, a draft model and EAGLE."""
    for module in ("models.target", "models.draft", "observer"):
        monkeypatch.setattr(f"microspec_kernels.speculative.{module}.CHUNK", 7)
    model, text, truth = example("llama")
    target = CausalModel(model)
    results = [
        generate(target, draft, text, len(truth), head="sparse", capacity=VOCAB)
        for draft in (noisy(model), eagle(target))
    ]
    monkeypatch.undo()
    whole = [
        generate(target, draft, text, len(truth), head="sparse", capacity=VOCAB)
        for draft in (noisy(model), eagle(target))
    ]
    for got, expected in zip(results, whole, strict=True):
        assert got.tokens.tolist() == truth.tolist()
        assert got.acceptance_lengths == expected.acceptance_lengths


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_end_of_text_inside_a_tree(head: Any) -> None:
    """The text ends although the tree continues and the target agrees with it."""
    model = tiny("llama")
    text = prompt(24)
    truth = greedy(model, text, 32).tolist()
    depth = 5
    for place in range(1, 12):
        end = truth[place]
        if end in truth[:place]:
            continue
        model.generation_config.eos_token_id = [VOCAB - 1, end]
        expected = greedy(model, text, 32).tolist()
        result = generate(
            model,
            model,
            text,
            32,
            head=head,
            capacity=VOCAB,
            depth=depth,
            tree_width=2,
            tree_size=12,
        )
        assert result.tokens.tolist() == expected == truth[: place + 1]
        assert 1 + sum(result.acceptance_lengths) == place + 1


def test_end_of_text_as_the_first_token() -> None:
    model = tiny("llama")
    first = int(greedy(model, prompt(24), 1))
    model.generation_config.eos_token_id = first
    result = generate(model, model, prompt(24), 8)
    assert result.tokens.tolist() == [first]
    assert result.acceptance_lengths == []


@pytest.mark.parametrize("count", range(9))
def test_just_as_many_tokens_as_asked_for(count: int) -> None:
    model, text, truth = example("qwen3")
    result = generate(model, model, text[0].int(), count, depth=3, tree_width=2, tree_size=6)
    assert result.tokens.tolist() == truth[:count].tolist()
    assert result.tokens.dtype == torch.int64


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("kind", "window"),
    [
        ("mistral", {"sliding_window": 9}),
        ("qwen2", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1}),
        ("qwen3", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 0}),
    ],
)
def test_sliding_windows(kind: str, window: dict[str, Any], attention: str) -> None:
    """The window is much shorter than the text, and its edge crosses every tree."""
    model = tiny(kind, attn_implementation=attention, **window)
    text = prompt(24)
    truth = greedy(model, text, 24)
    assert truth.tolist() != greedy(tiny(kind, sliding_window=None), text, 24).tolist()
    result = generate(model, noisy(model, 0.01), text, 24, head="dense", depth=4, tree_width=4)
    assert result.tokens.tolist() == truth.tolist()
    assert result.stats.tau > 1.5


def test_rope_scaling_and_tied_embeddings() -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    model = tiny("llama", rope_parameters=rope, tie_word_embeddings=True, initializer_range=0.2)
    text = prompt(24)
    truth = greedy(model, text, 24)
    result = generate(model, noisy(model, 0.01), text, 24, capacity=64)
    assert result.tokens.tolist() == truth.tolist()


@pytest.mark.parametrize("head", ["dense", "static", "sparse"])
def test_a_bias_of_the_lm_head(head: Any) -> None:
    model = head_bias(tiny("qwen2"))
    text = prompt(24)
    truth = greedy(model, text, 24)
    result = generate(
        model,
        model,
        text,
        24,
        head=head,
        capacity=VOCAB,
        frequent_tokens=FREQUENT,
        tree_width=1,
        depth=3,
    )
    assert result.tokens.tolist() == truth.tolist()
    # A draft head without the bias would rank by other logits than the target's.
    if head == "sparse":
        assert result.stats.tau > 1.5
    else:
        assert set(result.acceptance_lengths[:-1]) == {4}
