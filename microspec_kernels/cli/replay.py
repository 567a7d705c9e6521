# SPDX-License-Identifier: Apache-2.0
"""Run recorded token traces, or your own text, through a vocabulary policy.

A trace is an .npz with tokens, generated (1 = the model wrote the token, 0 = it was not) and
offsets (sequence i is tokens[offsets[i]:offsets[i+1]]). A text is a file whose first
--prompt-tokens are the prompt, or a .jsonl with the fields prompt and response. Every sequence
begins with the tokens that stood in the most sequences before it. A step's tokens are checked
against the vocabulary at the beginning of the step.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from microspec_kernels._optional import require
from microspec_kernels.policy import CAPACITY, Policy
from microspec_kernels.replay import (
    Replay,
    Trace,
    load_text,
    load_tokenizer,
    load_trace,
    mixed,
    plot,
    replay,
)

from . import sources
from .arguments import LARGEST_VOCAB, check_used, listed, output, positive, whole
from .table import table

SHOWN = {
    "trace": "trace",
    "policy": "policy",
    "lists": "lists",
    "shared": "shared",
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
    parser.add_argument(
        "--text",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a text; may be repeated",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json for --text")
    parser.add_argument(
        "--prompt-tokens",
        type=whole(0),
        metavar="N",
        help="length of a --text's prompt (default 0)",
    )
    parser.add_argument(
        "--capacity",
        type=listed(whole(1, LARGEST_VOCAB)),
        metavar="K[,K...]",
        help=f"number of slots; one run for each K (default {CAPACITY})",
    )
    parser.add_argument(
        "--vocab-size",
        type=whole(1, LARGEST_VOCAB),
        help="V; default: one more than the largest id of all files",
    )
    parser.add_argument(
        "--step", type=positive, default=4, help="generated tokens per step (default 4)"
    )
    parser.add_argument(
        "--shared",
        type=positive,
        default=1,
        metavar="B",
        help="let B sequences at a time share one vocabulary (default 1: each has its own)",
    )
    parser.add_argument(
        "--mix",
        type=positive,
        metavar="N",
        help="make one trace of at most N sequences of each file, evenly from all of them, in "
        "random order",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="with --no-learn: keep the vocabulary from one sequence to the next",
    )
    sources.add_source(parser)
    sources.add_arguments(parser)
    parser.add_argument(
        "--plot",
        type=output(".svg", ".png", ".pdf"),
        metavar="FILE.svg",
        help="draw coverage against mean active size",
    )


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small, so threads would only wait for each other
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
    _check(args)
    capacities = args.capacity or [CAPACITY]
    prior, traces = sources.load_prior(args.prior), _traces(args)
    if prior is not None:
        sources.check_ids(args.prior, prior, args.vocab_size)
    ids = [int(trace.tokens.max()) for trace in traces]
    ids += [] if prior is None else [int(prior.max())]
    vocab_size = args.vocab_size or max(ids) + 1
    prior = torch.arange(vocab_size) if prior is None else prior
    sources.check_pin(args, len(prior), min(capacities))
    pinned, frequent = sources.start_tokens(args, prior)
    policy = Policy(sources.named_sources(args), frequent, pinned)
    return [
        replay(
            trace,
            policy,
            vocab_size=vocab_size,
            capacity=capacity,
            step=args.step,
            keep=args.keep,
            lists=sources.num_lists(args),
            shared=args.shared,
            progress=partial(
                tqdm, desc=f"{trace.name} K={capacity}", unit="seq", disable=None, leave=False
            ),
        )
        for trace in traces
        for capacity in capacities
    ]


def _check(args: argparse.Namespace) -> None:
    """Check the options before reading any file.

    Raises:
        ValueError: a missing, unused or inconsistent option.
    """
    if not args.traces and not args.text:
        raise ValueError("expected a TRACE.npz or a --text, got none")
    if args.text and args.tokenizer is None:
        raise ValueError("--text: expected its --tokenizer, got none")
    if args.vocab_size and args.capacity and max(args.capacity) > args.vocab_size:
        expected = f"at most the --vocab-size of {args.vocab_size}"
        raise ValueError(f"--capacity: expected {expected}, got {max(args.capacity)}")
    plain = any(path.suffix != ".jsonl" for path in args.text)
    check_used(
        args,
        ("tokenizer", bool(args.text), "a --text"),
        ("prompt_tokens", plain, "a --text that is no .jsonl"),
        ("keep", not args.learn, "--no-learn"),
    )
    sources.check(args)


def _traces(args: argparse.Namespace) -> list[Trace]:
    traces = [(path, load_trace(path)) for path in args.traces]
    if args.text:
        tokenizer, prompt_tokens = load_tokenizer(args.tokenizer), args.prompt_tokens or 0
        traces += [(path, load_text(path, tokenizer, prompt_tokens)) for path in args.text]
    for path, trace in traces:
        sources.check_ids(path, trace.tokens, args.vocab_size)
        if not trace.generated.any():
            raise ValueError(f"{path}: expected generated tokens, got {len(trace.tokens)} given")
    loaded = [trace for _, trace in traces]
    return loaded if args.mix is None else [mixed(loaded, args.mix)]
