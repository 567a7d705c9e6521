"""Run recorded token traces through a vocabulary policy.

A trace is an .npz with tokens, generated (1 = the model wrote it, 0 = it was given) and offsets
(sequence i is tokens[offsets[i]:offsets[i+1]]). Every sequence begins with an empty vocabulary.
A step's tokens are judged against the vocabulary as it was when the step began.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from .common import frequency_rank, positive, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE.npz")
    parser.add_argument("--capacity", type=positive, default=3072, help="slots (default 3072)")
    parser.add_argument(
        "--vocab-size", type=positive, help="default: one more than the largest id in the trace"
    )
    parser.add_argument(
        "--step", type=positive, default=4, help="generated tokens a step (default 4)"
    )
    parser.add_argument("--frequency-rank", type=Path, metavar="FILE", help=".npy of token ids")
    parser.add_argument(
        "--floor", type=int, default=0, metavar="N", help="pin the N most frequent tokens"
    )


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these tensors are small: threads would only wait for one another
    try:
        results = _replay(args)
    finally:
        torch.set_num_threads(threads)
    print(table(results))
    return results


def _replay(args: argparse.Namespace) -> list[dict[str, Any]]:
    from microspec_kernels import replay
    from microspec_kernels.speculative.extra import require

    require("numpy")
    tqdm = require("tqdm").tqdm
    policy = replay.Policy(replay.TEXT_SOURCES, _floor(args))
    results = []
    for path in args.traces:
        trace = replay.load_trace(path)
        seen = [*trace.tokens.tolist(), *policy.pinned]
        progress = partial(tqdm, desc=trace.name, unit="seq", disable=None, leave=False)
        result = replay.replay(
            trace,
            policy,
            vocab_size=args.vocab_size or max(seen, default=0) + 1,
            capacity=args.capacity,
            step=args.step,
            progress=progress,
        )
        results.append(result.as_dict())
    return results


def _floor(args: argparse.Namespace) -> list[int]:
    if args.floor == 0:
        return []
    if args.floor < 0 or args.frequency_rank is None:
        raise ValueError("--floor takes a number of tokens and a --frequency-rank")
    ranked = frequency_rank(args.frequency_rank)
    if args.floor > min(len(ranked), args.capacity):
        raise ValueError(
            f"--floor: {args.floor} tokens asked for, of {len(ranked)} ranked and a capacity of "
            f"{args.capacity}"
        )
    return ranked[: args.floor]
