# SPDX-License-Identifier: Apache-2.0
"""README's figures must come from committed results, or from arithmetic over shapes."""

import csv
from pathlib import Path

import pytest

from bench.harness.models import MODELS
from microspec_kernels.policy import CAPACITY

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "intel-xeon-processor-2-threads-amx"
README = (ROOT / "README.md").read_text()

# Parameters of Llama-3.1-8B, of the drafts' layers, and of Llama-3.2-1B without its LM head.
MODEL = MODELS["Llama-3.1-8B"]
V, D, INNER, KEYS = MODEL.vocab_size, MODEL.dim, MODEL.inner, MODEL.kv_heads * MODEL.head_dim
K, DRAFTS = CAPACITY, 5
LAYER = 2 * D * D + 2 * D * KEYS + 3 * D * INNER
EAGLE_LAYER = 2 * D * D + LAYER
EAGLE_3_LAYER = 2 * D * (D + 2 * KEYS) + D * D + 3 * D * INNER
EAGLE_3_FEATURES = 3 * D * D  # once per step
LLAMA_1B_LAYERS = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
TARGET = 32 * LAYER + V * D


def cells(row: str) -> list[str]:
    """Return the cells of the one table row whose first cell begins with ``row``."""
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {row}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def column(name: str, value: str, **where: str) -> float:
    """Return the value of a results file in the one row with the values ``where``."""
    with open(RESULTS / f"{name}.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if where.items() <= row.items()]
    (row,) = rows
    return float(row[value])


@pytest.mark.parametrize(
    ("draft", "rows", "layers", "dim", "once"),
    [
        ("EAGLE-1 or 2", V, EAGLE_LAYER, D, 0),
        ("a standalone model (Llama-3.2-1B)", V, LLAMA_1B_LAYERS, 2048, 0),
        ("EAGLE-3 with its own 32k rows", 32000, EAGLE_3_LAYER, D, EAGLE_3_FEATURES),
    ],
    ids=["eagle", "standalone", "eagle-3"],
)
def test_the_bytes_of_a_step_are_computed(
    draft: str, rows: int, layers: int, dim: int, once: int
) -> None:
    def gigabytes(head_rows: int) -> float:
        return 2e-9 * (TARGET + once + DRAFTS * (layers + head_rows * dim))

    dense, sparse = gigabytes(rows), gigabytes(K)
    change = f"\N{MINUS SIGN}{100 * (1 - sparse / dense):.0f} %"
    assert cells(draft)[1:5] == [str(rows), f"{dense:.1f} GB", f"{sparse:.1f} GB", change]


@pytest.mark.parametrize(
    ("row", "head", "draft"),
    [
        ("`sparse_head`, rows read in place", "sparse_head indexed", "indexed"),
        ("`sparse_head`, packed slab", "sparse_head packed", "packed"),
        ("NanoSpec's way", "NanoSpec", "NanoSpec"),
        ("PyTorch", "index_select + linear + log_softmax + topk", None),
        ("static 32k", "static 32k", "static 32k"),
        ("dense", "dense linear + log_softmax + topk", "dense"),
    ],
    ids=["indexed", "packed", "nanospec", "pytorch", "static", "dense"],
)
def test_measured_times_are_in_the_results(row: str, head: str, draft: str | None) -> None:
    situation = {"situation": "in situ", "K": str(K)}
    took = [column("head", "p50_us", arm=head, M=m, **situation) for m in ("1", "10", "60")]
    whole = "" if draft is None else column("draft_step", "p50_us", arm=draft, part="draft")
    assert [float(cell) for cell in cells(row)[1:4]] == [float(f"{us / 1000:.3g}") for us in took]
    assert cells(row)[4] == (whole and f"{whole / 1000:.0f}")


def test_the_draft_and_the_acceptance_are_in_the_results() -> None:
    dense = column("draft_step", "p50_us", arm="dense", part="draft")
    sparse = column("draft_step", "p50_us", arm="indexed", part="draft")
    saved = f"\N{MINUS SIGN}{100 * (1 - sparse / dense):.0f} %"
    assert f"{sparse / 1000:.0f} ms instead of {dense / 1000:.0f} ms ({saved})" in README
    tau = {
        (temperature, head): column(f"e2e-depth6-top10-tree60{temperature}", "tau", head=head)
        for temperature in ("", "-temperature1")
        for head in ("sparse", "dense")
    }
    greedy = f"{tau['', 'sparse']:.2f} against {tau['', 'dense']:.2f} greedy"
    drawn = [tau["-temperature1", head] for head in ("sparse", "dense")]
    assert f"{greedy}, {drawn[0]:.2f} against {drawn[1]:.2f} at" in " ".join(README.split())
