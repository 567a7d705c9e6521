# SPDX-License-Identifier: Apache-2.0
"""vocab_update_ against the tests' LRU and, bit for bit, against the reference."""

import itertools
import subprocess
import sys

import pytest
import torch
from backends_under_test import ALL, ARM, COMPILED, CPU, CUDA, EMULATED, slow_interpreted
from compare import assert_bitwise
from generators import VocabState, vocab_state
from hypothesis import given
from hypothesis import strategies as st
from lru import Lru, assert_holds, assert_moved_little
from torch import Tensor

from microspec_kernels import reference, vocab_update_

pytestmark = pytest.mark.backends(*COMPILED)

V = 40


def assert_same_state(got: VocabState, want: VocabState) -> None:
    for name in ("active_ids", "slot_stamps", "token_slots", "clock"):
        assert_bitwise(getattr(got, name), getattr(want, name), name)


def step(
    state: VocabState, caches: list[Lru], tokens: Tensor, token_groups: Tensor | None = None
) -> None:
    """Make one call, and check it against the caches and the reference."""
    before, want = state.copy(), state.copy()
    arguments = (tokens.clone(), None if token_groups is None else token_groups.clone())
    vocab_update_(*state.tensors(), tokens, token_groups=token_groups)
    reference.vocab_update_(*want.tensors(), tokens, token_groups=token_groups)
    assert_same_state(state, want)
    assert torch.equal(tokens, arguments[0])
    for group, cache in enumerate(caches):
        if token_groups is not None:
            pairs = zip(tokens.tolist(), token_groups.tolist(), strict=True)
            cache.see([token for token, g in pairs if g == group])
        else:
            cache.see(tokens.reshape(len(caches), -1)[group].tolist() if tokens.numel() else [])
        assert_holds(state, group, cache)
    assert_moved_little(before, state)
    assert_bitwise(state.clock, before.clock + tokens.size(-1), "clock")


