# SPDX-License-Identifier: Apache-2.0
"""`microspec replay` against an independent token-by-token replay."""

import json
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest
import torch

from microspec_kernels import replay
from microspec_kernels.cli import main
from microspec_kernels.policy import TEXT, Policy

VOCAB, CAPACITY, STEP = 50, 12, 3


def slots_changed(before: dict[int, int], after: dict[int, int]) -> int:
    return sum(1 for slot, token in after.items() if before.get(slot) != token)


def as_they_come(batch, wrote):
    return batch


def plain_replay(
    tokens, generated, offsets, capacity, step, *, pinned=(), frequent_tokens=(), keep=False,
    entering=as_they_come,
):  # fmt: skip
    """Replay by definition in Python: an ordered dict is the LRU, a second dict the slots."""
    present = [*pinned, *(t for t in frequent_tokens if t not in pinned)][:capacity]
    judged, early, late, windows, shares, sizes, gathered = [], [], [], [], [], [], []
    for begin, end in pairwise(offsets):
        covered, turn = [], []
        if not keep or begin == 0:
            lru = OrderedDict.fromkeys(present[: len(pinned) - 1 if pinned else None : -1])
            slots = dict(enumerate(present))
            shown = dict(slots)
        pending, active, seen, left = [], set(), 0, 0
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

        in_prompt = True
        for i in range(begin, end):
            token, wrote = int(tokens[i]), bool(generated[i])
            if wrote == in_prompt or (wrote and left == 0):  # another kind of token, or a new step
                enter(entering(pending, not in_prompt))
                pending, left, in_prompt = [], step, not wrote
                if wrote:
                    gathered.append(slots_changed(shown, slots))
                    shown, active = dict(slots), set(slots.values())
                    sizes.append(len(active))
            pending.append(token)
            turn = [*turn, token in active] if wrote else []
            if wrote:
                covered.append(token in active)
                (early if seen < 64 else late).append(token in active)
                windows += [all(turn[-5:])] if len(turn) >= 5 else []
                seen, left = seen + 1, left - 1
        enter(entering(pending, not in_prompt))
        judged += covered
        shares += [np.mean(covered)] if covered else []
    return {
        "steps": len(sizes),
        "tokens": len(judged),
        "coverage": np.mean(judged),
        "coverage_first64": np.mean(early),
        "coverage_rest": np.mean(late),
        "coverage_runs5": np.mean(windows),
        "coverage_p10": np.quantile(shares, 0.1),
        "mean_active": np.mean(sizes),
        "max_active": max(sizes),
    }, np.mean(gathered)


@pytest.fixture
def trace(tmp_path):
    """Write five sequences with repetition: one empty, one without a prompt, one multi-turn."""
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
    path_of_list, file = tmp_path / "frequent.npy", tmp_path / "out.json"
    frequent = [4, 1, 40, 2, 33, 0]
    np.save(path_of_list, np.array(frequent, dtype=np.int32))
    options = ["--capacity", str(CAPACITY), "--step", str(step), "--vocab-size", str(VOCAB)]
    options += ["--json", str(file), "--no-learn", "--no-fill"]
    if pinned:
        options += ["--prior", str(path_of_list), "--pin", str(pinned)]
    assert main(["replay", str(path), str(path), *options]) == 0

    first, second = json.loads(file.read_text())
    assert first == second and first["trace"] == "made"
    assert first["policy"] == "prompt+generated" + ("+pin5" if pinned else "")
    never = tuple(frequent[:pinned])
    expected, gathered = plain_replay(tokens, generated, offsets, CAPACITY, step, pinned=never)
    assert {key: first[key] for key in expected} == pytest.approx(expected)
    assert 0 < expected["coverage"] < 1
    assert first["rows_gathered_per_step"] == pytest.approx(gathered)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("pinned", [0, 4])
@pytest.mark.parametrize("frequent", [[4, 1, 40, 2, 33, 0], [*range(20)]], ids=["few", "full"])
def test_filled_and_kept(trace, tmp_path, frequent, pinned, keep):
    path, tokens, generated, offsets = trace
    path_of_list, file = tmp_path / "frequent.npy", tmp_path / "out.json"
    np.save(path_of_list, np.array(frequent))
    options = ["--capacity", str(CAPACITY), "--step", str(STEP), "--vocab-size", str(VOCAB)]
    options += ["--no-learn", "--prior", str(path_of_list)]
    options += ["--pin", str(pinned)] if pinned else []
    options += ["--keep"] * keep
    assert main(["replay", str(path), *options, "--json", str(file)]) == 0
    (result,) = json.loads(file.read_text())
    start = {"pinned": tuple(frequent[:pinned]), "frequent_tokens": tuple(frequent)}
    of_trace = tokens, generated, offsets, CAPACITY, STEP
    expected, gathered = plain_replay(*of_trace, **start, keep=keep)
    assert {key: result[key] for key in expected} == pytest.approx(expected)
    assert result["rows_gathered_per_step"] == pytest.approx(gathered)
    assert result["keep"] == keep and "filled" in result["policy"]
    assert expected != pytest.approx(plain_replay(*of_trace, pinned=start["pinned"])[0])
    assert expected != pytest.approx(plain_replay(*of_trace, **start, keep=not keep)[0])


