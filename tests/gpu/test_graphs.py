# SPDX-License-Identifier: Apache-2.0
"""One captured graph serves every step: 10,000 replays, each compared with the reference."""

from collections.abc import Callable, Sequence

import pytest
import torch
from generators import vocab_state
from torch import Tensor

from microspec_kernels import (
    ActiveVocab,
    SparseHead,
    Tally,
    WeightSlab,
    sparse_head,
    tree_accept,
    tree_cut,
    tree_grow_,
    vocab_count_,
    vocab_observe_,
    vocab_refill_,
    vocab_update_,
)

from .cases import MODELS, real_case, results
from .lockstep import BEST, CAPACITY, PINNED, ROWS, VOCAB_SIZE, Lockstep

STEPS = 10_000


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Warm up and capture ``step``; return the graph's replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class Static:
    """The graph's inputs and outputs."""

    def __init__(self, lockstep: Lockstep) -> None:
        self.all_tokens, self.all_hiddens = lockstep.tokens.cuda(), lockstep.hiddens.cuda()
        self.order = lockstep.order
        self.tokens, self.hidden = self.all_tokens[0].clone(), self.all_hiddens[0].clone()
        self.results = (
            torch.empty(ROWS, BEST, device="cuda"),
            torch.empty(ROWS, BEST, dtype=torch.int64, device="cuda"),
            torch.empty(ROWS, device="cuda"),
        )

    def load(self, index: int) -> None:
        self.tokens.copy_(self.all_tokens[index])
        self.hidden.copy_(self.all_hiddens[self.order[index]])
        for result in self.results:
            result.fill_(123)

    def store(self, results: tuple[Tensor, ...]) -> None:
        for result, value in zip(self.results, results, strict=True):
            result.copy_(value)


@pytest.mark.parametrize(
    ("mode", "buffers"), [("indexed", None), ("packed", 1), ("packed", 2)], ids=str
)
def test_update_refresh_head(mode: str, buffers: int | None) -> None:
    """Vocabulary, slab and head in one graph: the head knows the tokens of its step."""
    lockstep = Lockstep(STEPS)
    static = Static(lockstep)
    vocab = ActiveVocab(VOCAB_SIZE, CAPACITY, pinned=PINNED, device="cuda")
    head = SparseHead(lockstep.weight.cuda(), vocab, mode=mode, buffers=buffers)  # type: ignore[arg-type]

    def step() -> None:
        head.observe(static.tokens)
        static.store(head(static.hidden, BEST))

    replay = captured(step)
    vocab.reset()
    for index in range(STEPS):
        static.load(index)
        replay()
        lockstep.step(index)
        lockstep.check_vocab(index, vocab)
        lockstep.check_head(index, lockstep.vocab.ids[0], static.results)
    assert lockstep.evictions > STEPS


def test_the_head_reads_the_front_while_the_back_is_refreshed() -> None:
    """In this graph they run side by side: the head knows the tokens of the step before."""
    lockstep = Lockstep(STEPS, seed=1)
    static = Static(lockstep)
    vocab = ActiveVocab(VOCAB_SIZE, CAPACITY, pinned=PINNED, device="cuda")
    slab = WeightSlab(lockstep.weight.cuda(), vocab)

    def step() -> None:
        view = slab.front()
        vocab.update(static.tokens)
        slab.refresh()
        static.store(
            sparse_head(
                static.hidden, view.rows, view.ids, BEST, packed=True, group_ids=view.group_ids
            )
        )
        slab.wait()

    replay = captured(step)
    vocab.reset()
    slab.invalidate()
    slab.refresh()
    torch.cuda.synchronize()
    for index in range(STEPS):
        static.load(index)
        replay()
        active_ids = lockstep.vocab.ids[0].clone()
        lockstep.step(index)
        lockstep.check_vocab(index, vocab)
        lockstep.check_head(index, active_ids, static.results)
    assert lockstep.evictions > STEPS


