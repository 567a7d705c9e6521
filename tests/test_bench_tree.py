# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the tree ops compares what it times."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.harness import options
from bench.ops import tree, tree_peers


def test_a_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["tree", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options.run(tree.__doc__, "tree", tree.on_cpu, tree.on_gpu)
    rows = list(csv.DictReader((tmp_path / "tree.csv").open()))
    assert [(row["texts"], row["arm"][:4]) for row in rows] == [
        (texts, arm) for texts in ("1", "8") for arm in ("tree", "PyTo") * 3
    ]


@pytest.mark.parametrize("peer", ["level", "cut", "accept"])
def test_another_tree_is_seen(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(tree_peers, peer)

    def wrong(*arguments: Any) -> Any:
        *results, last = right(*arguments)
        return (*results, ~last if last.dtype == torch.bool else last + 1)

    monkeypatch.setattr(tree_peers, peer, wrong)
    with pytest.raises(AssertionError, match="different trees"):
        tree.arms(2, "cpu")
