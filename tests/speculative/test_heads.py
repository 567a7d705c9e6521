# SPDX-License-Identifier: Apache-2.0
"""The three heads rank equally over the same tokens; and what the sparse one learns."""

from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels import ActiveVocab
from microspec_kernels.policy import MICROSPEC, Policy
from microspec_kernels.speculative import CausalModel, LMHead, Sparse, generate
from microspec_kernels.speculative.heads import Dense, Head, Static, make_head

from .models import VOCAB, Spy, example, noisy, ranking

D = 16
WEIGHT = torch.randn(VOCAB, D, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
HIDDEN = torch.randn(6, D, generator=torch.Generator().manual_seed(2))
IDS = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(3))
EVERY = torch.arange(VOCAB)
ON_STEP = tuple(source for source in MICROSPEC if source.stage == "step")


def restricted(hidden: Tensor, ids: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and ids of the k best among `ids`, from fp64 logits."""
    logits = hidden.double() @ WEIGHT[ids].double().T
    logits = logits if bias is None else logits + bias[ids].double()
    best = logits.log_softmax(-1).topk(k)
    return best.values.float(), ids[best.indices]


def in_group(group: int, tokens: Tensor) -> Tensor:
    return torch.full_like(tokens, group)


def proposable(head: Head, group: int = 0) -> list[int]:
    return head.contains(EVERY, in_group(group, EVERY)).nonzero().flatten().tolist()


@pytest.mark.parametrize("bias", [None, BIAS], ids=["plain", "bias"])
@pytest.mark.parametrize("name", ["dense", "static", "indexed", "packed"])
def test_heads_rank_their_tokens(name: Any, bias: Tensor | None) -> None:
    head: Head
    lm_head, groups = LMHead(WEIGHT, bias), torch.zeros(6, dtype=torch.int64)
    if name == "dense":
        head, ids = Dense(lm_head), EVERY
    elif name == "static":
        head, ids = Static(lm_head, IDS[:40]), IDS[:40]
    else:
        head, ids = Sparse(lm_head, ActiveVocab(VOCAB, 64), name), IDS[:40]
        head.observe(ids, in_group(0, ids))
    log_probs, tokens = ranking(head, HIDDEN, 10, groups)
    expected_log_probs, expected_tokens = restricted(HIDDEN, ids, bias, 10)
    assert torch.equal(tokens, expected_tokens)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, expected_log_probs)
    assert proposable(head) == ids.sort().values.tolist()
    assert head.active().tolist() == [len(ids)]
    assert head.num_groups == 1


@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_a_vocabulary_for_each_group(mode: Any) -> None:
    """Rows rank their group's tokens, while other groups gain and lose theirs."""
    pinned = [5, 6]
    policy = Policy(MICROSPEC, pinned=pinned)
    head = make_head("sparse", LMHead(WEIGHT, BIAS), 30, None, policy, mode, num_groups=3)
    assert head.num_groups == 3
    rest = IDS[~torch.isin(IDS, torch.tensor(pinned))]
    taught = {0: rest[:20], 2: rest[40:80]}
    tokens = torch.cat(list(taught.values()))
    groups = torch.cat([in_group(group, learned) for group, learned in taught.items()])
    mixed = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(4))
    head.observe(tokens[mixed], groups[mixed])
    newest = {group: tokens[mixed][groups[mixed] == group][-28:] for group in taught}

    def check() -> None:
        rows = torch.tensor([2, 0, 1, 1, 0, 2])
        log_probs, ids = ranking(head, HIDDEN, 12, rows)
        for group in range(3):
            tokens_of_group = torch.cat((torch.tensor(pinned), newest.get(group, IDS[:0])))
            assert proposable(head, group) == tokens_of_group.sort().values.tolist()
            assert head.active()[group] == len(tokens_of_group)
            count = min(12, len(tokens_of_group))
            expected = restricted(HIDDEN[rows == group], tokens_of_group, BIAS, count)
            torch.testing.assert_close(log_probs[rows == group, :count], expected[0])
            assert torch.equal(ids[rows == group, :count], expected[1])
            assert (ids[rows == group, count:] == -1).all()

    check()
    head.reset(2)
    del newest[2]
    head.observe(rest[:0], rest[:0])  # the loop's next call; in packed mode it reads rows
    check()


