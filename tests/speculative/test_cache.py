"""The KV cache: keeping a path of a tree leaves what computing that text anew would leave."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microspec_kernels.speculative import CausalModel
from microspec_kernels.speculative.cache import KVCache, causal, visible

from .models import KINDS, VOCAB, prompt, tiny

# 0 ── 1 ── 3 ── 5      node 0 is the root; its position is the prompt's length
#  └── 2 ── 4  └─ 6
PARENTS = (0, 0, 0, 1, 2, 3, 3)
PATH = [0, 1, 3, 6]


def lineage_of(parents: tuple[int, ...]) -> torch.Tensor:
    lineage = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        lineage[node] |= lineage[parent]
    return lineage


def entries(cache: KVCache) -> torch.Tensor:
    assert cache._entries is not None
    return cache._entries[..., : cache.length, :]


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_keeping_a_path_equals_computing_it(kind: str) -> None:
    target = CausalModel(tiny(kind))
    text, nodes = prompt(11)[0], torch.randint(VOCAB, (7,))
    cache = target.new_cache()
    target.prefill(text, cache)
    before = entries(cache).clone()
    hidden = target.forward(nodes, lineage_of(PARENTS), cache)
    cache.keep(11, PATH)

    fresh = target.new_cache()
    expected = target.prefill(torch.cat((text, nodes[PATH])), fresh)
    assert cache.length == fresh.length == 15
    torch.testing.assert_close(hidden[PATH], expected[11:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entries(cache), entries(fresh), rtol=1e-4, atol=1e-4)
    assert torch.equal(entries(cache)[..., :11, :], before)

    next_token = torch.tensor([7])
    one = causal(1, next_token.device)
    torch.testing.assert_close(
        target.forward(next_token, one, cache),
        target.forward(next_token, one, fresh),
        rtol=1e-4,
        atol=1e-4,
    )


@settings(max_examples=60, deadline=None)
@given(
    first=st.integers(1, 300),
    added=st.integers(1, 300),
    kept=st.sets(st.integers(0, 299)),
)
def test_keep_moves_only_the_kept(first: int, added: int, kept: set[int]) -> None:
    """Entries carry their own number: through growth and moves, each stays what it was."""
    cache = KVCache(2)
    nodes = sorted(node for node in kept if node < added)
    for start, count in ((0, first), (first, added)):
        numbers = (
            torch.arange(start, start + count).float()[None, None, :, None].expand(1, 3, -1, 2)
        )
        for layer in range(2):
            keys, values = cache.update(numbers + 1000 * layer, -numbers - 1000 * layer, layer)
            expected = torch.arange(start + count).float() + 1000 * layer
            assert torch.equal(keys[0, 1, :, 1], expected)
            assert torch.equal(values[0, 2, :, 0], -expected)
        cache.advance(count)
        assert cache.get_seq_length() == start + count
    store = entries(cache).data_ptr()
    cache.keep(first, nodes)
    assert entries(cache).data_ptr() == store, "the cache was copied"
    numbers = list(range(first)) + [first + node for node in nodes]
    for layer in range(2):
        kept_numbers = torch.tensor(numbers).float() + 1000 * layer
        assert torch.equal(entries(cache)[layer, 0, 0, 1, :, 0], kept_numbers)
        assert torch.equal(entries(cache)[layer, 1, 0, 1, :, 0], -kept_numbers)


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    committed=st.integers(0, 12),
    count=st.integers(1, 10),
    window=st.none() | st.integers(1, 14),
)
def test_visible(data: st.DataObject, committed: int, count: int, window: int | None) -> None:
    """Positions and windows against a node-by-node account; the last rows alone are new."""
    parents: list[int | None] = [None]
    parents += [data.draw(st.none() | st.integers(0, node)) for node in range(count - 1)]
    lineage = torch.eye(count, dtype=torch.bool)
    position = {}
    for node, parent in enumerate(parents):
        if parent is not None:
            lineage[node] |= lineage[parent]
        position[node] = committed if parent is None else position[parent] + 1
    new = data.draw(st.integers(1, count))
    mask, positions = visible(lineage[-new:], committed + count, window)
    assert positions.tolist() == [position[node] for node in range(count - new, count)]
    for row, node in enumerate(range(count - new, count)):
        reach = -1 if window is None else position[node] - window
        expected = [
            key > reach if key < committed else
            bool(lineage[node, key - committed]) and position[key - committed] > reach
            for key in range(committed + count)
        ]  # fmt: skip
        assert mask[row].tolist() == expected
