# SPDX-License-Identifier: Apache-2.0
"""Each text of a batch teaches its group's vocabulary, and has its own figures."""

from itertools import pairwise

from microspec_kernels import SparseHead
from microspec_kernels.policy import MICROSPEC, Policy, generated
from microspec_kernels.policy import prompt as from_prompt
from microspec_kernels.speculative import Batch, CausalModel, Request

from .models import VOCAB, Spy, prompt
from .schedule import SHAPE, Text, figures, pair, run


def given_tokens(length: int) -> set[int]:
    return set(prompt(length, seed=length)[0].tolist())


def test_a_group_is_its_texts_own_and_begins_anew_with_the_next() -> None:
    target, draft = pair()
    pinned = {3, 4}
    spy = Spy(CausalModel(draft).lm_head, VOCAB, num_groups=2, pinned=sorted(pinned))
    policy = Policy((from_prompt(), generated()))
    batch = Batch(target, draft, head=spy, policy=policy, **SHAPE)
    texts = [Text(9, 4), Text(21, 12), Text(4, 9), Text(14, 0), Text(14, 5)]
    checked = set()

    def check(there: dict[Request, Text]) -> None:
        """Check that a group's vocabulary has its text's prompt and continuation only."""
        for request, text in there.items():
            # The first token belongs to the prompt; this policy takes the tokens that steps added.
            expected = pinned | given_tokens(text.length) | set(request.tokens[1:])
            assert spy.active_sets()[request.group] == expected
            checked.add(request)

    requests = run(batch, texts, before=check)
    # The first request leaves first, and the third takes its group; the fourth needs no group.
    assert [request.group for request in requests[:3]] == [0, 1, 0]
    assert len(checked) == 4
    assert spy.resets == [request.group for request in requests if request.tokens]
    assert batch.free_groups == [0, 1]


def test_a_shared_vocabulary_hears_all_texts() -> None:
    target, draft = pair()
    spy = Spy(CausalModel(draft).lm_head, VOCAB)
    batch = Batch(target, draft, head=spy, policy=Policy((from_prompt(), generated())), **SHAPE)
    first, second = (batch.join(prompt(n, seed=n), 14) for n in (9, 21))
    both = given_tokens(9) | given_tokens(21)
    while batch.requests:
        expected = both | set(first.tokens[1:]) | set(second.tokens[1:])
        assert spy.active_sets() == [expected]
        batch.step()
        assert spy.at_call[-1] == [expected]
    assert spy.resets == []
    third = batch.join(prompt(4, seed=4), 5)
    assert third.group == 0
    assert expected < spy.active_sets()[0], "what earlier texts have left serves the next"


def test_packed_rows_of_every_group_in_two_buffers() -> None:
    """The slab is [2 · G, K, D]: its groups are buffers × groups of the vocabulary."""
    target, draft = pair("qwen3")
    lm_head, texts = CausalModel(draft).lm_head, [Text(9, 12), Text(21, 9), Text(4, 12)]
    runs = []
    for buffers in (None, 2):
        spy = Spy(lm_head, 50, num_groups=3)
        if buffers:
            spy.head = SparseHead(lm_head.weight, spy.vocab, mode="packed", buffers=buffers)
            assert spy.head.slab is not None
            assert spy.head.slab.rows.shape == (2 * 3, 50, lm_head.weight.shape[1])
        batch = Batch(target, draft, head=spy, policy=Policy(MICROSPEC), **SHAPE)
        runs.append(([figures(request) for request in run(batch, texts)], spy.proposed))
    assert runs[0] == runs[1]


def test_each_texts_figures_are_its_own() -> None:
    target, draft = pair()
    spy = Spy(CausalModel(draft).lm_head, 40, num_groups=3)
    batch = Batch(target, draft, head=spy, policy=Policy(MICROSPEC), timed=True, **SHAPE)
    expected: dict[Request, tuple[list[int], list[set[int]]]] = {}

    def note(there: dict[Request, Text]) -> None:
        for request in there:
            ends, sets = expected.setdefault(request, ([], []))
            ends.append(len(request.tokens))
            sets.append(spy.active_sets()[request.group])

    requests = run(batch, [Text(9, 12), Text(21, 7), Text(4, 12)], before=note)
    for request in requests:
        ends, sets = expected[request]
        bounds = [*ends, len(request.tokens)]
        stats = request.stats
        assert stats.acceptance_lengths == [b - a for a, b in pairwise(bounds)]
        assert stats.active_sizes == [len(active) for active in sets]
        assert stats.covered == [
            token in active
            for active, (a, b) in zip(sets, pairwise(bounds), strict=True)
            for token in request.tokens[a:b]
        ]
        assert 0 < stats.coverage < 1
        assert stats.seconds is batch.seconds, "the passes are the batch's"
    parts = {"prefill", "draft_layer", "head", "vocabulary", "tree", "verify"}
    assert batch.seconds.keys() == parts | {"total"}
    assert sum(batch.seconds[part] for part in parts) <= batch.seconds["total"]