@st.composite
def streams(draw: st.DrawFn) -> tuple[VocabState, list[Lru], list[tuple[Tensor, Tensor | None]]]:
    """Draw a vocabulary and calls: batches longer than it, padding, ragged, either dtype."""
    capacity, num_groups = draw(st.integers(0, 12)), draw(st.integers(1, 3))
    # The edges: all slots pinned, one slot free, and none pinned.
    count = draw(st.sampled_from(sorted({0, capacity // 2, max(0, capacity - 1), capacity})))
    pinned = tuple(range(5, 5 + count))
    closed = draw(st.sampled_from((0, 0, (capacity - count) // 2, capacity - count)))
    start = draw(st.sampled_from((0, 0, 10**12 - 7, 2**62)))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    spread = draw(st.sampled_from((3, V // 2, V)))  # few tokens repeat, many evict
    calls: list[tuple[Tensor, Tensor | None]] = []
    for _ in range(draw(st.integers(1, 8))):
        n = draw(st.sampled_from((0, 1, 2, 5, 13, 60)))
        ragged = draw(st.booleans())
        tokens = torch.randint(-1, spread, (n,) if ragged else (num_groups, n), generator=rng)
        if draw(st.booleans()):
            tokens = tokens.int()
        token_groups = torch.randint(-1, num_groups, (n,), generator=rng) if ragged else None
        if token_groups is not None and draw(st.booleans()):
            token_groups = token_groups.int()
        calls.append((tokens, token_groups))
    state = vocab_state(
        V, capacity, num_groups=num_groups, pinned=pinned, closed=closed, clock=start
    )
    return state, [Lru(capacity, pinned, closed) for _ in range(num_groups)], calls


@pytest.mark.backends(*ALL)
@given(stream=streams())
def test_random_streams(
    stream: tuple[VocabState, list[Lru], list[tuple[Tensor, Tensor | None]]],
) -> None:
    state, caches, calls = stream
    for tokens, token_groups in calls:
        step(state, caches, tokens, token_groups)


@pytest.mark.parametrize("capacity", [slow_interpreted(1), 2, slow_interpreted(3)])
def test_every_short_stream(capacity: int, backend: str) -> None:
    """Test all streams of five over four tokens and padding, cut into two calls anywhere."""
    every = 37 if backend in (*ARM, *EMULATED) else 1  # slow: a sample
    for tokens in itertools.islice(itertools.product(range(-1, 4), repeat=5), 0, None, every):
        for cut in (0, 2, 3):
            state, cache = vocab_state(5, capacity), Lru(capacity)
            for part in (tokens[:cut], tokens[cut:]):
                vocab_update_(*state.tensors(), torch.tensor(part, dtype=torch.int64))
            cache.see(tokens)
            assert_holds(state, 0, cache)


def test_one_by_one_equals_all_at_once(backend: str) -> None:
    """Set and recency agree; slots may differ, because a batch evicts for all newcomers at once."""
    rng = torch.Generator().manual_seed(1)
    for n in (7, 40) if backend == "triton" else (7, 40, 300):
        tokens = torch.randint(0, 90, (n,), generator=rng)
        together, alone, cache = vocab_state(90, 32), vocab_state(90, 32), Lru(32)
        vocab_update_(*together.tensors(), tokens)
        for token in tokens:
            vocab_update_(*alone.tensors(), token[None])
        cache.see(tokens.tolist())
        assert_holds(together, 0, cache)
        assert_holds(alone, 0, cache)


@pytest.mark.parametrize(
    "clock", [2**31 - 5, 2**32 - 5, slow_interpreted(2**33 + 1), slow_interpreted(10**12), 2**62]
)
def test_a_late_clock_is_as_good_as_an_early_one(clock: int) -> None:
    """Shifted stamps give the same result: no counter is cut to 32 bits or rounded in a double."""
    rng = torch.Generator().manual_seed(2)
    early, late = (vocab_state(200, 50, pinned=(3, 4), clock=start) for start in (0, clock))
    for _ in range(20):
        tokens = torch.randint(-1, 200, (17,), generator=rng)
        for state in (early, late):
            vocab_update_(*state.tensors(), tokens)
    used = (early.slot_stamps >= 0) & (early.slot_stamps < 2**63 - 1)
    early.slot_stamps[used] += clock
    early.clock.add_(clock)
    assert_same_state(late, early)


def long_ragged_batches(count: int, capacity: int, dtype: torch.dtype) -> None:
    """Compare two updates by ragged batches of which one group of three has most tokens."""
    rng = torch.Generator().manual_seed(capacity)
    vocab_size = 12_000
    groups = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 2, -1])
    state = vocab_state(vocab_size, capacity, num_groups=3, pinned=(4, 7))
    caches = [Lru(capacity, (4, 7)) for _ in range(3)]
    for _ in range(2):
        tokens = torch.randint(-1, vocab_size, (count,), generator=rng).to(dtype)
        drawn = groups[torch.randint(0, len(groups), (count,), generator=rng)].to(dtype)
        drawn[5000:5040] = torch.randint(-1, 3, (40,), generator=rng).to(dtype)
        step(state, caches, tokens, drawn)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("capacity", [300, 9000])
def test_a_long_ragged_batch(capacity: int, dtype: torch.dtype) -> None:
    """A vocabulary is full before the batch, or after it.

    CUDA scans 8192 positions at once, and queues its group's for the tiles of 512. In emulation
    the int64 groups are narrowed first, and the int32 ones are read as they are.
    """
    long_ragged_batches(20_011, capacity, dtype)


@pytest.mark.backends(*EMULATED, *CUDA)
@pytest.mark.parametrize(("count", "dtype"), [(9000, torch.int64), (30_011, torch.int32)])
def test_a_ragged_batch_that_is_narrowed_or_not(count: int, dtype: torch.dtype) -> None:
    """The other way round: int64 groups as they are, and narrowed int32 ones."""
    long_ragged_batches(count, 300, dtype)


def test_nothing_to_do() -> None:
    state = vocab_state(V, 6, num_groups=2)
    vocab_update_(*state.tensors(), torch.tensor([[1, 2, 3], [4, 5, 6]]))
    before = state.copy()
    for tokens, groups in [
        (torch.empty(2, 0, dtype=torch.int64), None),
        (torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.int32)),
        (torch.full((2, 5), -1), None),
        (torch.full((5,), 7), torch.full((5,), -1)),
    ]:
        before.clock.add_(tokens.size(-1))
        vocab_update_(*state.tensors(), tokens, token_groups=groups)
        assert_same_state(state, before)


def test_flat_state_of_one_group() -> None:
    """active_ids may be [K]; the other tables keep their group dimension."""
    state, flat = vocab_state(V, 6), vocab_state(V, 6)
    tokens = torch.tensor([3, 1, 3, 9])
    vocab_update_(*state.tensors(), tokens)
    vocab_update_(flat.active_ids[0], *flat.tensors()[1:], tokens[None])
    assert_same_state(flat, state)


@pytest.mark.backends(*CPU)
def test_many_groups_on_many_threads() -> None:
    rng = torch.Generator().manual_seed(3)
    batches = [torch.randint(-1, 500, (31, 40), generator=rng) for _ in range(6)]
    states = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        state, caches = (
            vocab_state(500, 64, num_groups=31, pinned=(2, 7)),
            [Lru(64, (2, 7)) for _ in range(31)],
        )
        for tokens in batches:
            before = state.copy()
            vocab_update_(*state.tensors(), tokens)
            assert_moved_little(before, state)
            for group, cache in enumerate(caches):
                cache.see(tokens[group].tolist())
                assert_holds(state, group, cache)
        states.append(state)
    for state in states[1:]:
        assert_same_state(state, states[0])


@pytest.mark.parametrize("num_groups", [1, 2])
def test_nothing_beside_the_state_is_written(num_groups: int) -> None:
    """The state lies in larger tables of a sentinel, which must stay intact."""
    plain = vocab_state(V, 6, num_groups=num_groups)
    outer = [t.new_full((t.size(0) + 2, *t.shape[1:]), 77) for t in plain.tensors()]
    for wide, tensor in zip(outer, plain.tensors(), strict=True):
        wide[1:-1] = tensor
    inner = VocabState(*(wide[1:-1] for wide in outer))
    rng = torch.Generator().manual_seed(4)
    for _ in range(5):
        tokens = torch.randint(-1, V, (num_groups, 9), generator=rng)
        vocab_update_(*inner.tensors(), tokens)
        vocab_update_(*plain.tensors(), tokens)
    assert_same_state(inner, plain)
    assert all(bool((wide[0] == 77).all() and (wide[-1] == 77).all()) for wide in outer)


@pytest.mark.backends(*CPU)
def test_table_beyond_2_to_31_entries(tmp_path: object) -> None:
    """Three groups of 2^30 tokens: a 12 GB table, of which the op touches only what it must."""
    size = 2**30
    path = f"{tmp_path}/slots"
    slots = torch.from_file(path, shared=True, size=3 * size, dtype=torch.int32).view(3, size)
    tokens = torch.tensor([[size - 1, 5, 9], [9, size - 2, 5], [7, size - 1, 8]])
    for group, row in enumerate(tokens):
        slots[group, row] = -1
    small = vocab_state(1, 2, num_groups=3)
    vocab_update_(small.active_ids, small.slot_stamps, slots, small.clock, tokens)
    assert small.active_ids.tolist() == [[5, 9], [size - 2, 5], [size - 1, 8]]
    for group, row in enumerate(tokens):
        assert slots[group, row].tolist() == [-1, 0, 1]


# Around the capacity of a CUDA thread's registers, and beyond that of shared memory.
CAPACITIES = [1023, 1024, 1025, 3072, 3073, 8192, 8193, 16384]
CAPACITIES += [slow_interpreted(16385), slow_interpreted(32768)]


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_every_capacity(capacity: int) -> None:
    """Fill partly, fill up, replace some; pinned tokens; batches of one to several tiles."""
    rng = torch.Generator().manual_seed(capacity)
    size, pinned = capacity + 700, (3, 4, 5)
    state, cache = vocab_state(size, capacity, pinned=pinned), Lru(capacity, pinned)
    for count in (capacity - 200, 150, 512, 513, 300, 1100):
        step(state, [cache], torch.randint(-1, size, (1, count), generator=rng))
    everyone = torch.randperm(size, generator=rng)[None]
    step(state, [cache], everyone)
    step(state, [cache], torch.cat([everyone, everyone.flip(1)], dim=1))


def test_groups_beyond_shared_memory_have_each_their_own_workspace() -> None:
    rng = torch.Generator().manual_seed(11)
    state, caches = vocab_state(17_000, 16_385, num_groups=3), [Lru(16_385) for _ in range(3)]
    for _ in range(2):
        step(state, caches, torch.randint(-1, 17_000, (3, 900), generator=rng))


PEAK = """
import resource, sys, torch, microspec_kernels as m
ragged = sys.argv[1] == "True"
vocab = m.ActiveVocab(5000, 100, num_groups=3 if ragged else 1)
def update(count):
    tokens = torch.randint(5000, (count,))
    groups = torch.randint(3, (count,)) if ragged else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    vocab.update(tokens, token_groups=groups)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
update(1000)
print(update(2**24))
"""


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_long_batch_is_not_copied(ragged: bool) -> None:
    """The ids take 128 MiB; the peak of the process rises by far less."""
    command = [sys.executable, "-c", PEAK, str(ragged)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) < 16 * 1024, "KiB"


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_what_the_walk_does_not_reach_is_checked(dtype: torch.dtype) -> None:
    state = vocab_state(V, 4, num_groups=2)
    before = state.copy()
    tokens = torch.arange(3000, dtype=dtype).remainder(V)
    groups = torch.arange(3000, dtype=dtype).remainder(2)
    wrong = tokens.clone()
    wrong[7], wrong[2000] = V, -2
    message = rf"vocab_update_: tokens: .* got {V} at flat position 7"
    with pytest.raises(IndexError, match=message):
        vocab_update_(*state.tensors(), wrong, token_groups=groups)
    with pytest.raises(IndexError, match=message):
        vocab_update_(*state.tensors(), wrong.view(2, -1))
    groups[5] = 2
    with pytest.raises(IndexError, match=r"token_groups: .* got 2 at position 5"):
        vocab_update_(*state.tensors(), tokens, token_groups=groups)
    assert_same_state(state, before)


@pytest.mark.parametrize("spread", [5, 40, 700, 3000])
def test_a_token_again_and_again_over_a_long_batch(spread: int) -> None:
    """Its last occurrence counts, however far from the others, active or new."""
    rng = torch.Generator().manual_seed(spread)
    state, cache = vocab_state(3000, 600, pinned=(7,)), Lru(600, (7,))
    for count in (1700, 511, 2500):
        step(state, [cache], torch.randint(-1, spread, (1, count), generator=rng))


@pytest.mark.parametrize("gap", [2**20, 2**31 - 30, 2**31 - 8, 2**31 - 2, 2**31, 2**33 + 5])
def test_tokens_of_any_age(gap: int) -> None:
    """The order holds between tokens observed long apart, and empty slots come first."""
    rng = torch.Generator().manual_seed(8)
    for capacity in (12, 40):
        state, cache = vocab_state(V, capacity, pinned=(1,)), Lru(capacity, (1,))
        for count in (5, 9, 20, 3, 30, 6):
            step(state, [cache], torch.randint(0, V, (1, count), generator=rng))
            state.clock.add_(gap)


def test_one_eviction_at_a_time_among_tokens_of_successive_ages() -> None:
    """The least recent leaves, even if the next is one position younger and in a lower slot."""
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    state, cache = vocab_state(V, 8), Lru(8)
    for tokens in (range(8), order, *([token] for token in range(8, 30))):
        step(state, [cache], torch.tensor([list(tokens)]))


def test_as_many_evictions_as_newcomers_though_stamps_are_equal() -> None:
    """No sequence of calls leads to equal stamps; the lowest slots are evicted."""
    state = vocab_state(V, 8)
    vocab_update_(*state.tensors(), torch.arange(8)[None])
    state.slot_stamps.fill_(3)
    vocab_update_(*state.tensors(), torch.tensor([[30, 31]]))
    assert state.active_ids.tolist() == [[30, 31, 2, 3, 4, 5, 6, 7]]


OUT_OF_RANGE = [-2, -(2**31), V, V + 1, 2**31 - 1, 2**32, 2**32 + 3, -(2**32) + 3, 2**63 - 1]


@pytest.mark.backends(*EMULATED, *CUDA)
@pytest.mark.parametrize("ragged", [False, True])
def test_tokens_and_groups_out_of_range_are_padding_on_cuda(ragged: bool) -> None:
    rng = torch.Generator().manual_seed(9)
    state, strange = vocab_state(V, 12, num_groups=2, pinned=(5,)), torch.tensor(OUT_OF_RANGE)

    def spoilt(values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids with some out of range, and the ids with -1 in the same places."""
        where = torch.rand(values.shape, generator=rng) < 0.3
        drawn = strange[torch.randint(0, len(strange), values.shape, generator=rng)]
        return torch.where(where, drawn, values), values.masked_fill(where, -1)

    # The last count makes CUDA narrow the groups first, in emulation.
    for count in (30, 7, 600, *[15_000] * ragged):
        shape = (count,) if ragged else (2, count)
        tokens, clean = spoilt(torch.randint(-1, V, shape, generator=rng))
        groups, clean_groups = spoilt(torch.randint(-1, 2, (count,), generator=rng))
        pairs = [(tokens, clean, groups, clean_groups)]
        fits = [(t < 2**31) & (t >= -(2**31)) for t in (tokens, groups)]
        pairs.append(
            (
                tokens.where(fits[0], -3).int(),
                clean.where(fits[0], -1),
                groups.where(fits[1], 7).int(),
                clean_groups.where(fits[1], -1),
            )
        )
        for got, want, of, want_of in pairs:
            expected = state.copy()
            reference.vocab_update_(
                *expected.tensors(), want, token_groups=want_of if ragged else None
            )
            vocab_update_(*state.tensors(), got, token_groups=of if ragged else None)
            assert_same_state(state, expected)


@pytest.mark.backends(*EMULATED, *CUDA)
@pytest.mark.parametrize("table", ["active_ids", "slot_stamps", "token_slots"])
def test_a_broken_table_breaks_nothing_beside_it_on_cuda(table: str) -> None:
    """Tables with any content promise no result, but the op touches no other memory."""
    rng = torch.Generator().manual_seed(10)
    for _ in range(10):
        plain = vocab_state(V, 6, num_groups=2)
        outer = [t.new_full((t.size(0) + 2, *t.shape[1:]), 77) for t in plain.tensors()]
        for wide, tensor in zip(outer, plain.tensors(), strict=True):
            wide[1:-1] = tensor
        inner = VocabState(*(wide[1:-1] for wide in outer))
        for count in (9, 20, 9):
            vocab_update_(*inner.tensors(), torch.randint(-1, V, (2, count), generator=rng))
            entries = getattr(inner, table).view(-1)
            at = torch.randint(0, len(entries), (5,), generator=rng)
            near = torch.randint(-3, V + 3, (5,), generator=rng)
            far = torch.randint(-(2**31), 2**31, (5,), generator=rng)
            entries[at] = torch.where(torch.rand(5, generator=rng) < 0.5, near, far).to(
                entries.dtype
            )
            entries[at[2:]] = int(entries[at[1]])  # also equal stamps
        assert all(bool((wide[0] == 77).all() and (wide[-1] == 77).all()) for wide in outer)
