# SPDX-License-Identifier: Apache-2.0
"""How much do learned lists cover that a prepared list, or none, does not? On recorded text.

    python -m bench.policy.learned TRACE.npz ... [--frequent-tokens frequent.npy] [--out DIR]

Replays one stream of at most 84 sequences of each trace, in random order, from its cold beginning:
with a vocabulary for each request, and shared by 8 and by 32. Writes learned.csv. The prior of
learned lists is the order of ids.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness import options, report
from bench.harness.sizes import CAPACITY
from microspec_kernels._token_ids import read_token_ids
from microspec_kernels.cli.arguments import Parser
from microspec_kernels.policy import NUM_LISTS, TEXT, Policy
from microspec_kernels.replay import Trace, load_trace, mixed, replay

from .data import JUDGED

CAPACITIES = (1024, CAPACITY, 8192)
SHARED = (8, 32)
SHOWN = ("coverage", "coverage_first64", "coverage_runs5", "coverage_p10", "rows_gathered_per_step")


@dataclass(frozen=True, eq=False)
class Arm:
    """What a vocabulary begins with, and what it keeps from request to request."""

    name: str
    start: Tensor
    capacity: int = CAPACITY
    keep: bool = False
    lists: int = 0
    shared: int = 1


def arms(vocab_size: int, public: Tensor | None) -> Iterator[Arm]:
    ids, empty = torch.arange(vocab_size), torch.arange(0)
    for capacity in CAPACITIES:
        yield Arm("empty, reset", empty, capacity)
        yield Arm("lowest ids, reset", ids, capacity)
        if public is not None:
            yield Arm("public list, reset", public, capacity)
        yield Arm("lowest ids, kept", ids, capacity, keep=True)
        for lists in (1, NUM_LISTS):
            yield Arm(f"learned, {lists}", ids, capacity, lists=lists)
    for shared in SHARED:
        yield Arm("lowest ids, LRU", ids, shared=shared)
        yield Arm("learned floor", ids, shared=shared, lists=1)


def judge(stream: Trace, arm: Arm, vocab_size: int) -> dict[str, Any]:
    result = replay(
        stream,
        Policy(TEXT, arm.start),
        vocab_size=vocab_size,
        capacity=arm.capacity,
        keep=arm.keep,
        lists=arm.lists,
        shared=arm.shared,
    ).as_dict()
    return {"arm": arm.name, **{name: result[name] for name in result if name != "policy"}}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE.npz")
    parser.add_argument("--frequent-tokens", type=Path, metavar="FILE", help="a list to compare")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "policy", metavar="DIR")
    args = parser.parse_args()
    torch.set_num_threads(1)  # these tensors are small: threads would only wait for one another
    with options.checking(parser):
        public = None if args.frequent_tokens is None else read_token_ids(args.frequent_tokens)
        traces = [load_trace(path) for path in args.traces]
    listed = [] if public is None else [int(public.max())]
    vocab_size = 1 + max([*listed, *(int(trace.tokens.max()) for trace in traces)])
    stream, rows = mixed(traces, JUDGED), list[dict[str, Any]]()
    for arm in tqdm(list(arms(vocab_size, public)), unit="arm", disable=None):
        rows.append(judge(stream, arm, vocab_size))
        report.write_csv(args.out / "learned.csv", rows)
    shown = ("arm", "capacity", "shared", *SHOWN)
    print(report.table([{key: row[key] for key in shown} for row in rows]))


if __name__ == "__main__":
    main()
