# SPDX-License-Identifier: Apache-2.0
"""`microspec info --advise` over made-up figures with a known answer."""

import csv
import json
from pathlib import Path

import pytest

from bench.harness import models
from microspec_kernels.cli import advise, main

HERE, OTHER = "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"
V, D = advise.SHAPES["Qwen3-8B"]
# Dense: 100 µs at M = 1 and 10, 120 at M = 60.
SPARSE = {
    (1, 1024): 10, (1, 3072): 12.5, (1, 8192): 40,
    (10, 1024): 11, (10, 3072): 20, (10, 8192): 100,
    (60, 1024): 121, (60, 3072): 130, (60, 8192): 300,
}  # fmt: skip


def line(m: int, k: int, arm: str, took: float, **more: str) -> dict[str, object]:
    shape = {"V": V, "D": D, "K": k, "M": m, "situation": "in situ"}
    return {**shape, "arm": arm, "p50_us": took, "device": HERE} | more


def figures() -> list[dict[str, object]]:
    rows = []
    for (m, k), took in SPARSE.items():
        rows += [
            line(m, k, "sparse_head packed", took),
            line(m, k, "sparse_head indexed", took + 1),
            line(m, k, "sparse_head packed fp8", 1),
            line(m, k, "NanoSpec", 1),
            line(m, k, "dense, compiled", 120 if m == 60 else 100),
            line(m, k, "dense, eager", 900),
            line(m, k, "sparse_head packed", 1, situation="warm"),
            line(m, k, "sparse_head packed", 2, situation="cold"),
            line(m, k, "dense, compiled", 1000, situation="cold"),
        ]
    return rows


def kept(folder: Path, rows: list[dict[str, object]], name: str = "head.csv") -> Path:
    (folder / "device").mkdir(exist_ok=True)
    with (folder / "device" / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(autouse=True)
def _on_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advise, "device_name", lambda: HERE)


def asked(folder: Path, *more: str) -> list[str]:
    return ["info", "--advise", "qwen3-8b", "--results", str(folder), *more]


def test_where_the_dense_head_takes_over(tmp_path, capsys) -> None:
    file = tmp_path / "advice.json"
    assert main(asked(kept(tmp_path, figures()), "--json", str(file))) == 0
    out = capsys.readouterr().out
    assert "M = 1: the sparse head, at every K measured (1024 to 8192)" in out
    assert "M = 10: the dense head from K = 8192 on; the sparse one up to 3072" in out
    assert "M = 60: the dense head, at every K measured (1024 to 8192)" in out
    assert "Head's share of the draft: not measured" in out
    assert "not measured on this device" not in out
    advice = json.loads(file.read_text())
    assert advice["dense_from"] == {"1": None, "10": 8192, "60": 1024}
    assert {"capacity": 3072, "num_tokens": 1, "sparse": 12.5, "dense": 100} in advice["points"]


def test_the_heads_share_of_the_draft(tmp_path, capsys) -> None:
    kept(tmp_path, figures())
    drafts = [
        {"model": model, "device": device, "context": context, "arm": arm, "part": part}
        | {"share": share}
        for model, device, context, arm, part, share in (
            ("Qwen3-8B", HERE, 8192, "packed", "head", 0.05),
            ("Qwen3-8B", HERE, 1024, "packed", "head", 0.08),
            ("Qwen3-8B", HERE, 1024, "packed", "layer", 0.9),
            ("Qwen3-8B", HERE, 1024, "dense", "head", 0.625),
            ("Qwen3-8B", OTHER, 1024, "dense", "head", 0.5),
            ("Qwen3-8B", OTHER, 512, "packed", "head", 0.06),
            ("Llama-3.1-8B", HERE, 512, "dense", "head", 0.7),
        )
    ]
    assert main(asked(kept(tmp_path, drafts, "draft_step.csv"))) == 0
    assert "Head's share of the draft: packed 8%, dense 62%\n" in capsys.readouterr().out


def test_figures_in_ms_are_the_same_figures(tmp_path, capsys) -> None:
    told = []
    for rows in (
        figures(),
        [{**row, "p50_ms": float(row.pop("p50_us")) / 1e3} for row in figures()],
    ):
        assert main(asked(kept(tmp_path, rows))) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]


def test_figures_of_a_like_device_are_said_to_be_its_own(tmp_path, capsys) -> None:
    assert main(asked(kept(tmp_path, [{**row, "device": OTHER} for row in figures()]))) == 0
    out = capsys.readouterr().out
    assert f"not measured on this device ({HERE})" in out and f", on {OTHER}" in out
    assert "M = 10: the dense head from K = 8192 on" in out


@pytest.mark.parametrize("device", ["NVIDIA A100-SXM4-80GB", "Intel(R) Xeon(R) Processor"])
def test_no_advice_from_another_kind_of_device(tmp_path, capsys, device) -> None:
    assert main(asked(kept(tmp_path, [{**row, "device": device} for row in figures()]))) == 0
    out = capsys.readouterr().out
    assert "not measured on this device" in out and "bench.run" in out
    assert "dense head" not in out and "µs" not in out


XEON, XEONS = (f"Intel(R) Xeon(R) Processor, {n} threads, AMX" for n in (2, 32))
# A word in all processors' names does not make two of them alike.
AMD, INTEL = (f"{name} Processor, 8 threads" for name in ("AMD Family 25", "Intel Family 6"))
EPYC, CORE = (f"{name}(TM) CPU Processor, 8 threads" for name in ("AMD(R) EPYC", "Intel(R) Core"))


@pytest.mark.parametrize(
    ("here", "devices", "taken"),
    [
        (HERE, [OTHER, HERE], HERE),
        (HERE, [OTHER, "NVIDIA H100 80GB"], "NVIDIA H100 80GB"),
        (HERE, ["NVIDIA A100-SXM4-80GB", OTHER], OTHER),
        (XEON, [XEONS], XEONS),
        (AMD, [INTEL], None),
        (EPYC, [CORE], None),
        (HERE, [], None),
    ],
)
def test_the_device_most_like_this_one(here: str, devices: list[str], taken: str | None) -> None:
    assert advise.nearest(here, devices) == taken
    assert advise.nearest(here, reversed(devices)) == taken


def test_no_advice_from_another_models_figures(tmp_path, capsys) -> None:
    kept(tmp_path, figures())
    assert main(["info", "--advise", "Gemma-3-4B", "--results", str(tmp_path)]) == 0
    assert "Gemma-3-4B: not measured on this device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--advise", "GPT-2"], "Llama-3.1-8B"),
        (["--advise", "Qwen3-8B", "--results", "absent"], "no folder absent"),
        (["--run"], "--advise"),
    ],
)
def test_mistakes(arguments, reason, capsys) -> None:
    assert main(["info", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_a_quick_run_measures_both_heads(monkeypatch, capsys) -> None:
    monkeypatch.setitem(advise.SHAPES, "Qwen3-8B", (2000, 64))
    monkeypatch.setattr(advise, "RUN_SIZES", {"K": (64, 128), "M": (1, 3)})
    assert main(["info", "--advise", "Qwen3-8B", "--run"]) == 0
    out = capsys.readouterr().out
    assert f"a quick run, on {HERE}" in out and "not measured on this device" not in out
    assert len([row for row in out.splitlines() if row.split()[:1] in (["64"], ["128"])]) == 4


def test_the_shapes_are_those_that_are_measured() -> None:
    shapes = {model.name: (model.vocab_size, model.dim) for model in models.MODELS.values()}
    assert shapes == advise.SHAPES
