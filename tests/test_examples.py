# SPDX-License-Identifier: Apache-2.0
"""The examples run offline and print their results."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from microspec_kernels import policy
from microspec_kernels.engine import EngineHead

pytest.importorskip("transformers")
pytest.importorskip("mistral_common")

ROOT = Path(__file__).parent.parent


def run(name: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), "Add 2 and 3.", *options],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_assisted_generation() -> None:
    out = run("assisted_generation.py", "--max-new-tokens", "16")
    heads = re.findall(
        r"^(\w+): (\d+) passes of the target, .* s, the target's own text$", out, re.M
    )
    assert [name for name, _ in heads] == ["dense", "sparse"]
    assert all(int(passes) < 16 for _, passes in heads)


def test_custom_generate() -> None:
    out = run("custom_generate.py", "--max-new-tokens", "16")
    assert re.search(r"^16 tokens in [1-9] passes of the target", out, re.M)


def test_own_engine() -> None:
    out = run("own_engine.py", "--max-new-tokens", "16")
    said = re.search(
        r"^(\d+) tokens in (\d+) passes of the target, the target's own text$", out, re.M
    )
    assert said is not None and int(said[1]) >= 16 and int(said[2]) < 12, out
    stats = re.search(
        r"^EngineStats\(hits=(\d+), misses=(\d+), active=1024, dense_steps=0\)$", out, re.M
    )
    assert stats is not None and int(stats[1]) + int(stats[2]) == int(said[1]), out


def test_captured_engine() -> None:
    out = run("captured_engine.py", "--max-new-tokens", "16", "--device", "cpu")
    said = re.search(
        r"^(\d+) tokens in (\d+) passes of the target, the target's own text; \2 eager drafts$",
        out,
        re.M,
    )
    assert said is not None and int(said[1]) >= 16 and int(said[2]) < 12, out


@pytest.mark.parametrize("name", ["own_engine.py", "captured_engine.py"])
def test_an_engine_observes_the_tokens_of_the_default_policy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step's tokens include the target's likeliest at each node, as many as by default."""
    likeliest, observed = [], []

    class Watched(EngineHead):
        def top_target_tokens(self, logits: Tensor) -> Tensor:
            likeliest.append(super().top_target_tokens(logits))
            return likeliest[-1]

        def observe(self, *args: Any, candidates: Tensor, **options: Any) -> None:
            observed.append(candidates)
            super().observe(*args, candidates=candidates, **options)

    monkeypatch.setattr("microspec_kernels.engine.EngineHead", Watched)
    monkeypatch.setattr(sys, "argv", [name, "Add 2 and 3.", "--max-new-tokens", "4"])
    runpy.run_path(str(ROOT / "examples" / name))
    assert observed
    for nodes, tokens in zip(likeliest, observed, strict=True):
        assert nodes.size(1) == policy.TARGET_TOP_K and nodes is tokens
