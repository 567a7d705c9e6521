# SPDX-License-Identifier: Apache-2.0
"""Make the parts of a vocabulary policy from the options of `replay`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from microspec_kernels.policy import TEXT, Source, generated, prompt

from . import frequent_tokens
from .arguments import LARGEST_VOCAB, check_used, whole

SOURCES: dict[str, Callable[[int | None], Source]] = {"prompt": prompt, "generated": generated}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        action="append",
        type=_name_and_budget,
        metavar="NAME[=BUDGET]",
        help=f"a source of tokens, {' or '.join(SOURCES)}, with at most BUDGET tokens per pass; "
        "may be repeated, the newest tokens of a row last (default: both)",
    )
    frequent_tokens.add_arguments(parser)


def check(args: argparse.Namespace) -> None:
    """Check the options before reading any file.

    Raises:
        ValueError: an option that nothing would use.
    """
    check_used(
        args,
        *((name, args.frequent_tokens, "a --frequent-tokens") for name in ("pin", "no_fill")),
    )
    frequent_tokens.check_filled(args)


def check_ids(path: Path, ids: Tensor, vocab_size: int | None) -> None:
    """Check an upper bound on the ids of a file, which are at least -1.

    Raises:
        ValueError: an id that is not below --vocab-size, or without one, below LARGEST_VOCAB.
    """
    size = vocab_size or LARGEST_VOCAB
    outside = ids[ids >= size]
    if len(outside):
        expected = f"ids below {size}" + (", the --vocab-size" if vocab_size else "")
        raise ValueError(f"{path}: expected {expected}, got {int(outside[0])}")


def named_sources(args: argparse.Namespace) -> tuple[Source, ...]:
    """Make the sources of --source; without it, those of the text."""
    return tuple(SOURCES[name](budget) for name, budget in args.source or ()) or TEXT


def load_frequent_tokens(args: argparse.Namespace, capacity: int) -> tuple[list[int], list[int]]:
    """Return the pinned tokens, and the frequent tokens that every sequence begins with.

    Args:
        args: the parsed arguments.
        capacity: the smallest capacity of the run.

    Raises:
        OSError: the file of --frequent-tokens does not exist or is not readable.
        ValueError: the file is not a list of token ids, or has too few for --pin.
    """
    tokens = frequent_tokens.read(args)
    if tokens is None:
        return [], []
    check_ids(args.frequent_tokens, tokens, args.vocab_size)
    frequent_tokens.check_pin(args, len(tokens), capacity)
    return tokens[: args.pin or 0].tolist(), [] if args.no_fill else tokens.tolist()


def _name_and_budget(text: str) -> tuple[str, int | None]:
    name, equals, budget = text.partition("=")
    if name not in SOURCES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(SOURCES)}, got {name}")
    return name, whole(1, LARGEST_VOCAB)(budget) if equals else None
