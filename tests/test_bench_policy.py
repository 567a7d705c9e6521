# SPDX-License-Identifier: Apache-2.0
"""The study of policies: lists and test sequences are disjoint, and plots show the written data."""

import csv
import json
import lzma
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

matplotlib.use("svg")

from bench.harness.sizes import CAPACITY
from bench.plots import policy as plots
from bench.policy import learned, learned_pair, traces
from bench.policy import pair as policy_pair
from bench.policy.data import evenly, halves, joined, load_corpus, others, unrelated
from microspec_kernels import policy
from microspec_kernels.replay import Trace
from microspec_kernels.speculative import Generation
from microspec_kernels.speculative.stats import Stats

PUBLIC = torch.tensor([0, 1])
LLAMA = "Meta-Llama-3.1-8B-Instruct"
SEQUENCES = 6


def recorded(name: str, first: int) -> Trace:
    """Make sequence i: given token 0, then three times token 1 and the unique token first + i."""
    written = torch.tensor([False, *[True] * 6])
    return joined(
        name,
        [(torch.tensor([0, *[1, first + i] * 3]), written) for i in range(SEQUENCES)],
    )


@pytest.fixture
def study() -> traces.Study:
    names = (f"zero-gsm__{LLAMA}", "zero-crux__Qwen2", "mmlu-pro__Meta-Llama-3_1-8B-Instruct")
    recordings = [recorded(name, 10 * i + 10) for i, name in enumerate((*names, "proofs__Other"))]
    return traces.Study(64, PUBLIC, {trace.name: halves(trace) for trace in recordings})


def words(texts: list[torch.Tensor]) -> set[int]:
    return set(torch.cat(texts).tolist())


def test_one_half_is_judged_and_the_other_counted(study: traces.Study) -> None:
    half = study.traces[f"zero-gsm__{LLAMA}"]
    assert words([half.judged.tokens]) == {0, 1, 10, 12, 14}
    assert words(half.counted) == {1, 11, 13, 15}  # given tokens do not count
    assert half.judged.generated.tolist() == [False, *[True] * 6] * 3


def test_a_long_trace_is_judged_evenly(monkeypatch) -> None:
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly(range(3), 3) == evenly(range(3), 9) == [0, 1, 2]
    monkeypatch.setattr("bench.policy.data.JUDGED", 1)
    assert words([halves(recorded("a__b", 10)).judged.tokens]) == {0, 1, 10}


def test_others_share_no_suite_and_no_model(study: traces.Study) -> None:
    assert words(others(f"zero-gsm__{LLAMA}", study.traces)) == {1, 41, 43, 45}
    assert words(others("zero-crux__Qwen2", study.traces)) == {1, 31, 33, 35, 41, 43, 45}
    assert len(others("proofs__Other", study.traces)) == 9


def test_no_arm_has_seen_what_it_is_judged_on(study: traces.Study) -> None:
    for name, half in study.traces.items():
        secret = words([half.judged.tokens]) - {0, 1}
        arms = list(study.arms(name))
        assert {"other tasks", "own half", "10 own requests"} < {arm.list for arm in arms}
        for arm in arms:
            frequent = {*torch.as_tensor(arm.policy.frequent_tokens).tolist()}
            assert not secret & (frequent | {*torch.as_tensor(arm.policy.pinned).tolist()}), (
                arm.name
            )
    assert not any(
        {10, 12, 14} & {*torch.as_tensor(arm.policy.frequent_tokens).tolist()}
        for arm in study.mixed()[1]
    )


def test_each_arm_is_what_it_is_called(study: traces.Study) -> None:
    """A step has 4 tokens: of a sequence's six, only a list can cover the third and fourth."""
    name = "proofs__Other"
    judged = study.traces[name].judged
    figures = {
        (arm.name, arm.list): study.judge(judged, arm)
        for arm in study.arms(name)
        if arm.capacity == CAPACITY
    }
    assert figures["text", ""]["coverage"] == pytest.approx(2 / 6)  # those of the second step
    assert figures["text, floor 1024", "public"]["coverage"] == pytest.approx(4 / 6)
    assert figures["filled", "public"]["coverage"] == pytest.approx(4 / 6)
    assert figures["filled", "own half"]["mean_active"] > 5  # 0, 1 and 3 of the other half
    assert figures["text, kept", ""]["coverage"] == pytest.approx((2 + 4 + 4) / 18)
    two = study.judge(
        judged, traces.ReplayedPolicy("filled", policy.Policy(policy.TEXT, PUBLIC), "", 2)
    )
    assert (two["capacity"], two["max_active"]) == (2, 2)
    stream, arms = study.mixed()
    assert sorted(stream.tokens.tolist()) == sorted(
        token for half in study.traces.values() for token in half.judged.tokens.tolist()
    )
    assert [arm.keep for arm in arms].count(True) == 2


