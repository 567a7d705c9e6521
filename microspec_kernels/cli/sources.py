# SPDX-License-Identifier: Apache-2.0
"""Make the parts of a vocabulary policy from the options of `replay` and `generate`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from microspec_kernels._token_ids import read_token_ids
from microspec_kernels.policy import NUM_LISTS, TEXT, Source, generated, prior_of_tokenizer, prompt
from microspec_kernels.replay import load_tokenizer

from .arguments import LARGEST_VOCAB, check_used, positive, whole

IDS = "ids"
SOURCES: dict[str, Callable[[int | None], Source]] = {"prompt": prompt, "generated": generated}


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        action="append",
        type=_name_and_budget,
        metavar="NAME[=BUDGET]",
        help=f"a source of tokens, {' or '.join(SOURCES)}, with at most BUDGET tokens per pass; "
        "may be repeated, the newest tokens of a row last (default: both)",
    )


def add_arguments(parser: argparse.ArgumentParser, prior: str = "of their ids") -> None:
    """Add the options of what a vocabulary begins with; `prior` describes the default order."""
    parser.add_argument(
        "--prior",
        metavar="ids|TOKENIZER|FILE",
        help="the order of tokens before anything is learned: `ids`, a tokenizer.json, or a list "
        f"of ids, the most frequent first (.npy, .pt or .json) (default: {prior})",
    )
    parser.add_argument(
        "--learn",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="learn lists of frequent tokens from the texts so far, and begin each text with them "
        "(default); --no-learn begins each with the prior",
    )
    parser.add_argument(
        "--lists",
        type=positive,
        metavar="N",
        help=f"number of lists that --learn keeps; a prompt chooses one (default {NUM_LISTS})",
    )
    parser.add_argument(
        "--pin", type=positive, metavar="N", help="never evict the N first tokens of the prior"
    )
    parser.add_argument(
        "--no-fill",
        action="store_true",
        help="begin with the pinned tokens only, or empty without --pin",
    )


def check(args: argparse.Namespace) -> None:
    """Check the options before reading any file.

    Raises:
        ValueError: an option that nothing would use.
    """
    check_used(
        args,
        ("lists", args.learn, "--learn"),
        *((name, not args.learn, "--no-learn") for name in ("pin", "no_fill")),
    )


def num_lists(args: argparse.Namespace) -> int:
    """Return the number of lists to learn, 0 for none."""
    return (args.lists or NUM_LISTS) if args.learn else 0


def check_ids(
    path: str | Path, ids: Tensor, vocab_size: int | None, whose: str = "--vocab-size"
) -> None:
    """Check an upper bound on the ids of a file, which are at least -1.

    Raises:
        ValueError: an id that is not below the size, or without one, below LARGEST_VOCAB.
    """
    size = vocab_size or LARGEST_VOCAB
    outside = ids[ids >= size]
    if len(outside):
        expected = f"ids below {size}" + (f", the {whose}" if vocab_size else "")
        raise ValueError(f"{path}: expected {expected}, got {int(outside[0])}")


def named_sources(args: argparse.Namespace) -> tuple[Source, ...]:
    """Make the sources of --source; without it, those of the text."""
    return tuple(SOURCES[name](budget) for name, budget in args.source or ()) or TEXT


def load_prior(prior: str | None) -> Tensor | None:
    """Read the file of --prior: int64 [n], n >= 1, distinct; None for the order of ids.

    Raises:
        OSError: the file does not exist or is not readable.
        ValueError: the file is no tokenizer and no list of token ids, or an empty list.
    """
    if prior in (None, IDS):
        return None
    path = Path(prior)
    if path.name.endswith("tokenizer.json"):
        tokens = prior_of_tokenizer(load_tokenizer(path))
    else:
        tokens = read_token_ids(path)
    if not len(tokens):
        raise ValueError(f"{path}: expected at least one token id, got none")
    return tokens


def check_pin(args: argparse.Namespace, count: int, capacity: int) -> None:
    """Check --pin against the number of tokens of --prior and the smallest capacity.

    Raises:
        ValueError: a --pin above one of them.
    """
    if args.pin is not None and args.pin > min(count, capacity):
        expected = f"at most the {count} tokens of --prior and the capacity of {capacity}"
        raise ValueError(f"--pin: expected {expected}, got {args.pin}")


def start_tokens(args: argparse.Namespace, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pinned tokens, and the frequent tokens that every text begins with."""
    return prior[: args.pin or 0], prior[:0] if args.no_fill else prior


def _name_and_budget(text: str) -> tuple[str, int | None]:
    name, equals, budget = text.partition("=")
    if name not in SOURCES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(SOURCES)}, got {name}")
    return name, whole(1, LARGEST_VOCAB)(budget) if equals else None