def test_make_head() -> None:
    frequent, lm_head, policy = EVERY.flip(0).int(), LMHead(WEIGHT), Policy(MICROSPEC)
    static = make_head("static", lm_head, 3, frequent, policy, "indexed")
    assert proposable(static) == [196, 197, 198]
    for count in (10, 4, 0):
        policy = Policy(MICROSPEC, pinned=frequent[:count])
        sparse = make_head("sparse", lm_head, 30, frequent, policy, "indexed")
        assert sparse.active().tolist() == [count]
        sparse.observe(EVERY[:100], in_group(0, EVERY[:100]))
        assert set(range(VOCAB - count, VOCAB)) <= set(proposable(sparse))
        assert sparse.active().tolist() == [30]
    policy = Policy(MICROSPEC, frequent_tokens=frequent[:20], pinned=[3])
    sparse = make_head("sparse", lm_head, 12, None, policy, "indexed")
    assert proposable(sparse) == [3, *range(VOCAB - 11, VOCAB)]


def test_packed_groups_are_two_buffers_of_one_slab() -> None:
    vocab = ActiveVocab(VOCAB, 30, num_groups=3)
    packed = Sparse(LMHead(WEIGHT), vocab, "packed")
    assert packed.head.slab is not None
    buffers = packed.head.slab.buffers
    assert packed.head.slab.rows.shape == (buffers * 3, 30, D)


def test_the_sparse_head_hears_all_sources_and_coverage_is_counted() -> None:
    model, text, truth = example("llama")
    depth, draft = 3, noisy(model)
    spy = Spy(CausalModel(draft).lm_head, 40)
    result = generate(
        model, draft, text, len(truth), head=spy, depth=depth, tree_width=4, tree_size=100,
        policy=Policy(MICROSPEC),
    )  # fmt: skip
    assert result.tokens.tolist() == truth.tolist()

    with torch.no_grad():
        best = model(text).logits[0].topk(3).indices
    expected = [[t, *row.flip(0).tolist()] for t, row in zip(text[0].tolist(), best, strict=True)]
    assert spy.told[0].view(-1, 4).tolist() == expected

    covered, sizes, at = [], [], 1
    for step, length in enumerate(result.acceptance_lengths):
        calls = slice(depth * step, depth * (step + 1))
        (active,) = spy.at_call[depth * step]
        assert all(other == [active] for other in spy.at_call[calls]), "it changed under a draft"
        # A tree of 100 nodes holds all candidates, so the head has observed all of them.
        told = set(spy.told[step + 1].tolist())
        assert set().union(*(proposed[0] for proposed in spy.proposed[calls])) <= told
        emitted = truth[at : at + length].tolist()
        assert set(emitted) <= told
        assert set(emitted[:-1]) <= active, "accepted, though it could not be proposed"
        covered += [token in active for token in emitted]
        sizes.append(len(active))
        at += length
    assert result.stats.covered == covered
    assert set(covered) == {True, False}
    assert result.stats.active_sizes == sizes
    assert max(sizes) == result.stats.active_max == 40


def test_without_prompt_sources_the_vocabulary_starts_empty() -> None:
    model, text, truth = example("llama")
    spy = Spy(CausalModel(model).lm_head, VOCAB)
    result = generate(model, model, text, len(truth), head=spy, policy=Policy(ON_STEP))
    assert result.tokens.tolist() == truth.tolist()
    assert spy.at_call[0] == [set()]
    assert result.acceptance_lengths[0] == 1
    assert result.stats.active_sizes[0] == 0 < result.stats.active_max


def test_a_head_of_ones_own_keeps_what_it_learned() -> None:
    model, text, truth = example("llama")
    spy, policy = Spy(CausalModel(model).lm_head, VOCAB), Policy(ON_STEP)
    taus = [
        generate(model, model, text, len(truth), head=spy, tree_width=2, policy=policy).stats.tau
        for _ in range(2)
    ]
    assert taus[1] > taus[0]


@pytest.mark.parametrize(
    ("head", "sources", "wanted"),
    [("dense", MICROSPEC, 1), ("sparse", MICROSPEC, 24), ("sparse", ON_STEP, 1)],
)
def test_the_prompts_logits_are_made_only_where_wanted(
    head: Any, sources: Any, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text, _ = example("llama")
    target, rows = CausalModel(model), []
    whole = target.logits

    def counted(hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return whole(hidden)

    monkeypatch.setattr(target, "logits", counted)
    # One token needs the prompt alone; no tree is drafted.
    generate(target, model, text, 1, head=head, policy=Policy(sources))
    assert rows == [1, 24][: 1 + (wanted > 1)]
