"""Run recorded token traces, or your own text, through a vocabulary policy.

A trace is an .npz with tokens, generated (1 = the model wrote it, 0 = it was given) and offsets
(sequence i is tokens[offsets[i]:offsets[i+1]]). A text is a file whose first --prompt-tokens count
as given, or a .jsonl with the fields prompt and response. Every sequence begins with a
new vocabulary. A step's tokens are judged against the vocabulary as it was when the step began.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from microspec_kernels._extras import require
from microspec_kernels.policy import Policy
from microspec_kernels.replay import (
    Replay,
    Trace,
    load_text,
    load_tokenizer,
    load_trace,
    plot,
    replay,
)

from . import sources
from .common import positive, table

SHOWN = {
    "trace": "trace",
    "policy": "policy",
    "capacity": "K",
    "coverage": "coverage",
    "coverage_first64": "first64",
    "coverage_rest": "rest",
    "coverage_runs5": "runs5",
    "coverage_p10": "p10",
    "mean_active": "mean",
    "max_active": "max",
    "rows_gathered_per_step": "gathered",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE.npz")
    parser.add_argument("--text", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json of --text")
    parser.add_argument(
        "--prompt-tokens", type=int, default=0, metavar="N", help="given tokens of a --text"
    )
    parser.add_argument(
        "--capacity",
        type=_capacities,
        default=[3072],
        metavar="K[,K...]",
        help="slots, one run each (default 3072)",
    )
    parser.add_argument(
        "--vocab-size", type=positive, help="default: one more than the largest id in the trace"
    )
    parser.add_argument(
        "--step", type=positive, default=4, help="generated tokens a step (default 4)"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="begin each sequence with what the one before it has left",
    )
    sources.add_arguments(parser)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.svg", help="draw coverage against mean active size"
    )


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these tensors are small: threads would only wait for one another
    try:
        results = _replay(args)
    finally:
        torch.set_num_threads(threads)
    figures = [result.as_dict() for result in results]
    print(table([{heading: row[key] for key, heading in SHOWN.items()} for row in figures]))
    if args.plot is not None:
        plot(results, args.plot)
    return figures


def _replay(args: argparse.Namespace) -> list[Replay]:
    tqdm = require("tqdm", "replay").tqdm
    pinned, initial = sources.load_ranked(args)
    tables = sources.load_tables(args)
    traces = _traces(args)
    ids = [int(trace.tokens.max()) for trace in traces if len(trace.tokens)]
    ids += [*pinned, *initial, *(len(rows) - 1 for rows in tables.values())]
    vocab_size = args.vocab_size or max(ids, default=0) + 1
    policy = Policy(sources.named_sources(args, tables, vocab_size), initial, pinned)
    return [
        replay(
            trace,
            policy,
            vocab_size=vocab_size,
            capacity=capacity,
            step=args.step,
            keep=args.keep,
            progress=partial(
                tqdm, desc=f"{trace.name} K={capacity}", unit="seq", disable=None, leave=False
            ),
        )
        for trace in traces
        for capacity in args.capacity
    ]


def _traces(args: argparse.Namespace) -> list[Trace]:
    traces = [load_trace(path) for path in args.traces]
    if args.text:
        if args.tokenizer is None:
            raise ValueError("--text: expected its --tokenizer, got none")
        tokenizer = load_tokenizer(args.tokenizer)
        traces += [load_text(path, tokenizer, args.prompt_tokens) for path in args.text]
    if not traces:
        raise ValueError("expected a TRACE.npz or a --text, got none")
    return traces


def _capacities(text: str) -> list[int]:
    return [positive(number) for number in text.split(",")]