def test_sources_and_budgets(trace, tmp_path):
    """The newest four of a prompt enter, and the newest two of a step."""
    path, tokens, generated, offsets = trace
    out = tmp_path / "out.json"
    options = ["--capacity", str(CAPACITY), "--step", str(STEP), "--json", str(out)]
    options += ["--no-learn", "--no-fill"]
    sources = ["--source", "prompt=4", "--source", "generated=2"]
    assert main(["replay", str(path), *options, *sources]) == 0

    def entering(batch, wrote):
        return batch[-2:] if wrote else batch[-4:]

    expected, gathered = plain_replay(tokens, generated, offsets, CAPACITY, STEP, entering=entering)
    (result,) = json.loads(out.read_text())
    assert result["policy"] == "prompt=4+generated=2"
    assert {key: result[key] for key in expected} == pytest.approx(expected)
    assert result["rows_gathered_per_step"] == pytest.approx(gathered)
    plain, _ = plain_replay(tokens, generated, offsets, CAPACITY, STEP)
    assert plain != pytest.approx(expected)


def test_table_capacities_and_default_vocab_size(trace, capsys):
    assert main(["replay", str(trace[0]), "--capacity", "4,9"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:5] == ["trace", "policy", "lists", "shared", "K"]
    policy = "prompt+generated+filled"
    assert [row.split()[:5] for row in rows] == [["made", policy, "8", "1", k] for k in "49"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--prior", "TABLE"], "integers in 1 dimension"),
        (["--no-fill"], "--no-fill: expected --no-learn"),
        (["--keep"], "--keep: expected --no-learn"),
        (["--no-learn", "--lists", "2"], "--lists: expected --learn"),
        (["--no-learn", "--pin", "3", "--prior", "RANK"], "at most the 2 tokens of"),
        (["--no-learn", "--pin", "13", "--capacity", "12"], "the capacity of 12"),
    ],
)
def test_what_does_not_fit_is_refused(options, reason, trace, tmp_path, capsys):
    files = {"TABLE": tmp_path / "table.npy", "RANK": tmp_path / "frequent.npy"}
    np.save(files["TABLE"], np.zeros((VOCAB, 1), dtype=np.int32))
    np.save(files["RANK"], np.array([3, 1]))
    assert main(["replay", str(trace[0]), *(str(files.get(o, o)) for o in options)]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("source", ["tree", "prompt=0", "prompt=x", "prompt="])
def test_a_source_that_is_none_is_refused(source, trace, capsys):
    with pytest.raises(SystemExit):
        main(["replay", str(trace[0]), "--source", source])
    assert "--source" in capsys.readouterr().err


@pytest.mark.parametrize("use", [[], ["--no-learn"], ["--no-learn", "--pin", "1", "--no-fill"]])
def test_a_frequent_token_beyond_the_trace_widens_the_vocabulary(use, trace, tmp_path):
    np.save(tmp_path / "frequent.npy", np.array([VOCAB + 9]))
    options = ["--prior", str(tmp_path / "frequent.npy"), *use]
    assert main(["replay", str(trace[0]), *options]) == 0


def test_threads_are_as_before(trace):
    torch.set_num_threads(3)
    assert main(["replay", str(trace[0])]) == 0
    assert torch.get_num_threads() == 3
    assert main(["replay", "absent.npz"]) == 2
    assert torch.get_num_threads() == 3


def test_no_step_is_no_replay(trace):
    whole = replay.load_trace(trace[0])
    with pytest.raises(ValueError, match="replay: step: expected at least 1, got 0"):
        replay.replay(whole, Policy(TEXT), vocab_size=VOCAB, step=0)


def test_nothing_to_replay_is_refused(capsys):
    assert main(["replay"]) == 2
    assert "expected a TRACE.npz or a --text" in capsys.readouterr().err


def test_nothing_generated_is_no_division_by_zero(tmp_path):
    none = replay.Trace("none", torch.arange(4), torch.zeros(4, dtype=torch.bool), [0, 4])
    result = replay.replay(none, Policy(TEXT), vocab_size=9)
    assert result.tokens == result.steps == 0 and result.coverage == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"offsets": [0, 3]}, "offsets: expected entries that rise from 0 to 4, got 2 that do not"),
        ({"offsets": [1, 4]}, "offsets: expected entries that rise from 0 to 4, got 2 that do not"),
        ({"generated": [1]}, "generated: expected shape [4] as tokens, got [1]"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(change, reason, tmp_path, capsys):
    arrays = {"tokens": [1, 2, 3, 4], "generated": [0, 1, 1, 1], "offsets": [0, 4]}
    np.savez(tmp_path / "bad.npz", **(arrays | change))
    assert main(["replay", str(tmp_path / "bad.npz")]) == 2
    assert f"bad.npz: {reason}" in capsys.readouterr().err


def test_fill_and_pin(trace, tmp_path):
    """The list fills the slots beside the pinned tokens, unless --no-fill forbids it."""
    frequent, out = tmp_path / "frequent.npy", tmp_path / "out.json"
    np.save(frequent, np.array([4, 1, 40, 2, 33, 0]))
    call = ["replay", str(trace[0]), "--capacity", "12", "--no-learn"]
    results = {}
    for option in ("", "--pin=3", "--pin=3 --no-fill"):
        options = [*call, "--prior", str(frequent), *option.split()]
        assert main([*options, "--json", str(out)]) == 0
        (results[option],) = json.loads(out.read_text())
    assert [result["policy"] for result in results.values()] == [
        "prompt+generated+filled", "prompt+generated+filled+pin3", "prompt+generated+pin3",
    ]  # fmt: skip
    assert results[""]["coverage"] > results["--pin=3 --no-fill"]["coverage"]


def counted_order(texts, prior):
    """Order all tokens by the number of texts, then by the prior, then by id."""
    place = {token: i for i, token in enumerate(prior)}
    count = {token: sum(token in text for text in texts) for token in range(VOCAB)}
    return sorted(range(VOCAB), key=lambda t: (-count[t], place.get(t, VOCAB), t))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # means of no tokens after the 64th
@pytest.mark.parametrize("prior", [[], [40, 2, 33]])
def test_one_learned_list_is_a_count_of_the_texts_so_far(prior, trace, tmp_path):
    """Every sequence is the definition's replay of it alone, begun with the counts so far."""
    _, tokens, generated, offsets = trace
    tokens = (tokens * 7 + 3) % VOCAB  # so that the frequent tokens are not the lowest ids
    path = tmp_path / "permuted.npz"
    np.savez(path, tokens=tokens, generated=generated, offsets=offsets)
    file, options = tmp_path / "out.json", ["--lists", "1", "--capacity", str(CAPACITY)]
    if prior:
        np.save(tmp_path / "prior.npy", np.array(prior))
        options += ["--prior", str(tmp_path / "prior.npy")]
    options += ["--step", str(STEP), "--vocab-size", str(VOCAB), "--json", str(file)]
    assert main(["replay", str(path), *options]) == 0
    (result,) = json.loads(file.read_text())
    texts, covered, count = [], 0.0, 0
    for begin, end in pairwise(offsets):
        if wrote := int(generated[begin:end].sum()):
            frequent = tuple(counted_order(texts, prior))
            alone = tokens[begin:end], generated[begin:end], [0, end - begin]
            expected, _ = plain_replay(*alone, CAPACITY, STEP, frequent_tokens=frequent)
            covered, count = covered + expected["coverage"] * wrote, count + wrote
        texts.append(set(tokens[begin:end][generated[begin:end]].tolist()))
    assert result["coverage"] == pytest.approx(covered / count)
    assert (result["lists"], result["shared"], result["tokens"]) == (1, 1, count)
    plain, _ = plain_replay(
        tokens, generated, offsets, CAPACITY, STEP, frequent_tokens=range(VOCAB)
    )
    assert result["coverage"] != pytest.approx(plain["coverage"])


def test_sequences_that_share_a_vocabulary_take_turns():
    """Two at a time: B's first step finds what A's prompt and first step left."""
    a, b, c = [1, 2, 3, 4, 3, 4], [5, 3, 4], [6, 5, 5]
    tokens = torch.tensor([*a, *b, *c])
    written = torch.tensor([False, False, *[True] * 4, False, True, True, False, True, True])
    trace = replay.Trace("turns", tokens, written, [0, 6, 9, 12])
    at = {"vocab_size": 9, "capacity": 4, "step": 2, "shared": 2}
    result = replay.replay(trace, Policy(TEXT), **at)
    # Turn 1: prompts {1, 2} and {5}. Turn 2: A's 3 4 are new, and known to B's 3 4, which end B.
    # Turn 3: A's 3 4 again. C took B's place: its prompt is 6 and evicts the oldest, 2.
    # Turn 4: C's 5 is still there.
    assert result.coverage == pytest.approx((0 + 0 + 1 + 1 + 1 + 1 + 1 + 1) / 8)
    alone = replay.replay(trace, Policy(TEXT), **(at | {"shared": 1}))
    assert alone.coverage == pytest.approx(2 / 8)
    with pytest.raises(ValueError, match="replay: shared: expected at least 1, got 0"):
        replay.replay(trace, Policy(TEXT), **(at | {"shared": 0}))


def test_a_mixed_stream_takes_sequences_evenly(trace, tmp_path):
    file = tmp_path / "out.json"
    assert main(["replay", str(trace[0]), str(trace[0]), "--mix", "2", "--json", str(file)]) == 0
    (result,) = json.loads(file.read_text())
    _, _, generated, offsets = trace
    kept = [generated[offsets[i] : offsets[i + 1]].sum() for i in (0, 2)]  # of five, evenly
    assert result["trace"] == "mixed" and result["tokens"] == 2 * sum(kept)
    whole = replay.load_trace(trace[0])
    first, again = replay.mixed([whole, whole], 5), replay.mixed([whole, whole], 5)
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, torch.cat((whole.tokens, whole.tokens)))
