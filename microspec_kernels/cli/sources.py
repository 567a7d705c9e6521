# SPDX-License-Identifier: Apache-2.0
"""Make the parts of a vocabulary policy from the options of `replay`."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from microspec_kernels._npy import integers
from microspec_kernels.policy import (
    ContextSuccessors,
    Source,
    expanded,
    generated,
    prompt,
    variants,
)
from microspec_kernels.replay import load_tokenizer, token_texts

from . import frequent_tokens
from .arguments import LARGEST_VOCAB, check_used, whole

TEXT: dict[str, Callable[[int | None], Source]] = {
    "prompt": prompt,
    "generated": generated,
}
TABLES = ("variants", "successors", "neighbours")
CONTEXT = {"context1": 1, "context2": 2}
NAMES = (*TEXT, *TABLES, *CONTEXT)
AHEAD = 5  # about the depth of a draft


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        action="append",
        type=_name_and_budget,
        metavar="NAME[=BUDGET]",
        help=f"a source of tokens: one of {', '.join(NAMES)}, with at most BUDGET tokens per pass; "
        "may be repeated, the newest tokens of a row last (default: prompt, generated and all "
        "tables)",
    )
    parser.add_argument(
        "--variants",
        type=Path,
        metavar="TOKENIZER",
        help="table of variants in case and leading space: a tokenizer.json, or .npy int32 [V, c]",
    )
    for name in TABLES[1:]:
        parser.add_argument(
            f"--{name}", type=Path, metavar="FILE", help=f"table of {name}: .npy int32 [V, c]"
        )
    frequent_tokens.add_arguments(parser)


def check(args: argparse.Namespace) -> None:
    """Check the options before reading any file.

    Raises:
        ValueError: an option that nothing would use, or that lacks another option.
    """
    used = {name for name, _ in args.source or ()}
    check_used(
        args,
        *((name, args.frequent_tokens, "a --frequent-tokens") for name in ("pin", "no_fill")),
        *((name, not used or name in used, f"--source {name}") for name in TABLES),
    )
    frequent_tokens.check_filled(args)
    for name in TABLES:
        if name in used and getattr(args, name) is None:
            raise ValueError(f"--source {name}: expected its table, --{name} FILE, got none")


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


def load_tables(args: argparse.Namespace) -> dict[str, Tensor]:
    """Load the tables that the options name: int32 [V, c], by the name of their source.

    Raises:
        OSError: a file does not exist or is not readable.
        ValueError: a file is not such a table.
    """
    paths = {name: getattr(args, name) for name in TABLES if getattr(args, name)}
    return {name: _table(name, path, args.vocab_size) for name, path in paths.items()}


def named_sources(
    args: argparse.Namespace, tables: dict[str, Tensor], vocab_size: int
) -> tuple[Source, ...]:
    """Make the sources of --source; without it, those of the text and of every table.

    Raises:
        ValueError: a table has no row for some token below `vocab_size`.
    """
    sources: list[Source] = []
    for name, budget in args.source or [(name, None) for name in (*TEXT, *tables)]:
        if name in TEXT:
            sources.append(TEXT[name](budget))
        elif name in CONTEXT:
            ahead = budget or AHEAD
            sources += ContextSuccessors(vocab_size, order=CONTEXT[name], ahead=ahead).sources
        elif len(tables[name]) < vocab_size:
            expected, path = f"at least {vocab_size} rows", getattr(args, name)
            raise ValueError(f"--{name}: expected {expected}, got {len(tables[name])} of {path}")
        else:
            texts = (text(None) for text in TEXT.values())
            sources += [expanded(text, tables[name], name, budget) for text in texts]
    return tuple(sources)


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


def _table(name: str, path: Path, vocab_size: int | None) -> Tensor:
    if name == "variants" and path.suffix != ".npy":
        return variants(token_texts(load_tokenizer(path)))
    table = torch.from_numpy(integers(path, 2).astype("int64"))
    if not table.numel():
        raise ValueError(f"{path}: expected at least one entry, got shape {list(table.shape)}")
    if int(table.min()) < -1:
        raise ValueError(f"{path}: expected token ids or -1, got {int(table.min())}")
    check_ids(path, table, vocab_size or len(table))
    return table.int()


def _name_and_budget(text: str) -> tuple[str, int | None]:
    name, equals, budget = text.partition("=")
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(NAMES)}, got {name}")
    return name, whole(1, LARGEST_VOCAB)(budget) if equals else None
