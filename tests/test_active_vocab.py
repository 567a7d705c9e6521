# SPDX-License-Identifier: Apache-2.0
"""ActiveVocab, the object around a vocabulary's state."""

import re
from typing import Any

import pytest
import torch
from compare import assert_bitwise
from generators import PINNED, VocabState
from hypothesis import given
from hypothesis import strategies as st
from lru import Lru, assert_holds

from microspec_kernels import ActiveVocab, Coverage


def state_of(vocab: ActiveVocab) -> VocabState:
    return VocabState(vocab.ids, vocab.slot_stamps, vocab.token_slots, vocab.clock)


@given(
    capacity=st.integers(1, 9),
    num_groups=st.integers(1, 3),
    pin=st.integers(0, 9),
    seed=st.integers(0, 999),
)
def test_is_an_lru_per_group(capacity: int, num_groups: int, pin: int, seed: int) -> None:
    pinned = [11, 2, 7, 5, 3, 1, 0, 19, 18][: min(pin, capacity)]
    vocab = ActiveVocab(20, capacity, num_groups=num_groups, pinned=pinned)
    caches = [Lru(capacity, pinned) for _ in range(num_groups)]
    rng = torch.Generator().manual_seed(seed)
    for _ in range(4):
        tokens = torch.randint(-1, 20, (num_groups, 6), generator=rng)
        vocab.update(tokens)
        ragged, which = (
            torch.randint(0, 20, (5,), generator=rng),
            torch.randint(-1, num_groups, (5,)),
        )
        vocab.update(ragged, token_groups=which)
        for group, cache in enumerate(caches):
            cache.see(tokens[group].tolist())
            cache.see(ragged[which == group].tolist())
            assert_holds(state_of(vocab), group, cache)
        active = [cache.pinned | set(cache.tokens) for cache in caches]
        assert vocab.size.tolist() == [len(tokens) for tokens in active]
        everything = torch.arange(-1, 20).expand(num_groups, -1)
        contained = vocab.contains(everything)
        assert contained.tolist() == [[t in tokens for t in range(-1, 20)] for tokens in active]


def test_pinned_take_the_first_slots_and_stay() -> None:
    vocab = ActiveVocab(100, 4, num_groups=2, pinned=torch.tensor([40, 30]))
    assert vocab.ids.tolist() == [[40, 30, -1, -1]] * 2
    assert vocab.slot_stamps[:, :2].eq(PINNED).all()
    vocab.update(torch.arange(30, 50).repeat(2, 1))
    assert vocab.ids[:, :2].tolist() == [[40, 30]] * 2
    assert sorted(vocab.ids[0, 2:].tolist()) == [48, 49]
    assert vocab.pinned.tolist() == [40, 30]


@given(
    capacity=st.integers(1, 9),
    pin=st.integers(0, 3),
    frequent_tokens=st.lists(st.integers(0, 19), unique=True),
    seed=st.integers(0, 999),
)
def test_begins_as_if_it_had_seen_the_initial_tokens(
    capacity: int, pin: int, frequent_tokens: list[int], seed: int
) -> None:
    """The likeliest token is the newest; tokens without room and pinned ones are skipped."""
    pinned = [11, 2, 7][: min(pin, capacity)]
    vocab = ActiveVocab(20, capacity, num_groups=2, pinned=pinned, frequent_tokens=frequent_tokens)
    fresh = vocab.state_dict()
    room = capacity - len(pinned)
    fits = [token for token in frequent_tokens if token not in pinned][:room]
    assert vocab.frequent_tokens.tolist() == fits
    assert vocab.ids[1].tolist() == [*pinned, *fits, *[-1] * (room - len(fits))]
    cache = Lru(capacity, pinned)
    cache.see(fits[::-1])
    assert_holds(state_of(vocab), 1, cache)
    tokens = torch.randint(0, 20, (6,), generator=torch.Generator().manual_seed(seed))
    vocab.update(tokens, token_groups=torch.ones(6, dtype=torch.int64))
    cache.see(tokens.tolist())
    assert_holds(state_of(vocab), 1, cache)
    vocab.reset()
    for name, tensor in vocab.state_dict().items():
        assert_bitwise(tensor, fresh[name], name)


