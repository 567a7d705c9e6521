# SPDX-License-Identifier: Apache-2.0
"""bench/decoding/batches*.py: the figures of quick runs, and the choice of prompts."""

import csv
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from known_times import COLUMNS, KnownTimes

from bench.decoding import batches, batches_head

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_quick_run_on_the_cpu(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench.decoding.batches", "--quick", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, "--out", tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = list(csv.DictReader((tmp_path / "batches.csv").open()))
    arms = [(row["begins"], row["requests"], row["vocabulary"]) for row in rows]
    vocabularies = ("shared", "one a request")
    assert arms == [(b, n, v) for b in ("filled", "empty") for n in "12" for v in vocabularies]
    for row in rows:
        assert row["source"] == "built in" and row["device"] and row["commit"]
        assert row["identical_outputs"] == "3"
        assert 0 < float(row["coverage"]) <= 1 <= float(row["tau"])
        assert int(row["active_max"]) <= batches.CAPACITY
        assert float(row["head_ms_per_draft_step"]) > 0 < int(row["full_steps"])
        if row["begins"] == "filled":
            several = row["vocabulary"] == "one a request"
            rows_read = batches.CAPACITY * (int(row["requests"]) if several else 1)
            assert float(row["rows_read_per_head_call"]) == rows_read
    one_each = [
        row for row in rows if row["vocabulary"] == "one a request" and row["begins"] == "empty"
    ]
    assert one_each[0]["coverage"] == one_each[1]["coverage"], "its own, whoever is beside it"


class Lengths:
    """A tokenizer with one token per word."""

    def encode(self, prompt: str) -> list[int]:
        return [len(word) for word in prompt.split()]


def test_prompts_are_unseen_short_distinct_and_by_turns(tmp_path: Path) -> None:
    sources = {"mmlu-pro/a": "p", "zeroeval/gsm/a": "g", "zeroeval/gsm/b": "g", "other/a": "o"}
    sources |= {"zeroeval/crux/a": "c", "zeroeval/math-l5/a": "m"}
    rows = [
        {"source": source, "split": split, "prompt": letter * number}
        for source, letter in sources.items()
        for number, split in ((1, "test"), (9, "train"), *((n, "test") for n in range(2, 7)))
    ]
    rows.append({"source": "mmlu-pro/a", "split": "test", "prompt": "w " * 257})
    rows.append({"source": "mmlu-pro/a", "split": "test", "prompt": None})
    path = tmp_path / "corpus.jsonl.xz"
    with lzma.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    found = batches.prompts_by_task(path, Lengths(), 6)  # type: ignore[arg-type]
    tokens = {task: [int(ids) for ids in prompts] for task, prompts in found.items()}
    assert tokens == {"mixed": [1, 1, 1, 1, 2, 2], "gsm": [1, 2, 3, 4, 5, 6]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="times calls on the CPU")
def test_the_head_reads_as_many_rows_as_there_are_vocabularies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = KnownTimes()
    monkeypatch.setattr(batches_head, "time_arms", timed)
    rows = batches_head.measure("cpu", quick=True)
    shared, several = (
        {row["requests"]: row["MB_read"] for row in rows if row["vocabulary"] == vocabulary}
        for vocabulary in ("shared", "one a request")
    )
    assert set(shared.values()) == {300 * 64 * 2 / 1e6}
    assert several == {n: pytest.approx(n * shared[n]) for n in (2, 4, 8)}
    for row, (name, took) in zip(rows, timed.columns(), strict=True):
        assert name == f"{row['requests']} {row['vocabulary']}"
        assert [row[column] for column in COLUMNS] == pytest.approx(took)
