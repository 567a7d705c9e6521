"""The head alone: sparse_head against what PyTorch can do, at Llama-3-8B's shape.

    python -m bench.head [--quick]

Every arm does the whole job (projection, log-probabilities, the k best with their token ids), is
validated against the fp64 reference, and then timed in two situations, with other active ids at
every call, from all over the weight:

in situ     an EAGLE draft layer of the same model runs before each call, as it does in an engine:
            the rows, and on a CPU the code of the call itself, come from memory
repeated    the same arm ran three times just before: what the kernel does once it is called

Reading bandwidth is measured in the same rounds.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microspec_kernels.timing import time_arms

from . import report
from .head_arms import arms_for, make_weight, validate

SETS = 32  # of active ids, in turn: 32 × 25 MB for Llama-3-8B's shape


def bandwidth_arm(weight: Tensor) -> tuple[Callable[[], Tensor], int]:
    """Sums a quarter of the weight, another one each time; and how many bytes that reads."""
    quarters = weight.view(torch.float32).chunk(4)
    turn = itertools.cycle(quarters)
    return lambda: next(turn).sum(), quarters[0].numel() * 4


def draft_layer(dim: int, rows: int) -> Callable[[], None]:
    """The products of an EAGLE draft step in a Llama's proportions: fc, attention, gated MLP."""
    shapes = [(dim, 2 * dim), (dim * 3 // 2, dim), (dim, dim), (dim * 7, dim), (dim, dim * 7 // 2)]
    products = [
        (torch.ones(rows, columns).bfloat16(), torch.ones(size, columns, dtype=torch.bfloat16))
        for size, columns in shapes
    ]

    def run() -> None:
        for x, weight in products:
            F.linear(x, weight)

    return run


def measure(weight: Tensor, capacity: int, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Every arm at one shape, with what it saves and the share of the bandwidth it reaches."""
    vocab_size, dim = weight.shape
    hidden = torch.randn(rows, dim).to(weight.dtype)
    sets = [torch.randperm(vocab_size)[:capacity].int() for _ in range(SETS)]
    arms = arms_for(weight, sets, hidden)
    validate(arms, hidden)
    read, read_bytes = bandwidth_arm(weight)
    timed = {**{name: arm.call for name, arm in arms.items()}, "read": read}
    layer = draft_layer(dim, rows)
    floor = capacity * dim * weight.element_size()
    table = []
    for situation, before in (
        ("in situ", lambda name: layer()),
        ("repeated", lambda name: [timed[name]() for _ in range(3)]),
    ):
        times = time_arms(timed, rounds, before=before)
        peak = read_bytes / times["read"].p50
        ours = times["sparse_head indexed"].p50
        table += [
            {
                "V": vocab_size,
                "D": dim,
                "K": capacity,
                "M": rows,
                "situation": situation,
                "arm": name,
                "p20_ms": times[name].p20 * 1e3,
                "p50_ms": times[name].p50 * 1e3,
                "p80_ms": times[name].p80 * 1e3,
                "over_indexed": times[name].p50 / ours,
                "share_of_read_bandwidth": floor / times[name].p50 / peak
                if "sparse" in name
                else "",
                "read_GBps": peak / 1e9,
            }
            for name in arms
        ]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, few rounds, no file")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    vocab_size, dim, rounds = (32000, 512, 5) if quick else (128256, 4096, 31)
    weight = make_weight(vocab_size, dim)
    rows = [row for m in (1, 10, 60) for row in measure(weight, 3072, m, rounds)]
    print(f"{report.device()}\n\n{report.table(rows)}")
    if not quick:
        report.write_csv(report.folder() / "head.csv", rows)


if __name__ == "__main__":
    main()
