# SPDX-License-Identifier: Apache-2.0
"""Define the options of the list of frequent tokens, and read the list."""

import argparse
from pathlib import Path

from torch import Tensor

from microspec_kernels._token_ids import read_token_ids

from .arguments import check_used, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frequent-tokens",
        type=Path,
        metavar="FILE",
        help="token ids, the most frequent first (.npy, .pt or .json); the vocabulary begins with "
        "as many as fit",
    )
    parser.add_argument(
        "--pin", type=positive, metavar="N", help="never evict the N most frequent tokens"
    )
    parser.add_argument(
        "--no-fill",
        action="store_true",
        help="begin with the pinned tokens only, or empty without --pin",
    )


def check_filled(args: argparse.Namespace) -> None:
    """Check that the vocabulary can use the tokens of --frequent-tokens.

    Raises:
        ValueError: --no-fill without --pin leaves them unused.
    """
    used = args.pin is not None or not args.no_fill
    check_used(args, ("frequent_tokens", used, "a --pin beside --no-fill"))


def read(args: argparse.Namespace) -> Tensor | None:
    """Read the token ids of --frequent-tokens: int64 [n], n >= 1; None without the option.

    Raises:
        OSError: the file does not exist or is not readable.
        ValueError: the file is not a list of token ids, or an empty one.
    """
    if args.frequent_tokens is None:
        return None
    tokens = read_token_ids(args.frequent_tokens)
    if not len(tokens):
        raise ValueError(f"{args.frequent_tokens}: expected at least one token id, got none")
    return tokens


def check_pin(args: argparse.Namespace, count: int, capacity: int) -> None:
    """Check that --pin is at most the `count` tokens of the list, and at most `capacity`.

    Raises:
        ValueError: a larger --pin.
    """
    if args.pin is not None and args.pin > min(count, capacity):
        expected = f"at most the {count} tokens of {args.frequent_tokens}"
        expected += f" and the capacity of {capacity}"
        raise ValueError(f"--pin: expected {expected}, got {args.pin}")