@given(
    limits=st.lists(st.tuples(st.integers(2, 9), st.booleans()), min_size=1, max_size=4),
    frequent_tokens=st.lists(st.integers(0, 19), unique=True),
    seed=st.integers(0, 999),
)
def test_a_limit_closes_and_opens_slots(
    limits: list[tuple[int, bool]], frequent_tokens: list[int], seed: int
) -> None:
    """Group 1 has the limits and is an LRU over the open slots; group 0 stays as it was."""
    pinned = [11, 2]
    vocab = ActiveVocab(20, 9, num_groups=2, pinned=pinned, frequent_tokens=frequent_tokens)
    rng = torch.Generator().manual_seed(seed)
    groups = torch.ones(12, dtype=torch.int64)
    whole, fits = vocab.ids[0].clone(), vocab.frequent_tokens.tolist()
    for limit, reset in limits:
        before = state_of(vocab)
        stays = [
            (stamp, token)
            for stamp, token in zip(
                before.slot_stamps[1, :limit], before.active_ids[1, :limit], strict=True
            )
            if token >= 0 and stamp != PINNED
        ]
        vocab.set_limit(limit, [1])
        if reset:
            vocab.reset([1])
        cache = Lru(9, pinned, 9 - limit)
        kept = fits[limit - 2 - 1 :: -1] if limit > 2 else []
        cache.see(kept if reset else [int(token) for _, token in sorted(stays)])
        assert_holds(state_of(vocab), 1, cache)
        tokens = torch.randint(0, 20, (12,), generator=rng)
        vocab.update(tokens, token_groups=groups)
        cache.see(tokens.tolist())
        assert_holds(state_of(vocab), 1, cache)
        assert vocab.limit.tolist() == [9, limit]
        assert torch.equal(vocab.ids[0], whole)
        copy = ActiveVocab(20, 9, num_groups=2)
        copy.load_state_dict(vocab.state_dict())
        assert torch.equal(copy.limit, vocab.limit)


def test_a_refill_uses_the_open_slots() -> None:
    vocab = ActiveVocab(20, 9)
    vocab.set_limit(4)
    counts, ranks = torch.zeros(1, 20, dtype=torch.int32), torch.arange(20, dtype=torch.int32)
    vocab.refill(counts, ranks, torch.tensor([0]))
    assert vocab.ids.tolist() == [[0, 1, 2, 3, -1, -1, -1, -1, -1]]
    vocab.set_limit(6)
    vocab.refill(counts, ranks, torch.tensor([0]), pinned=9, reset=False)
    assert vocab.ids.tolist() == [[0, 1, 2, 3, 4, 5, -1, -1, -1]]
    vocab.set_limit(9)
    vocab.refill(counts, ranks, torch.tensor([0]))
    assert vocab.ids.tolist() == [list(range(9))]


@pytest.mark.parametrize("limit", [1, 10, 0, -1])
def test_a_limit_out_of_range(limit: int) -> None:
    vocab = ActiveVocab(20, 9, pinned=[3, 4])
    with pytest.raises(ValueError, match=f"set_limit: limit: expected 2 to 9, got {limit}"):
        vocab.set_limit(limit)
    assert vocab.limit.tolist() == [9]


def test_types_and_shapes() -> None:
    vocab = ActiveVocab(100, 4, num_groups=2)
    for tensor, dtype, shape in [
        (vocab.ids, torch.int32, (2, 4)),
        (vocab.size, torch.int32, (2,)),
        (vocab.slot_stamps, torch.int64, (2, 4)),
        (vocab.token_slots, torch.int32, (2, 100)),
        (vocab.clock, torch.int64, (2,)),
    ]:
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)
    assert vocab.device == torch.device("cpu")


def test_contains_keeps_the_shape() -> None:
    one = ActiveVocab(10, 4)
    one.update(torch.tensor([3, 5]))
    tree = torch.tensor([[[3, -1], [5, 4]]], dtype=torch.int32)
    assert one.contains(tree).tolist() == [[[True, False], [True, False]]]
    assert one.contains(torch.tensor(5)).item() is True
    two = ActiveVocab(10, 4, num_groups=2)
    two.update(torch.tensor([[3, 5], [4, 4]]))
    assert two.contains(tree.view(2, 2)).tolist() == [[True, False], [False, True]]
    assert two.contains(torch.empty(2, 0, dtype=torch.long)).shape == (2, 0)


