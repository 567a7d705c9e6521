"""`microspec replay` against a token-by-token replay that shares nothing with it."""

import json
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest
import torch

from microspec_kernels import replay
from microspec_kernels.cli import main

VOCAB, CAPACITY, STEP = 50, 12, 3


def slots_changed(before: dict[int, int], after: dict[int, int]) -> int:
    return sum(1 for slot, token in after.items() if before.get(slot) != token)


def plain_replay(tokens, generated, offsets, capacity, step, pinned=()):
    """The definition in Python: an ordered dict is the LRU; slots are a second dict."""
    judged, early, sizes, gathered = [], [], [], []
    for begin, end in pairwise(offsets):
        lru, slots, pending = OrderedDict(), dict(enumerate(pinned)), []
        shown, known, seen, left = dict(slots), set(), 0, 0
        free_room = capacity - len(pinned)

        def enter(batch, lru=lru, slots=slots, free_room=free_room):
            for token in batch:
                if token in pinned:
                    continue
                lru.pop(token, None)
                lru[token] = None
                if len(lru) > free_room:
                    lru.popitem(last=False)
            gone = [s for s, t in slots.items() if t not in lru and t not in pinned]
            for slot in gone:
                del slots[slot]
            free = sorted(set(range(capacity)) - set(slots))
            new = [token for token in lru if token not in slots.values()]
            slots.update(zip(free, new, strict=False))

        given = True
        for i in range(begin, end):
            token, wrote = int(tokens[i]), bool(generated[i])
            if wrote == given or (wrote and left == 0):  # another kind of token, or a new step
                enter(pending)
                pending, left, given = [], step, not wrote
                if wrote:
                    gathered.append(slots_changed(shown, slots))
                    shown, known = dict(slots), set(slots.values())
                    sizes.append(len(known))
            pending.append(token)
            if wrote:
                judged.append(token in known)
                early += [token in known] if seen < 64 else []
                seen, left = seen + 1, left - 1
    return {
        "steps": len(sizes),
        "tokens": len(judged),
        "coverage": np.mean(judged),
        "coverage_first64": np.mean(early),
        "mean_active": np.mean(sizes),
        "max_active": max(sizes),
    }, np.mean(gathered)


@pytest.fixture
def trace(tmp_path):
    """Five sequences with repetition, one of them empty, one without a prompt, one multi-turn."""
    random = np.random.default_rng(0)
    lengths = [150, 0, 40, 1, 90]
    offsets = np.cumsum([0, *lengths])
    tokens = random.zipf(1.3, offsets[-1]).clip(max=VOCAB) - 1
    generated = np.zeros(offsets[-1], dtype=bool)
    generated[10:150] = generated[150:190] = generated[200:220] = generated[230:] = True
    path = tmp_path / "made.npz"
    np.savez(
        path,
        tokens=tokens.astype(np.uint32),
        generated=generated.astype(np.uint8),
        offsets=offsets.astype(np.int64),
    )
    return path, tokens, generated, offsets


@pytest.mark.parametrize("pinned", [0, 5])
@pytest.mark.parametrize("step", [1, STEP, 200])
def test_figures_are_those_of_the_definition(trace, tmp_path, step, pinned):
    path, tokens, generated, offsets = trace
    rank, file = tmp_path / "rank.npy", tmp_path / "out.json"
    ranked = [4, 1, 40, 2, 33, 0]
    np.save(rank, np.array(ranked, dtype=np.int32))
    options = ["--capacity", str(CAPACITY), "--step", str(step), "--vocab-size", str(VOCAB)]
    options += ["--frequency-rank", str(rank), "--floor", str(pinned), "--json", str(file)]
    assert main(["replay", str(path), str(path), *options]) == 0

    first, second = json.loads(file.read_text())
    assert first == second and first["trace"] == "made"
    assert first["policy"] == "prompt+generated" + ("+floor5" if pinned else "")
    floor = tuple(ranked[:pinned])
    expected, gathered = plain_replay(tokens, generated, offsets, CAPACITY, step, floor)
    assert {key: first[key] for key in expected} == pytest.approx(expected)
    assert 0 < expected["coverage"] < 1
    assert first["rows_gathered_per_step"] == pytest.approx(gathered)


def test_table_and_default_vocab_size(trace, capsys):
    assert main(["replay", str(trace[0])]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["trace", "policy"] and row.split()[0] == "made"


def test_nothing_generated_is_no_division_by_zero(tmp_path):
    none = replay.Trace("none", torch.arange(4), torch.zeros(4, dtype=torch.bool), [0, 4])
    result = replay.replay(none, replay.Policy(replay.TEXT_SOURCES), vocab_size=9)
    assert result.tokens == result.steps == 0 and result.coverage == 0


@pytest.mark.parametrize("change", [{"offsets": [0, 3]}, {"offsets": [1, 4]}, {"generated": [1]}])
def test_a_file_that_does_not_fit_together_is_refused(change, tmp_path, capsys):
    arrays = {"tokens": [1, 2, 3, 4], "generated": [0, 1, 1, 1], "offsets": [0, 4]}
    np.savez(tmp_path / "bad.npz", **(arrays | change))
    assert main(["replay", str(tmp_path / "bad.npz")]) == 2
    assert "do not fit together" in capsys.readouterr().err
