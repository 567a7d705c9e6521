# SPDX-License-Identifier: Apache-2.0
"""vocab_update_ over recorded outputs of real models, with their repetition, drift and eviction.

The recordings are not part of the repository: MICROSPEC_TRACES names their folder, by default
``shared/traces`` beside the checkout.
"""

import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import assert_bitwise
from generators import VocabState, vocab_state
from lru import Lru, assert_holds, assert_moved_little

from microspec_kernels import reference, vocab_update_
from microspec_kernels.cli.shapes import SHAPES

VOCAB_SIZE = SHAPES["Llama-3.1-8B"][0]
DEFAULT = Path(__file__).resolve().parents[1].parent / "shared" / "traces"
FOLDER = Path(os.environ.get("MICROSPEC_TRACES") or DEFAULT)
FILES = sorted(FOLDER.glob("*.npz"))


def sequences(path: Path) -> list[tuple[list[int], list[int]]]:
    """Return the (given, generated) tokens of every sequence."""
    with np.load(path) as file:
        tokens, generated, offsets = file["tokens"], file["generated"].astype(bool), file["offsets"]
    found = []
    for first, last in itertools.pairwise(offsets):
        mask = generated[first:last]
        found.append((tokens[first:last][~mask].tolist(), tokens[first:last][mask].tolist()))
    return found


def test_the_traces_are_there() -> None:
    if not FILES:
        pytest.skip(f"no traces in {FOLDER}: set MICROSPEC_TRACES to the folder of the *.npz files")
    assert len(FILES) >= 1


def calls(path: Path) -> list[list[int]]:
    """Yield each prompt at once, then the answer in a speculative loop's steps of a few tokens."""
    rng = random.Random(path.name)
    batches = []
    for prompt, answer in sequences(path):
        batches.append(prompt)
        at = 0
        while at < len(answer):
            step = rng.choice((1, 2, 3, 5, 60, 400))
            batches.append(answer[at : at + step])
            at += step
    return batches


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_trace(path: Path) -> None:
    """Feed every token of the file to one vocabulary that keeps evicting; check it at times."""
    pinned = tuple(range(100, 164))
    state, cache = vocab_state(VOCAB_SIZE, 1024, pinned=pinned), Lru(1024, pinned)
    batches = calls(path)
    for number, batch in enumerate(batches):
        look = number % 97 == 0 or number == len(batches) - 1
        before = state.copy() if look else None
        vocab_update_(*state.tensors(), torch.tensor(batch, dtype=torch.int32))
        cache.see(batch)
        if before is not None:
            assert_holds(state, 0, cache)
            assert_moved_little(before, state)
    assert int(state.clock) == sum(map(len, batches))
    assert len(cache.tokens) == cache.room, "nothing was ever evicted"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_trace_equals_reference(path: Path) -> None:
    """Compare bit for bit, with two interleaved requests, over the file's first calls."""
    got = vocab_state(VOCAB_SIZE, 512, num_groups=2, clock=10**12)
    want = got.copy()
    batches = calls(path)
    for first, second in zip(batches[0:40:2], batches[1:40:2], strict=True):
        tokens = torch.tensor(first + second)
        groups = torch.tensor([0] * len(first) + [1] * len(second))
        order = torch.randperm(len(tokens))
        arguments = {"tokens": tokens[order], "token_groups": groups[order]}
        vocab_update_(*got.tensors(), **arguments)
        reference.vocab_update_(*want.tensors(), **arguments)
        for name in VocabState.__dataclass_fields__:
            assert_bitwise(getattr(got, name), getattr(want, name), name)
