# SPDX-License-Identifier: Apache-2.0
"""A sparse LM head in transformers' own assisted generation."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lru import Lru
from speculative.models import VOCAB, head_bias, tiny
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from microspec_kernels import SparseLMHead
from microspec_kernels.integrations.transformers import sparse_assistant
from microspec_kernels.policy import Policy, draft_tree
from microspec_kernels.policy import prompt as prompt_tokens
from microspec_kernels.speculative.models.target import cache_argument

from .conftest import NEW

Texts = tuple[Tensor, Tensor]


@dataclass
class Pass:
    """A pass of the target: entries cached before it, tokens read [n], logits of the last rows."""

    past: int
    tokens: Tensor
    logits: Tensor


@pytest.fixture
def passes(target: Any) -> Iterator[list[Pass]]:
    """Record the target's passes in `generate`."""
    seen: list[Pass] = []

    def record(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tokens = kwargs["input_ids"][0]
        past = output[cache_argument(target)].get_seq_length() - len(tokens)
        seen.append(Pass(past, tokens, output.logits[0]))

    hook = target.register_forward_hook(record, with_kwargs=True)
    yield seen
    hook.remove()


def assisted(target: Any, assistant: Any, ids: Tensor, **options: Any) -> Tensor:
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    tokens: Tensor = target.generate(ids, assistant_model=assistant, **options)
    return tokens


@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("capacity", [1, 8, 3072])
def test_greedy_equals_the_target_alone(
    target: Any, assistant: Any, text: Texts, mode: Any, capacity: int
) -> None:
    with sparse_assistant(assistant, target, capacity=capacity, mode=mode) as head:
        assert torch.equal(assisted(target, assistant, text[0]), text[1])
        assert 1 <= int(head.vocab.size) <= min(capacity, VOCAB)


@pytest.mark.parametrize("schedule", ["constant", "heuristic", "heuristic_transient"])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.99])
def test_every_schedule_and_threshold(
    target: Any, assistant: Any, text: Texts, schedule: str, threshold: float
) -> None:
    assistant.generation_config.num_assistant_tokens_schedule = schedule
    assistant.generation_config.assistant_confidence_threshold = threshold
    with sparse_assistant(assistant, target, capacity=64):
        assert torch.equal(assisted(target, assistant, text[0]), text[1])
        sampled = assisted(target, assistant, text[0], do_sample=True, top_k=0)
    assert sampled.shape[1] <= text[1].shape[1]


def test_it_drafts_almost_as_well_as_the_whole_head(
    target: Any, assistant: Any, text: Texts, passes: list[Pass]
) -> None:
    """It also drafts better than a policy without the target's likeliest tokens."""
    blind = Policy((prompt_tokens(),))
    count = {}
    for name, head in (
        ("dense", nullcontext()),
        ("sparse", sparse_assistant(assistant, target)),
        ("blind", sparse_assistant(assistant, target, policy=blind)),
    ):
        passes.clear()
        with head:
            assisted(target, assistant, text[0], max_new_tokens=60)
        count[name] = len(passes)
    assert count["dense"] <= count["sparse"] <= count["dense"] + 3
    assert count["sparse"] + 3 < count["blind"] < 60


def test_the_vocabulary_is_what_was_read_and_the_likeliest(
    target: Any, assistant: Any, text: Texts, passes: list[Pass]
) -> None:
    """Compare with the test's LRU cache: the same tokens in the same order of recency."""
    lru = Lru(48)
    heads: list[SparseLMHead] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        for head in heads:
            order = head.vocab.slot_stamps[0].argsort()
            ids = head.vocab.ids[0][order]
            assert ids[ids >= 0].tolist() == list(lru.tokens)
        lru.see(kwargs["input_ids"][0].tolist())

    def after(*_: Any) -> None:
        rows = passes[-1].logits
        for token, row in zip(passes[-1].tokens[-len(rows) :].tolist(), rows, strict=True):
            lru.see([token, *reversed(row.topk(3).indices.tolist())])

    # These hooks run before those of `sparse_assistant`, so they see the vocabulary of the previous
    # draft.
    hooks = [
        assistant.register_forward_pre_hook(before, with_kwargs=True),
        target.register_forward_hook(after),
    ]
    with sparse_assistant(assistant, target, capacity=48) as head:
        heads.append(head)
        assisted(target, assistant, text[0])
    for hook in hooks:
        hook.remove()
    assert len({len(one.logits) for one in passes}) > 1
    for one in list(passes):  # check that the logits follow the tokens that we assigned to them
        read = torch.cat((text[1][0, : one.past], one.tokens))
        target_logits = target(input_ids=read[None]).logits[0, -len(one.logits) :]
        torch.testing.assert_close(one.logits, target_logits, atol=1e-4, rtol=1e-4)


