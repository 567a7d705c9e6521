# SPDX-License-Identifier: Apache-2.0
"""Advise for a model how many active tokens are worth their bytes, and which head was faster.

The first is computed from the model's shapes. The measured figures are CSV files that the
benchmarks of a checkout write: RESULTS/<device>/head.csv, and draft_step.csv for the head's share
of the draft. An installed package contains no figures.
"""

import argparse
from pathlib import Path
from typing import Any

from microspec_kernels.device import device_name
from microspec_kernels.policy import CAPACITY, StepCosts, choose_capacity, explain

from .measured import HEAD, Row, draft_shares, read
from .model_costs import step_costs
from .shapes import SHAPES
from .table import table
from .verdicts import Point, dense_from, kind_of, nearest, points, verdicts, with_both_heads

RUN_SIZES = {"K": (1024, CAPACITY, 8192), "M": (1, 10, 60)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    model = {name.lower(): name for name in SHAPES}.get(args.advise.lower(), args.advise)
    drafts, requests = args.drafts or StepCosts.num_drafts, args.requests or 1
    kind, costs, dim = step_costs(model, args.target, drafts, requests)
    choice = choose_capacity(costs)
    advice: dict[str, Any] = {"model": model, "choice": choice._asdict()}
    told = [f"{model}, {kind}: {explain(costs, choice)}"]
    if model in SHAPES or args.run or args.results is not None:
        more, lines = _measured(args, model, (costs.num_rows, dim))
        advice, told = advice | more, told + lines
    print(*told, sep="\n")
    return advice


def _measured(
    args: argparse.Namespace, model: str, shape: tuple[int, int]
) -> tuple[dict[str, Any], list[str]]:
    """Return what figures of a head's shape (V, D) say, and the lines that tell it."""
    here = device_name()
    rows = measure(shape, here) if args.run else _stored(args.results, shape)
    device = nearest(here, with_both_heads(rows))
    advice: dict[str, Any] = {"device": here, "measured_on": device}
    told = [f"{model}: not measured on this device ({here})"] if device != here else []
    if device is None:
        more = "`--run` measures now; `python -m bench.run` in a checkout does it thoroughly."
        return advice, [*told, more]
    situation, found = points([row for row in rows if row["device"] == device])
    shares = {} if args.run else draft_shares(_folder(args.results), model, device)
    advice |= {"situation": situation, "points": [p._asdict() for p in found]}
    advice |= {"dense_from": dense_from(found), "head_share_of_draft": shares}
    parts = [f"{arm} {share:.0%}" for arm, share in shares.items()]
    return advice, [
        *told,
        f"{model}, V = {shape[0]}, D = {shape[1]}, {situation}, on {device}",
        table([_line(point) for point in found]),
        "",
        *verdicts(found),
        "Head's share of the draft: " + (", ".join(parts) or "not measured"),
    ]


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


def _stored(results: Path | None, shape: tuple[int, int]) -> list[Row]:
    """Read the figures of heads of a shape (V, D), of all devices."""
    folder = _folder(results)
    rows = read(folder, "head.csv", HEAD)
    if results is not None and not rows:
        raise ValueError(f"--results: expected folders with a head.csv in {folder}, got none")
    return [row for row in rows if (int(row["V"]), int(row["D"])) == shape and kind_of(row["arm"])]


def measure(shape: tuple[int, int], device: str) -> list[Row]:
    """Measure both heads quickly, by repeated calls from Python and without flushing the caches."""
    import torch

    from microspec_kernels.timing import time_arms

    from .arguments import usable_device
    from .bench import K_BEST, arms_for, operands, validate

    rows = []
    with torch.inference_mode():
        weight, hidden = operands(*shape, max(RUN_SIZES["M"]), usable_device(None), torch.bfloat16)
        for capacity in RUN_SIZES["K"]:
            for m in RUN_SIZES["M"]:
                arms = arms_for(weight, hidden[:m], capacity, K_BEST)
                validate(arms, 0.05)
                arms.pop("select")
                names = {name: name.replace("sparse", "sparse_head") for name in arms}
                sizes = {"K": str(capacity), "M": str(m), "situation": "a quick run"}
                for name, took in time_arms(arms, 15).items():
                    figures = {"arm": names[name], "p50_us": str(took.p50 * 1e6), "device": device}
                    rows.append({**sizes, **figures})
    return rows