def test_count_observe_update_refill() -> None:
    """Every op that learns in one graph; the list and the floor change from replay to replay."""
    rng = torch.Generator().manual_seed(3)
    size, groups, capacity, pinned = 5000, 4, 64, 40
    want = vocab_state(size, capacity, num_groups=groups)
    tally, ranks = (
        Tally(size, num_lists=2, num_requests=groups),
        torch.randperm(size, generator=rng),
    )
    here = (*want.tensors(), tally.data, ranks.int())
    there = [t.cuda() for t in here]
    prompt, tokens = (torch.zeros(groups, n, dtype=torch.int64, device="cuda") for n in (50, 20))
    lengths = torch.zeros(groups, dtype=torch.int64, device="cuda")
    owners = torch.arange(groups).repeat_interleave(20).repeat(2)
    of_groups = {"cpu": owners, "cuda": owners.cuda()}

    def step(tensors: Sequence[Tensor], prompt: Tensor, tokens: Tensor, lengths: Tensor) -> None:
        *state, data, ranks = tensors
        owned = Tally.over(data, size, 2)
        lists, learned = owned.request_lists, {"total_counts": owned.total_counts}
        vocab_count_(owned.text_counts, owned.seen, prompt, request_lists=lists, **learned)
        vocab_update_(*state, prompt)
        vocab_observe_(
            *state, tokens, lengths=lengths, candidates=tokens, token_rows=ranks,
            token_groups=of_groups[data.device.type], tally=data, num_lists=2,
        )  # fmt: skip
        options = {**learned, "pinned": pinned, "reset": False}
        vocab_refill_(*state, owned.text_counts, ranks, lists, **options)

    before = [t.clone() for t in there]
    replay = captured(lambda: step(there, prompt, tokens, lengths))
    for tensor, start in zip(there, before, strict=True):
        tensor.copy_(start)
    of_tallies = [Tally.over(tensors[-2], size, 2) for tensors in (here, there)]
    for _ in range(300):
        now = [(torch.rand(groups, n, generator=rng) ** 3 * size).long() for n in (50, 20)]
        now.append(torch.randint(0, 21, (groups,), generator=rng))
        lists = torch.randint(-1, 2, (groups,), generator=rng)
        for each in of_tallies:
            each.request_lists.copy_(lists)
        for target, value in zip((prompt, tokens, lengths), now, strict=True):
            target.copy_(value)
        replay()
        step(here, *now)
        for got, wanted in zip(there, here, strict=True):
            assert torch.equal(got.cpu(), wanted)
    assert bool((of_tallies[0].verdicts > 0).all()), "tokens of both verdicts in every group"


def test_a_tree_grows_is_cut_and_is_verified() -> None:
    """In one graph, of which no shape depends on what a replay reads."""
    texts, width, depth, size = 3, 4, 4, 12
    rows = [texts, *[texts * width] * (depth - 1)]
    places = width + (depth - 1) * width * width

    def step(answers: Sequence[tuple[Tensor, ...]], roots: Tensor, target: Tensor) -> list[Tensor]:
        tokens = torch.empty(texts, places, dtype=torch.int64, device=roots.device)
        pool = tokens, torch.empty_like(tokens), torch.empty_like(tokens, dtype=torch.float32)
        frontier, begin = None, 0
        for answer, count in zip(answers, rows, strict=True):
            options = {"begin": begin, "frontier": frontier}
            frontier = tree_grow_(*pool, *answer, width, **options)[0]
            begin += count // texts * width
        tree = tree_cut(roots, *pool, size)
        chosen = target.gather(1, tree[0].clamp(min=0))
        return [*pool, *tree, *tree_accept(*tree[:2], chosen, depth)]

    def drawn(rng: torch.Generator) -> tuple[list[tuple[Tensor, ...]], Tensor, Tensor]:
        answers = []
        for count in rows:
            logits = torch.randn(count, width, generator=rng).mul(4).round().div(4)
            ids = torch.randint(8, (count, width), generator=rng)
            answers.append((logits, ids, logits.logsumexp(1)))
        roots, target = (torch.randint(8, (texts, n), generator=rng) for n in (1, 8))
        return answers, roots[:, 0].contiguous(), target

    def flat(inputs: tuple[list[tuple[Tensor, ...]], Tensor, Tensor]) -> list[Tensor]:
        return [*(tensor for answer in inputs[0] for tensor in answer), *inputs[1:]]

    rng = torch.Generator().manual_seed(5)
    there = [tensor.cuda() for tensor in flat(drawn(rng))]
    levels = [tuple(there[3 * level : 3 * level + 3]) for level in range(depth)]
    results: list[Tensor] = []

    def run() -> None:
        results[:] = step(levels, *there[-2:])

    replay, longest = captured(run), 0
    for _ in range(300):
        inputs = drawn(rng)
        for target, value in zip(there, flat(inputs), strict=True):
            target.copy_(value)
        replay()
        want = step(*inputs)
        longest = max(longest, int(want[-2].max()))
        for got, wanted in zip(results, want, strict=True):
            assert torch.equal(got.cpu(), wanted)
    assert longest > 2, "hardly a node was accepted"


def test_a_replay_does_what_the_call_did() -> None:
    """Large and odd shapes need several kernels and a workspace."""
    rng = torch.Generator("cuda").manual_seed(0)
    for m, capacity in ((1, 3072), (10, 3072), (60, 3072), (300, 3072), (4, 20000)):
        case = real_case(rng, MODELS["llama"], m=m, capacity=capacity)
        want = results(case, 10)
        got = tuple(torch.empty_like(t) for t in want)

        def step(case=case, got=got) -> None:  # type: ignore[no-untyped-def]
            for target, value in zip(got, results(case, 10), strict=True):
                target.copy_(value)

        replay = captured(step)
        for _ in range(5):
            for target in got:
                target.fill_(7)
            replay()
            for one, other in zip(got, want, strict=True):
                assert torch.equal(one, other), (m, capacity)
