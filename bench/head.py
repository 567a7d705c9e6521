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

import microspec_kernels as mk
from microspec_kernels import reference
from microspec_kernels.timing import time_arms

from . import report

K_BEST = 10
SETS = 32  # of active ids, in turn: 32 × 25 MB for Llama-3-8B's shape
Arm = Callable[[], tuple[Tensor, Tensor]]


def make_weight(vocab_size: int, dim: int) -> Tensor:
    """Random bf16 rows of about unit scale over sqrt(dim), made without an fp32 copy."""
    weight = torch.empty(vocab_size, dim, dtype=torch.bfloat16)
    for chunk in weight.split(8192):
        chunk.copy_(torch.randn(chunk.shape) * dim**-0.5)
    return weight


def arms_for(weight: Tensor, sets: list[Tensor], hidden: Tensor) -> dict[str, Arm]:
    """Every way to do the job; each call takes the next set of active ids."""
    slabs = [weight.index_select(0, ids) for ids in sets]
    turns = {
        name: itertools.cycle(range(len(sets))) for name in ("sparse", "packed", "select", "slab")
    }

    def best(logits: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        value, index = logits.log_softmax(-1).topk(K_BEST)
        return value, index if ids is None else ids[index]

    def sparse() -> tuple[Tensor, Tensor]:
        ids = sets[next(turns["sparse"])]
        logits, tokens, logsumexp = mk.sparse_head(hidden, weight, ids, K_BEST)
        return logits - logsumexp[:, None], tokens

    def packed() -> tuple[Tensor, Tensor]:
        turn = next(turns["packed"])
        logits, tokens, logsumexp = mk.sparse_head(
            hidden, slabs[turn], sets[turn], K_BEST, packed=True
        )
        return logits - logsumexp[:, None], tokens

    def select() -> tuple[Tensor, Tensor]:
        ids = sets[next(turns["select"])]
        return best(F.linear(hidden, weight.index_select(0, ids)), ids)

    def slab() -> tuple[Tensor, Tensor]:
        turn = next(turns["slab"])
        return best(F.linear(hidden, slabs[turn]), sets[turn])

    def dense() -> tuple[Tensor, Tensor]:
        return best(F.linear(hidden, weight), None)

    return {
        "sparse_head indexed": sparse,
        "sparse_head packed": packed,
        "index_select + linear + log_softmax + topk": select,
        "linear on a packed slab + log_softmax + topk": slab,
        "dense linear + log_softmax + topk": dense,
    }


def validate(arms: dict[str, Arm], weight: Tensor, ids: Tensor, hidden: Tensor) -> None:
    """Each arm's log-probabilities against fp64; bf16 results may be off by their own rounding."""
    everything = torch.arange(weight.size(0), dtype=torch.int32)
    for name, arm in arms.items():
        active = everything if name.startswith("dense") else ids
        logits, tokens, logsumexp = reference.sparse_head(
            hidden[:1], weight, active, K_BEST, dtype=torch.float64
        )
        expected = logits - logsumexp[:, None]
        got, got_tokens = arm()
        rounding = 2**-7 * expected.abs().max() if got.dtype == torch.bfloat16 else 1e-5
        assert (got[:1] - expected).abs().max() <= rounding, name
        if got.dtype != torch.bfloat16:
            assert torch.equal(got_tokens[:1], tokens), name


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
    validate(arms_for(weight, sets, hidden), weight, sets[0], hidden)
    arms = arms_for(weight, sets, hidden)
    read, read_bytes = bandwidth_arm(weight)
    timed = {**arms, "read": read}
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
