# SPDX-License-Identifier: Apache-2.0
"""bench/plots over made-up figures: each mark has the place that its row gives."""

import csv
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("svg")

from matplotlib.figure import Figure

from bench.plots import __main__ as plots
from bench.plots import drafts, heads

A = {"model": "Llama-3.1-8B", "V": 128256, "D": 4096}
B = {"model": "Qwen3-8B", "V": 151936, "D": 4096}
SPARSE, DENSE = "sparse_head packed", "dense linear + log_softmax + topk"
# (model, K, M, arm, situation) → µs, bytes
HEAD = [
    (A, 3072, 1, SPARSE, "cold", 12.0, 25e6),
    (A, 8192, 1, SPARSE, "cold", 30.0, 67e6),
    (A, 3072, 1, "static 32k", "cold", 100.0, 268e6),
    (A, 3072, 1, DENSE, "cold", 360.0, 1e9),
    (A, 3072, 1, SPARSE, "warm", 5.0, 25e6),
    (A, 3072, 60, SPARSE, "cold", 20.0, 25e6),
    (A, 3072, 60, DENSE, "cold", 400.0, 1e9),
    (B, 3072, 1, SPARSE, "cold", 10.0, 25e6),
    (B, 3072, 1, DENSE, "cold", 500.0, 1.2e9),
]
FACTS = {"device": "Abacus 3000", "commit": "1234567"}


def kept(folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *FACTS])
        writer.writeheader()
        writer.writerows({**row, **FACTS} for row in rows)


def kept_head(folder: Path, bytes_too: bool = True) -> None:
    rows = [
        {**model, "K": k, "M": m, "arm": arm, "situation": situation, "p50_us": took}
        | ({"bytes": size} if bytes_too else {})
        | {"copy_GBps": 2500}
        for model, k, m, arm, situation, took, size in HEAD
    ]
    kept(folder, "head.csv", rows)


def kept_pair(folder: Path, tree: int, dense: float) -> None:
    heads = {"target alone": ("", ""), "dense": (dense, 10.0), "sparse": (0.5, 2.0)}
    rows = [
        {"head": head, "tree_size": tree, "head_ms_per_draft_step": of_head}
        | {"draft_ms_per_draft_step": whole}
        for head, (of_head, whole) in heads.items()
    ]
    kept(folder, f"e2e-tree{tree}.csv", rows)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_time_against_bytes(tmp_path: Path) -> None:
    kept_head(tmp_path)
    figure = heads.against_bytes(tmp_path)
    assert [axes.get_title() for axes in figure.axes] == ["M = 1", "M = 60"]
    axes = figure.axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_ylabel() == "µs a call, median, cold"
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert lines[SPARSE] == [(25, 12), (67, 30), (25, 10)], "and none that is warm"
    assert lines["static 32k"] == [(268, 100)]
    assert lines[DENSE] == [(1000, 360), (1200, 500)]
    # 25 MB at 2.5 TB/s are 10 µs.
    assert lines["floor, 2500 GB/s"] == [pytest.approx((25, 10)), pytest.approx((1200, 480))]
    assert legend(figure) == [*lines]


def test_bytes_where_no_column_has_them(tmp_path: Path) -> None:
    kept_head(tmp_path, bytes_too=False)
    lines = {line.get_label(): line for line in heads.against_bytes(tmp_path).axes[1].lines}
    assert lines[SPARSE].get_xdata() == [3072 * 4096 * 2 / 1e6]
    assert lines[DENSE].get_xdata() == [128256 * 4096 * 2 / 1e6]


def test_speedup_by_model(tmp_path: Path) -> None:
    kept_head(tmp_path)
    figure = heads.speedup(tmp_path)
    (axes,) = figure.axes
    assert axes.get_title() == "dense head over sparse head, K = 3072, cold"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["Llama-3.1-8B", "Qwen3-8B"]
    assert legend(figure) == ["M = 1", "M = 60"]
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[30, 50], [20]]
    middle = [bar.get_x() + bar.get_width() / 2 for bars in axes.containers for bar in bars]
    assert [round(x) for x in middle] == [0, 1, 0]


