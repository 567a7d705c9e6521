# SPDX-License-Identifier: Apache-2.0
"""Keeping a path of a tree in the KV cache equals computing that text anew."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels.speculative import CausalModel
from microspec_kernels.speculative.models.cache import KVCache, room_for

from .models import KINDS, VOCAB, prompt, tiny

# 0 ── 1 ── 3 ── 5      node 0 is the root; its position is the prompt's length
#  └── 2 ── 4  └─ 6
PARENTS = (0, 0, 0, 1, 2, 3, 3)
PATHS = ([0, 1, 3, 6], [0, 2, 4], [0])
LENGTHS = (11, 5, 17)
CPU = torch.device("cpu")


def ancestor_mask_of(parents: tuple[int, ...]) -> Tensor:
    ancestor_mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        ancestor_mask[node] |= ancestor_mask[parent]
    return ancestor_mask


def entries(cache: KVCache, text: int = 0) -> Tensor:
    """Return the kept entries of one text, [layers, 2, heads, length, head_dim]."""
    assert cache._entries is not None
    begin = cache._pending_room
    return cache._entries[:, :, text, :, begin : begin + int(cache.lengths[text])]


def poison(cache: KVCache) -> None:
    """Fill all memory that no pass may read with NaN: other rows, and columns outside its room."""
    assert cache._entries is not None
    begin = cache._pending_room
    cache._entries[:, :, cache.rows :] = torch.nan
    cache._entries[..., : begin - cache.pending, :] = torch.nan
    cache._entries[..., begin + cache.room :, :] = torch.nan


def prefilled(target: CausalModel, texts: Sequence[Tensor], more: int = 8) -> KVCache:
    """Return a cache of these texts, with room for `more` entries of each."""
    cache = target.new_cache()
    for row, text in enumerate(texts):
        alone = target.new_cache()
        target.prefill(text, alone)
        cache.reserve(row + 1, room_for(len(text) + more), 1, alone)
        cache.put(row, alone)
    cache.rows, cache.longest = len(texts), max(map(len, texts))
    return cache


def padded(paths: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return paths [B, m], padded by zeros, and their lengths [B]."""
    longest = max(map(len, paths))
    rows = [path + [0] * (longest - len(path)) for path in paths]
    return torch.tensor(rows), torch.tensor([len(path) for path in paths])


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_keeping_a_path_equals_computing_it(kind: str, attention: str) -> None:
    """Texts of several lengths side by side keep different paths."""
    target = CausalModel(tiny(kind, attn_implementation=attention))
    texts = [prompt(length, seed=length)[0] for length in LENGTHS]
    nodes = torch.randint(VOCAB, (3, 7), generator=torch.Generator().manual_seed(5))
    cache = prefilled(target, texts)
    before = [entries(cache, text).clone() for text in range(3)]
    poison(cache)
    tree = ancestor_mask_of(PARENTS)
    positions = cache.ends[:, None] + tree.sum(1) - 1
    hidden = target.forward(nodes, positions, cache.mask(tree[None]), cache)[0]
    cache.keep(*padded(PATHS))
    assert cache.ends.tolist() == [15, 8, 18] and cache.pending == 0
    poison(cache)
    next_token = torch.tensor([7])
    read = next_token.expand(3, 1), cache.ahead(1), cache.causal(1)
    after = target.forward(*read, cache)[0]

    for text, path in enumerate(PATHS):
        fresh = target.new_cache()
        whole = torch.cat((texts[text], nodes[text, path]))
        expected = target.prefill(whole, fresh)[0][LENGTHS[text] :]
        torch.testing.assert_close(hidden[text, path], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(entries(cache, text), entries(fresh), rtol=1e-4, atol=1e-4)
        assert torch.equal(entries(cache, text)[..., : LENGTHS[text], :], before[text])
        last = target.forward(next_token[None], fresh.ahead(1), fresh.causal(1), fresh)[0]
        torch.testing.assert_close(after[text], last[0], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_padding_behind_a_shorter_piece_of_text(kind: str) -> None:
    """Pieces of several lengths in one padded pass equal the pieces alone."""
    target = CausalModel(tiny(kind))
    texts = [prompt(length, seed=length)[0] for length in LENGTHS]
    pieces = prompt(6, seed=3).expand(3, -1)
    counts = [6, 2, 4]
    cache = prefilled(target, texts)
    poison(cache)
    hidden = target.forward(pieces, cache.ahead(6), cache.causal(6), cache)[0]
    cache.keep_all(torch.tensor(counts))
    assert cache.ends.tolist() == [
        length + count for length, count in zip(LENGTHS, counts, strict=True)
    ]
    for text, count in enumerate(counts):
        fresh = target.new_cache()
        alone = target.prefill(torch.cat((texts[text], pieces[text, :count])), fresh)[0][-count:]
        torch.testing.assert_close(hidden[text, :count], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(entries(cache, text), entries(fresh), rtol=1e-4, atol=1e-4)


def numbered(begins: Sequence[int], count: int, layer: int) -> Tensor:
    """Make entries [B, 3, count, 2] whose values identify layer, text and position."""
    texts = torch.arange(len(begins))[:, None] * 1e4 + layer * 1e3 + torch.tensor(begins)[:, None]
    numbers = texts + torch.arange(count)
    return numbers[:, None, :, None].expand(-1, 3, -1, 2)


def read(cache: KVCache, begins: Sequence[int], count: int, texts: int = 0) -> None:
    """Let both layers write numbered entries, plus `texts` times 1e4; check what they get back."""
    pending, room = cache.pending, cache.room
    for layer in range(2):
        new = numbered(begins, count, layer) + texts * 1e4
        for got, sign in zip(cache.update(new, -new, layer), (1, -1), strict=True):
            assert got.shape == (len(begins), 3, count + pending + room, 2)
            assert torch.equal(got[:, :, :count], sign * new)
            for text, begin in enumerate(begins):
                expected = sign * (numbered([0] * len(begins), begin, layer)[text] + texts * 1e4)
                assert torch.equal(got[text, :, count + pending :][:, :begin], expected)
    cache.advance(cache.ahead(count))


@settings(max_examples=50, deadline=None)
@given(
    firsts=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    added=st.integers(1, 300),
    kept=st.lists(st.sets(st.integers(0, 299), min_size=1), min_size=3, max_size=3),
    moved=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_keep_moves_only_the_kept(
    firsts: list[int], added: int, kept: list[set[int]], moved: tuple[int, int]
) -> None:
    """Numbered entries stay the same through growth, passes that are dropped, keeps and moves."""
    batch = len(firsts)
    nodes = [sorted({node % added for node in each}) for each in kept[:batch]]
    cache = KVCache(2, CPU, batch)
    read(cache, [0] * batch, max(firsts))
    cache.keep_all(torch.tensor(firsts))
    assert cache._entries is not None
    cache._entries[..., : cache._pending_room, :] = torch.nan
    cache.reserve(batch, max(firsts) + 2 * added, 2 * added)
    read(cache, firsts, added)
    read(cache, firsts, added)
    cache.drop()
    read(cache, firsts, added)
    store = cache._entries.data_ptr()
    paths, counts = padded(nodes)
    cache.keep(paths, counts)
    assert cache._entries.data_ptr() == store, "the cache was copied"
    lengths = [first + len(path) for first, path in zip(firsts, nodes, strict=True)]
    assert cache.lengths.tolist() == lengths and cache.longest >= max(lengths)
    source, row = (text % batch for text in moved)
    cache.move(source, row)
    for place in range(batch):
        text = source if place == row else place
        numbers = list(range(firsts[text])) + [firsts[text] + node for node in nodes[text]]
        for layer in range(2):
            expected = numbered([0] * batch, firsts[text] + added, layer)[text][:, numbers]
            assert torch.equal(entries(cache, place)[layer, 0], expected)
            assert torch.equal(entries(cache, place)[layer, 1], -expected)
    assert bool(cache._entries[..., cache._pending_room :, :].isfinite().all())


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=9))
def test_texts_of_any_length_take_rows_without_copies_of_the_others(lengths: list[int]) -> None:
    cache = KVCache(2, CPU)
    copied = 0
    for row, length in enumerate(lengths):
        alone = KVCache(2, CPU)
        read(alone, [0], length, texts=row)
        alone.keep_all()
        if cache.reserve(row + 1, room_for(max(lengths)), 4, alone):
            copied += row
        store = cache._entries
        assert store is not None
        store[:, :, row] = torch.nan  # what a text of before has left
        cache.put(row, alone)
        assert cache._entries is store
        assert bool(store[:, :, row].isfinite().all())
    assert copied < 2 * len(lengths), "a joining text copies all others"
    assert cache.lengths.tolist()[: len(lengths)] == lengths
    for row, length in enumerate(lengths):
        for layer in range(2):
            expected = numbered([0] * (row + 1), length, layer)[row]
            assert torch.equal(entries(cache, row)[layer, 0], expected)


def test_few_rooms_for_many_lengths() -> None:
    rooms = [room_for(length) for length in range(1, 20_000)]
    assert rooms == sorted(rooms) and len(set(rooms)) < 30
    for length, room in enumerate(rooms, start=1):
        assert length <= room <= length + max(255, length // 4)


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    count=st.integers(1, 10),
    window=st.none() | st.integers(1, 14),
)
def test_masks(data: st.DataObject, lengths: list[int], count: int, window: int | None) -> None:
    """Compare masks and windows of a forest with a node-by-node computation.

    The first nodes are pending, of an earlier pass; only the last ones are new.
    """
    forests: list[list[int | None]] = []
    for _ in lengths:
        drawn = [data.draw(st.none() | st.integers(0, node)) for node in range(count - 1)]
        forests.append([None, *drawn])
    ancestor_masks, positions = [], []
    for committed, parents in zip(lengths, forests, strict=True):
        ancestor_mask, position = torch.eye(count, dtype=torch.bool), []
        for node, parent in enumerate(parents):
            if parent is not None:
                ancestor_mask[node] |= ancestor_mask[parent]
            position.append(committed if parent is None else position[parent] + 1)
        ancestor_masks.append(ancestor_mask)
        positions.append(position)
    old = count - data.draw(st.integers(1, count))
    cache = KVCache(1, CPU, len(lengths))
    cache.lengths += torch.tensor(lengths)
    cache.longest = max(lengths)
    if old:
        cache.advance(torch.tensor(positions)[:, :old])
    seen = torch.stack(ancestor_masks)[:, old:]
    # The newest pass comes first.
    mask = torch.cat(
        (seen[..., old:], seen[..., :old], cache.mask().expand(-1, count - old, -1)), 2
    )
    if old == 0:
        assert torch.equal(mask, cache.mask(seen))
    if window is not None:
        mask = cache.within(mask, torch.tensor(positions)[:, old:], window)
    assert mask.shape == (len(lengths), count - old, count + cache.room)
    for text, committed in enumerate(lengths):
        position = positions[text]
        for row, node in enumerate(range(old, count)):
            reach = -1 if window is None else position[node] - window
            order = [*range(old, count), *range(old)]
            expected = [
                bool(ancestor_masks[text][node, other]) and position[other] > reach
                for other in order
            ]
            expected += [reach < key < committed for key in range(cache.room)]
            assert mask[text, row].tolist() == expected


def test_one_ancestor_mask_serves_all_texts() -> None:
    cache = KVCache(1, CPU, 3)
    cache.lengths += torch.tensor([2, 0, 5])
    chain = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    assert torch.equal(cache.mask(chain), cache.mask(chain.expand(3, -1, -1)))
    assert torch.equal(cache.causal(4), cache.mask(chain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_that_are_added_to_scores(dtype: torch.dtype) -> None:
    def masks(cache: KVCache) -> list[Tensor]:
        cache.lengths += torch.tensor([2, 0, 5])
        causal = cache.causal(4)
        within = cache.within(causal, cache.ahead(4), 3)
        return [cache.mask(), causal, within, cache.alone(3)]

    both = zip(masks(KVCache(1, CPU, 3)), masks(KVCache(1, CPU, 3, dtype)), strict=True)
    for seen, added in both:
        assert seen.dtype == torch.bool and added.dtype == dtype
        assert torch.equal(added == 0, seen) and torch.equal(added == -torch.inf, ~seen)
