# SPDX-License-Identifier: Apache-2.0
"""Keeping a path of a tree in the KV cache equals computing that text anew."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels.speculative import CausalModel
from microspec_kernels.speculative.models.cache import KVCache, causal, visible

from .models import KINDS, VOCAB, prompt, tiny

# 0 ── 1 ── 3 ── 5      node 0 is the root; its position is the prompt's length
#  └── 2 ── 4  └─ 6
PARENTS = (0, 0, 0, 1, 2, 3, 3)
PATHS = ([0, 1, 3, 6], [0, 2, 4], [0])
LENGTHS = (11, 5, 17)


def ancestor_mask_of(parents: tuple[int, ...]) -> Tensor:
    ancestor_mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        ancestor_mask[node] |= ancestor_mask[parent]
    return ancestor_mask


def entries(cache: KVCache, text: int = 0) -> Tensor:
    """Return the kept entries of one text, [layers, 2, heads, length, head_dim]."""
    assert cache._entries is not None
    return cache._entries[:, :, text, :, : cache.lengths[text]]


def poison(cache: KVCache) -> None:
    """Fill the memory behind every text's end with NaN."""
    assert cache._entries is not None
    for text, length in enumerate(cache.lengths):
        cache._entries[:, :, text, :, length:] = torch.nan


def prefilled(target: CausalModel, texts: Sequence[Tensor]) -> KVCache:
    cache = target.new_cache()
    cache.select([])
    for text in texts:
        alone = target.new_cache()
        target.prefill(text, alone)
        cache.append(alone)
    return cache


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
    hidden = target.forward(nodes, ancestor_mask_of(PARENTS).expand(3, -1, -1), cache)[0]
    cache.keep(LENGTHS, PATHS)
    assert cache.lengths == [15, 8, 18]
    poison(cache)
    next_token = torch.tensor([7])
    one = causal(1, next_token.device)
    after = target.forward(next_token.expand(3, 1), one, cache)[0]

    for text, path in enumerate(PATHS):
        fresh = target.new_cache()
        whole = torch.cat((texts[text], nodes[text, path]))
        expected = target.prefill(whole, fresh)[0][LENGTHS[text] :]
        torch.testing.assert_close(hidden[text, path], expected, rtol=1e-4, atol=1e-4)
        last = target.forward(next_token[None], one, fresh)[0]
        torch.testing.assert_close(after[text], last[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(entries(cache, text), entries(fresh), rtol=1e-4, atol=1e-4)
        assert torch.equal(entries(cache, text)[..., : LENGTHS[text], :], before[text])


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
    hidden = target.forward(pieces, causal(6, pieces.device), cache, counts=counts)[0]
    assert cache.lengths == [length + count for length, count in zip(LENGTHS, counts, strict=True)]
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


@settings(max_examples=50, deadline=None)
@given(
    firsts=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    added=st.integers(1, 300),
    kept=st.lists(st.sets(st.integers(0, 299)), min_size=3, max_size=3),
    order=st.permutations(range(3)),
    going=st.integers(0, 3),
)
def test_keep_moves_only_the_kept(
    firsts: list[int], added: int, kept: list[set[int]], order: list[int], going: int
) -> None:
    """Numbered entries stay the same through growth, moves and leaves."""
    batch = len(firsts)
    nodes = [sorted(node for node in each if node < added) for each in kept[:batch]]
    cache = KVCache(2, batch)
    for begins, count in (([0] * batch, max(firsts)), (firsts, added)):
        for layer in range(2):
            new = numbered(begins, count, layer)
            keys, values = cache.update(new, -new, layer)
            for text, begin in enumerate(begins):
                expected = numbered([0] * batch, begin + count, layer)[text]
                assert torch.equal(keys[text, :, : begin + count], expected)
                assert torch.equal(values[text, :, : begin + count], -expected)
                assert keys.shape[2] == values.shape[2] == max(begins) + count
                assert not keys[text, :, begin + count :].any()
                assert not values[text, :, begin + count :].any()
        cache.advance(firsts if begins[0] == 0 else count)
        poison(cache)
    assert cache.get_seq_length() == max(firsts) + added
    assert cache._entries is not None
    store = cache._entries.data_ptr()
    cache.keep(firsts, nodes)
    assert cache._entries.data_ptr() == store, "the cache was copied"
    texts = [text for text in order if text < batch][:going]
    cache.select(texts)
    assert cache.lengths == [firsts[text] + len(nodes[text]) for text in texts]
    for place, text in enumerate(texts):
        numbers = list(range(firsts[text])) + [firsts[text] + node for node in nodes[text]]
        for layer in range(2):
            expected = numbered([0] * batch, firsts[text] + added, layer)[text][:, numbers]
            assert torch.equal(entries(cache, place)[layer, 0], expected)
            assert torch.equal(entries(cache, place)[layer, 1], -expected)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 600), max_size=4), leaving=st.integers(0, 4))
def test_append_takes_in_texts_of_any_length(lengths: list[int], leaving: int) -> None:
    """Texts join one after the other, while some of the first leave."""
    cache = KVCache(2, 0)
    texts: list[tuple[int, int]] = []
    for index, length in enumerate(lengths):
        if index == leaving:
            cache.select(range(1, len(texts)))
            del texts[:1]
        alone = KVCache(2)
        for layer in range(2):
            new = numbered([0], length, layer) + index
            alone.update(new, -new, layer)
        alone.advance(length)
        cache.append(alone)
        texts.append((index, length))
    assert cache.lengths == [length for _, length in texts]
    for place, (index, length) in enumerate(texts):
        for layer in range(2):
            expected = numbered([0], length, layer)[0] + index
            assert torch.equal(entries(cache, place)[layer, 0], expected)
            assert torch.equal(entries(cache, place)[layer, 1], -expected)


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    count=st.integers(1, 10),
    window=st.none() | st.integers(1, 14),
)
def test_visible(data: st.DataObject, lengths: list[int], count: int, window: int | None) -> None:
    """Compare positions and windows with a node-by-node computation; only the last rows are new."""
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
    new = data.draw(st.integers(1, count))
    mask, found = visible(
        torch.stack(ancestor_masks)[:, -new:], [length + count - new for length in lengths], window
    )
    assert found.tolist() == [position[-new:] for position in positions]
    columns = max(lengths) + count
    assert mask.shape == (len(lengths), new, columns)
    for text, committed in enumerate(lengths):
        position = positions[text]
        for row, node in enumerate(range(count - new, count)):
            reach = -1 if window is None else position[node] - window
            expected = [
                key > reach if key < committed else
                key < committed + count
                and bool(ancestor_masks[text][node, key - committed])
                and position[key - committed] > reach
                for key in range(columns)
            ]  # fmt: skip
            assert mask[text, row].tolist() == expected


def test_one_ancestor_mask_serves_all_texts() -> None:
    several = visible(causal(4, torch.device("cpu")).expand(3, -1, -1), [2, 0, 5], 3)
    for got, expected in zip(
        visible(causal(4, torch.device("cpu")), [2, 0, 5], 3), several, strict=True
    ):
        assert torch.equal(got, expected)