def test_reset_all_or_some_groups() -> None:
    vocab = ActiveVocab(20, 5, num_groups=3, pinned=[9])
    fresh = vocab.state_dict()
    vocab.update(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 1]]))
    used = vocab.state_dict()
    ids = vocab.ids
    vocab.reset([0, 2])
    for name, tensor in vocab.state_dict().items():
        assert_bitwise(tensor[[0, 2]], fresh[name][[0, 2]], name)
        assert_bitwise(tensor[1], used[name][1], name)
    vocab.reset(torch.tensor([1]))
    for name, tensor in vocab.state_dict().items():
        assert_bitwise(tensor, fresh[name], name)
    assert vocab.ids is ids, "captured graphs hold the tensor"


def test_state_dict_round_trip() -> None:
    vocab = ActiveVocab(20, 5, num_groups=2, pinned=[9])
    vocab.update(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    state = vocab.state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    vocab.update(torch.tensor([[7, 8], [1, 2]]))
    for name, tensor in state.items():
        assert_bitwise(tensor, kept[name], "a copy, not a view")
    other = ActiveVocab(20, 5, num_groups=2)
    ids = other.ids
    other.load_state_dict(state)
    assert other.ids is ids
    for name, tensor in other.state_dict().items():
        assert_bitwise(tensor, kept[name], name)
    for one in (other, vocab):
        one.load_state_dict(kept)
        one.update(torch.tensor([[7, 8], [1, 2]]))
    for name, tensor in other.state_dict().items():
        assert_bitwise(tensor, vocab.state_dict()[name], name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size: expected at least 1, got 0"),
        ({"capacity": 0}, "capacity: expected at least 1, got 0"),
        ({"num_groups": -1}, "num_groups: expected at least 1, got -1"),
        ({"pinned": [1, 2, 3, 4, 5, 6]}, "pinned: expected at most capacity = 5 tokens, got 6"),
        ({"pinned": [1, 20]}, "pinned: expected ids in [0, 20), got 20"),
        ({"frequent_tokens": [1, 20]}, "frequent_tokens: expected ids in [0, 20), got 20"),
        ({"frequent_tokens": [3, 3]}, "frequent_tokens: expected distinct ids, got 3 2 times"),
        ({"pinned": [-1]}, "pinned: expected ids in [0, 20), got -1"),
        ({"pinned": torch.tensor([4, 4])}, "pinned: expected distinct ids, got 4 2 times"),
    ],
)
def test_wrong_construction(options: dict[str, object], message: str) -> None:
    arguments = {"vocab_size": 20, "capacity": 5, **options}
    with pytest.raises(ValueError, match=re.escape(f"ActiveVocab: {message}")):
        ActiveVocab(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"pinned": [7, 2**32 + 5]}, ValueError, "pinned: expected ids in [0, 20), got 4294967301"),
        (
            {"pinned": torch.tensor([1.7, 2.2])},
            TypeError,
            "pinned: expected integer ids, got float",
        ),
        (
            {"frequent_tokens": torch.ones(20, dtype=torch.bool)},
            TypeError,
            "frequent_tokens: expected integer ids",
        ),
        (
            {"frequent_tokens": [[1], [2]]},
            TypeError,
            "frequent_tokens: expected integer ids, got list",
        ),
        (
            {"frequent_tokens": torch.tensor([[1, 2]])},
            ValueError,
            "frequent_tokens: expected shape [n]",
        ),
    ],
)
def test_ids_are_not_narrowed(
    options: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=re.escape(f"ActiveVocab: {message}")):
        ActiveVocab(20, 5, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "groups",
    [[True, False, True], torch.tensor([True, False, True]), [2, 0], (0, 2), torch.tensor([2, 0])],
    ids=repr,
)
def test_reset_by_mask_or_by_number(groups: Any) -> None:
    vocab = ActiveVocab(20, 5, num_groups=3, pinned=[9])
    coverage = Coverage(vocab)
    fresh = vocab.state_dict()
    vocab.update(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 1]]))
    coverage.count(torch.tensor([[1], [4], [7]]))
    used = vocab.state_dict()
    vocab.reset(groups)
    coverage.reset(groups)
    for name, tensor in vocab.state_dict().items():
        assert_bitwise(tensor[[0, 2]], fresh[name][[0, 2]], name)
        assert_bitwise(tensor[1], used[name][1], name)
    assert coverage.hits.tolist() == [0, 1, 0]


