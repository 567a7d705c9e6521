# SPDX-License-Identifier: Apache-2.0
"""Sampled texts of the whole loop: trees give the target's own text, chains its distribution."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.speculative import Batch, CausalModel, Sampling, generate, verify
from microspec_kernels.speculative.request import Request
from microspec_kernels.speculative.sampling import choose, draw, uniforms_at
from microspec_kernels.speculative.stats import Stats

from .distribution import check
from .models import KINDS, VOCAB, Scrambled, eagle, noisy, prompt, tiny
from .paths import Path, plain, with_captured

FREQUENT = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(7))
HEADS = ("dense", "static", "sparse")
SAMPLINGS = (
    Sampling(0.3, seed=1),
    Sampling(1.0, seed=2),
    Sampling(0.8, top_p=0.9, top_k=40, seed=2**64 - 1),
)


@cache
def model(kind: str, **changes: Any) -> Any:
    """Return a model whose distribution is spread over a few dozen tokens."""
    return tiny(kind, initializer_range=0.2, **changes)


def alone(
    target: Any, text: Tensor, count: int, sampling: Sampling, rule: Any = choose
) -> list[int]:
    """Return the target's continuation of text [1, P], with a full pass for every token."""
    for _ in range(count):
        number = uniforms_at(sampling.seed, torch.tensor([text.shape[1]]))
        with torch.no_grad():
            logits = target(text, use_cache=False).logits[:, -1]
        text = torch.cat((text, rule(logits, number, sampling)[None]), dim=1)
    return text[0, -count:].tolist()


def draws(logits: Tensor, number: Tensor, sampling: Sampling) -> Tensor:
    """Choose the next token like chains do."""
    return draw(sampling.probabilities(logits), number)


@pytest.mark.parametrize(
    ("path", "kind", "sampling", "head"),
    with_captured(
        list(product(KINDS, SAMPLINGS, HEADS)),
        [("llama", SAMPLINGS[1], "sparse"), ("qwen2", SAMPLINGS[2], "dense")],
    ),
    indirect=["path"],
)
def test_a_tree_gives_the_targets_own_text(
    path: Path, kind: str, sampling: Sampling, head: Any
) -> None:
    target = model(kind)
    truth = alone(target, prompt(12), 16, sampling)
    assert truth != alone(target, prompt(12), 16, Sampling())
    with path() as put:
        read = CausalModel(put(target))
        for shape in ({"depth": 1, "tree_width": 1, "tree_size": 1}, {"depth": 4, "tree_width": 6}):
            for draft in (put(noisy(target)), eagle(read)):
                result = generate(
                    read, draft, prompt(12), 16, head=head, capacity=60, frequent_tokens=FREQUENT,
                    sampling=sampling, **shape,
                )  # fmt: skip
                assert result.tokens.tolist() == truth


def test_a_tree_gives_it_in_double_precision() -> None:
    target = tiny(initializer_range=0.2).double()
    for sampling in SAMPLINGS:
        result = generate(
            target, noisy(target).float(), prompt(12), 16, capacity=60, sampling=sampling
        )
        assert result.tokens.tolist() == alone(target, prompt(12), 16, sampling)


@pytest.mark.parametrize("num_groups", [1, 3])
def test_every_text_of_a_batch_has_its_seed(num_groups: int) -> None:
    target, sampling = model("llama"), Sampling(1.0, 0.95)
    texts = [(prompt(length, seed=length), seed) for length, seed in ((5, 0), (12, 1), (5, 2**63))]
    batch = Batch(target, noisy(target), capacity=60, num_groups=num_groups, sampling=sampling)
    requests = [batch.join(text, 12, seed=seed) for text, seed in texts]
    while batch.requests:
        batch.step()
    for request, (text, seed) in zip(requests, texts, strict=True):
        assert request.tokens == alone(target, text, 12, Sampling(1.0, 0.95, seed=seed))


@pytest.mark.parametrize("head", ["dense", "static", "sparse"])
def test_a_greedy_chain_gives_the_targets_greedy_text(head: Any) -> None:
    target = model("qwen3")
    truth = alone(target, prompt(12), 16, Sampling())
    result = generate(
        target,
        noisy(target),
        prompt(12),
        16,
        head=head,
        capacity=60,
        frequent_tokens=FREQUENT,
        chain=True,
    )
    assert result.tokens.tolist() == truth
    assert result.stats.tau > 1


def test_a_chain_of_the_target_itself_is_accepted() -> None:
    target = model("llama")
    result = generate(
        target, target, prompt(12), 22, head="dense", depth=6, chain=True, temperature=1.0
    )
    assert result.acceptance_lengths == [7, 7, 7]


@pytest.mark.parametrize("head", ["dense", "static", "sparse"])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_broken_draft_of_chains_costs_time_and_nothing_else(value: float, head: Any) -> None:
    target = CausalModel(model("llama"))
    options = {"head": head, "capacity": 60, "frequent_tokens": FREQUENT, "chain": True}
    draft = Scrambled(target, value)
    greedy = generate(target, draft, prompt(12), 8, **options)
    assert greedy.tokens.tolist() == alone(target.model, prompt(12), 8, Sampling())
    drawn = generate(target, draft, prompt(12), 8, sampling=SAMPLINGS[2], **options)
    if value != 0:
        # The prompt's own token is chosen as without chains, the rest as in chains.
        first = alone(target.model, prompt(12), 1, SAMPLINGS[2])
        text = torch.cat((prompt(12), torch.tensor([first])), dim=1)
        rest = alone(target.model, text, 7, SAMPLINGS[2], draws)
        assert drawn.tokens.tolist() == first + rest


