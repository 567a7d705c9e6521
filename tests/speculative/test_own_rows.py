# SPDX-License-Identifier: Apache-2.0
"""Drafts whose LM head has rows for some tokens only: which tokens they may propose."""

import logging
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
from microspec_kernels.speculative.chain import sample_chain
from microspec_kernels.speculative.heads import Head, make_head
from microspec_kernels.speculative.models.cache import KVCache
from microspec_kernels.speculative.stats import Clock

from .eagle3 import ROWS, tensors, write
from .models import SIZE, VOCAB, example, prompt, ranking, tiny

D = 16
EVERY = torch.arange(VOCAB)
VALUES = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(VOCAB, D, generator=VALUES)
BIAS = torch.randn(VOCAB, generator=VALUES)
HIDDEN = torch.randn(6, D, generator=VALUES)
# The order is random, so that the test notices a row taken for a token, and the reverse.
OWN = torch.randperm(VOCAB, generator=VALUES)[:50]
HALF = LMHead(WEIGHT, BIAS, scale=0.5, softcap=3.0).only(OWN)
FREQUENT = torch.randperm(VOCAB, generator=VALUES)


def proposable(head: Head, group: int = 0) -> set[int]:
    groups = torch.full_like(EVERY, group)
    return set(head.contains(EVERY, groups).nonzero().flatten().tolist())


def check_ranks(head: Head, ids: list[int], row_groups: Tensor) -> None:
    """Check that the head ranks the tokens `ids` and no others, like fp64."""
    tokens = torch.tensor(ids)
    z = 0.5 * (HIDDEN.double() @ WEIGHT[tokens].double().T + BIAS[tokens].double())
    expected = (3 * torch.tanh(z / 3)).log_softmax(-1).topk(5)
    log_probs, got = ranking(head, HIDDEN, 5, row_groups)
    assert torch.equal(got, tokens[expected.indices])
    torch.testing.assert_close(log_probs, expected.values.float())
    logits, every = head.logits(HIDDEN, row_groups)
    assert {t for t in every.flatten().tolist() if t >= 0} == set(ids)
    close_to = (logits.float() - logits.float().logsumexp(-1, keepdim=True)).topk(5)
    torch.testing.assert_close(close_to.values, log_probs)
    assert torch.equal(every.gather(1, close_to.indices), got)


def test_rows_and_tokens() -> None:
    assert torch.equal(HALF.ids, OWN) and HALF.vocab_size == VOCAB
    assert HALF.to_rows(OWN).tolist() == list(range(50))
    others = torch.tensor([t for t in range(VOCAB) if t not in OWN.tolist()] + [-1])
    assert (HALF.to_rows(others) == -1).all()
    assert HALF.to_tokens(torch.tensor([[3, -1]])).tolist() == [[int(OWN[3]), -1]]
    assert torch.equal(HALF.with_rows(FREQUENT).sort().values, OWN.sort().values)
    fewer = HALF.only(OWN[[7, 2]])
    assert (
        torch.equal(fewer.weight, WEIGHT[OWN[[7, 2]]])
        and fewer.ids.tolist() == OWN[[7, 2]].tolist()
    )
    torch.testing.assert_close(fewer.logits(HIDDEN), HALF.logits(HIDDEN)[:, [7, 2]])


def test_dense_and_static_know_their_rows() -> None:
    groups = torch.zeros(6, dtype=torch.int64)
    dense = make_head("dense", HALF, 9, None, Policy(()), "indexed")
    check_ranks(dense, OWN.tolist(), groups)
    assert proposable(dense) == set(OWN.tolist()) and dense.active().tolist() == [50]
    static = make_head("static", HALF, 9, FREQUENT.int(), Policy(()), "indexed")
    first = [t for t in FREQUENT.tolist() if t in OWN.tolist()][:9]
    check_ranks(static, first, groups)
    assert proposable(static) == set(first) and static.active().tolist() == [9]
    strangers = torch.tensor([t for t in FREQUENT.tolist() if t not in OWN.tolist()])
    with pytest.raises(
        ValueError, match=r"frequent_tokens: expected tokens that .* has rows for, got"
    ):
        make_head("static", HALF, 9, strangers, Policy(()), "indexed")


@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("num_groups", [1, 2])
def test_sparse_learns_what_it_has_rows_for(mode: Any, num_groups: int) -> None:
    with_rows = OWN.tolist()
    strangers = [t for t in range(VOCAB) if t not in with_rows][:30]
    policy = Policy(
        (),
        pinned=[strangers[0], with_rows[30], with_rows[31]],
        frequent_tokens=[with_rows[31], with_rows[40]],
    )
    head = make_head("sparse", HALF, 12, None, policy, mode, num_groups)
    assert proposable(head) == {with_rows[30], with_rows[31], with_rows[40]}
    last = num_groups - 1
    seen = torch.tensor([*strangers, *with_rows[:8], -1])
    head.observe(seen, torch.full_like(seen, last))
    active = [with_rows[30], with_rows[31], with_rows[40], *with_rows[:8]]
    check_ranks(head, active, torch.full((6,), last))
    assert proposable(head, last) == set(active)
    assert head.active().tolist()[last] == 11
    more = torch.tensor(with_rows[10:14])
    head.observe(more, torch.full_like(more, last))
    assert proposable(head, last) == {
        with_rows[30],
        with_rows[31],
        *with_rows[:8][-6:],
        *with_rows[10:14],
    }


