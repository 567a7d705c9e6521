# SPDX-License-Identifier: Apache-2.0
"""The timeline of a step: which step is drawn, and that the bars are its spans."""

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from small_pair import save
from test_cli_generate import Letters

from microspec_kernels.cli import main, tokenizers
from microspec_kernels.cli.timeline import PARTS, Step, draw, median_step
from microspec_kernels.speculative.timeline import Span

SVG = "{http://www.w3.org/2000/svg}"


def bars_of(path: Path) -> list[tuple[str, int, float, float]]:
    """Read part, lane, left and right of each bar of an SVG."""
    bars = []
    for group in ElementTree.parse(path).iter(f"{SVG}g"):
        if (name := group.get("id", "").split())[0:1] and name[0] in PARTS:
            (shape,) = group.findall(f"{SVG}path")
            xs = [float(x) for x in re.findall(r"[ML] ([-.0-9]+)", shape.get("d", ""))]
            bars.append((name[0], int(name[1]), min(xs), max(xs)))
    return bars


def check_apart(bars: list[tuple[str, int, float, float]]) -> None:
    """Bars of one lane may touch but not overlap."""
    for lane in {lane for _, lane, _, _ in bars}:
        edges = sorted((left, right) for _, at, left, right in bars if at == lane)
        assert all(one[1] <= other[0] + 1e-3 for one, other in pairwise(edges))


def test_the_bars_are_the_spans(tmp_path: Path) -> None:
    spans = [
        Span("head", "main stream", 0, 1), Span("tree", "main stream", 1, 1.5),
        Span("verify", "main stream", 2, 6), Span("gather", "side stream", 3, 5),
        Span("vocabulary", "main stream", 6, 6.5), Span("draft_layer", "main stream", 7, 8),
    ]  # fmt: skip
    draw(Step(8.0, spans, 3), 5, "a step of it", tmp_path / "step.svg")
    bars = bars_of(tmp_path / "step.svg")
    assert [bar[:2] for bar in bars] == [(s.part, int(s.stream != "main stream")) for s in spans]
    begin, pixels = bars[0][2], bars[0][3] - bars[0][2]  # the first bar is a millisecond
    for span, (_, _, left, right) in zip(spans, bars, strict=True):
        assert ((left - begin) / pixels, (right - begin) / pixels) == pytest.approx(
            span[2:], abs=0.01
        )
    check_apart(bars)
    text = (tmp_path / "step.svg").read_text()
    for said in (
        "a step of it",
        "median of 5 steps: 8.00 ms for 3 tokens",
        "4.00 ms, 50%",
        "side stream",
    ):
        assert said in text
    draw(Step(8.0, spans, 3), 5, "a step of it", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text, "the same step gives the same file"


def test_the_median_step_is_drawn() -> None:
    """The first step is the longest and does not count."""
    steps = [(9.0, ["first"]), (4.0, ["long"]), (2.0, ["short"]), (3.0, ["middle"])]
    assert median_step(steps, [1, 2, 3, 4]) == Step(3.0, ["middle"], 4)
    assert median_step(steps[:3], [1, 2, 3]) == Step(2.0, ["short"], 3)
    assert median_step(steps[:1], [1]) == Step(9.0, ["first"], 1)


def test_generate_draws_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizers, "load_tokenizer", lambda name: Letters())
    pair, file = save(tmp_path), tmp_path / "step.svg"
    options = ["--mode", "packed", "--depth", "3", "--max-new-tokens", "12", "--capacity", "64"]
    call = ["generate", "--pair", str(pair), "--prompt", "hello", *options, "--timeline", str(file)]
    assert main(call) == 0
    bars = bars_of(file)
    check_apart(bars)
    parts = [part for part, _, _, _ in bars]
    assert [parts.count(part) for part in ("head", "verify", "gather")] == [3, 1, 1]
    assert set(parts) == set(PARTS)
    assert "a step of target, sparse head" in file.read_text()
