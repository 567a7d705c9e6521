"""The three heads rank alike where they know the same tokens, and the vocabulary's sources."""

from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels import ActiveVocab
from microspec_kernels.speculative import SOURCES, CausalModel, Seen, Sparse, generate
from microspec_kernels.speculative.heads import Dense, Head, Static, make_head
from microspec_kernels.speculative.loop import likeliest
from microspec_kernels.speculative.sources import take

from .models import VOCAB, example, noisy

D = 16
WEIGHT = torch.randn(VOCAB, D, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
HIDDEN = torch.randn(5, D, generator=torch.Generator().manual_seed(2))
IDS = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(3))[:40]


def restricted(ids: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids of the k best among `ids`, from fp64 logits."""
    logits = HIDDEN.double() @ WEIGHT[ids].double().T
    logits = logits if bias is None else logits + bias[ids].double()
    best = logits.log_softmax(-1).topk(k)
    return best.values.float(), ids[best.indices]


@pytest.mark.parametrize("bias", [None, BIAS], ids=["plain", "bias"])
@pytest.mark.parametrize("name", ["dense", "static", "indexed", "packed"])
def test_heads_rank_their_tokens(name: Any, bias: Tensor | None) -> None:
    head: Head
    if name == "dense":
        head, ids = Dense(WEIGHT, bias), torch.arange(VOCAB)
    elif name == "static":
        head, ids = Static(WEIGHT, bias, IDS), IDS
    else:
        head, ids = Sparse(WEIGHT, bias, ActiveVocab(VOCAB, 64), name), IDS
        head.observe(IDS)
    log_probs, tokens = head.topk(HIDDEN, 10)
    expected_log_probs, expected_tokens = restricted(ids, bias, 10)
    assert torch.equal(tokens, expected_tokens)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, expected_log_probs)
    known = head.contains(torch.arange(VOCAB))
    assert known.nonzero().flatten().tolist() == ids.sort().values.tolist()
    assert head.active() == len(ids)


def test_make_head() -> None:
    ranking = torch.arange(VOCAB).flip(0).int()
    static = make_head("static", WEIGHT, None, 3, ranking, None, "indexed")
    assert static.contains(torch.arange(VOCAB)).nonzero().flatten().tolist() == [196, 197, 198]
    for pinned, floor in ((None, 10), (4, 4), (0, 0)):
        sparse = make_head("sparse", WEIGHT, None, 30, ranking, pinned, "indexed")
        assert sparse.active() == floor
        sparse.observe(torch.arange(100))
        assert sparse.contains(torch.arange(VOCAB - floor, VOCAB)).all()
        assert sparse.active() == 30
    assert make_head("sparse", WEIGHT, None, 30, None, None, "indexed").active() == 0


def test_sources_take_what_they_say() -> None:
    tokens, best = torch.tensor([1, 2]), torch.tensor([[3, 4, 5], [6, 7, 8]])
    seen = Seen(tokens, best)
    taken = {source.name: source.take(seen).tolist() for source in SOURCES}
    assert taken == {
        "prompt": [[1], [2]],
        "prompt_top3": [[5, 4, 3], [8, 7, 6]],
        "tree": [[1], [2]],
        "argmax": [[3], [6]],
        "top3": [[5, 4, 3], [8, 7, 6]],
    }
    on_step = [source for source in SOURCES if source.stage == "step"]
    # Row by row, each row's likeliest next token last: what is newest is forgotten last.
    assert take(on_step, seen).tolist() == [1, 3, 5, 4, 3, 2, 6, 8, 7, 6]
    assert take([], seen).tolist() == []


def test_likeliest_puts_the_argmax_first() -> None:
    logits = torch.randn(30, 50, generator=torch.Generator().manual_seed(4))
    logits[::2] = logits[::2].round()  # ties everywhere
    for count in (0, 1, 2, 3, 80):
        tokens = likeliest(logits, count)
        assert tokens.shape == (30, min(max(count, 1), 50))
        assert torch.equal(tokens[:, 0], logits.argmax(-1))
    assert torch.equal(likeliest(logits[1::2], 3), logits[1::2].topk(3).indices)


class Spy(Sparse):
    """Notes which tokens were active at every call, and what it was told."""

    def __init__(self, weight: Tensor, capacity: int) -> None:
        super().__init__(weight, None, ActiveVocab(len(weight), capacity))
        self.at_call: list[set[int]] = []
        self.proposed: list[set[int]] = []
        self.told: list[Tensor] = []

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        self.at_call.append(set(self.vocab.ids.flatten().tolist()) - {-1})
        log_probs, tokens = super().topk(hidden, k)
        self.proposed.append(set(tokens.flatten().tolist()) - {-1})
        return log_probs, tokens

    def observe(self, tokens: Tensor) -> None:
        self.told.append(tokens)
        super().observe(tokens)


def test_the_sparse_head_hears_all_sources_and_coverage_is_counted() -> None:
    model, text, truth = example("llama")
    depth, draft = 3, noisy(model)
    spy = Spy(CausalModel(draft).head_weight, 40)
    result = generate(model, draft, text, len(truth), head=spy, depth=depth, top_k=4, tree_size=100)
    assert result.tokens.tolist() == truth.tolist()

    with torch.no_grad():
        best = model(text).logits[0].topk(3).indices
    expected = [[t, *row.flip(0).tolist()] for t, row in zip(text[0].tolist(), best, strict=True)]
    assert spy.told[0].view(-1, 4).tolist() == expected

    covered, sizes, at = 0, [], 1
    for step, length in enumerate(result.acceptance_lengths):
        calls = slice(depth * step, depth * (step + 1))
        active = spy.at_call[depth * step]
        assert all(other == active for other in spy.at_call[calls]), "it changed under a draft"
        # A tree of 100 nodes holds all candidates, so the head heard of all of them.
        told = set(spy.told[step + 1].tolist())
        assert set().union(*spy.proposed[calls]) <= told
        emitted = truth[at : at + length].tolist()
        assert set(emitted) <= told
        assert set(emitted[:-1]) <= active, "accepted, though it could not be proposed"
        covered += sum(token in active for token in emitted)
        sizes.append(len(active))
        at += length
    assert result.stats.covered == covered
    assert 0 < covered < len(truth)
    assert result.stats.active_sizes == sizes
    assert max(sizes) == result.stats.active_max == 40


def test_without_prompt_sources_the_vocabulary_starts_empty() -> None:
    model, text, truth = example("llama")
    spy = Spy(CausalModel(model).head_weight, VOCAB)
    sources = [source for source in SOURCES if source.stage == "step"]
    result = generate(model, model, text, len(truth), head=spy, sources=sources)
    assert result.tokens.tolist() == truth.tolist()
    assert spy.at_call[0] == set()
    assert result.acceptance_lengths[0] == 1
    assert result.stats.active_sizes[0] == 0 < result.stats.active_max


def test_a_head_of_ones_own_keeps_what_it_learned() -> None:
    model, text, truth = example("llama")
    spy = Spy(CausalModel(model).head_weight, VOCAB)
    taus = [
        generate(model, model, text, len(truth), head=spy, top_k=2, sources=SOURCES[2:]).stats.tau
        for _ in range(2)
    ]
    assert taus[1] > taus[0]


@pytest.mark.parametrize(
    ("head", "sources", "wanted"),
    [("dense", SOURCES, 1), ("sparse", SOURCES, 24), ("sparse", SOURCES[2:], 1)],
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
    generate(target, model, text, 4, head=head, sources=sources)
    assert rows[0] == wanted