def test_models_are_known_by_their_shape(tmp_path: Path) -> None:
    row = {"V": "128256", "D": "2048"}
    assert heads.model_name(row) == "Llama-3.2-1B"
    assert heads.model_name({"V": "5", "D": "7"}) == "5 rows of 7"


def test_the_pairs_draft_step(tmp_path: Path) -> None:
    kept_pair(tmp_path, 16, 4.0)
    kept_pair(tmp_path, 60, 8.0)
    (axes,) = drafts.draft(tmp_path).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["dense", "sparse"]
    head, rest = ([(bar.get_x(), bar.get_width()) for bar in bars] for bars in axes.containers)
    assert head == [(0, 8), (0, 0.5)]
    assert rest == [(8, 2), (0.5, 1.5)]
    assert "ms" in axes.get_xlabel()


# arm → part → µs
DRAFTS = {
    "dense": {"draft": 900.0, "layer": 500.0, "head": 380.0},
    "packed": {"draft": 530.0, "layer": 500.0, "head": 40.0, "gather": -1.0, "gather, alone": 9.0},
}


def test_a_draft_by_part(tmp_path: Path) -> None:
    rows = [
        {"model": model, "context": context, "arm": arm, "part": part, "p50_us": took}
        for model, context in (("A", 1024), ("A", 8192), ("B", 1024))
        for arm, parts in DRAFTS.items()
        for part, took in parts.items()
    ]
    kept(tmp_path, "draft_step.csv", rows)
    kept_pair(tmp_path, 60, 8.0)
    figure = drafts.draft(tmp_path)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["A, context 1024", "A, context 8192", "B, context 1024"]
    assert figure.axes[-1].get_xlabel() == "µs a draft, median"
    assert legend(figure) == ["layer", "head", "gather", "rest"]
    drawn = [[(bar.get_x(), bar.get_width()) for bar in bars] for bars in figure.axes[1].containers]
    layer, head, gather, rest = drawn
    assert layer == [(0, 500), (0, 500)]
    assert head == [(500, 380), (500, 40)]
    assert [width for _, width in gather] == [0, 0], "what saves nothing costs nothing"
    assert rest == [(880, 20), (540, 0)], "parts that add up to more than the whole leave nothing"
    assert [text.get_text() for text in figure.axes[1].texts] == [" 900", " 530"]


def test_a_drafts_timeline(tmp_path: Path) -> None:
    spans = [
        ("A", "packed", "vocabulary", "draft", 0, 5),
        ("A", "packed", "gather", "side", 5, 25),
        ("A", "packed", "layer", "draft", 6, 200),
        ("A", "dense", "layer", "draft", 0, 190),
        ("A", "packed, compiled", "layer", "draft", 0, 180),
        ("B", "dense", "layer", "draft", 0, 999),
    ]
    names = ("model", "arm", "part", "stream", "start_us", "end_us")
    rows = [{"context": 1024, **dict(zip(names, span, strict=True))} for span in spans]
    kept(tmp_path, "draft_timeline.csv", rows)
    (axes,) = drafts.timeline(tmp_path).axes
    lanes = [tick.get_text() for tick in axes.get_yticklabels()]
    assert lanes == ["packed", "packed, side stream", "dense"]
    assert axes.get_title() == "one draft, A, context 1024"
    boxes = [collection.get_paths()[0].get_extents() for collection in axes.collections]
    found = sorted((lanes[round(box.y0 + 0.4)], box.x0, box.x1) for box in boxes)
    wanted = [("dense", 0, 190), ("packed", 0, 5), ("packed", 6, 200)]
    assert found == [*wanted, ("packed, side stream", 5, 25)]


def test_files_name_the_device_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    kept_pair(tmp_path, 60, 8.0)
    said = "\n".join(plots.draw(tmp_path))
    assert "bytes.svg left out: no head.csv" in said
    assert "speedup.svg left out: no head.csv" in said
    assert "Abacus 3000" in (tmp_path / "draft.svg").read_text()
    assert not (tmp_path / "bytes.svg").exists()
    first = (tmp_path / "draft.svg").read_bytes()
    plots.draw(tmp_path)
    assert (tmp_path / "draft.svg").read_bytes() == first, "the same figures give the same file"