@pytest.mark.parametrize("head", ["dense", "static", "sparse"])
def test_a_perfect_draft_is_right_until_a_token_it_has_no_row_for(head: Any) -> None:
    model, text, truth = example("llama")
    target, draft = CausalModel(model), ModelDraft(model)
    missing = set(truth[4::5].tolist()) - set(truth[:4].tolist())
    with_rows = torch.tensor([t for t in FREQUENT.tolist() if t not in missing])
    draft.lm_head = target.lm_head.only(with_rows)
    policy = Policy(TEXT, frequent_tokens=FREQUENT)
    result = generate(
        target, draft, text, len(truth), head=head, capacity=VOCAB, frequent_tokens=FREQUENT,
        policy=policy, depth=5, tree_width=1,
    )  # fmt: skip
    assert result.tokens.tolist() == truth.tolist()
    hits = [token not in missing for token in truth.tolist()]
    lengths, at = [], 1
    while at < len(truth):
        right = next((i for i, hit in enumerate(hits[at : at + 5]) if not hit), 5)
        lengths.append(min(right + 1, len(truth) - at))
        at += right + 1
    assert result.acceptance_lengths == lengths
    assert result.stats.coverage == sum(hits[1:]) / (len(truth) - 1)
    assert set(result.stats.active_sizes) == {len(with_rows)}


@torch.no_grad()
@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_a_chain_is_drawn_from_the_rows_there_are(head: Any) -> None:
    model, text, _ = example("llama")
    draft, cache = ModelDraft(model), KVCache(2, text.device)
    draft.lm_head = draft.lm_head.only(OWN)
    drafting_head = make_head(
        head, draft.lm_head, VOCAB, None, Policy((), frequent_tokens=OWN), "indexed"
    )
    roots, groups = text[0, -1:], torch.zeros(1, dtype=torch.int64)
    feature = draft.extend(text, text[:, :0], torch.tensor([text.shape[1]]), cache)
    chain = sample_chain(
        roots, feature, groups, draft, cache, drafting_head, Sampling(1.0), torch.rand(1,
        3).double(), Clock(roots.device, {}, on=False),
    )  # fmt: skip
    assert set(chain.tokens[0, 1:].tolist()) <= set(OWN.tolist())
    distribution = model(text).logits[0, -1, OWN].double().softmax(0)
    expected = torch.zeros(VOCAB, dtype=torch.float64).scatter(0, OWN, distribution)
    torch.testing.assert_close(chain.draft_probs[0, 0], expected, rtol=1e-3, atol=1e-6)


def test_a_head_over_other_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight: expected shape \[199, D\], got \[50, 16\]"):
        Sparse(HALF, ActiveVocab(VOCAB, 8))
    assert Dense(HALF).active().tolist() == [50]


def copied(target: CausalModel, state: dict[str, Tensor]) -> Tensor:
    """Return the target's rows of a checkpoint's tokens."""
    return target.lm_head.weight[torch.arange(ROWS) + state["d2t"]].clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_of_the_targets_rows_get_them_all(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Equality counts in the target's dtype; one different last bit makes them the draft's own."""
    model = tiny("llama", num_hidden_layers=7, initializer_range=0.3).to(dtype)
    target, state = CausalModel(model), tensors("speculators")
    state["lm_head.weight"] = copied(target, state).float()
    write(tmp_path, "speculators", state)
    with caplog.at_level(logging.INFO):
        draft = load_draft(tmp_path, target)
    assert "rows are the target's: all 199 tokens" in caplog.text
    assert draft.lm_head.weight is target.lm_head.weight and draft.lm_head.token_rows is None
    assert torch.equal(draft.norm.weight, state["norm.weight"].to(dtype))
    spread = Dense(draft.lm_head).topk(torch.randn(40, SIZE).to(dtype), 5, torch.zeros(40).long())
    assert set(spread[1].flatten().tolist()) - set((torch.arange(ROWS) + state["d2t"]).tolist())

    row = state["lm_head.weight"][17]
    row[5] *= 1 + 2 * torch.finfo(dtype).eps
    write(tmp_path, "speculators", state)
    with caplog.at_level(logging.INFO):
        draft = load_draft(tmp_path, target)
    assert "rows are its own: 60 tokens of 199" in caplog.text
    assert torch.equal(draft.lm_head.ids, torch.arange(ROWS) + state["d2t"])
    assert torch.equal(draft.lm_head.weight, state["lm_head.weight"].to(dtype))


def test_the_targets_soft_cap_is_not_the_drafts(tmp_path: Path) -> None:
    """Drafts are trained without it, whether their rows are copies, their own or missing."""
    target = CausalModel(tiny("gemma3_text", num_hidden_layers=7, final_logit_softcapping=3.0))
    assert target.lm_head.softcap == 3
    state = tensors("speculators")
    copies = {"lm_head.weight": copied(target, state)}
    none = {k: v for k, v in state.items() if k not in ("lm_head.weight", "d2t", "t2d")}
    for tried in (state, state | copies, none):
        draft = load_draft(write(tmp_path, "speculators", tried), target)
        assert draft.lm_head.softcap == 0
        assert len(generate(target, draft, prompt(9), 6).tokens) == 6


def test_every_token_has_its_own_row(tmp_path: Path) -> None:
    """A head with V rows needs no d2t; if it has one in another order, the loader applies it."""
    target, state = CausalModel(tiny("llama", num_hidden_layers=7)), tensors("official")
    del state["d2t"], state["t2d"]
    state["lm_head.weight"] = torch.randn(VOCAB, SIZE)
    draft = load_draft(write(tmp_path, "official", state, draft_vocab_size=VOCAB), target)
    assert torch.equal(draft.lm_head.ids, EVERY)
    state |= {"d2t": FREQUENT - EVERY, "t2d": torch.ones(VOCAB, dtype=torch.bool)}
    draft = load_draft(write(tmp_path, "official", state, draft_vocab_size=None), target)
    assert torch.equal(draft.lm_head.ids, FREQUENT)
