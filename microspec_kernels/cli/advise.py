# SPDX-License-Identifier: Apache-2.0
"""Advise for a model whether the dense or the sparse head is faster, from measured figures.

The figures are CSV files that the benchmarks of a checkout write: RESULTS/<device>/head.csv, and
draft_step.csv for the head's share of the draft. An installed package contains no figures.
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from microspec_kernels.device import device_name
from microspec_kernels.policy import CAPACITY

from .measured import HEAD, Row, draft_shares, read
from .shapes import SHAPES
from .table import table

RUN_SIZES = {"K": (1024, CAPACITY, 8192), "M": (1, 10, 60)}
ALIKE = 0.4  # least share of common words in the names of two similar devices
COMMON_WORDS = {"r", "tm", "cpu", "processor", "family", "model", "threads"}
SITUATIONS = ("in situ", "cold")  # the one closest to an engine comes first


class Point(NamedTuple):
    """Median times in µs of both heads at one K (capacity) and M (num_tokens)."""

    capacity: int
    num_tokens: int
    sparse: float
    dense: float


def run(args: argparse.Namespace) -> dict[str, Any]:
    names = {name.lower(): name for name in SHAPES}
    model = names.get(args.advise.lower())
    if model is None:
        raise ValueError(f"--advise: no model {args.advise}; there are {', '.join(SHAPES)}")
    here = device_name()
    rows = measure(model, here) if args.run else _stored(args.results, model)
    device = nearest(here, {row["device"] for row in rows})
    advice: dict[str, Any] = {"model": model, "device": here, "measured_on": device}
    if device != here:
        print(f"{model}: not measured on this device ({here})")
    if device is None:
        print("`--run` measures now; `python -m bench.run` in a checkout does it thoroughly.")
        return advice
    rows = [row for row in rows if row["device"] == device]
    situation, found = points(rows)
    if not found:
        expected = "figures of a sparse and a dense head with the same M"
        raise ValueError(f"--results: expected {expected} of {model} on {device}, got none")
    shares = {} if args.run else draft_shares(_folder(args.results), model, device)
    advice |= {"situation": situation, "points": [p._asdict() for p in found]}
    advice |= {"dense_from": dense_from(found), "head_share_of_draft": shares}
    vocab_size, dim = SHAPES[model]
    print(f"{model}, V = {vocab_size}, D = {dim}, {situation}, on {device}")
    print(table([_line(point) for point in found]), end="\n\n")
    print(*verdicts(found), sep="\n")
    told = [f"{arm} {share:.0%}" for arm, share in shares.items()]
    print("Head's share of the draft: " + (", ".join(told) or "not measured"))
    return advice


def _line(point: Point) -> dict[str, object]:
    return {
        "K": point.capacity,
        "M": point.num_tokens,
        "sparse µs": _shown(point.sparse),
        "dense µs": _shown(point.dense),
        "dense/sparse": point.dense / point.sparse,
    }


def _shown(took: float) -> float:
    return round(took) if took >= 100 else took


def _folder(results: Path | None) -> Path:
    if results is not None and not results.is_dir():
        raise FileNotFoundError(f"--results: no folder {results}")
    return results or Path(__file__).resolve().parents[2] / "bench" / "results"


def _stored(results: Path | None, model: str) -> list[Row]:
    """Read the figures of heads with the model's shape, of all devices."""
    shape = tuple(map(str, SHAPES[model]))
    folder = _folder(results)
    rows = read(folder, "head.csv", HEAD)
    if results is not None and not rows:
        raise ValueError(f"--results: expected folders with a head.csv in {folder}, got none")
    return [row for row in rows if (row["V"], row["D"]) == shape and _kind(row["arm"])]