def test_a_policy_of_ones_own(target: Any, assistant: Any, text: Texts) -> None:
    policy = Policy((draft_tree(),), pinned=[7, 3])
    with sparse_assistant(assistant, target, capacity=2, policy=policy) as head:
        assert torch.equal(assisted(target, assistant, text[0]), text[1])
        assert head.vocab.ids.tolist() == [[7, 3]]


@pytest.mark.parametrize("biased", [False, True])
def test_off_the_active_set_a_token_has_no_probability(
    target: Any, assistant: Any, text: Texts, biased: bool
) -> None:
    assistant = head_bias(assistant) if biased else assistant
    dense = assistant(text[0]).logits.softmax(-1)
    with sparse_assistant(assistant, target) as head:
        sparse = assistant(text[0]).logits.softmax(-1)
    active = head.vocab.contains(torch.arange(VOCAB))
    assert 0 < int(active.sum()) < VOCAB
    assert not sparse[..., ~active].any()
    expected = dense[..., active] / dense[..., active].sum(-1, keepdim=True)
    torch.testing.assert_close(sparse[..., active], expected)


@pytest.mark.parametrize("seed", range(3))
def test_sampling_stays_within_the_targets_choices(
    target: Any, assistant: Any, text: Texts, seed: int
) -> None:
    torch.manual_seed(seed)
    with sparse_assistant(assistant, target, capacity=32):
        options = {"do_sample": True, "top_k": 4, "temperature": 1.5}
        out = assisted(target, assistant, text[0], **options)
    assert out.shape == text[1].shape and not torch.equal(out, text[1])
    best = target(out).logits[0, text[0].shape[1] - 1 : -1].topk(4).indices
    assert (best == out[0, text[0].shape[1] :, None]).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [None, 0.01, 1.0])
def test_every_active_token_may_be_forbidden(
    target: Any, assistant: Any, text: Texts, dtype: torch.dtype, temperature: float | None
) -> None:
    """A row of nothing but -inf would have no softmax to sample from."""
    allowed = set([token for token in range(VOCAB) if token not in text[0]][:5])
    options: dict[str, Any] = {"suppress_tokens": sorted(set(range(VOCAB)) - allowed)}
    if temperature is not None:
        options |= {"do_sample": True, "temperature": temperature}
    assistant = assistant.to(dtype)
    with sparse_assistant(assistant, target, policy=Policy((prompt_tokens(),)), capacity=8):
        out = assisted(target, assistant, text[0], max_new_tokens=6, **options)
    assert set(out[0, text[0].shape[1] :].tolist()) <= allowed


@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("sample", [False, True])
def test_a_broken_row_costs_its_own_token(
    target: Any, text: Texts, passes: list[Pass], caplog: Any, mode: Any, sample: bool
) -> None:
    """The target itself is the draft. Without token 77 it is right as often as with all rows."""
    counts = []
    for broken in (False, True):
        assistant = tiny()
        if broken:
            with torch.no_grad():
                assistant.lm_head.weight[77] = torch.nan
        passes.clear()
        torch.manual_seed(0)
        with sparse_assistant(assistant, target, capacity=VOCAB, mode=mode) as head:
            head.observe(torch.tensor([77]))
            options = {"do_sample": True, "top_k": 1} if sample else {}
            assert torch.equal(assisted(target, assistant, text[0], **options), text[1])
        counts.append(len(passes))
    assert 77 not in text[1]
    assert counts[0] == counts[1] < NEW - 5
    (warning,) = [r.getMessage() for r in caplog.records if "NaN" in r.getMessage()]
    assert "assistant: LM head: NaN or infinity in the rows of 1 tokens" in warning
    assert warning.endswith(": 77")


def test_a_narrow_head_of_another_kind(target: Any, text: Texts) -> None:
    """OPT projects its hidden states to a smaller width before the head."""
    torch.manual_seed(0)
    opt = OPTForCausalLM(
        OPTConfig(vocab_size=VOCAB, hidden_size=16, word_embed_proj_dim=8, ffn_dim=16,
                  num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=128,
                  pad_token_id=0)
    ).eval()  # fmt: skip
    with sparse_assistant(opt, target, capacity=32):
        assert torch.equal(assisted(target, opt, text[0]), text[1])