def test_reset_of_nothing() -> None:
    vocab = ActiveVocab(20, 5, num_groups=3)
    vocab.update(torch.tensor([[1], [2], [3]]))
    for nothing in ([], torch.tensor([]), torch.zeros(3, dtype=torch.bool)):
        vocab.reset(nothing)
    assert vocab.size.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("groups", "kind", "message"),
    [
        ([-1], IndexError, "expected groups in [0, 3), got -1"),
        ([0, 3], IndexError, "expected groups in [0, 3), got 3"),
        (torch.tensor([2**32]), IndexError, "expected groups in [0, 3), got 4294967296"),
        ([True, False], ValueError, "expected a mask [3], got [2]"),
        (torch.ones(3, 1, dtype=torch.bool), ValueError, "expected a mask [3], got [3, 1]"),
        ([0.0], TypeError, "expected integers or a bool mask, got float32"),
        (torch.tensor([[0, 1]]), ValueError, "expected shape [n], got [1, 2]"),
    ],
    ids=repr,
)
def test_reset_of_no_group(groups: Any, kind: type[Exception], message: str) -> None:
    vocab = ActiveVocab(20, 5, num_groups=3)
    vocab.update(torch.tensor([[1], [2], [3]]))
    for name, thing in (("ActiveVocab", vocab), ("Coverage", Coverage(vocab))):
        with pytest.raises(kind, match=re.escape(f"{name}: reset: groups: {message}")):
            thing.reset(groups)
    assert vocab.size.tolist() == [1, 1, 1]


def test_contains_of_what_is_no_token() -> None:
    vocab = ActiveVocab(10, 4, num_groups=2)
    vocab.update(torch.tensor([[0, 9], [3, 4]]))
    odd = torch.tensor([[-2, 10, -(2**40), 2**32, 9], [-10, 19, -1, 2**32 + 3, 3]])
    wanted = [[False] * 4 + [True]] * 2
    assert vocab.contains(odd).tolist() == wanted
    assert (
        vocab.contains(odd[0], token_groups=torch.zeros(5, dtype=torch.int32)).tolist() == wanted[0]
    )
    groups = torch.tensor([0, -1, 2, -2, 2**32])
    assert vocab.contains(torch.full((5,), 9), token_groups=groups).tolist() == [True] + [False] * 4
    for wrong in (odd.double(), odd > 0):
        with pytest.raises(TypeError, match="contains: tokens: expected int32 or int64, got"):
            vocab.contains(wrong)
    coverage = Coverage(vocab)
    coverage.count(odd)
    assert (coverage.hits.tolist(), coverage.misses.tolist()) == ([1, 1], [0, 0])


def test_wrong_state_and_wrong_tokens() -> None:
    vocab = ActiveVocab(20, 5)
    before = vocab.state_dict()
    lacking = {name: tensor for name, tensor in before.items() if name != "clock"}
    with pytest.raises(ValueError, match=r"clock: expected shape \[1\], got none"):
        vocab.load_state_dict(lacking)
    larger = ActiveVocab(20, 6)
    larger.update(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"ids: expected shape \[1, 5\], got \[1, 6\]"):
        vocab.load_state_dict(larger.state_dict())
    with pytest.raises(
        IndexError, match=r"microspec::vocab_update_: tokens: .* got 20 at flat position 1"
    ):
        vocab.update(torch.tensor([3, 20]))
    with pytest.raises(TypeError, match=r"tokens: expected int32 or int64, got float32"):
        vocab.update(torch.tensor([3.0]))
    for name, tensor in vocab.state_dict().items():
        assert_bitwise(tensor, before[name], name)