def nearest(here: str, devices: Iterable[str]) -> str | None:
    """Return this device, or else the one whose name has the most words in common with its name.

    The result is None if no name has a share of at least ALIKE common words.
    """

    def words(name: str) -> set[str]:
        return set(re.findall(r"[a-z0-9]+", name.lower())) - COMMON_WORDS

    def alike(name: str) -> float:
        return len(words(name) & words(here)) / len(words(name) | words(here))

    near = [name for name in devices if alike(name) >= ALIKE]
    return max(sorted(near), key=lambda name: (name == here, alike(name)), default=None)


def _kind(arm: str) -> str | None:
    """Classify an arm as "sparse" or "dense"; None for quantised rows and for all other arms.

    Quantised rows have other figures, and the package does not offer the other arms.
    """
    if arm.startswith("sparse_head") and not re.search("fp8|int8", arm):
        return "sparse"
    return "dense" if arm.startswith("dense") else None


def points(rows: list[Row]) -> tuple[str, list[Point]]:
    """Return the situation of the figures, and the fastest time of each head in that situation."""
    rows = [row for row in rows if _kind(row["arm"])]
    present = [row["situation"] for row in rows]
    situation = next((name for name in SITUATIONS if name in present), present[0])
    sparse: dict[tuple[int, int], float] = {}
    dense: dict[int, float] = {}  # by M: the dense head does not depend on K
    for row in rows:
        if row["situation"] != situation:
            continue
        took, m = float(row["p50_us"]), int(row["M"])
        if _kind(row["arm"]) == "dense":
            dense[m] = min(took, dense.get(m, took))
        else:
            key = int(row["K"]), m
            sparse[key] = min(took, sparse.get(key, took))
    found = [Point(k, m, took, dense[m]) for (k, m), took in sorted(sparse.items()) if m in dense]
    return situation, found


def dense_from(found: list[Point]) -> dict[int, int | None]:
    """Find for each M the smallest measured K from which on the dense head is no slower.

    The value is None for an M at which the dense head is slower at the largest measured K.
    """
    result: dict[int, int | None] = {}
    for m in sorted({point.num_tokens for point in found}):
        result[m] = None
        for point in sorted((p for p in found if p.num_tokens == m), reverse=True):
            if point.sparse < point.dense:
                break
            result[m] = point.capacity
    return result


def verdicts(found: list[Point]) -> list[str]:
    """Write one sentence for each set of M that have the same answer."""
    sizes_of: dict[int | None, list[int]] = {}
    for m, capacity in dense_from(found).items():
        sizes_of.setdefault(capacity, []).append(m)
    sentences = []
    for capacity, ms in sizes_of.items():
        sizes = sorted({point.capacity for point in found if point.num_tokens in ms})
        smaller = [k for k in sizes if capacity is not None and k < capacity]
        if capacity is None:
            said = f"the sparse head, at every K measured ({_range(sizes)})"
        elif smaller:
            said = f"the dense head from K = {capacity} on; the sparse one up to {smaller[-1]}"
        else:
            said = f"the dense head, at every K measured ({_range(sizes)})"
        sentences.append(f"M = {', '.join(map(str, ms))}: {said}")
    return sentences


def _range(sizes: list[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def measure(model: str, device: str) -> list[Row]:
    """Measure both heads quickly, by repeated calls from Python and without flushing the caches."""
    import torch

    from microspec_kernels.timing import time_arms

    from .arguments import usable_device
    from .bench import arms_for, operands, validate

    rows = []
    with torch.inference_mode():
        weight, hidden = operands(
            *SHAPES[model], max(RUN_SIZES["M"]), usable_device(None), torch.bfloat16
        )
        for capacity in RUN_SIZES["K"]:
            for m in RUN_SIZES["M"]:
                arms = arms_for(weight, hidden[:m], capacity, 10)
                validate(arms, 0.05)
                arms.pop("select")
                names = {name: name.replace("sparse", "sparse_head") for name in arms}
                shape = {"K": str(capacity), "M": str(m), "situation": "a quick run"}
                for name, took in time_arms(arms, 15).items():
                    figures = {"arm": names[name], "p50_us": str(took.p50 * 1e6), "device": device}
                    rows.append({**shape, **figures})
    return rows
