# SPDX-License-Identifier: Apache-2.0
"""Target and draft with one tokenizer, whose vocabularies differ in padding rows."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels import ActiveVocab
from microspec_kernels.policy import TEXT, Policy
from microspec_kernels.speculative import (
    CausalModel,
    Dense,
    LMHead,
    ModelDraft,
    Sampling,
    Sparse,
    generate,
    load_draft,
)
from microspec_kernels.speculative.models.lm_head import differ_in_padding

from .eagle3 import ROWS, tensors, write
from .models import SIZE, VOCAB, eagle, example, greedy, head_bias, prompt, tiny
from .test_checkpoint import EMBEDDING, HEAD, feature, save_draft

FEWER, MORE = VOCAB - 7, VOCAB + 9
HEADS = ["dense", "static", "sparse"]


def resized(model: Any, size: int) -> Any:
    """Copy a model with fewer or more rows; the added rows would win if they were scored."""
    other = tiny(vocab_size=size)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = 9 * torch.randn(size, SIZE, generator=torch.Generator().manual_seed(8))
        rows[: min(size, VOCAB)] = state[name][:size]
        state[name] = rows
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("chain", [False, True], ids=["tree", "chain"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [FEWER, MORE])
def test_the_same_model_but_for_padding(size: int, head: Any, chain: bool) -> None:
    """The draft proposes no token that the target lacks, and is right on all others."""
    model, text, truth = example("llama")
    text = text.clamp(max=FEWER - 1)
    truth = greedy(model, text, 31)
    draft = resized(model, size)
    if size == MORE:
        alone = greedy(draft, text, 31)
        assert (alone >= VOCAB).any(), "its padding rows are never the best"
    result = generate(
        model, draft, text, 31, head=head, capacity=MORE, frequent_tokens=torch.arange(VOCAB),
        policy=Policy(TEXT, frequent_tokens=torch.arange(VOCAB)), depth=5, tree_width=1,
        chain=chain,
    )  # fmt: skip
    assert result.tokens.tolist() == truth.tolist()
    common = min(size, VOCAB)
    assert set(result.stats.active_sizes) == {common}
    if (truth < common).all():
        assert result.acceptance_lengths == [6] * 5
    else:
        assert result.stats.tau > 2


def test_a_draft_reads_tokens_beyond_its_embedding() -> None:
    """The target may write tokens that the draft lacks; the draft then reads another token."""
    model, text, truth = example("llama")
    assert (truth >= FEWER).any(), "the example has no such token"
    text = text.clamp(max=FEWER - 1)
    short = resized(model, FEWER)
    target = CausalModel(model)
    trained = eagle(target)
    trained.embedding = trained.embedding[:FEWER]
    trained.vocab_size = FEWER
    with torch.no_grad():
        model = copy.deepcopy(model)
        model.lm_head.weight[FEWER:] *= 3  # most tokens are beyond the embedding now
    truth = greedy(model, text, 24)
    assert int((truth >= FEWER).sum()) > 3
    for draft in (short, trained):
        for head in HEADS:
            result = generate(
                model,
                draft,
                text,
                24,
                head=head,
                capacity=VOCAB,
                frequent_tokens=torch.arange(VOCAB),
            )
            assert result.tokens.tolist() == truth.tolist(), head


def test_a_prompt_that_the_draft_cannot_read_is_refused() -> None:
    model, _, _ = example("llama")
    text = torch.tensor([3, FEWER])
    with pytest.raises(ValueError, match=r"expected ids in \[0, 192\), which the draft .* got 192"):
        generate(model, resized(model, FEWER), text, 4)
    assert len(generate(model, resized(model, MORE), text, 4).tokens) == 4


def test_sampled_chains_keep_the_targets_distribution_of_tokens() -> None:
    """The draft's distributions are as wide as the target's."""
    model, text, _ = example("llama")
    for size in (FEWER, MORE):
        result = generate(
            model, resized(model, size), text.clamp(max=FEWER - 1), 12,
            sampling=Sampling(0.8, seed=1), chain=True, head="dense",
        )  # fmt: skip
        assert int(result.tokens.max()) < VOCAB


def test_the_draft_itself_is_left_alone() -> None:
    model, text, _ = example("llama")
    draft = ModelDraft(resized(model, MORE))
    before = draft.lm_head
    generate(model, draft, text, 6)
    assert draft.lm_head is before and before.vocab_size == MORE


def test_a_head_of_ones_own_is_over_the_targets_vocabulary() -> None:
    model, text, truth = example("llama")
    draft = ModelDraft(resized(model, MORE))
    for short in (Dense(draft.lm_head), Sparse(draft.lm_head, ActiveVocab(MORE, 8))):
        with pytest.raises(ValueError, match=r"head: expected .* vocabulary of 199 .* got 208"):
            generate(model, draft, text, 6, head=short)
    head = Dense(draft.lm_head.of_vocabulary(VOCAB))
    result = generate(model, draft, text, 21, head=head, depth=4, tree_width=1)
    assert result.tokens.tolist() == truth[:21].tolist()
    assert result.acceptance_lengths == [5] * 4


@pytest.mark.parametrize("size", [FEWER, VOCAB, MORE])
def test_lm_heads_of_another_vocabulary(size: int) -> None:
    values = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(VOCAB, 4, generator=values), torch.randn(VOCAB, generator=values)
    hidden, some = torch.randn(3, 4, generator=values), torch.tensor([190, 3, 198, 7])
    every = torch.arange(size)
    for lm_head in (LMHead(weight, bias), LMHead(weight, bias).only(some)):
        fitted = lm_head.of_vocabulary(size)
        assert fitted.vocab_size == size
        tokens = [t for t in lm_head.ids.tolist() if t < size]
        assert (fitted.to_rows(every) >= 0).nonzero()[:, 0].tolist() == sorted(tokens)
        logits = fitted.logits(hidden)
        for row, token in enumerate(fitted.ids.tolist()):
            expected = hidden @ weight[token] + bias[token]
            expected = expected if token >= 0 else torch.full((3,), -torch.inf)
            torch.testing.assert_close(logits[:, row], expected)
        assert Dense(fitted).active().tolist() == [len(tokens)]


def test_what_may_be_padding() -> None:
    for size, other in ((151936, 152064), (128256, 128512), (199, 208), (5, 5)):
        assert differ_in_padding(size, other) and differ_in_padding(other, size)
    for size, other in ((128256, 151936), (128256, 129280), (256000, 262144), (99, 199)):
        assert not differ_in_padding(size, other) and not differ_in_padding(other, size)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("size", [FEWER, MORE])
def test_eagles_own_embedding_and_head(size: int, biased: bool, tmp_path: Path) -> None:
    model, text, _ = example("llama")
    model = head_bias(model) if biased else model
    target = CausalModel(model)
    state = eagle(target).state_dict()
    draft_tensors = {EMBEDDING: torch.randn(size, SIZE), HEAD: torch.randn(size, SIZE)}
    # One folder each: the first draft's tensors may be mapped from its files.
    folders = [tmp_path / name for name in ("own", "whole")]
    for folder in folders:
        folder.mkdir()
    draft = load_draft(save_draft(folders[0], state | draft_tensors, vocab_size=size), target)
    whole = {name: torch.zeros(VOCAB, SIZE) for name in draft_tensors}
    for name, rows in whole.items():
        rows[:size] = draft_tensors[name][:VOCAB]
    same = load_draft(save_draft(folders[1], state | whole), target)
    assert torch.equal(feature(draft), feature(same))
    hidden = feature(draft)
    common = torch.arange(min(size, VOCAB))
    got, want = draft.lm_head.logits(hidden), same.lm_head.logits(hidden)
    torch.testing.assert_close(got, want[:, common])
    assert torch.equal(draft.lm_head.ids, common)
    text = text.clamp(max=FEWER - 1)
    for head in HEADS:
        result = generate(target, draft, text, 12, head=head, frequent_tokens=torch.arange(VOCAB))
        assert result.tokens.tolist() == greedy(model, text, 12).tolist()


@pytest.mark.parametrize("size", [FEWER, MORE])
@pytest.mark.parametrize("mapped", [False, True])
def test_eagle3s_own_embedding_and_head(size: int, mapped: bool, tmp_path: Path) -> None:
    model = tiny(num_hidden_layers=7)
    target, state = CausalModel(model), tensors("specforge")
    state["embed_tokens.weight"] = torch.randn(size, SIZE)
    tokens = torch.arange(size)
    if mapped:
        has_row: Tensor = torch.zeros(size, dtype=torch.bool)
        tokens = torch.cat((torch.arange(ROWS - 2), torch.tensor([size - 2, size - 1])))
        has_row[tokens] = True
        state |= {"d2t": tokens - torch.arange(ROWS), "t2d": has_row}
    else:
        del state["d2t"], state["t2d"]
        state["lm_head.weight"] = torch.randn(size, SIZE)
    changes = {"vocab_size": size, "draft_vocab_size": len(tokens)}
    draft = load_draft(write(tmp_path, "specforge", state, **changes), target)
    assert draft.lm_head.vocab_size == VOCAB
    ids = tokens.where(tokens < VOCAB, -1)
    assert torch.equal(draft.lm_head.ids, ids)
    text = prompt(24).clamp(max=FEWER - 1)
    for head in HEADS:
        result = generate(target, draft, text, 12, head=head, frequent_tokens=torch.arange(VOCAB))
        assert result.tokens.tolist() == greedy(model, text, 12).tolist()