def test_end_of_text_in_a_chain() -> None:
    target, sampling = tiny(initializer_range=0.2), Sampling(1.0, seed=3)
    options = {"head": "dense", "depth": 6, "chain": True, "sampling": sampling}
    whole = generate(target, target, prompt(12), 20, **options).tokens.tolist()
    target.generation_config.eos_token_id = whole[9]
    ended = generate(target, target, prompt(12), 20, **options).tokens.tolist()
    assert ended == whole[: whole.index(whole[9]) + 1]


def test_chains_that_share_a_vocabulary_take_a_seed_each() -> None:
    target = model("llama")
    for num_groups, head, temperature, refused in (
        (1, "sparse", 1.0, True), (2, "sparse", 1.0, False), (1, "dense", 1.0, False),
        (1, "sparse", 0.0, False),
    ):  # fmt: skip
        batch = Batch(
            target,
            target,
            head=head,
            num_groups=num_groups,
            chain=True,
            sampling=Sampling(temperature),
        )
        batch.join(prompt(5), 4)
        if refused:
            with pytest.raises(ValueError, match=r"generate: seed: .*one each.* got 0 again"):
                batch.join(prompt(5), 4)
            batch.join(prompt(5), 4, seed=1)
        elif head == "sparse" and num_groups == 2:
            batch.join(prompt(5), 4)


def test_a_sampling_has_its_own_temperature() -> None:
    target = model("llama")
    plain = generate(target, target, prompt(5), 8, temperature=0.7)
    assert plain.tokens.tolist() == alone(target, prompt(5), 8, Sampling(0.7))
    with pytest.raises(ValueError, match=r"generate: temperature: expected 0 beside a sampling"):
        generate(target, target, prompt(5), 8, temperature=0.7, sampling=Sampling(0.7))
    with pytest.raises(ValueError, match="Sampling: seed"):
        Batch(target, target).join(prompt(5), 8, seed=-1)


FEW, COPIES = 12, 2**13


def copied(batch: Batch, only: Request) -> Callable[[], list[Request]]:
    """Replace a batch's only text by COPIES copies with different seeds, that begin when called.

    The result is as if each copy had joined with the same prompt, which would take minutes. When
    they begin again, graphs that were captured stay valid.
    """
    texts, num_groups = batch._texts, batch.head.num_groups
    for kept in texts.caches:
        kept.reserve(COPIES, 0)
    before = [(int(kept.lengths[0]), kept._entries[:, :, :1].clone()) for kept in texts.caches]
    newest, features = texts.newest[0], texts.features[0]
    texts.newest, texts.features = newest.repeat(COPIES), features.repeat(COPIES, 1)
    texts.seeds = torch.arange(COPIES, device=newest.device)
    texts.groups = texts.seeds % num_groups

    def begin() -> list[Request]:
        for kept, (length, entries) in zip(texts.caches, before, strict=True):
            kept.lengths[:] = length
            kept._entries[:] = entries
        texts.newest[:], texts.features[:] = newest, features
        if batch.head.follows:
            batch.head.vocab.reset()
            groups = torch.arange(num_groups, device=newest.device)
            batch.head.observe(torch.full_like(groups, 5), groups)
        batch.requests = [
            replace(
                only, seed=seed, group=seed % num_groups, stats=Stats(), tokens=[],
                prompt_length=only.prompt_length + 1, row=seed,
            )
            for seed in range(COPIES)
        ]  # fmt: skip
        return list(batch.requests)

    return begin


def texts_of_chains(path: Path, head: Any) -> tuple[Tensor, Tensor]:
    """Return the first two tokens of many texts, int64 [COPIES], and their distribution."""
    target, text = tiny(vocab_size=FEW, initializer_range=0.4, num_hidden_layers=1), prompt(4) % FEW
    with path() as put:
        batch = Batch(
            put(target), put(noisy(target, 0.25)), head=head, capacity=6,
            frequent_tokens=torch.arange(FEW), num_groups=COPIES if head == "sparse" else 1,
            depth=2, chain=True, sampling=Sampling(1.0), learn=False,
        )  # fmt: skip
        # Two steps of up to three tokens end no text.
        first = batch.join(text, 7)
        begin = copied(batch, first)
        # A second step captures graphs. So those that count are replays.
        for _ in range(2 if batch._graphs.captures else 1):
            requests = begin()
            for _ in range(2):
                batch.step()
    assert fmean(request.stats.tau for request in requests) > 1.1, "hardly a draft was accepted"
    got = torch.tensor([request.tokens[:2] for request in requests])
    text = torch.cat((text, torch.tensor([first.tokens[:1]])), dim=1)
    with torch.no_grad():
        one = target(text).logits[0, -1].double().softmax(-1)
        ahead = torch.cat((text.repeat(FEW, 1), torch.arange(FEW)[:, None]), dim=1)
        two = target(ahead).logits[:, -1].double().softmax(-1)
    return got[:, 0] * FEW + got[:, 1], (one[:, None] * two).flatten()


@pytest.mark.parametrize(
    ("path", "head"),
    with_captured([(head,) for head in HEADS], [("sparse",)]),
    indirect=["path"],
)
def test_chains_of_a_batch_follow_the_targets_distribution(
    path: Path, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microspec_kernels.speculative.models.cache.SMALLEST_ROOM", 24)
    check(*texts_of_chains(path, head))


@pytest.mark.parametrize("head", HEADS)
def test_chains_that_accept_everything_do_not(head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microspec_kernels.speculative.models.cache.SMALLEST_ROOM", 24)
    monkeypatch.setattr(verify, "accepted", lambda p, q, uniforms: q > 0)
    with pytest.raises(AssertionError, match="total variation"):
        check(*texts_of_chains(plain, head))