def test_the_corpus_without_a_trace_s_own_suite(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "corpus.xz"
    sources = ("zeroeval/gsm/M", "gsm8k-train", "wildbench/M", "mmlu-pro/M")
    rows = zip(sources, ("a", "a a", "b b", "c"), strict=True)
    with lzma.open(path, "wt") as file:
        file.writelines(json.dumps({"source": s, "response": r}) + "\n" for s, r in rows)
    corpus = load_corpus(path, tokenizer)
    assert words(unrelated(f"zero-gsm__{LLAMA}", corpus)) == {1, 2}
    assert words(unrelated("mmlu-pro__M", corpus)) == {0, 1}
    assert len(unrelated("proofs__M", {"wildbench": [torch.zeros(1)] * 9}, count=4)) == 4


def test_a_whole_run(tmp_path: Path, monkeypatch, capsys) -> None:
    paths = []
    for trace in (recorded(f"zero-gsm__{LLAMA}", 10), recorded("tau-airline__Other", 20)):
        paths.append(tmp_path / f"{trace.name}.npz")
        np.savez(paths[-1], tokens=trace.tokens, generated=trace.generated, offsets=trace.offsets)
    np.save(tmp_path / "frequent.npy", PUBLIC.numpy())
    options = ["--frequent-tokens", str(tmp_path / "frequent.npy"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["policy", *map(str, paths), *options])
    monkeypatch.setattr(traces, "CAPACITIES", (CAPACITY, 1))
    traces.main()
    assert "| tau-airline__Other | filled | own half | 3072 |" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "policy.csv").open()))
    assert {row["trace"] for row in rows} == {path.stem for path in paths}
    assert len(list(csv.DictReader((tmp_path / "mixed.csv").open()))) == 5
    assert {"capacity.svg", "policies.svg"} <= {path.name for path in tmp_path.iterdir()}
    figure = plots.capacity(rows)
    for axes, path in zip(figure.axes, paths, strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        for (arm, counted), label in plots.CURVES.items():
            chosen_rows = [
                r for r in rows if (r["trace"], r["arm"], r["list"]) == (path.stem, arm, counted)
            ]
            drawn = sorted((int(r["capacity"]), float(r["coverage"])) for r in chosen_rows)
            assert list(zip(*lines[label].get_data(), strict=True)) == drawn
    axes = plots.policies(rows).axes[0]
    marks = {line.get_label(): line.get_data() for line in axes.get_lines()}
    for row in rows:
        if (row["arm"], row["list"], row["capacity"]) == ("filled", "own half", "3072"):
            x, y = marks[row["trace"]]
            assert x[list(y).index("filled (own half)")] == float(row["coverage"])


def test_the_pair_s_figures_are_over_all_texts() -> None:
    """There are two texts; the second loops from its fifth token on."""
    generations = [
        Generation(torch.arange(1 + sum(lengths)), lengths, Stats(lengths, sizes, [True] * covered))
        for lengths, sizes, covered in (([2, 4], [10, 20], 5), ([3, 3, 6], [10, 30, 30], 9))
    ]
    arm = policy_pair.DecodedPolicy("text", policy.Policy(policy.TEXT), 40)
    figures = policy_pair.row(arm, 1.0, generations, loops=[6, 4])
    assert figures["tau"] == pytest.approx(18 / 5)
    assert figures["tau_before_loops"] == pytest.approx((2 + 3) / 2)  # the first token has no step
    assert figures["coverage"] == pytest.approx(14 / 18)
    assert (figures["active_mean"], figures["active_max"]) == (20, 30)
    assert (figures["steps"], figures["prompts"], figures["capacity"]) == (5, 2, 40)


def test_the_pair_is_tried_with_every_policy_once() -> None:
    greedy, drawn = (list(policy_pair.arms(torch.arange(4), t)) for t in (0.0, 1.0))
    for arms in (greedy, drawn):
        assert len({(arm.name, arm.capacity) for arm in arms}) == len(arms)
        assert arms[0].policy is None and arms[0].name == "dense"
        for arm in arms[1:]:
            assert arm.policy is not None
            assert ("filled" in arm.name) == bool(len(arm.policy.frequent_tokens))
            assert ("floor" in arm.name) == bool(len(arm.policy.pinned))
    assert {arm.name for arm in drawn} < {arm.name for arm in greedy}


def test_the_learned_study_replays_each_arm_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(learned, "CAPACITIES", (4,))
    monkeypatch.setattr(learned, "SHARED", (2,))
    trace = recorded("zero-gsm__Meta", 10)
    np.savez(
        tmp_path / "zero-gsm__Meta.npz",
        tokens=trace.tokens.numpy(), generated=trace.generated.numpy(), offsets=trace.offsets,
    )  # fmt: skip
    np.save(tmp_path / "list.npy", np.array([1, 40]))
    options = ["--frequent-tokens", str(tmp_path / "list.npy"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["learned", str(tmp_path / "zero-gsm__Meta.npz"), *options])
    learned.main()
    rows = {(row["arm"], row["shared"]): row for row in read_rows(tmp_path / "learned.csv")}
    assert [lists for arm, lists in LISTS if rows[arm]["lists"] != lists] == []
    # Of each sequence's tokens 1 and its own, three times each, a step of four knows: "1" if the
    # vocabulary began with it, and both in the second step.
    assert float(rows["empty, reset", "1"]["coverage"]) == pytest.approx(2 / 6)
    assert float(rows["lowest ids, reset", "1"]["coverage"]) == pytest.approx(4 / 6)


LISTS = [(("empty, reset", "1"), "0"), (("learned, 1", "1"), "1"), (("learned, 8", "1"), "8")]
LISTS += [(("lowest ids, LRU", "2"), "0"), (("learned floor", "2"), "1")]


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_pair_learns_while_it_decodes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(learned_pair, "SETTLED", 1)
    parts = {"first": slice(0, 1), "later": slice(1, None), "none": slice(9, None)}
    monkeypatch.setattr(learned_pair, "PARTS", parts)
    options = ["--requests", "2", "--new", "6", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["learned_pair", *options])
    learned_pair.main()
    rows = read_rows(tmp_path / "learned-pair.csv")
    assert [(row["temperature"], row["requests"]) for row in rows] == [
        ("0", "first"), ("0", "later"), ("1", "first"), ("1", "later"),
    ]  # fmt: skip
    assert all(row["same_texts"] == row["count"] == "1" for row in rows)
    for row in rows:
        ratio = float(row["tau"]) / float(row["tau_dense"])
        assert float(row["tau_of_dense"]) == pytest.approx(ratio)
